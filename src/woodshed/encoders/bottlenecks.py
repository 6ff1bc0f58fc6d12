"""What lies between an autoencoder's encoder and decoder: the parts that make latents or tokens out of features.

All of them work on each frame alone, so they commute with cutting and batching, and none draws random numbers: a VAE
gives its mean and standard deviation, a dithered quantiser rounds. Tokens have the axes (batch, codebook, frame).
`make_bottleneck` builds the one that a model config names; the parts with codebooks are in `quantisers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from woodshed.encoders.quantisers import (
    Bottleneck,
    DitheredFsq,
    FactorisedVq,
    Features,
    Fsq,
    ResidualVq,
    moments,
)
from woodshed.errors import ModelError


class Tanh(Bottleneck):
    """Latents between -scale and scale."""

    def __init__(self, dim: int, scale: float, noise_dim: int = 0) -> None:
        super().__init__(input_dim=dim, latent_dim=dim, noise_dim=noise_dim)
        self.scale = scale

    def analyse(self, pre: Features) -> dict[str, Tensor]:
        return {"latents": torch.tanh(pre / self.scale) * self.scale}


class UnitNorm(Bottleneck):
    """Latents of length one in every frame (`l2_norm`)."""

    def analyse(self, pre: Features) -> dict[str, Tensor]:
        return {"latents": F.normalize(pre, dim=1)}

    def finish(self, latents: Features) -> Features:
        return F.normalize(latents, dim=1)


class Vae(Bottleneck):
    """A normal distribution for each value; whoever reads it draws the sample."""

    def __init__(self, dim: int) -> None:
        super().__init__(input_dim=2 * dim, latent_dim=dim)

    def analyse(self, pre: Features) -> dict[str, Tensor]:
        mean, std = moments(pre)
        return {"mean": mean, "std": std}


_TRAINING_OPTIONS = {
    "decay", "eps", "kmeans_init", "kmeans_iters", "sync_kmeans", "threshold_ema_dead_code", "reset_cluster_size",
    "commitment_weight", "commitment_use_cross_entropy_loss", "quantize_dropout", "quantize_dropout_cutoff_index",
    "quantize_dropout_multiple_of", "orthogonal_reg_weight", "orthogonal_reg_active_codes_only",
    "orthogonal_reg_max_codes", "codebook_diversity_loss_weight", "codebook_diversity_temperature",
    "stochastic_sample_codes", "sample_codebook_temp", "straight_through", "rotation_trick", "sync_codebook",
    "ema_update", "manual_ema_update", "learnable_codebook", "freeze_codebook", "sync_update_v", "quant_grad_frac",
    "return_zeros_for_masked_padding", "noise_dropout", "dither_inference", "quantizer_dropout",
    "bypass_mmd", "force_quantization_f32", "keep_num_codebooks_dim",
}  # fmt: skip
"""Options of the originals that change training, or the form of their own output, and not a frame's value."""


def make_bottleneck(config: Mapping[str, Any] | None, *, feature_dim: int, where: str) -> Bottleneck:
    """Build `model.bottleneck` of a stable-audio-tools config; weights are not set.

    Args:
        feature_dim: features that the encoder gives.
        where: how to name the config in errors.

    Raises:
        ModelError: an unknown type or option, or one that does not fit the encoder.
    """
    if config is None:
        return Bottleneck(input_dim=feature_dim, latent_dim=feature_dim)
    kind = config.get("type")
    if kind not in _OPTIONS:
        raise ModelError(
            f"{where}: bottleneck type {kind!r} is not supported", hint=f"types are {', '.join(sorted(_OPTIONS))}"
        )
    options = _checked(config.get("config") or {}, _OPTIONS[kind], f"{where}: bottleneck {kind}")
    try:
        bottleneck = _make(kind, options, feature_dim)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{where}: bottleneck {kind} cannot be built: {error!r}", hint="check its config") from error
    if bottleneck.input_dim != feature_dim:
        raise ModelError(
            f"{where}: the encoder gives {feature_dim} features, the {kind} bottleneck takes {bottleneck.input_dim}",
            hint="compare encoder latent_dim with the bottleneck's sizes",
        )
    return bottleneck


