"""Sounds below one or more folders, in an order that no file system can change.

Rows come in the order of the bytes of their path, component by component. Names that start with a dot are left out, as
are output folders of Woodshed (those that hold a `.woodshed` folder) and the folders in `exclude`. Links to files are
files. A link to a folder is followed when nothing else leads there; otherwise it is reported as a duplicate, so links
that run in circles end.
"""

# A data set can hold millions of files: `pathlib` takes several times as long per file as `os`.
# ruff: noqa: PTH100, PTH116, PTH122

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from woodshed.contracts import BadRow, Item
from woodshed.errors import ItemError, UsageError
from woodshed.sources.sidecar import SUFFIXES as SIDECAR_SUFFIXES
from woodshed.sources.sidecar import read_sidecars

AUDIO_SUFFIXES = frozenset(
    (
        *(".wav", ".wave", ".flac", ".mp3", ".mp2", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".m4a", ".m4b"),
        *(".mp4", ".aac", ".wma", ".webm", ".mka", ".ac3", ".w64", ".rf64", ".caf", ".au", ".snd", ".voc", ".wv"),
        *(".ape", ".tta", ".amr", ".3gp", ".g722", ".sph", ".nist"),
    )
)
"""Suffixes, in any case, by which a file counts as a sound."""

MARKER = ".woodshed"
MAX_SUFFIXES_COUNTED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """One folder to read; `label` stands before the ids of its rows where there is more than one root."""

    path: str
    label: str | None = None


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder on the way: how it is opened, its name for the user, and where it really lies (all end in a slash)."""

    path: str
    rel: str
    real: str


@dataclass(slots=True)
class _Listing:
    names: list[str] = field(default_factory=list)
    """Folders and sounds, in order."""
    folders: dict[str, bool] = field(default_factory=dict)
    """Which of the names are folders, and whether by a link."""
    sidecars: set[str] = field(default_factory=set)
    """Names of files that may belong to a sound."""
    is_output: bool = False


def read_folders(
    roots: Sequence[Root], *, exclude: Sequence[str] = (), captions: bool = True
) -> Iterator[Item | BadRow]:
    """All sounds below the roots, one root after the other; with `captions`, the metadata beside each comes along.

    A file that two roots lead to is a row of the first and a skipped duplicate of the second.

    Raises:
        UsageError: when a root lies in an excluded folder; while reading, when no root holds any sound.
    """
    walk = _Walk(roots, exclude, captions=captions)
    return walk.rows()


def file_row(path: str, *, row_id: str, relpath: str, sidecars: Sequence[str]) -> Item | BadRow:
    """The row of one file: its size and time of change, and the metadata beside it.

    Args:
        sidecars: suffixes of the sidecars that are looked for.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return BadRow(id=row_id, kind="not_a_file", reason=f"{relpath!r} is not a regular file")
        meta = read_sidecars(os.path.splitext(path)[0], sidecars) if sidecars else {}
    except FileNotFoundError:
        return BadRow(id=row_id, kind="missing", reason=f"{relpath!r} does not exist, or is a link to nothing")
    except OSError as error:
        return BadRow(id=row_id, kind="unreadable", reason=f"{relpath!r} cannot be read: {error.strerror}")
    except ItemError as error:
        return BadRow(id=row_id, kind=error.kind, reason=str(error))
    return Item(
        id=row_id, path=path, relpath=relpath, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns, meta=meta
    )


