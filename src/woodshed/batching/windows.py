"""Windows for networks with a finite receptive field: chunked results equal the unchunked ones.

A convolutional encoder turns `F * hop` samples into `F` frames, and frame `t` depends on the input of frames
`[t - reach, t + reach]` only. So a clip may be encoded in windows that start on the frame grid, as long as a frame is
kept only from a window that holds its whole context, or whose edge is the clip's own edge: there the network's own
zero padding happens exactly where the unchunked encode has it.

A clip followed by zeros needs no computing of those zeros either: frames further than `reach` from the sound are the
response to silence, a constant, up to `reach` frames before the end, where the right edge is felt. One stored encode
of silence serves all clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped


@dataclass(frozen=True, slots=True)
class Window:
    """One window, in frames of the clip."""

    start: int
    stop: int
    keep_start: int
    """First frame that is kept; context before it is dropped."""
    keep_stop: int

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Windows that together give frames `[0, computed)`; frames from there to `total` are the response to silence."""

    windows: tuple[Window, ...]
    computed: int
    total: int


def num_frames(num_samples: int, hop_samples: int) -> int:
    """Frames that hold `num_samples` samples: the last one may be filled up with zeros.

    >>> num_frames(1, 2048), num_frames(2048, 2048), num_frames(2049, 2048)
    (1, 1, 2)
    """
    return -(-num_samples // hop_samples)


def plan_windows(real: int, total: int, *, reach: int, window: int, quantum: int) -> WindowPlan:
    """Cut a clip of `real` frames of sound, followed by zeros up to `total` frames, into windows.

    Args:
        real: frames that hold sound, at least 1.
        total: frames of the signal, zeros at the end included.
        reach: frames of context that a frame needs on each side.
        window: frames of a full window, more than `2 * reach`.
        quantum: the last window and short clips have a multiple of this many frames wherever that does not change
            the result, so that few shapes occur.

    >>> plan_windows(100, 100, reach=8, window=64, quantum=8).windows  # doctest: +NORMALIZE_WHITESPACE
    (Window(start=0, stop=64, keep_start=0, keep_stop=56), Window(start=44, stop=100, keep_start=56, keep_stop=100))
    >>> plan = plan_windows(10, 645, reach=8, window=64, quantum=8)
    >>> plan.computed, plan.windows
    (18, (Window(start=0, stop=32, keep_start=0, keep_stop=18),))
    """
    if real < 1 or total < real:
        raise ValueError(f"a clip of {real} frames in {total} cannot be cut: need 1 <= real <= total")
    if window <= 2 * reach or quantum < 1:
        raise ValueError(f"window={window} leaves nothing to keep with reach={reach}: need window > {2 * reach}")
    end, computed = total, total
    if real + 2 * reach < total:
        # zeros beyond the context of the last frame that hears the sound need no computing
        end, computed = min(total, _round_up(real + 2 * reach, quantum)), real + reach
    if end <= window:
        return WindowPlan((Window(0, end, 0, computed),), computed, total)
    windows = []
    start = kept = 0
    while start + window < end:
        stop = start + window - reach
        windows.append(Window(start, start + window, kept, min(stop, computed)))
        kept, start = stop, stop - reach
        if kept >= computed:
            return WindowPlan(tuple(windows), computed, total)
    start = end - min(window, _round_up(end - start, quantum))
    windows.append(Window(start, end, kept, computed))
    return WindowPlan(tuple(windows), computed, total)


def fill_silence(
    computed: Shaped[np.ndarray, "*axes frames"], plan: WindowPlan, silence: Shaped[np.ndarray, "*axes silent"]
) -> Shaped[np.ndarray, "*axes total"]:
    """Append the response to silence up to `plan.total` frames.

    Args:
        silence: response to silence of at least `2 * reach + 1` frames: its last `reach` frames feel the right edge,
            and the frame in its middle feels none. Made by `silence_frames`.
    """
    missing = plan.total - plan.computed
    if missing == 0:
        return computed
    tail = silence.shape[-1] // 2
    middle = np.broadcast_to(silence[..., tail : tail + 1], (*silence.shape[:-1], max(0, missing - tail)))
    return np.concatenate([computed, middle, silence[..., silence.shape[-1] - min(tail, missing) :]], axis=-1)


def silence_frames(reach: int) -> int:
    """Frames of silence whose response `fill_silence` can use.

    >>> silence_frames(8)
    17
    """
    return 2 * reach + 1


def cut(
    audio: Shaped[np.ndarray, "channel time"], start: int, stop: int, *, offset: int = 0
) -> Shaped[np.ndarray, "channel cut"]:
    """Samples `[start, stop)` of a clip of which `audio` holds samples from `offset` on; zeros past its end."""
    part = audio[:, start - offset : stop - offset]
    missing = (stop - start) - part.shape[1]
    return part if missing == 0 else np.pad(part, ((0, 0), (0, missing)))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def total_cost(windows: Sequence[Window]) -> int:
    """Frames that are computed for these windows, context included."""
    return sum(window.num_frames for window in windows)
