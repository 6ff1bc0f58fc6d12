"""CAMPPlus, the speaker embedding of 3D-Speaker that IndexTTS2.5 is conditioned on (Wang et al., Interspeech 2023).

A head of 2-D residual convolutions, a time-delay layer that halves the rate, three densely connected blocks of
time-delay layers with context-aware masking, mean and deviation over time, and one linear map to 192 numbers. Parts
have the names of the published checkpoints. A clip's embedding is the same in every batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from woodshed.encoders.speech.campplus_layers import (
    DenseLayer,
    Head,
    NormRelu,
    Transition,
    padding_of,
    pooled_statistics,
)
from woodshed.encoders.speech.fbank import CAMPPLUS_MIN_FRAMES, NUM_MELS
from woodshed.encoders.speech.parts import load_part
from woodshed.encoders.weights import TensorFile

BAND_REDUCTION = 8
"""Bands that the head turns into one."""
TIME_KERNEL = 5
TIME_STRIDE = 2
BLOCK_KERNEL = 3
BLOCK_DILATIONS = (1, 2, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSizes:
    """One dense block and the transition behind it; defaults are those of the published model's first."""

    num_layers: int = 12
    bottleneck: int = 128
    growth: int = 32
    num_hidden: int = 64
    """Width of the context's hidden layer."""
    num_channels_out: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CampPlusSizes:
    """Widths of a CAMPPlus network; defaults are those of the published model."""

    head_channels: int = 32
    head_blocks: tuple[int, int] = (2, 2)
    num_channels: int = 128
    blocks: tuple[DenseSizes, DenseSizes, DenseSizes] = (
        DenseSizes(),
        DenseSizes(num_layers=24, num_channels_out=512),
        DenseSizes(num_layers=16, num_channels_out=512),
    )
    embedding: int = 192

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> CampPlusSizes:
        """Sizes of the network that a state dict belongs to. What is not in it is taken to be as published."""
        default = cls()

        def size(key: str, published: int) -> int:
            shape = shapes.get(key, ())
            return shape[0] if shape else published

        def count(pattern: str, published: int) -> int:
            return len({found[1] for key in shapes if (found := re.match(pattern, key))}) or published

        def block(number: int, published: DenseSizes) -> DenseSizes:
            layer = f"xvector.block{number}.tdnnd1."
            return DenseSizes(
                num_layers=count(rf"xvector\.block{number}\.tdnnd(\d+)\.", published.num_layers),
                bottleneck=size(layer + "linear1.weight", published.bottleneck),
                growth=size(layer + "cam_layer.linear_local.weight", published.growth),
                num_hidden=size(layer + "cam_layer.linear1.weight", published.num_hidden),
                num_channels_out=size(f"xvector.transit{number}.linear.weight", published.num_channels_out),
            )

        first, second, third = default.blocks
        return cls(
            head_channels=size("head.conv1.weight", default.head_channels),
            head_blocks=(
                count(r"head\.layer1\.(\d+)\.", default.head_blocks[0]),
                count(r"head\.layer2\.(\d+)\.", default.head_blocks[1]),
            ),
            num_channels=size("xvector.tdnn.linear.weight", default.num_channels),
            blocks=(block(1, first), block(2, second), block(3, third)),
            embedding=size("xvector.dense.linear.weight", default.embedding),
        )


