"""Pictures of a map: ranks and scores by block and projection, energy by timestep, and all layers with intervals.

Each is written as PNG and as SVG. The same map gives the same bytes under one version of matplotlib.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from woodshed.contracts import Json
from woodshed.errors import StoreError
from woodshed.importance.fisher_map import FisherMap
from woodshed.importance.layer_grid import NO_BLOCK, LayerGrid, common_stem, layer_grid
from woodshed.importance.map_view import LayerView, has_timesteps, layer_views, mean_score, score_of
from woodshed.store.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
"""Of the PNG files."""
MOST_BARS = 720
"""Layers in the ranking; a figure of more would be too wide to open."""
_ROWS_OF_BARS = 60
_SEQUENTIAL, _DIVERGING = "viridis", "PuOr_r"
"""Colour maps that people with any kind of colour vision can read."""
_EMPTY = "0.88"
"""Grey of a place where the model has no layer, or the layer no number."""
_INK, _OTHER_INK, _BAND = "#0b559f", "#c4500b", "0.94"

_Values = Float[ndarray, "block column"]


def draw_plots(fisher_map: FisherMap, folder: Path) -> tuple[Path, ...]:
    """Draw all that the map has numbers for.

    Args:
        folder: made where it is missing; pictures of the same names are replaced.

    Returns:
        The files: of each picture the PNG, then the SVG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        StoreError: the disk refuses.
    """
    views = [view for view in layer_views(fisher_map) if view.adaptable]
    pictures: dict[str, Callable[[], Figure | None]] = {
        "ranks": lambda: _rank_figure(fisher_map, views),
        "scores": lambda: _score_figure(fisher_map, views),
        "timesteps": lambda: _timestep_figure(fisher_map),
        "layers": lambda: _bar_figure(fisher_map, views),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot create the folder {folder}: {error.strerror}", hint="choose another folder for the plots"
        ) from error
    written: list[Path] = []
    with _own_style():
        for name, draw in pictures.items():
            if (figure := draw()) is None:
                continue
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                picture = io.BytesIO()
                figure.savefig(picture, format=kind, dpi=DPI, metadata=metadata)
                written.append(folder / f"{name}.{kind}")
                write_whole(written[-1], picture.getvalue())
    return tuple(written)


@contextmanager
def _own_style() -> Iterator[None]:
    """Whatever the user's own settings of matplotlib say; they are back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # Layer names are no formulas, and ids inside an SVG file come from this salt in place of chance.
        matplotlib.rcParams.update({"text.parse_math": False, "svg.hashsalt": "woodshed", "font.size": 9.0})
        yield


