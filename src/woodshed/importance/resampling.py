"""How sure a score is: bootstraps over songs, since crops and timesteps of one song are not independent.

Scores are weighted means over draws, or functions of such means. A bootstrap draws as many songs as there are, with
replacement, and counts each as often as it came; only sums by song are needed for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64, Int64

from woodshed.chance import generator

LEVEL = 0.9
"""Of all intervals."""
RESAMPLES = 400
FEW_SONGS = 5
"""Below that resamples repeat each other too often for more than their spread to be taken from them."""


def song_counts(num_songs: int, *, seed: int, resamples: int = RESAMPLES) -> Float64[np.ndarray, "resample song"]:
    """How often each song comes in each resample."""
    chance = generator(seed, num_songs, "bootstrap")
    counts: Int64[np.ndarray, "resample song"] = chance.multinomial(num_songs, [1 / num_songs] * num_songs, resamples)
    return counts.astype(np.float64)


def resampled_means(
    counts: Float64[np.ndarray, "resample song"],
    sums: Float64[np.ndarray, "song column"],
    weights: Float64[np.ndarray, " song"],
) -> Float64[np.ndarray, "resample column"]:
    """Weighted means of each resample, from sums and weights by song. A resample of no weight has NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Float64[np.ndarray, "resample column"] = (counts @ sums) / (counts @ weights)[:, None]
    return means


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number and how sure it is."""

    value: float
    low: float
    high: float


def log_interval(value: float, resampled: Float64[np.ndarray, " resample"], num_songs: int) -> Interval:
    """Of a positive number, from its resamples: symmetric in the logarithm, as wide as Student's t for so few songs.

    Resamples of n songs vary (n - 1) / n times as much as fresh songs would.
    """
    usable = resampled[np.isfinite(resampled) & (resampled > 0)]
    if not (value > 0 and usable.size > 1 and num_songs > 1):
        return Interval(value=value, low=min(value, 0.0), high=math.inf)
    spread = float(np.log(usable).std(ddof=1)) * _width(num_songs)
    return Interval(value=value, low=value * math.exp(-spread), high=value * math.exp(min(spread, 700.0)))


def mean_intervals(
    counts: Float64[np.ndarray, "resample song"],
    sums: Float64[np.ndarray, "song column"],
    weights: Float64[np.ndarray, " song"],
) -> list[Interval]:
    """Of positive weighted means, by the bootstrap of Student's t in the logarithm.

    Songs are few and their energies skewed: a resample that lacks the loudest song has a small mean and a small error.
    Taking both into account (Efron and Tibshirani 1993, chapter 12) widens intervals upwards. They are widened again
    for what so few songs of such kurtosis leave open about their own spread: its degrees of freedom.
    """
    num_songs = int((weights > 0).sum())
    values = sums.sum(axis=0) / weights.sum()
    means = resampled_means(counts, sums, weights)
    if num_songs < FEW_SONGS:
        return [log_interval(float(v), means[:, column], num_songs) for column, v in enumerate(values)]
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = sums - values * weights[:, None]
        error = np.sqrt(np.square(gaps).sum(axis=0)) / weights.sum() / values
        squares = counts @ np.square(sums) - 2 * means * (counts @ (sums * weights[:, None]))
        squares += np.square(means) * (counts @ np.square(weights))[:, None]
        errors = np.sqrt(np.maximum(squares, 0.0)) / (counts @ weights)[:, None] / means
        students = (np.log(means) - np.log(values)) / errors
        kurtosis = np.nan_to_num(np.mean(gaps**4, axis=0) / np.square(np.mean(np.square(gaps), axis=0)))
    made = []
    for column, value in enumerate(values.tolist()):
        usable = students[:, column][np.isfinite(students[:, column])]
        if not (value > 0 and usable.size > 1 and np.isfinite(error[column])):
            made.append(log_interval(value, means[:, column], num_songs))
            continue
        below, above = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        degrees = max(1, min(num_songs - 1, int(2 * num_songs / max(kurtosis[column] - 1, 0.1))))
        wider = student_quantile((1 + LEVEL) / 2, degrees) / student_quantile((1 + LEVEL) / 2, num_songs - 1)
        spread = float(error[column]) * math.sqrt(num_songs / (num_songs - 1)) * wider
        high = value * math.exp(min(-below * spread, 700.0))
        made.append(Interval(value=value, low=value * math.exp(-above * spread), high=high))
    return made


def linear_interval(value: float, resampled: Float64[np.ndarray, " resample"], num_songs: int) -> Interval:
    """Of any number, from its resamples."""
    usable = resampled[np.isfinite(resampled)]
    if not (usable.size > 1 and num_songs > 1):
        return Interval(value=value, low=-math.inf, high=math.inf)
    spread = float(usable.std(ddof=1)) * _width(num_songs)
    return Interval(value=value, low=value - spread, high=value + spread)


def _width(num_songs: int) -> float:
    """Half an interval's width in standard deviations of the resamples."""
    return student_quantile((1 + LEVEL) / 2, num_songs - 1) * math.sqrt(num_songs / (num_songs - 1))


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t; the expansion of Cornish and Fisher, exact for 1 and 2 degrees.

    >>> [round(student_quantile(0.95, degrees), 2) for degrees in (1, 2, 5, 30)]
    [6.31, 2.92, 2.01, 1.7]
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        doubled = 2 * probability - 1
        return doubled * math.sqrt(2 / (1 - doubled * doubled))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + float(sum(term / degrees ** (power + 1) for power, term in enumerate(terms)))


