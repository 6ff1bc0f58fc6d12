"""Stable Audio Open as a `Trainable`, by diffusers' `StableAudioDiTModel`.

Its loss is that of its own training. With a = cos(t * pi/2) and s = sin(t * pi/2), the network sees a * x0 + s * x1 of
data x0 and noise x1, and says v = a * x1 - s * x0; mean squared error over all frames that it is given, silence after
the end included. Timesteps are uniform. In 10 of 100 draws training puts zeros in place of all that cross-attention
sees; the timing that stands before the frames stays.

Texts are not encoded here: an item brings its `condition`, or is looked at without one, as a dropped condition is.
Source: stable-audio-tools' training of conditioned diffusion; diffusers' pipeline for where timing enters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from woodshed.backends.draws import checked_quantile, losses_by_shape, timestep_of
from woodshed.backends.noise import noise
from woodshed.contracts import Draw, Variant
from woodshed.encoders.checkpoints import read_config
from woodshed.encoders.hub import ModelFolder
from woodshed.encoders.library_models import DIFFUSERS_STEM, build_unfilled, fill_strictly, open_weights, read_settings
from woodshed.errors import ItemError, ModelError, UsageError

CONDITION_DROPOUT = 0.1
_LAYER = re.compile(r"transformer_blocks\.(\d+)\.(attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2))", re.ASCII)


@dataclass(frozen=True, slots=True)
class StableAudioExample:
    """A clip, on the model's device."""

    latents: Float[Tensor, "latent frame"]
    """Float32."""
    condition: Float[Tensor, "token width"]
    """All that cross-attention sees: text, then two tokens of timing; one token of zeros without a text."""
    timing: Float[Tensor, "1 global"]
    """Start and total seconds, as they stand before the frames."""

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and tokens: examples of one shape can share a pass."""
        return self.latents.shape[1], self.condition.shape[0]


class StableAudio:
    """`Trainable`, `Predicts` and `LossOfMany`. Weights of its layers take gradients, all others are frozen.

    Args:
        transformer: diffusers' `StableAudioDiTModel`.
        projection_model: diffusers' `StableAudioProjectionModel`, which makes tokens of seconds.
        frame_rate_hz: latent frames a second.
        name: what it is called.
    """

    condition_dropout = CONDITION_DROPOUT

    def __init__(self, transformer: Any, projection_model: Any, *, frame_rate_hz: float, name: str) -> None:
        self.transformer = transformer.requires_grad_(False).eval()
        self.variant = Variant(name=name)
        self._projection_model, self._frame_rate_hz = projection_model.requires_grad_(False).eval(), frame_rate_hz
        parameter = next(transformer.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._layers = _candidates(transformer)
        for layer in self._layers.values():
            layer.requires_grad_(True)

    def layers(self) -> Mapping[str, nn.Module]:
        """All projections of attention and feed-forward by diffusers' names, by block and then by name."""
        return self._layers

    def timestep(self, quantile: float) -> float:
        """The quantile itself: timesteps are uniform.

        Raises:
            UsageError: the quantile is not within 0 and 1.
        """
        return checked_quantile(quantile)

    def example(self, item: Mapping[str, Any]) -> StableAudioExample:
        """Made of an item of `woodshed.open`.

        `condition` (token, width) is the text as the pipeline's `encode_prompt` gives it. Timing comes from the item's
        `seconds_start` and `seconds_total`; without them the clip is taken for a whole file.

        Raises:
            UsageError: the item has no latents, or its arrays are of another model.
            ItemError: it has no frame, or values that are not finite.
        """
        info, latents = item.get("info", {}), item.get("latents")
        width, channels = self.transformer.config.cross_attention_input_dim, self.transformer.config.in_channels
        if latents is None or latents.shape[0] != channels:
            raise UsageError(
                f"the item has {0 if latents is None else latents.shape[0]} latents, this model takes {channels}",
                hint="encode the sounds with the model's own autoencoder",
            )
        text = item.get("condition")
        if text is not None and text.shape[-1] != width:
            raise UsageError(f"the item's condition has the width {text.shape[-1]}, this model takes {width}")
        name = info.get("relpath", "the item")
        if not latents.shape[1]:
            raise ItemError(f"{name} has no frame", kind="empty")
        if not bool(latents.isfinite().all()) or not (text is None or bool(text.isfinite().all())):
            raise ItemError(f"{name} holds values that are not finite", kind="not_finite", hint="encode it again")
        start_s = float(info.get("seconds_start", 0))
        total_s = float(info.get("seconds_total", start_s + latents.shape[1] / self._frame_rate_hz))
        start, end = self._timing(start_s, total_s)
        if text is None:
            condition = torch.zeros(1, width, device=self.device, dtype=self.dtype)
        else:
            condition = torch.cat([text.to(self.device, self.dtype), start, end])
        return StableAudioExample(latents.to(self.device, torch.float32), condition, torch.cat([start, end], dim=1))

    @torch.no_grad()
    def _timing(self, start_s: float, total_s: float) -> tuple[Float[Tensor, "1 width"], Float[Tensor, "1 width"]]:
        seconds = (torch.tensor([value], device=self.device) for value in (start_s, total_s))
        made = self._projection_model(start_seconds=next(seconds), end_seconds=next(seconds))
        return made.seconds_start_hidden_states[0], made.seconds_end_hidden_states[0]

    def predict(self, example: StableAudioExample, draw: Draw) -> Float[Tensor, "latent frame"]:
        """What the network says v is, in its own type."""
        predicted, _ = self._look([example], [draw])
        return predicted[0]

    def loss(self, example: StableAudioExample, draw: Draw) -> Float[Tensor, ""]:
        """Mean squared error of v over frames and latents, in float32."""
        return self._losses([example], [draw])[0]

    def losses(self, examples: Sequence[StableAudioExample], draws: Sequence[Draw]) -> Float[Tensor, " pair"]:
        """`loss` of each pair, in order; clips of equal length share a pass, the others are computed alone."""
        return losses_by_shape(examples, draws, shape_of=lambda example: example.shape, losses_of=self._losses)

    def _losses(self, examples: Sequence[StableAudioExample], draws: Sequence[Draw]) -> Float[Tensor, " pair"]:
        predicted, target = self._look(examples, draws)
        return (predicted.float() - target).square().mean(dim=(1, 2))

    def _look(
        self, examples: Sequence[StableAudioExample], draws: Sequence[Draw]
    ) -> tuple[Float[Tensor, "pair latent frame"], Float[Tensor, "pair latent frame"]]:
        """What the network says v is for examples of one shape, and what it is."""
        data = torch.stack([example.latents for example in examples])
        start = torch.stack([noise(draw, data.shape[1:], device=self.device, dtype=data.dtype) for draw in draws])
        # The network is told t in its own type: what it sees must be made with that t.
        told = torch.tensor([timestep_of(draw) for draw in draws], device=self.device, dtype=self.dtype)
        angles = told.to(data.dtype)[:, None, None] * (math.pi / 2)
        conditions = [
            torch.zeros_like(example.condition) if draw.drop_condition else example.condition
            for example, draw in zip(examples, draws, strict=True)
        ]
        predicted = self.transformer(
            (angles.cos() * data + angles.sin() * start).to(self.dtype),
            told,
            encoder_hidden_states=torch.stack(conditions),
            global_hidden_states=torch.stack([example.timing for example in examples]),
            rotary_embedding=self._rotations(data.shape[2] + 1),
            return_dict=False,
        )[0]
        return predicted, angles.cos() * start - angles.sin() * data

    def _rotations(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions; half of each head is rotated, and the timing has a place of its own."""
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        width = self.transformer.config.attention_head_dim // 2
        cosines, sines = get_1d_rotary_pos_embed(width, length, use_real=True, repeat_interleave_real=False)
        return cosines.to(self.device), sines.to(self.device)


def load_stable_audio(
    name: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> StableAudio:
    """Load the transformer and the timing of a `StableAudioPipeline`: a folder in diffusers' layout, or a hub name.

    Raises:
        ModelError: there is no such pipeline, or its parts do not fit their configs.
    """
    from diffusers import StableAudioDiTModel, StableAudioProjectionModel

    source = ModelFolder(name)
    patterns = ("model_index.json", "transformer/*", "projection_model/*", "vae/config.json")
    folder = source.bring(patterns)
    kind = read_config(folder / "model_index.json").get("_class_name")
    if kind != "StableAudioPipeline":
        raise ModelError(f"{name} is a {kind}, a StableAudioPipeline was expected", hint="is it another model?")
    vae = read_config(folder / "vae" / "config.json")
    ratios, rate_hz = vae.get("downsampling_ratios"), vae.get("sampling_rate")
    if not isinstance(ratios, list) or not isinstance(rate_hz, int):
        raise ModelError(f"{folder / 'vae'} has no downsampling_ratios or sampling_rate", hint="is its config there?")
    built = [
        _load(folder / part, kind, device, dtype)
        for part, kind in (("transformer", StableAudioDiTModel), ("projection_model", StableAudioProjectionModel))
    ]
    return StableAudio(*built, frame_rate_hz=rate_hz / math.prod(ratios), name=Path(source.name).name)


def _load(folder: Path, kind: Any, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    module = build_unfilled(kind, read_settings(folder, kind.__name__), folder)
    fill_strictly(module, open_weights(folder, DIFFUSERS_STEM), dtype=dtype, device=device)
    return module


def _candidates(transformer: nn.Module) -> dict[str, nn.Module]:
    found = ((match, module) for name, module in transformer.named_modules() if (match := _LAYER.fullmatch(name)))
    return {match[0]: module for match, module in sorted(found, key=lambda pair: (int(pair[0][1]), pair[0][2]))}
