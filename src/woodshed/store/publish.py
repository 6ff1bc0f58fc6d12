"""The moment of commit: files made durable under temporary names, one segment published, files moved into place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from woodshed.contracts import Json
from woodshed.store.disk import Disk
from woodshed.store.log import COMMITS, TMP, CommitLog
from woodshed.store.sealed import check_sealed, seal


class Publisher:
    """Publishes segments into a folder, and puts right what a crash left behind.

    Every method raises `StoreError` when the disk refuses.
    """

    def __init__(self, folder: Path, disk: Disk, log: CommitLog, worker: str) -> None:
        self._folder, self._disk, self._log, self._worker = folder, disk, log, worker
        self._known_folders: set[Path] = set()
        self._session, self._serial = log.last_seq + 1, 0

    def temporary(self) -> str:
        """A new temporary name below the folder; no other opening of the folder that committed used it."""
        self._serial += 1
        return f"{TMP}/{self._session:08d}-{self._serial:08d}"

    def place(self, target: Path, content: bytes) -> None:
        """Write one file that is not in the log, durably and atomically."""
        temporary = self._folder / self.temporary()
        self._disk.write(temporary, [content])
        self.settle(temporary, target)

    def settle(self, temporary: Path, target: Path) -> None:
        """Bring a file that is written to its place, durably and atomically."""
        self._disk.sync([temporary])
        self._make_parents(target)
        self._disk.rename(temporary, target)
        self._disk.sync([target.parent])

    def publish(self, lines: list[bytes], moves: Mapping[str, str], removes: list[str], shards: list[Json]) -> None:
        """Commit.

        Args:
            lines: about items.
            moves: final name -> temporary name; the temporary files are written, not yet durable.
            removes: files that become obsolete.
            shards: shards that become complete.
        """
        if moves:
            self._disk.sync([*(self._folder / temporary for temporary in moves.values()), self._folder / TMP])
        name = self.next_segment
        moved = [(temporary, final) for final, temporary in moves.items()]
        footer = {"lines": len(lines), "moves": moved, "removes": removes, "shards": shards}
        temporary = self._folder / self.temporary()
        self._disk.write(temporary, [seal(lines, footer)])
        segment = self.appear(name, temporary)
        self._log.add_file(name, *check_sealed(segment))
        self.apply(moved, removes)

    @property
    def next_segment(self) -> str:
        """Name of the segment that comes next."""
        return f"{self._worker}-{self._log.last_seq + 1:08d}"

    def appear(self, name: str, temporary: Path) -> Path:
        """The moment of commit: bring a segment that is written to its place, durably. All it names is durable."""
        self._disk.sync([temporary])
        segment = self._folder / COMMITS / f"{name}.jsonl"
        self._disk.rename(temporary, segment)
        self._disk.sync([segment.parent])
        return segment

    def apply(self, moves: Iterable[tuple[str, str]], removes: Iterable[str]) -> None:
        """Do what a committed segment says, in its order: first the moves, then the removals."""
        changed = set()
        for temporary, final in moves:
            target = self._folder / final
            self._make_parents(target)
            self._disk.rename(self._folder / temporary, target)
            changed.add(target.parent)
            if not temporary.startswith(TMP):
                changed.add((self._folder / temporary).parent)
        for path in removes:
            target = self._folder / path
            if target.parent.is_dir():
                self._disk.remove(target)
                changed.add(target.parent)
        # Before the next segment appears: only the last segment is ever applied again.
        self._disk.sync(sorted(changed))

    def _make_parents(self, target: Path) -> None:
        for parent in reversed(target.relative_to(self._folder).parents):
            path = self._folder / parent
            if path not in self._known_folders and not path.is_dir():
                self._disk.make_folder(path)
                self._disk.sync([path.parent])
            self._known_folders.add(path)

    def recover(self) -> None:
        """Finish the moves of the last segment; sweep temporary files that no segment speaks of."""
        footer = self._log.last_footer
        if footer is not None:
            left = [(temporary, final) for temporary, final in footer["moves"] if (self._folder / temporary).exists()]
            self.apply(left, footer["removes"])
        for path in sorted((self._folder / TMP).iterdir()):
            self._disk.remove(path)
