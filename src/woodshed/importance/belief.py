"""What scores say of layers: target ranks, as far as their errors let them be believed.

A target follows from a score as a first power of the gradient: twice the gradient, twice the rank.

`wg`: rank ~ score / sqrt(d_in + d_out), with the score mean |W * G|. GoRA's proportions.
`density`: rank ~ sqrt(score), with the score mean G^2, the Fisher information per weight. It is a square, so that its
    root is what stands beside `wg`; being per weight, it says nothing of a layer's size, and a rank is as much for a
    large layer as for a small one. Of traces the root did better than the trace in our trial, and Side-Step takes the
    root too.
`spectrum`: no target; the gain of a rank is its squared singular value of the mean gradient, per parameter.

Source: GoRA, arXiv:2502.12171.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from woodshed.importance.layers import LayerShape
from woodshed.importance.shrinkage import shrink, spread_of
from woodshed.importance.water_filling import energy_at, gains_of_energy, gains_towards

Score = Literal["wg", "density", "spectrum"]

_DECIMALS = 9
"""Of logarithms: what differs by less is equal, so that no last bit of one decides who is first."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A layer's score."""

    value: float
    relative_se: float = 0.0
    """Standard error of its logarithm; infinite or NaN: nothing is known."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values of a layer's mean gradient."""

    values: Sequence[float]
    """The largest, falling."""
    rest: float = 0.0
    """Squares of the others, summed."""


@dataclass(frozen=True, slots=True, eq=False)
class Energy:
    """Squared singular values of all layers, and how far each layer's are trusted."""

    squares: Float[np.ndarray, "layer known"]
    num_known: Int[np.ndarray, " layer"]
    rest: Float[np.ndarray, " layer"]
    trust: Float[np.ndarray, " layer"]

    def of(self, chosen: Int[np.ndarray, " chosen"]) -> Energy:
        return Energy(self.squares[chosen], self.num_known[chosen], self.rest[chosen], self.trust[chosen])

    def up_to(
        self, levels: Int[np.ndarray, "layer level"], limits: Int[np.ndarray, " layer"]
    ) -> Float[np.ndarray, "layer level"]:
        return energy_at(levels, self.squares, self.num_known, self.rest, limits)

    def gains(
        self,
        levels: Int[np.ndarray, "layer level"],
        prices: Int[np.ndarray, " layer"],
        limits: Int[np.ndarray, " layer"],
    ) -> Float[np.ndarray, "layer rung"]:
        """Those of the spectrum as far as it is trusted, of equal targets for the rest: a weighted geometric mean, both
        relative to their median."""
        own = gains_of_energy(self.up_to(levels, limits), levels, prices)
        flat = gains_towards(np.zeros(len(levels)), levels)
        counts = np.isfinite(own) & np.isfinite(flat)
        if not counts.any():
            return own
        trust = np.broadcast_to(self.trust[:, None], own.shape)[counts]
        blended = np.full_like(own, -np.inf)
        own, flat = own[counts], flat[counts]
        blended[counts] = trust * (own - np.median(own)) + (1 - trust) * (flat - np.median(flat))
        return blended.round(_DECIMALS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Belief:
    """What scores say of layers, less what is noise in it."""

    targets: Float[np.ndarray, " layer"]
    """Logarithms of target ranks, shrunk, up to a constant; for `spectrum`, of what the least rank gains."""
    unshrunk: Float[np.ndarray, " layer"]
    """Decides where targets are equal."""
    energy: Energy | None = None
    """For `spectrum`: what gains follow in place of targets."""
    shrinkage: float
    """0: all as the scores have it; 1: scores are noise."""
    spread: float
    notes: tuple[str, ...]

    def of(self, chosen: Int[np.ndarray, " chosen"]) -> Belief:
        energy = None if self.energy is None else self.energy.of(chosen)
        return replace(self, targets=self.targets[chosen], unshrunk=self.unshrunk[chosen], energy=energy)

    def dealt(self, order: Int[np.ndarray, " layer"]) -> Belief:
        """Every layer believed to be another."""
        return replace(self, targets=self.targets[order], unshrunk=self.unshrunk[order])

    def inverted(self) -> Belief:
        return replace(self, targets=-self.targets, unshrunk=-self.unshrunk)

    def towards(self, ranks: Int[np.ndarray, " layer"]) -> Belief:
        """With these target ranks."""
        targets = settled(np.log(ranks))
        return replace(self, targets=targets, unshrunk=targets, energy=None)


def believe(
    score: Score,
    layers: Sequence[LayerShape],
    scores: Mapping[str, Scored],
    spectra: Mapping[str, Spectrum],
    *,
    rank_min: int,
    spread: float | None,
) -> Belief:
    """Turn scores into targets and shrink them.

    A score of zero or below is a target of zero; one that is missing or not finite counts as average. If none is above
    zero, all targets are equal.

    Args:
        rank_min: what the gain of the least rank is reckoned for, with the score `spectrum`.
        spread: of log targets beyond their errors; None: estimated.
    """
    values, errors = _values_and_errors(layers, scores)
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(values, 0.0))
    match score:
        case "wg":
            logs = logs - np.log(prices_of(layers)) / 2
        case "density":
            logs, errors = logs / 2, errors / 2
        case "spectrum":
            # No signal is not known to be none: an unbiased estimate of it is below zero now and then.
            logs = np.where(values > 0, logs - np.log(prices_of(layers)), np.nan)
    spread = spread_of(logs, errors) if spread is None else spread
    shrunk = shrink(logs, errors, spread=spread)
    belief = Belief(
        targets=settled(shrunk.values),
        unshrunk=settled(np.where(np.isnan(logs), shrunk.values, logs)),
        shrinkage=1.0 - float(shrunk.factors.mean()),
        spread=spread,
        notes=_notes(layers, values, spectra if score == "spectrum" else None),
    )
    if score == "spectrum":
        return _with_energy(belief, layers, spectra, shrunk.factors, rank_min)
    if not np.isfinite(logs).any():
        flat = np.zeros(len(layers))
        return replace(belief, targets=flat, unshrunk=flat, shrinkage=1.0)
    return belief


