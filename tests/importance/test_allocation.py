"""Claims about ranks: what is spent, what is best, who comes first, and what noise earns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.importance.allocation import RankRequest, allocate
from woodshed.importance.belief import Scored, Spectrum
from woodshed.importance.layers import LayerShape

SIZES = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (1024, 2048),
    "cross_attn.q_proj": (2048, 2048),
    "cross_attn.v_proj": (1024, 2048),
    "mlp.up_proj": (6144, 2048),
    "mlp.down_proj": (2048, 6144),
}


def layer(name: str, d_out: int = 512, d_in: int = 512, *, adaptable: bool = True) -> LayerShape:
    category = name.split(".")[-2] if "." in name else "mlp"
    return LayerShape(
        name=name, category=category, d_out=d_out, d_in=d_in, num_weights=d_out * d_in, adaptable=adaptable
    )


def network(num_blocks: int) -> list[LayerShape]:
    return [layer(f"layers.{block}.{part}", *size) for block in range(num_blocks) for part, size in SIZES.items()]


def scored(shapes: Sequence[LayerShape], values: Sequence[float], error: float = 0.0) -> dict[str, Scored]:
    return {shape.name: Scored(value, error) for shape, value in zip(shapes, values, strict=True)}


def lognormal(number: int, *, seed: int = 0, sigma: float = 1.0) -> list[float]:
    return np.exp(sigma * np.random.default_rng(seed).standard_normal(number)).tolist()


def params(shapes: Sequence[LayerShape], ranks: Mapping[str, int]) -> int:
    return sum(shape.price * ranks[shape.name] for shape in shapes if shape.name in ranks)


def ladder(shape: LayerShape, request: RankRequest) -> list[int]:
    """The ranks that one layer can have, written out."""
    multiple = request.rank_multiple
    levels = {rank for rank in range(request.rank_min, request.rank_max + 1) if rank % multiple == 0}
    limit = min(shape.d_in, shape.d_out)
    return sorted({min(rank, limit) for rank in levels | {request.rank_min, request.rank_max}})


@st.composite
def problems(draw: st.DrawFn, *, most_layers: int = 12) -> tuple[list[LayerShape], dict[str, Scored], dict[str, Any]]:
    """Layers, scores and the bounds of a request."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=most_layers))
    shapes = [layer(f"layers.{i}.mlp.proj", *size) for i, size in enumerate(sizes)]
    values = draw(st.lists(st.floats(1e-6, 1e6), min_size=len(sizes), max_size=len(sizes)))
    errors = draw(st.lists(st.floats(0, 2), min_size=len(sizes), max_size=len(sizes)))
    scores = {shape.name: Scored(v, e) for shape, v, e in zip(shapes, values, errors, strict=True)}
    rank_min = draw(st.integers(1, 40))
    return shapes, scores, {
        "rank_min": rank_min,
        "rank_max": draw(st.integers(rank_min, 200)),
        "rank_multiple": draw(st.integers(1, 16)),
        "score": draw(st.sampled_from(["wg", "density"])),
        "rule": draw(st.sampled_from(["waterfill", "waterfill", "flat", "random", "inverse"])),
    }  # fmt: skip


@settings(deadline=None)
@given(problems(), st.floats(0, 1))
def test_a_budget_is_never_exceeded_and_what_is_left_buys_nothing(problem: Any, share: float) -> None:
    shapes, scores, bounds = problem
    request = RankRequest(base_rank=None, budget_params=1, **bounds)
    ladders = {shape.name: ladder(shape, request) for shape in shapes}
    least, most = (sum(shape.price * ladders[shape.name][end] for shape in shapes) for end in (0, -1))
    budget = least + round(share * (most - least))
    given = allocate(RankRequest(base_rank=None, budget_params=budget, **bounds), shapes, scores)
    spent = params(shapes, given.ranks)
    assert given.num_params == spent <= budget
    for shape in shapes:
        rank, levels = given.ranks[shape.name], ladders[shape.name]
        assert rank in levels
        higher = [level for level in levels if level > rank]
        assert not higher or (higher[0] - rank) * shape.price > budget - spent


