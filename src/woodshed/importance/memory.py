"""What a pass takes in memory: foretold from the tensors that one keeps for the way back, and measured over a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from woodshed.contracts import Trainable


@dataclass(slots=True)
class KeptTensors:
    """Counts what the forward pass keeps for the way back, each piece of memory once; parameters do not count."""

    num_bytes: int = 0

    def during(self, model_layers: nn.ModuleList, run: Callable[[], None]) -> None:
        """Run something and count."""
        own = {parameter.untyped_storage().data_ptr() for parameter in model_layers.parameters()}
        seen: set[int] = set()

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                self.num_bytes += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run()


class PeakMemory:
    """While entered, the most memory that is taken beyond what was taken before: of a CUDA device what torch holds,
    else of the process (Linux only)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None
        self.num_bytes: int | None = None
        """None where it cannot be told."""

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return self
        try:
            # Linux: forget the peak so far.
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _resident("VmRSS")
        except OSError:
            self._before = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            return
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _resident("VmHWM")
        self.num_bytes = max(0, peak - self._before)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def device_of(model: Trainable) -> torch.device:
    """Where a model computes."""
    return next(next(iter(model.layers().values())).parameters()).device