def relative_errors(resampled: Float64[np.ndarray, "resample layer"], num_songs: int) -> Float64[np.ndarray, " layer"]:
    """Standard error of each layer's logarithm less its mean over layers: what layers differ by.

    Resamples of n songs vary (n - 1) / n times as much as fresh songs would, which is made up for.
    What moves all layers alike, such as a loud song, is no reason to doubt their order. Infinite where a layer was 0.
    """
    positive = (np.isfinite(resampled) & (resampled > 0)).all(axis=0)
    errors = np.full(resampled.shape[1], np.inf)
    if positive.any() and len(resampled) > 1 and num_songs > 1:
        logs = np.log(resampled[:, positive])
        spread = (logs - logs.mean(axis=1, keepdims=True)).std(axis=0, ddof=1)
        errors[positive] = spread * math.sqrt(num_songs / (num_songs - 1))
    return errors


def draw_error(halves: Float64[np.ndarray, "2 layer"]) -> float:
    """What more draws of the same songs could still change: relative standard error of a score, median over layers.

    The mean of two independent halves has half the standard deviation of their difference; 0.6745 is the median of
    |z| for a standard normal z. Infinite where a half is missing.
    """
    usable = np.isfinite(halves).all(axis=0) & (halves > 0).all(axis=0)
    if not usable.any():
        return math.inf
    logs = np.log(halves[:, usable])
    gaps = logs[0] - logs[1]
    return float(np.median(np.abs(gaps - gaps.mean()))) / 2 / 0.6745


def spearman(a: Float64[np.ndarray, " layer"], b: Float64[np.ndarray, " layer"]) -> float:
    """Rank correlation; ties share their mean rank. 0 where one side does not vary.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    ranks = [_ranks(values) for values in (a, b)]
    spreads = [values.std() for values in ranks]
    if len(a) < 2 or not all(spreads):
        return 0.0
    centred = [values - values.mean() for values in ranks]
    return float((centred[0] * centred[1]).mean() / (spreads[0] * spreads[1]))


def _ranks(values: Float64[np.ndarray, " layer"]) -> Float64[np.ndarray, " layer"]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Float64[np.ndarray, " layer"] = (ends - (counts - 1) / 2)[inverse]
    return means