@settings(deadline=None)
@given(problems())
def test_the_median_is_within_a_step_wherever_sizes_allow(problem: Any) -> None:
    shapes, scores, bounds = problem
    base = (bounds["rank_min"] + bounds["rank_max"]) // 2
    request = RankRequest(base_rank=base, **bounds)
    given = allocate(request, shapes, scores)
    assert all(given.ranks[shape.name] in [*ladder(shape, request), base] for shape in shapes)
    assert given.median_rank == np.median(list(given.ranks.values()))
    reachable = float(np.median([ladder(shape, request)[-1] for shape in shapes]))
    if request.rule == "flat":
        assert given.ranks == {shape.name: min(base, shape.d_in, shape.d_out) for shape in shapes}
    elif reachable >= base:
        assert abs(given.median_rank - base) <= request.rank_multiple
    elif given.median_rank < base - request.rank_multiple:
        assert any("size allows" in note for note in given.notes)


def gain(shapes: Sequence[LayerShape], scores: Mapping[str, Scored], ranks: Mapping[str, int]) -> float:
    """What water filling maximises with the score `wg`, written out."""
    return sum(scores[shape.name].value * math.sqrt(shape.price) * math.log(ranks[shape.name]) for shape in shapes)


@settings(deadline=None)
@given(problems(most_layers=3), st.floats(0, 1))
def test_no_other_ranks_gain_more_for_as_many_parameters(problem: Any, share: float) -> None:
    shapes, scores, bounds = problem
    scores = {name: Scored(score.value) for name, score in scores.items()}
    bounds |= {"rule": "waterfill", "score": "wg", "rank_multiple": 8, "rank_max": bounds["rank_min"] + 30}
    request = RankRequest(base_rank=None, budget_params=10**9, **bounds)
    ladders = [ladder(shape, request) for shape in shapes]
    choices = [dict(zip([shape.name for shape in shapes], ranks, strict=True)) for ranks in itertools.product(*ladders)]
    by_price = sorted((params(shapes, ranks), gain(shapes, scores, ranks)) for ranks in choices)
    budget = round(by_price[0][0] + share * (by_price[-1][0] - by_price[0][0]))
    given = allocate(RankRequest(base_rank=None, budget_params=budget, **bounds), shapes, scores)
    found = gain(shapes, scores, given.ranks)
    best = max(gained for price, gained in by_price if price <= budget)
    rungs = [
        gain([shape], scores, {shape.name: high}) - gain([shape], scores, {shape.name: low})
        for shape, levels in zip(shapes, ladders, strict=True)
        for low, high in itertools.pairwise(levels)
    ]
    assert found >= best - max(rungs, default=0.0) - 1e-9 * abs(best)
    # Ranks of a median are a point that the climb passes: there, nothing is lost at all.
    passed = allocate(RankRequest(base_rank=bounds["rank_min"] + 15, **bounds), shapes, scores)
    best = max(gained for price, gained in by_price if price <= passed.num_params)
    assert gain(shapes, scores, passed.ranks) >= best - 1e-6 * abs(best)


@settings(deadline=None)
@given(
    st.lists(st.integers(-(10**8), 10**8), min_size=2, max_size=20, unique=True), st.floats(0, 2), st.integers(16, 64),
    st.sampled_from(["wg", "density"]), st.booleans(),
)  # fmt: skip
def test_of_equal_layers_the_higher_score_never_gets_the_lower_rank(
    logs: list[int], error: float, rank: int, score: Any, has_budget: bool
) -> None:
    # What differs by less than a billionth is equal.
    values = np.exp(1e-7 * np.array(logs)).tolist()
    shapes = [layer(f"layers.{i}.mlp.proj", 64, 64) for i in range(len(values))]
    budget = {"base_rank": None, "budget_params": 128 * rank * len(values) + 77}
    request = RankRequest(score=score, rank_max=64, **(budget if has_budget else {"base_rank": rank}))
    given = allocate(request, shapes, scored(shapes, values, error))
    ranks = [given.ranks[shapes[index].name] for index in np.argsort(values)]
    assert ranks == sorted(ranks)


