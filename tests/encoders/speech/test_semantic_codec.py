"""Semantic codecs: known answers, exactness in batches, the two layouts, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from woodshed.encoders.speech.semantic_codec import CodecSizes, Quantiser, SemanticCodec
from woodshed.encoders.weights import TensorFile, open_tensors
from woodshed.errors import ModelError

GOLDEN = Path(__file__).parents[2] / "golden" / "indextts2"
TINY = ["repcodec_tiny", "enhanced_codec_tiny"]
LAYOUTS = {"repcodec_maskgct": 1, "enhanced_codec_v25": 2}
FLOAT32_STEPS = 1e-5
IN_PROJECT = "quantizer.quantizers.0.in_project"
State = Mapping[str, Tensor]


def tensors_of(state: State, *, seen: set[str] | None = None) -> TensorFile:
    """A checkpoint in memory; `seen` collects the keys that are read."""

    def read(key: str) -> Tensor:
        if seen is not None:
            seen.add(key)
        return state[key]

    return TensorFile(path=Path("model.safetensors"), shapes={k: tuple(v.shape) for k, v in state.items()}, read=read)


def state_of(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def codec_of(name: str, **options: Any) -> SemanticCodec:
    return SemanticCodec.from_tensors(open_tensors(GOLDEN / f"{name}.safetensors"), **options)


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
    return config


CODECS = {name: codec_of(name, with_decoder=True) for name in TINY}


def layout_of(name: str) -> dict[str, Tensor]:
    keys = json.loads((GOLDEN / f"layout_{name}.json").read_text())["keys"]
    return {key: torch.empty(shape, device="meta") for key, (shape, _) in keys.items()}


def plain_vocos(state: State, part: str, x: Tensor) -> Tensor:
    """One clip, [channel, frame], in float64 and with the library's own convolutions."""

    def norm(name: str, x: Tensor) -> Tensor:
        wide = F.layer_norm(x.t(), x.shape[:1], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)
        return wide.t()

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x.t(), state[f"{name}.weight"], state[f"{name}.bias"]).t()

    stem = f"{part}.0"
    x = norm(f"{stem}.norm", F.conv1d(x, state[f"{stem}.embed.weight"], state[f"{stem}.embed.bias"], padding=3))
    for block in range(3):
        at = f"{stem}.convnext.{block}"
        y = F.conv1d(x, state[f"{at}.dwconv.weight"], state[f"{at}.dwconv.bias"], padding=3, groups=len(x))
        y = linear(f"{at}.pwconv2", F.gelu(linear(f"{at}.pwconv1", norm(f"{at}.norm", y))))
        x = x + state[f"{at}.gamma"][:, None] * y
    return linear(f"{part}.1", norm(f"{stem}.final_layer_norm", x))


@pytest.mark.parametrize("name", TINY)
def test_known_answers(name: str) -> None:
    codec, io = CODECS[name], load_file(GOLDEN / f"{name}_io.safetensors")
    lengths = [int(key.removeprefix("x_")) for key in io if key.startswith("x_")]
    assert len(lengths) >= 5
    for frames in lengths:
        codes = codec.codes(io[f"x_{frames}"], torch.tensor([frames]))
        assert codes.shape[1] == codec.num_codes(frames)
        assert torch.equal(codes, io[f"codes_{frames}"].long())
        assert (codec.quantized(codes) - io[f"quantized_{frames}"]).abs().max() <= FLOAT32_STEPS
        if codec.downsample == 2:
            assert (codec.decode(codes) - io[f"decoded_{frames}"]).abs().max() <= FLOAT32_STEPS


def test_a_padded_batch_gives_what_single_runs_gave_the_original() -> None:
    io = load_file(GOLDEN / "repcodec_tiny_io.safetensors")
    lengths = json.loads((GOLDEN / "repcodec_tiny.json").read_text())["batch"]["lengths"]
    codes = CODECS["repcodec_tiny"].codes(io["batch_x"], torch.tensor(lengths))
    for row, frames in enumerate(lengths):
        assert torch.equal(codes[row, :frames], io[f"batch_codes_unpadded_{row}"].long())
    # The original's own batch differs in rows 1 and 2, so that this batch can tell a leak.
    assert not torch.equal(codes[1, :60], io["batch_codes"][1, :60].long())


