"""The Oobleck encoder and decoder: the convolutional networks of Stable Audio Open and its relatives.

Modules and their order are those of stable-audio-tools, so that the keys of its checkpoints name ours
(`layers.1.layers.0.layers.1.weight`). What training needs and inference does not is folded when weights are loaded
(`folded_name` and `fold`): weight norm becomes plain weights, and the logarithms of Snake become its factors.

On a CPU the encoder works through its blocks in tiles that stay in the cache. Each tile carries the few samples of
context that the block needs, so its output is the untiled one; clips of a batch are taken one by one, so that a clip's
latents do not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from woodshed.encoders.reach import (
    UNIT_DILATIONS,
    UNIT_KERNEL,
    OobleckReach,
    Step,
    decoder_stages,
    encoder_stages,
    length_after,
    span_of,
    stride_of,
    verify_reach,
)
from woodshed.encoders.snake import Snake
from woodshed.errors import ModelError

SNAKE_FLOOR = 1e-9
"""Added to beta before the division, as in training."""
TILE_ELEMENTS = 262_144
"""Activations per tile, one megabyte in float32: two such tensors fit the second-level cache of current cores."""
MIN_TILE_SAMPLES = 2_048
"""Tiles shorter than this spend more on laying out weights than they save."""


def folded_name(key: str) -> str:
    """The name of our tensor that a checkpoint's tensor goes into.

    >>> folded_name("layers.0.weight_v"), folded_name("layers.0.parametrizations.weight.original0")
    ('layers.0.weight', 'layers.0.weight')
    >>> folded_name("layers.4.alpha"), folded_name("layers.4.beta"), folded_name("layers.0.bias")
    ('layers.4.rate', 'layers.4.gain', 'layers.0.bias')
    """
    stem, _, leaf = canonical_name(key).rpartition(".")
    return f"{stem}.{_FOLDED.get(leaf, leaf)}"


def canonical_name(key: str) -> str:
    """The old spelling of weight norm's tensors for either spelling.

    >>> canonical_name("layers.0.parametrizations.weight.original1")
    'layers.0.weight_v'
    """
    for new, old in _OLD_SPELLING.items():
        if key.endswith(new):
            return key.removesuffix(new) + old
    return key


_OLD_SPELLING = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
_FOLDED = {"weight_g": "weight", "weight_v": "weight", "alpha": "rate", "beta": "gain"}


def fold(parts: Mapping[str, Tensor], *, dtype: torch.dtype) -> Tensor:
    """Our tensor, from the checkpoint's tensors that make it, named by their leaf (`weight_g`, `alpha`, ...).

    The arithmetic is done in float32, or in float64 when that is what the network will run in.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    if "weight_g" in parts:
        direction, length = parts["weight_v"].to(exact), parts["weight_g"].to(exact)
        return torch._weight_norm(direction, length, 0).to(dtype)
    (leaf, tensor), *_ = parts.items()
    if leaf == "alpha":
        return tensor.to(exact).exp().reshape(-1, 1).to(dtype)
    if leaf == "beta":
        return (tensor.to(exact).exp() + SNAKE_FLOOR).reciprocal().reshape(-1, 1).to(dtype)
    return tensor.to(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class OobleckShape:
    """What a stable-audio-tools config says of an encoder or a decoder; defaults are its defaults."""

    audio_channels: int = 2
    channels: int = 128
    """Width at the audio rate; block i is `c_mults[i]` times as wide."""
    c_mults: tuple[int, ...] = (1, 2, 4, 8)
    strides: tuple[int, ...] = (2, 4, 8, 8)
    """Of the encoder, from the audio inwards; a decoder walks them backwards."""
    latent_dim: int = 32
    """Rows that the encoder gives or the decoder takes: twice the latent's for an encoder with a VAE behind it."""
    use_snake: bool = False
    """Snake, or else ELU."""
    final_tanh: bool = True
    """Decoder only."""
    use_nearest_upsample: bool = False
    """Decoder only: repetition and a convolution instead of a transposed convolution."""
    soft_clip: bool = False
    """Decoder only: a tanh behind everything else."""

    @property
    def ratio(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def widths(self) -> list[int]:
        """Channels at the audio rate, then behind each block."""
        return [self.channels, *(self.channels * mult for mult in self.c_mults)]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, side: Literal["encoder", "decoder"], where: str) -> OobleckShape:
        """Read `model.encoder.config` or `model.decoder.config` of a stable-audio-tools model config.

        Raises:
            ModelError: an option is unknown, of the wrong type, or one that we do not have.
        """
        options = dict(config)
        if options.pop("antialias_activation", False):
            raise ModelError(
                f"{where}: antialias_activation=true is not supported", hint="only plain Snake and ELU activations are"
            )
        options["audio_channels"] = options.pop("in_channels" if side == "encoder" else "out_channels", 2)
        known = {"audio_channels": int, "channels": int, "latent_dim": int, "use_snake": bool}
        known |= {"c_mults": list, "strides": list}
        if side == "decoder":
            known |= {"final_tanh": bool, "use_nearest_upsample": bool, "soft_clip": bool}
        for name, value in options.items():
            if name not in known:
                raise ModelError(
                    f"{where}: option {name!r} of an oobleck {side} is not supported",
                    hint=f"options are {', '.join(sorted(known))}; remove it if it has no effect on the result",
                )
            if known[name] is list:
                options[name] = _sizes(value, name, where)
            elif type(value) is not known[name]:
                raise ModelError(f"{where}: {name} is {value!r}, a value of type {known[name].__name__} was expected")
        shape = cls(**options)
        shape._check(where)
        return shape

    def _check(self, where: str) -> None:
        if len(self.c_mults) != len(self.strides):
            raise ModelError(
                f"{where}: c_mults has {len(self.c_mults)} entries and strides {len(self.strides)}",
                hint="each block has one of either",
            )
        if min(self.strides, default=2) < 2:
            raise ModelError(
                f"{where}: strides {list(self.strides)} hold a stride of 1, which adds a frame to every clip",
                hint="leave that block out: frames would not lie on a grid of the ratio",
            )
        if min(self.audio_channels, self.channels, self.latent_dim) < 1:
            raise ModelError(f"{where}: channel counts and latent_dim are 1 or more, not {self}")


def _sizes(values: object, name: str, where: str) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or not values or any(type(v) is not int or v < 1 for v in values):
        raise ModelError(f"{where}: {name} is {values!r}", hint="a list of whole numbers, each 1 or more")
    return tuple(values)


def _activation(shape: OobleckShape, channels: int) -> nn.Module:
    return Snake(channels) if shape.use_snake else nn.ELU()


class ResidualUnit(nn.Module):
    """A dilated convolution and one of width one, added to the input."""

    def __init__(self, shape: OobleckShape, channels: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _activation(shape, channels),
            nn.Conv1d(channels, channels, UNIT_KERNEL, dilation=dilation, padding=dilation * (UNIT_KERNEL // 2)),
            _activation(shape, channels),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: Float[Tensor, "batch channel time"]) -> Float[Tensor, "batch channel time"]:
        change = cast(Tensor, self.layers(x))
        return x + change if torch.is_grad_enabled() or torch.compiler.is_compiling() else change.add_(x)


class _Block(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x))


def _units(shape: OobleckShape, channels: int) -> list[nn.Module]:
    return [ResidualUnit(shape, channels, dilation) for dilation in UNIT_DILATIONS]


def _encoder_block(shape: OobleckShape, width_in: int, width_out: int, stride: int) -> nn.Module:
    down = nn.Conv1d(width_in, width_out, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
    return _Block(*_units(shape, width_in), _activation(shape, width_in), down)


class _EvenConv1d(nn.Conv1d):
    """A convolution of even width that keeps the length: the spare zero goes to the right."""

    def forward(self, input: Tensor) -> Tensor:
        width = self.kernel_size[0]
        return super().forward(F.pad(input, (width // 2 - 1, width // 2)))


def _decoder_block(shape: OobleckShape, width_in: int, width_out: int, stride: int) -> nn.Module:
    up: nn.Module
    if shape.use_nearest_upsample:
        up = nn.Sequential(nn.Upsample(scale_factor=stride), _EvenConv1d(width_in, width_out, 2 * stride, bias=False))
    else:
        up = nn.ConvTranspose1d(width_in, width_out, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
    return _Block(_activation(shape, width_in), up, *_units(shape, width_out))


class OobleckEncoder(nn.Module):
    """Audio to the frames that a bottleneck takes."""

    def __init__(self, shape: OobleckShape) -> None:
        super().__init__()
        self.shape = shape
        widths = shape.widths
        self.layers = nn.Sequential(
            nn.Conv1d(shape.audio_channels, widths[0], 7, padding=3),
            *(_encoder_block(shape, widths[i], widths[i + 1], stride) for i, stride in enumerate(shape.strides)),
            _activation(shape, widths[-1]),
            nn.Conv1d(widths[-1], shape.latent_dim, 3, padding=1),
        )
        self._stages = encoder_stages(shape.strides)

    @property
    def reach(self) -> OobleckReach:
        return OobleckReach.of_encoder(self.shape.strides)

    def num_frames(self, num_samples: int) -> int:
        """Frames that `num_samples` give: exactly `num_samples // ratio` on the frame grid, for strides above one."""
        return length_after([*chain(*self._stages)], num_samples)

    def forward(self, audio: Float[Tensor, "batch channel sample"]) -> Float[Tensor, "batch feature frame"]:
        """The features of each clip; fast under `torch.inference_mode()`, differentiable when gradients are on."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or audio.device.type != "cpu":
            return cast(Tensor, self.layers(audio))
        return torch.cat([self._encode_clip(audio[i : i + 1]) for i in range(len(audio))])

    def _encode_clip(self, x: Tensor) -> Tensor:
        blocks = [self.layers[:2], *(self.layers[i : i + 1] for i in range(2, len(self.layers) - 2))]
        for block, steps, width in zip(blocks, self._stages[:-1], self.shape.widths[:-1], strict=True):
            x = _in_tiles(block, steps, x, tile_samples=max(MIN_TILE_SAMPLES, TILE_ELEMENTS // width))
        return cast(Tensor, self.layers[-2:](x))

    @torch.inference_mode(False)
    def verify_reach(self) -> None:
        """Probe a narrow float64 network of this geometry (widths do not matter) against the computed reach.

        Raises:
            ModelError: it looks further than computed.
        """
        blocks = (1,) * len(self.shape.strides)
        twin = OobleckEncoder(
            OobleckShape(
                audio_channels=1, channels=2, c_mults=blocks, strides=self.shape.strides, latent_dim=2,
                use_snake=self.shape.use_snake,
            )
        )  # fmt: skip
        reach = self.reach
        verify_reach(
            twin.double(), left_frames=reach.left_frames, right_frames=reach.right_frames,
            hop_samples=reach.hop_samples, channels=1,
        )  # fmt: skip


def _in_tiles(block: nn.Module, steps: Sequence[Step], x: Tensor, *, tile_samples: int) -> Tensor:
    """`block(x)`, made piece by piece; a piece has all the context that its kept outputs depend on."""
    stride, num_samples = stride_of(steps), x.shape[-1]
    num_out, tile_out = length_after(steps, num_samples), max(1, tile_samples // stride)
    if num_out <= tile_out:
        return cast(Tensor, block(x))
    out: Tensor | None = None
    for start in range(0, num_out, tile_out):
        stop = min(start + tile_out, num_out)
        first, last = span_of(steps, start, stop)
        # A piece starts on the stride's grid; at a true end of the signal the network's own padding takes over.
        origin = max(0, first // stride)
        piece = block(x[..., origin * stride : min(last, num_samples)])
        if out is None:
            out = piece.new_empty(*piece.shape[:-1], num_out)
        out[..., start:stop] = piece[..., start - origin : stop - origin]
    assert out is not None
    return out


class OobleckDecoder(nn.Module):
    """What a bottleneck gives back, to audio."""

    def __init__(self, shape: OobleckShape) -> None:
        super().__init__()
        self.shape = shape
        widths, blocks = shape.widths, range(len(shape.strides) - 1, -1, -1)
        self.layers = nn.Sequential(
            nn.Conv1d(shape.latent_dim, widths[-1], 7, padding=3),
            *(_decoder_block(shape, widths[i + 1], widths[i], shape.strides[i]) for i in blocks),
            _activation(shape, widths[0]),
            nn.Conv1d(widths[0], shape.audio_channels, 7, padding=3, bias=False),
            nn.Tanh() if shape.final_tanh else nn.Identity(),
        )

    @property
    def reach(self) -> OobleckReach:
        return OobleckReach.of_decoder(self.shape.strides, nearest=self.shape.use_nearest_upsample)

    def num_samples(self, num_frames: int) -> int:
        """Samples that `num_frames` give: `num_frames * ratio`, less a few at the end when a stride is odd."""
        stages = decoder_stages(self.shape.strides, nearest=self.shape.use_nearest_upsample)
        return length_after([*chain(*stages)], num_frames)

    def forward(self, latents: Float[Tensor, "batch feature frame"]) -> Float[Tensor, "batch channel sample"]:
        audio = cast(Tensor, self.layers(latents))
        return torch.tanh(audio) if self.shape.soft_clip else audio
