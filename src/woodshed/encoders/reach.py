"""How far a convolutional network looks: computed from its geometry, and measured by the support of a gradient.

A long file can be coded in windows that overlap by the network's reach: the frames whose whole field of view lies
inside a window are the very frames that the unchunked network gives. The reach is counted in whole frames, because
windows have to start on the frame grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from woodshed.errors import ModelError

UNIT_DILATIONS = (1, 3, 9)
"""Dilations of the three residual units of every Oobleck block."""
UNIT_KERNEL = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One convolution over time: what decides where it looks and how long its output is."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    padding_left: int = 0
    padding_right: int = 0
    transposed: bool = False
    """True: it makes `stride` samples of each; padding is then cut from its output."""

    def __post_init__(self) -> None:
        if min(self.kernel, self.stride, self.dilation) < 1 or min(self.padding_left, self.padding_right) < 0:
            raise ModelError(f"no convolution has the geometry {self}", hint="sizes are 1 or more, padding 0 or more")

    def length(self, num_samples: int) -> int:
        """Length of the output for an input of `num_samples`; 0 when the input is too short for one output."""
        padding = self.padding_left + self.padding_right
        extent = self.dilation * (self.kernel - 1) + 1
        if self.transposed:
            return max(0, (num_samples - 1) * self.stride - padding + extent) if num_samples > 0 else 0
        return max(0, (num_samples + padding - extent) // self.stride + 1) if num_samples > 0 else 0

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The inputs that outputs `start..stop-1` depend on, as a half-open range; may pass the ends of the input."""
        tail = self.dilation * (self.kernel - 1)
        if self.transposed:
            first = -(-(start + self.padding_left - tail) // self.stride)
            return first, (stop - 1 + self.padding_left) // self.stride + 1
        return start * self.stride - self.padding_left, (stop - 1) * self.stride - self.padding_left + tail + 1


def length_after(steps: Sequence[Step], num_samples: int) -> int:
    """Length that a stack of convolutions makes of `num_samples`.

    >>> length_after([Step(kernel=4, stride=2, padding_left=1, padding_right=1)], 10)
    5
    """
    for step in steps:
        num_samples = step.length(num_samples)
    return num_samples


def span_of(steps: Sequence[Step], start: int, stop: int) -> tuple[int, int]:
    """The inputs that outputs `start..stop-1` of a stack depend on; residual paths lie inside and need no mention."""
    for step in reversed(steps):
        start, stop = step.span(start, stop)
    return start, stop


def stride_of(steps: Sequence[Step]) -> int:
    """Samples per output frame of a stack without transposed steps."""
    return math.prod(step.stride for step in steps)


def unit_steps() -> list[Step]:
    """The three dilated convolutions of one Oobleck block; those of width one look nowhere else."""
    return [
        Step(kernel=UNIT_KERNEL, dilation=d, padding_left=d * (UNIT_KERNEL // 2), padding_right=d * (UNIT_KERNEL // 2))
        for d in UNIT_DILATIONS
    ]


def down_step(stride: int) -> Step:
    """The convolution that shortens by `stride`: odd strides are padded by one more than they need on the right."""
    padding = math.ceil(stride / 2)
    return Step(kernel=2 * stride, stride=stride, padding_left=padding, padding_right=padding)


def up_steps(stride: int, *, nearest: bool) -> list[Step]:
    """What lengthens by `stride`: a transposed convolution, or repetition and a convolution of even width."""
    if nearest:
        repeat = Step(kernel=stride, stride=stride, transposed=True)
        return [repeat, Step(kernel=2 * stride, padding_left=stride - 1, padding_right=stride)]
    padding = math.ceil(stride / 2)
    return [Step(kernel=2 * stride, stride=stride, padding_left=padding, padding_right=padding, transposed=True)]


def same_step(kernel: int) -> Step:
    """A convolution of odd width that keeps the length."""
    return Step(kernel=kernel, padding_left=kernel // 2, padding_right=kernel // 2)


def encoder_stages(strides: Sequence[int]) -> list[list[Step]]:
    """Steps of an Oobleck encoder: one list per block (the first with the input convolution), then the output."""
    stages = [[*unit_steps(), down_step(stride)] for stride in strides]
    stages[0].insert(0, same_step(7))
    return [*stages, [same_step(3)]]


def decoder_stages(strides: Sequence[int], *, nearest: bool = False) -> list[list[Step]]:
    """Steps of an Oobleck decoder. `strides` are the encoder's: they are walked from the last to the first."""
    blocks = [[*up_steps(stride, nearest=nearest), *unit_steps()] for stride in reversed(strides)]
    return [[same_step(7)], *blocks, [same_step(7)]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OobleckReach:
    """Whole frames of context that a window needs on each inner side: the smallest numbers that make it exact.

    A frame kept from a window with this much real audio beyond it depends on nothing outside the window, and on none of
    the zeros that the network pads with at the window's cut sides. One frame less is not exact, although the last
    frame's share may be tiny: on the Stable Audio Open geometry the field passes seven frames by 0.27 of a frame.
    """

    left_frames: int
    right_frames: int
    hop_samples: int

    @property
    def frames(self) -> int:
        """The larger side, for windows that take the same context on both."""
        return max(self.left_frames, self.right_frames)

    @classmethod
    def of_encoder(cls, strides: Sequence[int]) -> OobleckReach:
        """From the strides of an encoder.

        >>> OobleckReach.of_encoder([2, 4, 4, 8, 8])
        OobleckReach(left_frames=8, right_frames=8, hop_samples=2048)
        """
        hop = math.prod(strides)
        first, last = span_of([*chain(*encoder_stages(strides))], 0, 1)
        return cls(left_frames=_whole(-first, hop), right_frames=_whole(last - hop, hop), hop_samples=hop)

    @classmethod
    def of_decoder(cls, strides: Sequence[int], *, nearest: bool = False) -> OobleckReach:
        """From the strides of the *encoder* that the decoder mirrors."""
        hop = math.prod(strides)
        first, last = span_of([*chain(*decoder_stages(strides, nearest=nearest))], 0, hop)
        return cls(left_frames=max(0, -first), right_frames=max(0, last - 1), hop_samples=hop)


def _whole(samples: int, hop: int) -> int:
    return max(0, math.ceil(samples / hop))


def probe_reach(
    encode: Callable[[Float[Tensor, "1 channel sample"]], Float[Tensor, "1 feature frame"]],
    *,
    hop_samples: int,
    channels: int,
    frames: int,
    num_probes: int = 3,
    seed: int = 0,
) -> tuple[int, int] | None:
    """Measure how many frames to the left and right one frame depends on, by the support of its gradient.

    Args:
        encode: a differentiable network with float64 weights.
        hop_samples: samples per frame.
        channels: audio channels that `encode` takes.
        frames: length of the random signal; take more than twice the reach that you expect, plus three.
        num_probes: signals and middle frames tried; the widest support counts.

    Returns:
        frames to the left and to the right, or None when the support meets an end of the signal: the network has a
        recurrent part, attention, or statistics over the whole signal, or `frames` was too small to tell.

    Raises:
        ModelError: `encode` gives another number of frames than the signal has.
    """
    generator = torch.Generator().manual_seed(seed)
    left = right = 0
    for probe in range(num_probes):
        with torch.inference_mode(False):
            wave = torch.randn(1, channels, frames * hop_samples, dtype=torch.float64, generator=generator)
        # A running statistic or a gate can be flat for one signal: each probe has its own, and its own middle frame.
        frame = min(frames - 1, max(0, frames // 2 + probe - num_probes // 2))
        support = _support(encode, wave, frame, frames, generator)
        if support.numel() == 0:
            continue
        first, last = int(support[0]), int(support[-1])
        if first == 0 or last == frames * hop_samples - 1:
            return None
        left = max(left, _whole(frame * hop_samples - first, hop_samples))
        right = max(right, _whole(last + 1 - (frame + 1) * hop_samples, hop_samples))
    return left, right


def _support(
    encode: Callable[[Tensor], Tensor], wave: Tensor, frame: int, frames: int, generator: torch.Generator
) -> Tensor:
    """Indices of the samples that one frame depends on, ascending."""
    with torch.inference_mode(False), torch.enable_grad():
        wave.requires_grad_(True)
        features = encode(wave)
        if features.shape[-1] != frames:
            raise ModelError(
                f"the network gives {features.shape[-1]} frames for {wave.shape[-1]} samples, {frames} were expected",
                hint="check the ratio (hop) that its config announces",
            )
        weights = torch.randn(features.shape[1], dtype=features.dtype, generator=generator)
        (gradient,) = torch.autograd.grad((features[0, :, frame] * weights).sum(), wave)
    return gradient.abs().amax(dim=(0, 1)).nonzero().flatten()


def verify_reach(
    encode: Callable[[Float[Tensor, "1 channel sample"]], Float[Tensor, "1 feature frame"]],
    *,
    left_frames: int,
    right_frames: int,
    hop_samples: int,
    channels: int,
) -> None:
    """Compare a computed reach with what the network does.

    Raises:
        ModelError: the network looks further than computed, or at everything.
    """
    frames = 2 * max(left_frames, right_frames) + 5
    measured = probe_reach(encode, hop_samples=hop_samples, channels=channels, frames=frames)
    if measured is None:
        raise ModelError(
            f"each frame depends on the whole of a signal of {frames} frames, but the computed reach is"
            f" {left_frames} frames to the left and {right_frames} to the right",
            hint="encode whole clips: this network has recurrence, attention or statistics over the whole signal",
        )
    if measured[0] > left_frames or measured[1] > right_frames:
        raise ModelError(
            f"the network looks {measured[0]} frames to the left and {measured[1]} to the right, further than the"
            f" computed {left_frames} and {right_frames}",
            hint="encode whole clips, or give windows the measured reach",
        )
