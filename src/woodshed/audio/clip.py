"""A file as a model wants it: at the model's rate, within [-1, 1] if it asks for that, with its number of channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from woodshed.audio.channels import fit_channels, take_needed
from woodshed.audio.decode import DecodeLimits, blocks, require_finite
from woodshed.audio.opening import file_digest
from woodshed.audio.resample import Resampler, ResamplerName, make_resampler
from woodshed.contracts import AudioInfo

__all__ = ["file_digest", "read", "stream"]


def stream(
    path: str,
    info: AudioInfo,
    *,
    rate_hz: int,
    num_channels: int,
    resampler: ResamplerName = "soxr",
    clamp: bool = True,
    limits: DecodeLimits | None = None,
) -> Iterator[Float32[np.ndarray, "channel time"]]:
    """Decode, resample, clamp to [-1, 1] (unless told not to), apply the channel rule (`woodshed.audio.channels`).

    Blocks are contiguous, of varying length and never empty; joined they are `resampled_length(info.num_samples,
    info.rate_hz, rate_hz)` samples. Memory does not grow with the file.

    Raises:
        AudioError: what `blocks` and `fit_channels` raise.
    """
    fit_channels(np.zeros((info.num_channels, 0), np.float32), num_channels)
    source = blocks(path, info, limits=limits)
    num_needed = info.num_channels if num_channels == 1 else min(info.num_channels, num_channels)
    changer = make_resampler(resampler, info.rate_hz, rate_hz, num_needed)
    num_done = 0
    for resampled in _resampled(source, changer, num_channels):
        # Channels apart first: the mean over interleaved channels takes twenty times as long as over whole rows.
        block = np.ascontiguousarray(resampled)
        if clamp:
            np.clip(block, -1, 1, out=block)
        # Finite values near the limit of float32 can overflow inside a filter.
        require_finite(block.T, path, start_sample=num_done)
        num_done += block.shape[1]
        if block.shape[1]:
            yield np.ascontiguousarray(fit_channels(block, num_channels))


def read(
    path: str,
    info: AudioInfo,
    *,
    rate_hz: int,
    num_channels: int,
    resampler: ResamplerName = "soxr",
    limits: DecodeLimits | None = None,
) -> Float32[np.ndarray, "channel time"]:
    """All of `stream` in one array, for short clips.

    Raises:
        AudioError: as `stream` does.
    """
    parts = stream(path, info, rate_hz=rate_hz, num_channels=num_channels, resampler=resampler, limits=limits)
    return np.concatenate(list(parts), axis=1)


def _resampled(
    source: Iterator[Float32[np.ndarray, "channel time"]], resampler: Resampler, num_channels: int
) -> Iterator[Float32[np.ndarray, "channel time"]]:
    for block in source:
        yield resampler.push(take_needed(block, num_channels))
    yield resampler.flush()
