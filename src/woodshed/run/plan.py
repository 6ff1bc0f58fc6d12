"""Plan first: every row is read, checked and given its place before anything is decoded.

The plan is cut into *units*: a few hundred items or ten minutes of audio, whichever comes first, with their batches.
A unit names its items in order, their places in the output and the composition of every batch. It is written down
before work starts and reused by every resume, worker and machine, so that the same plan gives the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice

import xxhash

from woodshed.audio.clip import file_digest
from woodshed.audio.probe import probe
from woodshed.batching.pack import Batch, BatchLimits, pack
from woodshed.contracts import AudioInfo, BadRow, Encoder, Failure, Item, Json, Outline, Piece, RecordSpec
from woodshed.errors import ItemError
from woodshed.store.store import Entry

PROBE_ROWS = 512
"""Rows that are probed together: enough to keep the threads busy, few enough to keep memory flat."""


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

    def to_json(self) -> dict[str, Json]:
        return {
            "unit": self.number,
            "rank": self.rank,
            "shard": self.shard,
            "items": [
                {
                    "id": planned.item.id,
                    "size": planned.item.size_bytes,
                    "mtime_ns": planned.item.mtime_ns,
                    "meta_digest": planned.meta_digest,
                    "audio": asdict(planned.item.audio) if planned.item.audio else None,
                    "position": planned.position,
                    "records": planned.num_records,
                    "pieces": [[piece.key, piece.cost_s] for piece in planned.pieces],
                }
                for planned in self.items
            ],
            "batches": self.batches,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What shapes the plan."""

    limits: BatchLimits
    ranks: int = 1
    unit_audio_s: float = 600.0
    unit_items: int = 256
    shard_bytes: int = 128 * 2**20
    shuffle_seed: int | None = None
    limit_items: int | None = None
    """Plan at most this many new items; the rest stays for a later run."""
    retry_failed: bool = False
    probe_threads: int = 8


