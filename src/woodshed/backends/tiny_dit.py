"""woodshed-tiny-dit as a base model: what analysis and fine-tuning ask of it, and samples to listen to.

An example is the first channel of an item's latents of woodshed-tiny with a tag; the loss is flow matching as ACE-Step
does it: x_t = t x1 + (1 - t) x0 for noise x1 and data x0, and the squared error of the velocity x1 - x0.

How the weights were made, on which music and how well they do is in `docs/models/woodshed-tiny-dit.md`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from woodshed.backends.draws import checked_quantile, timestep_of
from woodshed.backends.noise import noise
from woodshed.backends.tiny_dit_network import TinyDit, load_woodshed_tiny_dit
from woodshed.contracts import Draw, Variant
from woodshed.encoders.tiny import load_woodshed_tiny
from woodshed.errors import ItemError, UsageError

TEXTS = ("tag", "genre", "caption", "prompt")
"""Where in an item's `info` a tag is looked for, in this order."""


@dataclass(frozen=True, slots=True)
class TinyDitExample:
    """Valid frames only, on the model's device."""

    latents: Float[Tensor, "frame latent"]
    tag: int
    """Row of the condition: 0 for no tag, else 1 + the tag's place in the config's list."""


def woodshed_tiny_dit(*, device: str | torch.device = "cpu") -> TinyDitBackend:
    """The trained model that ships in this package.

    >>> model = woodshed_tiny_dit()
    >>> example = model.example({"latents": torch.randn(64, 100), "info": {"prompt": "Slow rock with an organ."}})
    >>> model.network.config.tags[example.tag - 1]
    'rock'
    >>> model.loss(example, Draw(seed=0, timestep=model.timestep(0.5))).shape
    torch.Size([])
    """
    return TinyDitBackend(load_woodshed_tiny_dit(device=device))