class CampPlus(nn.Module):
    """Filter-bank energies to a speaker embedding."""

    def __init__(self, sizes: CampPlusSizes) -> None:
        super().__init__()
        self.head = Head(sizes.head_channels, sizes.head_blocks)
        self.xvector = _Xvector(sizes, num_channels_in=sizes.head_channels * NUM_MELS // BAND_REDUCTION)
        self.embedding_size = sizes.embedding

    @classmethod
    def from_tensors(
        cls, tensors: TensorFile, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> CampPlus:
        """Load a published checkpoint, such as `campplus_cn_common.bin`; sizes are those of its tensors.

        Raises:
            ModelError: keys are missing, extra or misshapen; lists them.
        """
        with torch.device("meta"):
            model = cls(CampPlusSizes.of(tensors.shapes))
        load_part(model, tensors, device=device, dtype=dtype)
        return model

    @torch.inference_mode()
    def embed(
        self, fbank: Float[Tensor, "batch frame 80"], frames: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch embedding"]:
        """Embeddings (192 numbers in the published model) of clips.

        Args:
            fbank: `campplus_fbank` of each clip, right-padded with anything.
            frames: frames of each clip, at least 3.

        Raises:
            ValueError: a clip has fewer frames, where a deviation over time is undefined, or more than `fbank` holds.
        """
        counts: list[int] = frames.tolist()
        if not CAMPPLUS_MIN_FRAMES <= min(counts) <= max(counts) <= fbank.shape[1]:
            raise ValueError(f"clips of {counts} frames: {CAMPPLUS_MIN_FRAMES} to {fbank.shape[1]} are possible")
        weight = self.head.conv1.weight
        fbank, frames = fbank.to(weight.device, weight.dtype), frames.to(weight.device)
        if weight.device.type != "cpu":
            embeddings: Tensor = self(fbank, frames)
            return embeddings
        # A CPU gains nothing from a batch. One by one, not even the rounding depends on the neighbours.
        return torch.cat(
            [self(fbank[row : row + 1, :count], frames[row : row + 1]) for row, count in enumerate(counts)]
        )

    def forward(
        self, fbank: Float[Tensor, "batch frame 80"], frames: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch embedding"]:
        """All clips at once: equal to single clips up to the rounding of other kernels."""
        padding = padding_of(frames, fbank.shape[1])
        embeddings: Tensor = self.xvector(self.head(fbank.transpose(1, 2), padding), frames)
        return embeddings


class _Xvector(nn.Module):
    """Everything behind the head."""

    def __init__(self, sizes: CampPlusSizes, *, num_channels_in: int) -> None:
        super().__init__()
        self.tdnn = _TimeDelay(num_channels_in, sizes.num_channels)
        num_channels = sizes.num_channels
        for number, (block, dilation) in enumerate(zip(sizes.blocks, BLOCK_DILATIONS, strict=True), start=1):
            self.add_module(f"block{number}", _DenseBlock(num_channels, block, dilation=dilation))
            num_channels += block.num_layers * block.growth
            self.add_module(f"transit{number}", Transition(num_channels, block.num_channels_out))
            num_channels = block.num_channels_out
        self.out_nonlinear = NormRelu(num_channels)
        self.dense = _Projection(2 * num_channels, sizes.embedding)

    def forward(
        self, x: Float[Tensor, "batch channel frame"], frames: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch embedding"]:
        """`x` must be zero in the padding."""
        x = self.tdnn(x)
        frames = (frames + TIME_STRIDE - 1) // TIME_STRIDE
        padding = padding_of(frames, x.shape[2])
        for number in range(1, len(BLOCK_DILATIONS) + 1):
            x = self.get_submodule(f"block{number}")(x, padding, frames)
            x = self.get_submodule(f"transit{number}")(x)
        embedding: Tensor = self.dense(pooled_statistics(self.out_nonlinear(x), padding, frames))
        return embedding


class _TimeDelay(nn.Module):
    """A convolution over time that halves the rate."""

    def __init__(self, num_channels_in: int, num_channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(
            num_channels_in, num_channels, TIME_KERNEL, stride=TIME_STRIDE, padding=TIME_KERNEL // 2, bias=False
        )
        self.nonlinear = NormRelu(num_channels)

    def forward(self, x: Float[Tensor, "batch channel frame"]) -> Float[Tensor, "batch wider half"]:
        halved: Tensor = self.nonlinear(self.linear(x))
        return halved


class _DenseBlock(nn.Module):
    """Layers that each read the channels of all before them."""

    def __init__(self, num_channels: int, sizes: DenseSizes, *, dilation: int) -> None:
        super().__init__()
        for index in range(sizes.num_layers):
            layer = DenseLayer(
                num_channels + index * sizes.growth,
                bottleneck=sizes.bottleneck,
                growth=sizes.growth,
                num_hidden=sizes.num_hidden,
                kernel=BLOCK_KERNEL,
                dilation=dilation,
            )
            self.add_module(f"tdnnd{index + 1}", layer)

    def forward(
        self,
        x: Float[Tensor, "batch channel frame"],
        padding: Bool[Tensor, "batch 1 frame"],
        frames: Int[Tensor, "batch"],
    ) -> Float[Tensor, "batch grown frame"]:
        for layer in self.children():
            x = torch.cat([x, layer(x, padding, frames)], dim=1)
        return x


class _Projection(nn.Module):
    """Statistics to the embedding, which is normalised without scale and shift."""

    def __init__(self, num_channels: int, embedding: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(num_channels, embedding, 1, bias=False)
        self.nonlinear = _PlainNorm(embedding)

    def forward(self, x: Float[Tensor, "batch statistic"]) -> Float[Tensor, "batch embedding"]:
        embedding: Tensor = self.nonlinear(F.linear(x, self.linear.weight[:, :, 0]))
        return embedding


class _PlainNorm(nn.Module):
    """Batch normalisation alone."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(num_channels, affine=False)

    def forward(self, x: Float[Tensor, "batch embedding"]) -> Float[Tensor, "batch embedding"]:
        normed: Tensor = self.batchnorm(x)
        return normed
