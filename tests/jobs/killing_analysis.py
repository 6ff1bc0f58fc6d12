"""Ends `woodshed analyze` with a signal again and again; a process of its own, whose forks are the runs.

    python -m tests.jobs.killing_analysis '{"flags": [...], "output": "map.json", "signal": "SIGKILL", "ends": 3, ...}'

Every check is committed at once, so that a run that lives for a second has something to go on from. The signal comes
when so many draws lie on disk, and a random moment later. Prints JSON: the exit code of each round, the draws that lay
on disk when it ended, and whether the run that was left alone in the end went on from them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

import woodshed.importance.analysis
import woodshed.jobs.analyze
from tests.jobs.killing import end_of, is_running
from woodshed.cli.main import main as command

POLL_S = 0.002


def start(words: list[str], log: Path) -> int:
    """A fork that runs the command; gives its process id."""
    process = os.fork()
    if process:
        return process
    told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(told, 1)
    os.dup2(told, 2)
    os._exit(command(words))


def draws_on_disk(output: Path) -> int:
    """As far as they are committed."""
    for path in output.parent.glob(f".{output.name}-*/data/draws.safetensors"):
        try:
            with safe_open(path, framework="np") as file:
                return int(file.get_slice("items").get_shape()[0])
        except (OSError, SafetensorError):
            return 0
    return 0


def work_through(order: dict[str, Any]) -> dict[str, Any]:
    output, rng = Path(order["output"]), random.Random(order["seed"])
    words = ["analyze", *order["flags"], "--output", str(output)]
    log = output.with_suffix(".log")
    rounds = []
    for _ in range(order["ends"]):
        before = draws_on_disk(output)
        process = start(words, log)
        while draws_on_disk(output) <= before and is_running(process):
            time.sleep(POLL_S)
        time.sleep(rng.uniform(0, order["delay_s"]))
        if not is_running(process):
            raise SystemExit(f"the run was quicker: {log.read_text()}")
        os.kill(process, getattr(signal, order["signal"]))
        rounds.append({"code": end_of(process), "draws": draws_on_disk(output), "wrote_map": output.exists()})
    code = end_of(start(words, log))
    return {"rounds": rounds, "code": code, "log": log.read_text()}


if __name__ == "__main__":
    woodshed.importance.analysis.COMMIT_EVERY_S = 0.0
    assert woodshed.jobs.analyze
    given = json.loads(sys.argv[1])
    undisturbed = ["analyze", *given["flags"], "--output", given["undisturbed"], "--quiet"]
    if command(undisturbed) != 0:
        raise SystemExit("the undisturbed run failed")
    print(json.dumps(work_through(given)))
