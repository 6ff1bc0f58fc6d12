"""Claims about the rules beside water filling on targets: spectra, experiments, Side-Step's, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.importance.test_allocation import layer, lognormal, network, scored
from woodshed.errors import UsageError
from woodshed.importance.allocation import Allocation, RankRequest, allocate
from woodshed.importance.belief import Scored, Spectrum
from woodshed.importance.layers import LayerShape

GOLDEN = Path(__file__).parents[1] / "golden" / "sidestep"


def test_flat_ranks_are_as_asked_for_and_share_a_budget_evenly() -> None:
    shapes = network(3)
    scores = scored(shapes, lognormal(18))
    assert set(allocate(RankRequest(rule="flat", base_rank=20), shapes, scores).ranks.values()) == {20}
    budget = sum(40 * shape.price for shape in shapes) + 5000
    within = allocate(RankRequest(rule="flat", base_rank=None, budget_params=budget), shapes, scores)
    assert set(within.ranks.values()) == {40}


@pytest.mark.parametrize("score", ["wg", "spectrum"])
def test_random_ranks_are_the_same_ranks_of_other_layers(score: Any) -> None:
    shapes = [layer(f"layers.{i}.mlp.proj", 2048, 2048) for i in range(40)]
    scores = scored(shapes, lognormal(40))
    spectra = {s.name: Spectrum([v * 0.9**k for k in range(200)]) for s, v in zip(shapes, lognormal(40), strict=True)}

    def ranks(**wanted: Any) -> list[int]:
        request = RankRequest(score=score, **wanted)
        return list(allocate(request, shapes, scores, spectra=spectra).ranks.values())

    own, dealt = ranks(), ranks(rule="random", seed=3)
    assert dealt == ranks(rule="random", seed=3) != ranks(rule="random", seed=4)
    assert own != dealt
    assert np.allclose(sorted(own), sorted(dealt), atol=8)
    assert np.corrcoef(own, ranks(rule="inverse"))[0, 1] < -0.7


def test_a_broad_gradient_gets_ranks_that_a_narrow_one_has_no_use_for() -> None:
    shapes = [layer(name, 512, 512) for name in ("a.narrow", "a.broad", "a.faint")]
    spectra = {
        "a.narrow": Spectrum([10.0, 10.0] + [0.01] * 100),
        "a.broad": Spectrum([2.0] * 102),
        "a.faint": Spectrum([0.1] * 102),
    }
    request = RankRequest(score="spectrum", base_rank=None, budget_params=1024 * 70, rank_min=2, rank_multiple=2)
    ranks = allocate(request, shapes, scored(shapes, [1.0] * 3), spectra=spectra).ranks
    assert ranks == {"a.narrow": 2, "a.broad": 66, "a.faint": 2}


def test_what_is_not_known_of_a_spectrum_is_spread_evenly_and_never_above_what_is_known() -> None:
    shapes = [layer(name, 512, 512) for name in ("a.known", "a.cut")]
    request = RankRequest(score="spectrum", base_rank=None, budget_params=1024 * 128, rank_min=8, rank_max=128)
    falling = [0.98**k for k in range(512)]
    cut = Spectrum(falling[:32], sum(value**2 for value in falling[32:]))
    ranks = allocate(request, shapes, scored(shapes, [1.0, 1.0]), spectra={"a.known": Spectrum(falling), "a.cut": cut})
    assert ranks.ranks["a.cut"] < ranks.ranks["a.known"]
    huge = Spectrum(falling[:32], 1e9)
    ranks = allocate(request, shapes, scored(shapes, [1.0, 1.0]), spectra={"a.known": Spectrum(falling), "a.cut": huge})
    assert ranks.ranks["a.cut"] <= 96


def test_a_spectrum_of_noise_gives_equal_ranks() -> None:
    shapes = [layer(f"layers.{i}.mlp.proj", 2048, 2048) for i in range(60)]
    rng = np.random.default_rng(0)
    spectra = {shape.name: Spectrum(np.sort(rng.exponential(size=64))[::-1].tolist(), 1.0) for shape in shapes}
    # Signal that is estimated without bias is below zero half of the time when there is none.
    signal = rng.standard_normal(60).tolist()
    scores = {shape.name: Scored(value, abs(1 / value)) for shape, value in zip(shapes, signal, strict=True)}
    assert set(allocate(RankRequest(score="spectrum"), shapes, scores, spectra=spectra).ranks.values()) == {64}


def test_ranks_that_gain_nothing_are_not_bought() -> None:
    shapes = [layer("a.one", 512, 512), layer("a.two", 512, 512)]
    spectra = {"a.one": Spectrum([1.0] * 24), "a.two": Spectrum([1.0] * 40)}
    request = RankRequest(score="spectrum", base_rank=None, budget_params=1024 * 200)
    given = allocate(request, shapes, scored(shapes, [1.0, 1.0]), spectra=spectra)
    assert given.ranks == {"a.one": 24, "a.two": 40}
    assert given.notes == ("no further rank gains anything by this score: 139,264 parameters of the budget are left",)


@pytest.mark.parametrize(
    "case", cases := json.loads((GOLDEN / "rank_allocation.json").read_text())["cases"], ids=[c["id"] for c in cases]
)
def test_the_sidestep_rule_is_that_of_side_step(case: dict[str, Any]) -> None:
    params = dict(case["params"])
    coverage = params.pop("inclusion_percentile", None)
    shapes = [layer(name, 2048, 2048) for name in case["fisher_scores"]]
    scores = {name: Scored(value, 0.5) for name, value in case["fisher_scores"].items()}
    request = RankRequest(rule="sidestep", score="density", coverage=coverage, **params)
    given = allocate(request, shapes, scores, effective_ranks=case["spectral_ranks"])
    theirs = {f"decoder.{name}": rank for name, rank in case["expected"]["rank_pattern"].items()}
    assert given.ranks == theirs
    assert given.alphas == {name: 2 * rank for name, rank in theirs.items()}
    assert len(given.excluded) == len(shapes) - len(theirs)


def test_the_sidestep_rule_keeps_a_budget_by_its_base_rank() -> None:
    shapes = network(10)
    scores = scored(shapes, lognormal(60))
    budget = allocate(RankRequest(rule="sidestep", base_rank=48), shapes, scores).num_params
    given = allocate(RankRequest(rule="sidestep", base_rank=None, budget_params=budget), shapes, scores)
    assert given.num_params <= budget
    assert given.ranks == allocate(RankRequest(rule="sidestep", base_rank=48), shapes, scores).ranks
    assert "its base rank is" in given.notes[0]


def refused(request: Mapping[str, Any], shapes: Sequence[LayerShape], values: Sequence[float]) -> str:
    with pytest.raises(UsageError) as caught:
        allocate(RankRequest(**request), shapes, scored(shapes, values))
    return str(caught.value)


def test_a_budget_below_the_least_ranks_says_what_they_need() -> None:
    shapes = [layer("a.one", 500, 500), layer("a.two", 500, 500)]
    for rule in ("waterfill", "flat", "sidestep"):
        request = {"base_rank": None, "budget_params": 15_999, "coverage": 1.0, "rule": rule}
        assert refused(request, shapes, [1.0, 2.0]) == (
            "the least ranks of 2 layers take 32,000 parameters, more than the budget of 15,999 "
            "(try: a budget of 32000, a smaller --rank-min, or fewer layers by --coverage)"
        )


def test_a_budget_above_the_largest_ranks_says_what_is_left() -> None:
    shapes = [layer("a.one", 500, 500)]
    given = allocate(RankRequest(base_rank=None, budget_params=200_000), shapes, scored(shapes, [1.0]))
    assert given.ranks == {"a.one": 128}
    assert given.notes == ("every layer has its largest rank: 72,000 parameters of the budget are left",)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"budget_params": 5}, "ranks follow either a median rank or a budget"),
        ({"base_rank": None}, "ranks follow either a median rank or a budget"),
        ({"rank_min": 96, "rank_max": 32}, "no rank is within 96 and 32"),
        ({"base_rank": 8}, "the median rank 8 is not within 16 and 128"),
        ({"rank_multiple": 0}, "ranks in multiples of 0"),
        ({"alpha_ratio": 0.0}, "alpha 0.0 times the rank"),
        ({"coverage": 0.0}, "coverage above 0"),
        ({"coverage": 1.5}, "a share is from 0 to 1"),
        ({"floors": {"mlp": 2.0}}, "a share is from 0 to 1"),
        ({"floors": {"conv": 0.5}}, "floors name conv, which no layer is of (try: there are mlp)"),
        ({"rule": "sidestep", "floors": {"mlp": 0.5}}, "floors (a tenth of each category) of its own"),
        ({"rule": "sidestep", "rank_multiple": 4}, "the sidestep rule has a multiple (8)"),
    ],
)
def test_what_contradicts_itself_is_refused(request_: dict[str, Any], said: str) -> None:
    assert said in refused(request_, [layer("one")], [1.0])


def test_a_model_without_matrices_and_a_sidestep_rule_without_scores_are_refused() -> None:
    assert "no layer is a matrix" in refused({}, [layer("a.norm", 8, 1, adaptable=False)], [1.0])
    with pytest.raises(UsageError, match=r"needs the score of every layer, and 1 have none, such as a.two"):
        allocate(RankRequest(rule="sidestep"), [layer("a.one"), layer("a.two")], {"a.one": Scored(1.0)})


def test_alpha_keeps_its_ratio_to_the_rank() -> None:
    shapes = network(2)
    given: Allocation = allocate(RankRequest(alpha_ratio=0.5), shapes, scored(shapes, lognormal(12)))
    assert all(given.alphas[name] == rank / 2 for name, rank in given.ranks.items())
