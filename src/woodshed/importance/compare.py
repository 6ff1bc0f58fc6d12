"""Two maps side by side: where they differ, and whether that is more than chance.

Scores are compared as logarithms relative to their mean over the layers that both maps score, so that a louder data set
or another loss scale is no difference. Each layer's difference is held against the standard errors of both maps by
Welch's t test, whose degrees of freedom come from the numbers of songs; Holm's step-down rule keeps the chance of any
false alarm over all layers at `FAMILY_ERROR`, however the layers depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from woodshed.errors import UsageError
from woodshed.importance.convergence import moved_share
from woodshed.importance.fisher_map import FisherMap
from woodshed.importance.map_view import DENSITY, LayerView, layer_views, num_songs, score_of
from woodshed.importance.resampling import spearman

FAMILY_ERROR = 0.05
_LARGE_DF = 200
"""From so many degrees of freedom on, Student's distribution is taken as normal."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapComparison:
    """What two maps say of the layers that both have scores for."""

    score: str
    names: tuple[str, ...]
    ranks_a: Int[ndarray, " layer"]
    ranks_b: Int[ndarray, " layer"]
    relative_a: Float[ndarray, " layer"]
    """Score over the geometric mean of `names`' scores in the same map."""
    relative_b: Float[ndarray, " layer"]
    z: Float[ndarray, " layer"]
    """Difference of the logarithms, B less A, over its standard error; 0 where a map has none."""
    is_distinct: Bool[ndarray, " layer"]
    has_intervals: bool
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    rank_correlation: float
    """Spearman's; 0 where a map scores all layers alike."""
    moved_share: float
    verdict: str
    notes: tuple[str, ...]


def compare_maps(a: FisherMap, b: FisherMap, *, name_a: str = "A", name_b: str = "B") -> MapComparison:
    """Compare.

    Args:
        name_a: what messages call the first map.
        name_b: the second.

    Raises:
        UsageError: the maps are of different models, or have no scored layer in common.
    """
    _check_same_model(a, b, name_a, name_b)
    score, notes = _shared_score(a, b, name_a, name_b)
    all_a, all_b = ({view.name: view for view in layer_views(one, score=score) if view.adaptable} for one in (a, b))
    named_by_both = [name for name in all_a if name in all_b]
    names = tuple(name for name in named_by_both if all_a[name].has_score and all_b[name].has_score)
    if not names:
        raise UsageError(f"{name_a} and {name_b} have no scored layer in common", hint="compare maps of one base model")
    if len(names) < len(named_by_both):
        notes.append(
            f"{len(named_by_both) - len(names)} layers have no score in one of the maps: their ranks count only"
        )
    views_a, views_b = [all_a[name] for name in names], [all_b[name] for name in names]
    logs_a, logs_b = _centred_logs(views_a), _centred_logs(views_b)
    sides = ((name_a, a, views_a), (name_b, b, views_b))
    lacking = [name for name, one, views in sides if _songs(one) < 2 or not any(view.log_se for view in views)]
    z, is_distinct = np.zeros(len(names)), np.zeros(len(names), dtype=bool)
    if not lacking:
        z, is_distinct, blind = _tested(logs_b - logs_a, views_a, views_b, _songs(a), _songs(b))
        notes += [] if is_distinct.any() else [f"a difference by less than a factor of {blind:.2f} could not be seen"]
    moved_share, unit_note = _moved_share(all_a, all_b)
    return MapComparison(
        score=score,
        names=names,
        ranks_a=np.array([view.rank for view in views_a]),
        ranks_b=np.array([view.rank for view in views_b]),
        relative_a=np.exp(logs_a),
        relative_b=np.exp(logs_b),
        z=z,
        is_distinct=is_distinct,
        has_intervals=not lacking,
        only_a=tuple(name for name in all_a if name not in all_b),
        only_b=tuple(name for name in all_b if name not in all_a),
        rank_correlation=spearman(logs_a, logs_b),
        moved_share=moved_share,
        verdict=_verdict(int(is_distinct.sum()), len(names), lacking),
        notes=(*notes, *unit_note),
    )


def holm(p_values: Float[ndarray, " test"], *, family_error: float = FAMILY_ERROR) -> Bool[ndarray, " test"]:
    """Which hypotheses fall when the chance of any false alarm is bounded.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.

    >>> holm(np.array([0.03, 0.001, 0.012, 0.9])).tolist()
    [False, True, True, False]
    """
    order = np.argsort(p_values, kind="stable")
    passes = p_values[order] * np.arange(len(p_values), 0, -1) <= family_error
    rejected = np.zeros(len(p_values), dtype=bool)
    rejected[order[: len(passes) if passes.all() else int(np.argmin(passes))]] = True
    return rejected


def student_p(t: float, df: int) -> float:
    """Two-sided p value of Student's t with a whole number of degrees of freedom.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.

    >>> [round(student_p(t, df), 4) for t, df in ((12.706, 1), (2.776, 4), (2.571, 5), (1.984, 100), (1.96, 10**6))]
    [0.05, 0.05, 0.05, 0.05, 0.05]
    """
    if df > _LARGE_DF:
        return 2 * NormalDist().cdf(-abs(t))
    angle = math.atan2(abs(t), math.sqrt(df))
    square = math.cos(angle) ** 2
    is_odd = df % 2
    term = math.cos(angle) if is_odd else 1.0
    total = 0.0 if df == 1 else term
    for step in range(2 + is_odd, df - 1, 2):
        term *= square * (step - 1) / step
        total += term
    inside = math.sin(angle) * total
    return max(0.0, 1 - (2 / math.pi * (angle + inside) if is_odd else inside))


