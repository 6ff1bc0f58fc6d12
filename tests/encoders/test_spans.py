"""Spans of a stream equal slices of the whole."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.encoders.spans import cut_spans


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), max_size=8),
    spans=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6),
)
def test_spans_equal_slices_of_the_whole(sizes: list[int], spans: list[tuple[int, int]]) -> None:
    whole = np.arange(2 * sum(sizes), dtype=np.float32).reshape(2, -1)
    blocks = iter(np.split(whole, np.cumsum(sizes)[:-1], axis=1) if sizes else [])
    wanted = sorted((start, start + length) for start, length in spans)
    filled = np.pad(whole, ((0, 0), (0, 100)))
    parts = list(cut_spans(blocks, wanted, num_channels=2))
    assert len(parts) == len(wanted)
    for (start, stop), part in zip(wanted, parts, strict=True):
        np.testing.assert_array_equal(part, filled[:, start:stop])
    assert next(blocks, None) is None, "the stream was not read to its end"
