"""Whose folder it is: the run's identity in `.woodshed/run.json`, and the lock that keeps a second process out."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import weakref
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

from woodshed.contracts import Json
from woodshed.errors import StoreError
from woodshed.store.disk import Disk, disk_error
from woodshed.store.log import COMMITS

HOME = ".woodshed"
FORMAT = 1
"""Version of the folder's own files."""
_HARMLESS = (".DS_Store", "._*", "Thumbs.db", "desktop.ini", ".directory", ".Trash*", ".fseventsd", ".Spotlight-V100",
             ".TemporaryItems", ".nfs*", "lost+found")  # fmt: skip
_SHOWN = 5


class OtherRunError(StoreError):
    """A folder was made by another run. `fields` names what differs, such as `fingerprint.model.sha`."""

    def __init__(self, message: str, *, hint: str | None = None, fields: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.fields = fields


def read_run(folder: Path) -> dict[str, Json] | None:
    """What `run.json` holds: `format`, `layout`, `fingerprint`, `spec`. None when there is no such file.

    Raises:
        StoreError: it cannot be read, or another version of Woodshed wrote it.
    """
    path = folder / HOME / "run.json"
    try:
        run: dict[str, Json] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise disk_error("read", path, error) from error
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}", hint="restore it from a backup, or use a new folder") from error
    if run.get("format") != FORMAT:
        raise StoreError(
            f"{folder} has folder format {run.get('format')!r}; this version of Woodshed reads format {FORMAT}",
            hint="use the version of Woodshed that made it, or a new folder",
        )
    return run


def run_content(run: Mapping[str, Json]) -> bytes:
    """What `run.json` holds for a run; `format` is added."""
    return json.dumps({"format": FORMAT, **run}, indent=1, sort_keys=True).encode() + b"\n"


def claim(folder: Path, run: Mapping[str, Json], disk: Disk) -> None:
    """Make the folder ours: create `run.json`, or check that what is there names the same run.

    Raises:
        StoreError: it is another run's; the message lists the fields that differ.
    """
    wanted = json.loads(json.dumps({"format": FORMAT, **run}))
    found = read_run(folder)
    if found is None:
        if any((folder / COMMITS).glob("*.jsonl")):
            raise StoreError(
                f"{folder} has commits but no {HOME}/run.json, so nobody can tell how they were made",
                hint="restore run.json from a backup, or use a new folder",
            )
        temporary = folder / HOME / "tmp" / "run.json"
        disk.write(temporary, [run_content(run)])
        disk.sync([temporary])
        disk.rename(temporary, folder / HOME / "run.json")
        disk.sync([folder / HOME])
        return
    refuse_other_run(folder, found, wanted)


def refuse_other_run(folder: Path, found: Mapping[str, Json], wanted: Mapping[str, Json]) -> None:
    """Compare what made a folder with what would go on with it.

    Raises:
        OtherRunError: they differ; the message lists the fields.
    """
    differences = list(differing(found, json.loads(json.dumps(wanted))))
    if differences:
        more = f"\n  and {len(differences) - 20} more" if len(differences) > 20 else ""
        raise OtherRunError(
            f"{folder} was made by another run; these differ (there -> now):\n  "
            + "\n  ".join(differences[:20])
            + more,
            hint="choose another output folder, or bring back the old settings to continue this one",
            fields=tuple(line.partition(": ")[0] for line in differences),
        )


def differing(old: Json, new: Json, path: str = "") -> Iterator[str]:
    """One line per leaf in which two JSON values differ.

    >>> list(differing({"model": {"sha": "a", "hop": 4}}, {"model": {"sha": "b", "hop": 4}, "seed": 0}))
    ["model.sha: 'a' -> 'b'", 'seed: (absent) -> 0']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            below = f"{path}.{key}" if path else key
            if key not in old:
                yield f"{below}: (absent) -> {_short(new[key])}"
            elif key not in new:
                yield f"{below}: {_short(old[key])} -> (absent)"
            else:
                yield from differing(old[key], new[key], below)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from differing(left, right, f"{path}[{index}]")
    elif old != new or type(old) is not type(new):
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds something which is not ours; what operating systems leave behind is no hindrance.

    Raises:
        StoreError: it is a file, cannot be listed, or holds foreign files.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise disk_error("list the output folder", folder, error) from error
    if HOME in names:
        return
    foreign = [name for name in names if not any(fnmatch(name, pattern) for pattern in _HARMLESS)]
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise StoreError(
            f"{folder} is not empty and was not made by Woodshed: it holds {', '.join(foreign[:_SHOWN])}{more}",
            hint="choose a new or empty output folder",
        )


class Lock:
    """Keeps all others out of a folder while it is held. The kernel frees it when its process ends, however it ends.

    Raises:
        StoreError: somebody holds it (the message says who), or the file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / HOME / "lock"
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise disk_error("open the lock", path, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sign()
        except OSError as error:
            holder = _holder(self._descriptor)
            os.close(self._descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise StoreError(
                    f"another run is writing to {folder}: {holder}",
                    hint="wait for it or stop it, or choose another output folder",
                ) from error
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise StoreError(
                    f"the file system of {folder} does not support locks, so two runs could spoil each other's work",
                    hint="use a folder on a local disk",
                ) from error
            raise disk_error("lock", path, error) from error
        _held.add(self)

    def _sign(self) -> None:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    @property
    def is_held(self) -> bool:
        return self._descriptor >= 0

    def release(self) -> None:
        """Let others in. Harmless when done before."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        _held.discard(self)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has not signed yet"


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for lock in list(_held):
        lock.release()


# A forked worker shares the lock's descriptor: without this it would keep a folder locked after its parent was killed.
os.register_at_fork(after_in_child=_let_go_in_child)
