"""The engine: works off a plan's units and commits what they give.

    plan -> units are computed, here or in worker processes (`run.unit`, `run.pool`) -> events -> commit

One writer. The places of all records come from the plan, so it does not matter who computes what, nor when.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from woodshed.contracts import Encoder, Failure, Item, Json, Observer, Place, Progress, Record
from woodshed.errors import ItemError
from woodshed.run.feeder import Feeder
from woodshed.run.memory import Ceiling
from woodshed.run.patience import STALL_S
from woodshed.run.plan import PlannedItem, Unit
from woodshed.run.pool import Lease, Lost, Pool, Split
from woodshed.run.unit import Broken, Computed, Event, Finished, Made, UnitRun
from woodshed.store.store import ItemWriter, SourceFacts, Store

PROGRESS_EVERY_S = 0.2
DERIVE_EVERY_S = 60.0
DERIVE_SHARE = 0.05
"""Share of the time that may go into files which are derived from the log: large folders derive them less often."""

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
    """One item of a unit while its records are written."""

    planned: PlannedItem
    facts: SourceFacts
    writer: ItemWriter
    num_records: int = 0
    rejected: int = 0


class Engine:
    """Runs units. `run` may be called once.

    Args:
        encoder: computes in this process; not used when there is a pool.
        stopped: asked between batches and while waiting; when true, what is finished is committed and `run` returns.
        derive: writes the files that are derived from the log; called now and then after a commit, and at the end.
        pool: worker processes that compute instead.
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
        derive: Callable[[], None] | None = None,
        pool: Pool | None = None,
    ) -> None:
        self._encoder, self._store, self._options = encoder, store, options
        self._observer, self._stopped, self._annotate = observer, stopped, annotate
        self._derive, self._pool = derive, pool
        self._before = progress
        self.num_done = self.num_skipped = self.num_splits = 0
        """Items done and skipped by this run; how often a batch did not fit into memory."""
        self.failures: list[Failure] = []
        self._audio_s = 0.0
        self._seats: dict[tuple[int, int], _Seat] = {}
        """By number of the unit and of the item in it."""
        self._failed: set[tuple[int, int]] = set()
        """Of these the computing side may go on to tell: it does not know what the store refuses."""
        self._started = self._derived = time.monotonic()
        self._derive_took_s = 0.0
        self._shown = 0.0

    def run(self, units: Sequence[Unit], pending: Callable[[PlannedItem], bool]) -> None:
        """Work off `units`; only items for which `pending` holds are computed and committed."""
        leases = [
            Lease(unit, tuple(index for index, planned in enumerate(unit.items) if pending(planned))) for unit in units
        ]
        leases = [lease for lease in leases if lease.seats]
        events = self._pool.events(leases, self._stopped) if self._pool else self._local_events(leases)
        for unit, event in events:
            self._take(unit, event)
            self._show()
            self._derive_now_and_then()
        for seat in self._seats.values():
            seat.writer.abandon()
        self._store.commit()
        if self._derive is not None:
            self._derive()
        self._show(force=True)

    def _local_events(self, leases: Sequence[Lease]) -> Iterator[tuple[Unit, Event | Lost | Split]]:
        items = [lease.unit.items[index].item for lease in leases for index in lease.seats]
        options, ceiling = self._options, Ceiling()
        with Feeder(
            items,
            self._encoder,
            num_threads=options.num_threads,
            max_waiting_bytes=options.max_waiting_bytes,
            stall_s=options.stall_s,
        ) as feeder:
            first = 0
            for unit, seats in leases:
                if self._stopped():
                    break
                numbers = dict(zip(seats, range(first, first + len(seats)), strict=True))
                splits = ceiling.num_splits
                for event in UnitRun(unit, numbers, feeder, self._encoder, ceiling, self._stopped).events():
                    yield unit, event
                yield unit, Split(ceiling.num_splits - splits)
                first += len(seats)

    def _take(self, unit: Unit, event: Event | Lost | Split) -> None:
        match event:
            case Made():
                self._write(unit, event)
            case Finished():
                self._finish(unit, event)
            case Broken():
                self._fail(unit, event)
            case Computed():
                self._audio_s += event.audio_s
            case Split():
                self.num_splits += event.count
            case Lost():
                for index in event.seats:
                    if (seat := self._seats.pop((unit.number, index), None)) is not None:
                        seat.writer.abandon()

    def _open(self, unit: Unit, index: int, digest: str) -> _Seat:
        key = (unit.number, index)
        if key not in self._seats:
            planned = unit.items[index]
            facts = _facts(unit, planned, digest)
            self._seats[key] = _Seat(planned=planned, facts=facts, writer=self._store.item(facts))
        return self._seats[key]

    def _write(self, unit: Unit, event: Made) -> None:
        if (unit.number, event.seat) in self._failed:
            return
        seat, record = self._open(unit, event.seat, event.digest), event.record
        item = seat.planned.item
        try:
            columns = self._annotate(item, record) if self._annotate else {}
            if columns is None:
                seat.rejected += 1
                return
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
        except ItemError as error:
            self._fail(unit, Broken(event.seat, event.digest, error.kind, str(error)))

    def _finish(self, unit: Unit, event: Finished) -> None:
        if (unit.number, event.seat) in self._failed:
            return
        seat = self._open(unit, event.seat, event.digest)
        del self._seats[unit.number, event.seat]
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

    def _fail(self, unit: Unit, event: Broken) -> None:
        if (unit.number, event.seat) in self._failed:
            return
        self._failed.add((unit.number, event.seat))
        seat = self._seats.pop((unit.number, event.seat), None)
        if seat is not None:
            seat.writer.abandon()
        facts = _facts(unit, unit.items[event.seat], event.digest)
        self._store.fail(facts, kind=event.kind, reason=event.reason)
        self.failures.append(Failure(id=facts.id, kind=event.kind, reason=event.reason))

    def _derive_now_and_then(self) -> None:
        if self._derive is None:
            return
        now = time.monotonic()
        if now - self._derived >= max(DERIVE_EVERY_S, self._derive_took_s / DERIVE_SHARE):
            self._store.commit()
            self._derive()
            self._derived = time.monotonic()
            self._derive_took_s = self._derived - now

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
