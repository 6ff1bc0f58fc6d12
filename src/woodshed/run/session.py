"""From a source and an open folder to work that is left, and the account of every row.

`plan_folder` reads the folder's earlier plans and its log, sorts the rows of the source against them, and plans what is
new. `run_plan` writes the plan down, works it off and gives the account.
"""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from woodshed.chance import generator
from woodshed.contracts import AudioInfo, BadRow, Encoder, Failure, FillsSeats, Item, Observer, Progress, Summary
from woodshed.run.engine import Annotate, Engine, EngineOptions
from woodshed.run.plan import (
    TAKEN_BACK,
    Account,
    PlannedItem,
    PlanOptions,
    Unit,
    make_units,
    read_rows,
)
from woodshed.run.plan_lines import filled, unit_from_json, unit_head, unit_json
from woodshed.run.pool import Pool
from woodshed.run.stopping import StopSignals
from woodshed.store.entries import Entry, SourceFacts
from woodshed.store.log import CommitLog
from woodshed.store.store import Store

MAX_FAILURES_LISTED = 100


@dataclass(slots=True, kw_only=True)
class Work:
    """What is left to do, and what every row came to so far."""

    account: Account
    units: list[Unit]
    """Earlier units with items that are still to be done, then the new ones."""
    new_units: int
    """How many of `units` are new, at the end."""
    pending: Mapping[str, int]
    """Ids that are to be done -> position under which that happens."""
    shard_items: Mapping[int, int]

    @property
    def num_records(self) -> int:
        return sum(planned.num_records for planned in self._items())

    @property
    def audio_s(self) -> float:
        return sum(planned.item.audio.duration_s for planned in self._items() if planned.item.audio)

    @property
    def computed_s(self) -> float:
        """Seconds of audio that the model will see, context and padding included."""
        return sum(piece.cost_s for planned in self._items() for piece in planned.pieces)

    @property
    def num_batches(self) -> int:
        return sum(len(unit.batches) for unit in self.units)

    def is_pending(self, planned: PlannedItem) -> bool:
        return self.pending.get(planned.item.id) == planned.position

    def _items(self) -> Iterable[PlannedItem]:
        return (planned for unit in self.units for planned in unit.items if self.is_pending(planned))