@settings(deadline=None)
@given(problems(), st.floats(1e-3, 1e3))
def test_the_scale_of_scores_changes_nothing(problem: Any, scale: float) -> None:
    shapes, scores, bounds = problem
    request = RankRequest(base_rank=bounds["rank_max"], **bounds)
    scaled = {name: Scored(score.value * scale, score.relative_se) for name, score in scores.items()}
    assert allocate(request, shapes, scores).ranks == allocate(request, shapes, scaled).ranks


def test_ranks_go_as_the_score_over_the_root_of_the_price() -> None:
    shapes = [layer("a.wide", 4096, 4096), layer("a.thin", 1024, 1024), layer("a.loud", 4096, 4096)]
    request = RankRequest(base_rank=64, rank_min=1, rank_max=1024, rank_multiple=1)
    assert list(allocate(request, shapes, scored(shapes, [1.0, 1.0, 2.0])).ranks.values()) == [32, 64, 64]
    density = RankRequest(score="density", base_rank=64, rank_min=1, rank_max=1024, rank_multiple=1)
    assert list(allocate(density, shapes, scored(shapes, [1.0, 1.0, 4.0])).ranks.values()) == [64, 64, 128]


@pytest.mark.parametrize("score", ["wg", "density"])
def test_noise_earns_equal_ranks(score: Any) -> None:
    # Layers of one size: between sizes, equal scores ask for other ranks by the price of a rank.
    shapes = [layer(f"layers.{i}.mlp.proj", 2048, 2048) for i in range(264)]
    flat = 0
    for seed in range(100):
        given = allocate(RankRequest(score=score), shapes, scored(shapes, lognormal(264, seed=seed, sigma=0.3), 0.3))
        flat += set(given.ranks.values()) == {64}
    assert flat >= 98


def test_what_is_more_than_noise_is_followed() -> None:
    shapes = network(44)
    truth = np.array(lognormal(264, sigma=0.7))
    noisy = truth * np.array(lognormal(264, seed=1, sigma=0.1))
    sure = allocate(RankRequest(), shapes, scored(shapes, truth.tolist()))
    given = allocate(RankRequest(), shapes, scored(shapes, noisy.tolist(), 0.1))
    assert sure.shrinkage == 0 < given.shrinkage < 0.05
    assert 0.55 < given.spread < 0.9
    assert np.corrcoef(list(sure.ranks.values()), list(given.ranks.values()))[0, 1] > 0.95


def test_the_more_a_score_is_noise_the_nearer_its_rank_is_to_the_others() -> None:
    shapes = [layer(f"layers.{i}.mlp.proj", 2048, 2048) for i in range(41)]
    values = [1.0] * 20 + [1.5] * 20 + [4.0]
    ranks = []
    for error in (0.05, 0.3, 1.0, math.inf):
        scores = scored(shapes, values, 0.05)
        scores[shapes[-1].name] = Scored(4.0, error)
        ranks.append(allocate(RankRequest(rank_max=512), shapes, scores).ranks[shapes[-1].name])
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > 150 > 80 > ranks[-1]


def test_a_resample_of_noise_stays_flat_when_it_is_told_the_spread() -> None:
    shapes = [layer(f"layers.{i}.mlp.proj", 2048, 2048) for i in range(264)]
    whole = lognormal(264, sigma=0.3)
    resampled = (np.array(whole) * np.array(lognormal(264, seed=1, sigma=0.3))).tolist()
    spread = allocate(RankRequest(), shapes, scored(shapes, whole, 0.3)).spread
    assert set(allocate(RankRequest(), shapes, scored(shapes, resampled, 0.3), spread=spread).ranks.values()) == {64}
    assert len(set(allocate(RankRequest(), shapes, scored(shapes, resampled, 0.3)).ranks.values())) > 1


