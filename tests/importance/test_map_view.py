"""Claims about what tables, plots and comparisons see of a map."""

from __future__ import annotations

import math

import pytest

from tests.importance.example_map import example_map, layer_names
from woodshed.importance.layer_grid import layer_grid
from woodshed.importance.map_view import layer_views, params_of_flat_rank, params_of_ranks

TINY = example_map(num_blocks=1)


def test_each_score_is_that_of_the_maps_own_focus() -> None:
    assert TINY.woodshed is not None
    texture = TINY.model_copy(update={"timestep_focus": "texture"})
    for name in ("wg", "density"):
        for view, layer in zip(layer_views(texture, score=name), TINY.woodshed.layers, strict=True):
            estimate = getattr(layer.profiles["texture"], name)
            assert (view.score, view.low, view.high) == (estimate.value, estimate.low, estimate.high)
            assert view.log_se == estimate.relative_se


def test_a_focus_that_was_not_measured_has_no_scores() -> None:
    views = layer_views(TINY.model_copy(update={"timestep_focus": "0.1,0.5"}))
    assert not any(view.has_score for view in views)
    assert [view.rank for view in views] == list(TINY.rank_pattern.values())


def test_a_spectrum_is_the_norm_of_the_mean_gradient_and_has_no_interval() -> None:
    assert TINY.woodshed is not None
    layer = TINY.woodshed.layers[3]
    view = layer_views(TINY, score="spectrum")[3]
    energy = sum(value**2 for value in layer.spectrum) + layer.spectrum_rest
    assert view.score == pytest.approx(math.sqrt(energy))
    assert (view.low, view.high, view.log_se, view.group) == (None, None, None, None)


def test_groups_are_of_the_score_that_ranks_follow() -> None:
    assert all(view.group is not None for view in layer_views(TINY))
    assert all(view.group is None for view in layer_views(TINY, score="density"))


def test_side_step_names_layers_from_the_top_of_its_model() -> None:
    theirs = TINY.model_copy(update={"woodshed": None, "excluded_modules": ["decoder.layers.1.mlp.up_proj"]})
    views = layer_views(theirs)
    assert {view.name for view in views} == {*layer_names(1), "layers.1.mlp.up_proj"}
    assert (views[-1].rank, views[-1].has_score) == (0, False)
    assert params_of_ranks(views) is None


def test_parameters_are_rank_times_both_sides() -> None:
    assert TINY.woodshed is not None
    views = layer_views(TINY)
    assert params_of_ranks(views) == TINY.woodshed.allocation.num_params
    assert params_of_flat_rank(views, 8) == 8 * sum(layer.d_in + layer.d_out for layer in TINY.woodshed.layers)


def test_the_grid_has_a_place_for_every_layer_of_any_model() -> None:
    names = [
        "proj_in",
        "encoder.layers.0.self_attn.q_proj",
        "encoder.layers.10.fc1",
        "encoder.layers.2.fc1",
        "decoder.layers.0.encoder_attn.k_proj",
        "transformer.layers.3.to_qkv",
        "blocks.1.mlp.0",
    ]
    grid = layer_grid(names)
    assert set(grid.cells.values()) == set(names)
    assert len(grid.cells) == len(names)
    assert grid.blocks.index("encoder.layers.2") < grid.blocks.index("encoder.layers.10")
