"""Codecs: tiny random models of the true classes, saved and loaded as users do; tokens equal the library's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.audio.probe import probe
from woodshed.contracts import Encoder, Item, Record
from woodshed.encoders.autoencoder import FrameEncoder, FrameOptions
from woodshed.encoders.codec import ClipEncoder, open_codec
from woodshed.encoders.codec_networks import ClipNetwork, DacNetwork, load_codec
from woodshed.encoders.models import decode_blocks
from woodshed.encoders.reach import verify_reach
from woodshed.errors import ItemError, ModelError, UsageError

transformers = pytest.importorskip("transformers", reason="needs the codecs extra")

RATE_HZ = 8000
ENCODEC: dict[str, Any] = {
    "sampling_rate": RATE_HZ,
    "num_filters": 4,
    "hidden_size": 16,
    "codebook_size": 64,
    "codebook_dim": 16,
    "upsampling_ratios": [5, 4],
    "target_bandwidths": [4.8, 7.2, 12.0],
    "num_lstm_layers": 1,
}
CHUNKED: dict[str, Any] = ENCODEC | {
    "audio_channels": 2,
    "normalize": True,
    "chunk_length_s": 0.1,
    "overlap": 0.01,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
}
DAC: dict[str, Any] = {
    "sampling_rate": RATE_HZ,
    "encoder_hidden_size": 4,
    "decoder_hidden_size": 32,
    "downsampling_ratios": [2, 5],
    "n_codebooks": 3,
    "codebook_size": 512,
    "codebook_dim": 4,
}
MIMI: dict[str, Any] = {
    "sampling_rate": RATE_HZ,
    "num_filters": 4,
    "hidden_size": 32,
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "upsampling_ratios": [5, 4],
    "num_quantizers": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "upsample_groups": 32,
    "sliding_window": 8,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads take longer than one over networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def _build(kind: str) -> Any:
    made = {
        "encodec": lambda: transformers.EncodecModel(transformers.EncodecConfig(**ENCODEC)),
        "chunked": lambda: transformers.EncodecModel(transformers.EncodecConfig(**CHUNKED)),
        "dac": lambda: transformers.DacModel(transformers.DacConfig(**DAC)),
        "mimi": lambda: transformers.MimiModel(transformers.MimiConfig(**MIMI)),
    }
    torch.manual_seed(3)
    model = made[kind]().eval()
    _fill_codebooks(kind, model)
    return model


@torch.no_grad()
def _fill_codebooks(kind: str, model: Any) -> None:
    """Codebooks of frames that the model makes: a fresh one gives every frame the same token."""
    if kind == "dac":
        for name, weight in model.named_parameters():
            if name.endswith("weight"):
                weight.normal_(std=0.2)
        return
    noise = 0.3 * torch.randn(1, model.config.audio_channels, 8000)
    if kind == "mimi":
        frames = model.encoder(noise).latents
        parts = [model.quantizer.semantic_residual_vector_quantizer, model.quantizer.acoustic_residual_vector_quantizer]
        books = [(part.input_proj(frames), [layer.codebook.embed_sum for layer in part.layers]) for part in parts]
    else:
        frames = model.encoder(noise / noise.std() if model.config.normalize else noise)
        books = [(frames, [layer.codebook.embed for layer in model.quantizer.layers])]
    for residual, tables in books:
        rest = residual[0].T
        for table in tables:
            table.copy_(rest[torch.randperm(len(rest))[: len(table)]])
            rest = rest - table[torch.cdist(rest, table).argmin(1)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in ("encodec", "chunked", "dac", "mimi"):
        _build(kind).save_pretrained(root / kind)
    return {kind: root / kind for kind in ("encodec", "chunked", "dac", "mimi")}


@pytest.fixture(scope="module")
def opened(folders: dict[str, Path]) -> dict[str, ClipEncoder | FrameEncoder]:
    return {kind: open_codec(str(folder)) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def make_item(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Item]:
    root = tmp_path_factory.mktemp("sounds")

    def make(num_samples: int, *, channels: int = 1, gain: float = 0.3, seed: int = 0) -> Item:
        rng = np.random.default_rng((seed, num_samples, channels))
        path = root / f"{seed}_{num_samples}_{channels}_{gain}.wav"
        samples = np.clip(gain * rng.standard_normal((num_samples, channels)), -1, 1).astype(np.float32)
        soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
        return Item(id=path.name, path=str(path), relpath=path.name, size_bytes=1, mtime_ns=1, audio=probe(str(path)))

    return make


def samples_of(item: Item) -> torch.Tensor:
    samples, _ = soundfile.read(item.path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy())[None]


def encode_one(encoder: Encoder, item: Item) -> list[Record]:
    """Each piece alone."""
    joiner = encoder.joiner(item)
    return [
        record for example in encoder.prepare(item) for part in encoder.encode([example]) for record in joiner.add(part)
    ]


@torch.no_grad()
def library_tokens(kind: str, model: Any, audio: torch.Tensor) -> np.ndarray:
    """What the class itself gives for one clip, in (codebook, frame)."""
    if kind == "encodec":
        return model.encode(audio, bandwidth=12.0).audio_codes[0, 0].numpy()
    if kind == "mimi":
        return model.encode(audio).audio_codes[0].numpy()
    audio = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % 10))
    return model.encode(audio).audio_codes[0].numpy()


@pytest.mark.parametrize("kind", ["encodec", "mimi", "dac"])
@pytest.mark.parametrize("num_samples", [1, 20, 21, 799, 4003])
def test_tokens_are_the_librarys(
    opened: dict[str, Encoder], make_item: Callable[..., Item], kind: str, num_samples: int
) -> None:
    encoder = opened[kind]
    item = make_item(num_samples)
    wanted = library_tokens(kind, _build(kind), samples_of(item))
    (record,) = encode_one(encoder, item)
    hop = {"encodec": 20, "mimi": 40, "dac": 10}[kind]
    np.testing.assert_array_equal(record.arrays["tokens"], wanted)
    assert num_samples < 100 or len(np.unique(wanted)) > 5
    assert encoder.spec.hop_samples == hop
    assert record.arrays["tokens"].dtype == (np.int16 if kind == "dac" else np.uint8)
    assert torch.from_numpy(record.arrays["tokens"]).shape == (len(encoder.spec.codebook_sizes), -(-num_samples // hop))
    meta = record.meta
    assert (meta["start_sample"], meta["num_samples"], meta["silent"]) == (0, num_samples, False)
    assert meta["num_frames"] == meta["valid_frames"] == wanted.shape[1]


@pytest.mark.parametrize("num_samples", [1, 792, 793, 800, 5000])
def test_chunked_models_keep_their_chunks_and_scales(
    opened: dict[str, Encoder], make_item: Callable[..., Item], num_samples: int
) -> None:
    encoder, model = opened["chunked"], _build("chunked")
    assert isinstance(encoder, ClipEncoder)
    item = make_item(num_samples, channels=2)
    with torch.no_grad():
        wanted = model.encode(samples_of(item), bandwidth=12.0)
        played = model.decode(
            wanted.audio_codes, wanted.audio_scales, last_frame_pad_length=wanted.last_frame_pad_length
        )
    (record,) = encode_one(encoder, item)
    codes = [chunk[0].numpy() for chunk in wanted.audio_codes]
    codes[-1] = codes[-1][:, : codes[-1].shape[1] - wanted.last_frame_pad_length]
    np.testing.assert_array_equal(record.arrays["tokens"], np.concatenate(codes, axis=1))
    np.testing.assert_allclose(record.arrays["scales"], [float(scale) for scale in wanted.audio_scales], rtol=1e-5)
    assert (record.meta["chunk_samples"], record.meta["chunk_stride_samples"]) == (800, 792)
    assert len(encoder.outline(item).pieces) == len(codes)
    audio = encoder.network.decode(record.arrays, num_samples=num_samples)
    np.testing.assert_allclose(audio, played.audio_values[0].numpy()[:, :num_samples], atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(["encodec", "mimi", "dac", "chunked"]),
    lengths=st.lists(st.sampled_from([37, 400, 790, 1600, 2413]), min_size=2, max_size=5),
)
def test_batched_equals_single(
    opened: dict[str, Encoder], make_item: Callable[..., Item], kind: str, lengths: list[int]
) -> None:
    encoder = opened[kind]
    channels = encoder.spec.audio_channels
    items = [make_item(length, channels=channels, seed=i, gain=0.05 * 2**i) for i, length in enumerate(lengths)]
    by_key: dict[str, list[Any]] = {}
    for item in items:
        for piece, example in zip(encoder.outline(item).pieces, encoder.prepare(item), strict=True):
            by_key.setdefault(piece.key, []).append((item.id, example))
    made = {}
    for batch in by_key.values():
        for (item_id, example), part in zip(batch, encoder.encode([example for _, example in batch]), strict=True):
            made[item_id, example.index] = part
    for item in items:
        joiner, records = encoder.joiner(item), []
        for index in range(len(encoder.outline(item).pieces)):
            records += joiner.add(made[item.id, index])
        (batched,), (single,) = records, encode_one(encoder, item)
        np.testing.assert_array_equal(batched.arrays["tokens"], single.arrays["tokens"])
        if "scales" in single.arrays:
            np.testing.assert_allclose(batched.arrays["scales"], single.arrays["scales"], rtol=1e-5)
        assert batched.meta == single.meta


@pytest.mark.parametrize("kind", ["encodec", "mimi"])
def test_decoding_is_the_librarys(opened: dict[str, Any], make_item: Callable[..., Item], kind: str) -> None:
    encoder, model = opened[kind], _build(kind)
    (record,) = encode_one(encoder, make_item(4003))
    tokens = torch.from_numpy(record.arrays["tokens"].astype(np.int64))[None]
    with torch.no_grad():
        wanted = (
            (model.decode(tokens[None], [None]) if kind == "encodec" else model.decode(tokens)).audio_values[0].numpy()
        )
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(encoder.network.decode(record.arrays), wanted, atol=1e-5)
    np.testing.assert_allclose(encoder.network.decode(record.arrays, num_samples=4003), wanted[:, :4003], atol=1e-5)


def test_dac_decodes_in_windows(
    folders: dict[str, Path], opened: dict[str, Any], make_item: Callable[..., Item]
) -> None:
    # In float64: these random weights magnify rounding.
    network, model = load_codec(str(folders["dac"]), dtype=torch.float64), deepcopy(_build("dac")).double()
    assert isinstance(network, DacNetwork)
    (record,) = encode_one(opened["dac"], make_item(4003))
    with torch.no_grad():
        wanted = model.decode(audio_codes=torch.from_numpy(record.arrays["tokens"].astype(np.int64))[None]).audio_values
    audio = np.concatenate(list(decode_blocks(network, record.arrays, window_s=0.05)), axis=1)
    assert audio.shape == (1, 4010 - 2), "an odd stride shortens the end"
    np.testing.assert_allclose(audio, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("strides", [[2, 5], [2, 4, 8], [3, 2, 2]])
def test_dac_looks_no_further_than_computed(strides: list[int]) -> None:
    torch.manual_seed(0)
    model = transformers.DacModel(transformers.DacConfig(**DAC | {"downsampling_ratios": strides})).eval().double()
    network = DacNetwork(model, num_codebooks=3, fingerprint={})
    verify_reach(
        model.encoder,
        left_frames=network.reach_frames,
        right_frames=network.reach_frames,
        hop_samples=network.hop_samples,
        channels=1,
    )


def test_dac_in_windows_equals_dac_at_once(folders: dict[str, Path], make_item: Callable[..., Item]) -> None:
    item = make_item(9001)
    whole = library_tokens("dac", _build("dac"), samples_of(item))
    encoder = open_codec(str(folders["dac"]), FrameOptions(window="whole", window_frames=120))
    assert len(encoder.outline(item).pieces) > 5
    (record,) = encode_one(encoder, item)
    np.testing.assert_array_equal(record.arrays["tokens"], whole)


@pytest.mark.parametrize("pad_last", [True, False])
@pytest.mark.parametrize("tokens_last", [True, False])
def test_tiles_are_slices_of_the_whole(
    folders: dict[str, Path],
    opened: dict[str, Encoder],
    make_item: Callable[..., Item],
    pad_last: bool,
    tokens_last: bool,
) -> None:
    item = make_item(2130)
    (whole,) = encode_one(opened["encodec"], item)
    options = FrameOptions(window="tile", record_frames=50, pad_last=pad_last, tokens_last=tokens_last)
    encoder = open_codec(str(folders["encodec"]), options)
    tiles = encode_one(encoder, item)
    assert len(tiles) == encoder.outline(item).num_records == 3
    tokens = [tile.arrays["tokens"].T if tokens_last else tile.arrays["tokens"] for tile in tiles]
    assert [tile.shape[1] for tile in tokens] == [50, 50, 50 if pad_last else 7]
    np.testing.assert_array_equal(np.concatenate(tokens, axis=1)[:, :107], whole.arrays["tokens"])
    keys = ("start_sample", "num_samples", "num_frames", "valid_frames", "window_samples")
    assert [[tile.meta[key] for key in keys] for tile in tiles] == [
        [0, 1000, 50, 50, 1000],
        [1000, 1000, 50, 50, 1000],
        [2000, 130, 50 if pad_last else 7, 7, 1000],
    ]


def test_first_encodes_the_first_window_alone(folders: dict[str, Path], make_item: Callable[..., Item]) -> None:
    encoder = open_codec(str(folders["mimi"]), FrameOptions(window="first", record_frames=10))
    long, short = make_item(1000), make_item(90)
    (record,) = encode_one(encoder, long)
    np.testing.assert_array_equal(
        record.arrays["tokens"], library_tokens("mimi", _build("mimi"), samples_of(long)[..., :400])
    )
    assert (record.meta["num_samples"], record.meta["num_frames"], record.meta["valid_frames"]) == (400, 10, 10)
    (record,) = encode_one(encoder, short)
    assert (record.meta["num_samples"], record.meta["num_frames"], record.meta["valid_frames"]) == (90, 10, 3)
    assert not record.arrays["tokens"][:, 3:].any()


@pytest.mark.parametrize("kind", ["encodec", "mimi", "dac"])
def test_fewer_codebooks_are_the_first_ones(
    folders: dict[str, Path], make_item: Callable[..., Item], kind: str
) -> None:
    item = make_item(800)
    (every,) = encode_one(open_codec(str(folders[kind])), item)
    encoder = open_codec(str(folders[kind]), num_codebooks=2)
    (two,) = encode_one(encoder, item)
    np.testing.assert_array_equal(two.arrays["tokens"], every.arrays["tokens"][:2])
    assert encoder.fingerprint != open_codec(str(folders[kind])).fingerprint
    with pytest.raises(UsageError, match=r"num_codebooks=9: this codec has 1 to"):
        open_codec(str(folders[kind]), num_codebooks=9)


def test_encodec_bandwidths(folders: dict[str, Path]) -> None:
    assert len(load_codec(str(folders["encodec"]), bandwidth_kbps=7.2).codebook_sizes) == 3
    for arguments, message in (
        ({"bandwidth_kbps": 5.0}, "bandwidth_kbps=5: this codec knows 4.8, 7.2, 12"),
        ({"bandwidth_kbps": 7.2, "num_codebooks": 3}, "num_codebooks and bandwidth_kbps are one choice"),
    ):
        with pytest.raises(UsageError) as caught:
            load_codec(str(folders["encodec"]), **arguments)
        assert message in str(caught.value)
    with pytest.raises(UsageError, match="bandwidth_kbps is EnCodec's; this codec is 'dac'"):
        load_codec(str(folders["dac"]), bandwidth_kbps=7.2)


def test_long_clips_are_refused_one_by_one(folders: dict[str, Path], make_item: Callable[..., Item]) -> None:
    encoder = open_codec(str(folders["encodec"]), max_clip_s=0.1)
    assert len(encoder.outline(make_item(800)).pieces) == 1
    with pytest.raises(ItemError) as caught:
        encoder.outline(make_item(9001))
    assert caught.value.kind == "too_long"
    assert "is 1 s long; this codec sees clips as a whole, up to 0 s (try: split the file" in str(caught.value)
    open_codec(str(folders["chunked"]), max_clip_s=0.1).outline(make_item(9001, channels=2))
    open_codec(str(folders["dac"]), max_clip_s=0.1).outline(make_item(9001))


def test_silence_is_flagged_and_may_be_dropped(folders: dict[str, Path], make_item: Callable[..., Item]) -> None:
    item = make_item(800, gain=0.0)
    (record,) = encode_one(open_codec(str(folders["encodec"])), item)
    assert record.meta["silent"] is True
    encoder = open_codec(str(folders["encodec"]), FrameOptions(window="whole", drop_silence=True))
    assert encode_one(encoder, item) == []


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("chunked", FrameOptions(window="tile", record_frames=10), "overlapping chunks of 0.1 s"),
        ("encodec", FrameOptions(window="tile"), "needs the number of frames of a record"),
        ("encodec", FrameOptions(window="whole", random_crop=True), "are for autoencoders"),
    ],
)
def test_options_that_cannot_work(folders: dict[str, Path], kind: str, options: FrameOptions, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_codec(str(folders[kind]), options)
    assert message in str(caught.value)


def test_the_fingerprint_is_of_the_weights_not_of_the_place(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["mimi"], tmp_path / "moved")
    here, moved = load_codec(str(folders["mimi"])), load_codec(str(tmp_path / "moved"))
    assert here.fingerprint == moved.fingerprint
    assert str(folders["mimi"]) not in json.dumps(here.fingerprint)
    model = deepcopy(_build("mimi"))
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    model.save_pretrained(tmp_path / "other")
    assert load_codec(str(tmp_path / "other")).fingerprint["weights"] != here.fingerprint["weights"]


def test_wrong_folders_say_what_is_wrong(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as usage:
        load_codec(str(tmp_path / "none"))
    assert str(usage.value).startswith(f"there is no folder {tmp_path / 'none'} (try: name a folder that exists")
    with pytest.raises(ModelError) as caught:
        load_codec(str(tmp_path))
    assert "has no config.json: it is not the folder of a transformers model" in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_thing"}')
    with pytest.raises(ModelError, match="cannot be loaded as a codec"):
        load_codec(str(tmp_path))
    bert = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=16
    )
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="is a BertModel, which has no `encode`: it is not an audio codec"):
        load_codec(str(tmp_path / "bert"))


def test_weights_that_do_not_fit_are_listed(folders: dict[str, Path], tmp_path: Path) -> None:
    model = _build("dac")
    state = dict(model.state_dict())
    del state["encoder.conv1.bias"]
    state["encoder.conv9.bias"] = torch.zeros(3)
    model.save_pretrained(tmp_path / "keys", state_dict=state)
    with pytest.raises(ModelError) as caught:
        load_codec(str(tmp_path / "keys"))
    assert "do not fit its config: 1 missing: encoder.conv1.bias; 1 unknown: encoder.conv9.bias" in str(caught.value)
    shutil.copytree(folders["dac"], tmp_path / "shapes")
    config = json.loads((tmp_path / "shapes/config.json").read_text())
    (tmp_path / "shapes/config.json").write_text(json.dumps(config | {"codebook_size": 256}))
    with pytest.raises(ModelError):
        load_codec(str(tmp_path / "shapes"))


def test_a_class_that_is_not_known_is_measured(tmp_path: Path, make_item: Callable[..., Item]) -> None:
    dac = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "hidden_size": 32, "codebook_dim": 4}
    hubert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    hubert |= {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = transformers.XcodecConfig(
        acoustic_model_config={"downsampling_ratios": [8, 5, 4, 2], **dac},
        semantic_model_config=hubert,
        codebook_size=64,
        target_bandwidths=[0.6, 1.2],
        sample_rate=16_000,
    )
    model = transformers.XcodecModel(config).eval()
    model.save_pretrained(tmp_path)
    encoder = open_codec(str(tmp_path))
    assert isinstance(encoder, ClipEncoder)
    assert (encoder.network.fills_frames, encoder.spec.codebook_sizes, encoder.spec.hop_samples) == (
        True,
        (64,) * 4,
        320,
    )
    item = make_item(3333)
    (record,) = encode_one(encoder, item)
    (example,) = encoder.prepare(item)
    assert example.arrays["audio"].shape == (1, 21 * 320)
    with torch.no_grad():
        wanted = model.encode(torch.from_numpy(example.arrays["audio"])[None]).audio_codes[0].numpy()
    np.testing.assert_array_equal(record.arrays["tokens"], wanted)
    assert (record.meta["num_samples"], record.meta["num_frames"]) == (6666, 21)
    assert encoder.network.decode(record.arrays, num_samples=6666).shape == (1, 6666)


def test_networks_say_what_they_are(folders: dict[str, Path]) -> None:
    encoder = open_codec(str(folders["encodec"]))
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, ClipEncoder)
    assert isinstance(encoder.network, ClipNetwork)
    assert (encoder.spec.kind, encoder.spec.main, encoder.spec.rate_hz) == ("tokens", "tokens", RATE_HZ)
    assert encoder.spec.arrays["tokens"].axes == ("codebook", "frame")
    assert encoder.spec.codebook_sizes == (64,) * 5
    json.dumps([encoder.fingerprint, open_codec(str(folders["dac"])).fingerprint])
