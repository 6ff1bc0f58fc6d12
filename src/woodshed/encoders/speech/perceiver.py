"""Perceiver resampler (Jaegle et al. 2021, Alayrac et al. 2022): any number of frames into a fixed number of vectors.

Cross-attention of learned latents over themselves and the frames, without biases or a norm before it, a gated
feed-forward (GEGLU, Shazeer 2020), residuals around both, and an RMS norm at the end. Module names are those of the
IndexTTS2 checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceiverSizes:
    """What tells one resampler from another."""

    dim: int
    """Width of the latents, and of what comes out."""
    context: int
    """Width of the frames; they are projected to `dim` when it differs."""
    num_latents: int
    num_layers: int
    num_heads: int
    """Each of 64 values."""
    ff_width: int
    """Inner width of the feed-forward, after the gate."""


class Perceiver(nn.Module):
    """Frames to `num_latents` vectors; hidden frames do not matter, and with all of them hidden the latents remain."""

    def __init__(self, sizes: PerceiverSizes) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(sizes.num_latents, sizes.dim))
        self.proj_context = nn.Linear(sizes.context, sizes.dim) if sizes.context != sizes.dim else nn.Identity()
        self.layers = nn.ModuleList(
            nn.ModuleList([_CrossAttention(sizes), _feed_forward(sizes)]) for _ in range(sizes.num_layers)
        )
        self.norm = _RMSNorm(sizes.dim)

    def forward(
        self, frames: Float[Tensor, "batch frame context"], visible: Bool[Tensor, "batch frame"]
    ) -> Float[Tensor, "batch latent dim"]:
        """Summarise the visible frames of each clip."""
        context = self.proj_context(frames)
        latents = self.latents.expand(len(frames), -1, -1)
        # The latents stand in front of the frames and see each other always.
        mask = F.pad(visible, (self.latents.shape[0], 0), value=True)[:, None, None, :]
        for layer in self.layers:
            attend, feed_forward = layer.children()
            latents = latents + attend(latents, torch.cat((latents, context), dim=1), mask)
            latents = latents + feed_forward(latents)
        normed: Tensor = self.norm(latents)
        return normed


class _CrossAttention(nn.Module):
    def __init__(self, sizes: PerceiverSizes) -> None:
        super().__init__()
        inner = sizes.num_heads * HEAD_SIZE
        self.to_q = nn.Linear(sizes.dim, inner, bias=False)
        self.to_kv = nn.Linear(sizes.dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, sizes.dim, bias=False)

    def forward(self, latents: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            part.view(*part.shape[:2], -1, HEAD_SIZE).transpose(1, 2)
            for part in (self.to_q(latents), *self.to_kv(context).chunk(2, dim=-1))
        )
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.to_out(heads.transpose(1, 2).flatten(2))
        return out


def _feed_forward(sizes: PerceiverSizes) -> nn.Sequential:
    return nn.Sequential(nn.Linear(sizes.dim, 2 * sizes.ff_width), _GEGLU(), nn.Linear(sizes.ff_width, sizes.dim))


class _GEGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate) * value


class _RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * math.sqrt(len(self.gamma)) * self.gamma
