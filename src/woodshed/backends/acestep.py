"""ACE-Step 1.5 as a `Trainable`: base, sft, turbo and XL, by diffusers' transformer.

Its loss is that of its own training. Flow matching: x_t = t * x1 + (1 - t) * x0 with data x0 and noise x1, and the
network, told t twice (r = t: no mean flow), says the velocity x1 - x0; mean squared error. Beside the noise it sees the
context: encoded silence and ones for "write here". In 15 of 100 draws training replaces every token of the condition by
the null condition.

Layers are all projections of attention and MLP, eleven per block, by their upstream names without `decoder.`.
Source: the upstream model's training forward pass; docstrings of diffusers' `AceStepTransformer1DModel`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from woodshed.backends.draws import checked_quantile, losses_by_shape, timestep_of
from woodshed.backends.noise import noise
from woodshed.contracts import Draw, Variant
from woodshed.encoders.acestep.checkpoint import open_checkpoint
from woodshed.encoders.acestep.names import layer_order, to_upstream
from woodshed.errors import ItemError, UsageError

CONDITION_DROPOUT = 0.15


@dataclass(frozen=True, slots=True)
class SongExample:
    """A song, or a crop of one, on the model's device."""

    latents: Float[Tensor, "latent frame"]
    """Float32, without padding: the transformer takes no masks, so that it would hear padding."""
    condition: Float[Tensor, "token width"]
    """In the transformer's type."""

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and tokens: examples of one shape can share a pass."""
        return self.latents.shape[1], self.condition.shape[0]


class AceStep:
    """`Trainable`, `Predicts` and `LossOfMany`. Weights of its layers take gradients, all others are frozen.

    Args:
        transformer: diffusers' `AceStepTransformer1DModel`.
        silence: what silence encodes to; repeated where a song is longer.
        null_condition: stands in for every token of a dropped condition.
        mu: of the logit-normal that training draws timesteps from.
        sigma: of the same.
    """

    condition_dropout = CONDITION_DROPOUT

    def __init__(
        self,
        transformer: nn.Module,
        *,
        silence: Float[Tensor, "1 frame latent"],
        null_condition: Float[Tensor, "1 1 width"],
        variant: Variant,
        mu: float,
        sigma: float,
    ) -> None:
        self.transformer, self.variant = transformer.requires_grad_(False).eval(), variant
        self._mu, self._sigma = mu, sigma
        parameter = next(transformer.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._silence = silence.to(self.device, self.dtype)
        self._null_condition = null_condition.to(self.device, self.dtype)
        self._layers = _candidates(transformer)
        for layer in self._layers.values():
            layer.requires_grad_(True)

    def layers(self) -> Mapping[str, nn.Module]:
        """All q, k, v, o, gate, up and down projections, by block and then by name."""
        return self._layers

    def timestep(self, quantile: float) -> float:
        """Quantile of the larger of two logit-normal draws, which is what training takes.

        Raises:
            UsageError: the quantile is not within 0 and 1.
        """
        return timestep_quantile(quantile, mu=self._mu, sigma=self._sigma)

    def example(self, item: Mapping[str, Any]) -> SongExample:
        """Made of an item of a `woodshed songs` folder; padding is cut off.

        Raises:
            UsageError: the item has no condition, or was made for another checkpoint.
            ItemError: it has no frame of sound, or values that are not finite.
        """
        if "latents" not in item or "condition" not in item:
            raise UsageError(
                f"ACE-Step looks at latents and condition of a song, this item has {', '.join(item)}",
                hint="open a folder that `woodshed songs` made",
            )
        latents, condition = item["latents"], item["condition"]
        if "mask" in item:
            latents = latents[:, item["mask"]]
        widths = (latents.shape[0], condition.shape[1])
        wanted = (self._silence.shape[-1], self._null_condition.shape[-1])
        if widths != wanted:
            raise UsageError(
                f"the item has {widths[0]} latents and a condition of width {widths[1]},"
                f" this checkpoint takes {wanted[0]} and {wanted[1]}",
                hint="prepare the songs with the checkpoint that is trained",
            )
        name = item.get("info", {}).get("relpath", "the item")
        if not latents.shape[1]:
            raise ItemError(f"{name} has no frame of sound", kind="empty")
        if not bool(latents.isfinite().all() and condition.isfinite().all()):
            raise ItemError(f"{name} holds values that are not finite", kind="not_finite", hint="prepare it again")
        return SongExample(latents.to(self.device, torch.float32), condition.to(self.device, self.dtype))

    def predict(self, example: SongExample, draw: Draw) -> Float[Tensor, "latent frame"]:
        """The velocity that the network says, in its own type."""
        predicted, _ = self._look([example], [draw])
        return predicted[0]

    def loss(self, example: SongExample, draw: Draw) -> Float[Tensor, ""]:
        """Mean squared error of the velocity over frames and latents, in float32."""
        return self._losses([example], [draw])[0]

    def losses(self, examples: Sequence[SongExample], draws: Sequence[Draw]) -> Float[Tensor, " pair"]:
        """`loss` of each pair, in order; songs of equal length share a pass, the others are computed alone."""
        return losses_by_shape(examples, draws, shape_of=lambda example: example.shape, losses_of=self._losses)

    def silent(self, example: SongExample) -> SongExample:
        """The song's condition over encoded silence of the same length."""
        silence = self._context(example.latents.shape[1])[0, :, : example.latents.shape[0]]
        return SongExample(silence.T.float(), example.condition)

    def _losses(self, examples: Sequence[SongExample], draws: Sequence[Draw]) -> Float[Tensor, " pair"]:
        predicted, target = self._look(examples, draws)
        return (predicted.float() - target).square().mean(dim=(1, 2))

    def _look(
        self, examples: Sequence[SongExample], draws: Sequence[Draw]
    ) -> tuple[Float[Tensor, "pair latent frame"], Float[Tensor, "pair latent frame"]]:
        """The velocity that the network says for examples of one shape, and the true one."""
        data = torch.stack([example.latents for example in examples])
        start = torch.stack([noise(draw, data.shape[1:], device=self.device, dtype=data.dtype) for draw in draws])
        # The network is told t in its own type: what it sees must be made with that t.
        told = torch.tensor([timestep_of(draw) for draw in draws], device=self.device, dtype=self.dtype)
        times = told.to(data.dtype)[:, None, None]
        noised = times * start + (1 - times) * data
        predicted = self.transformer(
            hidden_states=noised.transpose(1, 2).to(self.dtype),
            timestep=told,
            timestep_r=told,
            encoder_hidden_states=torch.stack(
                [self._condition(example, draw) for example, draw in zip(examples, draws, strict=True)]
            ),
            context_latents=self._context(data.shape[2]).expand(len(data), -1, -1),
            return_dict=False,
        )[0]
        return predicted.transpose(1, 2), start - data

    def _condition(self, example: SongExample, draw: Draw) -> Float[Tensor, "token width"]:
        return self._null_condition[0].expand_as(example.condition) if draw.drop_condition else example.condition

    def _context(self, num_frames: int) -> Float[Tensor, "1 frame context"]:
        """Silence where the song goes, and ones that say: to be written."""
        repeats = math.ceil(num_frames / self._silence.shape[1])
        silence = self._silence.repeat(1, repeats, 1)[:, :num_frames]
        return torch.cat([silence, torch.ones_like(silence)], dim=-1)


