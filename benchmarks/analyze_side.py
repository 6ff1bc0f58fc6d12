"""One side of `benchmarks/analyze.py` in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.analyze_reference import fixed_runs, passes_of_fixed_count, plain_energies, three_pass
from benchmarks.measuring import cpu_s, peak_mib
from woodshed.backends.tiny_dit import TinyDitBackend, woodshed_tiny_dit
from woodshed.contracts import Draw
from woodshed.errors import ItemError
from woodshed.importance.allocation import RankRequest
from woodshed.importance.analysis import Analysis
from woodshed.importance.draw_table import DrawTable
from woodshed.importance.focus import Timesteps
from woodshed.importance.focuses import focus_named
from woodshed.importance.gradients import GradientProbe
from woodshed.importance.layers import layer_shapes
from woodshed.importance.looks import LookPlan, looks, plan_looks
from woodshed.importance.measuring import Measurer, Measuring, entry_places
from woodshed.jobs.analyze_data import FolderExamples
from woodshed.jobs.analyze_plan import forecast

SIDES = {
    "three-pass": "three passes, fixed count",
    "woodshed": "woodshed",
}
CROP_S = 10.0
SAMPLED_SONGS, SAMPLED_FRAMES = 24, 512
MOST_LOOKS = {"three-pass": 336, "woodshed": 400}
"""Of a run; the three-pass procedure makes each three times."""
LONG_LOOKS = 1600
PASSES_TIMED = 12


def one_run(side: str, folder: Path, seed: int) -> dict[str, Any]:
    """Squared norms look by look, passes and CPU seconds so far, and where the procedure ends of its own accord."""
    torch.set_num_threads(1)
    model = woodshed_tiny_dit()
    return (_theirs if side == "three-pass" else _ours)(side, model, folder, seed)


def _theirs(side: str, model: TinyDitBackend, folder: Path, seed: int) -> dict[str, Any]:
    songs = whole_songs(folder, model)
    runs = max(fixed_runs(len(songs)), MOST_LOOKS[side] // len(songs))
    times: list[float] = []
    started = cpu_s()
    energies = three_pass(model, songs, runs, seed=seed, after_pass=lambda: times.append(cpu_s() - started))
    looks_made = np.arange(1, len(energies) + 1)
    return {
        "energies": energies,
        "weights": np.ones(len(energies)),
        "passes": 3 * looks_made,
        "cpu_s": times[-1] * looks_made / len(energies),
        "own_draws": passes_of_fixed_count(len(songs)) // 3,
    }


def _ours(side: str, model: TinyDitBackend, folder: Path, seed: int) -> dict[str, Any]:
    """The whole procedure, its checks of convergence included; then on, as if it had never converged."""
    with TemporaryDirectory() as work:
        analysis, plan, timesteps = analysed(model, folder, Path(work), seed, MOST_LOOKS[side])
        table = analysis.measurer.table
        looks_done, seconds, passes = [0], [0.0], [0]
        started = cpu_s()

        def note(_: int) -> None:
            looks_done.append(len(table))
            seconds.append(cpu_s() - started)
            passes.append(table.num_passes)

        analysis.run(progress=note, is_stopped=lambda: False)
        own = len(table)
        planned = islice(looks(plan, timesteps), table.num_looks, None)
        with analysis.measurer.probe.attached():
            while group := list(islice(planned, 16)):
                analysis.measurer.measure(group)
                table.num_looks += len(group)
                note(0)
        so_far = np.arange(1, len(table) + 1)
        return {
            "energies": table.energy.astype(np.float64),
            "weights": timesteps.weights(table.timesteps, timesteps.asked),
            "passes": np.interp(so_far, looks_done, passes),
            "cpu_s": np.interp(so_far, looks_done, seconds),
            "own_draws": own,
        }


def analysed(
    model: TinyDitBackend, folder: Path, work: Path, seed: int, num_looks: int
) -> tuple[Analysis, LookPlan, Timesteps]:
    """An analysis by density, without the passes for sensitivity: it is asked for the same as the other side."""
    examples = FolderExamples(folder, model, crop_s=CROP_S, seed=seed)
    timesteps = Timesteps(model, focus_named("balanced"))
    plan = planned(model, len(examples), num_looks, seed)
    measurer = measured(model, examples, work, timesteps, options_of(seed))
    request = RankRequest(
        rule="waterfill", score="density", base_rank=8, budget_params=None, rank_min=2, rank_max=32, rank_multiple=2,
        coverage=None, floors={}, alpha_ratio=2.0, seed=seed,
    )  # fmt: skip
    analysis = Analysis(measurer, None, plan=plan, timesteps=timesteps, request=request, patience=5,
                        max_relative_error=0.1)  # fmt: skip
    return analysis, plan, timesteps


def planned(model: TinyDitBackend, num_songs: int, num_looks: int, seed: int) -> LookPlan:
    return plan_looks(num_songs, runs=-(-num_looks // num_songs), batches=num_songs, antithetic=False,
                      condition_dropout=model.condition_dropout, seed=seed)  # fmt: skip


def options_of(seed: int, *, batch_size: int = 4) -> Measuring:
    return Measuring(batch_size=batch_size, mean_gradients="memory", sensitivity=False, sketch_rank=32, seed=seed)


def measured(model: TinyDitBackend, examples: Any, work: Path, timesteps: Timesteps, options: Measuring) -> Measurer:
    shapes = layer_shapes(model.layers())
    num_entries = sum(map(len, entry_places(shapes, seed=options.seed)))
    table = DrawTable(work, num_layers=len(shapes), num_entries=num_entries)
    return Measurer(model, examples, table, timesteps, options)


def as_long(side: str, folder: Path) -> dict[str, Any]:
    """A long run of a side's estimator: draws as that side makes them, measured by the probe, which is quicker; that
    it gives what autograd gives stands in the table of errors."""
    torch.set_num_threads(1)
    model = woodshed_tiny_dit()
    sizes = np.array([shape.num_weights for shape in layer_shapes(model.layers())])
    if side != "three-pass":
        with TemporaryDirectory() as work:
            examples = FolderExamples(folder, model, crop_s=CROP_S, seed=10_000)
            timesteps = Timesteps(model, focus_named("balanced"))
            plan = planned(model, len(examples), LONG_LOOKS, 10_000)
            measurer = measured(model, examples, Path(work), timesteps, options_of(10_000))
            with measurer.probe.attached():
                measurer.measure(list(looks(plan, timesteps)))
            table = measurer.table
            weights = timesteps.weights(table.timesteps, timesteps.asked)
            return {"energies": table.energy.astype(np.float64), "weights": weights, "sizes": sizes}
    songs, chance = whole_songs(folder, model), np.random.default_rng(10_000)
    batch = [songs[number % len(songs)] for number in range(LONG_LOOKS)]
    draws = [Draw(seed=int(chance.integers(2**62)), timestep=model.timestep(float(chance.random()))) for _ in batch]
    return {"energies": probed(model, batch, draws, 4), "weights": np.ones(LONG_LOOKS), "sizes": sizes}


def whole_songs(folder: Path, model: TinyDitBackend) -> list[Any]:
    """Of each song all that the model looks at."""
    examples = FolderExamples(folder, model, crop_s=0, seed=0)
    made = []
    for item in range(len(examples)):
        try:
            made.append(examples.example(item, 0))
        except ItemError:
            continue
    return made


def errors(folder: Path) -> dict[str, tuple[float, float]]:
    """Relative error of energies against plain autograd, one example at a time, over layers and examples."""
    torch.set_num_threads(1)
    model, found = woodshed_tiny_dit(), {}
    songs = whole_songs(folder, model)
    for name, frames in (("16 frames: the Gram trick in part", 16), ("512 frames: outer products", 512)):
        batch = [type(song)(song.latents[:frames], song.tag) for song in songs if len(song.latents) >= frames][:8]
        draws = [Draw(seed=place, timestep=model.timestep((place + 0.5) / 8)) for place in range(len(batch))]
        right = np.stack([plain_energies(model, song, draw) for song, draw in zip(batch, draws, strict=True)])
        for size in (1, 4):
            error = np.abs(probed(model, batch, draws, size) / right - 1)
            found[f"{name}, batches of {size}"] = (float(error.max()), float(np.median(error)))
    return found


def probed(model: TinyDitBackend, songs: Sequence[Any], draws: Sequence[Draw], size: int) -> np.ndarray:
    """Squared norms (example, layer) by our hooks, in batches."""
    probe, found = GradientProbe(model.layers()), []
    with probe.attached():
        for start in range(0, len(songs), size):
            batch, drawn = songs[start : start + size], draws[start : start + size]
            losses = partial(model.losses, batch, drawn)
            found.append(probe.measure(losses, num_examples=len(batch)).energy.double().numpy())
    return np.concatenate(found)


def overhead(folder: Path) -> dict[str, list[float]]:
    """CPU seconds of single passes over the same four examples, the kinds of pass taking turns."""
    torch.set_num_threads(1)
    model = woodshed_tiny_dit()
    songs = [song for song in whole_songs(folder, model) if len(song.latents) == SAMPLED_FRAMES][:4]
    draws = [Draw(seed=place, timestep=0.5) for place in range(len(songs))]
    shapes = layer_shapes(model.layers())
    places = [torch.from_numpy(found) for found in entry_places(shapes, seed=0)]
    sums = [torch.zeros(shape.d_out, shape.d_in) for shape in shapes]
    probes = {
        "energies alone": GradientProbe(model.layers()),
        "energies and sampled entries": GradientProbe(model.layers(), entries=places),
        "energies, entries and mean gradients (default)": GradientProbe(
            model.layers(),
            entries=places,
            whole=lambda index, gradient, weight: sums[index].add_(gradient, alpha=weight),
        ),
    }

    def plain() -> None:
        model.losses(songs, draws).sum().backward()
        for module in model.layers().values():
            module.weight.grad = None

    seconds: dict[str, list[float]] = {"plain forward and backward": []} | {name: [] for name in probes}
    for _ in range(PASSES_TIMED):
        seconds["plain forward and backward"].append(timed(plain))
        for name, probe in probes.items():
            with probe.attached():
                weights = [1.0] * len(songs)
                seconds[name].append(
                    timed(lambda probe=probe, weights=weights: probe.measure(
                        lambda: model.losses(songs, draws), num_examples=len(songs), weights=weights))
                )  # fmt: skip
    return {name: values[2:] for name, values in seconds.items()}


def timed(run: Callable[[], object]) -> float:
    started = cpu_s()
    run()
    return cpu_s() - started


def memory(side: str, folder: Path) -> dict[str, tuple[int, int]]:
    """Bytes beside the loaded model: announced, and the most that was taken while 64 looks were made."""
    found = {}
    for batch_size in (1,) if side == "three-pass" else (1, 4, 16):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            taken = _memory_of(side, folder, batch_size)
            os.write(write, f"{taken[0]} {taken[1]}".encode())
            os._exit(0)
        os.waitpid(child, 0)
        announced, taken = map(int, os.read(read, 100).split())
        found[f"batches of {batch_size}"] = (announced, taken)
    return found


def _memory_of(side: str, folder: Path, batch_size: int) -> tuple[int, int]:
    torch.set_num_threads(1)
    model = woodshed_tiny_dit()
    if side == "three-pass":
        songs = whole_songs(folder, model)
        with _peak() as taken:
            three_pass(model, songs, 1, seed=0)
        return 0, taken[0]
    timesteps = Timesteps(model, focus_named("balanced"))
    examples = FolderExamples(folder, model, crop_s=CROP_S, seed=0)
    plan = planned(model, len(examples), 64, 0)
    options = options_of(0, batch_size=batch_size)
    with TemporaryDirectory() as work, _peak() as taken:
        ahead = forecast(model, examples, timesteps, plan, options)
        measurer = measured(model, examples, Path(work), timesteps, options)
        with measurer.probe.attached():
            measurer.measure(list(islice(looks(plan, timesteps), 64)))
    return ahead.extra_bytes, taken[0]


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Bytes that were resident at most, beyond those at the start."""
    taken: list[int] = []
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mib()
    yield taken
    taken.append(round((peak_mib() - before) * 2**20))


def sampled_folder(folder: Path) -> Path:
    """Songs that the model made itself, as a folder of latents."""
    torch.set_num_threads(1)
    model = woodshed_tiny_dit()
    tags: Sequence[str] = model.network.config.tags
    folder.mkdir(parents=True)
    for number in range(SAMPLED_SONGS):
        tag = tags[number % len(tags)]
        latents = model.sample(tag, SAMPLED_FRAMES, seed=number, steps=12, guidance=1)
        np.save(folder / f"{number:03d}.npy", latents.numpy())
        said = f'{{"prompt": "{tag}", "padding_mask": {[1] * SAMPLED_FRAMES}}}'
        (folder / f"{number:03d}.json").write_text(said)
    return folder
