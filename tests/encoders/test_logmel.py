"""Log-mel spectra: equal to librosa's, in any chunks and any batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.audio.probe import probe
from woodshed.contracts import Encoder, Item, Record
from woodshed.encoders.logmel import LogMel, LogMelConfig, mel_bands, pad_stream
from woodshed.errors import ItemError, UsageError


def sound(num_samples: int, *, rate_hz: int = 16_000, seed: int = 0) -> np.ndarray:
    """Tones over a little noise: loud and quiet bins in every frame."""
    time_s = np.arange(num_samples) / rate_hz
    tones = sum(0.2 * np.sin(2 * np.pi * hz * time_s + hz) for hz in (220, 440.5, 3000))
    return (tones + 1e-3 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def item_of(path: Path, samples: np.ndarray, *, rate_hz: int = 16_000) -> Item:
    soundfile.write(path, samples.T, rate_hz, subtype="FLOAT")
    return Item(id=path.name, path=str(path), relpath=path.name, size_bytes=1, mtime_ns=1, audio=probe(str(path)))


def encode_one(encoder: Encoder, item: Item) -> list[Record]:
    """Each piece alone."""
    joiner = encoder.joiner(item)
    return [
        record for example in encoder.prepare(item) for part in encoder.encode([example]) for record in joiner.add(part)
    ]


def by_librosa(samples: np.ndarray, config: LogMelConfig) -> np.ndarray:
    """In float64, so that rounding is not what is compared."""
    mel = librosa.feature.melspectrogram(
        y=samples.astype(np.float64),
        sr=config.rate_hz,
        n_fft=config.n_fft,
        hop_length=config.hop_samples,
        win_length=config.win_samples,
        center=config.center,
        pad_mode=config.pad_mode,
        power=config.power,
        n_mels=config.num_mels,
        fmin=config.fmin_hz,
        fmax=config.fmax_hz,
        htk=config.scale == "htk",
        norm=config.norm,
        dtype=np.float64,
    )
    match config.log:
        case "log":
            return np.log(np.maximum(mel, config.floor))
        case "log10":
            return np.log10(np.maximum(mel, config.floor))
        case "log1p":
            return np.log1p(mel)
        case "db" if config.power == 1:
            return librosa.amplitude_to_db(mel, ref=config.ref, amin=config.floor, top_db=None)
        case "db":
            return librosa.power_to_db(mel, ref=config.ref, amin=config.floor, top_db=None)
        case _:
            return mel


CONFIGS: list[dict[str, Any]] = [
    {"log": "none"},
    {"log": "none", "scale": "htk", "norm": None, "power": 1.0},
    {"log": "none", "n_fft": 400, "win_samples": 320, "hop_samples": 160, "num_mels": 40, "pad_mode": "reflect"},
    {"log": "none", "center": False, "fmin_hz": 55.0, "fmax_hz": 7600.0},
    {"log": "none", "n_fft": 511, "win_samples": 400, "hop_samples": 100, "pad_mode": "edge", "num_mels": 30},
    {"log": "log", "floor": 1e-5, "power": 1.0},
    {"log": "log10"},
    {"log": "log1p", "pad_mode": "reflect"},
    {"log": "db", "ref": 0.5},
    {"log": "db", "power": 1.0, "floor": 1e-5},
]


@pytest.mark.parametrize("options", CONFIGS, ids=str)
@pytest.mark.filterwarnings("ignore:Empty filters")
def test_equal_to_librosa(tmp_path: Path, options: dict[str, Any]) -> None:
    config = LogMelConfig(**({"rate_hz": 16_000} | options))
    samples = sound(20_011)
    (record,) = encode_one(LogMel(config), item_of(tmp_path / "a.wav", samples[None]))
    wanted = by_librosa(samples, config)
    assert record.arrays["mel"].shape == wanted.shape
    energy = by_librosa(samples, LogMelConfig(**({"rate_hz": 16_000} | options | {"log": "none"})))
    audible = energy > energy.max() * 10 ** (-80 / (20 / config.power))
    assert audible.mean() > 0.5
    np.testing.assert_allclose(record.arrays["mel"][audible], wanted[audible], rtol=1e-5, atol=1e-6)


def test_bands_equal_librosa_for_both_scales_and_norms() -> None:
    for scale in ("slaney", "htk"):
        for norm in ("slaney", None):
            config = LogMelConfig(rate_hz=22_050, scale=scale, norm=norm, fmin_hz=30, fmax_hz=9000)  # type: ignore[arg-type]
            wanted = librosa.filters.mel(
                sr=22_050, n_fft=1024, n_mels=80, fmin=30, fmax=9000, htk=scale == "htk", norm=norm, dtype=np.float64
            )
            np.testing.assert_allclose(mel_bands(config).numpy(), wanted, rtol=1e-9, atol=1e-15)


@settings(max_examples=15, deadline=None)
@given(
    num_samples=st.integers(1, 30_000),
    chunk_s=st.sampled_from([0.05, 0.3, 20.0]),
    center=st.booleans(),
    pad_mode=st.sampled_from(["constant", "reflect", "edge"]),
)
def test_chunks_and_batches_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, num_samples: int, chunk_s: float, center: bool, pad_mode: Any
) -> None:
    config = LogMelConfig(rate_hz=16_000, n_fft=512, hop_samples=128, center=center, pad_mode=pad_mode)
    item = item_of(tmp_path_factory.mktemp("chunks") / "a.wav", sound(num_samples)[None])
    encoder = LogMel(config)
    chunked = LogMel(config, chunk_s=chunk_s)
    if config.num_frames(num_samples) == 0:
        with pytest.raises(ItemError, match=f"a.wav has {num_samples} samples, fewer than one frame of 512"):
            encoder.outline(item)
        return
    (whole,) = encode_one(encoder, item)
    examples = list(chunked.prepare(item))
    outline = chunked.outline(item)
    assert [piece.key for piece in outline.pieces] == [
        f"{(len(example.arrays['audio']) - 512) // 128 + 1} frames" for example in examples
    ]
    joiner = chunked.joiner(item)
    records = []
    for piece, example in zip(outline.pieces, examples, strict=True):
        same = [other for other, p in zip(examples, outline.pieces, strict=True) if p.key == piece.key]
        place = same.index(example)
        records += joiner.add(chunked.encode(same)[place])
    (record,) = records
    np.testing.assert_allclose(record.arrays["mel"], whole.arrays["mel"], rtol=1e-5, atol=1e-5)
    assert record.meta == whole.meta
    assert record.meta["num_frames"] == record.arrays["mel"].shape[1] == config.num_frames(num_samples)
    wanted = by_librosa(sound(num_samples), config) if num_samples > 512 else whole.arrays["mel"]
    np.testing.assert_allclose(whole.arrays["mel"], wanted, rtol=1e-4, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.integers(0, 9),
    st.sampled_from(["constant", "reflect", "edge"]),
)
def test_padding_a_stream_equals_padding_the_whole(sizes: list[int], margin: int, mode: Any) -> None:
    whole = np.random.default_rng(0).standard_normal((1, sum(sizes))).astype(np.float32)
    blocks = iter(np.split(whole, np.cumsum(sizes)[:-1], axis=1))
    padded = np.concatenate(list(pad_stream(blocks, margin=margin, mode=mode)), axis=1)
    np.testing.assert_array_equal(padded, np.pad(whole, ((0, 0), (margin, margin)), mode=mode))


def test_stereo_at_another_rate_is_mixed_and_resampled(tmp_path: Path) -> None:
    stereo = np.stack([sound(44_100, rate_hz=44_100), sound(44_100, rate_hz=44_100, seed=1)])
    encoder = LogMel(LogMelConfig(rate_hz=16_000))
    item = item_of(tmp_path / "a.wav", stereo, rate_hz=44_100)
    (record,) = encode_one(encoder, item)
    assert record.arrays["mel"].shape == (80, 16_000 // 256 + 1)
    assert record.meta == {
        "index": 0,
        "start_sample": 0,
        "num_samples": 16_000,
        "num_frames": 63,
        "valid_frames": 63,
        "silent": False,
    }
    (mono,) = encode_one(encoder, item_of(tmp_path / "m.wav", stereo.mean(0, keepdims=True), rate_hz=44_100))
    loud = mono.arrays["mel"] > mono.arrays["mel"].max() - 12
    np.testing.assert_allclose(record.arrays["mel"][loud], mono.arrays["mel"][loud], atol=1e-3)


def test_what_the_encoder_says_of_itself(tmp_path: Path) -> None:
    encoder = LogMel(LogMelConfig(rate_hz=16_000, num_mels=40))
    assert isinstance(encoder, Encoder)
    assert (encoder.spec.kind, encoder.spec.main, encoder.spec.rate_hz) == ("features", "mel", 16_000)
    assert encoder.spec.arrays["mel"].axes == ("mel", "frame")
    assert encoder.spec.arrays["mel"].bytes_per_frame == 160
    assert encoder.fingerprint["model"]["config"]["num_mels"] == 40
    assert encoder.fingerprint != LogMel(LogMelConfig(rate_hz=16_000)).fingerprint
    (silent,) = encode_one(encoder, item_of(tmp_path / "s.wav", np.zeros((1, 5000), np.float32)))
    assert silent.meta["silent"] is True
    assert silent.arrays["mel"].max() == np.float32(np.log(1e-10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"win_samples": 2000}, "win_samples=2000 does not fit into n_fft=1024 (try: lower win_samples or raise n_fft"),
        ({"fmax_hz": 13_000.0}, "fmax_hz=13000 is no range within 0 to 12000 Hz (try: at 24000 Hz, fmax_hz is at most"),
        ({"fmin_hz": 500.0, "fmax_hz": 400.0}, "fmin_hz=500, fmax_hz=400 is no range"),
        ({"floor": 0.0}, "power, floor and ref of a log-mel spectrum must be greater than 0"),
        ({"hop_samples": 0}, "must be 1 or more"),
    ],
)
def test_configs_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        LogMelConfig(**options)
    assert message in str(caught.value)
