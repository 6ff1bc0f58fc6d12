"""CPU time, peak memory and the name of this machine: what the benchmarks measure with."""

from __future__ import annotations

import datetime
import os
import platform
import re
import resource
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def cpu_s() -> float:
    """CPU time of this process and of its finished children so far, user and system, of all threads."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in used)


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # `ru_maxrss` would count the process that started this one: Linux hands it on.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 1024
    scale = 2**20 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def describe_machine(device: str) -> str:
    """One line: date, processor or GPU, versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.+)", cpuinfo.read_text())
        name = found[1] if found else name
    if device != "cpu":
        import torch

        name = torch.cuda.get_device_name(device)
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{today}; {name}, {os.cpu_count()} cores, one compute thread; {platform.system()}, "
        f"Python {platform.python_version()}, torch {version('torch')}"
    )


def save_table(path: Path, script: str, arguments: Sequence[str], lines: Sequence[str]) -> None:
    """Write a result with the command that made it."""
    given, kept = list(arguments), []
    while given:
        word = given.pop(0)
        if word == "--save":
            given.pop(0)
            continue
        kept.append(word)
    command = " ".join(["python", f"benchmarks/{script}", *kept])
    path.write_text("\n".join([f"# `{command}`", "", *lines]) + "\n")
