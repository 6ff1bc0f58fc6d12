"""Scores and their uncertainty, on gradients of which the truth is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from woodshed.contracts import Draw
from woodshed.importance.contrast import contrast
from woodshed.importance.convergence import Checks, moved_share
from woodshed.importance.draw_table import DrawTable
from woodshed.importance.focus import Timesteps
from woodshed.importance.focuses import focus_named
from woodshed.importance.layers import LayerShape
from woodshed.importance.looks import Look
from woodshed.importance.resampling import (
    linear_interval,
    log_interval,
    mean_intervals,
    relative_errors,
    song_counts,
)
from woodshed.importance.scores import EntryScores, distinct_groups, energy_scores, leverage, songs_of
from woodshed.importance.spectrum import GradientSketch, spectrum_of

from .test_looks import Drawn

NUM_LAYERS, NUM_ENTRIES = 6, 48
SHAPES = [
    LayerShape(name=f"layers.{i}.mlp.up_proj", category="mlp", d_out=6, d_in=8, num_weights=48, adaptable=True)
    for i in range(NUM_LAYERS)
]


class Gradients:
    """Gradients of songs: a mean, a part of each song's own, and noise; songs and draws are of unequal loudness."""

    def __init__(self, *, mean: float, loudness: float = 0.3, seed: int = 5) -> None:
        chance = np.random.default_rng(seed)
        self.mean = chance.normal(0, mean, (NUM_LAYERS, NUM_ENTRIES)) if mean else np.zeros((NUM_LAYERS, NUM_ENTRIES))
        self.weights = [np.abs(chance.normal(0, 1, NUM_ENTRIES)).astype(np.float32) for _ in range(NUM_LAYERS)]
        self.loudness = loudness

    def drawn(self, num_songs: int, visits: int, seed: int) -> np.ndarray:
        """(draw, layer, entry); song by song."""
        chance = np.random.default_rng(seed)
        size = (num_songs, 1, NUM_LAYERS, NUM_ENTRIES)
        loud = np.exp(chance.normal(0, self.loudness, (num_songs, 1, 1, 1)))
        scale = np.exp(chance.normal(0, 0.5, (num_songs, visits, 1, 1)))
        noise = chance.normal(0, 1, (num_songs, visits, NUM_LAYERS, NUM_ENTRIES))
        made = (self.mean + chance.normal(0, 0.5, size) + noise) * loud * scale
        return made.reshape(num_songs * visits, NUM_LAYERS, NUM_ENTRIES)

    @property
    def truth(self) -> dict[str, np.ndarray]:
        """What infinitely many draws of infinitely many songs give."""
        first = np.exp(self.loudness**2 / 2 + 0.125)
        second = np.exp(2 * self.loudness**2 + 0.5)
        square = np.square(self.mean).sum(axis=1)
        return {
            "energy": (square + NUM_ENTRIES * 1.25) * second,
            "signal": square * first**2,
            "wg": np.array([(np.abs(m) * w).mean() for m, w in zip(self.mean, self.weights, strict=True)]) * first,
        }