def _check_same_model(a: FisherMap, b: FisherMap, name_a: str, name_b: str) -> None:
    if a.woodshed is None or b.woodshed is None:
        return
    backends = (a.woodshed.backend, b.woodshed.backend)
    if backends[0] != backends[1]:
        raise UsageError(
            f"{name_a} is of {backends[0]} and {name_b} of {backends[1]}", hint="compare maps of one base model"
        )
    shapes = {layer.name: (layer.d_out, layer.d_in) for layer in a.woodshed.layers}
    for layer in b.woodshed.layers:
        shape = (layer.d_out, layer.d_in)
        if shapes.get(layer.name, shape) != shape:
            raise UsageError(
                f"layer {layer.name} is {shapes[layer.name][0]} x {shapes[layer.name][1]} in {name_a}"
                f" and {shape[0]} x {shape[1]} in {name_b}: these are models of different sizes",
                hint="compare maps of one base model",
            )


def _shared_score(a: FisherMap, b: FisherMap, name_a: str, name_b: str) -> tuple[str, list[str]]:
    """The score to compare by, and what a reader has to know of the pair."""
    notes = []
    if a.timestep_focus != b.timestep_focus:
        notes.append(f"{name_a} looks at {a.timestep_focus} timesteps, {name_b} at {b.timestep_focus}")
    scores = (score_of(a), score_of(b))
    if a.woodshed is None or b.woodshed is None:
        if a.model_variant != b.model_variant:
            notes.append(f"{name_a} is of the variant {a.model_variant}, {name_b} of {b.model_variant}")
        return DENSITY, notes
    if a.woodshed.weights_digest != b.woodshed.weights_digest:
        notes.append("the maps are of different weights: what differs may come from the models, not from the data")
    if a.woodshed.data_digest == b.woodshed.data_digest:
        notes.append(
            "both maps are of the same data: intervals allow for other songs, so small differences do not count"
        )
    if scores[0] != scores[1]:
        notes.append(f"ranks follow {scores[0]} in {name_a} and {scores[1]} in {name_b}: both are compared by wg")
        return "wg", notes
    if scores[0] == "spectrum":
        notes.append("ranks follow the spectrum, which has no intervals: the maps are compared by wg")
        return "wg", notes
    return scores[0], notes


def _songs(fisher_map: FisherMap) -> int:
    """Songs behind the intervals; 0 where there are none, as in all maps of Side-Step."""
    return 0 if fisher_map.woodshed is None else num_songs(fisher_map.woodshed)


def _centred_logs(views: Sequence[LayerView]) -> Float[ndarray, " layer"]:
    logs = np.log(np.array([view.score for view in views], dtype=np.float64))
    centred: Float[ndarray, " layer"] = logs - logs.mean()
    return centred


def _tested(
    differences: Float[ndarray, " layer"],
    views_a: Sequence[LayerView],
    views_b: Sequence[LayerView],
    songs_a: int,
    songs_b: int,
) -> tuple[Float[ndarray, " layer"], Bool[ndarray, " layer"], float]:
    """z, which layers are distinct, and the least factor that the median layer would have to differ by."""
    variances = [np.array([(view.log_se or 0.0) ** 2 for view in views]) for views in (views_a, views_b)]
    error = np.sqrt(variances[0] + variances[1])
    is_testable = (variances[0] > 0) & (variances[1] > 0)
    z = np.divide(differences, error, out=np.zeros_like(differences), where=is_testable)
    spread = variances[0] ** 2 / (songs_a - 1) + variances[1] ** 2 / (songs_b - 1)
    # Rounded down, to be on the safe side; never below the smaller of the two.
    df = np.divide(error**4, spread, out=np.ones_like(error), where=is_testable)
    whole_df = [max(1, math.floor(value + 1e-9)) for value in df]
    p_values = np.array([student_p(t, dof) for t, dof in zip(z.tolist(), whole_df, strict=True)])
    p_values[~is_testable] = 1.0
    least = _critical_t(FAMILY_ERROR / len(z), int(np.median(whole_df)))
    return z, holm(p_values), math.exp(min(700.0, least * float(np.median(error))))


def _critical_t(p_value: float, df: int) -> float:
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, df) > p_value else (low, middle)
    return high


def _moved_share(all_a: Mapping[str, LayerView], all_b: Mapping[str, LayerView]) -> tuple[float, tuple[str, ...]]:
    """Of the parameters of all ranks in both maps; of the ranks where no map tells what a rank costs."""
    names = dict.fromkeys((*all_a, *all_b))
    prices = {
        name: next((view.price for view in (all_a.get(name), all_b.get(name)) if view and view.price), None)
        for name in names
    }
    is_priced = all(price is not None for price in prices.values())
    ranks_a, ranks_b = ({name: view.rank for name, view in views.items()} for views in (all_a, all_b))
    each = {name: price if is_priced and price is not None else 1 for name, price in prices.items()}
    note = () if is_priced else ("the moved share is of ranks, not of parameters: the maps do not tell all shapes",)
    return moved_share(ranks_a, ranks_b, each), note


def _verdict(num_distinct: int, num_layers: int, lacking: Sequence[str]) -> str:
    if lacking:
        have = "has" if len(lacking) == 1 else "have"
        return f"It cannot be said whether the maps differ beyond chance: {' and '.join(lacking)} {have} no intervals."
    if not num_distinct:
        return f"The maps do not differ beyond their intervals in any of {num_layers} layers."
    return f"The maps differ beyond their intervals in {num_distinct} of {num_layers} layers."
