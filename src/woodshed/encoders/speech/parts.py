"""One part of a checkpoint into one module, strictly."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from woodshed.encoders.weights import SHOWN_KEYS, TensorFile
from woodshed.errors import ModelError


def load_part(
    module: nn.Module,
    tensors: TensorFile,
    *,
    prefix: str = "",
    computed: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Fill a module that was built on the meta device with the tensors below `prefix`, and freeze it.

    Args:
        module: its state dict names are the checkpoint's keys without `prefix`.
        prefix: such as `conditioning_encoder.`; empty takes the whole file.
        computed: names below the prefix that the module computes itself: they may be present or absent, and are not
            read.

    Raises:
        ModelError: keys below the prefix are missing, extra or misshapen; lists them.
    """
    found = {key.removeprefix(prefix): shape for key, shape in tensors.shapes.items() if key.startswith(prefix)}
    found = {name: shape for name, shape in found.items() if name not in computed}
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items() if name not in computed}
    problems = [
        ("missing", [prefix + name for name in wanted if name not in found]),
        ("not of this model", [prefix + name for name in found if name not in wanted]),
        (
            "of another shape",
            [
                f"{prefix}{name} is {list(found[name])} instead of {list(shape)}"
                for name, shape in wanted.items()
                if name in found and found[name] != shape
            ],
        ),
    ]
    told = [
        f"{len(keys)} {what} ({', '.join(keys[:SHOWN_KEYS])}{', ...' if len(keys) > SHOWN_KEYS else ''})"
        for what, keys in problems
        if keys
    ]
    if told:
        raise ModelError(
            f"{tensors.path} does not hold what this model needs: keys {'; '.join(told)}",
            hint="is this the checkpoint that belongs to the config?",
        )
    state = {}
    for name in wanted:
        tensor = tensors.read(prefix + name)
        state[name] = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
    module.load_state_dict(state, strict=not computed, assign=True)
    module.requires_grad_(False).eval()
