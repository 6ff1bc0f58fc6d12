"""A model of one's own, as `--backend path/to/denoiser.py:Denoiser` takes it: six small layers, milliseconds a pass.

Random weights, always the same ones. A test that needs a trained model takes woodshed-tiny-dit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from woodshed.backends.noise import noise
from woodshed.contracts import Draw
from woodshed.errors import ItemError

LATENTS, WIDTH = 64, 48
SHARES = (1.0, 0.2)
"""How much each block says: gradients, and so ranks, differ by it."""


class Block(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.up_proj = nn.Linear(WIDTH, 2 * WIDTH)
        self.gate_proj = nn.Linear(WIDTH, 2 * WIDTH)
        self.down_proj = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return x + self.share * said


class Denoiser(nn.Module):
    """Tells the noise in latents of woodshed-tiny from the music, frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.into = nn.Linear(LATENTS + 1, WIDTH)
            self.blocks = nn.ModuleList(Block(share) for share in SHARES)
            self.out = nn.Linear(WIDTH, LATENTS)
        self.requires_grad_(False)
        for layer in self.layers().values():
            layer.requires_grad_(True)

    def layers(self) -> Mapping[str, nn.Module]:
        return {
            f"layers.{number}.mlp.{name}": part
            for number, block in enumerate(self.blocks)
            for name, part in block.named_children()
        }

    def example(self, item: Mapping[str, Any]) -> Tensor:
        latents: Tensor = item["latents"][:LATENTS, item["mask"]].T
        if not bool(latents.isfinite().all()):
            raise ItemError(f"{item['info']['relpath']} holds values that are not finite", kind="not_finite")
        return latents

    def loss(self, example: Tensor, draw: Draw) -> Tensor:
        return self.losses([example], [draw])[0]

    def losses(self, examples: Sequence[Tensor], draws: Sequence[Draw]) -> Tensor:
        clean = torch.stack(list(examples))
        start = torch.stack([noise(draw, clean[0].shape, device="cpu", dtype=clean.dtype) for draw in draws])
        times = torch.tensor([draw.timestep for draw in draws])[:, None, None]
        noised = times * start + (1 - times) * clean
        hidden = self.into(torch.cat([noised, times.expand(*noised.shape[:2], 1)], dim=-1))
        for block in self.blocks:
            hidden = block(hidden)
        return (self.out(hidden) - (start - clean)).square().mean(dim=(1, 2))
