"""Which timesteps count: named focuses, draws that serve one of them best, and weights that let them serve the others.

Most of the draws come from the focus that is asked for, a quarter from all timesteps alike, so that every other focus
can be answered from the same run, if less sharply: a draw at timestep t weighs p(t) / q(t) for a focus of density p,
where q is the density that draws were made with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from woodshed.contracts import Trainable
from woodshed.importance.focuses import FOCUS_NAMES, Focus, focus_named

UNIFORM_SHARE = 0.25
"""Of the draws that are spread over all timesteps."""
CELLS = 4096
"""Of the table that the density of a model's own distribution is read from."""


class Timesteps:
    """The timesteps that a run draws, and what each weighs for a focus.

    Args:
        model: gives its own distribution; a model without timesteps makes every draw weigh 1 for every focus.
        asked: the focus that most draws are made for.
    """

    def __init__(self, model: Trainable, asked: Focus) -> None:
        self.asked = asked
        self._model = model
        table = [model.timestep(quantile) for quantile in np.linspace(0, 1, CELLS + 1).tolist()]
        self.has_timesteps = table[0] is not None
        self._edges = np.array(table, np.float64) if self.has_timesteps else np.zeros(0)
        self.is_continuous = self.has_timesteps and bool((np.diff(self._edges) > 0).all())
        """False for a model that trains on a few timesteps only: it has no density, and no focus but its own."""

    @property
    def focuses(self) -> tuple[Focus, ...]:
        """All that draws of this run can answer, the asked one first."""
        if not self.is_continuous:
            return (self.asked,)
        named = [focus_named(name) for name in FOCUS_NAMES]
        return (self.asked, *(focus for focus in named if focus.name != self.asked.name))

    def draw(self, place: float) -> float | None:
        """The timestep at a place of [0, 1): evenly spread places give the mixture that this run draws from."""
        if not self.has_timesteps:
            return None
        is_everything = not self.asked.is_balanced and (self.asked.low, self.asked.high) == (0.0, 1.0)
        share = UNIFORM_SHARE if self.is_continuous and not is_everything else 0.0
        if place >= 1 - share:
            return (place - (1 - share)) / share
        within = place / (1 - share)
        if self.asked.is_balanced:
            return self._model.timestep(within)
        return self.asked.low + within * (self.asked.high - self.asked.low)

    def weights(self, timesteps: Sequence[float | None], focus: Focus) -> Float64[np.ndarray, " draw"]:
        """What each draw weighs for a focus: density of the focus over density of the draws."""
        if not self.is_continuous:
            return np.ones(len(timesteps))
        times = np.array(timesteps, np.float64)
        weights: Float64[np.ndarray, " draw"] = self._density(times, focus) / self.drawn_density(times)
        return weights

    def drawn_density(self, times: Float64[np.ndarray, " draw"]) -> Float64[np.ndarray, " draw"]:
        """The density that timesteps are drawn with; 1 for a model that has none."""
        if not self.is_continuous:
            return np.ones(len(times))
        return (1 - UNIFORM_SHARE) * self._density(times, self.asked) + UNIFORM_SHARE

    def _density(self, times: Float64[np.ndarray, " draw"], focus: Focus) -> Float64[np.ndarray, " draw"]:
        if not focus.is_balanced:
            return density_within(times, focus)
        cell = np.clip(np.searchsorted(self._edges, times, side="right") - 1, 0, CELLS - 1)
        density: Float64[np.ndarray, " draw"] = 1 / CELLS / np.diff(self._edges)[cell]
        return density


def density_within(times: Float64[np.ndarray, " draw"], focus: Focus) -> Float64[np.ndarray, " draw"]:
    """Density of a focus that is uniform between its bounds."""
    inside = (times >= focus.low) & (times <= focus.high)
    return np.where(inside, 1 / (focus.high - focus.low), 0.0)


def effective_draws(weights: Float64[np.ndarray, " draw"]) -> float:
    """Draws of equal weight that would say as much (Kish).

    >>> effective_draws(np.array([1.0, 1.0, 0.0]))
    2.0
    """
    total = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / total if total else 0.0
