"""The Vocos backbone (Siuzdak, 2023) over clips of different lengths, exact for each of them.

Every convolution sees zeros behind a clip's last frame, as it does when the clip runs alone; everything else looks at
one frame at a time. So a clip gets the same numbers whatever stands beside or behind it in a batch.

Arrays are [batch, frame, channel] throughout, and convolutions are written as matrix products and sums: that is
faster here than the library's convolutions on a CPU, and on a GPU it does not fall to their reduced-precision default
(TF32), which is coarse enough to change codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

KERNEL_FRAMES = 7
"""Width of the backbone's convolutions: each frame sees three on either side."""
NORM_FLOOR = 1e-6


class FrameConv(nn.Module):
    """A convolution over frames, of odd width and centred; with a stride, output k is centred on frame `stride * k`.

    `weight` is [out, in, kernel], as checkpoints have it; it is fastest when its memory is as `tap_major` lays it.
    """

    def __init__(self, channels: int, out_channels: int, *, kernel_frames: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, channels, kernel_frames))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(
        self, x: Float[Tensor, "batch frame channel"], padding: Bool[Tensor, "batch frame"] | None
    ) -> Float[Tensor, "batch out_frame out_channel"]:
        """`ceil(frames / stride)` frames. What `x` holds where `padding` is true is not looked at."""
        num_clips, num_frames, channels = x.shape
        kernel, stride = self.weight.shape[2], self.stride
        before = kernel // 2
        out_frames = -(-num_frames // stride)
        # Clips lie behind one another with zeros between: one product per tap covers the whole batch. The few rows that
        # straddle two clips are computed in vain.
        step = out_frames + -(-(kernel - 1) // stride)
        rows = F.pad(x, (0, 0, before, stride * step - before - num_frames))
        if padding is not None:
            rows[:, before : before + num_frames].masked_fill_(padding[..., None], 0.0)
        rows = rows.reshape(-1, channels)
        whole = max(0, (len(rows) - kernel) // stride + 1)
        out = rows.new_empty(num_clips * step, len(self.bias))
        inside = out[:whole]
        for tap, weight in enumerate(self.weight.permute(2, 1, 0)):
            seen = rows[tap : tap + stride * whole : stride]
            torch.addmm(self.bias if tap == 0 else inside, seen, weight, out=inside)
        return out.view(num_clips, step, -1)[:, :out_frames]


def tap_major(weight: Float[Tensor, "out in kernel"]) -> Float[Tensor, "out in kernel"]:
    """The same weight, its memory ordered so that each tap is a matrix of its own."""
    return weight.permute(2, 0, 1).contiguous().permute(1, 2, 0)


class DepthwiseConv(nn.Module):
    """A centred convolution of each channel with itself; `weight` is [channel, 1, kernel]."""

    def __init__(self, channels: int, *, kernel_frames: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_frames))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Float[Tensor, "batch frame channel"]) -> Float[Tensor, "batch frame channel"]:
        num_frames, kernel = x.shape[1], self.weight.shape[2]
        taps = self.weight[:, 0].t().contiguous()
        out = torch.addcmul(self.bias, x, taps[kernel // 2])
        for tap in range(kernel):
            ahead = tap - kernel // 2
            if 0 < abs(ahead) < num_frames:
                inside = out[:, max(0, -ahead) : num_frames - max(0, ahead)]
                inside.addcmul_(x[:, max(0, ahead) : num_frames + min(0, ahead)], taps[tap])
        return out


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, two linear maps with a GELU between, scaled by `gamma` and added to the input."""

    def __init__(self, channels: int, inner_channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels))
        self.dwconv = DepthwiseConv(channels, kernel_frames=KERNEL_FRAMES)
        self.norm = nn.LayerNorm(channels, eps=NORM_FLOOR)
        self.pwconv1 = nn.Linear(channels, inner_channels)
        self.pwconv2 = nn.Linear(inner_channels, channels)

    def forward(
        self, x: Float[Tensor, "batch frame channel"], padding: Bool[Tensor, "batch frame"] | None
    ) -> Float[Tensor, "batch frame channel"]:
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)
        change = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x)))))
        return torch.addcmul(x, change, self.gamma)


class VocosBackbone(nn.Module):
    """A wide convolution, ConvNeXt blocks, and a norm before and after them; names are those of checkpoints."""

    def __init__(self, in_channels: int, channels: int, inner_channels: int, num_layers: int) -> None:
        super().__init__()
        self.embed = FrameConv(in_channels, channels, kernel_frames=KERNEL_FRAMES)
        self.norm = nn.LayerNorm(channels, eps=NORM_FLOOR)
        self.convnext = nn.ModuleList(ConvNeXtBlock(channels, inner_channels) for _ in range(num_layers))
        self.final_layer_norm = nn.LayerNorm(channels, eps=NORM_FLOOR)

    def forward(
        self, x: Float[Tensor, "batch frame in_channel"], padding: Bool[Tensor, "batch frame"] | None
    ) -> Float[Tensor, "batch frame channel"]:
        """`padding` is true behind the end of a clip, where anything may stand; None: all clips fill the batch."""
        x = self.norm(self.embed(x, padding))
        for block in self.convnext:
            x = block(x, padding)
        out: Tensor = self.final_layer_norm(x)
        return out
