"""Disks that fail at the k-th call, die at the k-th call, or lose what was not brought to the disk when power fails."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

from woodshed.store.disk import Disk, disk_error


class Killed(BaseException):
    """The process is gone: nothing may reach the disk after this."""


class CountingDisk(Disk):
    """Counts calls. At the k-th one it fails once with `code`; without a code the process dies there."""

    def __init__(self, k: int | None = None, *, code: int | None = None) -> None:
        self.calls, self._k, self._code, self._dead = 0, k, code, False

    def _step(self, action: str, path: Path) -> None:
        if self._dead:
            raise Killed
        if self.calls == self._k:
            self.calls += 1
            if self._code is None:
                self._dead = True
                raise Killed
            raise disk_error(action, path, OSError(self._code, errno.errorcode[self._code]))
        self.calls += 1

    def make_folder(self, path: Path) -> None:
        self._step("create the folder", path)
        super().make_folder(path)

    def write(self, path: Path, chunks: Iterable[bytes], *, append: bool = False) -> None:
        if self.calls == self._k and not self._dead:
            content = b"".join(chunks)
            super().write(path, [content[: len(content) // 2]], append=append)
        self._step("write", path)
        super().write(path, chunks, append=append)

    def sync(self, paths: Sequence[Path]) -> None:
        self._step("bring to the disk", paths[0] if paths else Path())

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename to", target)
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._step("remove", path)
        super().remove(path)


class PowerCutDisk(CountingDisk):
    """Keeps account of what would survive a power cut: contents that were synced, names whose folder was synced.

    Of all else, `cut_power` keeps a random part: names one by one, contents whole, cut, zeroed or not at all.
    """

    def __init__(self, root: Path, k: int | None = None) -> None:
        super().__init__(k)
        self._root = root
        self._files = 0
        self._names: dict[Path, int | None] = {}
        self._safe_content: dict[int, bytes] = {}
        for path in sorted(root.rglob("*")):
            self._names[path] = None if path.is_dir() else self._new_file()
            if path.is_file():
                self._safe_content[self._files] = path.read_bytes()
        self._safe_names = dict(self._names)
        self._pending: list[tuple[dict[Path, int | None], tuple[Path, ...]]] = []
        """Names set, names removed."""

    def _new_file(self) -> int:
        self._files += 1
        return self._files

    def make_folder(self, path: Path) -> None:
        super().make_folder(path)
        self._names[path] = None
        self._pending.append(({path: None}, ()))

    def write(self, path: Path, chunks: Iterable[bytes], *, append: bool = False) -> None:
        if path not in self._names:
            self._names[path] = self._new_file()
            self._pending.append(({path: self._files}, ()))
        super().write(path, chunks, append=append)

    def sync(self, paths: Sequence[Path]) -> None:
        super().sync(paths)
        for path in paths:
            if path.is_dir():
                for change in [c for c in self._pending if any(name.parent == path for name in (*c[0], *c[1]))]:
                    self._pending.remove(change)
                    self._keep(change)
            else:
                number = self._names[path]
                assert number is not None
                self._safe_content[number] = path.read_bytes()

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._names[target] = self._names.pop(source)
        self._pending.append(({target: self._names[target]}, (source,)))

    def remove(self, path: Path) -> None:
        super().remove(path)
        if self._names.pop(path, None) is not None:
            self._pending.append(({}, (path,)))

    def _keep(self, change: tuple[dict[Path, int | None], tuple[Path, ...]]) -> None:
        self._safe_names.update(change[0])
        for name in change[1]:
            self._safe_names.pop(name, None)

    def cut_power(self, rng: Random) -> None:
        """Leave on the real disk what a power cut now would leave."""
        now = {number: path.read_bytes() for path, number in self._names.items() if number is not None}
        for change in self._pending:
            if rng.random() < 0.5:
                self._keep(change)
        for path in self._root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path, number in sorted(self._safe_names.items()):
            if path == self._root or self._root not in path.parents or not path.parent.is_dir():
                continue
            if number is None:
                path.mkdir(exist_ok=True)
                continue
            safe = self._safe_content.get(number, b"")
            # What lost its name keeps its content for as long as the loss is not durable.
            last = now.get(number, safe)
            if last != safe:
                cut = last[: rng.randrange(len(last) + 1)]
                safe = rng.choice([safe, last, cut, bytes(len(last))])
            path.write_bytes(safe)
