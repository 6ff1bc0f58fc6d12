"""What a pass takes in memory, measured on one: the tensors that autograd keeps, and those that the hooks hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
