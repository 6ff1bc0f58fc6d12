"""Side-Step's rule against what Side-Step itself gave, and where its answer is no accident of the case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from woodshed.errors import UsageError
from woodshed.importance.sidestep_rule import effective_rank, sidestep_ranks, target_suffixes

GOLDEN = Path(__file__).parents[1] / "golden" / "sidestep"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "rank_allocation.json").read_text())["cases"]
MATRICES: list[dict[str, Any]] = json.loads((GOLDEN / "effective_rank.json").read_text())
LAYERS = [
    f"decoder.layers.{number}.{part}"
    for number in range(4)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "cross_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_ranks_are_those_of_side_step_in_its_order(case: dict[str, Any]) -> None:
    params = dict(case["params"])
    if "inclusion_percentile" in params:
        params["coverage"] = params.pop("inclusion_percentile")
    given = sidestep_ranks(case["fisher_scores"], case["spectral_ranks"], **params)
    expected = case["expected"]
    assert given.target_modules == expected["target_modules"]
    assert list(given.rank_pattern.items()) == list(expected["rank_pattern"].items())
    assert list(given.alpha_pattern.items()) == list(expected["alpha_pattern"].items())


@pytest.mark.parametrize("case", MATRICES, ids=[case["description"] for case in MATRICES])
def test_effective_ranks_are_those_of_side_step(case: dict[str, Any]) -> None:
    assert effective_rank(torch.tensor(case["matrix"])) == case["effective_rank"]


def test_a_genuine_map_follows_from_its_own_scores() -> None:
    # Side-Step rounds scores to eight decimals in its file, so that ranks on an edge may have been decided by more.
    genuine = json.loads((GOLDEN / "fisher_map_tiny_balanced.json").read_text())
    modules = genuine["modules"]
    scores = {module["name"]: module["fisher_score"] for module in modules}
    effective = {module["name"]: module["effective_rank"] for module in modules}
    given = sidestep_ranks(scores, effective, coverage=1.0)
    assert given.target_modules == genuine["target_modules"]
    assert list(given.rank_pattern.items()) == list(genuine["rank_pattern"].items())
    assert given.alpha_pattern == genuine["alpha_pattern"]


def test_of_equal_scores_the_first_are_kept() -> None:
    assert list(sidestep_ranks(dict.fromkeys(LAYERS, 0.5), {}).ranks) == LAYERS[:11]


def test_no_category_is_left_out_however_low_its_scores() -> None:
    scores = {name: 1e-9 if "cross_attn" in name else 1.0 for name in LAYERS}
    assert [name for name in sidestep_ranks(scores, {}).ranks if "cross_attn" in name] == [LAYERS[2]]


def test_layers_without_gradients_get_the_least_rank() -> None:
    assert set(sidestep_ranks(dict.fromkeys(LAYERS, 0.0), {}, coverage=1.0).ranks.values()) == {16}
    scores = {name: float(name == LAYERS[0]) for name in LAYERS}
    assert sidestep_ranks(scores, {}).ranks[LAYERS[0]] == 128


def test_half_way_between_multiples_goes_to_the_even_one_before_the_bounds_apply() -> None:
    scores = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert set(sidestep_ranks(scores, {}, base_rank=20, rank_min=5, coverage=1.0).ranks.values()) == {16}
    assert set(sidestep_ranks(scores, {}, base_rank=28, rank_min=5, coverage=1.0).ranks.values()) == {32}
    assert set(sidestep_ranks(scores, {}, base_rank=2, rank_min=5, coverage=1.0).ranks.values()) == {5}


def test_an_effective_rank_that_is_not_known_is_average() -> None:
    scores = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}
    ranks = sidestep_ranks(scores, {"a": 40, "b": 160, "c": -1}, coverage=1.0).ranks
    assert ranks == {"a": 40, "b": 80, "c": 64, "d": 64}


def test_nothing_is_made_of_nothing() -> None:
    assert sidestep_ranks({}, {}).ranks == {}


def test_scores_that_have_no_root_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the Fisher score of b is nan"):
        sidestep_ranks({"a": 1.0, "b": float("nan")}, {})
    with pytest.raises(UsageError, match=r"the Fisher score of b is -1.0, and the sidestep rule takes a root"):
        sidestep_ranks({"a": 1.0, "c": 2.0, "b": -1.0}, {}, coverage=1.0)


def test_a_weight_that_is_not_finite_has_no_effective_rank() -> None:
    assert effective_rank(torch.tensor([[1.0, float("nan")], [0.0, 1.0]])) == -1
    assert effective_rank(torch.full((2, 2), 3e38)) == -1


def test_a_kernel_is_a_matrix_of_outputs_by_all_else() -> None:
    kernel = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    assert effective_rank(kernel) == effective_rank(kernel.reshape(6, 12))
    assert effective_rank(kernel.bfloat16()) == effective_rank(kernel.bfloat16().float())


def test_suffixes_start_at_the_part_of_the_block() -> None:
    assert target_suffixes([*LAYERS, "decoder.time_embed.linear_1"]) == [
        "cross_attn.q_proj",
        "mlp.down_proj",
        "mlp.up_proj",
        "self_attn.o_proj",
        "self_attn.q_proj",
    ]
