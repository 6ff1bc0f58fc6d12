"""A file of the user's own is the old one or the new one, whatever the disk does."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from random import Random

import pytest

from tests.store.bad_disks import CountingDisk, Killed, PowerCutDisk
from woodshed.errors import StoreError
from woodshed.store.whole_file import write_whole

OLD, NEW = b"caption: old\n" * 9, b"caption: new\n" * 99


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "song.txt").write_bytes(OLD)
    return tmp_path / "song.txt"


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(path: Path) -> None:
    for k in range(3):
        path.write_bytes(OLD)
        with pytest.raises(Killed):
            write_whole(path, NEW, disk=CountingDisk(k))
        assert path.read_bytes() == OLD
        write_whole(path, NEW)
        assert path.read_bytes() == NEW
        assert [entry.name for entry in path.parent.iterdir()] == ["song.txt"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("k", [None, 0, 1, 2])
def test_so_does_a_power_cut(path: Path, k: int | None, seed: int) -> None:
    disk = PowerCutDisk(path.parent, k)
    if k is None:
        write_whole(path, NEW, disk=disk)
    else:
        with pytest.raises(Killed):
            write_whole(path, NEW, disk=disk)
    disk.cut_power(Random(seed))
    assert path.read_bytes() in (OLD, NEW)


@pytest.mark.parametrize("k", range(3))
def test_a_full_disk_leaves_the_old_file_and_nothing_else(path: Path, k: int) -> None:
    with pytest.raises(StoreError, match=r"song\.txt"):
        write_whole(path, NEW, disk=CountingDisk(k, code=errno.ENOSPC))
    assert path.read_bytes() == OLD
    assert [entry.name for entry in path.parent.iterdir()] == ["song.txt"]


def test_permissions_and_links_stay(path: Path) -> None:
    path.chmod(0o640)
    link = path.with_name("link.txt")
    link.symlink_to(path)
    write_whole(link, NEW)
    assert link.is_symlink()
    assert path.read_bytes() == NEW
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
