"""The words of the commit log: what is said about an item, a record, a file, a shard; and their JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from woodshed.contracts import Json
from woodshed.store.sealed import to_line

Status = Literal["done", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What identifies the state of an item's source when it was worked on."""

    id: str
    size_bytes: int = 0
    mtime_ns: int = 0
    digest: str = ""
    """Content digest of the sound, `xxh3_128:<hex>`."""
    meta_digest: str = ""
    """Digest of the caption and the other columns."""
    position: int | None = None
    """Running number of the item's first record over the whole plan."""
    shard: int | None = None
    """For packed layouts: which shard the plan put the item in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The latest committed word on an item."""

    id: str
    status: Status
    size_bytes: int
    mtime_ns: int
    digest: str
    meta_digest: str
    position: int | None
    shard: int | None
    num_records: int
    num_samples: int
    """Samples at the model's rate that the records stand for."""
    num_silent: int
    """Records that are flagged as silent."""
    num_bytes: int
    """Size of the item's files."""
    audio_s: float
    """Seconds of source audio."""
    kind: str
    """For failed and skipped items: a short stable word; empty when done."""
    reason: str


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the folder, as it was committed."""

    path: str
    """Below the output folder, with forward slashes."""
    num_bytes: int
    xxh3_64: str


@dataclass(frozen=True, slots=True)
class Blob:
    """Where a record of a packed layout lies until its shard is complete."""

    path: str
    offset: int
    num_bytes: int
    xxh3_64: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEntry:
    """One committed record."""

    id: str
    """Of its item."""
    index: int
    """Which record of its item."""
    position: int
    """Running number over the whole plan."""
    facts: Mapping[str, Json]
    """Small facts for sorting and sampling without opening a file: `start_sample`, `num_samples`, `total_samples`
    (of the whole source), `num_frames`, `valid_frames`, `silent`. `Reader.meta` has everything."""
    files: tuple[FileEntry, ...] = ()
    """The record's own files (layouts with files per record)."""
    shard: int | None = None
    """The complete shard that holds it (packed layouts)."""
    blob: Blob | None = None
    """Where it waits for its shard (packed layouts)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FullEntry(Entry):
    """An entry with its records."""

    records: tuple[RecordEntry, ...]


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A complete shard."""

    shard: int
    segment: int
    """Index of the segment that committed it: items with a later word are not in it."""
    num_items: int
    """Items of the plan that were settled in it, failed ones included."""
    files: tuple[FileEntry, ...]


@dataclass(slots=True)
class Totals:
    """Sums over the latest entries."""

    num_done: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    num_records: int = 0
    num_silent: int = 0
    num_bytes: int = 0
    audio_s: float = 0.0
    failure_kinds: Counter[str] = field(default_factory=Counter)


def entry_of(
    source: SourceFacts,
    status: Status,
    records: Sequence[RecordEntry],
    *,
    audio_s: float,
    kind: str = "",
    reason: str = "",
) -> Entry:
    """The word on an item whose records were just written."""
    num_bytes = sum(file.num_bytes for record in records for file in record.files)
    return Entry(
        id=source.id,
        size_bytes=source.size_bytes,
        mtime_ns=source.mtime_ns,
        digest=source.digest,
        meta_digest=source.meta_digest,
        position=source.position,
        shard=source.shard,
        status=status,
        num_records=len(records),
        num_samples=sum(int(record.facts.get("num_samples", 0)) for record in records),
        num_silent=sum(bool(record.facts.get("silent")) for record in records),
        num_bytes=num_bytes + sum(record.blob.num_bytes for record in records if record.blob is not None),
        audio_s=audio_s,
        kind=kind,
        reason=reason,
    )


def item_line(entry: Entry, records: list[Json], *, kept: Sequence[Json] = ()) -> bytes:
    """The log's line about an item; `records`, and what is `kept` of a failed one, as `record_json` gives them."""
    head = {
        "id": entry.id,
        "status": entry.status,
        "size": entry.size_bytes,
        "mtime": entry.mtime_ns,
        "digest": entry.digest,
        "meta": entry.meta_digest,
        "pos": entry.position,
        "shard": entry.shard,
        "n": entry.num_records,
        "samples": entry.num_samples,
        "silent": entry.num_silent,
        "bytes": entry.num_bytes,
        "s": entry.audio_s,
        "kind": entry.kind,
        "reason": entry.reason,
    }
    return to_line({**head, "records": records, **({"kept": list(kept)} if kept else {})})


def record_json(record: RecordEntry) -> Json:
    """A record as it stands in the log."""
    line: dict[str, Json] = {"pos": record.position, "facts": dict(record.facts)}
    if record.files:
        line["files"] = [[file.path, file.num_bytes, file.xxh3_64] for file in record.files]
    if record.blob is not None:
        line["blob"] = [record.blob.path, record.blob.offset, record.blob.num_bytes, record.blob.xxh3_64]
    return line