def settled(logs: Float[np.ndarray, " layer"]) -> Float[np.ndarray, " layer"]:
    """Relative to their mean and rounded: a common factor of scores changes nothing, equal ones are equal."""
    finite = logs[np.isfinite(logs)]
    return (logs - (finite.mean() if finite.size else 0.0)).round(_DECIMALS)


def prices_of(layers: Sequence[LayerShape]) -> Int[np.ndarray, " layer"]:
    """Parameters of one rank."""
    return np.array([layer.price for layer in layers])


def limits_of(layers: Sequence[LayerShape]) -> Int[np.ndarray, " layer"]:
    """No matrix of these shapes has a larger rank."""
    return np.array([min(layer.d_in, layer.d_out) for layer in layers])


def _values_and_errors(
    layers: Sequence[LayerShape], scores: Mapping[str, Scored]
) -> tuple[Float[np.ndarray, " layer"], Float[np.ndarray, " layer"]]:
    nothing = Scored(np.nan, np.inf)
    found = [scores.get(layer.name, nothing) for layer in layers]
    values = np.array([score.value for score in found], dtype=float)
    errors = np.array([score.relative_se for score in found], dtype=float)
    is_known = np.isfinite(values) & (errors >= 0)
    return np.where(np.isfinite(values), values, np.nan), np.where(is_known, errors, np.inf)


def _with_energy(
    belief: Belief,
    layers: Sequence[LayerShape],
    spectra: Mapping[str, Spectrum],
    trust: Float[np.ndarray, " layer"],
    rank_min: int,
) -> Belief:
    found = [spectra.get(layer.name, Spectrum((), np.nan)) for layer in layers]
    num_known = np.array([len(spectrum.values) for spectrum in found])
    squares = np.zeros((len(layers), max(1, int(num_known.max()))))
    for row, spectrum in zip(squares, found, strict=True):
        row[: len(spectrum.values)] = np.square(spectrum.values)
    rest = np.array([spectrum.rest for spectrum in found], dtype=float)
    usable = np.isfinite(squares).all(axis=1) & np.isfinite(rest)
    energy = Energy(
        np.where(usable[:, None], squares, 1.0), num_known, np.where(usable, rest, 1.0), np.where(usable, trust, 0.0)
    )
    limits = limits_of(layers)
    least = np.minimum(rank_min, limits)
    with np.errstate(divide="ignore"):
        gains = settled(np.log(energy.up_to(least[:, None], limits)[:, 0] / (least * prices_of(layers))))
    targets = np.where(gains == -np.inf, -np.inf, energy.trust * np.where(gains == -np.inf, 0.0, gains))
    return replace(belief, targets=targets, unshrunk=gains, energy=energy, shrinkage=1.0 - float(energy.trust.mean()))


def _notes(
    layers: Sequence[LayerShape], values: Float[np.ndarray, " layer"], spectra: Mapping[str, Spectrum] | None
) -> tuple[str, ...]:
    notes = []
    unknown = [layer.name for layer, value in zip(layers, values, strict=True) if np.isnan(value)]
    if spectra is not None:
        unknown += [layer.name for layer in layers if layer.name not in spectra and layer.name not in unknown]
    if len(unknown) == len(layers):
        notes.append("no layer has a score that is known: ranks are equal")
    elif unknown:
        notes.append(f"layers without a known score, which count as average: {len(unknown)}, such as {unknown[0]}")
    if not unknown and not (values > 0).any():
        notes.append("no layer has a score above zero: ranks are equal")
    return tuple(notes)
