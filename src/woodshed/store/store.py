"""The crash-proof output folder: one writer, group commits, recovery.

A group commit makes the files of all finished items durable under temporary names, then publishes one log segment
(the moment of commit), then moves the files to their final names. A crash before the segment leaves temporary files,
which the next opening sweeps; a crash after it leaves moves, which the next opening finishes. So an item is either
wholly there or wholly absent, and so is a new version of an item whose source changed.
"""

from __future__ import annotations

import filecmp
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import xxhash

from woodshed.contracts import Failure, Json, Layout, Place, Record, RecordSpec
from woodshed.errors import StoreError
from woodshed.store.disk import Disk
from woodshed.store.entries import (
    Blob,
    Entry,
    FileEntry,
    RecordEntry,
    SourceFacts,
    Totals,
    entry_of,
    item_line,
    record_json,
)
from woodshed.store.folder import HOME, Lock, claim, read_run, refuse_foreign
from woodshed.store.log import COMMITS, STAGING, TMP, CommitLog
from woodshed.store.names import checked_relpath, safe_name
from woodshed.store.packing import Packing
from woodshed.store.plan import PLAN, Plan
from woodshed.store.publish import Publisher
from woodshed.store.revision import Revision
from woodshed.store.shards import PackedLayout

__all__ = ["Entry", "ItemWriter", "SourceFacts", "Store", "Totals"]


@dataclass(slots=True)
class _Group:
    """Items that will be committed together."""

    lines: dict[str, bytes] = field(default_factory=dict)
    moves: dict[str, str] = field(default_factory=dict)
    """Final name -> temporary name."""
    num_bytes: int = 0
    since_s: float = 0.0
    staging: str | None = None
    """Final name of the file that collects the blobs of a packed layout."""
    staging_bytes: int = 0


