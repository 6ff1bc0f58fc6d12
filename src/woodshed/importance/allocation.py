"""Ranks from scores: pure functions, the same on every machine.

Scores become targets, shrunk by their standard errors so that noise gives equal ranks (`belief.py`); the targets are
filled in rung by rung (`water_filling.py`), up to a median rank or a budget of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Int

from woodshed.chance import generator
from woodshed.errors import UsageError
from woodshed.importance.belief import Belief, Score, Scored, Spectrum, believe, limits_of, prices_of
from woodshed.importance.layers import LayerShape
from woodshed.importance.sidestep_rule import COVERAGE, MULTIPLE, sidestep_ranks
from woodshed.importance.water_filling import climb, gains_towards, ladders

Rule = Literal["waterfill", "sidestep", "flat", "random", "inverse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRequest:
    """How ranks are to be given; either `base_rank` or `budget_params` is set.

    Raises:
        UsageError: what is asked for contradicts itself.
    """

    rule: Rule = "waterfill"
    score: Score = "wg"
    base_rank: int | None = 64
    """Median rank of the layers that get an adapter."""
    budget_params: int | None = None
    """Parameters of all adapters together, as LoRA: never more."""
    rank_min: int = 16
    rank_max: int = 128
    rank_multiple: int = 8
    coverage: float | None = None
    """Share of the layers that get an adapter; None: all, and 0.55 for `sidestep`."""
    floors: Mapping[str, float] = field(default_factory=dict)
    """Category -> share of its layers that keep an adapter under any coverage."""
    alpha_ratio: float = 2.0
    seed: int = 0
    """Of the rule `random`."""

    def __post_init__(self) -> None:
        if (self.base_rank is None) == (self.budget_params is None):
            raise UsageError("ranks follow either a median rank or a budget", hint="give one of the two")
        if not 1 <= self.rank_min <= self.rank_max:
            raise UsageError(f"no rank is within {self.rank_min} and {self.rank_max}", hint="1 <= least <= largest")
        if self.base_rank is not None and not self.rank_min <= self.base_rank <= self.rank_max:
            raise UsageError(
                f"the median rank {self.base_rank} is not within {self.rank_min} and {self.rank_max}",
                hint="widen the bounds, or choose a median between them",
            )
        if self.rank_multiple < 1 or not self.alpha_ratio > 0:
            raise UsageError(
                f"ranks in multiples of {self.rank_multiple}, alpha {self.alpha_ratio} times the rank",
                hint="both are positive",
            )
        shares = [*self.floors.values(), *([] if self.coverage is None else [self.coverage])]
        if not all(0 <= share <= 1 for share in shares) or self.coverage == 0:
            raise UsageError(f"shares of layers are {shares}", hint="a share is from 0 to 1, and coverage above 0")
        if self.rule == "sidestep" and (self.floors or self.rank_multiple != MULTIPLE):
            raise UsageError(
                "the sidestep rule has a multiple (8) and floors (a tenth of each category) of its own",
                hint="leave them out, or choose waterfill with --coverage 0.55 and --floors",
            )

    @property
    def followed(self) -> Score:
        """The score that ranks follow: the sidestep rule knows but one."""
        return "density" if self.rule == "sidestep" else self.score

    @property
    def share(self) -> float:
        """Of the layers that get an adapter, with the default filled in."""
        if self.coverage is not None:
            return self.coverage
        return COVERAGE if self.rule == "sidestep" else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Who gets how much."""

    ranks: dict[str, int]
    """Of layers that get an adapter, in the order of the model."""
    alphas: dict[str, float]
    excluded: tuple[str, ...]
    """Layers that could have had one, in the order of the model."""
    num_params: int
    """Of all adapters together, as LoRA."""
    median_rank: float
    shrinkage: float
    """0: ranks follow the scores; 1: scores are noise and ranks are flat."""
    spread: float
    """Standard deviation of the log targets beyond their errors: what a resample of the same data is to be given."""
    notes: tuple[str, ...]


