"""Which frames of a stored window are handed out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Crop:
    """Frames `[start, stop)` of a stored window, filled up at the end to `num_frames`."""

    start: int
    stop: int
    num_frames: int


def plan_crop(
    *,
    stored_frames: int,
    valid_frames: int,
    crop_frames: int | None,
    pad: bool,
    draw_below: Callable[[int], int] | None = None,
) -> Crop:
    """Choose the crop of one window.

    Args:
        stored_frames: length of the stored array.
        valid_frames: how many of them, from the start, stand for sound; the rest is padding of the window.
        crop_frames: length to hand out, or `None` for all there is.
        pad: hand out padding (stored or filled up) to reach the full length; else valid frames only.
        draw_below: gives a whole number from `range(count)`, to start anywhere that leaves no valid frame out of
            reach and takes none of the padding; `None` starts at 0.

    >>> plan_crop(stored_frames=128, valid_frames=78, crop_frames=40, pad=True, draw_below=lambda count: count - 1)
    Crop(start=38, stop=78, num_frames=40)
    >>> plan_crop(stored_frames=10, valid_frames=8, crop_frames=16, pad=True)
    Crop(start=0, stop=10, num_frames=16)
    >>> plan_crop(stored_frames=10, valid_frames=8, crop_frames=16, pad=False)
    Crop(start=0, stop=8, num_frames=8)
    """
    limit = stored_frames if pad else valid_frames
    if crop_frames is None:
        return Crop(0, limit, limit)
    spare = max(0, valid_frames - crop_frames)
    start = draw_below(spare + 1) if draw_below is not None and spare else 0
    stop = min(start + crop_frames, limit)
    return Crop(start, stop, crop_frames if pad else stop - start)


def handed_out_frames(*, stored_frames: int, valid_frames: int, crop_frames: int | None, pad: bool) -> int:
    """Length that `plan_crop` gives, which no draw changes.

    >>> handed_out_frames(stored_frames=10, valid_frames=8, crop_frames=5, pad=False)
    5
    """
    crop = plan_crop(stored_frames=stored_frames, valid_frames=valid_frames, crop_frames=crop_frames, pad=pad)
    return crop.num_frames
