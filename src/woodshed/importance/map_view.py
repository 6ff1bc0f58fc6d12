"""What a map says of each layer, the same for our maps and for Side-Step's: what tables, plots and comparisons show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

from woodshed.importance.fisher_map import Estimate, FisherMap, LayerRecord, Profile, WoodshedPart

DENSITY = "density"
"""What Side-Step's score is, the only one that its maps have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """One layer; None stands for what the map does not tell."""

    name: str
    """As `Trainable.layers` says it."""
    rank: int
    """0: no adapter."""
    adaptable: bool = True
    score: float | None = None
    low: float | None = None
    """Of the 90 % interval of `score`."""
    high: float | None = None
    log_se: float | None = None
    """Standard error of the score's logarithm."""
    group: int | None = None
    price: int | None = None
    """Parameters of one rank."""
    sensitivity: float | None = None
    """Per weight."""
    certainty: float | None = None
    """Share of bootstrap resamples that give the layer this very rank."""

    @property
    def has_score(self) -> bool:
        """Whether the score has a logarithm."""
        return self.score is not None and math.isfinite(self.score) and self.score > 0


def score_of(fisher_map: FisherMap) -> str:
    """Name of the score that the map's ranks follow."""
    return DENSITY if fisher_map.woodshed is None else fisher_map.woodshed.allocation.score


def layer_views(fisher_map: FisherMap, *, score: str | None = None) -> tuple[LayerView, ...]:
    """All layers that the map names, in its order.

    Args:
        score: `wg`, `density`, `spectrum` or another estimate of a `Profile`, at the map's own focus; None: that
            which the ranks follow. A map of Side-Step has its one score, whatever is asked for.
    """
    ours = fisher_map.woodshed
    if ours is None:
        given = [
            LayerView(name=_canonical(one.name), rank=one.assigned_rank, score=one.fisher_score)
            for one in fisher_map.modules
        ]
        left_out = [LayerView(name=_canonical(name), rank=0) for name in fisher_map.excluded_modules]
        return (*given, *left_out)
    wanted = score or score_of(fisher_map)
    views = (_view(layer, fisher_map.timestep_focus, wanted) for layer in ours.layers)
    # Groups are of the score that ranks follow, and a spectrum, which has no errors, borrows those of wg.
    has_groups = wanted == score_of(fisher_map) != "spectrum"
    return tuple(view if has_groups else replace(view, group=None) for view in views)


def mean_score(views: Iterable[LayerView]) -> float | None:
    """Geometric mean of the scores; None where there are none.

    >>> mean_score([LayerView(name=name, rank=8, score=score) for name, score in (("a", 2.0), ("b", 8.0), ("c", 0.0))])
    4.0
    """
    logs = [math.log(view.score) for view in views if view.score is not None and view.has_score]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def params_of_ranks(views: Iterable[LayerView]) -> int | None:
    """Parameters of all adapters together; None where the map does not tell what a rank costs."""
    given = [view for view in views if view.rank]
    prices = [view.price for view in given if view.price is not None]
    if len(prices) < len(given):
        return None
    return sum(view.rank * price for view, price in zip(given, prices, strict=True))


def params_of_flat_rank(views: Iterable[LayerView], rank: int) -> int | None:
    """The same if every layer that can have an adapter had one of `rank`.

    >>> params_of_flat_rank([LayerView(name="a", rank=0, price=30), LayerView(name="b", rank=8, price=10)], 2)
    80
    """
    return params_of_ranks([replace(view, rank=rank) for view in views if view.adaptable])


def reactive_layers(views: Iterable[LayerView]) -> tuple[LayerView, ...]:
    """Layers among the tenth that the output reacts to most, whose rank is above the median: adapting them much is
    what is likely to forget. The most sensitive first; none where the map has no sensitivities.

    >>> views = [LayerView(name=f"{at}", rank=8 * at, sensitivity=float(at)) for at in range(1, 21)]
    >>> [view.name for view in reactive_layers(views)]
    ['20', '19']
    """
    known = [view for view in views if view.sensitivity is not None and view.rank]
    if not known:
        return ()
    middle = median(view.rank for view in known)
    by_sensitivity = sorted(known, key=lambda view: (-(view.sensitivity or 0.0), view.name))
    return tuple(view for view in by_sensitivity[: math.ceil(len(known) / 10)] if view.rank > middle)


def has_timesteps(fisher_map: FisherMap) -> bool:
    """Whether the model's loss has noise at all, as Whisper's has not."""
    return fisher_map.woodshed is None or bool(fisher_map.woodshed.trace.get("edges"))


def num_songs(ours: WoodshedPart) -> int:
    """Items that the scores come from."""
    return len(set(ours.items_used)) or ours.num_items


def _view(layer: LayerRecord, focus: str, score: str) -> LayerView:
    profile = layer.profiles.get(focus)
    estimate = _estimate(layer, profile, score)
    sensitivity = None if profile is None else profile.sensitivity
    return LayerView(
        name=layer.name,
        rank=layer.rank,
        adaptable=layer.adaptable,
        score=_finite(estimate.value) if isinstance(estimate, Estimate) else estimate,
        low=_finite(estimate.low) if isinstance(estimate, Estimate) else None,
        high=_finite(estimate.high) if isinstance(estimate, Estimate) else None,
        log_se=_finite(estimate.relative_se) if isinstance(estimate, Estimate) else None,
        group=layer.group,
        price=layer.d_in + layer.d_out,
        sensitivity=None if sensitivity is None else _finite(sensitivity.value),
        certainty=layer.rank_probability.get(str(layer.rank)),
    )


def _estimate(layer: LayerRecord, profile: Profile | None, score: str) -> Estimate | float | None:
    """A spectrum has no interval: its singular values are those of one mean gradient."""
    if score == "spectrum":
        energy = math.fsum(value**2 for value in layer.spectrum) + layer.spectrum_rest
        return _finite(math.sqrt(max(energy, 0.0)))
    found = getattr(profile, score, None)
    return found if isinstance(found, Estimate) else None


def _finite(value: float | None) -> float | None:
    """A map may say null or infinity where nothing is known."""
    return value if value is not None and math.isfinite(value) else None


def _canonical(name: str) -> str:
    """Side-Step names layers from the top of its model, whose transformer is `decoder`."""
    return name.removeprefix("decoder.")
