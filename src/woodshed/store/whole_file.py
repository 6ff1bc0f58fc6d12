"""Files of the user's own that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from woodshed.errors import StoreError
from woodshed.store.disk import Disk


def write_whole(path: Path, content: bytes, *, disk: Disk | None = None) -> None:
    """Write a file in one step: after a crash at any moment there is the old one or the new one, never a part.

    The new file keeps the permissions of the old one, and where the old one is a link, what it leads to is replaced.
    What a crash can leave behind is a hidden file beside it, which the next writing takes over.

    Raises:
        StoreError: the disk refuses.
    """
    disk = disk or Disk()
    target = path.resolve() if path.is_symlink() else path
    temporary = target.with_name(f".{target.name}.woodshed-new")
    try:
        disk.write(temporary, [content])
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o7777)
        disk.sync([temporary])
        disk.rename(temporary, target)
    except (StoreError, KeyboardInterrupt):
        temporary.unlink(missing_ok=True)
        raise
