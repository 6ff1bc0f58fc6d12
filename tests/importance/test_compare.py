"""Claims about the comparison of two maps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.importance.example_map import example_map, layer_names
from woodshed.errors import StoreError, UsageError
from woodshed.importance.compare import compare_maps, holm, student_p
from woodshed.importance.fisher_map import FisherMap
from woodshed.importance.map_files import map_to_json
from woodshed.jobs.analyze_compare import compare_report, report_on

PLANTED = "layers.1.mlp.up_proj"


def of_side_step(fisher_map: FisherMap) -> FisherMap:
    return fisher_map.model_copy(update={"woodshed": None})


def changed(fisher_map: FisherMap, **part: object) -> FisherMap:
    assert fisher_map.woodshed is not None
    return fisher_map.model_copy(update={"woodshed": fisher_map.woodshed.model_copy(update=part)})


def test_a_map_does_not_differ_from_itself() -> None:
    found = compare_maps(example_map(), example_map())
    assert found.verdict == "The maps do not differ beyond their intervals in any of 44 layers."
    assert not found.is_distinct.any()
    assert (found.z == 0).all()
    assert found.rank_correlation == pytest.approx(1.0)
    assert found.moved_share == 0.0
    assert any("same data" in note for note in found.notes)


def test_a_planted_difference_is_found_and_nothing_else() -> None:
    found = compare_maps(example_map(noise_seed=1), example_map(noise_seed=2, planted={PLANTED: 2.0}))
    assert [name for name, is_distinct in zip(found.names, found.is_distinct, strict=True) if is_distinct] == [PLANTED]
    assert found.verdict == "The maps differ beyond their intervals in 1 of 44 layers."
    at = found.names.index(PLANTED)
    assert math.log(found.relative_b[at] / found.relative_a[at]) == pytest.approx(math.log(2), abs=0.25)
    assert found.z[at] > 0


def test_the_same_difference_with_five_songs_is_not_enough() -> None:
    """Five songs give four degrees of freedom: the normal distribution would have been far too sure."""
    few = compare_maps(
        example_map(noise_seed=1, num_songs=3), example_map(noise_seed=2, num_songs=3, planted={PLANTED: 1.6})
    )
    many = compare_maps(
        example_map(noise_seed=1, num_songs=40), example_map(noise_seed=2, num_songs=40, planted={PLANTED: 1.6})
    )
    assert (few.is_distinct.sum(), many.is_distinct.sum()) == (0, 1)
    assert any("could not be seen" in note for note in few.notes)


def test_chance_alone_is_seldom_called_a_difference() -> None:
    """Standard errors are estimated from the songs here, as in a real analysis: 5 % of comparisons may err."""
    num_songs, alarms = 6, 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        pair = []
        for side in range(2):
            songs = rng.normal(0.0, 0.3, (num_songs, 44))
            pair.append(_estimated(songs, side))
        alarms += bool(compare_maps(*pair).is_distinct.any())
    assert alarms <= 8  # Binomial(60, 0.05) is above 8 once in 300 test suites


def _estimated(logs: np.ndarray, side: int) -> FisherMap:
    """A map whose scores are means over songs, with their own standard errors."""
    fisher_map = example_map(num_songs=len(logs), noise_seed=side)
    assert fisher_map.woodshed is not None
    # As a bootstrap gives them: n songs drawn from n vary (n - 1) / n times as much as fresh ones.
    errors = logs.std(axis=0) / math.sqrt(len(logs))
    layers = []
    for layer, value, error in zip(fisher_map.woodshed.layers, np.exp(logs.mean(axis=0)), errors, strict=True):
        profile = layer.profiles["balanced"]
        wg = profile.wg.model_copy(update={"value": float(value), "relative_se": float(error)})
        layers.append(layer.model_copy(update={"profiles": {"balanced": profile.model_copy(update={"wg": wg})}}))
    return changed(fisher_map, layers=layers)


def test_louder_data_are_no_difference() -> None:
    a, b = example_map(), example_map(planted=dict.fromkeys(layer_names(), 50.0), noise_seed=3, relative_se=0.001)
    assert compare_maps(a, b).moved_share == pytest.approx(0.0, abs=0.02)
    assert not compare_maps(a, b).is_distinct.any()


def test_a_map_of_side_step_has_no_intervals_and_the_verdict_says_so() -> None:
    found = compare_maps(example_map(), of_side_step(example_map(seed=1)), name_a="ours.json", name_b="theirs.json")
    assert found.verdict == ("It cannot be said whether the maps differ beyond chance: theirs.json has no intervals.")
    assert found.score == "density"
    assert not found.has_intervals
    assert not found.is_distinct.any()
    assert set(found.names) == set(layer_names()), "their names start with `decoder.`, ours do not"


def test_a_map_whose_errors_are_unknown_has_no_intervals_either() -> None:
    """One song, or so few draws that no resample says anything."""
    for b in (example_map(num_songs=1), example_map(relative_se=math.inf)):
        found = compare_maps(example_map(), b)
        assert found.verdict == "It cannot be said whether the maps differ beyond chance: B has no intervals."
        assert (found.z == 0).all()


def test_two_maps_of_side_step_count_ranks_for_want_of_shapes() -> None:
    found = compare_maps(of_side_step(example_map()), of_side_step(example_map(seed=1)))
    ranks = [
        np.array([one.rank_pattern[name] for name in layer_names()]) for one in (example_map(), example_map(seed=1))
    ]
    assert found.moved_share == pytest.approx(np.abs(ranks[0] - ranks[1]).sum() / (ranks[0] + ranks[1]).sum())
    assert any("of ranks, not of parameters" in note for note in found.notes)


def test_moved_share_counts_parameters_and_layers_that_one_map_alone_has() -> None:
    a, b = example_map(num_blocks=4), example_map(num_blocks=3)
    found = compare_maps(a, b)
    assert found.only_b == ()
    assert set(found.only_a) == {name for name in layer_names() if name.startswith("layers.3.")}
    assert a.woodshed is not None
    assert b.woodshed is not None
    params_b = {layer.name: layer.rank * (layer.d_in + layer.d_out) for layer in b.woodshed.layers}
    params_a = {layer.name: layer.rank * (layer.d_in + layer.d_out) for layer in a.woodshed.layers}
    moved = sum(abs(params_b.get(name, 0) - params_a[name]) for name in params_a)
    assert found.moved_share == pytest.approx(moved / (sum(params_a.values()) + sum(params_b.values())))


def test_maps_of_other_models_are_refused() -> None:
    with pytest.raises(UsageError, match=r"A is of acestep and B of whisper"):
        compare_maps(example_map(), changed(example_map(), backend="whisper"))
    ours = example_map().woodshed
    assert ours is not None
    wider = [ours.layers[0].model_copy(update={"d_in": 2560}), *ours.layers[1:]]
    with pytest.raises(UsageError, match=r"layers.0.self_attn.q_proj is 2048 x 2048 in A and 2048 x 2560 in B"):
        compare_maps(example_map(), changed(example_map(), layers=wider))
    with pytest.raises(UsageError, match="no scored layer in common"):
        compare_maps(example_map(), of_side_step(example_map().model_copy(update={"modules": []})))


def test_other_weights_focus_and_score_are_told() -> None:
    b = changed(example_map(seed=1), weights_digest="ffff").model_copy(update={"timestep_focus": "texture"})
    assert b.woodshed is not None
    b = changed(b, allocation=b.woodshed.allocation.model_copy(update={"score": "density"}))
    found = compare_maps(example_map(), b, name_a="a.json", name_b="b.json")
    assert found.notes[:3] == (
        "a.json looks at balanced timesteps, b.json at texture",
        "the maps are of different weights: what differs may come from the models, not from the data",
        "ranks follow wg in a.json and density in b.json: both are compared by wg",
    )
    assert found.score == "wg"


def test_a_layer_without_a_score_is_counted_by_its_rank_only() -> None:
    b = of_side_step(example_map())
    zero = [one.model_copy(update={"fisher_score": 0.0}) if one.name.endswith(PLANTED) else one for one in b.modules]
    found = compare_maps(example_map(), b.model_copy(update={"modules": zero}))
    assert PLANTED not in found.names
    assert found.only_a == ()
    assert any(note.startswith("1 layers have no score") for note in found.notes)


def test_the_report_lists_the_most_different_layer_first() -> None:
    a, b = example_map(noise_seed=1), example_map(noise_seed=2, planted={PLANTED: 3.0})
    report = report_on(a, b, name_a="a.json", name_b="b.json")
    assert report.layers[0].name == PLANTED
    assert report.layers[0].is_distinct
    assert [abs(row.z) for row in report.layers] == sorted((abs(row.z) for row in report.layers), reverse=True)
    assert report.num_common == len(report.layers) == 44
    assert report.to_json()["verdict"] == report.verdict


def test_files_are_compared_by_their_paths(tmp_path: Path) -> None:
    paths = (tmp_path / "a.json", tmp_path / "theirs.json")
    for path, one in zip(paths, (example_map(), of_side_step(example_map(seed=1))), strict=True):
        path.write_bytes(map_to_json(one))
    old = json.loads(paths[1].read_text())
    paths[1].write_text(json.dumps(old | {"version": 1}))
    report = compare_report(*paths)
    assert (report.map_a, report.map_b) == tuple(map(str, paths))
    assert report.verdict.endswith(f"{paths[1]} has no intervals.")
    assert report.notes[-1].startswith(f"{paths[1]}: the map is of version 1")
    with pytest.raises(StoreError, match="there is no map"):
        compare_report(paths[0], tmp_path / "none.json")


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0.0, 60.0))
def test_student_p_is_a_probability_that_falls(df: int, t: float) -> None:
    assert 0.0 <= student_p(t + 0.5, df) <= student_p(t, df) + 1e-14 <= 1.0 + 1e-14
    assert student_p(-t, df) == student_p(t, df)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30))
def test_holm_rejects_all_that_bonferroni_does_and_only_the_smallest(p_values: list[float]) -> None:
    p = np.array(p_values)
    rejected = holm(p)
    assert rejected[p * len(p) <= 0.05].all()
    assert not rejected[p > 0.05].any()
    if rejected.any() and not rejected.all():
        assert p[rejected].max() <= p[~rejected].min()
