"""Conformer encoder (Gulati et al. 2020) as IndexTTS2 conditions on speech with it, exact for padded batches.

A strided convolution halves the frame rate, then blocks of attention, gated convolution and feed-forward follow, each
after a layer norm. Scores carry a term of the key's absolute position (the sinusoid of Transformer-XL's formula, but
without its relative shift). Module names are those of the IndexTTS2 checkpoints.

A *step* is a frame after the halving: T frames give (T - 1) // 2 steps. Two lengths of a clip matter: its steps
*inside* are all that a run of the clip alone would have, its *visible* steps those that such a run does not mask. A
masked step inside still shows the depthwise convolution the gated bias of the layer before; a padded step must show it
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

FEATURE_SIZE = 1024
"""Width of the frames: w2v-bert-2.0's."""
NUM_BANDS = (FEATURE_SIZE - 1) // 2
"""Feature positions after the strided convolution."""
NUM_POSITIONS = 5000
"""Rows of the original's position table."""
MIN_FRAMES = 3
"""Frames that make one step."""
MAX_FRAMES = 2 * NUM_POSITIONS
"""The original takes fewer steps than its table has rows: 4,999, which 10,000 frames make (200 s)."""

# The input projection works on blocks of steps and channels: 512 x 32 x 511 values are 32 MiB in float32, and this
# shape multiplies fastest on CPUs. The whole activation would be 1 MB per step.
BLOCK_STEPS = 512
BLOCK_CHANNELS = 32
MAX_SCORES = 1 << 24
"""Attention scores at once, over clips and heads, where the device has no fused kernel: 64 MiB in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformerSizes:
    """What tells one encoder from another."""

    width: int
    num_blocks: int
    num_heads: int
    ff_width: int
    kernel: int
    """Steps that the depthwise convolution spans; odd."""


class Conformer(nn.Module):
    """Frames to steps of half the rate."""

    positions: Tensor

    def __init__(self, sizes: ConformerSizes) -> None:
        super().__init__()
        self.embed = _Halving(sizes.width)
        self.encoders = nn.ModuleList(_Block(sizes) for _ in range(sizes.num_blocks))
        self.after_norm = nn.LayerNorm(sizes.width)
        self.register_buffer("positions", sinusoid(NUM_POSITIONS, sizes.width), persistent=False)

    def forward(
        self, features: Float[Tensor, "batch frame 1024"], *, inside: Sequence[int], visible: Sequence[int]
    ) -> tuple[Float[Tensor, "batch step width"], Bool[Tensor, "batch step"]]:
        """Encode a padded batch.

        Args:
            features: what stands past a clip's own frames has no influence.
            inside: steps of each clip, at least 1.
            visible: how many of them are not masked, from the first on; 0 is allowed.

        Returns:
            The steps, and which of them are visible. The others are finite and mean nothing.
        """
        num_steps = max(inside)
        x = self.embed(features, visible, num_steps)
        step = torch.arange(num_steps, device=x.device)
        is_inside = step < torch.tensor(inside, device=x.device)[:, None]
        is_visible = step < torch.tensor(visible, device=x.device)[:, None]
        for block in self.encoders:
            x = block(x, self.positions[:num_steps], is_inside, is_visible)
        return self.after_norm(x), is_visible


def sinusoid(num_positions: int, width: int) -> Float[Tensor, "position width"]:
    """Sines at even and cosines at odd places, of wavelengths from 2 pi to 20,000 pi (Vaswani et al. 2017).

    Always on the CPU in float32, also where the model is being built on the meta device.
    """
    place = torch.arange(num_positions, device="cpu")[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device="cpu") * -(math.log(10_000.0) / width))
    return torch.stack((torch.sin(place * rate), torch.cos(place * rate)), dim=-1).flatten(1)[:, :width]


class _Halving(nn.Module):
    """3 x 3 convolution over (frame, feature) with stride 2 and no padding, ReLU, and one projection of it all.

    The projection holds nine tenths of the encoder's arithmetic, so it runs on the visible steps alone, packed.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, width, 3, 2))
        self.out = nn.Sequential(nn.Linear(width * NUM_BANDS, width))

    def forward(self, features: Tensor, visible: Sequence[int], num_steps: int) -> Tensor:
        bias = self.get_parameter("out.0.bias")
        num_clips, num_frames, _ = features.shape
        width, device = len(bias), features.device
        counts = [torch.arange(count, device=device) for count in visible]
        starts = torch.cat([clip * num_frames + 2 * count for clip, count in enumerate(counts)])
        places = torch.cat([clip * num_steps + count for clip, count in enumerate(counts)])
        frames = features.reshape(-1, FEATURE_SIZE).to(bias.dtype)
        packed = bias.repeat(len(starts), 1)
        block = min(BLOCK_STEPS, len(starts))
        buffer = bias.new_empty(block * min(BLOCK_CHANNELS, width) * NUM_BANDS)
        for first in range(0, len(starts), BLOCK_STEPS):
            columns = _columns(frames, starts[first : first + BLOCK_STEPS])
            self._project(columns, packed[first : first + BLOCK_STEPS], buffer)
        x = bias.new_zeros(num_clips * num_steps, width)
        x[places] = packed * math.sqrt(width)
        return x.view(num_clips, num_steps, width)

    def _project(self, columns: Tensor, out: Tensor, buffer: Tensor) -> None:
        """Convolve and project a block of steps, adding to `out`; never more than one block of channels at a time."""
        weight = self.get_parameter("out.0.weight")
        bias = self.get_parameter("conv.0.bias")[:, None]
        kernel = torch.cat((self.get_parameter("conv.0.weight").flatten(1), bias), dim=1)
        steps = len(columns)
        for first in range(0, len(kernel), BLOCK_CHANNELS):
            channels = slice(first, min(first + BLOCK_CHANNELS, len(kernel)))
            count = channels.stop - channels.start
            image = buffer[: steps * count * NUM_BANDS].view(steps, count, NUM_BANDS)
            torch.bmm(kernel[channels].expand(steps, -1, -1), columns, out=image)
            part = weight[:, channels.start * NUM_BANDS : channels.stop * NUM_BANDS]
            out.addmm_(image.relu_().flatten(1), part.t())


