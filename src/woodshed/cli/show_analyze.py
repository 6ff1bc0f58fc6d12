"""What `woodshed analyze` has to say when it is done, for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table

from woodshed.cli.parts import SHOWN_FAILURES, facts_table, line_of, note_lines, table_of
from woodshed.cli.quantities import audio_length, clock, size
from woodshed.cli.rank_grid import RankGrid, RankHistogram, interval_bar, layer_table, spread_of, times
from woodshed.importance.fisher_map import FisherMap, WoodshedPart
from woodshed.importance.map_view import (
    LayerView,
    has_timesteps,
    layer_views,
    mean_score,
    num_songs,
    params_of_flat_rank,
    reactive_layers,
    score_of,
)
from woodshed.jobs.analyze_report import AnalyzePlan, AnalyzeReport

SHOWN_LAYERS = 10
SHOWN_SONGS = 3
_BAR_WIDTH = 15
_WIDTH_FOR_BARS, _WIDTH_FOR_INTERVALS = 78, 62

_SCORES = {
    "wg": "mean |weight x gradient|",
    "density": "Fisher information per weight",
    "spectrum": "singular values of the mean gradient",
}
_RULES = {
    "waterfill": "parameters follow {score}, less so where it is uncertain",
    "sidestep": "Side-Step's rule, on {score}",
    "flat": "the same rank everywhere",
    "random": "drawn at random, for experiments",
    "inverse": "against {score}, for experiments",
}
_REASONS = {
    "stable": "stable: ranks stayed put for {patience} checks, and scores are known well enough",
    "budget of passes used": "budget of passes used, before the ranks were stable: more --runs would tell more",
    "not converged": "not converged: the ranks were still moving, so take them with care",
    "fixed": "every song was looked at, and a second look would show nothing new",
}
_PLACES = {
    "memory": "kept whole, in the memory beside the model",
    "sketch": "kept as sketches: spectra are estimates",
    "none": "not kept: there will be no spectra",
}


def lines_of(report: AnalyzeReport | AnalyzePlan) -> Group:
    """The report, ready to be printed."""
    return _planned(report) if isinstance(report, AnalyzePlan) else Group(*_analysed(report))


def map_lines(fisher_map: FisherMap) -> list[RenderableType]:
    """A map by itself, whoever made it: what it was made of, its layers, and what to mind."""
    views = [view for view in layer_views(fisher_map) if view.adaptable]
    parts: list[RenderableType] = [facts_table(_map_facts(fisher_map, views))]
    if views:
        parts += [line_of(""), line_of("highest ranks:"), LayerTable(views, score_of(fisher_map))]
        parts += [line_of(""), line_of("rank of each layer:"), RankGrid(views)]
        parts += [line_of(""), line_of("layers by rank:"), RankHistogram(views)]
    if fisher_map.woodshed is not None:
        parts += _songs(fisher_map.woodshed)
    return [*parts, *_warnings(fisher_map, views)]


@dataclass(frozen=True, slots=True)
class LayerTable:
    """The layers of the highest ranks; intervals and their bars as far as there is room."""

    views: Sequence[LayerView]
    score: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _layer_table(self.views, self.score, options.max_width)


def _analysed(report: AnalyzeReport) -> Iterator[RenderableType]:
    items = "item" if report.num_failed == 1 else "items"
    yield line_of(f"done, but {report.num_failed} {items} failed" if report.num_failed else "done")
    yield from map_lines(report.map)
    yield facts_table(
        {
            "extra memory": _memory(report),
            "time": clock(report.elapsed_s),
            "map": report.output,
            "plots": _plots(report.plots),
        }
    )
    if report.failures:
        yield table_of(("item", "reason"), report.failures[:SHOWN_FAILURES])
        if report.num_failed > SHOWN_FAILURES:
            yield line_of(f"and {report.num_failed - SHOWN_FAILURES} more")
    yield from note_lines(report.notes)
    if report.next_steps:
        yield line_of("next:")
        yield from (line_of(f"  {step}") for step in report.next_steps)


def _plots(paths: Sequence[str]) -> str:
    """
    >>> _plots(("out/ranks.png", "out/ranks.svg"))
    'ranks.png, ranks.svg in out'
    """
    folders = {str(PurePath(path).parent) for path in paths}
    if len(folders) != 1:
        return ", ".join(paths)
    return f"{', '.join(PurePath(path).name for path in paths)} in {folders.pop()}"


def _planned(plan: AnalyzePlan) -> Group:
    ranks = f"median {plan.rank}" if plan.rank is not None else f"{_amount(plan.budget_params or 0)} parameters"
    time = f"{clock(plan.longest_s)} at most"
    if plan.fewest_draws < plan.most_draws:
        time = f"{clock(plan.shortest_s)} if the ranks are soon stable, {time}"
    facts = {
        "data": plan.dataset,
        "items": f"{plan.num_items}" + (f", {audio_length(plan.audio_s)} of sound" if plan.audio_s else ""),
        "model": f"{plan.variant} ({plan.backend}), {plan.num_layers} layers",
        "timesteps": plan.timestep_focus,
        "ranks": f"{ranks}, from {plan.rank_min} to {plan.rank_max}",
        "time": f"{time} ({plan.fewest_draws} to {plan.most_draws} draws, {plan.s_per_draw:.3g} s each)",
        "memory": f"{size(plan.model_bytes)} for the model, {size(plan.extra_bytes)} beside it",
        "disk": size(plan.disk_bytes),
        "mean gradients": _PLACES.get(plan.mean_gradients, plan.mean_gradients),
        "output": plan.output,
    }
    warning = [line_of(f"mind: {plan.fragile}")] if plan.fragile else []
    return Group(line_of("plan only: nothing was written"), facts_table(facts), *warning, *note_lines(plan.notes))


def _map_facts(fisher_map: FisherMap, views: Sequence[LayerView]) -> dict[str, str]:
    ranks = [view.rank for view in views]
    ours = fisher_map.woodshed
    if ours is None:
        low, high = fisher_map.rank_budget.min, fisher_map.rank_budget.max
        return {
            "model": fisher_map.model_variant,
            "made by": f"Side-Step, schema {fisher_map.version}: it has no intervals",
            "timesteps": _focus(fisher_map),
            "looked at": f"{fisher_map.total_batches} songs in {fisher_map.num_runs} rounds",
            "asked for": f"rank {fisher_map.base_rank}, from {low} to {high}",
            "ranks": f"median {spread_of(ranks)}",
        }
    digest = ours.weights_digest.rpartition(":")[2][:12]
    weights = f", weights {digest}" if digest else ""
    return {
        "model": f"{fisher_map.model_variant} ({ours.backend}){weights}",
        "data": _data(ours),
        "timesteps": _focus(fisher_map),
        "ranks follow": _rule(ours),
        "looked at": f"{ours.convergence.num_draws} draws in {ours.convergence.num_passes} backward passes",
        "stopped": _REASONS[ours.convergence.reason].format(patience=ours.convergence.patience),
        "error of a score": _error(ours),
        "parameters": _parameters(ours, views),
        "ranks": f"median {spread_of(ranks)}",
        "certainty": _certainty(views),
        "shrinkage": _shrinkage(ours.allocation.shrinkage) if ours.allocation.rule == "waterfill" else "",
        "halves": _halves(ours.halves_correlation),
        "specific": _specific(ours),
    }


def _data(ours: WoodshedPart) -> str:
    used = num_songs(ours)
    return f"{ours.num_items} items" + (f", of which {used} were looked at" if used != ours.num_items else "")


def _focus(fisher_map: FisherMap) -> str:
    if not has_timesteps(fisher_map):
        return ""
    if fisher_map.timestep_focus == "balanced":
        return "balanced: as often as the model trains on them"
    bounds = [f"{bound:g}" for bound in fisher_map.timestep_range]
    return f"{fisher_map.timestep_focus} ({' to '.join(bounds)}; 0 is data, 1 is noise)"


def _rule(ours: WoodshedPart) -> str:
    score = ours.allocation.score
    return _RULES[ours.allocation.rule].format(score=f"{score} ({_SCORES[score]})" if score in _SCORES else score)


def _error(ours: WoodshedPart) -> str:
    # None or infinite where too few songs were seen.
    errors: Sequence[float | None] = ours.convergence.relative_se
    last = errors[-1] if errors else None
    if last is None or not math.isfinite(last):
        return ""
    return f"{last:.1%} (median over layers; limit {ours.convergence.max_relative_se:.1%})"


def _parameters(ours: WoodshedPart, views: Sequence[LayerView]) -> str:
    allocation = ours.allocation
    told = f"{_amount(allocation.num_params)} in all adapters"
    if allocation.budget_params is not None:
        return f"{told}, of a budget of {_amount(allocation.budget_params)}"
    flat = None if allocation.base_rank is None else params_of_flat_rank(views, allocation.base_rank)
    if not flat:
        return told
    change = allocation.num_params / flat - 1
    compared = "as many as" if abs(change) < 5e-4 else f"{abs(change):.1%} {'more' if change > 0 else 'fewer'} than"
    return f"{told}, {compared} flat rank {allocation.base_rank} ({_amount(flat)})"


def _certainty(views: Sequence[LayerView]) -> str:
    shares = sorted(view.certainty for view in views if view.certainty is not None)
    if not shares:
        return ""
    return (
        f"other songs of the kind would give a layer the same rank in {shares[len(shares) // 2]:.0%} of cases (median)"
    )


def _shrinkage(shrinkage: float) -> str:
    if shrinkage < 0.05:
        return f"{shrinkage:.2f}: the scores are well known, and ranks follow them"
    if shrinkage > 0.95:
        return f"{shrinkage:.2f}: the scores are little more than noise, and ranks are nearly flat"
    return f"{shrinkage:.2f} (0: ranks follow the scores; 1: scores are noise, and ranks are flat)"


def _halves(correlation: float) -> str:
    return f"scores of two halves of the songs correlate {correlation:.2f}" if math.isfinite(correlation) else ""


def _specific(ours: WoodshedPart) -> str:
    reference = ours.reference
    if reference is None:
        return ""
    verdict = {
        True: "yes, to this data",
        False: "no: the map tells of the model, hardly of this data",
        None: "cannot be told: too few songs have a partner in the reference",
    }[reference.is_specific]
    return (
        f"{verdict} (scores on {reference.kind} correlate {reference.rank_correlation:.2f} with these,"
        f" those of two halves of the data {reference.ceiling:.2f}; p = {reference.p_value:.2g})"
    )


def _layer_table(views: Sequence[LayerView], score: str, width: int) -> Table:
    shown = sorted(views, key=lambda view: (-view.rank, -(view.score or 0.0), view.name))[:SHOWN_LAYERS]
    mean = mean_score(views)
    has_intervals = any(view.low is not None and view.high is not None for view in shown)
    with_numbers = has_intervals and width >= _WIDTH_FOR_INTERVALS
    with_bars = has_intervals and width >= _WIDTH_FOR_BARS
    scale = _scale(shown, mean or 1.0)
    has_groups = any(view.group is not None for view in shown)
    head = ["layer", "rank", f"{score}/mean", *_interval_heads(scale, with_numbers, with_bars)]
    rows = [
        (
            view.name,
            f"{view.rank or '-'}",
            *_score_cells(view, mean, scale, with_numbers, with_bars),
            *((f"{view.group}",) if has_groups else ()),
        )
        for view in shown
    ]
    return layer_table([*head, *(("group",) if has_groups else ())], rows, left=range(3, len(head)))


def _interval_heads(scale: tuple[float, float], with_numbers: bool, with_bars: bool) -> list[str]:
    """The bars' column is named by the ends of its scale."""
    low, high = (f"{end:g}" for end in scale)
    numbers, bars = ["90 %"], [f"{low:{_BAR_WIDTH - len(high)}}{high}"]
    return [*(numbers if with_numbers else []), *(bars if with_bars else [])]