@pytest.mark.parametrize("name", TINY)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    extra=st.integers(0, 9),
    filler=st.sampled_from([0.0, 1.0, -1e30, float("nan"), float("inf")]),
    seed=st.integers(0, 2**16),
)
def test_each_clip_gets_what_it_gets_alone(name: str, lengths: list[int], extra: int, filler: float, seed: int) -> None:
    codec, chance = CODECS[name], torch.Generator().manual_seed(seed)
    clips = [torch.randn(1, frames, codec.hidden_size, generator=chance) for frames in lengths]
    singles = [codec.codes(clip, torch.tensor([clip.shape[1]])) for clip in clips]
    batch = torch.full((len(clips), max(lengths) + extra, codec.hidden_size), filler)
    for row, clip in zip(batch, clips, strict=True):
        row[: clip.shape[1]] = clip[0]
    codes = codec.codes(batch, torch.tensor(lengths))
    assert codes.shape == (len(clips), codec.num_codes(batch.shape[1]))
    assert int(codes.min()) >= 0
    assert int(codes.max()) < codec.codebook_size
    counts = torch.tensor([codec.num_codes(frames) for frames in lengths])
    decoded = codec.decode(codes, counts)
    assert bool(decoded.isfinite().all())
    for row, single in enumerate(singles):
        assert torch.equal(codes[row, : single.shape[1]], single[0])
        alone = codec.decode(single)[0]
        assert (decoded[row, : len(alone)] - alone).abs().max() <= FLOAT32_STEPS


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 600),
    width=st.integers(1, 8),
    frames=st.integers(1, 300),
    repeats=st.integers(1, 3),
)
def test_codes_are_the_nearest_directions_and_the_first_of_equals(
    seed: int, rows: int, width: int, frames: int, repeats: int
) -> None:
    chance = np.random.default_rng(seed)
    book = np.tile(chance.normal(size=(rows, width)), (repeats, 1)).astype(np.float32)
    latents = chance.normal(size=(frames, width)).astype(np.float32)
    sizes = CodecSizes(
        codebook_size=len(book),
        hidden_size=width,
        codebook_dim=width,
        vocos_dim=1,
        vocos_intermediate_dim=1,
        vocos_num_layers=1,
        downsample=1,
    )
    quantiser = Quantiser(sizes).requires_grad_(False)
    quantiser.in_project.weight.copy_(torch.eye(width)[..., None])
    quantiser.in_project.bias.zero_()
    quantiser.codebook.weight.copy_(torch.from_numpy(book))
    found = quantiser.codes(torch.from_numpy(latents)[None])[0].numpy()

    def unit(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        scaled: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True)
        return scaled

    distances = np.linalg.norm(unit(latents)[:, None] - unit(book)[None, :rows], axis=2)
    nearest = distances.min(axis=1)
    chosen = distances[np.arange(frames), found % rows]
    # In one dimension half of all rows are equally near, and of copies all are.
    assert np.all(chosen**2 <= nearest**2 + 1e-6)
    first = distances.argmin(axis=1)
    runner_up = np.partition(distances, 1, axis=1)[:, 1] if rows > 1 else np.full(frames, np.inf)
    clear = runner_up**2 - nearest**2 > 1e-6
    assert np.array_equal(found[clear] % rows, first[clear])


def test_of_equal_rows_the_first_is_taken() -> None:
    state = state_of("repcodec_tiny")
    book = state["quantizer.quantizers.0.codebook.weight"]
    frames = torch.tensor([100])
    x = load_file(GOLDEN / "repcodec_tiny_io.safetensors")["x_100"]
    before = CODECS["repcodec_tiny"].codes(x, frames)
    # Twice the rows at four times the length: the same directions, exactly.
    state["quantizer.quantizers.0.codebook.weight"] = torch.cat([book, 4 * book])
    assert torch.equal(SemanticCodec.from_tensors(tensors_of(state)).codes(x, frames), before)


