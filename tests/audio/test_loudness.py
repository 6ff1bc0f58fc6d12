"""Loudness: facts of EBU Tech 3341, the numbers of pyloudnorm, and that blocks do not matter."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from functools import cache

import numpy as np
import pyloudnorm
import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodshed.audio.loudness import Loudness, gain_for, k_weighting, measure
from woodshed.errors import AudioError

RATES_HZ = (8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000)


def sine(level_db: float, *, duration_s: float, rate_hz: int = 48_000, frequency_hz: float = 1000.0) -> np.ndarray:
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    wave = 10 ** (level_db / 20) * np.sin(2 * math.pi * frequency_hz * time_s)
    return np.stack([wave, wave]).astype(np.float32)


@cache
def noise(seed: int, *, num_channels: int, duration_s: float, rate_hz: int) -> np.ndarray:
    """Pink-like noise with a loud and a soft half."""
    steps = np.random.default_rng(seed).standard_normal((num_channels, round(duration_s * rate_hz)))
    wave = np.zeros_like(steps)
    for decay in (0.0, 0.9, 0.99, 0.999):
        power = decay ** np.arange(min(steps.shape[1], 1000))
        wave += np.stack([np.convolve(row, power * (1 - decay))[: steps.shape[1]] for row in steps])
    wave[:, wave.shape[1] // 2 :] *= 0.2
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


def lufs(audio: np.ndarray, rate_hz: int = 48_000) -> float:
    found = measure([audio], rate_hz=rate_hz, lufs=True).lufs
    assert found is not None
    return found


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("level_db", [-23.0, -33.0])
def test_a_stereo_sine_of_1_khz_is_as_loud_as_its_level(rate_hz: int, level_db: float) -> None:
    # EBU Tech 3341, cases 1 and 2
    assert lufs(sine(level_db, duration_s=20, rate_hz=rate_hz), rate_hz) == pytest.approx(level_db, abs=0.1)


@pytest.mark.parametrize(
    "parts",
    [
        [(-36.0, 10.0), (-23.0, 60.0), (-36.0, 10.0)],
        [(-72.0, 10.0), (-36.0, 10.0), (-23.0, 60.0), (-36.0, 10.0), (-72.0, 10.0)],
        [(-26.0, 20.0), (-20.0, 20.1), (-26.0, 20.0)],
    ],
)
def test_soft_parts_do_not_count(parts: list[tuple[float, float]]) -> None:
    # EBU Tech 3341, cases 3 to 5: all are at -23 LUFS
    audio = np.concatenate([sine(level_db, duration_s=duration_s) for level_db, duration_s in parts], axis=1)
    assert lufs(audio) == pytest.approx(-23.0, abs=0.1)


def test_five_channels_weigh_as_the_standard_says() -> None:
    # EBU Tech 3341, case 6: -28 left and right, -24 centre, -30 left and right surround
    levels = (-28.0, -28.0, -24.0, -30.0, -30.0)
    audio = np.stack([sine(level_db, duration_s=20)[0] for level_db in levels])
    assert lufs(audio) == pytest.approx(-23.0, abs=0.1)
    with_low = np.insert(audio, 3, sine(0.0, duration_s=20)[0], axis=0)
    assert lufs(with_low) == pytest.approx(lufs(audio), abs=1e-9), "the channel of low frequencies is not counted"


def test_the_filters_at_48_khz_are_those_of_the_standard() -> None:
    shelf, high_pass = k_weighting(48_000)
    assert shelf[0] == pytest.approx([1.53512485958697, -2.69169618940638, 1.19839281085285], abs=1e-10)
    assert shelf[1] == pytest.approx([1.0, -1.69065929318241, 0.73248077421585], abs=1e-10)
    assert high_pass[0] == [1.0, -2.0, 1.0]
    assert high_pass[1] == pytest.approx([1.0, -1.99004745483398, 0.99007225036621], abs=1e-10)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("num_channels", [1, 2, 5])
def test_noise_is_as_loud_as_pyloudnorm_says(rate_hz: int, num_channels: int) -> None:
    audio = noise(rate_hz, num_channels=num_channels, duration_s=2.05, rate_hz=rate_hz)
    for filters, tolerance_lu in (("DeMan", 0.001), ("K-weighting", 0.1 if rate_hz >= 22_050 else 0.25)):
        theirs = pyloudnorm.Meter(rate_hz, filter_class=filters).integrated_loudness(audio.T.astype(np.float64))
        assert lufs(audio, rate_hz) == pytest.approx(theirs, abs=tolerance_lu), filters


@pytest.mark.parametrize("frequency_hz", [60.0, 200.0, 3000.0, 9000.0])
def test_sines_are_as_loud_as_pyloudnorm_says(frequency_hz: float) -> None:
    audio = sine(-12.0, duration_s=3, rate_hz=44_100, frequency_hz=frequency_hz)
    theirs = pyloudnorm.Meter(44_100).integrated_loudness(audio.T.astype(np.float64))
    assert lufs(audio, 44_100) == pytest.approx(theirs, abs=0.1)


@given(cuts=st.lists(st.integers(0, 11_025 * 3), max_size=12))
def test_blocks_of_any_length_give_the_same_number(cuts: list[int]) -> None:
    audio = noise(1, num_channels=2, duration_s=3, rate_hz=11_025)
    whole = measure([audio], rate_hz=11_025, lufs=True)
    parts = np.split(audio, sorted(cuts), axis=1)
    found = measure(parts, rate_hz=11_025, lufs=True)
    assert found.peak_db == whole.peak_db
    assert found.lufs == pytest.approx(whole.lufs, abs=1e-9)


def test_what_cannot_be_measured_is_infinitely_soft() -> None:
    assert measure([np.zeros((2, 48_000), np.float32)], rate_hz=48_000, lufs=True) == Loudness(
        peak_db=-math.inf, lufs=-math.inf
    )
    assert measure(iter(()), rate_hz=48_000, lufs=True).lufs == -math.inf
    short = measure([sine(-6.0, duration_s=0.39)], rate_hz=48_000, lufs=True)
    assert short.lufs == -math.inf
    assert gain_for("lufs", short, target_db=-1.0, target_lufs=-14.0) == 1.0
    assert measure([sine(-75.0, duration_s=2)], rate_hz=48_000, lufs=True).lufs == -math.inf


def test_nine_channels_have_no_loudness_but_a_peak() -> None:
    audio = np.full((9, 4800), 0.5, np.float32)
    with pytest.raises(AudioError, match=r"9 channels, and loudness is defined for 1 to 8"):
        measure([audio], rate_hz=48_000, lufs=True)
    assert measure([audio], rate_hz=48_000, lufs=False) == Loudness(peak_db=20 * math.log10(0.5), lufs=None)


@pytest.mark.parametrize("level_db", [-40.0, -3.0])
def test_the_gain_brings_a_song_to_its_target(level_db: float) -> None:
    audio = sine(level_db, duration_s=4)
    loudness = measure([audio], rate_hz=48_000, lufs=True)
    louder = audio * np.float32(gain_for("lufs", loudness, target_db=-1.0, target_lufs=-14.0))
    assert lufs(louder) == pytest.approx(-14.0, abs=1e-4)
    topped = audio * np.float32(gain_for("peak", loudness, target_db=-1.0, target_lufs=-14.0))
    assert measure([topped], rate_hz=48_000, lufs=False).peak_db == pytest.approx(-1.0, abs=1e-4)
    assert gain_for("none", None, target_db=-1.0, target_lufs=-14.0) == 1.0


@pytest.mark.parametrize("normalize", ["peak", "lufs"])
def test_silence_stays_as_it_is(normalize: str) -> None:
    for level in (0.0, 9e-7):
        loudness = measure([np.full((1, 48_000), level, np.float32)], rate_hz=48_000, lufs=True)
        assert gain_for(normalize, loudness, target_db=-1.0, target_lufs=-14.0) == 1.0  # type: ignore[arg-type]


def test_memory_does_not_grow_with_the_song() -> None:
    block = sine(-20.0, duration_s=1, rate_hz=8000)

    def blocks() -> Iterator[np.ndarray]:
        for _ in range(600):
            yield block

    measure([block], rate_hz=8000, lufs=True)
    tracemalloc.start()
    assert measure(blocks(), rate_hz=8000, lufs=True).lufs == pytest.approx(-20.0, abs=0.1)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 2**21, "10 minutes at 8 kHz are 38 MB"
