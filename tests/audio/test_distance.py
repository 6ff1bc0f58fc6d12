"""The two distances do what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodshed.audio.distance import log_mel_distance_db, mel_bands, si_sdr_db

RATE_HZ = 24_000


def noise(seed: int, *, num_samples: int = RATE_HZ) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(num_samples)


@given(gain=st.floats(0.01, 100), level_db=st.floats(-10, 60))
def test_si_sdr_is_the_level_of_added_noise_whatever_the_gain(gain: float, level_db: float) -> None:
    wanted, error = noise(0), noise(1)
    wanted, error = wanted - wanted.mean(), error - error.mean()
    error -= wanted * (error @ wanted) / (wanted @ wanted)
    error *= np.linalg.norm(wanted) / np.linalg.norm(error) * 10 ** (-level_db / 20)
    assert si_sdr_db(wanted, gain * (wanted + error)) == pytest.approx(level_db, abs=1e-6)


@given(gain_db=st.floats(-30, 30))
def test_log_mel_of_a_gain_is_that_gain(gain_db: float) -> None:
    assert log_mel_distance_db(noise(0), noise(0) * 10 ** (gain_db / 20), rate_hz=RATE_HZ) == pytest.approx(
        abs(gain_db), abs=1e-9
    )


def test_what_is_80_db_down_is_silence() -> None:
    loud = np.sin(2 * np.pi * 1000 * np.arange(RATE_HZ) / RATE_HZ)
    assert log_mel_distance_db(loud, loud + 1e-7 * noise(0), rate_hz=RATE_HZ) < 0.2
    assert log_mel_distance_db(loud, loud + 1e-2 * noise(0), rate_hz=RATE_HZ) > 10


def test_a_plain_loop_gives_the_same_number() -> None:
    wanted, got = noise(0, num_samples=3000), noise(1, num_samples=3000)
    window = np.hanning(1025)[:-1]
    bands = mel_bands(rate_hz=RATE_HZ)

    def spectrum(samples: np.ndarray) -> np.ndarray:
        rows = [bands @ np.abs(np.fft.rfft(samples[s : s + 1024] * window)) ** 2 for s in range(0, 3000 - 1023, 256)]
        return np.array(rows)

    a, b = spectrum(wanted), spectrum(got)
    floor = a.max() * 1e-8
    plain = np.mean(np.abs(10 * np.log10(np.maximum(a, floor)) - 10 * np.log10(np.maximum(b, floor))))
    assert log_mel_distance_db(wanted, got, rate_hz=RATE_HZ) == pytest.approx(plain)


def test_silence_is_allowed() -> None:
    assert log_mel_distance_db(np.zeros(100), np.zeros(100), rate_hz=RATE_HZ) == 0.0
    assert np.isfinite(si_sdr_db(np.zeros(100), noise(0, num_samples=100)))


def test_bands_cover_everything() -> None:
    for rate_hz in (8000, 24_000, 48_000):
        bands = mel_bands(rate_hz=rate_hz)
        assert bands.sum(1) == pytest.approx(np.ones(80))
        assert (bands[:, 1:-1].sum(0) > 0).all()


def test_unequal_lengths_say_so() -> None:
    with pytest.raises(ValueError, match="shapes"):
        si_sdr_db(np.zeros(3), np.zeros(4))
