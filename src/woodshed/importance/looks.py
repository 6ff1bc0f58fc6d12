"""The looks of an analysis: which song, which crop, which timestep, which noise; planned from a seed, the same for all
layers, before anything is computed.

Every round goes over its songs once. Timesteps are stratified twice: evenly spread over the songs of a round, and, by
steps of the golden ratio, over the rounds of a song.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from woodshed.chance import generator
from woodshed.contracts import Draw
from woodshed.importance.focus import Timesteps

GOLDEN = (math.sqrt(5) - 1) / 2
ROUND_SONGS = 50
"""Songs of a round, unless said otherwise."""
AMPLE_DRAWS = 600
"""Draws after which an analysis ends without having converged, unless rounds are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at one song."""

    number: int
    item: int
    """Which item of the data set."""
    visit: int
    """How often it was looked at before: each visit has a crop of its own."""
    draw: Draw


@dataclass(frozen=True, slots=True, kw_only=True)
class LookPlan:
    """How many looks there are at most, and how they are drawn."""

    num_items: int
    songs_per_round: int
    num_rounds: int
    antithetic: bool
    condition_dropout: float
    seed: int
    is_repetitive: bool = False
    """Whether every song is looked at once, as a second look shows nothing new."""
    is_counted: bool = False
    """Whether somebody said how many rounds there are."""

    @property
    def looks_per_round(self) -> int:
        return self.songs_per_round * (2 if self.antithetic else 1)

    @property
    def num_looks(self) -> int:
        return self.num_rounds * self.looks_per_round


def plan_looks(
    num_items: int,
    *,
    runs: int | None,
    batches: int | None,
    antithetic: bool,
    condition_dropout: float,
    seed: int,
    is_repetitive: bool = False,
) -> LookPlan:
    """Rounds and songs as asked, or enough of them for most data.

    Args:
        is_repetitive: a second look at a song shows nothing new, as for a loss without noise: there is one round, over
            as many songs as can be had.

    >>> plan_looks(12, runs=None, batches=None, antithetic=False, condition_dropout=0.1, seed=0).num_looks
    600
    """
    songs = min(num_items, batches or (AMPLE_DRAWS if is_repetitive else ROUND_SONGS))
    looks = songs * (2 if antithetic else 1)
    ample = 1 if is_repetitive else max(2, math.ceil(AMPLE_DRAWS / looks))
    return LookPlan(
        num_items=num_items,
        songs_per_round=songs,
        num_rounds=runs or ample,
        antithetic=antithetic,
        condition_dropout=condition_dropout,
        seed=seed,
        is_counted=runs is not None,
        is_repetitive=is_repetitive,
    )


def looks(plan: LookPlan, timesteps: Timesteps) -> Iterator[Look]:
    """All looks of a plan, in order."""
    number = 0
    seen = [0] * plan.num_items
    # A song keeps its seat as far as it can: from round to round its timesteps are then spread, too.
    seniority = generator(plan.seed, "seats").permutation(plan.num_items).tolist()
    for turn, songs in enumerate(_rounds(plan)):
        seats = {item: seat for seat, item in enumerate(sorted(songs, key=lambda item: seniority[item]))}
        for item in songs:
            for draw in _draws(plan, timesteps, turn, seats[item], item, seen[item]):
                yield Look(number=number, item=item, visit=seen[item], draw=draw)
                number += 1
            seen[item] += 1


def _rounds(plan: LookPlan) -> Iterator[list[int]]:
    """Songs of each round, in the order of their turns. No song comes again before all others had theirs."""
    waiting: list[int] = []
    shuffles = 0
    for _ in range(plan.num_rounds):
        if len(waiting) < plan.songs_per_round:
            order = generator(plan.seed, shuffles, "songs").permutation(plan.num_items).tolist()
            shuffles += 1
            # What is still waiting stays in front, and comes again last: a round never has a song twice.
            late = set(waiting)
            waiting += [item for item in order if item not in late] + [item for item in order if item in late]
        yield waiting[: plan.songs_per_round]
        waiting = waiting[plan.songs_per_round :]


def _draws(plan: LookPlan, timesteps: Timesteps, turn: int, seat: int, item: int, visit: int) -> list[Draw]:
    chance = generator(plan.seed, item, visit, "look")
    noise_seed, jitter, dropped = int(chance.integers(2**63)), float(chance.random()), float(chance.random())
    place = ((seat + jitter) / plan.songs_per_round + turn * GOLDEN) % 1.0
    timestep = timesteps.draw(place)
    drop = dropped < plan.condition_dropout
    first = Draw(seed=noise_seed, timestep=timestep, drop_condition=drop)
    if not plan.antithetic:
        return [first]
    return [first, Draw(seed=noise_seed, timestep=timestep, drop_condition=drop, mirrored=True)]