def _checked(options: Mapping[str, Any], known: Set[str], where: str) -> dict[str, Any]:
    """The options that matter; an unknown one is refused unless it is switched off."""
    for name, value in options.items():
        if name not in known and name not in _TRAINING_OPTIONS and value not in (None, False):
            raise ModelError(
                f"{where}: option {name}={value!r} is not supported", hint=f"options are {', '.join(sorted(known))}"
            )
    return {name: options[name] for name in known & options.keys()}


def _make(kind: str, options: Mapping[str, Any], feature_dim: int) -> Bottleneck:
    with_moments = kind.endswith("_vae")
    match kind:
        case "vae" if feature_dim % 2:
            raise ModelError(f"a VAE splits features in halves, the encoder gives {feature_dim}")
        case "vae":
            return Vae(feature_dim // 2)
        case "tanh":
            return Tanh(feature_dim, options.get("scale", 1.0))
        case "l2_norm":
            return UnitNorm(input_dim=feature_dim, latent_dim=feature_dim)
        case "wasserstein":
            noise = options.get("noise_augment_dim", 0)
            if options.get("use_tanh", False):
                return Tanh(feature_dim, options.get("tanh_scale", 5.0), noise)
            return Bottleneck(input_dim=feature_dim, latent_dim=feature_dim, noise_dim=noise)
        case "fsq":
            return Fsq(**options)
        case "dithered_fsq":
            return DitheredFsq(**options)
        case "rvq" | "rvq_vae":
            return _residual(options, with_moments=with_moments)
        case _:
            return _factorised(options, with_moments=with_moments)


def _residual(options: Mapping[str, Any], *, with_moments: bool) -> Bottleneck:
    size, count = options.get("codebook_size", 1024), options.get("num_quantizers", 8)
    sizes = list(size) if isinstance(size, (list, tuple)) else [size] * count
    passed_on = ("codebook_dim", "use_cosine_sim", "shared_codebook")
    rest = {name: value for name, value in options.items() if name in passed_on}
    return ResidualVq(dim=options.get("dim", 128), codebook_sizes=sizes, with_moments=with_moments, **rest)


def _factorised(options: Mapping[str, Any], *, with_moments: bool) -> Bottleneck:
    if options.get("quantize_on_decode", False):
        raise ModelError(
            "quantize_on_decode=true of a dac_rvq bottleneck is not supported", hint="its latents are not quantised"
        )
    each = options.get("codebook_dim", 8)
    dims = list(each) if isinstance(each, (list, tuple)) else [each] * options.get("n_codebooks", 9)
    return FactorisedVq(
        dim=options.get("input_dim", 512), codebook_size=options.get("codebook_size", 1024), codebook_dims=dims,
        noise_augment_dim=options.get("noise_augment_dim", 0), with_moments=with_moments,
    )  # fmt: skip


_RVQ_OPTIONS = {"dim", "codebook_size", "num_quantizers", "codebook_dim", "use_cosine_sim", "shared_codebook"}
_DAC_OPTIONS = {"input_dim", "n_codebooks", "codebook_size", "codebook_dim", "noise_augment_dim", "quantize_on_decode"}
_FSQ_OPTIONS = {
    "levels", "num_codebooks", "dim", "projection_has_bias", "preserve_symmetry", "bound_hard_clamp",
    "noise_augment_dim",
}  # fmt: skip
_OPTIONS: dict[str, Set[str]] = {
    "vae": set(),
    "tanh": {"scale"},
    "l2_norm": set(),
    "wasserstein": {"noise_augment_dim", "use_tanh", "tanh_scale"},
    "fsq": _FSQ_OPTIONS,
    "dithered_fsq": {"dim", "levels", "num_codebooks"},
    "rvq": _RVQ_OPTIONS,
    "rvq_vae": _RVQ_OPTIONS,
    "dac_rvq": _DAC_OPTIONS,
    "dac_rvq_vae": _DAC_OPTIONS,
}