class _Walk:
    """One pass over all roots; remembers only what is needed to read no folder twice."""

    def __init__(self, roots: Sequence[Root], exclude: Sequence[str], *, captions: bool) -> None:
        self.roots, self.captions = roots, captions
        self.reals = [_slashed(os.path.realpath(root.path)) for root in roots]
        self.excluded = {_slashed(os.path.realpath(path)) for path in exclude}
        for root, real in zip(roots, self.reals, strict=True):
            if any(real.startswith(folder) for folder in self.excluded):
                raise UsageError(
                    f"the input folder {root.path} lies in a folder that is left out, such as the output folder",
                    hint="write the output to another folder; it may lie inside the input folder",
                )
        self.followed: set[str] = set()
        overlap = any(a.startswith(b) for i, a in enumerate(self.reals) for j, b in enumerate(self.reals) if i != j)
        self.first_ids: dict[str, str] | None = {} if overlap else None
        self.other_suffixes: Counter[str] = Counter()

    def rows(self) -> Iterator[Item | BadRow]:
        empty = True
        for root, real in zip(self.roots, self.reals, strict=True):
            for row in self._below(_Folder(_slashed(os.path.abspath(root.path)), "", real), root.label):
                empty = False
                yield row
        if empty:
            raise UsageError(*self._nothing())

    def _nothing(self) -> tuple[str]:
        folders = ", ".join(root.path for root in self.roots)
        seen = ", ".join(
            f"{count} {suffix or 'without suffix'}" for suffix, count in self.other_suffixes.most_common(8)
        )
        known = " ".join(sorted(AUDIO_SUFFIXES))
        return (f"no sound below {folders}: saw {f'only {seen}' if seen else 'no files'}; sounds end in {known}",)

    def _below(self, top: _Folder, label: str | None) -> Iterator[Item | BadRow]:
        prefix = "" if label is None else f"{label}/"
        pending: list[tuple[_Folder, _Listing, Iterator[str]]] = []
        step: _Folder | BadRow | None = top
        while step is not None or pending:
            if isinstance(step, _Folder):
                listing = self._list(step, prefix)
                if isinstance(listing, BadRow):
                    yield listing
                elif step is top or not listing.is_output:
                    pending.append((step, listing, iter(listing.names)))
            step = None
            if not pending:
                return
            folder, listing, names = pending[-1]
            name = next(names, None)
            if name is None:
                pending.pop()
            elif name in listing.folders:
                step = self._enter(folder, name, is_link=listing.folders[name], prefix=prefix)
                if isinstance(step, BadRow):
                    yield step
                    step = None
            else:
                yield self._sound(folder, name, listing, prefix)

    def _list(self, folder: _Folder, prefix: str) -> _Listing | BadRow:
        listing = _Listing()
        try:
            with os.scandir(folder.path) as entries:
                for entry in entries:
                    self._sort_in(entry, listing)
        except OSError as error:
            reason = f"the folder {folder.rel or '.'!r} cannot be read: {error.strerror}"
            return BadRow(id=prefix + (folder.rel or "./"), kind="unreadable_folder", reason=reason)
        if all(map(str.isascii, listing.names)):
            listing.names.sort()
        else:
            listing.names.sort(key=_name_bytes)
        return listing

    def _sort_in(self, entry: os.DirEntry[str], listing: _Listing) -> None:
        name = entry.name
        if name.startswith("."):
            listing.is_output |= name == MARKER and entry.is_dir()
            return
        if entry.is_dir():
            listing.folders[name] = entry.is_symlink()
            listing.names.append(name)
            return
        dot = name.rfind(".")
        suffix = name[dot:] if dot > 0 else ""
        if suffix in AUDIO_SUFFIXES or suffix.lower() in AUDIO_SUFFIXES:
            listing.names.append(name)
            return
        if self.captions and suffix in SIDECAR_SUFFIXES:
            listing.sidecars.add(name)
        if suffix in self.other_suffixes or len(self.other_suffixes) < MAX_SUFFIXES_COUNTED:
            self.other_suffixes[suffix] += 1

    def _sound(self, folder: _Folder, name: str, listing: _Listing, prefix: str) -> Item | BadRow:
        relpath = folder.rel + name
        row_id = prefix + relpath
        if self.first_ids is not None:
            first = self.first_ids.setdefault(folder.real + name, row_id)
            if first != row_id:
                return BadRow(id=row_id, kind="duplicate", reason=f"is the same file as {first!r}", skipped=True)
        suffixes: Sequence[str] = ()
        if listing.sidecars:
            stem = os.path.splitext(name)[0]
            suffixes = [suffix for suffix in SIDECAR_SUFFIXES if stem + suffix in listing.sidecars]
        return file_row(folder.path + name, row_id=row_id, relpath=relpath, sidecars=suffixes)

    def _enter(self, folder: _Folder, name: str, *, is_link: bool, prefix: str) -> _Folder | BadRow | None:
        path = folder.path + name
        real = _slashed(os.path.realpath(path)) if is_link else f"{folder.real}{name}/"
        if any(real.startswith(left_out) for left_out in self.excluded):
            return None
        if (is_link and self._leads_back(real)) or real in self.followed:
            reason = f"the folder {folder.rel + name!r} is a link to a folder that is read anyway, or is read by a link"
            return BadRow(id=f"{prefix}{folder.rel}{name}/", kind="duplicate", reason=reason, skipped=True)
        if is_link:
            self.followed.add(real)
        return _Folder(f"{path}/", f"{folder.rel}{name}/", real)

    def _leads_back(self, real: str) -> bool:
        """Whether the folder is read without this link, or holds a folder that is."""
        known = (*self.reals, *self.followed)
        return any(other.startswith(real) or _is_visible(real, below=other) for other in known)


def _is_visible(real: str, *, below: str) -> bool:
    return real.startswith(below) and not any(part.startswith(".") for part in real[len(below) :].split("/"))


def _slashed(path: str) -> str:
    return path if path.endswith("/") else f"{path}/"


def _name_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
