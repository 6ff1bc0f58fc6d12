"""Autoencoders from disk: stable-audio-tools configs and checkpoints.

Loading is strict: a checkpoint fits its config key by key, or nothing is loaded. Wrappers are looked through (the
training wrapper, its averaged copy, a diffusion model around the autoencoder); what belongs to them is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from woodshed.encoders.bottlenecks import make_bottleneck
from woodshed.encoders.oobleck import OobleckDecoder, OobleckEncoder, OobleckShape
from woodshed.encoders.quantisers import Bottleneck
from woodshed.encoders.weights import TensorFile, digest_of, fill, open_tensors, unready_codebook, used_keys
from woodshed.errors import ModelError

Parts: TypeAlias = Literal["encoder", "decoder", "both"]

WRAPPERS = {
    "module", "_orig_mod", "model", "autoencoder", "autoencoder_ema", "ema", "ema_model", "pretransform", "diffusion",
    "diffusion_ema",
}  # fmt: skip
"""Names under which wrappers hold an autoencoder; a key's prefix consists of these, or it is someone else's."""
AVERAGED = {"autoencoder_ema", "ema", "ema_model", "diffusion_ema"}
"""Those that hold the average over training steps, which is the better model."""
TRAINING_PARTS = ("discriminator.", "teacher_model.", "loss", "sdstft.", "lrstft.", "mrmel.", "hubert.", "eval_losses.")
"""Beginnings of keys that a training run may have saved beside an autoencoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoencoder:
    """A loaded autoencoder, ready for inference; `encoder` or `decoder` is None when it was not asked for."""

    rate_hz: int
    audio_channels: int
    ratio: int
    """Samples per latent frame."""
    latent_dim: int
    encoder: OobleckEncoder | None
    decoder: OobleckDecoder | None
    bottleneck: Bottleneck
    config: Mapping[str, Any]
    """The autoencoder's own model config, without what wraps it."""
    weights_digest: str | None
    """Of the tensors of encoder and bottleneck, whatever the file, wrapper or part; None without encoder."""
    decoder_digest: str | None
    """Of the decoder's tensors; None without decoder."""
    source: str
    """Which file it came from, and under which prefix."""
    averaged: bool
    """True when the averaged (EMA) copy of the weights was taken."""

    dtype: torch.dtype
    device: torch.device

    @property
    def encode_reach_frames(self) -> int:
        """Frames of context that a window of audio needs on each inner side."""
        return self._encoder.reach.frames

    @property
    def decode_reach_frames(self) -> int:
        """Frames of context that a window of latents needs on each inner side."""
        return self._decoder.reach.frames

    def num_frames(self, num_samples: int) -> int:
        """Latent frames of a signal of `num_samples`, encoded whole."""
        return self._encoder.num_frames(num_samples)

    def encode(self, audio: Float[Tensor, "batch channel sample"]) -> Float[Tensor, "batch feature frame"]:
        """The features that `bottleneck.analyse` takes; of the audio's type and device, which must be the network's."""
        return cast(Tensor, self._encoder(audio))

    def decode(self, features: Float[Tensor, "batch feature frame"]) -> Float[Tensor, "batch channel sample"]:
        """Audio from what `bottleneck.synthesise` gives."""
        return cast(Tensor, self._decoder(features.to(self.device, self.dtype)))

    @property
    def _encoder(self) -> OobleckEncoder:
        if self.encoder is None:
            raise ModelError(f"{self.source} was loaded without its encoder", hint="load it with parts='both'")
        return self.encoder

    @property
    def _decoder(self) -> OobleckDecoder:
        if self.decoder is None:
            raise ModelError(f"{self.source} was loaded without its decoder", hint="load it with parts='both'")
        return self.decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderPlan:
    """What a config says of an autoencoder, checked."""

    rate_hz: int
    encoder: OobleckShape
    decoder: OobleckShape
    latent_dim: int
    bottleneck_config: Mapping[str, Any] | None
    config: Mapping[str, Any]
    where: str