@pytest.mark.parametrize("name", TINY)
def test_decoder_and_encoder_against_a_plain_float64_version(name: str) -> None:
    codec, config = CODECS[name], config_of(name)
    state = {key: value.double() for key, value in state_of(name).items()}
    codes = torch.arange(21)[None]
    vectors = codec.quantized(codes).double()
    plain = plain_vocos(state, "decoder", vectors[0].t())
    if codec.downsample == 2:
        plain = F.conv1d(plain.repeat_interleave(2, dim=1), state["up.weight"], state["up.bias"], padding=1)
    assert (codec.decode(codes)[0] - plain.t()).abs().max() <= FLOAT32_STEPS

    x = torch.randn(1, 31, config["hidden_size"], generator=torch.Generator().manual_seed(1))
    y = x[0].t().double()
    if codec.downsample == 2:
        y = F.gelu(F.conv1d(y, state["down.weight"], state["down.bias"], stride=2, padding=1))
    y = plain_vocos(state, "encoder", y)
    direction = state[f"{IN_PROJECT}.weight_v"][..., 0]
    weight = state[f"{IN_PROJECT}.weight_g"][..., 0] * direction / direction.norm(dim=1, keepdim=True)
    latents = F.normalize(F.linear(y.t(), weight, state[f"{IN_PROJECT}.bias"]), dim=1)
    rows = F.normalize(state["quantizer.quantizers.0.codebook.weight"], dim=1)
    exact = codec_of(name, dtype=torch.float64)
    assert torch.equal(exact.codes(x, torch.tensor([31]))[0], torch.cdist(latents, rows).argmin(dim=1))
    assert torch.equal(codec.codes(x, torch.tensor([31])), exact.codes(x, torch.tensor([31])))


@pytest.mark.parametrize(("name", "downsample"), LAYOUTS.items())
@pytest.mark.parametrize("with_decoder", [False, True])
def test_the_real_layout_fits_to_the_last_key(name: str, downsample: int, with_decoder: bool) -> None:
    layout, seen = layout_of(name), set[str]()
    codec = SemanticCodec.from_tensors(tensors_of(layout, seen=seen), with_decoder=with_decoder, device="meta")
    unneeded = set() if with_decoder else {key for key in layout if key.startswith(("decoder.", "up."))}
    assert seen == set(layout) - unneeded
    assert with_decoder or unneeded
    # Weight norm's lengths are folded away; nothing else is lost.
    lengths = sum(layout[key].numel() for key in seen if key.endswith("weight_g"))
    assert sum(value.numel() for value in codec.state_dict().values()) + lengths == sum(
        layout[key].numel() for key in seen
    )
    assert (codec.downsample, codec.rate_hz) == (downsample, 50 // downsample)
    assert (codec.codebook_size, codec.hidden_size) == (8192, 1024)
    codec.check_config(
        {
            "codebook_size": 8192,
            "hidden_size": 1024,
            "codebook_dim": 8,
            "vocos_dim": 384,
            "vocos_intermediate_dim": 2048,
            "vocos_num_layers": 12,
        }
    )


def test_codes_of_a_clip() -> None:
    plain, halved = (CODECS[name] for name in TINY)
    assert [plain.num_codes(frames) for frames in (1, 2, 3, 499)] == [1, 2, 3, 499]
    assert [halved.num_codes(frames) for frames in (1, 2, 3, 499, 500)] == [1, 1, 2, 250, 250]


def newly_spelled(state: State) -> dict[str, Tensor]:
    spelling = {
        "weight_g": "parametrizations.weight.original0",
        "weight_v": "parametrizations.weight.original1",
    }
    return {
        ".".join([*key.split(".")[:-1], spelling.get(key.split(".")[-1], key.split(".")[-1])]): value
        for key, value in state.items()
    }


def folded(state: State) -> dict[str, Tensor]:
    plain = {key: value for key, value in state.items() if not key.endswith(("weight_g", "weight_v"))}
    for key, value in state.items():
        if key.endswith("weight_v"):
            length = state[key.replace("weight_v", "weight_g")]
            plain[key.removesuffix("_v")] = length * value / value.norm(dim=(1, 2), keepdim=True)
    return plain


@pytest.mark.parametrize("spelled", [newly_spelled, folded])
@pytest.mark.parametrize("name", TINY)
def test_every_spelling_of_weight_norm_is_the_same_codec(
    name: str, spelled: Callable[[State], dict[str, Tensor]]
) -> None:
    state = state_of(name)
    codec = SemanticCodec.from_tensors(tensors_of(spelled(state)), with_decoder=True)
    assert spelled(state).keys() != state.keys()
    for key, value in CODECS[name].state_dict().items():
        assert (codec.state_dict()[key] - value).abs().max() <= 1e-6


@pytest.mark.parametrize("name", TINY)
def test_weights_are_not_copied_when_they_fit(name: str) -> None:
    state = state_of(name)
    codec = SemanticCodec.from_tensors(tensors_of(state))
    for key, value in codec.state_dict().items():
        if value.dim() != 3 or "dwconv" in key:
            assert value.data_ptr() == state[key].data_ptr(), key
    assert not any(value.requires_grad for value in codec.parameters())
    assert not hasattr(codec, "decoder")


def test_the_codebook_is_searched_in_float32_whatever_the_encoder_runs_in() -> None:
    codec = codec_of("repcodec_tiny", dtype=torch.bfloat16)
    io = load_file(GOLDEN / "repcodec_tiny_io.safetensors")
    assert codec.get_parameter("encoder.1.weight").dtype == torch.bfloat16
    assert codec.get_parameter("quantizer.quantizers.0.codebook.weight").dtype == torch.float32
    agreeing = codec.codes(io["x_100"], torch.tensor([100])) == io["codes_100"]
    assert agreeing.float().mean() >= 0.9


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("encoder.0.norm.bias"), "1 missing (encoder.0.norm.bias)"),
        (lambda state: state.pop("decoder.1.bias"), "1 missing (decoder.1.bias)"),
        (
            lambda state: state.pop(f"{IN_PROJECT}.weight_g"),
            f"1 missing ({IN_PROJECT}.weight); 1 not of this model ({IN_PROJECT}.weight_v)",
        ),
        (lambda state: state.update({"head.weight": torch.zeros(1)}), "1 not of this model (head.weight)"),
        (
            lambda state: state.update({"quantizer.quantizers.1.codebook.weight": torch.zeros(32, 4)}),
            "1 not of this model (quantizer.quantizers.1.codebook.weight)",
        ),
        (
            lambda state: state.update({"up.weight": torch.zeros(16, 16, 3)}),
            "1 not of this model (up.weight)",
        ),
        (
            lambda state: state.update({"down.weight": torch.zeros(16, 16, 3)}),
            "3 missing (down.bias, up.weight, up.bias)",
        ),
        (
            lambda state: state.update({"encoder.0.embed.weight": torch.zeros(12, 16, 5)}),
            "1 of another shape (encoder.0.embed.weight is [12, 16, 5] instead of [12, 16, 7])",
        ),
        (
            lambda state: state.update({f"{IN_PROJECT}.weight_g": torch.ones(4)}),
            f"{IN_PROJECT}.weight_g is [4] instead of [4, 1, 1]",
        ),
        (
            lambda state: state.update({f"{IN_PROJECT}.weight": torch.zeros(4, 16, 1)}),
            f"2 not of this model ({IN_PROJECT}.weight_g, {IN_PROJECT}.weight_v)",
        ),
        (
            lambda state: state.update({f"{IN_PROJECT}.parametrizations.weight.original0": torch.ones(4, 1, 1)}),
            "not of this model",
        ),
        (
            lambda state: state.pop("encoder.1.weight"),
            "model.safetensors is no semantic codec: it has no usable encoder.1.weight",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change: Callable[[dict[str, Tensor]], Any], told: str) -> None:
    state, seen = state_of("repcodec_tiny"), set[str]()
    change(state)
    with pytest.raises(ModelError) as caught:
        SemanticCodec.from_tensors(tensors_of(state, seen=seen))
    assert told in str(caught.value)
    assert not seen, "it was refused before anything was read"


