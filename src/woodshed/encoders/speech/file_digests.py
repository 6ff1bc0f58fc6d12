"""Digests of large files, remembered between runs: a checkpoint of gigabytes is read once, not at every start."""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import xxhash

from woodshed.audio.opening import file_digest as content_digest
from woodshed.errors import ItemError, ModelError

_SETTLED_NS = 2 * 10**9
"""Coarsest clock of a file system that is in use: a file younger than this can change and keep its times."""


def file_digest(path: Path) -> str:
    """Digest of a file's content, as `xxh3_128:<hex>`.

    It is remembered in `$XDG_CACHE_HOME/woodshed/digests` (`~/.cache` where that is unset), one small file per path,
    and computed anew as soon as the file's size or times differ. Processes may share the cache: entries are replaced
    whole. Where nothing can be written there, nothing is remembered.

    Raises:
        ModelError: the file is missing, empty or cannot be read.
    """
    path = path.resolve()
    try:
        before = _identity(path)
        entry = _entry_for(path)
        known = _known(entry)
        if known.get("for") == before and isinstance(known.get("digest"), str):
            return str(known["digest"])
        digest = content_digest(str(path))
        after = _identity(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ItemError as error:
        raise ModelError(error.message, hint=error.hint) from error
    is_settled = time.time_ns() - int(after["mtime_ns"]) > _SETTLED_NS
    if entry is not None and is_settled and after == before:
        _remember(entry, {"for": after, "digest": digest})
    return digest


def _identity(path: Path) -> dict[str, str | int]:
    """What must be unchanged for a digest to hold. ctime besides mtime: `cp -p` and `touch -r` set the latter."""
    status = path.stat()
    return {
        "path": str(path).encode("utf-8", "backslashreplace").decode(),
        "size_bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _entry_for(path: Path) -> Path | None:
    """Where a path's digest is remembered; None for a user without a home."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    # The specification of that variable says that a relative path is to be ignored.
    if chosen and Path(chosen).is_absolute():
        base = Path(chosen)
    else:
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "woodshed" / "digests" / f"{xxhash.xxh3_128_hexdigest(os.fsencode(path))}.json"


def _known(entry: Path | None) -> dict[str, object]:
    if entry is None:
        return {}
    try:
        content = json.loads(entry.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(entry: Path, content: dict[str, object]) -> None:
    """Write an entry whole or not at all; a cache that cannot be written is no reason to fail."""
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=entry.parent, prefix=entry.name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
            Path(temporary).replace(entry)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
