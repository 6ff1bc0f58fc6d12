"""Plan first: every row is read, checked and given its place before anything is decoded.

The plan is cut into *units*: a few hundred items or ten minutes of audio, whichever comes first, with their batches.
A unit names its items in order, their places in the output and the composition of every batch. It is written down
before work starts and reused by every resume, worker and machine, so that the same plan gives the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

import xxhash

from woodshed.audio.clip import file_digest
from woodshed.audio.probe import probe
from woodshed.batching.pack import Batch, BatchLimits, pack
from woodshed.contracts import AudioInfo, BadRow, Encoder, Failure, Item, Json, Outline, Piece, RecordSpec
from woodshed.errors import ItemError
from woodshed.run.patience import STALL_S, BoundedMap, patience_s, stalled
from woodshed.store.entries import Entry
from woodshed.store.log import CommitLog

PROBE_ROWS = 512
"""Rows that are probed together: enough to keep the threads busy, few enough to keep memory flat."""

GONE_KINDS = ("missing", "unreadable")
"""What a bad row is called whose file is out of reach. What was encoded of it before is kept: a disk that is not
mounted must not cost what is done."""

TAKEN_BACK = "taken_back"
"""What an item has failed of whose files were found spoilt and taken back: it is always tried again."""

T = TypeVar("T")
_CANONICAL = json.JSONEncoder(sort_keys=True, default=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedItem:
    """An item with its place in the output."""

    item: Item
    meta_digest: str
    position: int
    """Running number of its first record."""
    num_records: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Work that is planned together: batches never cross its border."""

    number: int
    rank: int
    shard: int
    items: tuple[PlannedItem, ...]
    batches: tuple[Batch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What shapes the plan."""

    limits: BatchLimits
    ranks: int = 1
    unit_audio_s: float = 600.0
    unit_items: int = 256
    shard_bytes: int = 128 * 2**20
    shuffle_seed: int | None = None
    sort_items: int = 0
    """So many new items at a time are worked on in the order of their costs, the dearest first, so that items of one
    length share batches. Their places in the output keep the order of the source. 0 sorts nothing."""
    limit_items: int | None = None
    """Plan at most this many new items; the rest stays for a later run."""
    retry_failed: bool = False
    probe_threads: int = 8
    stall_s: float = STALL_S
    """Time in which a header must be read, besides the time to read the file."""


@dataclass(slots=True, kw_only=True)
class Account:
    """Every row of the source is in exactly one of these."""

    num_rows: int = 0
    num_done: int = 0
    """Done by an earlier run and unchanged."""
    num_pending: int = 0
    """Beyond a limit."""
    failures: list[Failure] = field(default_factory=list)
    skipped: list[Failure] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    resumed: dict[str, Item] = field(default_factory=dict)
    """Planned by an earlier run and not yet done."""
    new: list[PlannedItem] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Ids of items that are done, but whose source has changed: computed again."""
    gone: list[str] = field(default_factory=list)
    """Ids of items that are done, and whose source cannot be read any more: they stay done."""
    is_complete: bool = True
    """Whether all rows were read."""


def meta_digest(meta: Mapping[str, Json]) -> str:
    """Digest of an item's metadata: a new caption is a changed item.

    >>> meta_digest({}), meta_digest({"prompt": "rain"}) == meta_digest({"prompt": "snow"})
    ('', False)
    """
    if not meta:
        return ""
    text = _CANONICAL.encode(meta)
    return f"xxh3_64:{xxhash.xxh3_64_hexdigest(text.encode('ascii'))}"


def read_rows(
    rows: Iterable[Item | BadRow],
    log: CommitLog,
    planned: Mapping[str, PlannedItem],
    encoder: Encoder,
    options: PlanOptions,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> Account:
    """Sort every row into done, failed, skipped, planned before or new; probe the header of what is new.

    Args:
        log: what is committed.
        planned: items of earlier plans that are not yet done, by id; those that are unchanged keep their place.
        stopped: when true, reading ends and the account is not complete.

    Raises:
        WoodshedError: so many files hang that their disk must be at fault.
    """
    account = Account()
    reading = _Reading(log, planned, encoder, options, account, stopped)
    iterator = iter(rows)
    while (chunk := list(islice(iterator, PROBE_ROWS))) and not stopped():
        for row in chunk:
            reading.sort_in(row)
        if len(reading.fresh) >= PROBE_ROWS:
            reading.admit()
    reading.admit()
    account.is_complete = not stopped()
    return account


class _Reading:
    """Rows on their way into an account."""

    def __init__(
        self,
        log: CommitLog,
        planned: Mapping[str, PlannedItem],
        encoder: Encoder,
        options: PlanOptions,
        account: Account,
        stopped: Callable[[], bool],
    ) -> None:
        self._log, self._planned, self._options = log, planned, options
        self._account, self._stopped, self._encoder = account, stopped, encoder
        self.fresh: list[tuple[Item, str, Entry | None]] = []
        """Items to be looked at and the digests of their metadata; with an entry those that may have been touched or
        copied only."""
        self._probe = self._bounded(lambda item: _probed(item, encoder))
        self._digest = self._bounded(_digest)

    def _bounded(self, function: Callable[[Item], T]) -> BoundedMap[Item, T]:
        options = self._options
        return BoundedMap(
            function, num_threads=options.probe_threads, limit_s=lambda item: patience_s(item, options.stall_s)
        )

    def sort_in(self, row: Item | BadRow) -> None:
        """Account for one row, or put it with those that are looked at."""
        account = self._account
        account.num_rows += 1
        if isinstance(row, BadRow):
            self._sort_in_bad(row, self._log.entry(row.id))
            return
        meta = meta_digest(row.meta)
        if self._log.is_done(row.id, size_bytes=row.size_bytes, mtime_ns=row.mtime_ns, meta_digest=meta):
            account.num_done += 1
            return
        entry = self._log.entry(row.id)
        before = self._planned.get(row.id)
        if before is not None and _same_source(before, row, meta) and self._is_cut_alike(before):
            account.resumed[row.id] = row
        elif entry is None:
            self.fresh.append((row, meta, None))
        elif entry.size_bytes != row.size_bytes or entry.meta_digest != meta:
            self._start_anew(row, meta, entry)
        elif entry.mtime_ns == row.mtime_ns:
            self._settle(row, meta, entry)
        else:
            self.fresh.append((row, meta, entry if entry.digest else None))

    def _is_cut_alike(self, before: PlannedItem) -> bool:
        """Whether the encoder still cuts an item as planned: another release may use other windows."""
        try:
            return self._encoder.outline(before.item).pieces == before.pieces
        except ItemError:
            return False

    def _sort_in_bad(self, row: BadRow, entry: Entry | None) -> None:
        account = self._account
        if entry is not None and entry.status == "done" and row.kind in GONE_KINDS:
            account.gone.append(row.id)
            account.num_done += 1
            return
        target = account.skipped if row.skipped else account.failures
        target.append(Failure(id=row.id, kind=row.kind, reason=row.reason, line=row.line))

    def _start_anew(self, item: Item, meta: str, entry: Entry) -> None:
        if entry.status == "done":
            self._account.changed.append(item.id)
        self.fresh.append((item, meta, None))

    def _settle(self, item: Item, meta: str, entry: Entry) -> None:
        """The item is as it was when the log spoke of it."""
        account = self._account
        if entry.status == "done":
            account.num_done += 1
        elif entry.status == "failed" and (self._options.retry_failed or entry.kind == TAKEN_BACK):
            self.fresh.append((item, meta, None))
        else:
            target = account.failures if entry.status == "failed" else account.skipped
            target.append(Failure(id=item.id, kind=entry.kind, reason=entry.reason))

    def admit(self) -> None:
        """Look at what is fresh, and put it into the account in its order."""
        looked_at, self.fresh = self.fresh, []
        touched = [item for item, _, entry in looked_at if entry is not None]
        digests = dict(zip((item.id for item in touched), self._digest(touched, stopped=self._stopped), strict=True))
        for item, meta, entry in looked_at:
            if entry is None:
                self.fresh.append((item, meta, None))
            elif digests[item.id] == entry.digest:
                self._settle(item, meta, entry)
            elif digests[item.id] is None and entry.status == "done":
                self._account.gone.append(item.id)
                self._account.num_done += 1
            else:
                self._start_anew(item, meta, entry)
        new, self.fresh = [(item, meta) for item, meta, _ in self.fresh], []
        self._admit_new(new)

    def _admit_new(self, new: Sequence[tuple[Item, str]]) -> None:
        # Rows that cannot be read take none of the room: a limit that they use up would never let the others in.
        while new and (room := self._room()):
            self._admit_some(new[:room])
            if self._stopped():
                return
            new = new[room:]
        self._account.num_pending += len(new)

    def _room(self) -> int:
        """How many more items a limit lets in. What an interrupted run had planned counts: it is made by this one."""
        if self._options.limit_items is None:
            return PROBE_ROWS
        return max(0, self._options.limit_items - len(self._account.new) - len(self._account.resumed))

    def _admit_some(self, new: Sequence[tuple[Item, str]]) -> None:
        account = self._account
        announced = [_announced(item, self._encoder) for item, _ in new]
        unknown = [item for (item, _), known in zip(new, announced, strict=True) if known is None]
        probed = iter(self._probe(unknown, stopped=self._stopped))
        if self._stopped():
            return
        for (item, meta), known in zip(new, announced, strict=True):
            result = next(probed) if known is None else known
            if result is None:
                result = stalled(item, patience_s(item, self._options.stall_s))
            if isinstance(result, ItemError):
                account.failures.append(Failure(id=item.id, kind=result.kind, reason=str(result)))
                continue
            info, outline = result
            account.formats[info.format] += 1
            account.new.append(
                PlannedItem(
                    item=item if item.audio is info else replace(item, audio=info),
                    meta_digest=meta,
                    position=-1,
                    num_records=outline.num_records,
                    pieces=outline.pieces,
                )
            )


def _same_source(before: PlannedItem, row: Item, meta: str) -> bool:
    item = before.item
    same_file = (item.size_bytes, item.mtime_ns) == (row.size_bytes, row.mtime_ns)
    return same_file and before.meta_digest == meta


def _digest(item: Item) -> str | None:
    try:
        return file_digest(item.path)
    except (OSError, ItemError):
        return None


def _announced(item: Item, encoder: Encoder) -> tuple[AudioInfo, Outline] | None:
    """What the source says of the length spares the plan one look into every file; a wrong length costs no row."""
    if item.audio is None:
        return None
    try:
        return item.audio, encoder.outline(item)
    except ItemError:
        return None


def _probed(item: Item, encoder: Encoder) -> tuple[AudioInfo, Outline] | ItemError:
    try:
        info = probe(item.path)
        return info, encoder.outline(replace(item, audio=info))
    except ItemError as error:
        return error


def make_units(
    items: Sequence[PlannedItem], options: PlanOptions, spec: RecordSpec, *, unit: int, position: int, shard: int
) -> list[Unit]:
    """Give new items their places and cut them into units, counting on from `unit`, `position` and `shard`."""
    placed = []
    for planned in items:
        placed.append(altered(planned, item=planned.item, position=position))
        position += planned.num_records
    units: list[Unit] = []
    shard_bytes = 0
    for group in _groups(_sorted(placed, options.sort_items), options):
        size = estimate_bytes(group, spec)
        if shard_bytes and shard_bytes + size > options.shard_bytes:
            shard, shard_bytes = shard + 1, 0
        shard_bytes += size
        number = unit + len(units)
        batches = pack([planned.pieces for planned in group], options.limits)
        units.append(
            Unit(number=number, rank=number % options.ranks, shard=shard, items=tuple(group), batches=tuple(batches))
        )
    return units


def altered(planned: PlannedItem, *, item: Item, position: int) -> PlannedItem:
    """The same item elsewhere, or with another state of its source."""
    # `dataclasses.replace` takes three times as long, and there may be millions
    return PlannedItem(
        item=item,
        meta_digest=planned.meta_digest,
        position=position,
        num_records=planned.num_records,
        pieces=planned.pieces,
    )


def _sorted(items: Sequence[PlannedItem], size: int) -> Sequence[PlannedItem]:
    if size == 0:
        return items
    windows = (items[start : start + size] for start in range(0, len(items), size))
    return [planned for window in windows for planned in sorted(window, key=_cost_s, reverse=True)]


def _cost_s(planned: PlannedItem) -> float:
    return sum(piece.cost_s for piece in planned.pieces)


def _groups(items: Sequence[PlannedItem], options: PlanOptions) -> Iterator[list[PlannedItem]]:
    group: list[PlannedItem] = []
    cost_s = 0.0
    for planned in items:
        own_s = _cost_s(planned)
        if group and (len(group) == options.unit_items or cost_s + own_s > options.unit_audio_s):
            yield group
            group, cost_s = [], 0.0
        group.append(planned)
        cost_s += own_s
    if group:
        yield group


def estimate_bytes(items: Iterable[PlannedItem], spec: RecordSpec, *, padded_samples: int | None = None) -> int:
    """Bytes of the arrays of these items: frames times the size of a frame, and what each record needs besides.

    Args:
        padded_samples: length that every record is filled up to, at the model's rate; None where none is.
    """
    per_frame = sum(array.bytes_per_frame for array in spec.arrays.values())
    frame_s = spec.hop_samples / spec.rate_hz
    items = list(items)
    num_records = sum(planned.num_records for planned in items)
    per_record = sum(array.bytes_per_record for array in spec.arrays.values())
    if padded_samples is not None:
        return num_records * (padded_samples // spec.hop_samples * per_frame + per_record)
    seconds = sum(planned.item.audio.duration_s for planned in items if planned.item.audio)
    return round(seconds / frame_s * per_frame) + num_records * per_record
