"""What can be wrong with a path before any sound is looked at, and the digest of what lies there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import xxhash

from woodshed.errors import AudioError

DIGEST_BLOCK_BYTES = 1 << 20


def shown(path: str) -> str:
    """A path for messages: quoted, with the bytes that are not UTF-8 written as escapes, so that it always prints.

    >>> shown("caf\\udce9.wav")
    "'caf\\\\xe9.wav'"
    """
    return repr(os.fsencode(path).decode("utf-8", "backslashreplace")).replace("\\\\x", "\\x")


@contextmanager
def open_file(path: str) -> Iterator[tuple[int, int]]:
    """Open a regular file for reading; gives its descriptor and its size in bytes, and closes it.

    Raises:
        AudioError: kind `missing`, `unreadable` (no permission, a folder, a pipe or device) or `empty` (0 bytes).
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise AudioError(
            f"{shown(path)} does not exist", kind="missing", hint="check that the folder is mounted and the name right"
        ) from error
    except PermissionError as error:
        raise AudioError(
            f"{shown(path)} may not be read: permission denied", kind="unreadable", hint="chmod +r it"
        ) from error
    except (OSError, ValueError) as error:
        raise AudioError(f"{shown(path)} cannot be opened: {error}", kind="unreadable") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise AudioError(f"{shown(path)} is {what}, not a file", kind="unreadable")
        if status.st_size == 0:
            raise AudioError(f"{shown(path)} is empty: 0 bytes", kind="empty", hint="fetch or copy it again")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def file_digest(path: str) -> str:
    """Digest of a file's bytes, as `xxh3_128:<hex>`; reads it in blocks of 1 MiB.

    Raises:
        AudioError: as `open_file` does, and `unreadable` when the disk fails.
    """
    digest = xxhash.xxh3_128()
    with open_file(path) as (descriptor, _):
        try:
            while block := os.read(descriptor, DIGEST_BLOCK_BYTES):
                digest.update(block)
        except OSError as error:
            raise AudioError(f"{shown(path)} cannot be read: {error}", kind="unreadable") from error
    return f"xxh3_128:{digest.hexdigest()}"
