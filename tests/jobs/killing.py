"""Kills `woodshed encode` or another command with SIGKILL at random moments, again and again; a process of its own.

    python -m tests.jobs.killing '[{"flags": [...], "output": "out", "undisturbed": "there", "kills": 30, ...}, ...]'

The process loads torch once and computes nothing with it; every round is a fork of it that runs the real command.
Small units, small shards and frequent commits make the short life of such a run eventful. Prints JSON, for each order:
how many rounds and kills there were, in which phase each kill came, and which folders came to their end.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What a run needs is imported here, before the forks: a round then takes a second, not five.
import woodshed.jobs.encode
import woodshed.jobs.songs
import woodshed.jobs.speech
from woodshed.cli.main import main as command
from woodshed.run.plan import PlanOptions
from woodshed.store.store import Store

POLL_S = 0.0005


def make_runs_eventful() -> None:
    Store.open.__func__.__kwdefaults__["group_s"] = 0.05  # type: ignore[attr-defined]
    PlanOptions.__init__.__kwdefaults__.update(unit_items=6, shard_bytes=40_000)  # type: ignore[attr-defined]


def start(words: Sequence[str]) -> int:
    """A fork that runs the command with its flags; gives its process id."""
    process = os.fork()
    if process:
        return process
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    code = command([*words, "--quiet"])
    os._exit(code)


def is_running(process: int) -> bool:
    return os.waitpid(process, os.WNOHANG) == (0, 0)


def end_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def phase(output: Path) -> str:
    """What a killed run was about."""
    home = output / ".woodshed"
    if not (home / "run.json").exists():
        return "starting"
    if not any((home / "plan").iterdir()):
        return "planning"
    commits = any((home / "commits").iterdir())
    if any((home / "tmp").iterdir()):
        return "committing" if commits else "first commit"
    return "encoding" if commits else "first batch"


def kill_at_random(process: int, output: Path, delay_s: float, *, in_planning: bool) -> bool:
    """SIGKILL after a delay, which counts from the start of planning if asked for; False when the run was quicker."""
    if in_planning:
        while not (output / ".woodshed" / "lock").exists():
            time.sleep(POLL_S)
    until = time.monotonic() + delay_s
    while (left_s := until - time.monotonic()) > 0:
        if not is_running(process):
            return False
        time.sleep(min(0.005, left_s))
    if not is_running(process):
        return False
    os.kill(process, signal.SIGKILL)
    end_of(process)
    return True


def work_through(order: dict[str, Any]) -> dict[str, Any]:
    """Folder after folder, rounds of run and kill, until there were enough kills; each folder comes to its end.

    `order`: `words` (the command), `flags` of the run, `output_flag` (stands before its folder), `output` (numbered
    folders are made of it), `start` (a folder to begin with, or None), `kills`, `seed`, `life_s` (of an undisturbed
    run), `in_planning`.
    """
    rng = random.Random(order["seed"])
    kills, rounds, phases, folders = 0, 0, Counter[str](), []
    while kills < order["kills"]:
        output = Path(f"{order['output']}-{len(folders)}")
        folders.append(str(output))
        if order["start"] is not None:
            shutil.copytree(order["start"], output)
        flags = [*order["words"], *order["flags"], order["output_flag"], str(output)]
        # Never more kills of one folder than that: a life that ends early each time would never commit.
        for _ in range(12):
            if kills == order["kills"]:
                break
            rounds += 1
            process = start(flags)
            delay_s = rng.uniform(0, order["life_s"])
            if not kill_at_random(process, output, delay_s, in_planning=order["in_planning"]):
                break
            kills += 1
            phases[phase(output)] += 1
        code = end_of(start(flags))
        if code not in order["codes"]:
            raise SystemExit(f"the last run over {output} ended with code {code}")
    return {"kills": kills, "rounds": rounds, "phases": phases, "folders": folders}


def measure_life(order: dict[str, Any]) -> float:
    """Runs undisturbed into `order["undisturbed"]`; seconds from the fork (or from the lock) to the end of planning or
    of the run."""
    output = Path(order["undisturbed"])
    if order["start"] is not None:
        shutil.copytree(order["start"], output)
    started = time.monotonic()
    process = start([*order["words"], *order["flags"], order["output_flag"], str(output)])
    if order["in_planning"]:
        while not (output / ".woodshed" / "lock").exists():
            time.sleep(POLL_S)
        started = time.monotonic()
        while not any((output / ".woodshed" / "plan").glob("*.jsonl")):
            time.sleep(POLL_S)
        life_s = time.monotonic() - started
        end_of(process)
        return life_s
    if (code := end_of(process)) not in order["codes"]:
        raise SystemExit(f"the undisturbed run ended with code {code}")
    return time.monotonic() - started


if __name__ == "__main__":
    assert woodshed.jobs.encode
    assert woodshed.jobs.songs
    assert woodshed.jobs.speech
    make_runs_eventful()
    reports = []
    for given in json.loads(sys.argv[1]):
        given = {"words": ["encode"], "output_flag": "--output-path"} | given
        given["life_s"] = measure_life(given)
        reports.append({**work_through(given), "life_s": given["life_s"]})
    print(json.dumps(reports))
