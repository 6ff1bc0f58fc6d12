"""Layers of CAMPPlus that see more than one frame, exact for clips of unequal length in one batch.

Tensors are right-padded over time, their last axis. A layer reads zeros past the end of a clip, as if it stood alone:
whoever looks at neighbouring frames blanks the padding first, and what is averaged is averaged over real frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

SEGMENT_FRAMES = 100
"""Context is averaged over the clip and over segments of this length; the last one may be shorter."""
RESIDUAL_STRIDE = 2
"""The first block of each residual layer halves the bands; time keeps its length."""


def padding_of(frames: Int[Tensor, "batch"], num_frames: int) -> Bool[Tensor, "batch 1 frame"]:
    """True past the end of each clip."""
    return (torch.arange(num_frames, device=frames.device) >= frames[:, None])[:, None]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions over bands and time, and a shortcut."""

    def __init__(self, num_channels_in: int, num_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels_in, num_channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_channels)
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or num_channels_in != num_channels:
            projection = nn.Conv2d(num_channels_in, num_channels, 1, stride=(stride, 1), bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(num_channels))

    def forward(
        self, x: Float[Tensor, "batch channel band frame"], padding: Bool[Tensor, "batch 1 1 frame"]
    ) -> Float[Tensor, "batch wider narrower frame"]:
        """`x` and the result are zero in the padding."""
        hidden = F.relu(self.bn1(self.conv1(x))).masked_fill(padding, 0)
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x)).masked_fill(padding, 0)


class Head(nn.Module):
    """Residual convolutions that turn bands into channels: an eighth of the bands remains, times `num_channels`."""

    def __init__(self, num_channels: int, num_blocks: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, num_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_channels)
        self.layer1, self.layer2 = (
            nn.ModuleList(
                ResidualBlock(num_channels, num_channels, stride=1 if index else RESIDUAL_STRIDE)
                for index in range(count)
            )
            for count in num_blocks
        )
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_channels)

    def forward(
        self, fbank: Float[Tensor, "batch band frame"], padding: Bool[Tensor, "batch 1 frame"]
    ) -> Float[Tensor, "batch channel frame"]:
        """The result is zero in the padding, whatever stands there in `fbank`."""
        beyond = padding[:, None]
        x = fbank[:, None].masked_fill(beyond, 0)
        x = F.relu(self.bn1(self.conv1(x))).masked_fill(beyond, 0)
        for block in (*self.layer1, *self.layer2):
            x = block(x, beyond)
        x = F.relu(self.bn2(self.conv2(x))).masked_fill(beyond, 0)
        return x.flatten(1, 2)


class NormRelu(nn.Module):
    """Batch normalisation with the statistics of training, then ReLU."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(num_channels)

    def forward(self, x: Float[Tensor, "batch channel frame"]) -> Float[Tensor, "batch channel frame"]:
        normed: Tensor = self.batchnorm(x)
        return F.relu(normed)


class ContextMask(nn.Module):
    """A convolution over time whose channels are weighted by what the clip and its segment sound like on average."""

    def __init__(self, num_channels_in: int, num_channels: int, *, num_hidden: int, kernel: int, dilation: int) -> None:
        super().__init__()
        reach = (kernel - 1) // 2 * dilation
        self.linear_local = nn.Conv1d(
            num_channels_in, num_channels, kernel, padding=reach, dilation=dilation, bias=False
        )
        self.linear1 = nn.Conv1d(num_channels_in, num_hidden, 1)
        self.linear2 = nn.Conv1d(num_hidden, num_channels, 1)

    def forward(
        self, x: Float[Tensor, "batch channel frame"], frames: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch grown frame"]:
        """`x` must be zero in the padding."""
        # The weights are the same for all frames of a segment: worked out once for each, not for each frame.
        context = F.relu(self.linear1(segment_context(x, frames)))
        weights = torch.sigmoid(self.linear2(context)).repeat_interleave(SEGMENT_FRAMES, dim=2)
        local: Tensor = self.linear_local(x)
        return local * weights[:, :, : x.shape[2]]


def segment_context(
    x: Float[Tensor, "batch channel frame"], frames: Int[Tensor, "batch"]
) -> Float[Tensor, "batch channel segment"]:
    """Mean over the clip plus mean over each segment of 100 frames; `x` must be zero in the padding.

    >>> segment_context(torch.tensor([[[2.0, 4.0, 0.0]]]), torch.tensor([2]))
    tensor([[[6.]]])
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    num_segments = -(-x.shape[2] // SEGMENT_FRAMES)
    filled = F.pad(wide, (0, num_segments * SEGMENT_FRAMES - x.shape[2]))
    sums = filled.view(*x.shape[:2], num_segments, SEGMENT_FRAMES).sum(3)
    starts = torch.arange(num_segments, device=x.device) * SEGMENT_FRAMES
    # A segment in the padding has no frames: its mean is not used, but must be a number.
    counts = (frames[:, None] - starts).clamp(1, SEGMENT_FRAMES)[:, None]
    means = sums.sum(2, keepdim=True) / frames[:, None, None] + sums / counts
    return means.to(x.dtype)


class DenseLayer(nn.Module):
    """One step of a dense block: reads all channels so far, adds a few."""

    def __init__(
        self, num_channels: int, *, bottleneck: int, growth: int, num_hidden: int, kernel: int, dilation: int
    ) -> None:
        super().__init__()
        self.nonlinear1 = NormRelu(num_channels)
        self.linear1 = nn.Conv1d(num_channels, bottleneck, 1, bias=False)
        self.nonlinear2 = NormRelu(bottleneck)
        self.cam_layer = ContextMask(bottleneck, growth, num_hidden=num_hidden, kernel=kernel, dilation=dilation)

    def forward(
        self,
        x: Float[Tensor, "batch channel frame"],
        padding: Bool[Tensor, "batch 1 frame"],
        frames: Int[Tensor, "batch"],
    ) -> Float[Tensor, "batch grown frame"]:
        hidden = self.nonlinear2(self.linear1(self.nonlinear1(x)))
        grown: Tensor = self.cam_layer(hidden.masked_fill(padding, 0), frames)
        return grown


class Transition(nn.Module):
    """Fewer channels after a dense block."""

    def __init__(self, num_channels_in: int, num_channels: int) -> None:
        super().__init__()
        self.nonlinear = NormRelu(num_channels_in)
        self.linear = nn.Conv1d(num_channels_in, num_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "batch channel frame"]) -> Float[Tensor, "batch fewer frame"]:
        fewer: Tensor = self.linear(self.nonlinear(x))
        return fewer


def pooled_statistics(
    x: Float[Tensor, "batch channel frame"], padding: Bool[Tensor, "batch 1 frame"], frames: Int[Tensor, "batch"]
) -> Float[Tensor, "batch statistic"]:
    """Mean and standard deviation (of a sample: divided by one less) of each channel over the frames of a clip.

    >>> pooled_statistics(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([[[False, False, True]]]), torch.tensor([2]))
    tensor([[2.0000, 1.4142]])
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(padding, 0)
    count = frames[:, None]
    mean = wide.sum(2) / count
    variance = (wide - mean[:, :, None]).masked_fill(padding, 0).square().sum(2) / (count - 1)
    return torch.cat([mean, variance.sqrt()], dim=1).to(x.dtype)