def _score_cells(
    view: LayerView, mean: float | None, scale: tuple[float, float], with_numbers: bool, with_bars: bool
) -> list[str]:
    """Score relative to the mean, its interval, and that as a bar; blank where it has none."""
    if view.score is None or not view.has_score or not mean:
        return ["-", *([""] if with_numbers else []), *([""] if with_bars else [])]
    value = view.score / mean
    low, high = (None if bound is None else bound / mean for bound in (view.low, view.high))
    cells = [times(value)]
    if with_numbers:
        cells.append("" if low is None or high is None else f"{times(low)}..{times(high)}")
    if with_bars:
        cells.append(interval_bar(value, low, high, scale=scale, width=_BAR_WIDTH))
    return cells


def _scale(shown: Sequence[LayerView], mean: float) -> tuple[float, float]:
    """Powers of two around what is shown."""
    bounds = [bound / mean for view in shown for bound in (view.low, view.score, view.high) if bound and bound > 0]
    low, high = math.floor(math.log2(min(bounds, default=1.0))), math.ceil(math.log2(max(bounds, default=1.0)))
    return 2.0**low, 2.0 ** max(high, low + 1)


def _songs(ours: WoodshedPart) -> Iterator[RenderableType]:
    """Those that drive the map, if it is more than their equal share."""
    told = [(str(song["id"]), float(song["share"])) for song in ours.leverage if "id" in song and "share" in song]
    if len(told) > 1:
        yield line_of("")
        yield line_of(
            f"songs that drive the map, by what leaving them out would change (equal: {1 / num_songs(ours):.1%}):"
        )
        yield from (line_of(f"  {share:>6.1%}  {name}") for name, share in told[:SHOWN_SONGS])


