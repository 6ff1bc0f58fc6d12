"""When to stop measuring: when the decision stays put, and the scores behind it are known well enough.

What is decided are ranks. They stay put if, over the last so many checks, the share of the adapters' parameters that
would lie elsewhere is small. Uncertain scores give flat ranks, which stay put as well: so the standard error of the
scores has to be small, too. That is the error which more draws of the same songs could lessen; what other songs would
change stands in the intervals, and no number of draws lessens it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from woodshed.importance.layers import LayerShape

CHECK_DRAWS = 16
"""Draws from one check to the next."""
STAY_PUT = 0.02
"""Share of the parameters that may lie elsewhere without the ranks having moved."""

Reason = Literal["stable", "budget of passes used", "not converged", "fixed"]


def moved_share(before: Mapping[str, int], after: Mapping[str, int], prices: Mapping[str, int]) -> float:
    """Share of the adapters' parameters that lie elsewhere: 0 for equal ranks, 1 for no layer in common.

    Args:
        prices: parameters of one rank of each layer.

    >>> moved_share({"a": 4}, {"a": 4}, {"a": 8}), moved_share({"a": 4}, {}, {"a": 8})
    (0.0, 1.0)
    """
    names = before.keys() | after.keys()
    moved = sum(prices[name] * abs(after.get(name, 0) - before.get(name, 0)) for name in names)
    total = sum(prices[name] * (after.get(name, 0) + before.get(name, 0)) for name in names)
    return moved / total if total else 0.0


@dataclass(slots=True)
class Checks:
    """The checks of a run so far.

    Args:
        patience: checks that ranks must stay put for.
        max_relative_error: of the scores by their draws, median over layers.
    """

    shapes: Sequence[LayerShape]
    patience: int
    max_relative_error: float
    ranks: list[Mapping[str, int]] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    """Check by check: the most that ranks differ from those of the last `patience` checks."""
    errors: list[float] = field(default_factory=list)

    def add(self, ranks: Mapping[str, int], relative_error: float) -> bool:
        """Take in a check; whether it is the last one needed."""
        before = self.ranks[-self.patience :]
        prices = {shape.name: shape.price for shape in self.shapes}
        self.moved.append(max((moved_share(old, ranks, prices) for old in before), default=1.0))
        self.ranks.append(dict(ranks))
        self.errors.append(relative_error)
        return len(before) >= self.patience and self.moved[-1] <= STAY_PUT and relative_error <= self.max_relative_error

    def reason(self, *, is_stable: bool, is_counted: bool) -> Reason:
        """Why a run ended.

        Args:
            is_counted: the user said how many rounds there are to be at most.
        """
        if is_stable:
            return "stable"
        return "budget of passes used" if is_counted else "not converged"
