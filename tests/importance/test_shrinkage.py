"""Empirical Bayes: how much spread is found, and what is believed of a value."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.importance.shrinkage import shrink, spread_of


def spreads(spread: float, *, num_layers: int, error: float = 0.3) -> np.ndarray:
    """Estimates for 400 sets of layers of this spread."""
    rng = np.random.default_rng(0)
    errors = error * rng.uniform(0.5, 1.5, (400, num_layers))
    values = spread * rng.standard_normal(errors.shape) + errors * rng.standard_normal(errors.shape)
    return np.array([spread_of(x, s) for x, s in zip(values, errors, strict=True)])


def test_no_spread_is_found_in_noise_in_95_of_100_cases_and_hardly_any_in_the_others() -> None:
    for num_layers in (3, 11, 264):
        found = spreads(0.0, num_layers=num_layers)
        assert 0.92 < (found == 0).mean() < 0.98
    assert found.max() < 0.15


def test_a_spread_is_not_overstated_in_95_of_100_cases() -> None:
    for spread in (0.1, 0.5, 2.0):
        assert 0.92 < (spreads(spread, num_layers=66) <= spread).mean() < 0.98


def test_a_spread_well_above_the_errors_is_found() -> None:
    assert 0.85 < np.median(spreads(1.0, num_layers=264)) < 1


def test_beliefs_are_nearer_to_the_truth_than_values() -> None:
    rng = np.random.default_rng(1)
    truth = 0.3 * rng.standard_normal(264)
    errors = rng.uniform(0.05, 1.0, 264)
    values = truth + errors * rng.standard_normal(264)
    believed = shrink(values, errors).values
    assert np.mean((believed - truth) ** 2) < 0.2 * np.mean((values - truth) ** 2)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-20, 20), st.one_of(st.floats(0, 10), st.just(np.inf))), min_size=1, max_size=30),
    st.floats(-5, 5),
)
def test_a_belief_lies_between_the_value_and_the_mean_and_moves_with_all_values(
    pairs: list[tuple[float, float]], shift: float
) -> None:
    values, errors = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    shrunk = shrink(values, errors)
    assert ((shrunk.factors >= 0) & (shrunk.factors <= 1)).all()
    low, high = values.min(), values.max()
    assert (shrunk.values >= low - 1e-9).all()
    assert (shrunk.values <= high + 1e-9).all()
    moved = shrink(values + shift, errors, spread=spread_of(values, errors))
    assert np.allclose(moved.values, shrunk.values + shift, atol=1e-6)


def test_what_is_not_known_becomes_the_mean_and_nothing_stays_nothing() -> None:
    shrunk = shrink(np.array([1.0, 3.0, np.nan, -np.inf, 9.0]), np.array([0.0, 0.0, 0.1, 0.0, np.inf]))
    assert shrunk.values.tolist() == [1.0, 3.0, 2.0, -np.inf, 2.0]
    assert shrunk.factors.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