def allocate(
    request: RankRequest,
    shapes: Sequence[LayerShape],
    scores: Mapping[str, Scored],
    *,
    spectra: Mapping[str, Spectrum] | None = None,
    effective_ranks: Mapping[str, int] | None = None,
    spread: float | None = None,
) -> Allocation:
    """Give ranks to layers.

    Under a coverage below 1, layers are chosen by their shrunk target; where targets are equal, by the target before
    shrinking, then by the model's order. A score of zero or below earns the least rank; one that is missing or not
    finite counts as average.

    The rule `random` deals the targets out to other layers, `inverse` turns them round; for `spectrum`, which has none,
    they take the ranks that it gives. `flat` chooses layers by the score and makes their ranks equal.

    Args:
        shapes: of all layers; those that are not adaptable get nothing.
        scores: with the score `spectrum`, how much signal there is in all: it says how far singular values are to be
            trusted, and they are not where it is not above zero.
        spectra: for the score `spectrum`.
        effective_ranks: of the weights, for the rule `sidestep`.
        spread: None: estimated. A bootstrap hands on that of the whole data: resampling adds an error of its own to
            each score, which would pass for differences between layers.

    Raises:
        UsageError: no layer can get an adapter, the budget is below the least ranks, or a floor names no category.

    >>> shapes = [
    ...     LayerShape(name=n, category="mlp", d_out=64, d_in=64, num_weights=4096, adaptable=True) for n in "abc"
    ... ]
    >>> scores = {"a": Scored(4.0), "b": Scored(2.0), "c": Scored(1.0)}
    >>> allocate(RankRequest(base_rank=16, rank_min=4, rank_max=64, rank_multiple=4), shapes, scores).ranks
    {'a': 32, 'b': 16, 'c': 8}
    """
    layers = [shape for shape in shapes if shape.adaptable]
    if not layers:
        raise UsageError("no layer is a matrix that an adapter could be put beside", hint="see the model's layers()")
    known = {layer.category: None for layer in layers}
    for category in request.floors:
        if category not in known:
            raise UsageError(f"floors name {category}, which no layer is of", hint=f"there are {', '.join(known)}")
    if request.rule == "sidestep":
        return _sidestep(request, layers, scores, effective_ranks or {})
    belief = believe(request.score, layers, scores, spectra or {}, rank_min=request.rank_min, spread=spread)
    belief = _turned(request, layers, belief)
    chosen = _chosen(request, layers, belief)
    kept = [layers[index] for index in chosen]
    ranks, notes = _ranks(request, kept, belief.of(chosen))
    return _allocation(
        request,
        layers,
        {layer.name: rank for layer, rank in zip(kept, ranks.tolist(), strict=True)},
        shrinkage=belief.shrinkage,
        spread=belief.spread,
        notes=(*belief.notes, *notes),
    )


def _turned(request: RankRequest, layers: Sequence[LayerShape], belief: Belief) -> Belief:
    """As the rules for experiments have it."""
    if request.rule not in ("random", "inverse"):
        return belief
    if belief.energy is not None:
        ranks, _ = _ranks(replace(request, rule="waterfill"), layers, belief)
        belief = belief.towards(ranks)
    if request.rule == "inverse":
        return belief.inverted()
    return belief.dealt(generator(request.seed, "random ranks").permutation(len(layers)))


def _chosen(request: RankRequest, layers: Sequence[LayerShape], belief: Belief) -> Int[np.ndarray, " chosen"]:
    """The best of all, and of each category with a floor; in the order of the model."""
    best = np.lexsort((-belief.unshrunk, -belief.targets)).tolist()
    chosen = set(best[: max(1, _share_of(len(layers), request.share))])
    for category, share in request.floors.items():
        members = [index for index in best if layers[index].category == category]
        floor = max(1, _share_of(len(members), share)) if share > 0 else 0
        left_out = [index for index in members if index not in chosen]
        chosen.update(left_out[: max(0, floor - (len(members) - len(left_out)))])
    return np.array(sorted(chosen))


def _share_of(number: int, share: float) -> int:
    """Whole ones; 0.29 of 100 are 29, although the product is a little less."""
    return math.floor(share * number + 1e-9)


def _ranks(
    request: RankRequest, layers: Sequence[LayerShape], belief: Belief
) -> tuple[Int[np.ndarray, " layer"], tuple[str, ...]]:
    prices, limits = prices_of(layers), limits_of(layers)
    if request.rule == "flat" and request.base_rank is not None:
        ranks = np.minimum(request.base_rank, limits)
        return ranks, _note_on_limits(ranks, limits, request.base_rank)
    levels = ladders(limits, rank_min=request.rank_min, rank_max=request.rank_max, rank_multiple=request.rank_multiple)
    if request.rule == "flat":
        gains, preference = gains_towards(np.zeros(len(layers)), levels), np.zeros(len(layers))
    elif belief.energy is None:
        gains, preference = gains_towards(belief.targets, levels), belief.unshrunk
    else:
        gains, preference = belief.energy.gains(levels, prices, limits), belief.unshrunk
    rungs = climb(levels, prices, gains, preference)
    if request.budget_params is None:
        assert request.base_rank is not None, "one of the two is set"
        ranks = rungs.ranks_of_median(request.base_rank)
        notes = _note_on_median(float(np.median(ranks)), request)
    else:
        _check_budget(request.budget_params, int(levels[:, 0] @ prices), len(layers))
        ranks = rungs.ranks_within(request.budget_params)
        notes = ()
        if bool((ranks == levels[:, -1]).all()):
            notes = (
                f"every layer has its largest rank: {request.budget_params - int(ranks @ prices):,} parameters "
                "of the budget are left",
            )
        elif bool((ranks == rungs.ranks_after(len(rungs.layers))).all()):
            notes = (
                "no further rank gains anything by this score: "
                f"{request.budget_params - int(ranks @ prices):,} parameters of the budget are left",
            )
    return ranks, (*notes, *_note_on_limits(ranks, limits, request.rank_max))