def table_of(folder: Path, gradients: np.ndarray, visits: int) -> DrawTable:
    table = DrawTable(folder, num_layers=NUM_LAYERS, num_entries=NUM_LAYERS * NUM_ENTRIES)
    looks = [
        Look(number=i, item=i // visits, visit=i % visits, draw=Draw(seed=i, timestep=0.5))
        for i in range(len(gradients))
    ]
    flat = gradients.astype(np.float32)
    table.add(
        looks,
        torch.from_numpy(np.square(flat).sum(axis=2)),
        torch.from_numpy(flat.reshape(len(flat), -1)),
        {},
        num_passes=len(looks),
    )
    return table


TIMES = Timesteps(Drawn(), focus_named("balanced"))


def all_scores(folder: Path, source: Gradients, num_songs: int, visits: int, seed: int, resamples: int = 200):  # type: ignore[no-untyped-def]
    table = table_of(folder, source.drawn(num_songs, visits, seed), visits)
    songs = songs_of(table, TIMES, TIMES.asked)
    counts = song_counts(num_songs, seed=seed, resamples=resamples)
    entries = EntryScores(SHAPES, source.weights)
    return table, songs, counts, entries


@pytest.mark.slow
@pytest.mark.parametrize(("num_songs", "visits"), [(28, 8), (60, 4)])
def test_intervals_cover_the_truth_as_often_as_they_say(tmp_path: Path, num_songs: int, visits: int) -> None:
    source, trials = Gradients(mean=0.3), 250
    hits = {"energy": 0, "signal": 0, "wg": 0}
    for trial in range(trials):
        folder = tmp_path / str(trial)
        table, songs, counts, entries = all_scores(folder, source, num_songs, visits, trial)
        signal, wg = entries.signal(table, songs, counts), entries.wg(table, songs, counts)
        found = {
            "energy": mean_intervals(counts, songs.members @ table.energy.astype(np.float64), songs.totals),
            "signal": [
                linear_interval(float(v), signal.resamples[:, i], num_songs) for i, v in enumerate(signal.values)
            ],
            "wg": [log_interval(float(v), wg.resamples[:, i], num_songs) for i, v in enumerate(wg.values)],
        }
        for name, intervals in found.items():
            hits[name] += sum(i.low <= t <= i.high for i, t in zip(intervals, source.truth[name], strict=True))
        (folder / "entries.f32").unlink()
    shares = {name: count / (trials * NUM_LAYERS) for name, count in hits.items()}
    print(shares)
    assert all(0.85 <= share <= 0.95 for share in shares.values()), shares


def test_wg_does_not_mistake_noise_for_need(tmp_path: Path) -> None:
    # Plain |W * mean g| is several times too large here, and the larger the fewer draws there are.
    source = Gradients(mean=0.05)
    found = []
    for seed in range(12):
        table, songs, counts, entries = all_scores(tmp_path / str(seed), source, 40, 6, seed, resamples=2)
        found.append(entries.wg(table, songs, counts).values)
    plain = np.abs(source.drawn(40, 6, 0).mean(axis=0) * np.stack(source.weights)).mean()
    truth = float(source.truth["wg"].mean())
    assert plain > 2 * truth
    assert float(np.mean(found)) < 1.4 * truth


def test_signal_is_unbiased_and_can_be_negative(tmp_path: Path) -> None:
    source = Gradients(mean=0.0)
    values = []
    for seed in range(30):
        table, songs, counts, entries = all_scores(tmp_path / str(seed), source, 12, 3, seed, resamples=2)
        values.append(entries.signal(table, songs, counts).values)
    energy = float(source.truth["energy"].mean())
    assert np.min(values) < 0 < np.max(values)
    assert abs(float(np.mean(values))) < 0.02 * energy


def test_what_moves_all_layers_alike_is_no_doubt_about_their_order() -> None:
    logs = np.random.default_rng(0).normal(0, 1, (200, 1)) + np.zeros((200, 5))
    assert relative_errors(np.exp(logs), 20) == pytest.approx(np.zeros(5), abs=1e-9)


def test_a_table_is_found_again_as_it_was_committed(tmp_path: Path) -> None:
    source = Gradients(mean=0.3)
    table = table_of(tmp_path / "t", source.drawn(4, 2, 0), 2)
    table.sums["layers.0"] = torch.arange(6.0).reshape(2, 3)
    table.num_looks, table.notes = 8, {"checks": [1, 2]}
    table.commit()
    everything = slice(0, table.num_entries)
    kept = table.entries(everything)
    more = source.drawn(1, 1, 9).astype(np.float32)
    look = Look(number=8, item=0, visit=2, draw=Draw(seed=1, timestep=0.1))
    table.add([look], torch.ones(1, NUM_LAYERS), torch.from_numpy(more.reshape(1, -1)), {}, num_passes=1)
    # Killed here: what was not committed is as if it had not been.
    again = DrawTable(tmp_path / "t", num_layers=NUM_LAYERS, num_entries=NUM_LAYERS * NUM_ENTRIES)
    assert len(again) == 8
    assert (again.num_looks, again.num_passes, again.notes) == (8, 8, {"checks": [1, 2]})
    assert np.array_equal(again.entries(everything), kept)
    assert np.array_equal(again.energy, table.energy[:8])
    assert torch.equal(again.sums["layers.0"], table.sums["layers.0"])
    again.sums.clear()
    again.cut(3)
    assert len(again) == len(again.entries(everything)) == 3


def test_equal_data_is_not_specific_and_other_data_is(tmp_path: Path) -> None:
    source, other = Gradients(mean=0.3), Gradients(mean=0.3)
    other.mean[2] += 0.8
    alike = []
    for seed in range(40):
        tables = [table_of(tmp_path / f"{seed}-{i}", source.drawn(12, 2, 100 * i + seed), 2) for i in range(2)]
        entries = EntryScores(SHAPES, source.weights)
        alike.append(contrast(entries, *tables, TIMES, seed=seed).p_value)
    assert np.mean(np.array(alike) <= 0.05) <= 0.15
    data = table_of(tmp_path / "data", other.drawn(12, 2, 7), 2)
    reference = table_of(tmp_path / "reference", source.drawn(12, 2, 8), 2)
    found = contrast(EntryScores(SHAPES, source.weights), data, reference, TIMES, seed=0)
    assert found.is_specific
    assert int(found.layers.argmax()) == 2
    assert float(np.delete(found.layers, 2).max()) < 0.3 * found.layers[2]


def test_the_song_that_drives_the_map_is_named() -> None:
    scores = np.array([1.0, 2.0, 3.0])
    without = np.tile(scores, (5, 1))
    without[3] = [2.0, 2.0, 1.0]
    shares = leverage(scores, without)
    assert shares == pytest.approx([0, 0, 0, 1, 0])


def test_layers_within_each_others_error_are_one_group() -> None:
    errors = np.full(4, 0.2)
    assert distinct_groups(np.array([4.0, 3.9, 1.0, 0.95]), errors).tolist() == [1, 1, 2, 2]
    assert len(set(distinct_groups(np.array([4.0, 3.0, 2.0, 1.0]), np.full(4, 3.0)).tolist())) == 1


def test_ranks_that_stay_put_end_a_run_once_their_scores_are_known() -> None:
    checks = Checks(SHAPES, patience=2, max_relative_error=0.1)
    ranks = {shape.name: 8 for shape in SHAPES}
    other = ranks | {SHAPES[0].name: 16}
    assert not checks.add(ranks, 0.05)
    assert not checks.add(other, 0.05)
    assert not checks.add(other, 0.05)  # the first two checks still differ
    assert not checks.add(other, 0.5)  # put, but not known
    assert checks.add(other, 0.05)
    assert moved_share(ranks, other, {shape.name: shape.price for shape in SHAPES}) == pytest.approx(
        8 / (2 * 6 * 8 + 8)
    )


@pytest.mark.parametrize(("rows", "columns"), [(40, 30), (600, 700)])
def test_spectra_are_those_of_the_decomposition(rows: int, columns: int) -> None:
    chance = torch.Generator().manual_seed(0)
    left, right = torch.randn(rows, 12, generator=chance), torch.randn(12, columns, generator=chance)
    matrix = left * torch.logspace(0, -3, 12) @ right + 1e-4 * torch.randn(rows, columns, generator=chance)
    wanted = torch.linalg.svdvals(matrix)[:8].tolist()
    exact = spectrum_of(matrix, 8, seed=0, key="x")
    assert exact.values == pytest.approx(wanted, rel=1e-3)
    assert exact.rest == pytest.approx(float(matrix.square().sum()) - sum(v * v for v in wanted), rel=0.05, abs=1e-3)
    sketch = GradientSketch(rows, columns, 8, seed=0, key="x", device=torch.device("cpu"))
    for part in (0.25 * matrix, 0.75 * matrix):
        sketch.add(part, 2.0)
    told = sketch.spectrum(scale=0.5, energy=float(matrix.square().sum()))
    assert told.values[:6] == pytest.approx(wanted[:6], rel=0.05)
    # No last bits, which would change with the place of arrays in memory.
    assert all(value == float(np.float32(value)) for value in (*exact.values, *told.values))


def test_energies_are_weighted_for_the_focus(tmp_path: Path) -> None:
    table = DrawTable(tmp_path / "t", num_layers=1, num_entries=1)
    for number, (timestep, energy) in enumerate([(0.1, 1.0), (0.3, 3.0), (0.8, 100.0)]):
        look = Look(number=number, item=number, visit=0, draw=Draw(seed=0, timestep=timestep))
        table.add([look], torch.full((1, 1), energy), torch.zeros(1, 1), {}, num_passes=1)
    times = Timesteps(Drawn(), focus_named("uniform"))
    songs = songs_of(table, times, focus_named("texture"))
    assert float(energy_scores(table.energy, songs, np.ones((1, 3))).values[0]) == pytest.approx(2.0)


def test_one_song_alone_says_nothing_of_signal(tmp_path: Path) -> None:
    # What is left of three equal squares less three of them is rounding, and was taken for a value.
    source = Gradients(mean=0.3)
    table = table_of(tmp_path / "t", source.drawn(3, 2, 0), 2)
    songs = songs_of(table, TIMES, TIMES.asked)
    counts = np.diag([3.0, 3.0, 3.0])
    found = EntryScores(SHAPES, source.weights).signal(table, songs, counts)
    assert np.isnan(found.resamples).all()
    assert np.isfinite(found.values).all()


def test_few_pairs_are_no_ground_for_a_verdict(tmp_path: Path) -> None:
    source, other = Gradients(mean=0.3), Gradients(mean=3.0, seed=9)
    entries = EntryScores(SHAPES, source.weights)
    for num_songs, wanted in ((4, None), (12, True)):
        data = table_of(tmp_path / f"d{num_songs}", other.drawn(num_songs, 2, 7), 2)
        reference = table_of(tmp_path / f"r{num_songs}", source.drawn(num_songs, 2, 8), 2)
        assert contrast(entries, data, reference, TIMES, seed=0).is_specific is wanted


def test_leaving_out_a_song_is_held_against_the_same_kind_of_score(tmp_path: Path) -> None:
    source = Gradients(mean=0.1)
    drawn = source.drawn(10, 4, 0).reshape(10, 4, NUM_LAYERS, NUM_ENTRIES)
    drawn[6, :, 1] += 6.0
    table = table_of(tmp_path / "t", drawn.reshape(40, NUM_LAYERS, NUM_ENTRIES), 4)
    songs = songs_of(table, TIMES, TIMES.asked)
    shares = leverage(*EntryScores(SHAPES, source.weights).rest_without(table, songs))
    assert int(shares.argmax()) == 6
    assert shares[6] > 0.6


def test_what_is_cut_off_is_not_counted(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t", Gradients(mean=0.3).drawn(4, 2, 0), 2)
    assert table.num_passes == 8
    look = Look(number=8, item=0, visit=2, draw=Draw(seed=1, timestep=0.1))
    row = torch.zeros(1, NUM_LAYERS * NUM_ENTRIES)
    table.add([look], torch.ones(1, NUM_LAYERS), row, {0: torch.ones(NUM_LAYERS)}, num_passes=1)
    assert table.num_passes == 10
    table.cut(8)
    assert table.num_passes == 8


def test_sampled_entries_leave_something_open(tmp_path: Path) -> None:
    """Of equal gradients over all songs a bootstrap over songs alone would be sure to the last digit."""
    shapes = [dataclasses.replace(shape, num_weights=48_000) for shape in SHAPES]
    source = Gradients(mean=1.0)
    same = np.broadcast_to(source.mean, (20, NUM_LAYERS, NUM_ENTRIES))
    table = table_of(tmp_path / "t", same, 2)
    songs = songs_of(table, TIMES, TIMES.asked)
    counts = song_counts(10, seed=0)
    spreads = {}
    for name, of in (("all", SHAPES), ("sampled", shapes)):
        found = EntryScores(of, source.weights).wg(table, songs, counts)
        spreads[name] = float(np.log(found.resamples).std(axis=0).mean())
    each = [np.abs(m) * w for m, w in zip(source.mean, source.weights, strict=True)]
    expected = float(np.mean([values.std() / values.mean() / np.sqrt(NUM_ENTRIES) for values in each]))
    assert spreads["all"] < 1e-6
    assert spreads["sampled"] == pytest.approx(expected, rel=0.2)