class Store:
    """The writing side of an output folder. Open it with `Store.open`, in a `with` statement; one thread uses it.

    Every method raises `StoreError` when the disk refuses. After a failed commit the store takes nothing more;
    what was committed before is safe, and opening the folder again puts everything right.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        disk: Disk,
        lock: Lock,
        log: CommitLog,
        publisher: Publisher,
        *,
        group_s: float,
        group_bytes: int,
    ) -> None:
        self.folder, self._layout, self._disk, self._lock = folder, layout, disk, lock
        self._group_s, self._group_bytes = group_s, group_bytes
        self._log, self._publisher = log, publisher
        self._group = _Group()
        self._broken = False
        self.bytes_written = 0
        """Bytes of files that this opening wrote, in all."""
        self.plan = Plan(folder, disk)
        self._packing = Packing(layout, folder, self._log) if isinstance(layout, PackedLayout) else None
        if self._packing is not None:
            for path in self._packing.sweep(keep=None):
                disk.remove(folder / path)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        layout: Layout,
        fingerprint: Mapping[str, Json] | None,
        spec: RecordSpec,
        worker: str = "0",
        group_s: float = 2.0,
        group_bytes: int = 64 << 20,
        disk: Disk | None = None,
    ) -> Store:
        """Lock the folder, make it ours or check that it is, finish or sweep what a crash left, and read the log.

        Args:
            fingerprint: what changes numbers for all items; a folder made under another is refused. None: whatever
                the folder was made under.
            worker: prefix of the log segments (lower-case letters, digits, `_`).
            group_s: commit when the oldest finished item has waited so long.
            group_bytes: commit when so much has gathered.

        Raises:
            StoreError: the folder is locked, foreign, of another run, damaged, full or read-only.
        """
        folder, disk = Path(folder), disk or Disk()
        refuse_foreign(folder)
        home = folder / HOME
        for path in (*reversed(folder.parents), folder, home, folder / TMP, folder / COMMITS, folder / PLAN):
            if not path.is_dir():
                disk.make_folder(path)
                disk.sync([path.parent])
        lock = Lock(folder)
        try:
            read_run(folder)
            log = CommitLog.read(folder)
            publisher = Publisher(folder, disk, log, worker)
            # Before the run is compared: a revision that a crash interrupted may have changed it.
            publisher.recover()
            if fingerprint is None:
                fingerprint = (read_run(folder) or {}).get("fingerprint", {})
            claim(folder, {"layout": layout.name, "fingerprint": dict(fingerprint), "spec": asdict(spec)}, disk)
            return cls(folder, layout, disk, lock, log, publisher, group_s=group_s, group_bytes=group_bytes)
        except BaseException:
            lock.release()
            raise

    # ---- what is known

    def entry(self, item_id: str) -> Entry | None:
        """The latest committed word on an item."""
        return self._log.entry(item_id)

    @property
    def log(self) -> CommitLog:
        """All that is committed, to look things up in."""
        return self._log

    @property
    def totals(self) -> Totals:
        """Counts and sums over all committed items."""
        return self._log.totals

    def failures(self) -> Iterator[Failure]:
        """Every committed failure with its reason."""
        return self._log.failures()

    @property
    def next_position(self) -> int:
        """First running number that neither the plan nor any record has taken."""
        return max(self.plan.next_position, self._log.next_position)

    # ---- words on items

    def item(self, source: SourceFacts) -> ItemWriter:
        """Start to write an item's records; several items may be open at once. Use it in a `with` statement."""
        self._check()
        return ItemWriter(self, source)

    def fail(self, source: SourceFacts, *, kind: str, reason: str, audio_s: float = 0.0) -> None:
        """This item gave nothing, and why."""
        self._check()
        self._settle(entry_of(source, "failed", [], audio_s=audio_s, kind=kind, reason=reason), [])

    def skip(self, source: SourceFacts, *, kind: str, reason: str, audio_s: float = 0.0) -> None:
        """This item is left out by rule, and which."""
        self._check()
        self._settle(entry_of(source, "skipped", [], audio_s=audio_s, kind=kind, reason=reason), [])

    def expect_shards(self, num_items: Mapping[int, int]) -> None:
        """For packed layouts: how many items of the plan each shard has. A shard is written when all are settled."""
        if self._packing is not None:
            self._packing.expect(num_items)

    def render(self, path: str, content: bytes) -> None:
        """Write a file that is derived from the log and the settings (such as `details.json`), whole and atomically.

        Nothing happens when the file has this content already.
        """
        self._check()
        self._render(self.folder / checked_relpath(path), content)

    @contextmanager
    def draft(self, path: str) -> Iterator[Callable[[bytes], object]]:
        """Write a derived file piece by piece, through the function that this gives; it appears whole at the end.

        Nothing happens when the file has this content already, nor when an error ends it early.
        """
        self._check()
        target = self.folder / checked_relpath(path)
        temporary = self.folder / self._publisher.temporary()
        with self._disk.writing(temporary) as write:
            yield write
        if target.is_file() and filecmp.cmp(temporary, target, shallow=False):
            self._disk.remove(temporary)
            return
        self._publisher.settle(temporary, target)

    def note(self, name: str, content: bytes) -> None:
        """Like `render`, for `.woodshed/<name>`: facts about this machine, which do not travel with the data."""
        self._check()
        self._render(self.folder / HOME / safe_name(name), content)

    def _render(self, target: Path, content: bytes) -> None:
        if target.is_file() and target.read_bytes() == content:
            return
        self._publisher.place(target, content)

    @contextmanager
    def revision(self) -> Iterator[Revision]:
        """Say something new of many items, change files and the run's identity, all in one commit at the end.

        Nothing happens when an error ends it early; the store takes nothing more then.
        """
        self.commit()
        revision = Revision(self.folder, self._disk, self._log, self._publisher)
        try:
            yield revision
            revision.publish()
        except BaseException:
            self._broken = True
            raise

    def commit(self) -> None:
        """Make durable what is finished; on return it survives any crash. Complete shards are written, too."""
        self._check()
        try:
            self._commit_group()
            if self._packing is not None:
                for shard in self._packing.due():
                    self._commit_shard(self._packing, shard)
        except BaseException:
            self._broken = True
            raise

    def close(self) -> None:
        """Commit, and let others in."""
        try:
            if not self._broken and self._lock.is_held:
                self.commit()
        finally:
            self._broken = True
            self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside

    def _check(self) -> None:
        if self._broken:
            raise StoreError(
                f"{self.folder} takes no more items: it was closed, or a commit failed",
                hint="run the same command again: it goes on after the last commit",
            )

    def _write_temporary(self, content: bytes) -> str:
        temporary = self._publisher.temporary()
        self._disk.write(self.folder / temporary, [content])
        self.bytes_written += len(content)
        return temporary

    def _stage(self, content: bytes) -> Blob:
        """Add a blob to the group's staging file. A blob may outlive its group: an item can span several."""
        group = self._group
        if group.staging is None:
            temporary = self._publisher.temporary()
            group.staging = f"{STAGING}/{Path(temporary).name}.bin"
            group.moves[group.staging] = temporary
        assert self._packing is not None
        self._disk.write(self.folder / group.moves[group.staging], [content], append=True)
        self._packing.hold(group.staging)
        blob = Blob(group.staging, group.staging_bytes, len(content), xxhash.xxh3_64_hexdigest(content))
        group.staging_bytes += len(content)
        group.num_bytes += len(content)
        self.bytes_written += len(content)
        return blob

    def _settle(self, entry: Entry, records: list[RecordEntry], moves: Mapping[str, str] | None = None) -> None:
        if entry.id in self._group.lines:
            self.commit()
        group = self._group
        for final in moves or {}:
            if final in group.moves:
                raise StoreError(
                    f"two items claim the file {final}; the second is {entry.id!r}",
                    hint="report this: the plan gave one position twice",
                )
        if not group.lines:
            group.since_s = time.monotonic()
        group.lines[entry.id] = item_line(entry, [record_json(record) for record in records])
        if moves:
            group.moves.update(moves)
            group.num_bytes += entry.num_bytes
        if group.num_bytes >= self._group_bytes or time.monotonic() - group.since_s >= self._group_s:
            self.commit()

    def _commit_group(self) -> None:
        group = self._group
        if not group.lines:
            return
        self._group = _Group()
        removes = []
        for item_id in group.lines:
            if self._log.entry(item_id) is None:
                continue
            if self._packing is not None:
                self._packing.replace(item_id)
            before = (*self._log.records(item_id), *self._log.kept(item_id))
            old = [file.path for record in before for file in record.files]
            removes += [path for path in old if path not in group.moves]
        self._publisher.publish(list(group.lines.values()), group.moves, removes, [])
        if self._packing is not None:
            for item_id in group.lines:
                self._packing.settle(item_id)

    def _commit_shard(self, packing: Packing, shard: int) -> None:
        files, moves = [], {}
        for path, chunks in packing.layout.pack(shard, packing.blobs(shard)):
            temporary = self._publisher.temporary()
            content = _Measured(chunks)
            self._disk.write(self.folder / temporary, content)
            self.bytes_written += content.num_bytes
            files.append([checked_relpath(path), content.num_bytes, content.hash.hexdigest()])
            moves[path] = temporary
        old = self._log.shards.get(shard)
        removes = [] if old is None else [file.path for file in old.files if file.path not in moves]
        packing.spend(shard)
        removes += packing.sweep(keep=self._group.staging)
        line = {"shard": shard, "num_items": self._log.num_items_by_shard[shard], "files": files}
        self._publisher.publish([], moves, removes, [line])