def plan_folder(
    rows: Iterable[Item | BadRow],
    encoder: Encoder,
    options: PlanOptions,
    *,
    log: CommitLog,
    planned_before: Iterable[bytes],
    next_position: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Work:
    """Sort all rows and plan what is new; nothing is written.

    Args:
        log: what is committed.
        planned_before: units of earlier plans, as they were written down.
        stopped: when true, planning ends, and nothing of the plan is used.
    """
    with _collector_at_rest():
        return _plan_folder(rows, encoder, options, log, planned_before, next_position, stopped)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """A plan is millions of small objects that all stay: looking for garbage among them takes a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _plan_folder(
    rows: Iterable[Item | BadRow],
    encoder: Encoder,
    options: PlanOptions,
    log: CommitLog,
    planned_before: Iterable[bytes],
    next_position: int,
    stopped: Callable[[], bool],
) -> Work:
    before = _EarlierPlans(log)
    for line in planned_before:
        before.add(line)
    account = read_rows(rows, log, before.waiting, encoder, options, stopped=stopped)
    if options.shuffle_seed is not None:
        order = generator(options.shuffle_seed, "shuffle").permutation(len(account.new))
        account.new = [account.new[index] for index in np.asarray(order)]
    old_units = [filled(unit, account.resumed) for unit in before.open_units]
    if isinstance(encoder, FillsSeats):
        old_units = [_with_true_lengths(unit, log, encoder.spec.rate_hz) for unit in old_units]
    shard = max(before.shard_items, default=-1) + 1
    new_units = make_units(
        account.new, options, encoder.spec, unit=before.num_units, position=next_position, shard=shard
    )
    shard_items = before.shard_items
    shard_items.subtract(before.shards_left(account))
    for unit in new_units:
        shard_items[unit.shard] += len(unit.items)
    pending = {name: before.waiting[name].position for name in account.resumed}
    pending |= {planned.item.id: planned.position for unit in new_units for planned in unit.items}
    return Work(
        account=account,
        units=[*old_units, *new_units],
        new_units=len(new_units),
        pending=pending,
        shard_items=shard_items,
    )


def _with_true_lengths(unit: Unit, log: CommitLog, rate_hz: int) -> Unit:
    """The same unit, its items that are done as long as they turned out to be: a manifest may have announced another
    length, and what stands in for them must have theirs."""
    items = []
    for planned in unit.items:
        name = planned.item.id
        if log.is_at(name, planned.position) and (entry := log.entry(name)) is not None and entry.status == "done":
            audio = AudioInfo(
                rate_hz=rate_hz, num_channels=1, num_samples=entry.num_samples, format="committed", decoder=""
            )
            planned = replace(planned, item=replace(planned.item, audio=audio))
        items.append(planned)
    return replace(unit, items=tuple(items))


class _EarlierPlans:
    """What earlier runs planned: which items still wait, and how many items each shard has.

    An item counts in the shard of its latest plan only. Positions grow from plan to plan: a seat is waiting when the
    log has nothing on its item, or a word of an earlier position; it is out of date when the log has a later one.
    The seat of an item whose files were taken back waits again, so that its next files are those it had.
    """

    def __init__(self, log: CommitLog) -> None:
        self._log = log
        self._damaged = {failure.id for failure in log.failures() if failure.kind == TAKEN_BACK}
        self.num_units = 0
        self.waiting: dict[str, PlannedItem] = {}
        self.open_units: list[Unit] = []
        self.shard_items: Counter[int] = Counter()
        self._shards: dict[str, int] = {}

    def add(self, line: bytes) -> None:
        """Take the next unit, in the order of planning."""
        self.num_units += 1
        head = unit_head(line)
        shard = head["shard"]
        open_ids = set()
        for name, position in zip(head["ids"], head["positions"], strict=True):
            is_at = self._log.is_at(name, position)
            if is_at and name not in self._damaged:
                self.shard_items[shard] += 1
                continue
            known = self._log.entry(name)
            # A row that could not be used has no position: it was mended before this plan, or after, and waits here.
            if known is None or known.position is None or known.position <= position:
                last = self._shards.get(name, None if known is None or is_at else known.shard)
                if last is not None:
                    self.shard_items[last] -= 1
                self._shards[name] = shard
                open_ids.add(name)
                self.shard_items[shard] += 1
        if open_ids:
            # the head's ids, so that no id is in memory twice
            unit = unit_from_json(json.loads(line) | head)
            self.open_units.append(unit)
            self.waiting |= {planned.item.id: planned for planned in unit.items if planned.item.id in open_ids}

    def shards_left(self, account: Account) -> Counter[int]:
        """Seats that nobody will take: their item has gone, cannot be read any more, or is planned anew."""
        left = Counter(shard for name, shard in self._shards.items() if name not in account.resumed)
        anew = [planned.item.id for planned in account.new]
        spoilt = [failure.id for failure in account.failures if _is_done(self._log.entry(failure.id))]
        for name in (*anew, *spoilt):
            known = self._log.entry(name) if name not in self._shards else None
            if known is not None and known.shard is not None:
                left[known.shard] += 1
        return left


def _is_done(known: Entry | None) -> bool:
    return known is not None and known.status == "done"


def run_plan(
    work: Work,
    encoder: Encoder,
    store: Store,
    *,
    options: EngineOptions,
    observer: Observer,
    stopped: StopSignals,
    annotate: Annotate | None = None,
    derive: Callable[[Account, Sequence[Failure], int], None] | None = None,
    pool: Pool | None = None,
) -> Summary:
    """Write the plan down, work it off, and account for every row.

    Args:
        derive: writes files that are derived from the log, given the account, and this run's failures and number of
            items done so far.
        pool: worker processes that compute; without them this process does.
    """
    started = time.monotonic()
    account = work.account
    engine = Engine(
        encoder,
        store,
        options=options,
        observer=observer,
        progress=_progress(work, store),
        stopped=stopped,
        annotate=annotate,
        derive=None if derive is None else lambda: derive(account, engine.failures, engine.num_done),
        pool=pool,
    )
    if not account.is_complete:
        # A part of a plan is no plan: places and batches would differ from those of an undisturbed run.
        return _summary(work, store, engine, stopped.name, time.monotonic() - started)
    if work.new_units:
        units = work.units[-work.new_units :]
        ends = (planned.position + planned.num_records for unit in units for planned in unit.items)
        store.plan.append((unit_json(unit) for unit in units), next_position=max(ends))
    store.expect_shards(work.shard_items)
    _record_bad_rows(account, store)
    engine.run(work.units, work.is_pending)
    return _summary(work, store, engine, stopped.name, time.monotonic() - started)


def _record_bad_rows(account: Account, store: Store) -> None:
    """Rows that never became items are in the log as well, so that a folder can be asked what is missing and why."""
    for failure in account.failures:
        # what was done before its source or caption broke stays: nothing already produced is ever lost
        if store.entry(failure.id) is None:
            store.fail(SourceFacts(id=failure.id), kind=failure.kind, reason=failure.reason)
    for skip in account.skipped:
        if store.entry(skip.id) is None:
            store.skip(SourceFacts(id=skip.id), kind=skip.kind, reason=skip.reason)


def _progress(work: Work, store: Store) -> Progress:
    account = work.account
    return Progress(
        items_total=account.num_rows - account.num_pending,
        items_done=account.num_done,
        items_failed=len(account.failures),
        items_skipped=len(account.skipped),
        audio_total_s=store.totals.audio_s + work.audio_s,
        audio_done_s=store.totals.audio_s,
        audio_now_s=0.0,
        elapsed_s=0.0,
    )


def _summary(work: Work, store: Store, engine: Engine, stopped_by: str | None, elapsed_s: float) -> Summary:
    account, totals = work.account, store.totals
    failures = [*account.failures, *engine.failures]
    skipped = len(account.skipped) + engine.num_skipped
    done = account.num_done + engine.num_done
    notes = []
    if account.changed:
        notes.append(f"{len(account.changed)} items were encoded again because their source has changed")
    if account.gone:
        notes.append(
            f"{len(account.gone)} items were encoded before and their source cannot be read now, such as "
            f"{account.gone[0]}; what was encoded is kept"
        )
    num_kept = totals.num_done - done
    if num_kept > 0 and stopped_by is None:
        notes.append(
            f"{num_kept} items of earlier runs are no longer in the source, or fail there now; what was made of them "
            "stays in the folder"
        )
    if engine.num_splits:
        notes.append(f"memory ran out {engine.num_splits} times; batches were split, nothing was lost")
    return Summary(
        output=str(store.folder),
        num_rows=account.num_rows,
        num_done=done,
        num_failed=len(failures),
        num_skipped=skipped,
        num_pending=account.num_rows - done - len(failures) - skipped,
        num_new=engine.num_done,
        num_records=totals.num_records,
        num_silent=totals.num_silent,
        audio_s=totals.audio_s,
        elapsed_s=elapsed_s,
        bytes_written=store.bytes_written,
        failures=tuple(failures[:MAX_FAILURES_LISTED]),
        failure_kinds=dict(Counter(failure.kind for failure in failures)),
        stopped_by=stopped_by,
        notes=tuple(notes),
    )
