"""Looks and focuses: stratified, seeded, and weighed so that one run answers every focus."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from woodshed.backends.acestep import timestep_quantile
from woodshed.backends.tiny_dit import woodshed_tiny_dit
from woodshed.contracts import Draw, Variant
from woodshed.importance.focus import Timesteps, effective_draws
from woodshed.importance.focuses import focus_named
from woodshed.importance.looks import looks, plan_looks

GOLDEN = Path(__file__).parents[1] / "golden" / "sidestep" / "timestep_samplers.json"


class Drawn:
    """A model of which only the timesteps are asked for: those that ACE-Step trains with."""

    variant, condition_dropout = Variant(name="drawn"), 0.0

    def timestep(self, quantile: float) -> float:
        return timestep_quantile(quantile, mu=-0.4, sigma=1.0)

    def layers(self) -> dict[str, nn.Module]:
        return {}

    def example(self, item: Mapping[str, Any]) -> Any:
        return item

    def loss(self, example: Any, draw: Draw) -> Tensor:
        raise NotImplementedError


def timesteps(focus: str) -> Timesteps:
    return Timesteps(Drawn(), focus_named(focus))


def test_a_round_spreads_its_timesteps_and_a_song_does_so_over_rounds() -> None:
    times = Timesteps(woodshed_tiny_dit(), focus_named("uniform"))
    plan = plan_looks(20, runs=10, batches=None, antithetic=False, condition_dropout=0.1, seed=3)
    all_looks = list(looks(plan, times))
    assert len(all_looks) == plan.num_looks == 200
    for turn in range(10):
        of_round = [look.draw.timestep for look in all_looks[20 * turn : 20 * turn + 20]]
        assert max(Counter(int(t * 10) for t in of_round if t is not None).values()) <= 3
    for item in range(20):
        of_song = sorted(
            look.draw.timestep for look in all_looks if look.item == item and look.draw.timestep is not None
        )
        assert max(np.diff([0.0, *of_song, 1.0])) < 0.35


def test_no_song_comes_again_before_all_others_had_their_turn() -> None:
    times = Timesteps(woodshed_tiny_dit(), focus_named("balanced"))
    plan = plan_looks(7, runs=9, batches=3, antithetic=False, condition_dropout=0.0, seed=0)
    items = [look.item for look in looks(plan, times)]
    for start in range(0, 21, 3):
        assert len(set(items[start : start + 3])) == 3
    assert Counter(items[:21]) == dict.fromkeys(range(7), 3)
    visits = [look.visit for look in looks(plan, times) if look.item == items[0]]
    assert visits == list(range(len(visits)))


def test_the_seed_decides_everything() -> None:
    times = Timesteps(woodshed_tiny_dit(), focus_named("balanced"))

    def made(seed: int) -> list[object]:
        plan = plan_looks(5, runs=3, batches=None, antithetic=True, condition_dropout=0.5, seed=seed)
        return list(looks(plan, times))

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_antithetic_looks_come_in_pairs_of_opposite_noise() -> None:
    times = Timesteps(woodshed_tiny_dit(), focus_named("balanced"))
    plan = plan_looks(4, runs=1, batches=None, antithetic=True, condition_dropout=0.0, seed=0)
    made = list(looks(plan, times))
    for first, second in zip(made[::2], made[1::2], strict=True):
        assert (first.item, first.draw.seed, first.draw.timestep) == (
            second.item,
            second.draw.seed,
            second.draw.timestep,
        )
        assert not first.draw.mirrored
        assert second.draw.mirrored


@pytest.mark.parametrize("focus", ["balanced", "texture", "structure", "0.1,0.5"])
def test_weighted_draws_have_the_quantiles_that_side_step_draws(focus: str) -> None:
    # Its own draws of a million; ours are of another run altogether, which was after something else.
    golden = json.loads(GOLDEN.read_text())
    wanted = next(s for s in golden["samplers"] if s["focus"] == focus and (s["mu"], s["sigma"]) == (-0.4, 1.0))
    places = (np.arange(40_000) + 0.5) / 40_000
    for asked in ("balanced", "structure"):
        times = timesteps(asked)
        drawn = [times.draw(float(place)) for place in places]
        weights = times.weights(drawn, focus_named(focus))
        values = np.array(drawn, np.float64)
        order = np.argsort(values)
        shares = np.cumsum(weights[order]) / weights.sum()
        found = values[order][np.searchsorted(shares, golden["quantile_levels"])]
        assert found == pytest.approx(wanted["quantiles"], abs=0.004)
        assert weights.mean() == pytest.approx(1.0, abs=0.01)


def test_the_asked_focus_has_most_of_the_draws() -> None:
    times = timesteps("texture")
    drawn = [times.draw(float(place)) for place in (np.arange(1000) + 0.5) / 1000]
    shares = {
        name: effective_draws(times.weights(drawn, focus_named(name))) / 1000 for name in ("texture", "structure")
    }
    assert shares["texture"] > 0.75
    assert 0.05 < shares["structure"] < 0.3
