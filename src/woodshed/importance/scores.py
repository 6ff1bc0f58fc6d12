"""Scores of all layers for one focus, from the draws of a run, with their resamples over songs.

For the gradient g of one draw's loss with respect to a layer's weight W (d_out, d_in), and means over draws that are
weighted for the focus:

- energy = mean |g|^2, and density = energy per weight: the trace of the empirical Fisher information;
- signal = |mean g|^2 by products of different songs only, since the square of a mean of n draws holds 1 / n of their
  noise. From about three rounds over the songs on it is unbiased; in a single round different songs never share a
  stratum of the timestep, which makes it too small. Noise = energy - signal: what no adapter can remove;
- wg = mean over weights of |W * mean g| (GoRA, arXiv 2502.12171). The mean of n draws holds noise, which would make
  noisy layers look needed, the more so the fewer draws there are: so it is multiplied by the root of signal over
  |mean g|^2, which for noise of one size in all entries takes out just that.

Signal, and the uncertainty of wg, come from entries of the gradient that were sampled at random places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from woodshed.chance import generator
from woodshed.importance.draw_table import DrawTable
from woodshed.importance.focus import Timesteps
from woodshed.importance.focuses import Focus
from woodshed.importance.layers import LayerShape
from woodshed.importance.resampling import resampled_means

LEAST_CLEAN = 0.01
"""Share of a squared mean gradient that counts as signal, however noisy it is: a score has a logarithm then."""


@dataclass(frozen=True, slots=True)
class Resampled:
    """One score of all layers."""

    values: Float64[np.ndarray, " layer"]
    resamples: Float64[np.ndarray, "resample layer"]
    halves: Float64[np.ndarray, "2 layer"]
    """From every other draw of each song, and from the rest: they differ by what draws leave open, songs aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Songs:
    """The draws of a run by song, weighted for a focus."""

    halves: Float64[np.ndarray, "2 song draw"]
    """Weight of each draw in its song's row, 0 elsewhere, in one of two halves: products are sums by song."""
    items: Int64[np.ndarray, " song"]
    """Which item of the data set each song is."""

    @property
    def members(self) -> Float64[np.ndarray, "song draw"]:
        """Of both halves."""
        members: Float64[np.ndarray, "song draw"] = self.halves.sum(axis=0)
        return members

    @property
    def totals(self) -> Float64[np.ndarray, " song"]:
        """Weight of each song."""
        totals: Float64[np.ndarray, " song"] = self.halves.sum(axis=(0, 2))
        return totals

    def only(self, places: Int64[np.ndarray, " kept"]) -> Songs:
        """Some of the songs, with all draws."""
        return Songs(halves=self.halves[:, places], items=self.items[places])


def songs_of(table: DrawTable, timesteps: Timesteps, focus: Focus) -> Songs:
    """Draws so far, by song."""
    items, places = np.unique(np.array(table.items, np.int64), return_inverse=True)
    weights = timesteps.weights(table.timesteps, focus)
    halves = np.zeros((2, len(items), len(weights)))
    # Antithetic twins are of one visit and so of one half: they are no independent draws.
    halves[np.array(table.visits, np.int64) % 2, places, np.arange(len(weights))] = weights
    return Songs(halves=halves, items=items)


def energy_scores(
    energy: Float32[np.ndarray, "draw layer"], songs: Songs, counts: Float64[np.ndarray, "resample song"]
) -> Resampled:
    """Mean squared norms of the gradients."""
    sums = songs.members @ energy.astype(np.float64)
    values = sums.sum(axis=0) / songs.totals.sum()
    by_half = songs.halves.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        halves = (by_half @ energy.astype(np.float64)) / by_half.sum(axis=1, keepdims=True)
    return Resampled(values, resampled_means(counts, sums, songs.totals), halves)


