"""Resamplers: equal to the originals, the same for any block sizes, free of aliases where that is promised."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from woodshed.audio.resample import Resampler, ResamplerName, make_resampler, resampled_length

GOLDEN = Path(__file__).parents[1] / "golden" / "indextts2" / "audio_features_io.safetensors"
NAMES: tuple[ResamplerName, ...] = get_args(ResamplerName)
RATES_HZ = (8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000)


def run(resampler: Resampler, audio: np.ndarray, sizes: list[int] | None = None) -> np.ndarray:
    out, at = [], 0
    for size in sizes or [audio.shape[1]]:
        out.append(resampler.push(audio[:, at : at + size]))
        at += size
    return np.concatenate([*out, resampler.push(audio[:, at:]), resampler.flush()], axis=1)


def noise(num_samples: int, num_channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (num_channels, num_samples)).astype(np.float32)


def direct_sum(audio: np.ndarray, source_hz: int, target_hz: int) -> np.ndarray:
    """The windowed sinc written down as it is: every output sums over all inputs, in double precision."""
    ratio = Fraction(source_hz, target_hz)
    source, target = ratio.numerator, ratio.denominator
    cutoff = 0.99 * min(source, target)
    outputs, inputs = np.arange(math.ceil(len(audio) * target / source)), np.arange(len(audio))
    # The one deviation from the formula: the phase has single precision.
    phase = (outputs % target).astype(np.float32) / np.float32(target)
    distance = cutoff * ((inputs - (outputs // target * source)[:, None]) / source - phase.astype(float)[:, None])
    window = np.where(np.abs(distance) < 6, np.cos(np.pi * distance / 12) ** 2, 0)
    return (cutoff / source * np.sinc(distance) * window) @ audio.astype(float)


def test_equals_the_original() -> None:
    golden = load_file(GOLDEN)
    cases = [name.removesuffix("_in") for name in golden if name.startswith("rs_") and name.endswith("_in")]
    assert len(cases) == 6
    for case in cases:
        source_hz, target_hz = map(int, case.split("_")[1:])
        audio, wanted = golden[f"{case}_in"][None], golden[f"{case}_out"]
        assert (
            np.abs(run(make_resampler("torchaudio_functional", source_hz, target_hz, 1), audio) - wanted).max() < 5e-7
        )
        # The class of the original, unlike its function, computes the filter in double precision.
        assert np.abs(run(make_resampler("torchaudio_sinc", source_hz, target_hz, 1), audio) - wanted).max() < 1e-5


def test_equals_the_original_in_a_chain() -> None:
    golden = load_file(GOLDEN)
    audio = golden["chain_44100_24000_16000_in"][None]
    direct = run(make_resampler("torchaudio_functional", 44_100, 16_000, 1), audio)
    assert np.abs(direct - golden["direct_44100_16000_out"]).max() < 5e-7
    halfway = run(make_resampler("torchaudio_functional", 44_100, 24_000, 1), audio)
    chained = run(make_resampler("torchaudio_functional", 24_000, 16_000, 1), halfway)
    assert np.abs(chained - golden["chain_44100_24000_16000_out"]).max() < 1e-6


@settings(max_examples=25, deadline=None)
@given(source_hz=st.sampled_from(RATES_HZ), target_hz=st.sampled_from(RATES_HZ), num_samples=st.integers(1, 700))
def test_sinc_equals_the_plain_sum(source_hz: int, target_hz: int, num_samples: int) -> None:
    audio = noise(num_samples, seed=num_samples)
    wanted = audio[0] if source_hz == target_hz else direct_sum(audio[0], source_hz, target_hz)
    assert np.abs(run(make_resampler("torchaudio_sinc", source_hz, target_hz, 1), audio)[0] - wanted).max() < 1e-6


@pytest.mark.parametrize(
    ("source_hz", "target_hz"), [(44_100, 48_001), (48_001, 44_100), (384_000, 1_000), (1_000, 8_001)]
)
def test_sinc_equals_the_plain_sum_at_nasty_ratios(source_hz: int, target_hz: int) -> None:
    audio = noise(500)
    result = run(make_resampler("torchaudio_sinc", source_hz, target_hz, 1), audio)
    assert np.abs(result[0] - direct_sum(audio[0], source_hz, target_hz)).max() < 1e-6


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    source_hz=st.sampled_from((*RATES_HZ, 44_099, 192_000)),
    target_hz=st.sampled_from((*RATES_HZ, 48_001)),
    num_samples=st.integers(1, 60_000),
    sizes=st.lists(st.integers(0, 30_000), max_size=8),
    num_channels=st.integers(1, 3),
)
def test_block_sizes_change_nothing_and_the_length_is_exact(
    name: ResamplerName, source_hz: int, target_hz: int, num_samples: int, sizes: list[int], num_channels: int
) -> None:
    audio = noise(num_samples, num_channels)
    whole = run(make_resampler(name, source_hz, target_hz, num_channels), audio)
    assert whole.shape == (num_channels, resampled_length(num_samples, source_hz, target_hz))
    assert whole.dtype == np.float32
    assert np.array_equal(run(make_resampler(name, source_hz, target_hz, num_channels), audio, sizes), whole)


@pytest.mark.parametrize("name", NAMES)
def test_long_streams_cross_tiles_without_a_seam(name: ResamplerName) -> None:
    audio = noise(400_000, 2)
    whole = run(make_resampler(name, 44_100, 24_000, 2), audio)
    assert np.array_equal(run(make_resampler(name, 44_100, 24_000, 2), audio, [65_536] * 6), whole)
    # Silence in front by whole periods moves the result and changes nothing in it (libsoxr: but for its onset).
    later = np.concatenate([np.zeros((2, 147 * 300), np.float32), audio], axis=1)
    moved = run(make_resampler(name, 44_100, 24_000, 2), later)[:, 80 * 300 :]
    onset = 500 if name == "soxr" else 0
    assert np.abs(moved - whole)[:, onset:].max() < 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_nothing_pushed_gives_nothing(name: ResamplerName) -> None:
    assert make_resampler(name, 44_100, 16_000, 2).flush().shape == (2, 0)
    assert make_resampler(name, 16_000, 16_000, 2).flush().shape == (2, 0)


def test_equal_rates_pass_through() -> None:
    audio = noise(1000, 2)
    for name in NAMES:
        assert np.array_equal(run(make_resampler(name, 44_100, 44_100, 2), audio), audio)


def level_db(tone_hz: float, source_hz: int, target_hz: int, name: ResamplerName) -> float:
    """Level of what remains of a tone, relative to the tone, edges left out."""
    time = np.arange(source_hz * 2) / source_hz
    tone = (0.5 * np.sin(2 * np.pi * tone_hz * time)).astype(np.float32)
    result = run(make_resampler(name, source_hz, target_hz, 1), tone[None])[0, target_hz // 2 : -target_hz // 2]
    return 20 * math.log10(max(float(np.sqrt(np.mean(result.astype(float) ** 2))), 1e-12) / (0.5 / math.sqrt(2)))


def test_soxr_lets_nothing_fold_back_and_keeps_the_rest() -> None:
    for tone_hz in (9_000, 12_000, 20_000):
        assert level_db(tone_hz, 44_100, 16_000, "soxr") < -100
    assert abs(level_db(7_000, 44_100, 16_000, "soxr")) < 0.05
    # What torchaudio's default does to the same tones, as a reminder why it is not ours.
    assert level_db(9_000, 44_100, 16_000, "torchaudio_sinc") == pytest.approx(-16.8, abs=0.1)


def test_soxr_last_sample_is_signal() -> None:
    constant = np.full((1, 10_001), 0.5, np.float32)
    for source_hz, target_hz in [(44_100, 16_000), (48_000, 44_100), (22_050, 48_000), (384_000, 8_000)]:
        result = run(make_resampler("soxr", source_hz, target_hz, 1), constant)
        assert result.shape[1] == resampled_length(10_001, source_hz, target_hz)
        assert np.abs(result[0, -1]) > 0.1


def test_a_nasty_ratio_needs_little_memory() -> None:
    tracemalloc.start()
    run(make_resampler("torchaudio_sinc", 47_999, 48_001, 1), noise(48_000))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 40 << 20
