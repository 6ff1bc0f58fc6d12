"""The three-pass, fixed-count procedure that `benchmarks/analyze.py` compares with, from its published description.

The layers are in three groups (self-attention, cross-attention, feed-forward). Each run goes over the songs once per
group, one whole song per pass, with gradients for that group only, and draws a fresh timestep and fresh noise for each
pass. Squared gradients are read off `grad`; a layer's score is their mean over weights and passes, and the mean over
runs. Two runs for up to ten songs, else three; each over 50 songs at most, shuffled by a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from woodshed.contracts import Draw, Trainable

GROUPS = ("self_attn", "cross_attn", "mlp")
MOST_SONGS = 50
SHUFFLE_SEED = 1729


def fixed_runs(num_songs: int) -> int:
    return 2 if num_songs <= 10 else 3


def passes_of_fixed_count(num_songs: int) -> int:
    return fixed_runs(num_songs) * len(GROUPS) * min(num_songs, MOST_SONGS)


def three_pass(
    model: Trainable, songs: Sequence[Any], num_runs: int, *, seed: int, after_pass: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Squared norms `[run and song, layer]`: each column holds the passes of its layer's group.

    Args:
        songs: whole, as the model looks at them.
        seed: of timesteps and noise, which the procedure itself leaves to chance.
    """
    layers = model.layers()
    chance = np.random.default_rng(seed)
    per_run = min(len(songs), MOST_SONGS)
    found = np.zeros((num_runs * per_run, len(layers)))
    for run in range(num_runs):
        order = np.random.default_rng(SHUFFLE_SEED + run).permutation(len(songs))[:per_run]
        for group in GROUPS:
            members = _toggled(layers, group)
            for place, song in enumerate(order):
                draw = Draw(seed=int(chance.integers(2**62)), timestep=model.timestep(float(chance.random())))
                model.loss(songs[song], draw).backward()
                for column, weight in members.items():
                    assert weight.grad is not None
                    found[run * per_run + place, column] = float(weight.grad.float().square().sum())
                    weight.grad = None
                after_pass()
    return found


def _toggled(layers: Mapping[str, nn.Module], group: str) -> dict[int, Tensor]:
    """Weights of one group, by column; only they take gradients from now on."""
    members = {}
    for column, (name, module) in enumerate(layers.items()):
        assert isinstance(module.weight, Tensor)
        is_member = f".{group}." in name
        module.weight.requires_grad_(is_member)
        if is_member:
            members[column] = module.weight
    return members


def plain_energies(model: Trainable, example: Any, draw: Draw) -> np.ndarray:
    """Squared norm of each layer's gradient by plain autograd: one example, one pass, summed in double."""
    weights = [module.weight for module in model.layers().values()]
    gradients = torch.autograd.grad(model.loss(example, draw), [w for w in weights if isinstance(w, Tensor)])
    return np.array([float(gradient.double().square().sum()) for gradient in gradients])
