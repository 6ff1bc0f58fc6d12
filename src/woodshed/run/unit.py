"""The computing half of the engine: one unit of the plan, from decoded pieces to finished records.

    prepare (threads: decode, resample) -> batches of the plan's shape -> encode (device) -> join -> events

It writes nothing. What happens is told as events, in this process or through a pipe, to whoever commits.

A batch always has the shape that the plan gave it: seats of items that are done already, or have failed, are filled by
something of the same shape, whose result is thrown away. So a resumed run computes the same bytes as an undisturbed
one. Where all rows of a batch are equally long a neighbour fills the seat, elsewhere what the encoder gives for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from woodshed.contracts import Arrays, Encoder, Example, FillsSeats, Item, Joiner, Record
from woodshed.errors import ItemError
from woodshed.run.feeder import Feeder
from woodshed.run.memory import Ceiling
from woodshed.run.plan import Unit


@dataclass(frozen=True, slots=True)
class Made:
    """A record of the item in a seat; an item's records come in order."""

    seat: int
    digest: str
    """Content digest of the item's source."""
    record: Record


@dataclass(frozen=True, slots=True)
class Finished:
    """All records of an item have been made."""

    seat: int
    digest: str


@dataclass(frozen=True, slots=True)
class Broken:
    """An item cannot be encoded; the last word on its seat."""

    seat: int
    digest: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Computed:
    """How much source audio a batch stood for, in seconds: for the display."""

    audio_s: float


Event: TypeAlias = Made | Finished | Broken | Computed


@dataclass(slots=True)
class _Seat:
    """One item of a unit while it is worked on."""

    digest: str
    joiner: Joiner
    next_piece: int = 0
    early: dict[int, Arrays] = field(default_factory=dict)
    """Parts that came before their turn: pieces of odd lengths wait longer for a full batch."""


class UnitRun:
    """Computes one unit.

    Args:
        numbers: seats that are to be done -> number of the item among those that `feeder` feeds.
        stopped: asked between batches and while waiting; when true, `events` ends early.
    """

    def __init__(
        self,
        unit: Unit,
        numbers: Mapping[int, int],
        feeder: Feeder,
        encoder: Encoder,
        ceiling: Ceiling,
        stopped: Callable[[], bool],
    ) -> None:
        self._unit, self._numbers, self._feeder = unit, numbers, feeder
        self._encoder, self._ceiling, self._stopped = encoder, ceiling, stopped
        self._seats: dict[int, _Seat] = {}
        self._gone: set[int] = set()

    def events(self) -> Iterator[Event]:
        """What happens, in order: every seat of `numbers` ends in `Finished` or `Broken`, unless the run is stopped."""
        for batch in self._unit.batches:
            if self._stopped():
                return
            live: dict[int, Example] = {}
            for row, (index, piece) in enumerate(batch):
                if index not in self._numbers or index in self._gone:
                    continue
                try:
                    example = self._feeder.take(self._numbers[index], piece, stopped=self._stopped)
                except ItemError as error:
                    yield from self._fail(index, error)
                    continue
                if example is None:
                    return
                live[row] = example
            live = {row: example for row, example in live.items() if batch[row][0] not in self._gone}
            if live:
                yield from self._compute(batch, live)

    def _compute(self, batch: Sequence[tuple[int, int]], live: Mapping[int, Example]) -> Iterator[Event]:
        spare = next(iter(live.values()))
        # The dearest row: where pieces of several lengths share a batch, all are padded to the longest.
        cost_s = max(self._unit.items[index].pieces[piece].cost_s for index, piece in batch)
        seats = [index for index, _ in batch]
        rows = [live[row] if row in live else self._filler(index, spare) for row, index in enumerate(seats)]
        audio_s = 0.0
        for row, part in enumerate(self._encode(rows, seats, cost_s)):
            index, piece = batch[row]
            if row not in live or index in self._gone:
                continue
            planned = self._unit.items[index]
            try:
                if isinstance(part, ItemError):
                    raise part
                yield from self._add(index, piece, part)
            except ItemError as error:
                yield from self._fail(index, error)
                continue
            if planned.item.audio is not None:
                audio_s += planned.item.audio.duration_s / len(planned.pieces)
            if self._seats[index].next_piece == len(planned.pieces):
                self._gone.add(index)
                yield Finished(index, self._seats.pop(index).digest)
        yield Computed(audio_s)

    def _filler(self, index: int, neighbour: Example) -> Example:
        """What has a seat whose own item is not to be done here."""
        if isinstance(self._encoder, FillsSeats):
            return self._encoder.stand_in(self._unit.items[index].item)
        return neighbour

    def _encode(self, rows: Sequence[Example], seats: Sequence[int], cost_s: float) -> list[Arrays | ItemError]:
        try:
            return [*self._ceiling.run(self._encoder.encode, rows, cost=cost_s)]
        except ItemError:
            pass
        # Some row cannot be computed. Find out which, and compute the batch again with a filler in its seat: the
        # others get the bytes that a batch of this shape always gives.
        alone = [self._encode_alone(row, cost_s) for row in rows]
        bad = [row for row, made in enumerate(alone) if isinstance(made, ItemError)]
        neighbour = next((rows[row] for row in range(len(rows)) if row not in bad), None)
        if neighbour is None:
            return alone
        # Where a row did not fit into memory, nothing of its length does.
        for filler in (self._filler, lambda _, neighbour: neighbour):
            filled = [filler(seats[row], neighbour) if row in bad else own for row, own in enumerate(rows)]
            try:
                again = self._ceiling.run(self._encoder.encode, filled, cost=cost_s)
            except ItemError:
                continue
            return [alone[row] if row in bad else made for row, made in enumerate(again)]
        return alone

    def _encode_alone(self, row: Example, cost_s: float) -> Arrays | ItemError:
        try:
            return self._ceiling.run(self._encoder.encode, [row], cost=cost_s)[0]
        except ItemError as error:
            return error

    def _add(self, index: int, piece: int, part: Arrays) -> Iterator[Event]:
        item = self._unit.items[index].item
        seat = self._seats.get(index)
        if seat is None:
            digest = self._feeder.digest(self._numbers[index])
            seat = self._seats[index] = _Seat(digest=digest, joiner=self._encoder.joiner(item))
        seat.early[piece] = part
        while seat.next_piece in seat.early:
            for record in seat.joiner.add(seat.early.pop(seat.next_piece)):
                check_finite(record, item)
                yield Made(index, seat.digest, record)
            seat.next_piece += 1

    def _fail(self, index: int, error: ItemError) -> Iterator[Event]:
        if index in self._gone:
            return
        self._gone.add(index)
        self._feeder.drop(self._numbers[index])
        seat = self._seats.pop(index, None)
        yield Broken(index, seat.digest if seat else "", error.kind, str(error))


def check_finite(record: Record, item: Item) -> None:
    """Refuse a record that no trainer could use.

    Raises:
        ItemError: an array holds NaN or infinity (kind `not_finite`).
    """
    for name, array in record.arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ItemError(
                f"the model gave NaN or infinity in {name} of {item.relpath}",
                kind="not_finite",
                hint="try --precision fp32",
            )