def test_a_block_out_of_count_is_refused_without_building_it() -> None:
    state = state_of("repcodec_tiny")
    state["encoder.0.convnext.999999999.gamma"] = torch.zeros(12)
    with pytest.raises(ModelError, match=r"1 not of this model \(encoder\.0\.convnext\.999999999\.gamma\)"):
        SemanticCodec.from_tensors(tensors_of(state))


@pytest.mark.parametrize("name", TINY)
def test_a_config_of_another_codec_is_told_with_both_values(name: str) -> None:
    codec, config = CODECS[name], config_of(name)
    codec.check_config(config)
    codec.check_config({})
    with pytest.raises(ModelError) as caught:
        codec.check_config({**config, "codebook_size": 8192, "vocos_dim": 384})
    size, width = config["codebook_size"], config["vocos_dim"]
    assert f"is not what the config says: codebook_size is {size}, not 8192, vocos_dim is {width}, not 384" in str(
        caught.value
    )
    other = 1 if codec.downsample == 2 else 2
    with pytest.raises(ModelError, match=f"downsample_scale is {codec.downsample}, not {other}"):
        codec.check_config({"downsample_scale": other})


def test_no_downsampling_may_be_written_as_null() -> None:
    CODECS["repcodec_tiny"].check_config({"downsample_scale": None})