class EntryScores:
    """What sampled entries of the gradients tell, layer by layer.

    Args:
        shapes: of the layers.
        weights_at: absolute weight of each layer at the places that were sampled.
    """

    def __init__(self, shapes: Sequence[LayerShape], weights_at: Sequence[Float32[np.ndarray, "_"]]) -> None:
        self._shapes, self._weights_at = shapes, weights_at
        ends = np.cumsum([len(weights) for weights in weights_at])
        self._columns = [slice(end - len(w), end) for end, w in zip(ends.tolist(), weights_at, strict=True)]

    @property
    def scale(self) -> Float64[np.ndarray, " layer"]:
        """Weights of each layer over its sampled entries: what sums of squares are to be multiplied by."""
        pairs = zip(self._shapes, self._weights_at, strict=True)
        return np.array([shape.num_weights / max(1, len(weights)) for shape, weights in pairs])

    @property
    def num_layers(self) -> int:
        return len(self._shapes)

    def song_sums(self, table: DrawTable, songs: Songs, layer: int) -> Float64[np.ndarray, "song entry"]:
        """Weighted sums by song of one layer's entries."""
        sums: Float64[np.ndarray, "song entry"] = songs.members @ table.entries(self._columns[layer])
        return sums

    def wg(
        self,
        table: DrawTable,
        songs: Songs,
        counts: Float64[np.ndarray, "resample song"],
        *,
        exact: Float64[np.ndarray, " layer"] | None = None,
    ) -> Resampled:
        """Mean |W * mean g|, less what noise adds to it.

        Args:
            exact: the mean over all weights, where it is known, noise included; else it is that of the sampled entries.
        """
        everyone = np.ones((1, len(songs.totals)))
        both = np.concatenate([everyone, counts])
        half_totals = songs.halves.sum(axis=2)
        made, halves = [], []
        for layer, weights in enumerate(self._weights_at):
            by_half = songs.halves @ table.entries(self._columns[layer])
            sums = by_half.sum(axis=0)
            scale = 1.0
            if exact is not None:
                sampled = float(_plain_wg(everyone, sums, songs.totals, weights)[0])
                scale = float(exact[layer]) / sampled if sampled > 0 else 1.0
            scores = _wg(both, sums, songs.totals, weights) * scale
            if exact is None:
                mean = np.abs(sums.sum(axis=0)) * weights
                scores[1:] *= np.exp(self._sampling(layer, float(mean.std()), float(mean.mean()), len(counts)))
            made.append(scores)
            sides = zip(by_half, half_totals, strict=True)
            halves.append([_wg(everyone, half, totals, weights)[0] * scale for half, totals in sides])
        found = np.stack(made, axis=1)
        return Resampled(found[0], found[1:], np.array(halves).T)

    def _sampling(self, layer: int, spread: float, mean: float, resamples: int) -> Float64[np.ndarray, " resample"]:
        """What other entries would have given, as relative changes: not only songs are a sample.

        Args:
            spread: standard deviation of what is averaged over the sampled entries.
            mean: of the same.
        """
        shape, sampled = self._shapes[layer], len(self._weights_at[layer])
        error = spread / max(mean, 1e-300) * float(np.sqrt((1 - sampled / shape.num_weights) / sampled))
        drawn: Float64[np.ndarray, " resample"] = generator(0, shape.name, "sampling").normal(0.0, error, resamples)
        return drawn

    def raw(self, table: DrawTable, songs: Songs) -> Float64[np.ndarray, " layer"]:
        """|mean g|^2 over the whole layer, noise included."""
        means = (self.song_sums(table, songs, layer).sum(axis=0) for layer in range(self.num_layers))
        squares = np.array([float(np.square(mean).sum()) for mean in means])
        raw: Float64[np.ndarray, " layer"] = squares * self.scale / songs.totals.sum() ** 2
        return raw

    def signal(self, table: DrawTable, songs: Songs, counts: Float64[np.ndarray, "resample song"]) -> Resampled:
        """|mean g|^2 over the whole layer, by products of different songs. NaN for a single song."""
        both = np.concatenate([np.ones((1, len(songs.totals))), counts])
        half_totals = songs.halves.sum(axis=2)
        made, halves = [], []
        for layer in range(self.num_layers):
            by_half = songs.halves @ table.entries(self._columns[layer])
            sums = by_half.sum(axis=0)
            scores = _signal(both, sums @ sums.T, songs.totals)
            square = np.square(sums.sum(axis=0))
            scores[1:] *= 1 + self._sampling(layer, float(square.std()), float(square.mean()), len(counts))
            made.append(scores)
            sides = zip(by_half, half_totals, strict=True)
            halves.append([_signal(both[:1], half @ half.T, totals)[0] for half, totals in sides])
        found = np.stack(made, axis=1) * self.scale
        return Resampled(found[0], found[1:], np.array(halves).T * self.scale)

    def rest_without(
        self, table: DrawTable, songs: Songs
    ) -> tuple[Float64[np.ndarray, " layer"], Float64[np.ndarray, "song layer"]]:
        """Mean |W * mean g|, noise included, of all songs and without each of them."""
        everyone = np.ones((1, len(songs.totals)))
        whole, columns = [], []
        with np.errstate(invalid="ignore", divide="ignore"):
            for layer, weights in enumerate(self._weights_at):
                sums = self.song_sums(table, songs, layer)
                rest = (sums.sum(axis=0) - sums) / (songs.totals.sum() - songs.totals)[:, None]
                columns.append((np.abs(rest) * weights).mean(axis=1))
                whole.append(float(_plain_wg(everyone, sums, songs.totals, weights)[0]))
        return np.array(whole), np.stack(columns, axis=1)


