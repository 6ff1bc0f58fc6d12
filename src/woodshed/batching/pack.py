"""Which pieces share a batch: decided once from the headers, written down with the plan, and the same for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from woodshed.contracts import Piece

Batch = tuple[tuple[int, int], ...]
"""Pairs of (number of the item in its unit, number of the piece in its item)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What bounds a batch. Memory grows with seconds, so seconds are the limit; a count caps it where asked for."""

    max_cost_s: float
    max_pieces: int | None = None
    padded: bool = False
    """Pieces of one key have many lengths and are padded to the longest of their batch: a batch costs its number of
    pieces times the dearest of them. Pieces that come in the order of their costs share batches with their like."""
    max_waiting_s: float = 240.0
    """Seconds of audio that may wait in batches that are not yet full; the oldest is closed beyond it. It bounds the
    memory of the engine, which holds decoded pieces until their batch is run."""


def pack(pieces: Sequence[Sequence[Piece]], limits: BatchLimits) -> list[Batch]:
    """Batches of pieces with equal keys, in the order in which they fill up.

    Every piece is in one batch; no batch costs more than `max_cost_s` unless it is a single piece.

    >>> clips = [[Piece(key="clip", cost_s=cost_s)] for cost_s in (3.0, 2.0, 2.0, 1.0)]
    >>> pack(clips, BatchLimits(max_cost_s=6.0, padded=True))
    [((0, 0), (1, 0)), ((2, 0), (3, 0))]

    >>> full, short = Piece(key="64", cost_s=1.0), Piece(key="8", cost_s=0.1)
    >>> pack([[full, full, short], [full, short]], BatchLimits(max_cost_s=2.0))
    [((0, 0), (0, 1)), ((0, 2), (1, 1)), ((1, 0),)]
    """
    batches: list[Batch] = []
    waiting: dict[str, _Waiting] = {}

    def close(key: str) -> None:
        batches.append(tuple(waiting.pop(key).members))

    for item, own in enumerate(pieces):
        for number, piece in enumerate(own):
            key = piece.key
            if key in waiting and waiting[key].cost_with_s(piece) > limits.max_cost_s:
                close(key)
            batch = waiting.setdefault(key, _Waiting(limits.padded))
            batch.cost_s = batch.cost_with_s(piece)
            batch.dearest_s = max(batch.dearest_s, piece.cost_s)
            batch.members.append((item, number))
            full = batch.cost_with_s(piece) > limits.max_cost_s and not limits.padded
            if full or len(batch.members) == limits.max_pieces:
                close(key)
            if len(waiting) > 1:
                waiting_s = sum(batch.cost_s for batch in waiting.values())
                if waiting_s > limits.max_waiting_s + limits.max_cost_s:
                    close(next(iter(waiting)))
    # the rest in the order of the items, so that what was decoded first is used first
    for key in sorted(waiting, key=lambda key: waiting[key].members[0]):
        close(key)
    return batches


@dataclass(slots=True)
class _Waiting:
    """A batch that is not yet full."""

    padded: bool
    cost_s: float = 0.0
    dearest_s: float = 0.0
    members: list[tuple[int, int]] = field(default_factory=list)

    def cost_with_s(self, piece: Piece) -> float:
        """What the batch would cost with one more piece."""
        if self.padded:
            return max(self.dearest_s, piece.cost_s) * (len(self.members) + 1)
        return self.cost_s + piece.cost_s
