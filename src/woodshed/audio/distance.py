"""How far one sound is from another, in decibels: on the waveform and on a log-mel spectrum.

Both distances ignore a common gain of reference and estimate, so a quiet clip counts as much as a loud one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float

N_FFT = 1024
HOP_SAMPLES = 256
NUM_MELS = 80
RANGE_DB = 80.0
"""Bands more than this below the reference's loudest band are read as silence, in both sounds."""


def si_sdr_db(reference: Float[np.ndarray, "..."], estimate: Float[np.ndarray, "..."]) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (higher is better); means are removed first.

    >>> t = np.arange(1000) * 2 * np.pi / 1000
    >>> round(si_sdr_db(np.sin(t), 2 * np.sin(t) + 0.2 * np.cos(7 * t)), 1)
    20.0
    """
    reference, estimate = _pair(reference, estimate)
    reference, estimate = reference - reference.mean(), estimate - estimate.mean()
    target = reference * (estimate @ reference) / max(float(reference @ reference), 1e-20)
    error = estimate - target
    return float(10 * np.log10(max(float(target @ target), 1e-20) / max(float(error @ error), 1e-20)))


def log_mel_distance_db(
    reference: Float[np.ndarray, "..."], estimate: Float[np.ndarray, "..."], *, rate_hz: int
) -> float:
    """Mean absolute difference of two 80-band log-mel spectra in dB (lower is better).

    Power spectrum with a periodic Hann window of 1024 samples every 256 samples, whole frames only (shorter sounds are
    padded to one frame); 80 triangular HTK-mel bands from 0 Hz to half the rate, each with unit area; `10 log10`;
    both spectra are floored 80 dB below the loudest band of the reference (and at -200 dB).

    >>> noise = np.random.default_rng(0).standard_normal(24_000)
    >>> log_mel_distance_db(noise, noise, rate_hz=24_000)
    0.0
    >>> round(log_mel_distance_db(noise, 0.5 * noise, rate_hz=24_000), 2)
    6.02
    """
    reference, estimate = _pair(reference, estimate)
    wanted, got = mel_power(reference, rate_hz=rate_hz), mel_power(estimate, rate_hz=rate_hz)
    floor = max(float(wanted.max()) * 10 ** (-RANGE_DB / 10), 1e-20)
    return float(np.abs(10 * np.log10(np.maximum(wanted, floor) / np.maximum(got, floor))).mean())


def mel_power(samples: Float[np.ndarray, " time"], *, rate_hz: int) -> Float[np.ndarray, "frame mel"]:
    """Power in 80 mel bands, as `log_mel_distance_db` defines it."""
    if len(samples) < N_FFT:
        samples = np.pad(samples, (0, N_FFT - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, N_FFT)[::HOP_SAMPLES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    spectrum = np.fft.rfft(frames * window, axis=1)
    power: Float[np.ndarray, "frame mel"] = (spectrum.real**2 + spectrum.imag**2) @ mel_bands(rate_hz=rate_hz).T
    return power


@lru_cache
def mel_bands(*, rate_hz: int, num_mels: int = NUM_MELS, n_fft: int = N_FFT) -> Float[np.ndarray, "mel bin"]:
    """Triangular bands, equally wide in HTK mels, from 0 Hz to half the rate; the weights of each sum to 1.

    A band narrower than a bin reads its nearest bin, so none is ever empty.
    """
    top = 2595 * np.log10(1 + rate_hz / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, num_mels + 2) / 2595) - 1)
    bins = np.arange(n_fft // 2 + 1) * rate_hz / n_fft
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    weights = np.maximum(np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)), 0)
    nearest = np.abs(bins - mid).argmin(1)
    weights[np.arange(num_mels), nearest] = np.maximum(weights[np.arange(num_mels), nearest], 1e-3)
    bands: Float[np.ndarray, "mel bin"] = weights / weights.sum(1, keepdims=True)
    return bands


def _pair(
    reference: Float[np.ndarray, "..."], estimate: Float[np.ndarray, "..."]
) -> tuple[Float[np.ndarray, " time"], Float[np.ndarray, " time"]]:
    if reference.shape != estimate.shape or reference.ndim != 1:
        raise ValueError(
            f"two sounds of one length and one channel are compared; got shapes {reference.shape} and {estimate.shape}"
        )
    return np.asarray(reference, np.float64), np.asarray(estimate, np.float64)
