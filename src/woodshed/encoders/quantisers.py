"""The bottleneck's front, and the bottlenecks that quantise: finite scalar, residual and factorised residual.

Names of parameters are those of stable-audio-tools checkpoints, which are those of vector_quantize_pytorch
(`ResidualVQ`, `FSQ`) and descript-audio-codec (`ResidualVectorQuantize`).
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from woodshed.errors import ModelError

Kind: TypeAlias = Literal["latents", "tokens"]
Features: TypeAlias = Float[Tensor, "batch feature frame"]
Tokens: TypeAlias = Int[Tensor, "batch codebook frame"]

FSQ_MARGIN = 1e-3
"""How much wider than the outermost level the tanh of a finite scalar quantiser reaches."""
TRAINING_STATE = ("initted", "cluster_size", "embed_avg", "_levels", "_basis", "implicit_codebook")
"""Leaves of checkpoint keys that hold statistics of training or what follows from the config: not needed here."""
LEAST_STD = 1e-4
"""Added to the softplus of a VAE's scale, as in training."""


class Bottleneck(nn.Module):
    """The front that all bottlenecks share; on its own it passes features through (`model.bottleneck` absent).

    Args:
        input_dim: features that the encoder gives.
        latent_dim: rows of the latents that are stored.
        codebook_sizes: for tokens, entries of each codebook.
        noise_dim: rows of noise that the decoder expects behind the latents.
    """

    kind: Kind = "latents"
    original_axes: str | None = None
    """Axes of the tokens as stable-audio-tools writes them, `codebook frame` or `frame codebook`; None for latents."""
    original_dtype: str | None = None
    """Numpy type of the tokens as stable-audio-tools writes them."""

    def __init__(
        self, *, input_dim: int, latent_dim: int, codebook_sizes: Sequence[int] = (), noise_dim: int = 0
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.latent_dim = latent_dim
        self.codebook_sizes = tuple(codebook_sizes)
        self.noise_dim = noise_dim

    @property
    def decoder_dim(self) -> int:
        """Rows that the decoder takes."""
        return self.latent_dim + self.noise_dim

    def analyse(self, pre: Features) -> dict[str, Tensor]:
        """What features say: `latents`; or `mean` and `std`; or `tokens` and the `latents` they stand for."""
        return {"latents": pre}

    def synthesise(self, values: Tensor | Mapping[str, Tensor], *, noise: Tensor | None = None) -> Features:
        """The decoder's input.

        Args:
            values: tokens (an integer tensor) or latents; or what `analyse` gave, of which `tokens`, `latents` or
                `mean` is used, the first that is there.
            noise: standard normal numbers (batch, noise_dim, frame), for models that decode with noise.

        Raises:
            ModelError: tokens out of range or for a bottleneck without codebooks, or noise is missing.
        """
        if not isinstance(values, Tensor):
            values = next(values[name] for name in ("tokens", "latents", "mean") if name in values)
        latents = values if values.is_floating_point() else self.lookup(values)
        latents = self.finish(latents)
        if not self.noise_dim:
            return latents
        if noise is None:
            raise ModelError(
                f"this model decodes with {self.noise_dim} rows of noise (noise_augment_dim)", hint="pass noise=..."
            )
        return torch.cat([latents, noise.to(latents)], dim=1)

    def finish(self, latents: Features) -> Features:
        """What is done to latents before they are decoded."""
        return latents

    def lookup(self, tokens: Tokens) -> Features:
        """The latents that tokens stand for."""
        if not self.codebook_sizes:
            raise ModelError("this model has latents and no tokens", hint="give latents as a floating-point tensor")
        limits = torch.tensor(self.codebook_sizes, device=tokens.device)[None, :, None]
        if tokens.shape[1] != len(self.codebook_sizes) or bool(((tokens < 0) | (tokens >= limits)).any()):
            raise ModelError(
                f"tokens of shape {tuple(tokens.shape)} do not fit {len(self.codebook_sizes)} codebooks of"
                f" {sorted(set(self.codebook_sizes))} entries",
                hint="axes are (batch, codebook, frame); are they from another model?",
            )
        return self._lookup(tokens.long())

    def _lookup(self, tokens: Tensor) -> Tensor:
        raise AssertionError(f"{type(self).__name__} has no codebooks to look {tokens.shape} up in")


def moments(
    pre: Features,
) -> tuple[Float[Tensor, "batch latent frame"], Float[Tensor, "batch latent frame"]]:
    """Mean and standard deviation, from features that hold means and then scales."""
    mean, scale = pre.chunk(2, dim=1)
    return mean, F.softplus(scale) + LEAST_STD


class _Quantiser(Bottleneck):
    """Works on (batch, frame, feature), in float32 at least, as the originals do."""

    kind: Kind = "tokens"
    quantizer: nn.Module

    def analyse(self, pre: Features) -> dict[str, Tensor]:
        exact = torch.promote_types(pre.dtype, torch.float32)
        latents, tokens = self._quantise(pre.transpose(1, 2).to(exact))
        return {"tokens": tokens.transpose(1, 2), "latents": latents.transpose(1, 2).to(pre.dtype)}

    def _lookup(self, tokens: Tensor) -> Tensor:
        return self._embed(tokens.transpose(1, 2)).transpose(1, 2)

    def _projected(self, x: Tensor, name: str) -> Tensor:
        return cast(Tensor, self.quantizer.get_submodule(name)(x))

    @abstractmethod
    def _quantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (batch, frame, latent) and tokens (batch, frame, codebook)."""

    @abstractmethod
    def _embed(self, tokens: Tensor) -> Tensor:
        """Latents (batch, frame, latent) of tokens (batch, frame, codebook)."""


def _groups(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:-1], count, -1)


class _Linear(nn.Linear):
    """Computes in the precision of its input: quantisers work in float32 whatever the network runs in."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class _FiniteScalar(_Quantiser):
    """Rounds each value to one of a few levels; a token packs the levels of a group, the first one fastest."""

    def __init__(self, *, levels: Sequence[int], num_codebooks: int, latent_dim: int, noise_dim: int = 0) -> None:
        sizes = [math.prod(levels)] * num_codebooks
        super().__init__(input_dim=latent_dim, latent_dim=latent_dim, codebook_sizes=sizes, noise_dim=noise_dim)
        self.num_codebooks = num_codebooks
        basis = list(itertools.accumulate(levels[:-1], lambda a, b: a * b, initial=1))
        # Not buffers: modules are built without storage and then filled from a checkpoint, which does not hold these.
        self.level_list, self.basis_list = tuple(levels), tuple(basis)

    def _constant(self, values: Sequence[int], like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device)

    def _pack(self, digits: Tensor) -> Tensor:
        """Tokens (batch, frame, codebook) from whole levels (batch, frame, codebook, level)."""
        return (digits.long() * self._constant(self.basis_list, digits)).sum(-1)

    def _unpack(self, tokens: Tensor) -> Tensor:
        levels, basis = self._constant(self.level_list, tokens), self._constant(self.basis_list, tokens)
        return tokens[..., None] // basis % levels


class Fsq(_FiniteScalar):
    """Finite scalar quantisation as vector_quantize_pytorch does it."""

    original_axes = "codebook frame"
    original_dtype = "int32"

    def __init__(
        self,
        *,
        levels: Sequence[int],
        num_codebooks: int = 1,
        dim: int | None = None,
        projection_has_bias: bool = True,
        preserve_symmetry: bool = False,
        bound_hard_clamp: bool = False,
        noise_augment_dim: int = 0,
    ) -> None:
        inner = len(levels) * num_codebooks
        dim = inner if dim is None else dim
        super().__init__(levels=levels, num_codebooks=num_codebooks, latent_dim=dim, noise_dim=noise_augment_dim)
        self.quantizer = nn.Module()
        project = dim != inner
        self.quantizer.project_in = _Linear(dim, inner, bias=projection_has_bias) if project else nn.Identity()
        self.quantizer.project_out = _Linear(inner, dim, bias=projection_has_bias) if project else nn.Identity()
        self.symmetric, self.hard = preserve_symmetry, bound_hard_clamp

    def _quantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = _groups(self._projected(x, "project_in"), self.num_codebooks)
        levels = self._constant(self.level_list, x)
        digits = self._symmetric_digits(x, levels) if self.symmetric else self._digits(x, levels)
        return self._decode_digits(digits, x.dtype), self._pack(digits)

    def _digits(self, x: Tensor, levels: Tensor) -> Tensor:
        half = (levels - 1) * (1 + FSQ_MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        if self.hard:
            bounded = (x + offset / half).clamp(-1.0, 1.0)
        else:
            bounded = torch.tanh(x + torch.atanh(offset / half))
        return (bounded * half - offset).round() + levels // 2

    def _symmetric_digits(self, x: Tensor, levels: Tensor) -> Tensor:
        bounded = x.clamp(-1.0, 1.0) if self.hard else torch.tanh(x)
        return ((levels - 1) * (bounded + 1) / 2 + 0.5).floor()

    def _decode_digits(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        levels = self._constant(self.level_list, digits)
        if self.symmetric:
            codes = digits.to(dtype) * (2.0 / (levels - 1)) - 1.0
        else:
            codes = (digits.to(dtype) - levels // 2) / (levels // 2)
        return self._projected(codes.to(dtype).flatten(-2), "project_out")

    def _embed(self, tokens: Tensor) -> Tensor:
        return self._decode_digits(self._unpack(tokens), torch.get_default_dtype())


class DitheredFsq(_FiniteScalar):
    """Finite scalar quantisation between -1 and 1 whose dither belongs to training: here it only rounds."""

    original_axes = "frame codebook"
    original_dtype = "int64"

    def __init__(self, *, dim: int, levels: int | Sequence[int], num_codebooks: int = 1) -> None:
        each = [levels] * dim if isinstance(levels, int) else list(levels)
        if len(each) != dim or min(each, default=0) < 2:
            raise ModelError(f"dithered_fsq with dim={dim} has levels {each}", hint="one of 2 or more for each of dim")
        super().__init__(levels=each, num_codebooks=num_codebooks, latent_dim=dim * num_codebooks)

    def _step(self, like: Tensor) -> Tensor:
        return 2.0 / (self._constant(self.level_list, like) - 1)

    def _quantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = _groups(x, self.num_codebooks)
        digits = ((torch.tanh(x) + 1) / self._step(x)).round()
        return (digits * self._step(x) - 1).flatten(-2), self._pack(digits)

    def _embed(self, tokens: Tensor) -> Tensor:
        digits = self._unpack(tokens)
        return (digits * self._step(digits) - 1).flatten(-2)


class _Codebook(nn.Module):
    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.zeros(1, size, dim))


class _Stage(nn.Module):
    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self._codebook = _Codebook(size, dim)

    @property
    def entries(self) -> Tensor:
        return self._codebook.embed[0]


class ResidualVq(_Quantiser):
    """Residual vector quantisation as vector_quantize_pytorch does it: each codebook codes what the last one left.

    Args:
        with_moments: features are a VAE's (`rvq_vae`); the mean is quantised, so that tokens do not depend on chance.
    """

    original_axes = "frame codebook"
    original_dtype = "int64"

    def __init__(
        self,
        *,
        dim: int,
        codebook_sizes: Sequence[int],
        codebook_dim: int | None = None,
        use_cosine_sim: bool = False,
        shared_codebook: bool = False,
        with_moments: bool = False,
    ) -> None:
        super().__init__(input_dim=dim * (2 if with_moments else 1), latent_dim=dim, codebook_sizes=codebook_sizes)
        inner = dim if codebook_dim is None else codebook_dim
        self.quantizer = nn.Module()
        self.quantizer.project_in = _Linear(dim, inner) if inner != dim else nn.Identity()
        self.quantizer.project_out = _Linear(inner, dim) if inner != dim else nn.Identity()
        sizes = codebook_sizes[:1] if shared_codebook else codebook_sizes
        self.quantizer.layers = nn.ModuleList(_Stage(size, inner) for size in sizes)
        self.cosine, self.shared, self.with_moments = use_cosine_sim, shared_codebook, with_moments

    def analyse(self, pre: Features) -> dict[str, Tensor]:
        return super().analyse(moments(pre)[0] if self.with_moments else pre)

    def _stages(self) -> list[Tensor]:
        stages = [cast(_Stage, stage).entries for stage in self.quantizer.get_submodule("layers").children()]
        return stages * len(self.codebook_sizes) if self.shared else stages

    def _quantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = self._projected(x, "project_in")
        total, tokens = torch.zeros_like(residual), []
        for entries in self._stages():
            entries = entries.to(residual.dtype)
            chosen = self._nearest(residual, entries)
            residual, total = residual - entries[chosen], total + entries[chosen]
            tokens.append(chosen)
        return self._projected(total, "project_out"), torch.stack(tokens, dim=-1)

    def _nearest(self, x: Tensor, entries: Tensor) -> Tensor:
        if self.cosine:
            return (F.normalize(x, dim=-1) @ entries.T).argmax(-1)
        # The length of x is the same for all entries, but keeping it rounds as the original does when two are close.
        square = x.square().sum(-1, keepdim=True) + entries.square().sum(-1) - 2 * (x @ entries.T)
        return square.argmin(-1)

    def _embed(self, tokens: Tensor) -> Tensor:
        stages = self._stages()
        exact = torch.promote_types(stages[0].dtype, torch.float32)
        total = stages[0][tokens[..., 0]].to(exact)
        for i, entries in enumerate(stages[1:], start=1):
            total = total + entries[tokens[..., i]].to(exact)
        return self._projected(total, "project_out")


class _Factor(nn.Module):
    def __init__(self, dim: int, size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv1d(dim, codebook_dim, 1)
        self.out_proj = nn.Conv1d(codebook_dim, dim, 1)
        self.codebook = nn.Embedding(size, codebook_dim)

    def down(self, x: Tensor) -> Tensor:
        return F.linear(x, self.in_proj.weight[..., 0].to(x.dtype), cast(Tensor, self.in_proj.bias).to(x.dtype))

    def up(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        entries = self.codebook.weight.to(dtype)[tokens]
        return F.linear(entries, self.out_proj.weight[..., 0].to(dtype), cast(Tensor, self.out_proj.bias).to(dtype))


class FactorisedVq(_Quantiser):
    """Residual quantisation as descript-audio-codec does it: each codebook looks in few dimensions, by angle."""

    original_axes = "codebook frame"
    original_dtype = "int64"

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        codebook_dims: Sequence[int],
        noise_augment_dim: int = 0,
        with_moments: bool = False,
    ) -> None:
        super().__init__(
            input_dim=dim * (2 if with_moments else 1), latent_dim=dim, noise_dim=noise_augment_dim,
            codebook_sizes=[codebook_size] * len(codebook_dims),
        )  # fmt: skip
        self.quantizer = nn.Module()
        self.quantizer.quantizers = nn.ModuleList(_Factor(dim, codebook_size, each) for each in codebook_dims)
        self.with_moments = with_moments

    def analyse(self, pre: Features) -> dict[str, Tensor]:
        return super().analyse(moments(pre)[0] if self.with_moments else pre)

    def _factors(self) -> list[_Factor]:
        return [cast(_Factor, factor) for factor in self.quantizer.get_submodule("quantizers").children()]

    def _quantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual, total, tokens = x, torch.zeros_like(x), []
        for factor in self._factors():
            direction = F.normalize(factor.down(residual), dim=-1)
            entries = F.normalize(factor.codebook.weight.to(x.dtype), dim=-1)
            square = direction.square().sum(-1, keepdim=True) - 2 * direction @ entries.T + entries.square().sum(-1)
            chosen = square.argmin(-1)
            part = factor.up(chosen, x.dtype)
            residual, total = residual - part, total + part
            tokens.append(chosen)
        return total, torch.stack(tokens, dim=-1)

    def _embed(self, tokens: Tensor) -> Tensor:
        factors = self._factors()
        exact = torch.promote_types(factors[0].codebook.weight.dtype, torch.float32)
        return torch.stack([f.up(tokens[..., i], exact) for i, f in enumerate(factors)]).sum(0)
