"""Kills adoptions with SIGKILL at random moments; run as a process of its own.

    python -m tests.jobs.killing_adoption MODELS MANIFEST TEMPLATE FOLDER KILLS

Copies of TEMPLATE below FOLDER are taken over in forks of this process, which has run one undisturbed (`undisturbed`)
and so has everything loaded. Prints JSON: how far each killed run was, and the folders that came to their end.
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
from pathlib import Path

from tests.jobs.killing import end_of, is_running
from tests.jobs.speech_fixtures import run
from woodshed.speech.adopt import LEFTOVERS, MARKER
from woodshed.store.store import Store

KILLS_PER_FOLDER = 4


def start(models: Path, manifest: Path, folder: Path) -> int:
    """A fork that runs the command; gives its process id."""
    process = os.fork()
    if process == 0:
        run(models, manifest, folder)
        os._exit(0)
    return process


def phase(folder: Path) -> str:
    """What a killed run was about."""
    if (folder / MARKER).exists():
        return "adopting" if any((folder / ".woodshed").glob("commits/*")) else "marked"
    if (folder / LEFTOVERS).exists():
        return "clearing up"
    return "finished" if (folder / ".woodshed").exists() else "looking"


def kill_after(process: int, delay_s: float) -> bool:
    """False when the run was quicker."""
    time.sleep(delay_s)
    if not is_running(process):
        return False
    os.kill(process, signal.SIGKILL)
    end_of(process)
    return True


def main(models: Path, manifest: Path, template: Path, below: Path, kills: int) -> None:
    Store.open.__func__.__kwdefaults__["group_s"] = 0.01  # type: ignore[attr-defined]
    shutil.copytree(template, below / "warm")
    run(models, manifest, below / "warm")
    shutil.copytree(template, below / "undisturbed")
    started = time.monotonic()
    run(models, manifest, below / "undisturbed")
    life_s = time.monotonic() - started
    rng, phases, folders = random.Random(kills), Counter[str](), []
    while sum(phases.values()) < kills:
        folder = below / f"out-{len(folders)}"
        folders.append(str(folder))
        shutil.copytree(template, folder)
        for _ in range(min(KILLS_PER_FOLDER, kills - sum(phases.values()))):
            if not kill_after(start(models, manifest, folder), rng.uniform(0.2, 1) * life_s):
                break
            phases[phase(folder)] += 1
        if end_of(start(models, manifest, folder)) != 0:
            raise SystemExit(f"the last run over {folder} failed")
    print(json.dumps({"life_s": life_s, "phases": phases, "folders": folders}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]), int(sys.argv[5]))
