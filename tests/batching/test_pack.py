"""Batches hold every piece once, never mix shapes and never cost more than allowed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from woodshed.batching.pack import BatchLimits, pack
from woodshed.contracts import Piece

pieces = st.builds(
    lambda size: Piece(key=str(size), cost_s=float(size)), st.sampled_from([1, 2, 4, 8])
)  # few shapes, as a plan has


@given(
    items=st.lists(st.lists(pieces, min_size=1, max_size=6), max_size=20),
    max_cost_s=st.floats(0.5, 40.0),
    max_pieces=st.one_of(st.none(), st.integers(1, 5)),
    max_waiting_s=st.floats(0.0, 30.0),
)
def test_batches_are_a_partition_within_the_limits(
    items: list[list[Piece]], max_cost_s: float, max_pieces: int | None, max_waiting_s: float
) -> None:
    limits = BatchLimits(max_cost_s=max_cost_s, max_pieces=max_pieces, max_waiting_s=max_waiting_s)
    batches = pack(items, limits)
    seats = [seat for batch in batches for seat in batch]
    assert sorted(seats) == [(i, p) for i, own in enumerate(items) for p in range(len(own))]
    for batch in batches:
        members = [items[i][p] for i, p in batch]
        assert len({piece.key for piece in members}) == 1
        assert len(batch) == 1 or sum(piece.cost_s for piece in members) <= max_cost_s + 1e-9
        assert max_pieces is None or len(batch) <= max_pieces
    assert batches == pack(items, limits)