def load_autoencoder(
    model_config: Mapping[str, Any] | str | Path,
    ckpt_path: str | Path,
    *,
    parts: Parts = "both",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """Load a stable-audio-tools autoencoder, alone or out of a full diffusion checkpoint.

    Args:
        model_config: content or path of the model config.
        ckpt_path: `.safetensors`, `.ckpt` or `.pt`.
        parts: what to build. The other part is neither built nor needed.

    Raises:
        ModelError: the config is not an autoencoder's or lacks something, or the checkpoint does not fit it.
    """
    where = "the model config" if isinstance(model_config, Mapping) else str(model_config)
    config = model_config if isinstance(model_config, Mapping) else read_config(Path(model_config))
    return build(plan_autoencoder(config, where), open_tensors(Path(ckpt_path)), parts, dtype, device)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON config.

    Raises:
        ModelError: it is missing, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"the model config {path} cannot be read: {error.strerror}", hint="check its path") from error
    except ValueError as error:
        raise ModelError(f"the model config {path} is not JSON: {error}", hint="is it the checkpoint?") from error
    if not isinstance(content, dict):
        raise ModelError(f"the model config {path} holds a {type(content).__name__}, a JSON object was expected")
    return content


def _get(config: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """config["a"]["b"] for key "a.b", of the given type."""
    value: Any = config
    for i, name in enumerate(path := key.split(".")):
        if not isinstance(value, Mapping) or name not in value:
            raise ModelError(f"{where} has no key {'.'.join(path[: i + 1])!r}", hint="is it the config of this model?")
        value = value[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ModelError(f"{where}: {key} is {value!r}, a value of type {kind.__name__} was expected")
    return value


def plan_autoencoder(config: Mapping[str, Any], where: str) -> AutoencoderPlan:
    """Read and check a model config. `where` names it in errors."""
    model, prefix = _autoencoder_model(config, where)
    for side in ("encoder", "decoder"):
        kind = _get(model, f"{side}.type", str, f"{where} ({prefix})")
        if kind != "oobleck":
            raise ModelError(
                f"{where}: {side} type {kind!r} is not supported", hint="oobleck is; for others try the codec encoder"
            )
    if model.get("pretransform") is not None:
        raise ModelError(f"{where}: an autoencoder with a pretransform of its own is not supported")
    inner = f"{where} ({prefix})"
    encoder = OobleckShape.from_config(_get(model, "encoder.config", Mapping, inner), side="encoder", where=inner)
    soft_clip = {"soft_clip": True} if model["decoder"].get("soft_clip") else {}
    options = {**_get(model, "decoder.config", Mapping, inner), **soft_clip}
    decoder = OobleckShape.from_config(options, side="decoder", where=inner)
    _check_sizes(model, encoder, decoder, inner)
    own = {"model_type": "autoencoder", "sample_rate": _get(config, "sample_rate", int, where), "model": dict(model)}
    return AutoencoderPlan(
        rate_hz=own["sample_rate"], encoder=encoder, decoder=decoder, latent_dim=_get(model, "latent_dim", int, inner),
        bottleneck_config=model.get("bottleneck"), config=own, where=inner,
    )  # fmt: skip


def _autoencoder_model(config: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], str]:
    """The part of a config that describes the autoencoder, and where it stands."""
    kind = _get(config, "model_type", str, where)
    model = _get(config, "model", Mapping, where)
    if kind == "autoencoder":
        return model, "model"
    pretransform = model.get("pretransform")
    if kind == "diffusion_autoencoder" or not isinstance(pretransform, Mapping):
        raise ModelError(
            f"{where} is a {kind!r} model, which has no autoencoder that can encode",
            hint="give an autoencoder's config, or a diffusion model's with an autoencoder as its pretransform",
        )
    if pretransform.get("type") != "autoencoder":
        raise ModelError(f"{where}: the pretransform is {pretransform.get('type')!r}, an autoencoder was expected")
    return _get(pretransform, "config", Mapping, f"{where} (model.pretransform)"), "model.pretransform.config"


def _check_sizes(model: Mapping[str, Any], encoder: OobleckShape, decoder: OobleckShape, where: str) -> None:
    told = {"downsampling_ratio": encoder.ratio, "io_channels": encoder.audio_channels}
    if "in_channels" in model:
        told = {"downsampling_ratio": encoder.ratio, "in_channels": encoder.audio_channels}
    for key, actual in told.items():
        if key in model and model[key] != actual:
            raise ModelError(f"{where}: {key} is {model[key]!r}, but the encoder's own config makes it {actual}")
    if encoder.ratio != decoder.ratio:
        raise ModelError(
            f"{where}: the encoder shortens {encoder.ratio} times and the decoder lengthens {decoder.ratio} times",
            hint="their strides multiply to the same number, in the same order",
        )


def build(
    plan: AutoencoderPlan, file: TensorFile, parts: Parts, dtype: torch.dtype, device: torch.device | str
) -> Autoencoder:
    """Build the parts of a checked plan and fill them from a file."""
    with torch.device("meta"):
        encoder = None if parts == "decoder" else OobleckEncoder(plan.encoder)
        decoder = None if parts == "encoder" else OobleckDecoder(plan.decoder)
        bottleneck = make_bottleneck(plan.bottleneck_config, feature_dim=plan.encoder.latent_dim, where=plan.where)
    _check_fit(plan, bottleneck)
    built: dict[str, nn.Module] = {"bottleneck": bottleneck}
    built |= {name: part for name, part in (("encoder", encoder), ("decoder", decoder)) if part is not None}
    tensors, prefix = _autoencoder_tensors(file, tuple(name for name in built if name != "bottleneck"))
    if (unready := unready_codebook(tensors)) is not None:
        raise ModelError(
            f"{file.path}: {unready} is false: training never filled the codebook",
            hint="use a checkpoint of a later step",
        )
    fill(built, tensors, dtype=dtype, device=device)
    averaged = bool(AVERAGED & set(prefix.split(".")))
    return Autoencoder(
        rate_hz=plan.rate_hz, audio_channels=plan.encoder.audio_channels, ratio=plan.encoder.ratio,
        latent_dim=bottleneck.latent_dim, encoder=encoder, decoder=decoder, bottleneck=bottleneck, config=plan.config,
        weights_digest=digest_of(tensors, used_keys(tensors, ("encoder", "bottleneck"))) if encoder else None,
        decoder_digest=digest_of(tensors, used_keys(tensors, ("decoder",))) if decoder else None,
        source=_told(file, prefix, averaged),
        averaged=averaged, dtype=dtype, device=torch.device(device),
    )  # fmt: skip


def _told(file: TensorFile, prefix: str, averaged: bool) -> str:
    if not prefix:
        return str(file.path)
    return f"{file.path} ({prefix.rstrip('.')}{', averaged weights' if averaged else ''})"


def _check_fit(plan: AutoencoderPlan, bottleneck: Bottleneck) -> None:
    if bottleneck.latent_dim != plan.latent_dim:
        raise ModelError(
            f"{plan.where}: latent_dim is {plan.latent_dim}, but encoder and bottleneck make it {bottleneck.latent_dim}"
        )
    if bottleneck.decoder_dim != plan.decoder.latent_dim:
        raise ModelError(
            f"{plan.where}: the decoder takes {plan.decoder.latent_dim} rows,"
            f" the bottleneck gives {bottleneck.decoder_dim}"
        )


def _autoencoder_tensors(file: TensorFile, needed: tuple[str, ...]) -> tuple[TensorFile, str]:
    """The tensors of the needed parts, with keys from `encoder.`, `bottleneck.` or `decoder.` on, and their prefix.

    Raises:
        ModelError: no autoencoder is in the file, or it holds something that belongs to none of its parts.
    """
    start = re.compile(rf"((?:[^.]+\.)*?){needed[0]}\.layers\.0\.")
    prefixes = {match[1] for key in file.shapes if (match := start.match(key))}
    known = sorted((p for p in prefixes if set(p.split(".")[:-1]) <= WRAPPERS), key=_preference)
    if not known:
        groups = sorted({key.split(".")[0] for key in file.shapes})
        raise ModelError(
            f"{file.path} holds no {needed[0]} of an autoencoder: its keys begin with {', '.join(groups[:10])}",
            hint="give the autoencoder's checkpoint, its training checkpoint, or a full diffusion checkpoint",
        )
    prefix = known[0]
    inside = {key[len(prefix) :]: key for key in file.shapes if key.startswith(prefix)}
    others = [p.removeprefix(prefix) for p in known[1:] if p.startswith(prefix)]
    wanted = {
        key: name
        for name, key in inside.items()
        if name.startswith(tuple(f"{part}." for part in (*needed, "bottleneck")))
        or not name.startswith(("encoder.", "decoder.", *others, *TRAINING_PARTS))
    }
    return file.select(wanted), prefix


def _preference(prefix: str) -> tuple[bool, int, str]:
    """Averaged weights first, then the least wrapped."""
    segments = prefix.split(".")
    return (not AVERAGED & set(segments), len(segments), prefix)
