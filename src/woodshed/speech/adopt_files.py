"""A folder as IndexTTS2's own preprocessing leaves it: which files are whose, and how to read them without trust.

    codes/<id>.npy  text_ids/  condition/  emo_vec/      the id as it is, slashes and all
    train_manifest.jsonl  val_manifest.jsonl  stats.json  .preprocessing_progress.txt
    worker_NN/...                                        the same again, where the multi-process variant was interrupted

Nothing of it is written atomically, so any file may be torn, missing or stale.
"""

# Folders can hold millions of files: `pathlib` takes several times as long per file as `os`.
# ruff: noqa: PTH113, PTH118

from __future__ import annotations

import json
import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from woodshed.errors import ItemError
from woodshed.speech.manifests import PROGRESS, STATS, TRAIN, VAL
from woodshed.store.disk import Disk
from woodshed.store.folder import HOME

ARRAYS = ("text_ids", "codes", "condition", "emo_vec")
LEDGERS = (TRAIN, VAL, STATS, PROGRESS)
KEPT = f"{HOME}/adopted"
"""Where copies of the original's ledgers stay for ever."""
MAIN = "main"
"""Name of the place that is the folder itself."""
_WORKER = re.compile(r"worker_\d+")
_COPY_BYTES = 1 << 20
_TORN = (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError)
"""What numpy raises for a file that is not a whole array: its header is read as Python source."""


@dataclass(frozen=True, slots=True)
class FileSet:
    """The four files that may hold one row."""

    group: str
    """The places they lie in, such as `main` or `worker_00`: what one program run made together."""
    paths: tuple[str, ...]
    """Below the folder, in the order of `ARRAYS`."""


@dataclass(frozen=True, slots=True)
class Found:
    """All that a folder has of one row."""

    sets: tuple[FileSet, ...]
    """The sets to try, whole ones first."""
    paths: tuple[str, ...]
    """Every file that bears the row's name."""


@dataclass(frozen=True, slots=True)
class OriginalFolder:
    """A look at a folder that the original made. `places` are below it, each ending in a slash; the first is itself."""

    root: Path
    places: tuple[str, ...]

    @classmethod
    def at(cls, root: Path) -> OriginalFolder:
        """The folder as it is now, with its leftover workers."""
        names = sorted(path.name for path in root.glob("worker_*") if _WORKER.fullmatch(path.name) and path.is_dir())
        return cls(root, ("", *(f"{name}/" for name in names)))

    def find(self, row_id: str) -> Found:
        """What there is of a row, looked for by the names that the original gives."""
        if not is_followed(row_id):
            return Found((), ())
        by_place = {place: tuple(f"{place}{array}/{row_id}.npy" for array in ARRAYS) for place in self.places}
        there = {path for paths in by_place.values() for path in paths if os.path.isfile(os.path.join(self.root, path))}
        if not there:
            return Found((), ())
        sets = [FileSet(_name(place), paths) for place, paths in by_place.items() if there.issuperset(paths)]
        if not sets:
            # A merge that was interrupted moved some kinds of files and not the others.
            homes = [
                next((place for place in self.places if by_place[place][kind] in there), "")
                for kind in range(len(ARRAYS))
            ]
            paths = tuple(by_place[place][kind] for kind, place in enumerate(homes))
            sets = [FileSet("+".join(sorted({_name(place) for place in homes})), paths)]
        return Found(tuple(sets), tuple(sorted(there)))

    def listed_ids(self) -> set[str]:
        """Ids that any manifest or progress file names. Lines that cannot be read name nothing."""
        listed: set[str] = set()
        for place in self.places:
            for name in (TRAIN, VAL):
                listed.update(_manifest_ids(self.root / place / name))
            listed.update(_progress_ids(self.root / place / PROGRESS))
        return listed

    def files(self) -> Iterator[tuple[str, str]]:
        """Every feature file, as its path below the folder and the id that it bears."""
        for place in self.places:
            for array in ARRAYS:
                start = f"{place}{array}/"
                for path in _npy_files(self.root / start):
                    yield start + path, path.removesuffix(".npy")

    def keep_ledgers(self, disk: Disk) -> None:
        """Copy manifests, statistics and progress files below `KEPT`; those that are there stay as they are.

        Raises:
            StoreError: the disk refuses.
        """
        for place in self.places:
            for name in LEDGERS:
                source, target = self.root / place / name, self.root / KEPT / place / name
                if not source.is_file() or target.exists():
                    continue
                make_folders(target.parent, disk)
                temporary = self.root / HOME / "tmp" / "adopted-ledger"
                disk.write(temporary, _chunks(source))
                put(temporary, target, disk)

    def remove(self, paths: Sequence[str], disk: Disk) -> None:
        """Remove feature files, and the folders that an id with slashes had made for them.

        Raises:
            StoreError: the disk refuses.
        """
        changed = set()
        for path in paths:
            disk.remove(self.root / path)
            parent = (self.root / path).parent
            while parent.name not in ARRAYS and parent.is_dir() and not any(parent.iterdir()):
                disk.remove_folder(parent)
                parent = parent.parent
            changed.add(parent)
        disk.sync(sorted(path for path in changed if path.is_dir()))

    def remove_empty_workers(self, disk: Disk) -> None:
        """Remove leftover workers without feature files; their ledgers have been kept.

        Raises:
            StoreError: the disk refuses.
        """
        for place in self.places[1:]:
            worker = self.root / place
            if any(next(_npy_files(worker / array), None) for array in ARRAYS):
                continue
            for name in LEDGERS:
                if (self.root / KEPT / place / name).exists():
                    disk.remove(worker / name)
            for folder in (*(worker / array for array in ARRAYS), worker):
                if folder.is_dir() and not any(folder.iterdir()):
                    disk.remove_folder(folder)
        disk.sync([self.root])