def _figure(width_in: float, height_in: float, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def _title(fisher_map: FisherMap, what: str) -> str:
    focus = f", {_label(fisher_map.timestep_focus)} timesteps" if has_timesteps(fisher_map) else ""
    return f"{what}\n{_label(fisher_map.model_variant)}{focus}"


def _rank_figure(fisher_map: FisherMap, views: Sequence[LayerView]) -> Figure | None:
    if not views:
        return None
    ranks = {view.name: float(view.rank) if view.rank else math.nan for view in views}
    texts = {view.name: f"{view.rank}" if view.rank else "-" for view in views}
    given = [view.rank for view in views if view.rank]
    limits = (min(given, default=0), max(given, default=1))
    what = "Rank of each layer's adapter" + ("" if len(given) == len(views) else " (grey: no adapter)")
    title = _title(fisher_map, what)
    return _grid_figure(title, ranks, texts, limits=limits, bar="rank", palette=_SEQUENTIAL)


def _score_figure(fisher_map: FisherMap, views: Sequence[LayerView]) -> Figure | None:
    mean = mean_score(views)
    if mean is None:
        return None
    logs = {view.name: math.log2(view.score / mean) if view.score and view.has_score else math.nan for view in views}
    texts = {name: "-" if math.isnan(log) else f"{2**log:.{2 if log < 3 else 3}g}" for name, log in logs.items()}
    reach = _reach(list(logs.values()))
    title = _title(fisher_map, f"Score ({_label(score_of(fisher_map))}) relative to its geometric mean")
    return _grid_figure(title, logs, texts, limits=(-reach, reach), bar="times the mean", palette=_DIVERGING)


def _grid_figure(
    title: str,
    values: Mapping[str, float],
    texts: Mapping[str, str],
    *,
    limits: tuple[float, float],
    bar: str,
    palette: str,
) -> Figure:
    """A heat map with the number in each cell; bars of a diverging palette are labelled as powers of two."""
    grid = layer_grid(values)
    table = _table(grid, values)
    figure = _figure(2.6 + 0.52 * len(grid.projections), 2.4 + 0.24 * len(grid.blocks), title)
    axes = figure.add_subplot()
    image = _heat_map(axes, table, limits, palette)
    for (block, projection), name in grid.cells.items():
        row, column = grid.blocks.index(block), grid.projections.index(projection)
        colour = _ink_on(image, table[row, column])
        axes.text(column, row, texts[name], ha="center", va="center", fontsize=7.5, color=colour)
    _block_axis(axes, grid.blocks)
    axes.set_xticks(range(len(grid.projections)), [_label(name) for name in grid.projections], rotation=45)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.set_xlabel("projection")
    _colour_bar(figure, image, [axes], bar, limits, is_power=palette == _DIVERGING)
    return figure


def _timestep_figure(fisher_map: FisherMap) -> Figure | None:
    """Small panels, one a projection: a panel of all layers would have rows too thin to be named."""
    edges, energy = _trace(fisher_map)
    if len(edges) < 2 or not energy:
        return None
    logs = {name: _log_to_mean(energies) for name, energies in energy.items()}
    grid = layer_grid(logs)
    num_columns = min(4, len(grid.projections))
    num_rows = math.ceil(len(grid.projections) / num_columns)
    num_bins = len(edges) - 1
    height_in = 1.2 + num_rows * (0.75 + 0.14 * max(4, len(grid.blocks)))
    has_gaps = any(math.isnan(value) for values in logs.values() for value in values)
    what = "Gradient energy by timestep, relative to the layer's mean" + (" (grey: no draws)" if has_gaps else "")
    title = _title(fisher_map, what)
    figure = _figure(1.6 + num_columns * max(1.9, 0.26 * num_bins), height_in, title)
    reach = _reach([value for values in logs.values() for value in values])
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    image: Any = None
    for place, axes in enumerate(panels.flat):
        if place >= len(grid.projections):
            axes.set_axis_off()
            continue
        projection = grid.projections[place]
        rows = [logs.get(grid.cells.get((block, projection), ""), [math.nan] * num_bins) for block in grid.blocks]
        image = _heat_map(axes, np.array(rows), (-reach, reach), _DIVERGING)
        axes.set_title(_label(projection), fontsize=9)
        _edge_axis(axes, edges)
        _block_axis(axes, grid.blocks, is_named=place % num_columns == 0, every=_step(len(grid.blocks), 12))
        if place + num_columns >= len(grid.projections):
            axes.set_xlabel("timestep (0 data, 1 noise)", fontsize=8)
            axes.tick_params(axis="x", labelbottom=True)
    _colour_bar(figure, image, list(panels.flat), "times the layer's mean", (-reach, reach), is_power=True)
    return figure


def _bar_figure(fisher_map: FisherMap, views: Sequence[LayerView]) -> Figure | None:
    """All layers by score, in columns that are read from the top left down; a band is a group."""
    mean = mean_score(views)
    if mean is None:
        return None
    scored = [view for view in views if view.has_score]
    ordered = sorted(scored, key=lambda view: (-(view.score or 0.0), view.name))
    shown = ordered[:MOST_BARS]
    num_columns = math.ceil(len(shown) / _ROWS_OF_BARS)
    per_column = math.ceil(len(shown) / num_columns)
    has_intervals = any(view.low is not None for view in shown)
    what = f"Layers by score ({_label(score_of(fisher_map))})" + (" with 90 % intervals" if has_intervals else "")
    what += "" if len(shown) == len(ordered) else f": the first {len(shown)} of {len(ordered)}"
    figure = _figure(0.6 + 4.1 * num_columns, 1.6 + 0.165 * per_column, _title(fisher_map, what))
    columns = figure.subplots(1, num_columns, squeeze=False, sharex=True)[0]
    bands = _bands(shown)
    for place, axes in enumerate(columns):
        first = place * per_column
        rows = range(first, min(first + per_column, len(shown)))
        for row in rows:
            _bar(axes, shown[row], row - first, mean, band=bands[row])
        axes.set_xscale("log", base=2)
        axes.set_ylim(per_column - 0.5, -0.5)
        labels = [f"{_label(shown[row].name)}  {shown[row].rank or '-':>3}" for row in rows]
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.tick_params(axis="y", length=0)
        axes.set_title("layer, rank", fontsize=8, loc="left", x=0.0, ha="right")
        axes.grid(axis="x", color="0.8", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("score, times the geometric mean", fontsize=8)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _widen_to_powers(columns[0], shown, mean)
    if any(view.group is not None for view in shown):
        figure.supxlabel("Layers in one band cannot be told apart by their scores.", fontsize=8)
    return figure


def _bar(axes: Axes, view: LayerView, row: int, mean: float, *, band: int) -> None:
    colour = (_INK, _OTHER_INK)[band % 2]
    if band % 2:
        axes.axhspan(row - 0.5, row + 0.5, color=_BAND, linewidth=0, zorder=0)
    value = (view.score or 0.0) / mean
    if view.low is not None and view.high is not None:
        axes.plot([max(view.low / mean, value / 1e3), view.high / mean], [row, row], color=colour, linewidth=1.2)
    axes.plot([value], [row], marker="o" if band % 2 == 0 else "D", markersize=3, color=colour)


def _widen_to_powers(axes: Axes, shown: Sequence[LayerView], mean: float) -> None:
    """Limits at powers of two around all intervals, and at most a thousandfold below the least score."""
    lowest = min(
        max(view.low or 0.0, (view.score or 0.0) / 1e3) if view.low is not None else view.score or 0.0 for view in shown
    )
    highest = max(view.high if view.high is not None else view.score or 0.0 for view in shown)
    low, high = math.floor(math.log2(lowest / mean) - 0.1), math.ceil(math.log2(highest / mean) + 0.1)
    axes.set_xlim(2.0**low, 2.0**high)


def _bands(ordered: Sequence[LayerView]) -> list[int]:
    """Number of the run of equal groups that each layer stands in; all one where the map has no groups."""
    bands = [0]
    for before, view in itertools.pairwise(ordered):
        bands.append(bands[-1] + (before.group != view.group))
    return bands


def _trace(fisher_map: FisherMap) -> tuple[list[float], dict[str, list[float]]]:
    """Edges of the timestep bins, and each layer's mean energies in them; NaN where a bin has no draws."""
    trace: Mapping[str, Json] = {} if fisher_map.woodshed is None else fisher_map.woodshed.trace
    edges = [float(edge) for edge in trace.get("edges", ())]
    energies = {
        str(name): [math.nan if value is None or value <= 0 else float(value) for value in values]
        for name, values in dict(trace.get("energy", {})).items()
        if len(values) == len(edges) - 1
    }
    return edges, {name: values for name, values in energies.items() if not all(map(math.isnan, values))}


def _log_to_mean(energies: Sequence[float]) -> list[float]:
    known = [value for value in energies if not math.isnan(value)]
    mean = math.fsum(known) / len(known)
    return [math.log2(value / mean) if not math.isnan(value) else value for value in energies]


def _table(grid: LayerGrid, values: Mapping[str, float]) -> _Values:
    table = np.full((len(grid.blocks), len(grid.projections)), np.nan)
    for (block, projection), name in grid.cells.items():
        table[grid.blocks.index(block), grid.projections.index(projection)] = values[name]
    return table


def _heat_map(axes: Axes, table: _Values, limits: tuple[float, float], palette: str) -> Any:
    axes.set_facecolor(_EMPTY)
    low, high = limits if limits[0] < limits[1] else (limits[0] - 1, limits[1] + 1)
    image = axes.imshow(
        np.ma.masked_invalid(table), cmap=palette, vmin=low, vmax=high, aspect="auto", interpolation="nearest"
    )
    axes.tick_params(length=0)
    return image


def _colour_bar(
    figure: Figure, image: Any, axes: Sequence[Axes], label: str, limits: tuple[float, float], *, is_power: bool
) -> None:
    bar = figure.colorbar(image, ax=axes, label=label, fraction=0.05, pad=0.02, aspect=30)
    if is_power:
        step = max(1, math.ceil((limits[1] - limits[0]) / 9))
        powers = [power for power in range(math.ceil(limits[0]), math.floor(limits[1]) + 1) if power % step == 0]
        bar.set_ticks(powers, labels=[f"{2**power}" if power >= 0 else f"1/{2**-power}" for power in powers])


def _block_axis(axes: Axes, blocks: Sequence[str], *, is_named: bool = True, every: int = 1) -> None:
    stem = common_stem(blocks)
    names = [block.rpartition(".")[2] if stem is not None else block for block in blocks]
    places = range(0, len(blocks), every)
    axes.set_yticks(places, [_label(names[place]) if names[place] != NO_BLOCK else "none" for place in places])
    if is_named:
        axes.set_ylabel(f"block ({_label(stem)}.N)" if stem else "block", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)


def _edge_axis(axes: Axes, edges: Sequence[float]) -> None:
    every = _step(len(edges), 6)
    places = range(0, len(edges), every)
    axes.set_xticks([place - 0.5 for place in places], [f"{edges[place]:.2g}" for place in places], fontsize=8)


def _step(count: int, most: int) -> int:
    return max(1, math.ceil(count / most))


def _reach(values: Sequence[float]) -> float:
    """Limit of a symmetric scale: a whole power of two that holds all values, at least one and at most eight."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=1.0)
    return float(min(8, max(1, math.ceil(largest))))


def _ink_on(image: Any, value: float) -> str:
    """Black or white, by the luminance of the value's colour; black on the grey of nothing."""
    if math.isnan(value):
        return "black"
    colour = image.cmap(image.norm(value))[:3]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour)
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.18 else "black"


def _label(text: str) -> str:
    """A name from a file, without what no font has a picture of."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