def _plain_wg(
    counts: Float64[np.ndarray, "resample song"],
    sums: Float64[np.ndarray, "song entry"],
    totals: Float64[np.ndarray, " song"],
    weights: Float32[np.ndarray, " entry"],
) -> Float64[np.ndarray, " resample"]:
    means = np.abs(resampled_means(counts, sums, totals))
    plain: Float64[np.ndarray, " resample"] = (means @ weights.astype(np.float64)) / len(weights)
    return plain


def _wg(
    counts: Float64[np.ndarray, "resample song"],
    sums: Float64[np.ndarray, "song entry"],
    totals: Float64[np.ndarray, " song"],
    weights: Float32[np.ndarray, " entry"],
) -> Float64[np.ndarray, " resample"]:
    """Without what noise adds."""
    # By the songs' inner products: entries are many, songs are few.
    clean: Float64[np.ndarray, " resample"] = np.sqrt(_cleanness(counts, sums @ sums.T, totals))
    clean *= _plain_wg(counts, sums, totals, weights)
    return clean


def _signal(
    counts: Float64[np.ndarray, "resample song"],
    kernel: Float64[np.ndarray, "song song"],
    totals: Float64[np.ndarray, " song"],
) -> Float64[np.ndarray, " resample"]:
    """Mean product of the gradients of two different songs; NaN where there are none.

    Args:
        kernel: products of the songs' sums, over all entries.
    """
    pairs = np.square(counts @ totals) - np.square(counts) @ np.square(totals)
    products = ((counts @ kernel) * counts).sum(axis=1) - np.square(counts) @ np.diag(kernel)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Of one song alone what is left is rounding.
        return np.where(pairs > 1e-9 * np.square(counts @ totals), products / pairs, np.nan)


def _cleanness(
    counts: Float64[np.ndarray, "resample song"],
    kernel: Float64[np.ndarray, "song song"],
    totals: Float64[np.ndarray, " song"],
) -> Float64[np.ndarray, " resample"]:
    """Signal over the squared mean gradient, within `LEAST_CLEAN` and 1; 1 where there is one song only."""
    raw = ((counts @ kernel) * counts).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        raw = raw / np.square(counts @ totals)
        share = np.where(raw > 0, _signal(counts, kernel, totals) / raw, 1.0)
    return np.where(np.isnan(share), 1.0, np.clip(share, LEAST_CLEAN, 1.0))


def density_without(energy: Float32[np.ndarray, "draw layer"], songs: Songs) -> Float64[np.ndarray, "song layer"]:
    """Mean energies of the data without each of its songs."""
    sums = songs.members @ energy.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        rest: Float64[np.ndarray, "song layer"] = (sums.sum(axis=0) - sums) / (songs.totals.sum() - songs.totals)[
            :, None
        ]
    return rest


def leverage(
    scores: Float64[np.ndarray, " layer"], without: Float64[np.ndarray, "song layer"]
) -> Float64[np.ndarray, " song"]:
    """How much each song drives the map: its share of what leaving songs out changes, in relative scores."""
    usable = (scores > 0) & (without > 0).all(axis=0)
    if not usable.any():
        return np.zeros(len(without))

    def relative(rows: Float64[np.ndarray, "row layer"]) -> Float64[np.ndarray, "row layer"]:
        logs = np.log(rows[:, usable])
        centred: Float64[np.ndarray, "row layer"] = logs - logs.mean(axis=1, keepdims=True)
        return centred

    change = np.square(relative(without) - relative(scores[None])).sum(axis=1)
    total = float(change.sum())
    shares: Float64[np.ndarray, " song"] = change / total if total else change
    return shares


def distinct_groups(
    scores: Float64[np.ndarray, " layer"], errors: Float64[np.ndarray, " layer"]
) -> Int64[np.ndarray, " layer"]:
    """Groups of layers that cannot be told apart: from the highest score down, a new group begins with the first layer
    that lies below the group's first by more than 1.64 standard errors of the difference. Counted from 1.

    >>> distinct_groups(np.array([1.0, 8.0, 7.5]), np.array([0.1, 0.1, 0.1]))
    array([2, 1, 1])
    """
    groups = np.zeros(len(scores), np.int64)
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(scores, 0.0))
    group, first = 0, -1
    for layer in np.argsort(-scores, kind="stable"):
        gap = logs[first] - logs[layer] if first >= 0 else np.inf
        if first < 0 or gap > 1.645 * np.hypot(errors[first], errors[layer]):
            group, first = group + 1, int(layer)
        groups[layer] = group
    return groups
