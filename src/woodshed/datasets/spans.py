"""What one stored window holds: which frames are sound, where in its file it starts, how long it lasts.

Our own metadata says so in samples. stable-audio-tools and stable-audio-3 leave whole seconds, fractions of a length
that is not written down, and a mask; what follows from those is worked out here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from woodshed.contracts import Json
from woodshed.datasets.crops import Crop


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What ties frames to seconds, as far as a folder tells."""

    rate_hz: int | None = None
    hop_samples: int | None = None
    window_samples: int | None = None
    """Length of the encoded window, where all windows of the folder share one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One stored window. Samples are per channel, at `rate_hz`."""

    mask: Bool[np.ndarray, "frame"]
    """True where a frame stands for sound, False where it is padding."""
    rate_hz: int | None
    hop_samples: int | None
    start_samples: int | None
    """Where in its file the window starts: exact in our folders and wherever the original's timestamps allow it."""
    valid_samples: int | None
    """Sound in the window: exact in our folders, else the most that the mask and `seconds_total` allow."""
    file_samples: int | None = None
    """Length of the whole file, in our folders."""

    @property
    def valid_frames(self) -> int:
        """Frames up to and with the last one that is sound."""
        sound = np.flatnonzero(self.mask)
        return int(sound[-1]) + 1 if sound.size else 0

    @property
    def valid_s(self) -> float | None:
        """Seconds of sound in the window."""
        if self.valid_samples is None or self.rate_hz is None:
            return None
        return self.valid_samples / self.rate_hz


def read_span(meta: Mapping[str, Json], *, rows: int, stored_frames: int, clock: Clock) -> Span:
    """Work out what a window of shape (`rows`, `stored_frames`) holds from its metadata."""
    rate_hz = _whole(meta.get("sample_rate")) or clock.rate_hz
    start_samples = _start_samples(meta, stored_frames, rate_hz, clock)
    most_samples = _most_samples(meta, rate_hz, start_samples)
    mask = _mask(meta, rows, stored_frames, clock, most_samples)
    span = Span(
        mask=mask,
        rate_hz=rate_hz,
        hop_samples=clock.hop_samples,
        start_samples=start_samples,
        valid_samples=_whole(meta.get("num_samples")) if is_ours(meta) else None,
        file_samples=_whole(meta.get("total_samples")) if is_ours(meta) else None,
    )
    if is_ours(meta) or clock.hop_samples is None:
        return span
    valid_samples = span.valid_frames * clock.hop_samples
    return replace(span, valid_samples=valid_samples if most_samples is None else min(valid_samples, most_samples))


def cropped_times(span: Span, crop: Crop) -> dict[str, Json]:
    """Say when the crop starts (`start_s`, exact, and `seconds_start`, the floor) and how long its sound lasts.

    Keys are missing where the folder does not tell. Needs the hop for a crop that starts later than its window.
    """
    if span.rate_hz is None or span.start_samples is None:
        return {}
    start_samples = span.start_samples + crop.start * (span.hop_samples or 0)
    times: dict[str, Json] = {
        "start_s": start_samples / span.rate_hz,
        "seconds_start": start_samples // span.rate_hz,
    }
    if span.hop_samples is not None and span.valid_samples is not None:
        left = max(0, span.valid_samples - crop.start * span.hop_samples)
        times["duration_s"] = min(left, crop.num_frames * span.hop_samples) / span.rate_hz
    return times


def cropped_timestamps(timestamps: Json, span: Span, crop: Crop) -> list[float] | None:
    """Narrow `[start, end]`, in fractions of the longer of file and window, to the crop. None where there are none."""
    fractions = _fractions(timestamps)
    if fractions is None:
        return None
    start, end = fractions
    stored_frames = span.mask.size
    if crop.start == 0 and crop.stop == stored_frames:
        return [start, end]
    if span.file_samples is None or span.start_samples is None or span.hop_samples is None:
        # The original's fractions stand for the window as it is stored.
        return [start + (end - start) * edge / stored_frames for edge in (crop.start, crop.stop)]
    # Ours end at 1 where the window's padding goes on.
    longest = max(span.file_samples, stored_frames * span.hop_samples)
    edges = (span.start_samples + edge * span.hop_samples for edge in (crop.start, crop.stop))
    return [min(1.0, edge / longest) for edge in edges]


def _mask(
    meta: Mapping[str, Json], rows: int, stored_frames: int, clock: Clock, most_samples: int | None
) -> Bool[np.ndarray, "frame"]:
    valid_frames = _whole(meta.get("valid_frames"))
    if valid_frames is not None and is_ours(meta):
        return np.arange(stored_frames) < valid_frames
    if meta.get("padding_mask") is None:
        return np.ones(stored_frames, dtype=np.bool_)
    listed = np.asarray(meta["padding_mask"]).reshape(-1) != 0
    if listed.size == rows != stored_frames:
        return np.arange(stored_frames) < _frames_of_row_mask(listed, stored_frames, clock, most_samples)
    mask = np.zeros(stored_frames, dtype=np.bool_)
    mask[: listed.size] = listed[:stored_frames]
    return mask


def _frames_of_row_mask(
    listed: Bool[np.ndarray, "row"], stored_frames: int, clock: Clock, most_samples: int | None
) -> int:
    """The original resizes the mask of (frame, codebook) tokens to the number of codebooks: give the most frames that
    fit what is left of it and the whole seconds of the file. No frame of sound is lost; some padding may count."""
    sound = np.flatnonzero(listed)
    if not sound.size:
        return 0
    most = math.ceil(stored_frames * (int(sound[-1]) + 1) / listed.size)
    if clock.hop_samples is None or most_samples is None:
        return most
    return min(most, math.ceil(most_samples / clock.hop_samples))


def _start_samples(meta: Mapping[str, Json], stored_frames: int, rate_hz: int | None, clock: Clock) -> int | None:
    if is_ours(meta):
        return _our_start(meta)
    if rate_hz is None:
        return None
    second = _number(meta.get("seconds_start")) or 0.0
    window_samples = clock.window_samples or (clock.hop_samples or 0) * stored_frames
    fractions = _fractions(meta.get("timestamps"))
    if fractions is None or not window_samples:
        return round(second * rate_hz)
    # Both are fractions of max(file, window), and their difference stands for the window.
    start = round(fractions[0] * window_samples / (fractions[1] - fractions[0]))
    earliest = math.floor(second) * rate_hz
    return min(max(start, earliest), earliest + rate_hz - 1)


def _most_samples(meta: Mapping[str, Json], rate_hz: int | None, start_samples: int | None) -> int | None:
    """What is left of the file, by its length in whole seconds (rounded up), from the start of the window."""
    seconds_total = _number(meta.get("seconds_total"))
    if seconds_total is None or rate_hz is None or start_samples is None:
        return None
    return max(0, math.ceil(seconds_total * rate_hz) - start_samples)


def is_ours(meta: Mapping[str, Json]) -> bool:
    """Whether Woodshed wrote this. Foreign metadata may use any one of these names for something else; hardly both."""
    return _our_start(meta) is not None and _whole(meta.get("num_samples")) is not None


def _our_start(meta: Mapping[str, Json]) -> int | None:
    """The files call it `sample_offset`, the commit log `start_sample`."""
    return _whole(meta.get("sample_offset", meta.get("start_sample")))


def _fractions(timestamps: Json) -> tuple[float, float] | None:
    if not isinstance(timestamps, list) or len(timestamps) != 2:
        return None
    start, end = _number(timestamps[0]), _number(timestamps[1])
    return None if start is None or end is None or end <= start else (start, end)


def _whole(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
