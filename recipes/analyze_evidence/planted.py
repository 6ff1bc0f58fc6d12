"""Planted truth: does the contrast with a reference find the layers that were changed?

Three of the 66 layers of woodshed-tiny-dit are perturbed by Gaussian noise of a given relative Frobenius norm. Songs
are sampled from the perturbed model and, as a reference, from the model as it is; the latter looks at both. A layer's
contrast should then single out the three (area under the ROC curve, AUC: 0.5 is chance), and two sets of songs of the
unperturbed model should be called not specific.

    python recipes/analyze_evidence/planted.py --work /somewhere/big [--plot planted.png]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "src"))

from woodshed.backends.tiny_dit import TinyDitBackend, TinyDitExample, woodshed_tiny_dit  # noqa: E402
from woodshed.importance.contrast import SPECIFIC_P, SWAPS, Contrast, contrast  # noqa: E402
from woodshed.importance.draw_table import DrawTable  # noqa: E402
from woodshed.importance.focus import Timesteps  # noqa: E402
from woodshed.importance.focuses import focus_named  # noqa: E402
from woodshed.importance.layers import layer_shapes  # noqa: E402
from woodshed.importance.looks import looks, plan_looks  # noqa: E402
from woodshed.importance.measuring import ENTRIES, Measurer, Measuring, entry_places  # noqa: E402
from woodshed.importance.scores import EntryScores, energy_scores, songs_of  # noqa: E402

NUM_PLANTED = 3
FRAMES = 100
"""Of each song: two seconds."""
STEPS = 16
"""Of sampling, by the midpoint rule, without guidance."""
SIZES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
SIZES_WITHOUT_QK = (0.2, 0.5, 1.0, 2.0)
BATCH = 8
IN_PAIRS, SHUFFLED, APART = "same draws, swapped in pairs", "same draws, songs shuffled", "own draws, songs shuffled"
DESIGNS = (IN_PAIRS, SHUFFLED, APART)


@dataclass(frozen=True)
class Sampled:
    """Songs that a model made, in memory."""

    songs: Sequence[TinyDitExample]

    def __len__(self) -> int:
        return len(self.songs)

    def name(self, song: int) -> str:
        return str(song)

    def example(self, item: int, visit: int) -> TinyDitExample:  # noqa: ARG002
        return self.songs[item]


@torch.no_grad()
def sampled(model: TinyDitBackend, number: int, *, seed: int) -> Sampled:
    """Songs of all tags in turn; the same seed gives the same noise to begin with."""
    config = model.network.config
    chance = torch.Generator().manual_seed(seed)
    made: list[TinyDitExample] = []
    for start in range(0, number, 32):
        rows = torch.tensor([1 + song % len(config.tags) for song in range(start, min(start + 32, number))])
        x = torch.randn(len(rows), FRAMES, config.latent_dim, generator=chance)
        for step in range(STEPS, 0, -1):
            halfway = x - velocity(model, x, step / STEPS, rows) / (2 * STEPS)
            x = x - velocity(model, halfway, (step - 0.5) / STEPS, rows) / STEPS
        made += [TinyDitExample(song, int(row)) for song, row in zip(x, rows, strict=True)]
    return Sampled(made)


def velocity(model: TinyDitBackend, x: Tensor, share: float, rows: Tensor) -> Tensor:
    said: Tensor = model.network(x, torch.full((len(x),), share), rows)
    return said


def perturbed(size: float, *, seed: int, with_qk: bool = True) -> tuple[TinyDitBackend, list[int]]:
    """The model with three layers changed, and which: any, or none of the queries' and keys' projections."""
    model, chance = woodshed_tiny_dit(), torch.Generator().manual_seed(1000 + seed)
    layers = model.layers()
    order = torch.randperm(len(layers), generator=chance).tolist()
    names, modules = list(layers), list(layers.values())
    planted = [layer for layer in order if with_qk or not is_qk(names[layer])][:NUM_PLANTED]
    with torch.no_grad():
        for layer in planted:
            weight = modules[layer].weight
            assert isinstance(weight, Tensor)
            change = torch.randn(weight.shape, generator=chance)
            weight += size * weight.norm() * change / change.norm()
    return model, planted


def is_qk(name: str) -> bool:
    return name.endswith(("q_proj", "k_proj"))


@torch.no_grad()
def output_change(changed: TinyDitBackend, base: TinyDitBackend, songs: Sampled) -> float:
    """Root mean square change of the velocity, over that of the velocity: at the median timestep."""
    x = torch.stack([song.latents for song in songs.songs[:16]])
    rows = torch.tensor([song.tag for song in songs.songs[:16]])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    before, after = (velocity(model, 0.5 * noise + 0.5 * x, 0.5, rows) for model in (base, changed))
    return float((after - before).norm() / before.norm())


class Looking:
    """The model as it is, looking at sets of songs: the same draws for each set."""

    def __init__(self, num_songs: int, visits: int) -> None:
        self.model = woodshed_tiny_dit()
        self.shapes = layer_shapes(self.model.layers())
        self.timesteps = Timesteps(self.model, focus_named("balanced"))
        self.plan = plan_looks(num_songs, runs=visits, batches=num_songs, antithetic=False,
                               condition_dropout=self.model.condition_dropout, seed=0)  # fmt: skip
        places = entry_places(self.shapes, seed=0)
        weights = [module.weight.detach().reshape(-1)[at].abs().numpy()  # type: ignore[union-attr, operator]
                   for module, at in zip(self.model.layers().values(), places, strict=True)]  # fmt: skip
        self.entries, self.num_entries = EntryScores(self.shapes, weights), sum(map(len, places))

    def at(self, songs: Sampled, folder: Path, *, draws: int = 0) -> DrawTable:
        """What is measured of songs; the same `draws` are the same timesteps and noise for each song's number."""
        table = DrawTable(folder, num_layers=len(self.shapes), num_entries=self.num_entries)
        options = Measuring(batch_size=BATCH, mean_gradients="none", sensitivity=False, sketch_rank=8, seed=0)
        measurer = Measurer(self.model, songs, table, self.timesteps, options)
        with measurer.probe.attached():
            measurer.measure(list(looks(replace(self.plan, seed=draws), self.timesteps)))
        return table

    def contrasted(self, data: DrawTable, reference: DrawTable, apart: DrawTable) -> dict[str, Contrast]:
        """The contrast in three designs; the first is `woodshed analyze`'s.

        Args:
            reference: looked at by the draws of the data.
            apart: the same songs, looked at by draws of its own.
        """
        return {
            IN_PAIRS: contrast(self.entries, data, reference, self.timesteps, seed=0),
            SHUFFLED: self.shuffled(data, reference),
            APART: self.shuffled(data, apart),
        }

    def shuffled(self, data: DrawTable, reference: DrawTable) -> Contrast:
        """The same statistic, with labels that go to any song instead of being swapped in pairs."""
        ours, other = self.by_song(data), self.by_song(reference)
        true = np.concatenate([np.full(len(ours), 1 / len(ours)), np.full(len(other), -1 / len(other))])
        chance = np.random.default_rng(0)
        labels = np.stack([true, *(chance.permutation(true) for _ in range(SWAPS))])
        rows = np.concatenate([ours, other]) - np.concatenate([ours, other]).mean(axis=0)
        sizes = [min(ENTRIES, shape.num_weights) for shape in self.shapes]
        kernels = [part @ part.T for part in np.split(rows, np.cumsum(sizes)[:-1], axis=1)]
        squares = np.stack([((labels @ kernel) * labels).sum(axis=1) for kernel in kernels], axis=1)
        excess = squares - squares[1:].mean(axis=0)
        overall = np.square(np.maximum(excess / squares[1:].std(axis=0), 0.0)).mean(axis=1)
        songs = songs_of(reference, self.timesteps, self.timesteps.asked)
        energy = energy_scores(reference.energy, songs, np.ones((1, len(songs.items)))).values
        p_value = float((overall >= overall[0] - 1e-12).mean())
        return Contrast(layers=excess[0] * self.entries.scale / energy, p_value=p_value)

    def by_song(self, table: DrawTable) -> np.ndarray:
        """Mean sampled gradient of each song: (song, entry)."""
        songs = songs_of(table, self.timesteps, self.timesteps.asked)
        sums = [self.entries.song_sums(table, songs, layer) for layer in range(self.entries.num_layers)]
        return np.concatenate(sums, axis=1) / songs.totals[:, None]


