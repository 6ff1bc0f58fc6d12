"""`woodshed analyze` beside the three-pass, fixed-count procedure: what each needs until the layers' order stands.

    python -m benchmarks.analyze [--dataset-dir FOLDER]

Both sides score the same layers of woodshed-tiny-dit on the same songs by the same score, squared gradients per weight.
A side's order stands from the draw on where Kendall's tau with the order of a long run of the same side reaches 0.95
and does not fall below again. Each side runs in a process of its own with one compute thread, several times with other
seeds. Without a folder the songs are samples of the model itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import numpy as np  # noqa: E402

from benchmarks.analyze_side import (  # noqa: E402
    SIDES,
    as_long,
    errors,
    memory,
    one_run,
    overhead,
    sampled_folder,
)
from benchmarks.measuring import describe_machine, save_table  # noqa: E402

TAU = 0.95
COMPARED = ("three-pass", "woodshed")
SEEDS = 5
PARTS = ("order", "errors", "memory", "overhead")


def tau_b(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's rank correlation; ties count for neither side.

    >>> [round(tau_b(np.array([1.0, 2.0, 3.0]), np.array(other)), 3) for other in ([1.0, 3.0, 2.0], [1.0, 1.0, 2.0])]
    [0.333, 0.816]
    """
    upper = np.triu_indices(len(a), 1)
    first, second = (np.sign(np.subtract.outer(values, values))[upper] for values in (a, b))
    tied = np.sqrt(float(np.square(first).sum()) * float(np.square(second).sum()))
    return float(first @ second) / float(tied) if tied else 0.0


def stands_from(taus: Sequence[float]) -> int | None:
    """First place from which all are at least `TAU`; None if the last is not.

    >>> stands_from([0.5, 0.96, 0.9, 0.95, 0.97]), stands_from([0.99, 0.2])
    (3, None)
    """
    below = [place for place, tau in enumerate(taus) if tau < TAU]
    first = below[-1] + 1 if below else 0
    return first if first < len(taus) else None


def prefix_taus(energies: np.ndarray, weights: np.ndarray, long: np.ndarray, sizes: np.ndarray) -> list[float]:
    """Tau of the scores after 1, 2, ... draws.

    Args:
        energies: squared norms (draw, layer).
        weights: of the draws.
        long: scores of the long run.
        sizes: weights of each layer.
    """
    scores = np.cumsum(energies * weights[:, None], axis=0) / np.cumsum(weights)[:, None] / sizes
    return [tau_b(row, long) for row in scores]


def order(folder: Path, work: Path, seeds: int) -> Iterator[str]:
    for side in COMPARED:
        child("long", side, folder, work / f"{side}-long.npz")
        for seed in range(seeds):
            child("run", side, folder, work / f"{side}-{seed}.npz", "--seed", str(seed))
    yield from order_rows(work, seeds)


def order_rows(work: Path, seeds: int) -> Iterator[str]:
    """From the runs that lie in a folder."""
    yield "| side | tau reaches 0.95, looks at each layer | stands, looks | stands, backward passes | stands, CPU s |"
    yield "| --- | --- | --- | --- | --- |"
    found = {side: [standing(work, side, seed) for seed in range(seeds)] for side in COMPARED}
    for side, runs in found.items():
        cells = [shown([run[name] for run in runs]) for name in ("first", "looks", "passes", "cpu_s")]
        yield f"| {SIDES[side]} | {' | '.join(cells)} |"
    yield ""
    yield "| side | of its own accord it makes: passes | looks | CPU s | and then has tau: median, range |"
    yield "| --- | --- | --- | --- | --- |"
    for side, runs in found.items():
        cells = [shown([run[name] for run in runs]) for name in ("own_passes", "own_looks", "own_cpu_s")]
        taus = [run["own_tau"] for run in runs]
        cells.append(f"{statistics.median(taus):.3f}, {min(taus):.3f} to {max(taus):.3f}")
        yield f"| {SIDES[side]} | {' | '.join(cells)} |"
    medians = {
        side: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for side, runs in found.items()
    }
    theirs, ours = medians.values()
    yield ""
    yield (
        f"Until the order stands, medians: {theirs['passes'] / ours['passes']:.1f} times fewer backward passes, "
        f"{3 * theirs['looks'] / ours['looks']:.1f} times fewer if each example of a batch counts as one, "
        f"{theirs['cpu_s'] / ours['cpu_s']:.1f} times less CPU time. Until tau first reaches 0.95: "
        f"{3 * theirs['first'] / ours['first']:.1f} times fewer examples"
    )


