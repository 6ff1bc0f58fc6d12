"""Which pieces share a batch: decided once from the headers, written down with the plan, and the same for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    waiting: dict[str, list[tuple[int, int]]] = {}
    cost_s: dict[str, float] = {}

    def cost_with(key: str, piece: Piece) -> float:
        if not limits.padded:
            return cost_s.get(key, 0.0) + piece.cost_s
        batch = [pieces[item][number].cost_s for item, number in waiting.get(key, ())]
        return max([piece.cost_s, *batch]) * (len(batch) + 1)

    def close(key: str) -> None:
        batches.append(tuple(waiting.pop(key)))
        del cost_s[key]

    for item, own in enumerate(pieces):
        for number, piece in enumerate(own):
            key = piece.key
            if key in waiting and cost_with(key, piece) > limits.max_cost_s:
                close(key)
            cost_s[key] = cost_with(key, piece)
            waiting.setdefault(key, []).append((item, number))
            full = cost_with(key, piece) > limits.max_cost_s and not limits.padded
            if full or len(waiting[key]) == limits.max_pieces:
                close(key)
            if len(waiting) > 1 and sum(cost_s.values()) > limits.max_waiting_s + limits.max_cost_s:
                close(next(iter(waiting)))
    # the rest in the order of the items, so that what was decoded first is used first
    for key in sorted(waiting, key=lambda key: waiting[key][0]):
        close(key)
    return batches
