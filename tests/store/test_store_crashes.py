"""Whatever stops a run, at whatever call: committed items are whole, and the next run ends as if nothing had been."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from random import Random

import pytest

from tests.store.bad_disks import CountingDisk, Killed, PowerCutDisk
from tests.store.small_store import LAYOUTS, Job, check, first_plan, run, second_plan, tree
from woodshed.errors import StoreError
from woodshed.store.disk import Disk

PLANS = (first_plan(), second_plan())
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def undisturbed(folder: Path, layout: str) -> tuple[dict[str, bytes], dict[str, bytes], int]:
    """The trees after the first and the second plan, and the number of disk calls of both."""
    disk = CountingDisk()
    run(folder, layout, PLANS[0], disk=disk)
    first = tree(folder)
    run(folder, layout, PLANS[1], disk=disk)
    return first, tree(folder), disk.calls


def run_both(folder: Path, layout: str, disk: Disk, durable: dict[str, int]) -> None:
    for plan in PLANS:
        versions = {job.id: job.version for job in plan}
        run(folder, layout, plan, disk=disk, committed=lambda name, v=versions: durable.update({name: v[name]}))


@both_layouts
def test_the_job_itself_does_what_it_should(tmp_path: Path, layout: str) -> None:
    first, second, calls = undisturbed(tmp_path / "out", layout)
    assert calls > 60
    assert check(tmp_path / "out", PLANS) == {(job.id, job.version) for job in PLANS[1]}
    assert first.keys() != second.keys()
    if layout == "stable_audio":
        # Changed sources give no records 1 and 5 any more, record 2 fails now, record 6 moved.
        gone = {name for name in first.keys() - second.keys() if name.endswith(".npy")}
        assert gone == {f"0/{position:013d}.npy" for position in (1, 2, 5, 6)}
        assert "0/0000000000001.moments.safetensors" in first
    else:
        assert second.keys() - first.keys() == {"shards/00002.safetensors", "shards/00002.index.json"}
        assert list((tmp_path / "out/.woodshed/staging").iterdir()) == []
    assert list((tmp_path / "out/.woodshed/tmp").iterdir()) == []


@both_layouts
def test_another_order_of_work_gives_the_same_tree(tmp_path: Path, layout: str) -> None:
    _, expected, _ = undisturbed(tmp_path / "a", layout)
    run(tmp_path / "b", layout, PLANS[0][::-1], group_bytes=1)
    run(tmp_path / "b", layout, PLANS[1][::-1], group_bytes=10**9)
    assert tree(tmp_path / "b") == expected


@both_layouts
def test_killed_at_every_call(tmp_path: Path, layout: str) -> None:
    _, expected, calls = undisturbed(tmp_path / "undisturbed", layout)
    for k in range(calls):
        folder, durable = tmp_path / str(k), dict[str, int]()
        with pytest.raises(Killed):
            run_both(folder, layout, CountingDisk(k), durable)
        resume_and_compare(folder, layout, durable, expected)


@both_layouts
def test_failing_at_every_call(tmp_path: Path, layout: str) -> None:
    _, expected, calls = undisturbed(tmp_path / "undisturbed", layout)
    for k in range(calls):
        folder, durable = tmp_path / str(k), dict[str, int]()
        code = errno.EROFS if k % 5 == 0 else errno.ENOSPC
        with pytest.raises(StoreError, match=rf"cannot .*{errno.errorcode[code]} \(try: "):
            run_both(folder, layout, CountingDisk(k, code=code), durable)
        resume_and_compare(folder, layout, durable, expected)


@both_layouts
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_power_cut(tmp_path: Path, layout: str, seed: int) -> None:
    _, expected, calls = undisturbed(tmp_path / "undisturbed", layout)
    for k in range(0, calls, 1 if seed else 2):
        folder, durable = tmp_path / str(k) / "out", dict[str, int]()
        folder.parent.mkdir()
        disk = PowerCutDisk(folder.parent, k)
        with pytest.raises(Killed):
            run_both(folder, layout, disk, durable)
        disk.cut_power(Random(f"{seed}:{k}"))
        resume_and_compare(folder, layout, durable, expected)


def resume_and_compare(folder: Path, layout: str, durable: dict[str, int], expected: dict[str, bytes]) -> None:
    try:
        run(folder, layout, [])
        found = dict(check(folder, PLANS))
        assert all(found[name] >= version for name, version in durable.items()), "a committed item was lost"
        run(folder, layout, PLANS[1])
        assert tree(folder) == expected
        assert list((folder / ".woodshed/tmp").iterdir()) == []
    except (AssertionError, StoreError) as error:
        error.add_note(f"in {folder}")
        raise


def slow_run(folder: Path, layout: str, plan: list[Job]) -> None:
    run(folder, layout, plan, disk=Disk(), group_bytes=4000)


@both_layouts
def test_kill_9_fifteen_times_each(tmp_path: Path, layout: str) -> None:
    plan = [Job(f"clip {n:03d}", 0, None if n % 17 == 5 else 2, 2 * n, n // 7) for n in range(150)]
    run(tmp_path / "undisturbed", layout, plan)
    expected = tree(tmp_path / "undisturbed")
    folder, rng = tmp_path / "out", Random(7)
    context = multiprocessing.get_context("fork")
    num_killed = 0
    while num_killed < 15:
        writer = context.Process(target=slow_run, args=(folder, layout, plan))
        writer.start()
        assert writer.pid is not None
        time.sleep(rng.uniform(0.005, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        if writer.exitcode == 0:
            assert tree(folder) == expected
            shutil.rmtree(folder)
            continue
        num_killed += 1
        if num_killed % 5 == 0 and (folder / ".woodshed/run.json").exists():
            run(folder, layout, [])
            check(folder, [plan])
    slow_run(folder, layout, plan)
    assert tree(folder) == expected
