"""Kaldi's filter bank: the frames and bands that all speech front ends share, and the energies that CAMPPlus reads.

16 kHz, frames of 25 ms every 10 ms that lie inside the clip; each frame loses its mean, is pre-emphasised (0.97), and
gets the "povey" window, a Hann window to the power 0.85; 80 triangles in mels between 20 Hz and 8 kHz; natural
logarithm.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor

from woodshed.errors import ItemError

RATE_HZ = 16_000
FRAME_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SAMPLES = 512
NUM_BINS = FFT_SAMPLES // 2 + 1
NUM_MELS = 80
LOWEST_HZ = 20.0
PRE_EMPHASIS = 0.97
WINDOW_POWER = 0.85
FLOOR = float(np.finfo(np.float32).eps)
"""Smallest energy before the logarithm."""

CAMPPLUS_MAX_S = 15.0
"""CAMPPlus hears the start of a clip, as when the speech model speaks."""
CAMPPLUS_MIN_FRAMES = 3
"""Two frames at half the rate: the spread of a single one is undefined."""


def num_fbank_frames(num_samples: int) -> int:
    """Frames of 25 ms that lie inside a clip at 16 kHz.

    >>> [num_fbank_frames(samples) for samples in (399, 400, 559, 560, 160_000)]
    [0, 1, 1, 2, 998]
    """
    return max(0, (num_samples - FRAME_SAMPLES) // HOP_SAMPLES + 1)


def demand_frames(num_samples: int, *, least: int, purpose: str) -> None:
    """Refuse a clip with fewer than `least` frames.

    Raises:
        ItemError: it is too short (kind `too_short`); says for what purpose, and how long it would have to be.
    """
    if num_fbank_frames(num_samples) < least:
        needed_s = (FRAME_SAMPLES + (least - 1) * HOP_SAMPLES) / RATE_HZ
        raise ItemError(
            f"the clip lasts {num_samples / RATE_HZ:.4f} s, and {purpose} needs {needed_s:g} s",
            kind="too_short",
            hint="leave such clips out of the dataset",
        )


def kaldi_mels(hz: float) -> float:
    """Kaldi's mel scale.

    >>> round(kaldi_mels(1000.0), 3)
    999.991
    """
    return 1127.0 * math.log(1.0 + hz / 700.0)


@torch.inference_mode()
def campplus_fbank(wave: Float32[np.ndarray, "sample"]) -> Float32[np.ndarray, "frame 80"]:
    """What CAMPPlus reads: energies of the first 15 s, each band minus its mean over the clip.

    The original works in single precision throughout. A frame's lowest bands hold so little of its energy that rounding
    shows: from one kind of processor to the next the original's values change by up to 5e-4, one in a hundred by more
    than 1e-5. The operations here are the original's, in its order and precision, so that on one machine both agree.

    Args:
        wave: one clip at 16 kHz, one channel, samples within [-1, 1].

    Raises:
        ItemError: the clip has fewer than 3 frames (kind `too_short`).
    """
    demand_frames(len(wave), least=CAMPPLUS_MIN_FRAMES, purpose="a speaker embedding")
    samples = torch.from_numpy(np.array(wave[: int(CAMPPLUS_MAX_S * RATE_HZ)]))
    window, bands = _campplus_bank()
    frames = samples.unfold(0, FRAME_SAMPLES, HOP_SAMPLES)
    frames = frames - frames.mean(1, keepdim=True)
    # The window is zero at the first sample, so what precedes it does not matter.
    frames = (frames - PRE_EMPHASIS * F.pad(frames, (1, -1))) * window
    power = torch.fft.rfft(F.pad(frames, (0, FFT_SAMPLES - FRAME_SAMPLES))).abs().square()
    mels = (power @ bands.T).clamp_min(FLOOR).log()
    centred: np.ndarray = (mels - mels.mean(0, keepdim=True)).numpy()
    return centred


@lru_cache(maxsize=1)
def _campplus_bank() -> tuple[Float32[Tensor, "400"], Float32[Tensor, "80 257"]]:
    """Window and triangles, in single precision from the first step on."""
    window = torch.hann_window(FRAME_SAMPLES, periodic=False, dtype=torch.float32).pow(WINDOW_POWER)
    low, high = kaldi_mels(LOWEST_HZ), kaldi_mels(RATE_HZ / 2)
    step = (high - low) / (NUM_MELS + 1)
    index = torch.arange(NUM_MELS, dtype=torch.float32)[:, None]
    left, middle, right = (low + (index + edge) * step for edge in range(3))
    hz = torch.arange(NUM_BINS, dtype=torch.float32) * (RATE_HZ / FFT_SAMPLES)
    mels = 1127.0 * (1.0 + hz / 700.0).log()
    bands = torch.minimum((mels - left) / (middle - left), (right - mels) / (right - middle)).clamp_min(0)
    bands[:, -1] = 0  # the original leaves the highest bin out
    return window, bands