def _warnings(fisher_map: FisherMap, views: Sequence[LayerView]) -> Iterator[RenderableType]:
    yield line_of("")
    if reactive := reactive_layers(views):
        more = f" and {len(reactive) - 5} more" if len(reactive) > 5 else ""
        yield line_of(
            "mind forgetting: the output reacts most to these layers, and their ranks are high: "
            + ", ".join(f"{view.name} ({view.rank})" for view in reactive[:5])
            + more
        )
    yield line_of("when you train with this map:")
    yield line_of("  - take a lower learning rate than with flat ranks: 5e-5 where you took 1e-4")
    yield line_of("  - listen to samples early and often: it adapts faster, and overfits sooner")
    if "turbo" in fisher_map.model_variant.lower():
        yield line_of(
            "  - Turbo models are fragile, and fitted ranks can destabilise their training: prefer a Base model"
        )


def _amount(count: int) -> str:
    """A number of parameters.

    >>> _amount(640), _amount(46_240_000), _amount(1_510_000_000)
    ('640', '46.24 M', '1.51 G')
    """
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count}"


def _memory(report: AnalyzeReport) -> str:
    if not report.peak_extra_bytes:
        return ""
    return f"{size(report.peak_extra_bytes)} beside the model (announced: {size(report.announced_bytes)})"