class ItemWriter:
    """Takes the records of one item, in order; they go to the disk at once. Left without `done`, the item never was."""

    def __init__(self, store: Store, source: SourceFacts) -> None:
        self._store, self._source = store, source
        self._records: list[RecordEntry] = []
        self._moves: dict[str, str] = {}
        self._num_silent = 0
        self._open = True

    def write(self, record: Record, place: Place) -> None:
        """Write the next record.

        Raises:
            ItemError: the layout cannot hold it; nothing of this item will be stored.
            StoreError: the disk refuses.
        """
        assert self._open, "an item takes no records after `done`"
        store = self._store
        store._check()
        files, blob = [], None
        for path, content in store._layout.files(record, place):
            if store._packing is not None:
                blob = store._stage(content)
                continue
            self._moves[checked_relpath(path)] = store._write_temporary(content)
            files.append(FileEntry(path, len(content), xxhash.xxh3_64_hexdigest(content)))
        self._records.append(
            RecordEntry(
                id=self._source.id,
                index=place.index,
                position=place.position,
                facts=store._layout.facts(record, place),
                files=tuple(files),
                blob=blob,
            )
        )

    def done(self, *, audio_s: float) -> None:
        """All records are written; `audio_s` are the seconds of source audio that they stand for."""
        assert self._open, "an item is done once"
        self._open = False
        self._store._check()
        entry = entry_of(self._source, "done", self._records, audio_s=audio_s)
        self._store._settle(entry, self._records, self._moves)

    def __enter__(self) -> ItemWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Forget what was written of this item. Harmless after `done`."""
        if not self._open:
            return
        self._open = False
        store = self._store
        if store._packing is not None:
            store._packing.let_go([record.blob.path for record in self._records if record.blob is not None])
        for temporary in self._moves.values():
            store._disk.remove(store.folder / temporary)


class _Measured:
    """Chunks on their way to the disk, counted and hashed as they pass."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self.num_bytes, self.hash = 0, xxhash.xxh3_64()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.num_bytes += len(chunk)
            self.hash.update(chunk)
            yield chunk