class TinyDitBackend:
    """`Trainable`, `Predicts` and `LossOfMany`. Weights of its layers take gradients, all others are frozen."""

    def __init__(self, network: TinyDit) -> None:
        self.network = network.requires_grad_(False)
        # Named once: adapters that are put in the layers' places later do not change what layers are called.
        self._layers = {
            name: module
            for name, module in network.named_modules()
            if name.startswith("layers.") and isinstance(module, nn.Linear)
        }
        for layer in self._layers.values():
            layer.requires_grad_(True)

    @property
    def variant(self) -> Variant:
        return Variant(name="base")

    @property
    def condition_dropout(self) -> float:
        return self.network.config.condition_dropout

    @property
    def device(self) -> torch.device:
        return self.network.condition.device

    def layers(self) -> Mapping[str, nn.Module]:
        """All projections of the attentions and feed-forwards, such as `layers.0.self_attn.q_proj`."""
        return self._layers

    def timestep(self, quantile: float) -> float:
        """Quantile of the logistic function of a normal variable.

        Raises:
            UsageError: the quantile is not within 0 and 1.

        >>> [round(woodshed_tiny_dit().timestep(q), 3) for q in (0.0, 0.1, 0.5, 1.0)]
        [0.0, 0.217, 0.5, 1.0]
        """
        if checked_quantile(quantile) in (0.0, 1.0):
            return float(quantile)
        config = self.network.config
        return 1 / (1 + math.exp(-NormalDist(config.time_mean, config.time_std).inv_cdf(quantile)))

    def example(self, item: Mapping[str, Any]) -> TinyDitExample:
        """An item of `woodshed.open` over a folder that was encoded with woodshed-tiny.

        Of two channels (128 rows) the first is taken, of frames those that `mask` calls valid, and of more than
        `longest_frames` of them the middle. The tag is the first one that stands as a word in the item's `tag`,
        `genre`, `caption` or `prompt`; none if there is none.

        Raises:
            UsageError: the item has no latents, or they are another encoder's.
            ItemError: there is no valid frame, or a value that is not finite.
        """
        config = self.network.config
        info = item.get("info", {})
        name = info.get("relpath", info.get("latent_filename", "item"))
        num_rows = item["latents"].shape[0] if "latents" in item else 0
        if num_rows == 0 or num_rows % config.latent_dim:
            raise UsageError(
                f"{name} has {num_rows} rows of latents; woodshed-tiny gives {config.latent_dim} for each channel",
                hint="encode the sounds with `woodshed encode` and its default model, woodshed-tiny",
            )
        latents = item["latents"][: config.latent_dim].T
        if "mask" in item:
            latents = latents[item["mask"]]
        if not len(latents):
            raise ItemError(f"{name} has no valid frame", kind="empty")
        if not bool(torch.isfinite(latents).all()):
            raise ItemError(f"{name} has latents that are not finite", kind="not_finite", hint="encode it again")
        start = max(0, (len(latents) - config.longest_frames) // 2)
        kept = latents[start : start + config.longest_frames]
        return TinyDitExample(
            kept.to(self.device, self.network.condition.dtype), config.tag_index(tag_in(info, config.tags))
        )

    def loss(self, example: TinyDitExample, draw: Draw) -> Tensor:
        """Mean squared error of the velocity over all values of the example."""
        return self.losses([example], [draw])[0]

    def losses(self, examples: Sequence[TinyDitExample], draws: Sequence[Draw]) -> Float[Tensor, "pair"]:
        """`loss` of each pair; shorter examples are filled up, and what fills them is seen by nothing."""
        clean, mask = self._padded([example.latents for example in examples])
        noises, _ = self._padded([self._noise(e, d) for e, d in zip(examples, draws, strict=True)])
        error = (self._velocity(examples, draws, clean, noises, mask) - (noises - clean)).square().mean(2)
        losses: Tensor = (error * mask).sum(1) / mask.sum(1)
        return losses

    @torch.no_grad()
    def silent(self, example: TinyDitExample) -> TinyDitExample:
        """The example's tag over silence as woodshed-tiny encodes it, away from the ends of a sound."""
        codec = load_woodshed_tiny(device=self.device)
        frames = codec.encode(torch.zeros(1, 1, 2 * codec.config.rate_hz, device=self.device))[0]
        steady = frames[:, frames.shape[1] // 2].to(example.latents.dtype)
        return TinyDitExample(steady.expand(len(example.latents), -1).contiguous(), example.tag)

    def predict(self, example: TinyDitExample, draw: Draw) -> Float[Tensor, "frame latent"]:
        """The velocity that the network gives."""
        clean, mask = self._padded([example.latents])
        noises = self._noise(example, draw)[None]
        return self._velocity([example], [draw], clean, noises, mask)[0]

    @torch.no_grad()
    def sample(
        self, tag: str | None, num_frames: int, seed: int, steps: int = 32, guidance: float = 2.0
    ) -> Float[Tensor, "latent frame"]:
        """Latents to decode with woodshed-tiny: from noise to data by the midpoint rule, at equal steps of time.

        Args:
            tag: one of the config's tags; None for no condition.
            num_frames: length, 50 a second, up to the longest that training saw.
            steps: each costs two looks of the network, four with guidance.
            guidance: how far to go from the velocity without the tag towards that with it; 1 is there, 2 beyond.

        Raises:
            UsageError: an unknown tag, or a length that the model was not trained for.
        """
        config = self.network.config
        if not 1 <= num_frames <= config.longest_frames or steps < 1:
            raise UsageError(
                f"{num_frames} frames in {steps} steps cannot be sampled",
                hint=f"ask for 1 to {config.longest_frames} frames and at least one step",
            )
        row = config.tag_index(tag)
        rows = torch.tensor([row] if row == 0 or guidance == 1 else [row, 0], device=self.device)
        dtype = self.network.condition.dtype

        def velocity(x: Tensor, time: float) -> Tensor:
            times = torch.full((len(rows),), time, device=self.device, dtype=dtype)
            said: Tensor = self.network(x.expand(len(rows), -1, -1), times, rows)
            return said if len(rows) == 1 else said[1:] + guidance * (said[:1] - said[1:])

        x = noise(Draw(seed=seed), (1, num_frames, config.latent_dim), device=self.device, dtype=dtype)
        for step in range(steps, 0, -1):
            halfway = x - velocity(x, step / steps) / (2 * steps)
            x = x - velocity(halfway, (step - 0.5) / steps) / steps
        return x[0].T

    def _noise(self, example: TinyDitExample, draw: Draw) -> Float[Tensor, "frame latent"]:
        return noise(draw, example.latents.shape, device=self.device, dtype=example.latents.dtype)

    def _padded(
        self, rows: Sequence[Float[Tensor, "_ latent"]]
    ) -> tuple[Float[Tensor, "pair frame latent"], Bool[Tensor, "pair frame"]]:
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        return padded, torch.arange(padded.shape[1], device=self.device) < lengths[:, None]

    def _velocity(
        self,
        examples: Sequence[TinyDitExample],
        draws: Sequence[Draw],
        clean: Float[Tensor, "pair frame latent"],
        noises: Float[Tensor, "pair frame latent"],
        mask: Bool[Tensor, "pair frame"],
    ) -> Float[Tensor, "pair frame latent"]:
        times = torch.tensor([timestep_of(draw) for draw in draws], device=self.device, dtype=clean.dtype)
        tags = [0 if draw.drop_condition else example.tag for example, draw in zip(examples, draws, strict=True)]
        rows: Int64[Tensor, "pair"] = torch.tensor(tags, device=self.device)
        share = times[:, None, None]
        velocity: Tensor = self.network(share * noises + (1 - share) * clean, times, rows, mask)
        return velocity


def tag_in(info: Mapping[str, Any], tags: Sequence[str]) -> str | None:
    """The first known tag that stands as a word in what is known of an item.

    >>> tag_in({"prompt": "Acoustic rock, no drums"}, ("rock", "acoustic", "drums"))
    'acoustic'
    >>> tag_in({"tag": "Hold music", "prompt": "rock"}, ("rock", "hold music"))
    'hold music'
    >>> tag_in({"prompt": "rocket"}, ("rock",)) is None
    True
    """
    words = re.compile(rf"\b({'|'.join(map(re.escape, tags))})\b", re.IGNORECASE)
    for key in TEXTS:
        found = words.search(str(info.get(key) or ""))
        if found:
            return found[1].lower()
    return None
