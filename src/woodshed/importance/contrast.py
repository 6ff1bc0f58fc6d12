"""How specific to its data a map is: the data's gradients held against a reference's.

Each song of the data has a partner: itself in silence or with other words, or a song of another folder. Partners are
looked at with the same timesteps and noise. For each layer, D^2 = |mean g over the data - mean g over the reference|^2.
Swapping labels within pairs shows what chance makes of it, shared noise included: a layer's contrast is D^2 less its
mean under swapping, over the reference's mean |g|^2. Whether all layers together differ is a test, with each layer's
excess in units of its standard deviation under swapping.

Source: Gretton et al. 2012, "A kernel two-sample test": this is the maximum mean discrepancy with the inner product of
gradients as its kernel, and its permutation test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from woodshed.chance import generator
from woodshed.importance.draw_table import DrawTable
from woodshed.importance.focus import Timesteps
from woodshed.importance.resampling import spearman
from woodshed.importance.scores import EntryScores, energy_scores, songs_of

SWAPS = 999
SPECIFIC_P = 0.05
FEWEST_PAIRS = 6
"""Two in 2^6 swaps change nothing but the sign."""
HALVES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Data against reference."""

    layers: Float64[np.ndarray, " layer"]
    """Excess of D^2 over the energy of the reference; 0 where there is none."""
    p_value: float
    """Share of swaps that differ as much over all layers, the true labels counted in."""

    num_pairs: int

    @property
    def is_specific(self) -> bool | None:
        """None where there are so few pairs that no swap is rare enough."""
        return None if self.num_pairs < FEWEST_PAIRS else self.p_value <= SPECIFIC_P


def contrast(
    entries: EntryScores,
    data: DrawTable,
    reference: DrawTable,
    timesteps: Timesteps,
    *,
    seed: int,
) -> Contrast:
    """Test over songs, for the focus that was asked for."""
    songs = [songs_of(table, timesteps, timesteps.asked) for table in (data, reference)]
    common, *places = np.intersect1d(songs[0].items, songs[1].items, return_indices=True)
    songs = [each.only(place) for each, place in zip(songs, places, strict=True)]
    labels = _swapped(len(common), seed)
    energy = energy_scores(reference.energy, songs[1], np.ones((1, len(songs[1].items)))).values
    columns = []
    for layer in range(entries.num_layers):
        rows = [
            entries.song_sums(table, each, layer) / np.maximum(each.totals, 1e-30)[:, None]
            for table, each in zip((data, reference), songs, strict=True)
        ]
        points = rows[0] - rows[1]
        kernel = points @ points.T
        columns.append(((labels @ kernel) * labels).sum(axis=1))
    squares = np.stack(columns, axis=1)
    by_chance = squares[1:]
    spread = by_chance.std(axis=0)
    excess = (squares[0] - by_chance.mean(axis=0)) * entries.scale
    usable = spread > 1e-12 * max(float(np.abs(squares).max()), 1e-300)
    scaled = np.where(usable, (squares - by_chance.mean(axis=0)) / np.where(usable, spread, 1.0), 0.0)
    # Squares, so that a few layers that differ are not drowned by many that do not; the true labels are one of the
    # swaps.
    overall = np.square(np.maximum(scaled, 0.0)).mean(axis=1)
    p_value = float((overall >= overall[0] - 1e-12).mean())
    layers = np.where(energy > 0, excess / np.where(energy > 0, energy, 1.0), 0.0)
    return Contrast(layers=layers, p_value=p_value, num_pairs=len(common))


def halves_correlation(
    entries: EntryScores,
    table: DrawTable,
    timesteps: Timesteps,
    score: str,
    energy: Float64[np.ndarray, "draw layer"],
    *,
    seed: int,
) -> float:
    """Spearman's between the scores of two random halves of the songs, in the mean over splits."""
    songs = songs_of(table, timesteps, timesteps.asked)
    num_songs = len(songs.items)
    if num_songs < 2:
        return 0.0
    chance = generator(seed, "halves")
    sides = np.zeros((HALVES, num_songs))
    for row in sides:
        row[chance.permutation(num_songs)[: num_songs // 2]] = 1.0
    found = []
    both = np.concatenate([sides, 1.0 - sides])
    if score == "wg":
        scores = entries.wg(table, songs, both).resamples
    else:
        scores = (both @ (songs.members @ energy)) / (both @ songs.totals)[:, None]
    for first, second in zip(scores[:HALVES], scores[HALVES:], strict=True):
        if np.isfinite(first).all() and np.isfinite(second).all():
            found.append(spearman(first, second))
    return float(np.mean(found)) if found else 0.0


def _swapped(num_songs: int, seed: int) -> Float64[np.ndarray, "labelling song"]:
    """Signs of each song's difference: all positive first, then at random."""
    signs = generator(seed, num_songs, "swapped").integers(0, 2, (SWAPS, num_songs)) * 2.0 - 1.0
    return np.concatenate([np.ones((1, num_songs)), signs]) / num_songs