def _allocation(
    request: RankRequest,
    layers: Sequence[LayerShape],
    ranks: dict[str, int],
    *,
    shrinkage: float,
    spread: float,
    notes: tuple[str, ...],
) -> Allocation:
    return Allocation(
        ranks=ranks,
        alphas={name: request.alpha_ratio * rank for name, rank in ranks.items()},
        excluded=tuple(layer.name for layer in layers if layer.name not in ranks),
        num_params=_num_params(layers, ranks),
        median_rank=float(np.median(list(ranks.values()))),
        shrinkage=shrinkage,
        spread=spread,
        notes=notes,
    )


def _num_params(layers: Sequence[LayerShape], ranks: Mapping[str, int]) -> int:
    return sum(layer.price * ranks.get(layer.name, 0) for layer in layers)


def _sidestep(
    request: RankRequest,
    layers: Sequence[LayerShape],
    scores: Mapping[str, Scored],
    effective_ranks: Mapping[str, int],
) -> Allocation:
    missing = [layer.name for layer in layers if layer.name not in scores]
    if missing:
        raise UsageError(
            f"the sidestep rule needs the score of every layer, and {len(missing)} have none, such as {missing[0]}",
            hint="measure again, or choose another allocator",
        )
    values = {layer.name: scores[layer.name].value for layer in layers}

    def ranks_for(base_rank: int) -> dict[str, int]:
        found = sidestep_ranks(
            values,
            effective_ranks,
            base_rank=base_rank,
            rank_min=request.rank_min,
            rank_max=request.rank_max,
            coverage=request.share,
        ).ranks
        return {layer.name: found[layer.name] for layer in layers if layer.name in found}

    notes: tuple[str, ...] = ()
    if request.budget_params is None:
        assert request.base_rank is not None, "one of the two is set"
        ranks = ranks_for(request.base_rank)
    else:
        base_rank = _largest_base(request, layers, ranks_for)
        ranks = ranks_for(base_rank)
        notes = (f"the sidestep rule keeps no budget: its base rank is {base_rank}, the largest that stays within",)
    return _allocation(request, layers, ranks, shrinkage=0.0, spread=0.0, notes=notes)


def _largest_base(
    request: RankRequest, layers: Sequence[LayerShape], ranks_for: Callable[[int], dict[str, int]]
) -> int:
    """Of the base ranks within the bounds, the largest whose ranks stay within the budget."""
    assert request.budget_params is not None
    least = ranks_for(request.rank_min)
    _check_budget(request.budget_params, _num_params(layers, least), len(least))
    low, high = request.rank_min, request.rank_max + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = _num_params(layers, ranks_for(middle)) <= request.budget_params
        low, high = (middle, high) if fits else (low, middle)
    return low


def _check_budget(budget_params: int, least_params: int, num_layers: int) -> None:
    if least_params > budget_params:
        raise UsageError(
            f"the least ranks of {num_layers} layers take {least_params:,} parameters, more than the budget of "
            f"{budget_params:,}",
            hint=f"a budget of {least_params}, a smaller --rank-min, or fewer layers by --coverage",
        )


def _note_on_median(median: float, request: RankRequest) -> tuple[str, ...]:
    assert request.base_rank is not None, "there is no median to keep under a budget"
    if abs(median - request.base_rank) <= request.rank_multiple:
        return ()
    return (f"the median rank is {median:g}, as near to {request.base_rank} as these layers and scores allow",)


def _note_on_limits(
    ranks: Int[np.ndarray, " layer"], limits: Int[np.ndarray, " layer"], wanted: int
) -> tuple[str, ...]:
    num_bound = int(((ranks == limits) & (limits < wanted)).sum())
    if not num_bound:
        return ()
    return (f"layers at the largest rank that their size allows, below {wanted}: {num_bound}",)
