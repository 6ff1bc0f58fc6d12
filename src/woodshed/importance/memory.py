"""What is taken of a device's memory while something runs."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import psutil
import torch

from woodshed.contracts import Trainable


class PeakMemory:
    """While entered, the most memory that is taken beyond what was taken before: of a CUDA device what torch holds,
    else of the process. Where its peak cannot be asked for (only Linux tells it) what is taken in the end counts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        self.num_bytes = 0

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return self
        _forget_peak()
        self._before = psutil.Process().memory_info().rss
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _peak()
        self.num_bytes = max(0, peak - self._before)


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return int(psutil.Process().memory_info().rss)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def device_of(model: Trainable) -> torch.device:
    """Where a model computes."""
    return next(next(iter(model.layers().values())).parameters()).device