def test_no_gradient_earns_the_least_rank_and_no_knowledge_the_average() -> None:
    shapes = [layer(name, 512, 512) for name in "abcde"]
    given = allocate(RankRequest(), shapes, scored(shapes, [1.0, 0.0, -1.0, math.nan, 1.0]))
    assert given.ranks == {"a": 64, "b": 16, "c": 16, "d": 64, "e": 64}
    assert given.notes == ("layers without a known score, which count as average: 1, such as d",)


@pytest.mark.parametrize("score", ["wg", "density", "spectrum"])
def test_without_any_score_all_ranks_are_equal_and_it_says_so(score: Any) -> None:
    shapes = network(2)
    spectra = {shape.name: Spectrum([float(i)] * 128) for i, shape in enumerate(shapes, 1)}
    for value, said in ((0.0, "no layer has a score above zero"), (math.inf, "no layer has a score that is known")):
        given = allocate(RankRequest(score=score), shapes, scored(shapes, [value] * len(shapes)), spectra=spectra)
        assert set(given.ranks.values()) == {64}
        assert given.shrinkage == 1
        assert said in given.notes[0]
    assert set(allocate(RankRequest(score=score), shapes, {}).ranks.values()) == {64}


def test_a_rank_is_never_larger_than_its_matrix() -> None:
    shapes = [layer("a.tiny", 6, 900), layer("a.small", 900, 50), layer("a.large", 900, 900)]
    given = allocate(RankRequest(rank_min=16, base_rank=64), shapes, scored(shapes, [9.0, 9.0, 1.0]))
    assert given.ranks["a.tiny"] == 6
    assert given.ranks["a.small"] <= 50
    assert any("largest rank that their size allows, below 128" in note for note in given.notes)


def test_coverage_keeps_the_best_and_floors_bring_categories_back() -> None:
    shapes = network(4)
    values = [0.01 if shape.category == "cross_attn" else 1.0 + i for i, shape in enumerate(shapes)]
    given = allocate(RankRequest(coverage=0.5), shapes, scored(shapes, values))
    assert (len(given.ranks), len(given.excluded)) == (12, 12)
    assert set(given.ranks).isdisjoint(given.excluded)
    assert not any("cross_attn" in name for name in given.ranks)
    assert [name for name in (s.name for s in shapes) if name in given.ranks] == list(given.ranks)
    back = allocate(RankRequest(coverage=0.5, floors={"cross_attn": 0.3}), shapes, scored(shapes, values))
    added = set(back.ranks) - set(given.ranks)
    assert (len(back.ranks), {name.split(".")[2] for name in added}) == (14, {"cross_attn"})


@pytest.mark.parametrize(
    ("coverage", "number", "kept"), [(0.29, 100, 29), (0.55, 264, 145), (0.01, 10, 1), (1.0, 7, 7)]
)
def test_coverage_counts_whole_layers_and_at_least_one(coverage: float, number: int, kept: int) -> None:
    shapes = [layer(f"layers.{i}.mlp.proj") for i in range(number)]
    given = allocate(RankRequest(coverage=coverage), shapes, scored(shapes, lognormal(number)))
    assert len(given.ranks) == kept


def test_what_cannot_be_adapted_gets_nothing_and_is_not_called_excluded() -> None:
    shapes = [layer("a.proj"), layer("a.norm", 512, 1, adaptable=False)]
    given = allocate(RankRequest(), shapes, scored(shapes, [1.0, 9.0]))
    assert (given.ranks, given.excluded) == ({"a.proj": 64}, ())