def _columns(frames: Float[Tensor, "frame 1024"], starts: Tensor) -> Float[Tensor, "step 10 511"]:
    """The 3 x 3 patches under the kernel for the steps that start at these frames, and ones for the bias."""
    windows = frames[starts[:, None] + torch.arange(3, device=starts.device)]
    patches = windows.unfold(2, 3, 2).transpose(2, 3).flatten(1, 2)
    return F.pad(patches, (0, 0, 0, 1), value=1.0)


class _Block(nn.Module):
    def __init__(self, sizes: ConformerSizes) -> None:
        super().__init__()
        self.norm_mha = nn.LayerNorm(sizes.width)
        self.self_attn = _Attention(sizes.width, sizes.num_heads)
        self.norm_conv = nn.LayerNorm(sizes.width)
        self.conv_module = _Convolution(sizes.width, sizes.kernel)
        self.norm_ff = nn.LayerNorm(sizes.width)
        self.feed_forward = _FeedForward(sizes.width, sizes.ff_width)
        self.norm_final = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor, positions: Tensor, inside: Tensor, visible: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, visible)
        x = x + self.conv_module(self.norm_conv(x), inside, visible)
        x = x + self.feed_forward(self.norm_ff(x))
        out: Tensor = self.norm_final(x)
        return out


class _Attention(nn.Module):
    """Attention whose score of query q and key k at position p is (q + u) k + (q + v) p, over sqrt(head size)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(num_heads, width // num_heads))
        self.pos_bias_v = nn.Parameter(torch.empty(num_heads, width // num_heads))

    def forward(self, x: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        query, key, value, place = (
            self._heads(linear(y))
            for linear, y in (
                (self.linear_q, x),
                (self.linear_k, x),
                (self.linear_v, x),
                (self.linear_pos, positions[None]),
            )
        )
        # The score is q (k + p) plus a term of the key alone, u k + v p: one fused attention with a bias per key.
        bias = key @ self.pos_bias_u[:, :, None] + place @ self.pos_bias_v[:, :, None]
        bias = bias.transpose(2, 3) * key.shape[-1] ** -0.5
        # Kernels differ in what a row of nothing but hidden keys gives. Nothing of a clip with no visible step is used
        # later, so nothing in it is hidden here: that keeps it finite on every device.
        hidden = ~visible & visible.any(dim=1, keepdim=True)
        bias = bias.masked_fill(hidden[:, None, None, :], -math.inf)
        heads = _attend(query, key + place, value, bias)
        out: Tensor = self.linear_out(heads.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], len(self.pos_bias_u), -1).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention with a bias per key, in blocks of queries."""
    clips, heads, steps, _ = query.shape
    block = max(1, MAX_SCORES // (clips * heads * steps))
    parts = [
        F.scaled_dot_product_attention(query[:, :, first : first + block], key, value, attn_mask=bias)
        for first in range(0, steps, block)
    ]
    return torch.cat(parts, dim=2)


class _Convolution(nn.Module):
    """Pointwise, gate, depthwise over steps, layer norm, SiLU, pointwise."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1)
        self.depthwise_conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, inside: Tensor, visible: Tensor) -> Tensor:
        x = _pointwise(self.pointwise_conv1, x.masked_fill(~visible[:, :, None], 0.0))
        x = F.glu(x, dim=-1).masked_fill(~inside[:, :, None], 0.0)
        x = self.depthwise_conv(x.transpose(1, 2)).transpose(1, 2)
        return _pointwise(self.pointwise_conv2, F.silu(self.norm(x)))


def _pointwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    return F.linear(x, conv.weight[:, :, 0], conv.bias)


class _FeedForward(nn.Module):
    def __init__(self, width: int, ff_width: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, ff_width)
        self.w_2 = nn.Linear(ff_width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_2(F.silu(self.w_1(x)))
        return out
