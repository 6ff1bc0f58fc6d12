"""The front end of w2v-bert-2.0: stacked log-mels, equal to those of transformers' SeamlessM4TFeatureExtractor.

Kaldi's filter-bank energies (`woodshed.encoders.speech.fbank`) of samples scaled to 16 bits, each band brought to mean
0 and variance 1 over the clip, two frames stacked into one: 160 numbers, 50 times a second. For an odd number of
energies the last half frame is filled with 1.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Float64
from numpy.lib.stride_tricks import sliding_window_view

from woodshed.encoders.speech.fbank import (
    FFT_SAMPLES,
    FLOOR,
    FRAME_SAMPLES,
    HOP_SAMPLES,
    LOWEST_HZ,
    NUM_BINS,
    NUM_MELS,
    PRE_EMPHASIS,
    RATE_HZ,
    WINDOW_POWER,
    demand_frames,
    kaldi_mels,
    num_fbank_frames,
)

__all__ = ["num_fbank_frames", "num_frames", "num_valid", "seamless_features"]

FULL_SCALE = 2.0**15
STACK = 2
"""Energies per feature frame."""
PADDING = 1.0
"""Stands for the half frame that is not there."""
VARIANCE_FLOOR = 1e-7
MIN_FBANK_FRAMES = 2
"""The variance of a single frame is undefined."""
BLOCK_FRAMES = 128
"""Frames computed at a time: what they need stays in the cache, and little of it grows with the clip."""


def num_frames(num_samples: int) -> int:
    """Feature frames of a clip at 16 kHz, a half one at the end included.

    >>> [num_frames(samples) for samples in (399, 400, 560, 720, 160_000)]
    [0, 1, 1, 2, 499]
    """
    return -(-num_fbank_frames(num_samples) // STACK)


def num_valid(num_samples: int) -> int:
    """Feature frames of a clip at 16 kHz that are whole: a half one is masked in w2v-bert.

    >>> [num_valid(samples) for samples in (399, 400, 560, 720, 160_000)]
    [0, 0, 1, 1, 499]
    """
    return num_fbank_frames(num_samples) // STACK


def seamless_features(wave: Float32[np.ndarray, "sample"]) -> Float32[np.ndarray, "frame 160"]:
    """Features of one clip.

    Args:
        wave: 16 kHz, one channel, samples within [-1, 1].

    Raises:
        ItemError: the clip has fewer than 2 energies (kind `too_short`); the original would give NaN.
    """
    demand_frames(len(wave), least=MIN_FBANK_FRAMES, purpose="a speech feature")
    mels = _log_mels(wave)
    # Where a band hardly varies, the rounding of its mean is all that is left: the sums must run along memory, in
    # single precision, as in the original.
    mean, variance = mels.mean(axis=1), mels.var(axis=1, ddof=1)
    mels -= mean[:, None]
    mels /= np.sqrt(variance + np.float32(VARIANCE_FLOOR))[:, None]
    stacked = np.full((num_frames(len(wave)), STACK * NUM_MELS), PADDING, np.float32)
    stacked.reshape(-1, NUM_MELS)[: mels.shape[1]] = mels.T
    return stacked


def _log_mels(wave: Float32[np.ndarray, "sample"]) -> Float32[np.ndarray, "mel frame"]:
    frames = sliding_window_view(wave, FRAME_SAMPLES)[::HOP_SAMPLES]
    _, bands = _bank()
    mels = np.empty((NUM_MELS, len(frames)), np.float32)
    for start in range(0, len(frames), BLOCK_FRAMES):
        power = _power(frames[start : start + BLOCK_FRAMES])
        mels[:, start : start + BLOCK_FRAMES] = np.log(np.maximum(bands @ power.T, FLOOR))
    return mels


def _power(frames: Float32[np.ndarray, "frame 400"]) -> Float64[np.ndarray, "frame 257"]:
    window, _ = _bank()
    block = frames.astype(np.float64)
    block *= FULL_SCALE
    block -= block.mean(axis=1, keepdims=True)
    # What becomes of the first sample does not matter: the window is zero there.
    block[:, 1:] -= PRE_EMPHASIS * block[:, :-1]
    block *= window
    # The original keeps the spectrum in single precision.
    spectrum = np.fft.rfft(block, FFT_SAMPLES).astype(np.complex64)
    return np.square(spectrum.real, dtype=np.float64) + np.square(spectrum.imag, dtype=np.float64)


@lru_cache(maxsize=1)
def _bank() -> tuple[Float64[np.ndarray, "400"], Float64[np.ndarray, "80 257"]]:
    """Window and triangles, for all threads."""
    window = np.hanning(FRAME_SAMPLES) ** WINDOW_POWER
    edges = np.linspace(kaldi_mels(LOWEST_HZ), kaldi_mels(RATE_HZ / 2), NUM_MELS + 2)[:, None]
    mels = np.array([kaldi_mels(index * RATE_HZ / FFT_SAMPLES) for index in range(NUM_BINS)])
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    bands = np.maximum(0, np.minimum((mels - left) / (middle - left), (right - mels) / (right - middle)))
    window.flags.writeable = bands.flags.writeable = False
    return window, bands
