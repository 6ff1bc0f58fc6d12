"""The draws behind a map, kept in a small file beside it: scores of each draw and its timestep, without entries.

From them the Fisher density of any range of timesteps can be told, long after the analysis.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from safetensors import SafetensorError
from safetensors.numpy import load_file

from woodshed.errors import StoreError, UsageError
from woodshed.importance.analysis import Analysis
from woodshed.importance.belief import Scored
from woodshed.importance.draw_table import write_tensors
from woodshed.importance.fisher_map import WoodshedPart
from woodshed.importance.focus import density_within
from woodshed.importance.focuses import Focus
from woodshed.importance.resampling import relative_errors, resampled_means, song_counts

DRAWS_SUFFIX = ".draws.safetensors"


def draws_path(map_file: Path) -> Path:
    """`fisher_map.draws.safetensors` beside `fisher_map.json`."""
    return map_file.with_name(map_file.name.removesuffix(".json") + DRAWS_SUFFIX)


def save_draws(path: Path, analysis: Analysis) -> None:
    """Write them, whole or not at all.

    `item` (draw), `timestep` (draw; NaN without one), `drawn` (draw): the density that the timestep was drawn with;
    `energy` (draw, layer): squared norm of the gradient; `sensitivity` (measured, layer) and `sensitivity_draw`.
    """
    table = analysis.measurer.table
    times = np.array([np.nan if t is None else t for t in table.timesteps])
    rows, sensitivity = table.sensitivity
    tensors = {
        "item": torch.tensor(table.items),
        "timestep": torch.from_numpy(times),
        "drawn": torch.from_numpy(analysis.timesteps.drawn_density(times)),
        "energy": torch.from_numpy(table.energy),
        "sensitivity": torch.from_numpy(sensitivity),
        "sensitivity_draw": torch.from_numpy(rows),
    }
    write_tensors(path, tensors, notes={"layers": [shape.name for shape in analysis.shapes]})


def densities(path: Path, own: WoodshedPart, focus: Focus) -> dict[str, Scored]:
    """Fisher density of all layers for a range of timesteps.

    Raises:
        StoreError: the file cannot be read or is another map's.
        UsageError: too few draws lie in the range.
    """
    try:
        kept = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"the draws of the map cannot be read from {path}: {error}",
            hint="they lie beside the map that an analysis wrote; without them only the map's own focuses are known",
        ) from error
    if kept["energy"].shape != (own.convergence.num_draws, len(own.layers)):
        raise StoreError(f"{path} holds the draws of another map", hint="keep a map and its draws together")
    weights = density_within(kept["timestep"], focus) / kept["drawn"]
    inside = weights > 0
    items, places = np.unique(kept["item"][inside], return_inverse=True)
    if len(items) < 2:
        raise UsageError(
            f"{int(inside.sum())} of {len(weights)} draws lie within timesteps {focus.low:g} and {focus.high:g}",
            hint="analyze with this --timestep-focus, or widen it",
        )
    return _scored(own, kept["energy"][inside], weights[inside], places, len(items))


def _scored(
    own: WoodshedPart,
    energy: Float32[np.ndarray, "draw layer"],
    weights: Float64[np.ndarray, " draw"],
    places: Int64[np.ndarray, " draw"],
    num_songs: int,
) -> dict[str, Scored]:
    members = np.zeros((num_songs, len(weights)))
    members[places, np.arange(len(weights))] = weights
    sums, totals = members @ energy.astype(np.float64), members.sum(axis=1)
    errors = relative_errors(resampled_means(song_counts(num_songs, seed=own.seed), sums, totals), num_songs)
    values = sums.sum(axis=0) / totals.sum()
    return {
        layer.name: Scored(float(value) / layer.num_weights, float(error))
        for layer, value, error in zip(own.layers, values, errors, strict=True)
    }