def auc(values: Sequence[float], planted: Sequence[int], *, without: Sequence[int] = ()) -> float:
    """Chance that a planted layer is above one that is not, nor is in `without`."""
    those, others = np.array(values)[list(planted)], np.delete(np.array(values), list({*planted, *without}))
    return float(np.mean([(value > others).mean() + (value == others).mean() / 2 for value in those]))


def cases(work: Path, args: argparse.Namespace, *, with_qk: bool = True) -> Iterator[dict[str, Any]]:
    """One row for each size and seed. The reference is the same for all of them."""
    looking = Looking(args.songs, args.visits)
    names = [shape.name for shape in looking.shapes]
    original = sampled(looking.model, args.songs, seed=5000)
    with TemporaryDirectory() as folder:
        reference = looking.at(original, Path(folder) / "same")
        apart = looking.at(original, Path(folder) / "apart", draws=1)
        keep(work, "reference", looking.by_song(reference))
        for size in SIZES if with_qk else SIZES_WITHOUT_QK:
            for seed in range(args.seeds):
                model, planted = perturbed(size, seed=seed, with_qk=with_qk)
                with TemporaryDirectory() as other:
                    data = looking.at(sampled(model, args.songs, seed=9000 + seed), Path(other))
                    found = looking.contrasted(data, reference, apart)
                    keep(work, f"{size:g}-{seed}{'' if with_qk else '-without-qk'}", looking.by_song(data))
                    values = {name: each.layers for name, each in found.items()}
                yield {
                    "size": size,
                    "seed": seed,
                    "planted": [names[layer] for layer in planted],
                    "p_value": {name: each.p_value for name, each in found.items()},
                    "output_change": output_change(model, looking.model, original),
                    "auc": {name: auc(of_layer, planted) for name, of_layer in values.items()},
                    "auc_of_layer": [auc(values[IN_PAIRS], [layer], without=planted) for layer in planted],
                }


