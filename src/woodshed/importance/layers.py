"""What there is to know of a layer before anything is measured: its shape, its kind, and what a rank costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from woodshed.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """One layer that may get an adapter."""

    name: str
    """Canonical, as `Trainable.layers` says it."""
    category: str
    """What it is part of, such as `self_attn`, `cross_attn`, `mlp`: floors and tables go by it."""
    d_out: int
    d_in: int
    """Of the weight as a matrix; the kernel of a convolution counts as inputs."""
    num_weights: int
    adaptable: bool
    """Whether it is a matrix that a low-rank adapter can be put beside; norms and biases are not."""

    @property
    def price(self) -> int:
        """Parameters that one rank of a LoRA costs here."""
        return self.d_in + self.d_out


def layer_shapes(layers: Mapping[str, nn.Module]) -> tuple[LayerShape, ...]:
    """Of all layers, in their order.

    Raises:
        ModelError: a layer has no weight.

    >>> [(s.category, s.d_out, s.d_in, s.price) for s in layer_shapes({"layers.0.mlp.up_proj": nn.Linear(8, 24)})]
    [('mlp', 24, 8, 32)]
    """
    return tuple(_shape(name, module) for name, module in layers.items())


def category_of(name: str) -> str:
    """The last part of a name that is neither its own nor a number; its own where there is none.

    >>> [category_of(name) for name in ("layers.3.self_attn.q_proj", "encoder.layers.0.fc1", "blocks.2", "proj")]
    ['self_attn', 'fc1', 'blocks', 'proj']
    """
    *path, last = name.split(".")
    if last.isdigit():
        return next((part for part in reversed(path) if not part.isdigit()), name)
    return last if not path or path[-1].isdigit() else path[-1]


def _shape(name: str, module: nn.Module) -> LayerShape:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(
            f"layer {name} is a {type(module).__name__} without a weight",
            hint="layers() names modules whose `weight` is trained",
        )
    d_out = weight.shape[0] if weight.ndim else 1
    return LayerShape(
        name=name,
        category=category_of(name),
        d_out=d_out,
        d_in=weight.numel() // d_out,
        num_weights=weight.numel(),
        adaptable=weight.ndim >= 2 and not isinstance(module, nn.Embedding),
    )