def is_originals(folder: Path) -> bool:
    """Whether a folder that is not ours looks like one that the original made."""
    if (folder / HOME / "run.json").exists():
        return False
    return any(_holds_features(folder / place) for place in OriginalFolder.at(folder).places)


def _holds_features(place: Path) -> bool:
    return all((place / name).is_dir() for name in ("codes", "text_ids")) or any(
        (place / name).is_file() for name in (TRAIN, VAL, PROGRESS)
    )


def is_followed(row_id: str) -> bool:
    """Whether a row's files are looked for under its id: only where they cannot lie elsewhere, nor be ours.

    An id with `~` or `%` could be the name that we give to another row's files.

    >>> [is_followed(row_id) for row_id in ("a/b", "é 1", "../x", "/x", "a//b", "./a", "", "a%2fb", "x\\0")]
    [True, True, False, False, False, False, False, False, False]
    """
    return not any(part in ("", ".", "..") for part in row_id.split("/")) and not any(sign in row_id for sign in "~%\0")


def load(root: Path, path: str) -> np.ndarray:
    """An array of the folder, in memory.

    Raises:
        ItemError: kinds `missing`, `unreadable`.
    """
    try:
        # Mapped first: a torn header may announce any size.
        array = np.load(root / path, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.ndarray):
            return np.array(array)
    except FileNotFoundError as error:
        raise ItemError(f"{path} is missing", kind="missing") from error
    except _TORN as error:
        raise ItemError(f"{path} is torn or no array: {error}", kind="unreadable") from error
    raise ItemError(f"{path} is an archive, not an array", kind="unreadable")


def _name(place: str) -> str:
    return place.removesuffix("/") or MAIN


def _npy_files(folder: Path) -> Iterator[str]:
    """Paths below a folder of all arrays in it; none where there is no such folder."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            entries = list(os.scandir(os.path.join(folder, below)))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{below}{entry.name}/")
            elif entry.name.endswith(".npy"):
                yield below + entry.name


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return


def _manifest_ids(path: Path) -> Iterator[str]:
    for line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("id"), (str, int)):
            yield str(row["id"])


def _progress_ids(path: Path) -> Iterator[str]:
    for line in _lines(path):
        if row_id := line.decode(errors="replace").strip():
            yield row_id


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            yield chunk


def make_folders(folder: Path, disk: Disk) -> None:
    """Make a folder and those above it, durably."""
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            disk.make_folder(path)
            disk.sync([path.parent])


def put(temporary: Path, target: Path, disk: Disk) -> None:
    """Bring a file that is written to its place, durably and atomically."""
    disk.sync([temporary])
    disk.rename(temporary, target)
    disk.sync([target.parent])
