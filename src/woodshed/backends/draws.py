"""Draws: how training makes them, the timestep that a loss needs, and pairs of one shape in one pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from woodshed.chance import generator
from woodshed.contracts import Draw, Trainable
from woodshed.errors import UsageError

E = TypeVar("E")


def training_draw(model: Trainable, *key: str | int, seed: int) -> Draw:
    """One draw as the model's own training makes them: its timesteps, its share of dropped conditions.

    Args:
        key: what the draw is for, such as the example's name and the number of the look. The same key and seed give the
            same draw on every machine, whatever was drawn before.
    """
    chance = generator(seed, *key, "draw")
    noise_seed, quantile, dropped = int(chance.integers(2**63)), float(chance.random()), float(chance.random())
    return Draw(seed=noise_seed, timestep=model.timestep(quantile), drop_condition=dropped < model.condition_dropout)


def timestep_of(draw: Draw) -> float:
    """The draw's timestep.

    Raises:
        UsageError: it has none, or one that is not within 0 and 1.
    """
    if draw.timestep is None or not 0 <= draw.timestep <= 1:
        raise UsageError(
            f"timestep={draw.timestep} is not between 0 (data) and 1 (noise)",
            hint="take it from the model's `timestep(quantile)`",
        )
    return draw.timestep


def checked_quantile(quantile: float) -> float:
    """The quantile as it is.

    Raises:
        UsageError: it is not within 0 and 1.
    """
    if not 0 <= quantile <= 1:
        raise UsageError(f"the quantile {quantile} is not within 0 and 1", hint="draw it between them")
    return quantile


def losses_by_shape(
    examples: Sequence[E],
    draws: Sequence[Draw],
    *,
    shape_of: Callable[[E], Hashable],
    losses_of: Callable[[Sequence[E], Sequence[Draw]], Tensor],
) -> Float[Tensor, " pair"]:
    """The loss of each pair, in order: equal shapes are computed together, the others alone, and nothing is padded.

    Args:
        shape_of: examples of which this is equal are computed together.
        losses_of: losses of examples of one shape.
    """
    if len(draws) != len(examples):
        raise ValueError(f"{len(examples)} examples were given with {len(draws)} draws")
    groups: dict[Hashable, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(shape_of(example), []).append(index)
    losses: dict[int, Tensor] = {}
    for indices in groups.values():
        made = losses_of([examples[i] for i in indices], [draws[i] for i in indices])
        losses.update(zip(indices, made, strict=True))
    return torch.stack([losses[index] for index in range(len(examples))])
