"""The commit log: what is known about every item, as the union of sealed segments; the latest word on an item wins.

A segment is `.woodshed/commits/<worker>-<seq>.jsonl`: one line per item, and a footer that names the files to move
into place (`moves`), the files that the segment makes obsolete (`removes`) and the shards that it completes (`shards`).
The segment's own appearance is the moment of commit: files lie ready under temporary names before it, and move into
place after it; whoever opens the folder next finishes the moves of the last segment, should a crash have come between.
At start-up only the head of a line is parsed, everything up to its records; the rest is read when somebody asks.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from woodshed.contracts import Failure, Json
from woodshed.errors import StoreError
from woodshed.store.disk import disk_error
from woodshed.store.entries import Blob, Entry, FileEntry, RecordEntry, ShardEntry, Status, Totals
from woodshed.store.sealed import check_sealed

COMMITS = ".woodshed/commits"
STAGING = ".woodshed/staging"
TMP = ".woodshed/tmp"


_RECORDS = b',"records":'
"""Ends the head of a line. Inside a JSON string the quotes would be escaped, and no key before it has this name."""
_OPEN_SEGMENTS = 64
_HEADS_AT_ONCE = 16_384
"""Lines that are parsed together: a segment may hold a million."""
_STATUSES: tuple[Status, ...] = ("done", "failed", "skipped")
_STATUS = {name: number for number, name in enumerate(_STATUSES)}
_ABSENT = -1
_DIGEST = "xxh3_128:"
_DIGEST_BYTES = 16
_FIXED = struct.Struct("<BBqqqiiqiqdIQ")
"""Status, digest form, size, mtime, position, shard, num_records, num_samples, num_silent, num_bytes, audio_s,
segment, offset. The digests follow. A million entries as objects would need a gigabyte."""
_SOURCE = struct.Struct("<2xqqq")
"""Of those: size, mtime, position."""
_WHERE = struct.Struct("<26xi32xI8x")
"""Of those: shard, segment."""


class CommitLog:
    """All committed segments of one folder, indexed by item; about 350 bytes of memory per item.

    Raises:
        StoreError: a committed segment is damaged or unreadable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.totals = Totals()
        self.shards: dict[int, ShardEntry] = {}
        self.next_position = 0
        self.num_items_by_shard: Counter[int] = Counter()
        """Items whose latest word names that shard."""
        self.last_footer: Mapping[str, Json] | None = None
        self._segments: list[str] = []
        self._packed: dict[str, bytes] = {}
        self._reasons: dict[str, tuple[str, str]] = {}
        self._bodies: dict[str, mmap.mmap] = {}
        self._paths: dict[str, Path] = {}
        """Where segments lie that have not appeared yet."""

    @classmethod
    def read(cls, folder: Path, *, only_applied: bool = False) -> CommitLog:
        """Read every committed segment; with `only_applied`, leave out the last while its files are being moved."""
        log = cls(folder)
        names = sorted(committed_segments(folder), key=segment_order)
        for name in names:
            num_bytes, footer = check_sealed(folder / COMMITS / f"{name}.jsonl")
            if only_applied and name == names[-1] and any((folder / source).exists() for source, _ in footer["moves"]):
                break
            log.add_file(name, num_bytes, footer)
        return log

    @property
    def last_seq(self) -> int:
        """Number of the newest segment; -1 when there is none."""
        return segment_order(self._segments[-1])[0] if self._segments else -1

    def add_file(self, name: str, num_bytes: int, footer: Mapping[str, Json], *, path: Path | None = None) -> None:
        """Take the segment `name`, which must be newer than all before it.

        Args:
            num_bytes: length of its body.
            path: where it lies until `appeared` is called; unset: in its place.
        """
        if path is not None:
            self._paths[name] = path
        with _mapped(path or self._path(name)) as body:
            self.add(name, body, footer, num_bytes=num_bytes)

    def appeared(self, name: str) -> None:
        """The segment `name` lies in its place now."""
        self._paths.pop(name, None)
        self._bodies.pop(name, None)

    def _path(self, segment: str) -> Path:
        return self._paths.get(segment) or self.folder / COMMITS / f"{segment}.jsonl"

    def add(
        self, name: str, body: bytes | mmap.mmap, footer: Mapping[str, Json], *, num_bytes: int | None = None
    ) -> None:
        """Like `add_file`, from the content of a segment; `num_bytes` of it are its body, or all."""
        segment = len(self._segments)
        self.last_footer = footer
        self._segments.append(name)
        heads, offsets, start = list[bytes](), list[int](), 0
        body_end = len(body) if num_bytes is None else num_bytes
        while start < body_end:
            end = body.find(b"\n", start)
            heads.append(body[start : body.find(_RECORDS, start, end)])
            offsets.append(start)
            start = end + 1
            if len(heads) == _HEADS_AT_ONCE or start >= body_end:
                self._add_heads(json.loads(b"[" + b"},".join(heads) + b"}]"), offsets, segment)
                heads, offsets = [], []
        for shard in footer["shards"]:
            files = tuple(FileEntry(*file) for file in shard["files"])
            self.shards[shard["shard"]] = ShardEntry(shard["shard"], segment, shard["num_items"], files)

    def _add_heads(self, heads: list[dict[str, Json]], offsets: list[int], segment: int) -> None:
        # A million heads are read at every start: what is looked up once here is not looked up a million times.
        known, reasons, tally, pack = self._packed, self._reasons, self._tally, _FIXED.pack
        for head, offset in zip(heads, offsets, strict=True):
            item_id, digest, meta_digest, status = head["id"], head["digest"], head["meta"], _STATUS[head["status"]]
            position, shard, num_records = head["pos"], head["shard"], head["n"]
            if position is None:
                position = _ABSENT
            elif position + num_records > self.next_position:
                self.next_position = position + num_records
            before = known.get(item_id)
            if before is not None:
                tally(item_id, before, -1)
            raw = _raw_digest(digest)
            known[item_id] = packed = pack(
                status, raw is not None, head["size"], head["mtime"], position, _ABSENT if shard is None else shard,
                num_records, head["samples"], head["silent"], head["bytes"], head["s"], segment, offset,
            ) + (f"{digest}\0{meta_digest}".encode() if raw is None else raw + meta_digest.encode())  # fmt: skip
            if status:
                reasons[item_id] = (head["kind"], head["reason"])
            elif before is not None:
                reasons.pop(item_id, None)
            tally(item_id, packed, 1)

    def _tally(self, item_id: str, packed: bytes, sign: int) -> None:
        status, _, _, _, _, shard, num_records, _, num_silent, num_bytes, audio_s, _, _ = _FIXED.unpack_from(packed)
        totals = self.totals
        if shard != _ABSENT:
            self.num_items_by_shard[shard] += sign
        if status == 0:
            totals.num_done += sign
            totals.num_records += sign * num_records
            totals.num_silent += sign * num_silent
            totals.num_bytes += sign * num_bytes
            totals.audio_s += sign * audio_s
        elif status == 1:
            totals.num_failed += sign
            kind = self._reasons[item_id][0]
            totals.failure_kinds[kind] += sign
            if totals.failure_kinds[kind] == 0:
                del totals.failure_kinds[kind]
        else:
            totals.num_skipped += sign

    def __len__(self) -> int:
        return len(self._packed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def entry(self, item_id: str) -> Entry | None:
        """The latest committed word on an item."""
        packed = self._packed.get(item_id)
        if packed is None:
            return None
        (status, short, size, mtime, position, shard, num_records, num_samples, num_silent, num_bytes, audio_s, _,
         _) = _FIXED.unpack_from(packed)  # fmt: skip
        tail = packed[_FIXED.size :]
        if short:
            digest, meta_digest = _DIGEST + tail[:_DIGEST_BYTES].hex(), tail[_DIGEST_BYTES:].decode()
        else:
            digest, meta_digest = tail.decode().split("\0")
        kind, reason = self._reasons.get(item_id, ("", ""))
        return Entry(
            id=item_id, status=_STATUSES[status], size_bytes=size, mtime_ns=mtime, digest=digest,
            meta_digest=meta_digest, position=None if position == _ABSENT else position,
            shard=None if shard == _ABSENT else shard, num_records=num_records, num_samples=num_samples,
            num_silent=num_silent, num_bytes=num_bytes, audio_s=audio_s, kind=kind, reason=reason,
        )  # fmt: skip

    def is_done(self, item_id: str, *, size_bytes: int, mtime_ns: int, meta_digest: str) -> bool:
        """Whether the latest word on an item is that it is done, from a source of this state. Quicker than `entry`."""
        packed = self._packed.get(item_id)
        if packed is None or packed[0] or not packed[1]:
            return False
        size, mtime, _ = _SOURCE.unpack_from(packed)
        return (size, mtime) == (size_bytes, mtime_ns) and packed[_FIXED.size + _DIGEST_BYTES :] == meta_digest.encode()

    def is_at(self, item_id: str, position: int) -> bool:
        """Whether the latest word on an item came under this position of the plan."""
        packed = self._packed.get(item_id)
        return packed is not None and _SOURCE.unpack_from(packed)[2] == position

    def records(self, item_id: str) -> tuple[RecordEntry, ...]:
        """The records of a committed item, read from its segment."""
        return self._records(item_id, "records")

    def kept(self, item_id: str) -> tuple[RecordEntry, ...]:
        """What a failed item had given before it failed, out of the way of readers; mostly nothing."""
        return self._records(item_id, "kept")

    def _records(self, item_id: str, key: str) -> tuple[RecordEntry, ...]:
        packed = self._packed[item_id]
        segment, offset = _FIXED.unpack_from(packed)[-2:]
        body = self._body(self._segments[segment])
        line = json.loads(body[offset : body.find(b"\n", offset)])
        shard = self.shards.get(line["shard"]) if line["shard"] is not None else None
        in_shard = shard is not None and shard.segment > segment
        return tuple(
            RecordEntry(
                id=item_id,
                index=index,
                position=record["pos"],
                facts=record["facts"],
                files=tuple(FileEntry(*file) for file in record.get("files", ())),
                shard=line["shard"] if in_shard else None,
                blob=Blob(*record["blob"]) if "blob" in record and not in_shard else None,
            )
            for index, record in enumerate(line.get(key, ()))
        )

    def _body(self, segment: str) -> mmap.mmap:
        if segment not in self._bodies:
            if len(self._bodies) >= _OPEN_SEGMENTS:
                del self._bodies[next(iter(self._bodies))]
            self._bodies[segment] = _mapped(self._path(segment))
        return self._bodies[segment]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bodies": {}}

    def is_in_shard(self, item_id: str) -> bool:
        """Whether a complete shard holds the latest records of an item of a packed layout."""
        shard, segment = _WHERE.unpack_from(self._packed[item_id])
        complete = self.shards.get(shard)
        return complete is not None and complete.segment > segment

    def is_shard_used(self, shard: int) -> bool:
        """Whether the latest records of any item lie in the files of a complete shard."""
        return any(
            packed[0] == 0 and _WHERE.unpack_from(packed)[0] == shard and self.is_in_shard(item_id)
            for item_id, packed in self._packed.items()
        )

    def unpacked_items(self) -> Iterator[str]:
        """Items that have a shard whose files do not hold their latest word yet."""
        newest = {shard: complete.segment for shard, complete in self.shards.items()}
        for item_id, packed in self._packed.items():
            shard, segment = _WHERE.unpack_from(packed)
            if shard != _ABSENT and newest.get(shard, -1) <= segment:
                yield item_id

    def in_order(self) -> list[str]:
        """Ids by position in the plan: the same for every history of the folder. Items without position come last."""
        return sorted(self._packed, key=self._order)

    def _order(self, item_id: str) -> tuple[bool, int, str]:
        position: int = _FIXED.unpack_from(self._packed[item_id])[4]
        return (position == _ABSENT, position, item_id)

    def failures(self) -> Iterator[Failure]:
        """Every failed item with its reason."""
        for item_id, (kind, reason) in self._reasons.items():
            if self._packed[item_id][0] == 1:
                yield Failure(id=item_id, kind=kind, reason=reason)


def _mapped(path: Path) -> mmap.mmap:
    """A segment's content. Mapped, since one may be larger than memory has room for."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise disk_error("read", path, error) from error


def _raw_digest(digest: str) -> bytes | None:
    """The bytes of a digest in its usual form, which gives them back; None for any other text."""
    try:
        raw = bytes.fromhex(digest[len(_DIGEST) :])
    except ValueError:
        return None
    return raw if len(raw) == _DIGEST_BYTES and _DIGEST + raw.hex() == digest else None


def segment_order(name: str) -> tuple[int, str]:
    """Age of a segment, from its name.

    >>> sorted(["b-00000001", "a-00000010", "a-00000002"], key=segment_order)
    ['b-00000001', 'a-00000002', 'a-00000010']
    """
    worker, _, seq = name.rpartition("-")
    return int(seq), worker


def committed_segments(folder: Path) -> set[str]:
    """Names of all committed segments.

    Raises:
        StoreError: the folder cannot be listed, or holds a file that is not a segment.
    """
    try:
        names = {path.name for path in (folder / COMMITS).iterdir()}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise disk_error("list", folder / COMMITS, error) from error
    strange = sorted(name for name in names if not re.fullmatch(r"[a-z0-9_]+-\d{8,}\.jsonl", name))
    if strange:
        raise StoreError(
            f"{folder / COMMITS} holds files that are no commit segments: {', '.join(strange[:5])}",
            hint="move them elsewhere: only Woodshed may write there",
        )
    return {name.removesuffix(".jsonl") for name in names}