def nulls(args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """p values of pairs of sets that the unperturbed model made."""
    looking = Looking(args.null_songs, args.null_visits)
    for seed in range(args.null_seeds):
        sets = [sampled(looking.model, args.null_songs, seed=20_000 + 2 * seed + side) for side in range(2)]
        with TemporaryDirectory() as folder:
            data, reference = (looking.at(songs, Path(folder) / str(side)) for side, songs in enumerate(sets))
            apart = looking.at(sets[1], Path(folder) / "apart", draws=1)
            found = looking.contrasted(data, reference, apart)
        yield {name: each.p_value for name, each in found.items()}


def keep(work: Path, name: str, by_song: np.ndarray) -> None:
    """For looking at other statistics later."""
    (work / "songs").mkdir(parents=True, exist_ok=True)
    np.save(work / "songs" / f"{name}.npy", by_song.astype(np.float32))


def through_the_command(work: Path, size: float, seed: int, number: int) -> dict[str, Any]:
    """The same by `woodshed analyze --reference FOLDER`, over folders of latents."""
    base, (model, planted) = woodshed_tiny_dit(), perturbed(size, seed=seed)
    folders = {"reference": sampled(base, number, seed=5000), "data": sampled(model, number, seed=9000 + seed)}
    for name, songs in folders.items():
        for place, song in enumerate(songs.songs):
            path = work / "command" / name / f"{place:03d}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, song.latents.T.numpy())
            info = {"prompt": base.network.config.tags[song.tag - 1], "padding_mask": [1] * FRAMES}
            path.with_suffix(".json").write_text(json.dumps(info))
    output = work / "command" / "map.json"
    command = [
        sys.executable, "-m", "woodshed", "analyze", "--dataset-dir", str(work / "command/data"), "--reference",
        str(work / "command/reference"), "--backend", "woodshed-tiny-dit", "--output", str(output), "--yes",
        "--rank", "8", "--rank-min", "2", "--rank-max", "32", "--rank-multiple", "2", "--batch-size", str(BATCH),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=sys.stderr)
    made = json.loads(output.read_text())["woodshed"]
    values = [layer["profiles"]["balanced"]["contrast"] for layer in made["layers"]]
    return {
        "size": size, "seed": seed, "auc": auc(values, planted), "p_value": made["reference"]["p_value"],
        "is_specific": made["reference"]["is_specific"], "rank_correlation": made["reference"]["rank_correlation"],
        "ceiling": made["reference"]["ceiling"], "num_passes": made["convergence"]["num_passes"],
    }  # fmt: skip


def table(found: dict[str, Any]) -> Iterator[str]:
    """What came out, as Markdown."""
    for title, rows in (("any layers", found["cases"]), ("neither q nor k", found["cases-without-qk"])):
        yield f"| {title}: size | output moves by | {' | '.join(f'AUC, {name}' for name in DESIGNS)} |"
        yield "| --- |" + " --- |" * (1 + len(DESIGNS))
        for size, here in by_size(rows).items():
            moved = [row["output_change"] for row in here]
            cells = [spread([row["auc"][name] for row in here]) for name in DESIGNS]
            yield f"| {size:g} | {min(moved):.3f} to {max(moved):.3f} | {' | '.join(cells)} |"
        yield ""
    yield f"| called specific (p <= {SPECIFIC_P:g}) | {' | '.join(DESIGNS)} |"
    yield "| --- |" + " --- |" * len(DESIGNS)
    sets = {f"size {size:g}": [row["p_value"] for row in rows] for size, rows in by_size(found["cases"]).items()}
    for title, values in ({"unperturbed": found["nulls"]} | sets).items():
        called = [sum(p[name] <= SPECIFIC_P for p in values) for name in DESIGNS]
        halves = [statistics.median(p[name] for p in values) for name in DESIGNS]
        cells = [f"{n} of {len(values)} (median p {p:.3f})" for n, p in zip(called, halves, strict=True)]
        yield f"| {title} | {' | '.join(cells)} |"
    yield ""
    both = by_size([*found["cases"], *found["cases-without-qk"]])
    yield "| kind of layer, AUC of each by itself | " + " | ".join(f"size {size:g}" for size in both) + " |"
    yield "| --- |" + " --- |" * len(both)
    for title, is_kind in KINDS.items():
        cells = []
        for rows in both.values():
            planted = [pair for row in rows for pair in zip(row["planted"], row["auc_of_layer"], strict=True)]
            of_kind = [value for name, value in planted if is_kind(name)]
            cells.append(f"{statistics.mean(of_kind):.2f} (n {len(of_kind)})" if of_kind else "")
        yield f"| {title} | {' | '.join(cells)} |"


def by_size(rows: Sequence[dict[str, Any]]) -> dict[float, list[dict[str, Any]]]:
    return {size: [row for row in rows if row["size"] == size] for size in sorted({row["size"] for row in rows})}


KINDS = {
    "q, k of attention": is_qk,
    "v, o of self-attention": lambda name: "self_attn" in name and name.endswith(("v_proj", "o_proj")),
    "v, o of cross-attention": lambda name: "cross_attn" in name and name.endswith(("v_proj", "o_proj")),
    "feed-forward": lambda name: ".mlp." in name,
}


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def plot(found: dict[str, Any], path: Path) -> None:
    """AUC over the size of the perturbation: all cases and their mean."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axes.axhline(0.5, color="0.6", linewidth=1, linestyle=":")
    axes.axhline(0.95, color="0.6", linewidth=1, linestyle="--")
    for colour, title, rows in (
        ("C0", "three of all 66 layers", found["cases"]),
        ("C1", "three of the 42 that are neither q nor k", found["cases-without-qk"]),
    ):
        curve = {size: [row["auc"][IN_PAIRS] for row in here] for size, here in by_size(rows).items()}
        axes.plot(list(curve), [statistics.mean(values) for values in curve.values()], color=colour, label=title)
        for size, values in curve.items():
            axes.scatter([size] * len(values), values, s=12, color=colour, alpha=0.5)
    axes.set_xscale("log")
    axes.set_xticks(SIZES, [f"{size:g}" for size in SIZES])
    axes.minorticks_off()
    axes.set(xlabel="relative size of the perturbation", ylabel="AUC of the contrast", ylim=(0.1, 1.03))
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is measured; finished cases are kept")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--songs", type=int, default=48)
    parser.add_argument("--visits", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--null-songs", type=int, default=16)
    parser.add_argument("--null-visits", type=int, default=3)
    parser.add_argument("--null-seeds", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    steps = {
        "cases": lambda: list(shown(cases(args.work, args))),
        "cases-without-qk": lambda: list(shown(cases(args.work, args, with_qk=False))),
        "nulls": lambda: list(shown(nulls(args))),
        "command": lambda: through_the_command(args.work, 1.0, 0, args.songs),
    }
    for name, make in steps.items():
        place = args.work / f"{name}.json"
        if not place.exists():
            place.write_text(json.dumps(make(), indent=1))
        found[name] = json.loads(place.read_text())
    print(*table(found), "", f"By the command: {found['command']}", sep="\n")
    if args.plot:
        plot(found, args.plot)


def shown(rows: Iterator[Any]) -> Iterator[Any]:
    """The rows, each printed with the time that it took."""
    started = time.perf_counter()
    for row in rows:
        print(f"{time.perf_counter() - started:.0f} s: {row}", file=sys.stderr, flush=True)
        yield row


if __name__ == "__main__":
    main()
