"""The engine: works off a plan's units and commits what they give.

    plan -> prepare (threads: decode, resample) -> batches of one shape -> encode (device) -> join -> commit

One loop, one device, one writer; decoding runs ahead in threads. A batch always has the shape that the plan gave it:
seats of items that are done already, or have failed, are filled by repeating a neighbour, whose result is thrown away.
So a resumed run computes the same bytes as an undisturbed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from woodshed.contracts import Arrays, Encoder, Example, Failure, Item, Joiner, Json, Observer, Place, Progress, Record
from woodshed.errors import ItemError
from woodshed.run.feeder import Feeder
from woodshed.run.memory import Ceiling
from woodshed.run.patience import STALL_S
from woodshed.run.plan import PlannedItem, Unit
from woodshed.store.store import ItemWriter, SourceFacts, Store

PROGRESS_EVERY_S = 0.2

Annotate = Callable[[Item, Record], Mapping[str, Json] | None]
"""Adds columns to a record's item, or rejects the record with None: a data set's own function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How the work is done; nothing here changes a number."""

    num_threads: int = 4
    max_waiting_bytes: int = 256 * 2**20
    stall_s: float = STALL_S
    """Time in which a decoder must give its next piece, besides the time to read the file."""


@dataclass(slots=True)
class _Seat:
    """One item of a unit while it is worked on."""

    planned: PlannedItem
    facts: SourceFacts
    joiner: Joiner
    writer: ItemWriter
    next_piece: int = 0
    early: dict[int, Arrays] = field(default_factory=dict)
    """Parts that came before their turn: pieces of odd lengths wait longer for a full batch."""
    num_records: int = 0
    rejected: int = 0


class Engine:
    """Runs units. `run` may be called once.

    Args:
        stopped: asked between batches and while waiting; when true, what is finished is committed and `run` returns.
    """

    def __init__(
        self,
        encoder: Encoder,
        store: Store,
        *,
        options: EngineOptions,
        observer: Observer,
        progress: Progress,
        stopped: Callable[[], bool],
        annotate: Annotate | None = None,
    ) -> None:
        self._encoder, self._store, self._options = encoder, store, options
        self._observer, self._stopped, self._annotate = observer, stopped, annotate
        self._ceiling = Ceiling()
        self._before = progress
        self.num_done = self.num_skipped = 0
        self.failures: list[Failure] = []
        self._audio_s = 0.0
        self._started = time.monotonic()
        self._shown = 0.0

    def run(self, units: Sequence[Unit], pending: Callable[[PlannedItem], bool]) -> None:
        """Work off `units`; only items for which `pending` holds are computed and committed."""
        work = [(unit, [index for index, planned in enumerate(unit.items) if pending(planned)]) for unit in units]
        work = [(unit, open_seats) for unit, open_seats in work if open_seats]
        items = [unit.items[index].item for unit, open_seats in work for index in open_seats]
        options = self._options
        with Feeder(
            items,
            self._encoder,
            num_threads=options.num_threads,
            max_waiting_bytes=options.max_waiting_bytes,
            stall_s=options.stall_s,
        ) as feeder:
            first = 0
            for unit, open_seats in work:
                if self._stopped():
                    break
                self._run_unit(unit, dict(zip(open_seats, range(first, first + len(open_seats)), strict=True)), feeder)
                first += len(open_seats)
        self._store.commit()
        self._show(force=True)

    @property
    def num_splits(self) -> int:
        """How often a batch did not fit into memory."""
        return self._ceiling.num_splits

    def _run_unit(self, unit: Unit, numbers: Mapping[int, int], feeder: Feeder) -> None:
        seats: dict[int, _Seat] = {}
        gone: set[int] = set()
        for batch in unit.batches:
            live: dict[int, Example] = {}
            for row, (index, piece) in enumerate(batch):
                if index not in numbers or index in gone:
                    continue
                try:
                    example = feeder.take(numbers[index], piece, stopped=self._stopped)
                except ItemError as error:
                    self._fail(unit, index, error, feeder, numbers, seats, gone)
                    continue
                if example is None:
                    self._abandon(seats)
                    return
                live[row] = example
            live = {row: example for row, example in live.items() if batch[row][0] not in gone}
            if not live:
                continue
            spare = next(iter(live.values()))
            cost_s = unit.items[batch[0][0]].pieces[batch[0][1]].cost_s
            rows = [live.get(row, spare) for row in range(len(batch))]
            for row, part in enumerate(self._encode(rows, cost_s)):
                index, piece = batch[row]
                if row not in live or index in gone:
                    continue
                try:
                    if isinstance(part, ItemError):
                        raise part
                    seat = seats.get(index) or self._open(unit, index, numbers[index], feeder)
                    seats[index] = seat
                    self._add(unit, seat, piece, part)
                except ItemError as error:
                    self._fail(unit, index, error, feeder, numbers, seats, gone)
                    continue
                if seat.next_piece == len(seat.planned.pieces):
                    self._finish(seats.pop(index))
                    gone.add(index)
            self._show()

    def _encode(self, rows: Sequence[Example], cost_s: float) -> list[Arrays | ItemError]:
        try:
            return [*self._ceiling.run(self._encoder.encode, rows, cost=cost_s)]
        except ItemError:
            pass
        # Some row cannot be computed. Find out which, and compute the batch again with a neighbour in its seat: the
        # others get the bytes that a batch of this shape always gives.
        alone = [self._encode_alone(row, cost_s) for row in rows]
        good = [row for row, made in zip(rows, alone, strict=True) if not isinstance(made, ItemError)]
        if not good:
            return alone
        filled = [good[0] if isinstance(made, ItemError) else row for row, made in zip(rows, alone, strict=True)]
        again = self._ceiling.run(self._encoder.encode, filled, cost=cost_s)
        return [made if isinstance(made, ItemError) else fresh for made, fresh in zip(alone, again, strict=True)]

    def _encode_alone(self, row: Example, cost_s: float) -> Arrays | ItemError:
        try:
            return self._ceiling.run(self._encoder.encode, [row], cost=cost_s)[0]
        except ItemError as error:
            return error

    def _open(self, unit: Unit, index: int, number: int, feeder: Feeder) -> _Seat:
        planned = unit.items[index]
        facts = _facts(unit, planned, feeder.digest(number))
        joiner = self._encoder.joiner(planned.item)
        return _Seat(planned=planned, facts=facts, joiner=joiner, writer=self._store.item(facts))

    def _add(self, unit: Unit, seat: _Seat, piece: int, part: Arrays) -> None:
        seat.early[piece] = part
        item = seat.planned.item
        while seat.next_piece in seat.early:
            for record in seat.joiner.add(seat.early.pop(seat.next_piece)):
                check_finite(record, item)
                columns = self._annotate(item, record) if self._annotate else {}
                if columns is None:
                    seat.rejected += 1
                    continue
                index = int(record.meta.pop("index", seat.num_records))
                place = Place(
                    item=replace(item, meta={**item.meta, **columns}) if columns else item,
                    digest=seat.facts.digest,
                    rank=unit.rank,
                    position=seat.planned.position + index,
                    index=index,
                    num_records=seat.planned.num_records,
                )
                seat.writer.write(record, place)
                seat.num_records += 1
            seat.next_piece += 1
            if item.audio is not None:
                self._audio_s += item.audio.duration_s / len(seat.planned.pieces)

    def _finish(self, seat: _Seat) -> None:
        item = seat.planned.item
        if seat.num_records:
            seat.writer.done(audio_s=item.audio.duration_s if item.audio else 0.0)
            self.num_done += 1
            return
        seat.writer.abandon()
        if seat.rejected:
            kind, reason = "rejected", "rejected by the data set's custom metadata function"
        else:
            kind, reason = "silent", "silent throughout, and silent clips are left out"
        self._store.skip(seat.facts, kind=kind, reason=reason)
        self.num_skipped += 1

    def _fail(
        self,
        unit: Unit,
        index: int,
        error: ItemError,
        feeder: Feeder,
        numbers: Mapping[int, int],
        seats: dict[int, _Seat],
        gone: set[int],
    ) -> None:
        if index in gone:
            return
        gone.add(index)
        feeder.drop(numbers[index])
        seat = seats.pop(index, None)
        if seat is not None:
            seat.writer.abandon()
        facts = _facts(unit, unit.items[index], seat.facts.digest if seat else "")
        self._store.fail(facts, kind=error.kind, reason=str(error))
        self.failures.append(Failure(id=facts.id, kind=error.kind, reason=str(error)))
        self._show()

    def _abandon(self, seats: dict[int, _Seat]) -> None:
        for seat in seats.values():
            seat.writer.abandon()

    def _show(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._shown < PROGRESS_EVERY_S:
            return
        self._shown = now
        before = self._before
        self._observer.progress(
            Progress(
                items_total=before.items_total,
                items_done=before.items_done + self.num_done,
                items_failed=before.items_failed + len(self.failures),
                items_skipped=before.items_skipped + self.num_skipped,
                audio_total_s=before.audio_total_s,
                audio_done_s=before.audio_done_s + self._audio_s,
                audio_now_s=self._audio_s,
                elapsed_s=now - self._started,
            )
        )


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


def _facts(unit: Unit, planned: PlannedItem, digest: str) -> SourceFacts:
    item = planned.item
    return SourceFacts(
        id=item.id,
        size_bytes=item.size_bytes,
        mtime_ns=item.mtime_ns,
        digest=digest,
        meta_digest=planned.meta_digest,
        position=planned.position,
        shard=unit.shard,
    )