def standing(work: Path, side: str, seed: int) -> dict[str, float]:
    """When a run's order stands, and what it is worth where the procedure ends of its own accord."""
    long, run = np.load(work / f"{side}-long.npz"), np.load(work / f"{side}-{seed}.npz")
    target = (long["energies"] * long["weights"][:, None]).sum(0) / long["weights"].sum() / long["sizes"]
    taus = prefix_taus(run["energies"], run["weights"], target, long["sizes"])
    reached = [place for place, tau in enumerate(taus) if tau >= TAU]
    stands, own = stands_from(taus), int(run["own_draws"]) - 1
    return {
        "first": reached[0] + 1 if reached else np.inf,
        "looks": np.inf if stands is None else stands + 1,
        "passes": np.inf if stands is None else np.ceil(run["passes"][stands]),
        "cpu_s": np.inf if stands is None else run["cpu_s"][stands],
        "own_passes": np.ceil(run["passes"][own]),
        "own_looks": own + 1,
        "own_cpu_s": run["cpu_s"][own],
        "own_tau": taus[own],
    }


def shown(values: Sequence[float]) -> str:
    """Median and all."""
    each = ["never" if np.isinf(value) else f"{value:.0f}" for value in values]
    return f"{statistics.median(values):.0f} ({', '.join(each)})"


def child(task: str, side: str, folder: Path, place: Path, *more: str) -> None:
    """A fresh process that writes what it found to a file."""
    words = ["--one", task, side, str(folder), str(place), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "benchmarks.analyze", *words], env=environment, check=True, cwd=ROOT)


def one(task: str, side: str, folder: Path, place: Path, seed: int) -> None:
    if task == "long":
        np.savez(place, **as_long(side, folder))
    elif task == "run":
        np.savez(place, **one_run(side, folder, seed))
    else:
        found: Any = (
            memory(side, folder) if task == "memory" else {"errors": errors, "overhead": overhead}[task](folder)
        )
        place.write_text(json.dumps(found))


def told(task: str, side: str, folder: Path, work: Path) -> Any:
    place = work / f"{task}-{side}.json"
    child(task, side, folder, place)
    return json.loads(place.read_text())


def error_rows(folder: Path, work: Path) -> Iterator[str]:
    yield "| energies of single examples, relative error | largest | median |"
    yield "| --- | --- | --- |"
    for name, (largest, middle) in told("errors", "woodshed", folder, work).items():
        yield f"| {name} | {largest:.1e} | {middle:.1e} |"


def memory_rows(folder: Path, work: Path) -> Iterator[str]:
    yield "| side | announced beside the model | measured | announced over measured |"
    yield "| --- | --- | --- | --- |"
    for side, title in SIDES.items():
        for case, (announced, measured) in told("memory", side, folder, work).items():
            ahead = f"{announced / 2**20:.0f} MiB" if announced else "nothing"
            ratio = f"{announced / measured:.2f}" if announced else ""
            yield f"| {title}, {case} | {ahead} | {measured / 2**20:.0f} MiB | {ratio} |"


def overhead_rows(folder: Path, work: Path) -> Iterator[str]:
    yield "| one pass over 4 examples | CPU s (median, range) | over plain |"
    yield "| --- | --- | --- |"
    found = told("overhead", "woodshed", folder, work)
    base = statistics.median(next(iter(found.values())))
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        yield f"| {name} | {middle:.3f} ({min(seconds):.3f} to {max(seconds):.3f}) | {middle / base:.2f} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, help="latents of woodshed-tiny in whole windows")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--save", type=Path, help="write the table into this file as well")
    parser.add_argument("--note", help="a remark on the machine")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=4, metavar=("TASK", "SIDE", "FOLDER", "PLACE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        task, side, folder, place = arguments.one
        one(task, side, Path(folder), Path(place), arguments.seed)
        return
    lines = [describe_machine("cpu"), *([arguments.note] if arguments.note else [])]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = arguments.dataset_dir.resolve() if arguments.dataset_dir else sampled_folder(work / "songs")
        lines.append(f"{len(list(data.rglob('*.npy')))} songs")
        parts = {
            "order": lambda: order(data, work, arguments.seeds),
            "errors": lambda: error_rows(data, work),
            "memory": lambda: memory_rows(data, work),
            "overhead": lambda: overhead_rows(data, work),
        }
        for name in arguments.only:
            lines += ["", *parts[name]()]
            print(*lines, sep="\n", flush=True)
    if arguments.save:
        save_table(arguments.save, "analyze.py", argv or sys.argv[1:], lines)


if __name__ == "__main__":
    main()
