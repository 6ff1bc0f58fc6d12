"""Cut a stream of samples into spans that may overlap, holding no more of it than one span needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float


def cut_spans(
    blocks: Iterable[Float[np.ndarray, "channel _"]], spans: Iterable[tuple[int, int]], *, num_channels: int
) -> Iterator[Float[np.ndarray, "channel span"]]:
    """Samples `[start, stop)` of the stream for each span; zeros past its end.

    The stream is read to its end, also past the last span: whatever checks its length runs.

    Args:
        spans: in ascending order of their starts.

    >>> blocks = [np.arange(4.0, dtype=np.float32)[None], np.arange(4.0, 6.0, dtype=np.float32)[None]]
    >>> [part[0].tolist() for part in cut_spans(blocks, [(0, 3), (2, 5), (5, 7)], num_channels=1)]
    [[0.0, 1.0, 2.0], [2.0, 3.0, 4.0], [5.0, 0.0]]
    """
    unread = iter(blocks)
    held: list[np.ndarray] = []
    first = end = 0
    """The held blocks are samples `[first, end)` of the stream."""
    for start, stop in spans:
        while end < stop and (block := next(unread, None)) is not None:
            held.append(block)
            end += block.shape[1]
            while held and first + held[0].shape[1] <= start:
                first += held.pop(0).shape[1]
        while held and first + held[0].shape[1] <= start:
            first += held.pop(0).shape[1]
        span = np.zeros((num_channels, stop - start), np.float32)
        position = first
        for block in held:
            left, right = max(start, position), min(stop, position + block.shape[1])
            if left < right:
                span[:, left - start : right - start] = block[:, left - position : right - position]
            position += block.shape[1]
        yield span
    for _ in unread:
        continue