def load_acestep(
    name: str | Path,
    *,
    variant: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> AceStep:
    """Load the transformer of a checkpoint; arguments as `open_checkpoint` takes them.

    Raises:
        UsageError: several variants are there and none is named, or the named one is not there.
        ModelError: this is no ACE-Step checkpoint, or it does not fit its config.
    """
    checkpoint = open_checkpoint(name, variant=variant, trust_remote_code=trust_remote_code)
    return AceStep(
        checkpoint.transformer(device=device, dtype=dtype),
        silence=checkpoint.silence_latent(),
        null_condition=checkpoint.null_condition(),
        variant=checkpoint.variant,
        mu=checkpoint.timestep_mu,
        sigma=checkpoint.timestep_sigma,
    )


def timestep_quantile(quantile: float, *, mu: float, sigma: float) -> float:
    """Quantile of max(s1, s2), each the sigmoid of a normal draw: P(max <= t) is the square of P(s <= t).

    Raises:
        UsageError: the quantile is not within 0 and 1.

    >>> round(timestep_quantile(0.5, mu=-0.4, sigma=1.0), 3)
    0.536
    """
    root = math.sqrt(checked_quantile(quantile))
    if root in (0.0, 1.0):
        return root
    return 1 / (1 + math.exp(-(mu + sigma * NormalDist().inv_cdf(root))))


def _candidates(transformer: nn.Module) -> dict[str, nn.Module]:
    named = ((to_upstream(name), module) for name, module in transformer.named_modules())
    ordered = sorted((order, name, module) for name, module in named if (order := layer_order(name)) is not None)
    return {name: module for _, name, module in ordered}