@dataclass(slots=True, kw_only=True)
class Account:
    """Every row of the source is in exactly one of these."""

    num_rows: int = 0
    num_done: int = 0
    """Done by an earlier run and unchanged."""
    num_pending: int = 0
    """Beyond a limit."""
    failures: list[Failure] = field(default_factory=list)
    known_failures: int = 0
    """Of the failures, those that the log holds already."""
    skipped: list[Failure] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    resumed: dict[str, Item] = field(default_factory=dict)
    """Planned by an earlier run and not yet done."""
    new: list[PlannedItem] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Ids of items that are done, but whose source has changed: computed again."""


def meta_digest(meta: Mapping[str, Json]) -> str:
    """Digest of an item's metadata: a new caption is a changed item.

    >>> meta_digest({}), meta_digest({"prompt": "rain"}) == meta_digest({"prompt": "snow"})
    ('', False)
    """
    if not meta:
        return ""
    text = json.dumps(meta, sort_keys=True, default=str)
    return f"xxh3_64:{xxhash.xxh3_64_hexdigest(text.encode('ascii'))}"


def read_rows(
    rows: Iterable[Item | BadRow],
    known: Callable[[str], Entry | None],
    planned: Mapping[str, PlannedItem],
    encoder: Encoder,
    options: PlanOptions,
) -> Account:
    """Sort every row into done, failed, skipped, planned before or new; probe the header of what is new.

    Args:
        known: looks an id up in the folder's log.
        planned: items of earlier plans that are not yet done, by id; those that are unchanged keep their place.
    """
    account = Account()
    with ThreadPoolExecutor(options.probe_threads, thread_name_prefix="probe") as pool:
        fresh: list[Item] = []
        iterator = iter(rows)
        while chunk := list(islice(iterator, PROBE_ROWS)):
            for row in chunk:
                if _is_new(row, known, planned, options, account) and isinstance(row, Item):
                    fresh.append(row)
            if len(fresh) >= PROBE_ROWS:
                _admit(fresh, pool, encoder, options, account)
                fresh = []
        _admit(fresh, pool, encoder, options, account)
    return account


def _is_new(
    row: Item | BadRow,
    known: Callable[[str], Entry | None],
    planned: Mapping[str, PlannedItem],
    options: PlanOptions,
    account: Account,
) -> bool:
    """Account for one row; True when it has to be probed and planned."""
    account.num_rows += 1
    if isinstance(row, BadRow):
        target = account.skipped if row.skipped else account.failures
        target.append(Failure(id=row.id, kind=row.kind, reason=row.reason))
        return False
    before = planned.get(row.id)
    if before is not None and _same_source(before, row):
        account.resumed[row.id] = row
        return False
    entry = known(row.id)
    if entry is None:
        return True
    if not _unchanged(entry, row):
        if entry.status == "done":
            account.changed.append(row.id)
        return True
    if entry.status == "done":
        account.num_done += 1
        return False
    if entry.status == "failed" and options.retry_failed:
        return True
    account.known_failures += entry.status == "failed"
    target = account.failures if entry.status == "failed" else account.skipped
    target.append(Failure(id=row.id, kind=entry.kind, reason=entry.reason))
    return False


def _same_source(before: PlannedItem, row: Item) -> bool:
    item = before.item
    same_file = (item.size_bytes, item.mtime_ns) == (row.size_bytes, row.mtime_ns)
    return same_file and before.meta_digest == meta_digest(row.meta)


def _unchanged(entry: Entry, row: Item) -> bool:
    if entry.meta_digest != meta_digest(row.meta) or entry.size_bytes != row.size_bytes:
        return False
    if entry.mtime_ns == row.mtime_ns:
        return True
    # touched or copied: only the content can tell
    try:
        return bool(entry.digest) and file_digest(row.path) == entry.digest
    except (OSError, ItemError):
        return False


def _admit(
    items: Sequence[Item], pool: ThreadPoolExecutor, encoder: Encoder, options: PlanOptions, account: Account
) -> None:
    """Probe new items and put them into the account, in their order."""
    room = len(items)
    if options.limit_items is not None:
        room = max(0, min(room, options.limit_items - len(account.new)))
        account.num_pending += len(items) - room
    for item, result in zip(items[:room], pool.map(lambda item: _outline(item, encoder), items[:room]), strict=True):
        if isinstance(result, ItemError):
            account.failures.append(Failure(id=item.id, kind=result.kind, reason=str(result)))
            continue
        info, outline = result
        account.formats[info.format] += 1
        account.new.append(
            PlannedItem(
                item=replace(item, audio=info),
                meta_digest=meta_digest(item.meta),
                position=-1,
                num_records=outline.num_records,
                pieces=outline.pieces,
            )
        )


def _outline(item: Item, encoder: Encoder) -> tuple[AudioInfo, Outline] | ItemError:
    try:
        info = probe(item.path)
        return info, encoder.outline(replace(item, audio=info))
    except ItemError as error:
        return error


def make_units(
    items: Sequence[PlannedItem], options: PlanOptions, spec: RecordSpec, *, unit: int, position: int, shard: int
) -> list[Unit]:
    """Give new items their places and cut them into units, counting on from `unit`, `position` and `shard`."""
    units: list[Unit] = []
    shard_bytes = 0
    for group in _groups(items, options):
        placed = []
        for planned in group:
            placed.append(replace(planned, position=position))
            position += planned.num_records
        size = estimate_bytes(placed, spec)
        if shard_bytes and shard_bytes + size > options.shard_bytes:
            shard, shard_bytes = shard + 1, 0
        shard_bytes += size
        number = unit + len(units)
        batches = pack([planned.pieces for planned in placed], options.limits)
        units.append(
            Unit(number=number, rank=number % options.ranks, shard=shard, items=tuple(placed), batches=tuple(batches))
        )
    return units


def _groups(items: Sequence[PlannedItem], options: PlanOptions) -> Iterator[list[PlannedItem]]:
    group: list[PlannedItem] = []
    cost_s = 0.0
    for planned in items:
        own_s = sum(piece.cost_s for piece in planned.pieces)
        if group and (len(group) == options.unit_items or cost_s + own_s > options.unit_audio_s):
            yield group
            group, cost_s = [], 0.0
        group.append(planned)
        cost_s += own_s
    if group:
        yield group


def estimate_bytes(items: Iterable[PlannedItem], spec: RecordSpec) -> int:
    """Bytes of the arrays of these items: frames times the size of a frame."""
    per_frame = sum(array.bytes_per_frame for array in spec.arrays.values())
    frame_s = spec.hop_samples / spec.rate_hz
    seconds = sum(planned.item.audio.duration_s for planned in items if planned.item.audio)
    return round(seconds / frame_s * per_frame)


def unit_from_json(line: Mapping[str, Json], items: Mapping[str, Item]) -> Unit:
    """A unit as it was written down; `items` gives paths and metadata of those that are still to be done.

    Items that are not in `items` (done, or gone from the source) keep their seat, so that batches keep their shape.
    """
    planned = []
    for row in line["items"]:
        audio = AudioInfo(**row["audio"]) if row["audio"] else None
        seat = Item(id=row["id"], path="", relpath=row["id"], size_bytes=row["size"], mtime_ns=row["mtime_ns"])
        planned.append(
            PlannedItem(
                item=replace(items.get(row["id"], seat), audio=audio),
                meta_digest=row["meta_digest"],
                position=row["position"],
                num_records=row["records"],
                pieces=tuple(Piece(key=key, cost_s=cost_s) for key, cost_s in row["pieces"]),
            )
        )
    batches = tuple(tuple((item, piece) for item, piece in batch) for batch in line["batches"])
    return Unit(number=line["unit"], rank=line["rank"], shard=line["shard"], items=tuple(planned), batches=batches)
