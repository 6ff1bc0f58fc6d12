"""One commit about any number of items: their new files, what is derived from the log, and the run's own identity.

Files are written under temporary names as they come, and so is the segment that speaks of them; when all is durable the
segment appears, and then everything moves into place. `run.json` moves last: whoever reads a folder in between can tell
by the moves that are left that the run there is still the old one.
"""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import xxhash

from woodshed.contracts import Json
from woodshed.store.disk import Disk
from woodshed.store.entries import Entry, FileEntry, RecordEntry, item_line, record_json
from woodshed.store.folder import HOME, read_run, run_content
from woodshed.store.log import TMP, CommitLog
from woodshed.store.names import checked_relpath, safe_name
from woodshed.store.publish import Publisher
from woodshed.store.sealed import seal_end

_BLOCK_BYTES = 1 << 20
_SYNCED_TOGETHER = 4096
"""Files that are made durable at a time, so that millions do not wait for the end."""
KEPT = f"{HOME}/kept"
"""Where files of failed items lie, out of the way of readers."""


class Revision:
    """Made by `Store.revision`. First the words on items; then, after `foresee`, what is derived from the log.

    Every method raises `StoreError` when the disk refuses.
    """

    def __init__(self, folder: Path, disk: Disk, log: CommitLog, publisher: Publisher) -> None:
        self._folder, self._disk, self._publisher = folder, disk, publisher
        self.log = log
        """All that is committed; after `foresee`, all that will be."""
        self._moves: dict[str, str] = {}
        """Final name -> present name."""
        self._last: dict[str, str] = {}
        """The same, of what moves after all else."""
        self._removes: list[str] = []
        self._unsynced: list[Path] = []
        self._name = publisher.next_segment
        self._segment = folder / publisher.temporary()
        self._lines = _Appender(disk, self._segment)
        self._num_lines = 0
        self._is_foreseen = False

    def file(self, path: str, content: bytes) -> FileEntry:
        """Write a file that will lie at `path`."""
        self._move(checked_relpath(path), content)
        return FileEntry(path, len(content), xxhash.xxh3_64_hexdigest(content))

    def say(self, entry: Entry, records: Sequence[RecordEntry], *, kept: Sequence[RecordEntry] = ()) -> None:
        """A new word on an item; `kept` is what a failed one has given, in files below `KEPT`."""
        assert not self._is_foreseen, "words on items come before what is derived from them"
        line = item_line(entry, [record_json(record) for record in records], kept=[record_json(one) for one in kept])
        self._lines.write(line + b"\n")
        self._num_lines += 1

    def put_away(self, file: FileEntry) -> FileEntry:
        """Move a committed file out of the way of readers."""
        return self._moved(file, f"{KEPT}/{file.path}")

    def bring_back(self, file: FileEntry) -> FileEntry:
        """Move a file back that was put away."""
        return self._moved(file, file.path.removeprefix(f"{KEPT}/"))

    def _moved(self, file: FileEntry, path: str) -> FileEntry:
        self._moves[path] = file.path
        return FileEntry(path, file.num_bytes, file.xxh3_64)

    def remove(self, path: str) -> None:
        """Remove a committed file."""
        self._removes.append(path)

    def foresee(self) -> None:
        """All words are said: from now on `log` knows them."""
        self._is_foreseen = True
        if self._num_lines:
            self._lines.flush()
            self.log.add_file(self._name, self._lines.num_bytes, {"shards": []}, path=self._segment)

    def render(self, path: str, content: bytes) -> None:
        """Like `Store.render`."""
        target = self._folder / checked_relpath(path)
        if not (target.is_file() and target.read_bytes() == content):
            self._move(path, content)

    @contextmanager
    def draft(self, path: str) -> Iterator[Callable[[bytes], object]]:
        """Like `Store.draft`."""
        target, temporary = self._folder / checked_relpath(path), self._publisher.temporary()
        lines = _Appender(self._disk, self._folder / temporary)
        yield lines.write
        lines.flush()
        if target.is_file() and filecmp.cmp(self._folder / temporary, target, shallow=False):
            self._disk.remove(self._folder / temporary)
            return
        self._moves[path] = temporary
        self._will_sync(temporary)

    def note(self, name: str, content: bytes) -> None:
        """Like `Store.note`."""
        target = self._folder / HOME / safe_name(name)
        if not (target.is_file() and target.read_bytes() == content):
            self._move(f"{HOME}/{target.name}", content)

    def rename_run(self, fingerprint: Mapping[str, Json]) -> None:
        """Give the folder another fingerprint."""
        run = read_run(self._folder)
        assert run is not None, "an open folder has its run"
        content = run_content({**run, "fingerprint": dict(fingerprint)})
        if (self._folder / HOME / "run.json").read_bytes() != content:
            self._move(f"{HOME}/run.json", content)
            self._last[f"{HOME}/run.json"] = self._moves.pop(f"{HOME}/run.json")

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return not (self._num_lines or self._moves or self._last or self._removes)

    def publish(self) -> None:
        """Commit."""
        if not self._is_foreseen:
            self.foresee()
        if self.is_empty:
            return
        self._sync()
        self._disk.sync([self._folder / TMP])
        moved = [(now, final) for final, now in (*self._moves.items(), *self._last.items())]
        footer = {"lines": self._num_lines, "moves": moved, "removes": self._removes, "shards": []}
        self._lines.close(seal_end(footer, self._lines.digest))
        self._publisher.appear(self._name, self._segment)
        if self._num_lines:
            self.log.appeared(self._name)
        else:
            self.log.add_file(self._name, 0, {"shards": []})
        self._publisher.apply(moved, self._removes)

    def _move(self, path: str, content: bytes) -> None:
        temporary = self._publisher.temporary()
        self._disk.write(self._folder / temporary, [content])
        self._moves[path] = temporary
        self._will_sync(temporary)

    def _will_sync(self, temporary: str) -> None:
        self._unsynced.append(self._folder / temporary)
        if len(self._unsynced) >= _SYNCED_TOGETHER:
            self._sync()

    def _sync(self) -> None:
        if self._unsynced:
            self._disk.sync(self._unsynced)
            self._unsynced = []


class _Appender:
    """A file that is written in blocks."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk, self._path = disk, path
        self._waiting, self._waiting_bytes = list[bytes](), 0
        self._is_begun = False
        self.num_bytes, self.digest = 0, xxhash.xxh3_64()

    def write(self, content: bytes) -> None:
        self._waiting.append(content)
        self._waiting_bytes += len(content)
        if self._waiting_bytes >= _BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits; the file is there afterwards, if empty."""
        block = b"".join(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        if block or not self._is_begun:
            self._disk.write(self._path, [block], append=self._is_begun)
        self._is_begun = True
        self.num_bytes += len(block)
        self.digest.update(block)

    def close(self, end: bytes) -> None:
        """Write the last block, which `digest` leaves out."""
        self._disk.write(self._path, [end], append=True)
