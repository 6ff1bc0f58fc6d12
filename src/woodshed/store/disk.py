"""All that the store ever does to a disk, in one small class: tests put a failing or forgetful one in its place.

Nothing here decides anything. Every `OSError` becomes a `StoreError` that says what was being done, where, and what
to try. Durability: data reach the disk with `sync`, names (created, renamed, removed) with `sync` of their folder.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from woodshed.errors import StoreError

SYNC_ALL_FROM = 16
"""From this many paths on, one `syncfs` is quicker than an `fsync` of each."""
_SYNC_THREADS = 8

_HINTS = {
    errno.ENOSPC: "free some space and run the same command again: what is committed is kept",
    errno.EDQUOT: "your quota is used up: free some space and run the same command again; what is committed is kept",
    errno.EROFS: "the file system is mounted read-only: choose an output folder elsewhere",
    errno.EACCES: "check the permissions and the owner of the folder, or choose another output folder",
    errno.EPERM: "check the permissions and the owner of the folder, or choose another output folder",
    errno.ENOTDIR: "a file is in the way: choose an output folder that is not a file and not below one",
    errno.EEXIST: "a file is in the way: choose an output folder that is not a file and not below one",
    errno.ENAMETOOLONG: "choose a shorter output path",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.EIO: "the disk or the network drive reports a fault: check it, then run the same command again",
}


def disk_error(action: str, path: Path, error: OSError) -> StoreError:
    """What an `OSError` means to the user.

    >>> print(disk_error("write", Path("out/0/1.npy"), OSError(errno.EROFS, "Read-only file system")))
    cannot write out/0/1.npy: Read-only file system (try: the file system is mounted read-only: ...)
    """
    hint = _HINTS.get(error.errno or 0, "run the same command again: what is committed is kept")
    return StoreError(f"cannot {action} {path}: {error.strerror or error}", hint=hint)


@contextmanager
def _explained(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(action, path, error) from error


class Disk:
    """The real disk.

    Raises:
        StoreError: from every method, when the system refuses.
    """

    def make_folder(self, path: Path) -> None:
        """Make one folder; it may exist."""
        with _explained("create the folder", path):
            path.mkdir(exist_ok=True)

    def write(self, path: Path, chunks: Iterable[bytes], *, append: bool = False) -> None:
        """Write a file, or add to its end. Not durable before `sync`."""
        with _explained("write", path), path.open("ab" if append else "wb") as file:
            for chunk in chunks:
                file.write(chunk)

    @contextmanager
    def writing(self, path: Path) -> Iterator[Callable[[bytes], object]]:
        """Write a file through the function that this gives. Not durable before `sync`."""
        with _explained("write", path), path.open("wb") as file:
            yield file.write

    def sync(self, paths: Sequence[Path]) -> None:
        """Make files and folders durable, at once by `syncfs` when they are many. All lie in one file system."""
        if len(paths) >= SYNC_ALL_FROM and _syncfs is not None:
            with _explained("bring to the disk", paths[0].parent):
                descriptor = os.open(paths[0], os.O_RDONLY)
                try:
                    if _syncfs(descriptor) == 0:
                        return
                    # ENOSYS: a kernel or a sandbox without it
                    if ctypes.get_errno() != errno.ENOSYS:
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                finally:
                    os.close(descriptor)
        if len(paths) < 2:
            for path in paths:
                _fsync(path)
            return
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            for _ in pool.map(_fsync, paths):
                pass

    def rename(self, source: Path, target: Path) -> None:
        """Give a file its final name, over what has it now."""
        with _explained("rename to", target):
            source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file; it may be gone already."""
        with _explained("remove", path):
            path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder; it may be gone already."""
        with _explained("remove the folder", path):
            try:
                path.rmdir()
            except FileNotFoundError:
                return


def _fsync(path: Path) -> None:
    with _explained("bring to the disk", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems have nothing to do for a folder and say so.
            if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
                raise
        finally:
            os.close(descriptor)


def _find_syncfs() -> ctypes._NamedFuncPointer | None:
    system = os.uname()
    version = re.match(r"(\d+)\.(\d+)", system.release)
    # Before Linux 5.8 it reported no failed writes.
    if system.sysname != "Linux" or version is None or (int(version[1]), int(version[2])) < (5, 8):
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_int], ctypes.c_int
    return function


_syncfs = _find_syncfs()
