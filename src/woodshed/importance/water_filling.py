"""Which layer gets the next rank, until the parameters are spent.

Every layer climbs a ladder of ranks. Each rung has a price in parameters and a gain, and the gain per parameter falls
from rung to rung, so that taking rungs by falling gain per parameter climbs every ladder from below. All totals that
are met on the way are optimal: no other ranks of the same price or less gain more. A budget that lies between two of
them is filled up with what still fits; what that loses against the optimum is less than the gain of one rung.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


def ladders(
    limits: Int[np.ndarray, " layer"], *, rank_min: int, rank_max: int, rank_multiple: int
) -> Int[np.ndarray, "layer level"]:
    """Ranks that each layer can have, rising: the bounds and the multiples between them, cut at the layer's limit.

    >>> ladders(np.array([99, 20, 3]), rank_min=5, rank_max=30, rank_multiple=8).tolist()
    [[5, 8, 16, 24, 30], [5, 8, 16, 20, 20], [3, 3, 3, 3, 3]]
    """
    first = rank_min // rank_multiple + 1
    levels = np.array(sorted({rank_min, *range(first * rank_multiple, rank_max, rank_multiple), rank_max}))
    rising: Int[np.ndarray, "layer level"] = np.minimum(levels[None, :], limits[:, None])
    return rising


def gains_towards(
    targets: Float[np.ndarray, " layer"], levels: Int[np.ndarray, "layer level"]
) -> Float[np.ndarray, "layer rung"]:
    """Logarithm of the gain per parameter, where the gain of rank r is target * price * log r.

    Without rungs and bounds, spending any number of parameters at best gives ranks in proportion to the targets.

    Args:
        targets: logarithms; -inf: nothing is gained.
    """
    return _falling(targets, np.diff(np.log(levels), axis=1), np.diff(levels, axis=1))


def gains_of_energy(
    energy: Float[np.ndarray, "layer level"], levels: Int[np.ndarray, "layer level"], prices: Int[np.ndarray, " layer"]
) -> Float[np.ndarray, "layer rung"]:
    """Logarithm of the gain per parameter, where the gain of a rank is the energy up to it."""
    return _falling(np.zeros(len(levels)), np.diff(energy, axis=1), np.diff(levels, axis=1) * prices[:, None])


def energy_at(
    levels: Int[np.ndarray, "layer level"],
    squares: Float[np.ndarray, "layer known"],
    num_known: Int[np.ndarray, " layer"],
    rest: Float[np.ndarray, " layer"],
    limits: Int[np.ndarray, " layer"],
) -> Float[np.ndarray, "layer level"]:
    """Sum of the largest squared singular values, as many as the level says.

    Args:
        squares: the known ones, falling, with zeros behind them.
        num_known: of each layer.
        rest: sum of the others. They are taken as equal, and none as larger than the last that is known.
        limits: how many there are at all.
    """
    known = np.minimum(levels, num_known[:, None])
    sums = np.concatenate([np.zeros((len(levels), 1)), np.cumsum(squares, axis=1)], axis=1)
    last = np.take_along_axis(np.diff(sums, axis=1), np.maximum(num_known - 1, 0)[:, None], axis=1)[:, 0]
    each = rest / np.maximum(limits - num_known, 1)
    each = np.where(num_known > 0, np.minimum(each, last), each)
    energy: Float[np.ndarray, "layer level"] = (
        np.take_along_axis(sums, known, axis=1) + (levels - known) * each[:, None]
    )
    return energy


@dataclass(frozen=True, slots=True)
class Climb:
    """All rungs that gain anything, in the order in which they are taken."""

    levels: Int[np.ndarray, "layer level"]
    prices: Int[np.ndarray, " layer"]
    """Parameters of one rank."""
    layers: Int[np.ndarray, " taken"]
    """Whose rung."""
    costs: Int[np.ndarray, " taken"]
    """In parameters."""
    stops: Int[np.ndarray, " stop"]
    """Numbers of rungs after which no equal rung is left untaken: where ranks depend on no order of layers."""

    def ranks_after(self, num_taken: int) -> Int[np.ndarray, " layer"]:
        return self._ranks(np.bincount(self.layers[:num_taken], minlength=len(self.levels)))

    def ranks_of_median(self, wanted: int) -> Int[np.ndarray, " layer"]:
        """Ranks whose median is as wanted, or as near as it gets; of two that are equally near, the lower.

        A median holds for a while: at first the middle layer has barely earned its rank, at last it has nearly earned
        the next. The middle of that time is taken.
        """
        # The median never falls on the way up, so that the first stop of any median is found by halving.
        at_least = self._first_stop(wanted, above=False)
        candidates = [stop for stop in (at_least - 1, at_least) if 0 <= stop < len(self.stops)]
        nearest = min((self._median(stop) for stop in candidates), key=lambda median: (abs(median - wanted), median))
        first, beyond = self._first_stop(nearest, above=False), self._first_stop(nearest, above=True)
        return self.ranks_after(int(self.stops[(first + beyond - 1) // 2]))

    def ranks_within(self, budget: int) -> Int[np.ndarray, " layer"]:
        """Ranks that spend a budget, which the lowest ranks of all layers must not exceed.

        What is left is less than any next rung costs that gains something.
        """
        left = budget - int(self.levels[:, 0] @ self.prices)
        assert left >= 0, "the lowest ranks were to fit"
        spent = np.cumsum(self.costs)
        num_whole = int(np.searchsorted(spent, left, side="right"))
        taken = np.bincount(self.layers[:num_whole], minlength=len(self.levels))
        left -= int(spent[num_whole - 1]) if num_whole else 0
        cheapest = int(self.costs.min()) if len(self.costs) else 0
        stuck = set()
        for layer, cost in zip(self.layers[num_whole:].tolist(), self.costs[num_whole:].tolist(), strict=True):
            if left < cheapest:
                break
            if layer in stuck:
                continue
            if cost > left:
                stuck.add(layer)
            else:
                taken[layer] += 1
                left -= cost
        return self._ranks(taken)

    def _ranks(self, taken: Int[np.ndarray, " layer"]) -> Int[np.ndarray, " layer"]:
        ranks: Int[np.ndarray, "layer"] = self.levels[np.arange(len(self.levels)), taken]
        return ranks

    def _median(self, stop: int) -> float:
        return float(np.median(self.ranks_after(int(self.stops[stop]))))

    def _first_stop(self, median: float, *, above: bool) -> int:
        """The first whose median is at least this, or above it; the number of stops if there is none."""
        low, high = 0, len(self.stops)
        while low < high:
            middle = (low + high) // 2
            found = self._median(middle)
            if found > median or (found == median and not above):
                high = middle
            else:
                low = middle + 1
        return low


def climb(
    levels: Int[np.ndarray, "layer level"],
    prices: Int[np.ndarray, " layer"],
    gains: Float[np.ndarray, "layer rung"],
    preference: Float[np.ndarray, " layer"],
) -> Climb:
    """Put rungs in order: by gain, and equal ones by height, then by preference, then by the order of layers.

    Args:
        gains: logarithms of the gain per parameter, falling from rung to rung; -inf: nothing.
        preference: of layers, the larger the earlier.
    """
    first = np.argsort(-preference, kind="stable")
    order = np.argsort(-gains[first].T.ravel(), kind="stable")
    rungs, places = np.divmod(order, len(first))
    layers = first[places]
    worth = gains[layers, rungs] > -np.inf
    layers, rungs = layers[worth], rungs[worth]
    found = gains[layers, rungs]
    costs = np.diff(levels, axis=1)[layers, rungs] * prices[layers]
    differs = (found[1:] != found[:-1]) | (rungs[1:] != rungs[:-1])
    stops = np.concatenate([[0], np.flatnonzero(differs) + 1, [len(layers)]])
    return Climb(levels, prices, layers, costs, stops)


def _falling(
    offsets: Float[np.ndarray, " layer"],
    rises: Float[np.ndarray, "layer rung"],
    costs: Int[np.ndarray, "layer rung"],
) -> Float[np.ndarray, "layer rung"]:
    """Offset + log(rise / cost), -inf where nothing rises. Rounding can make equal neighbours rise; they are evened."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = offsets[:, None] + np.log(rises / costs)
    return np.minimum.accumulate(np.where(np.isnan(gains), -np.inf, gains), axis=1)
