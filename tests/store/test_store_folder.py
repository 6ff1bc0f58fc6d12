"""Whose folder it is: identity, strangers, locks, damage."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.store.small_store import LAYOUTS, SPEC, QuickDisk, first_plan, run, tree
from woodshed.errors import StoreError
from woodshed.store.log import CommitLog
from woodshed.store.reader import open_reader
from woodshed.store.store import Store
from woodshed.store.verify import verify_files


def open_store(folder: Path, *, layout: str = "stable_audio", **fingerprint: Any) -> Store:
    return Store.open(folder, layout=LAYOUTS[layout], fingerprint=fingerprint, spec=SPEC, disk=QuickDisk())


def test_another_fingerprint_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    open_store(tmp_path, model={"digest": "aa", "strides": [2, 4]}, seed=0, shape=(1, 2)).close()
    open_store(tmp_path, model={"digest": "aa", "strides": [2, 4]}, seed=0, shape=(1, 2)).close()
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path, layout="shards", model={"digest": "bb", "strides": [2, 8]}, shape=(1, 2))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path} was made by another run; these differ (there -> now):"
    assert lines[1:] == [
        "  fingerprint.model.digest: 'aa' -> 'bb'",
        "  fingerprint.model.strides[1]: 4 -> 8",
        "  fingerprint.seed: 0 -> (absent)",
        "  layout: 'stable_audio' -> 'shards' (try: choose another output folder, "
        "or bring back the old settings to continue this one)",
    ]
    open_store(tmp_path, model={"digest": "aa", "strides": [2, 4]}, seed=0, shape=(1, 2)).close()


def test_strangers_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"was not made by Woodshed: it holds holiday\.jpg \(try: choose a new"):
        open_store(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".DS_Store", "holiday.jpg"]
    (tmp_path / "holiday.jpg").unlink()
    open_store(tmp_path).close()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"x")
    for path in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(StoreError, match=r"out.*(?i:not a directory|file exists).*try: a file is in the way"):
            open_store(path)


def test_missing_identity_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "stable_audio", first_plan())
    (tmp_path / ".woodshed/run.json").unlink()
    with pytest.raises(StoreError, match=r"has commits but no \.woodshed/run\.json"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match="is not a Woodshed output folder"):
        open_reader(tmp_path)


def test_second_opening_in_this_process_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path), pytest.raises(StoreError, match=rf"another run is writing .* process {os.getpid()} on "):
        open_store(tmp_path)
    open_store(tmp_path).close()


def hold(folder: Path, ready: Connection, *, fork: bool) -> None:
    store = open_store(folder)
    if fork:
        child = multiprocessing.get_context("fork").Process(target=signal.pause)
        child.start()
        ready.send(child.pid)
    else:
        ready.send(None)
    signal.pause()
    store.close()


@pytest.mark.parametrize("fork", [False, True], ids=["plain", "with a forked worker that lives on"])
def test_a_living_process_keeps_others_out_and_a_dead_one_does_not(tmp_path: Path, fork: bool) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    holder = context.Process(target=hold, args=(tmp_path, there), kwargs={"fork": fork})
    holder.start()
    grandchild = here.recv()
    assert holder.pid is not None
    try:
        with pytest.raises(StoreError, match=rf"process {holder.pid} on .*, started 20.*try: wait for it or stop it"):
            open_store(tmp_path)
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        assert (tmp_path / ".woodshed/lock").read_text().startswith("{")
        open_store(tmp_path).close()
    finally:
        holder.kill()
        if grandchild is not None:
            os.kill(grandchild, signal.SIGKILL)


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreError, match=r"does not support locks.*try: use a folder on a local disk"):
        open_store(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_damaged_segment_is_named(tmp_path: Path, damage: str) -> None:
    run(tmp_path, "stable_audio", first_plan())
    segment = min((tmp_path / ".woodshed/commits").iterdir())
    content = segment.read_bytes()
    flipped = content.replace(b"clip 0", b"clip 9", 1)
    segment.write_bytes({"cut": content[:-7], "flipped": flipped, "emptied": b""}[damage])
    for open_folder in (lambda: open_store(tmp_path, model={"digest": "a"}), lambda: open_reader(tmp_path)):
        with pytest.raises(StoreError, match=rf"{segment.name} is damaged.*try: restore this file"):
            open_folder()


def test_deleted_segment_means_that_its_items_are_done_again(tmp_path: Path) -> None:
    run(tmp_path, "stable_audio", first_plan())
    before = tree(tmp_path)
    min((tmp_path / ".woodshed/commits").iterdir()).unlink()
    run(tmp_path, "stable_audio", first_plan())
    assert tree(tmp_path) == before


def test_reading_beside_a_writer(tmp_path: Path) -> None:
    with open_store(tmp_path, model={"digest": "a"}):
        assert list(open_reader(tmp_path).entries()) == []
    run(tmp_path, "stable_audio", first_plan())
    assert open_reader(tmp_path).totals.num_done == 5
    # As between the moment of commit and the moves: the last segment does not count yet.
    log = CommitLog.read(tmp_path)
    assert log.last_footer is not None
    temporary, final = log.last_footer["moves"][0]
    (tmp_path / final).rename(tmp_path / temporary)
    reader = open_reader(tmp_path)
    assert reader.totals.num_done < 5
    assert list(verify_files(reader)) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_verify_finds_what_is_missing_short_or_changed(tmp_path: Path, layout: str) -> None:
    run(tmp_path, layout, first_plan())
    victims = sorted(path for path in tree(tmp_path) if path != "details.json")[:3]
    (tmp_path / victims[0]).unlink()
    (tmp_path / victims[1]).write_bytes((tmp_path / victims[1]).read_bytes()[:-1])
    content = bytearray((tmp_path / victims[2]).read_bytes())
    content[-1] ^= 1
    (tmp_path / victims[2]).write_bytes(content)
    problems = sorted(verify_files(open_reader(tmp_path)), key=lambda problem: problem.path)
    assert [(problem.path, problem.kind) for problem in problems] == list(
        zip(victims, ["missing", "size", "checksum"], strict=True)
    )
    assert {problem.item_id for problem in problems} == ({"clip 0.wav"} if layout == "stable_audio" else {None})
