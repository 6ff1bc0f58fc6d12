"""Samples of woodshed-tiny-dit to hear, and how far each is from held-out music; prints Markdown tables.

A set of sounds is described by the mean and the standard deviation over time of each of 80 log-mel bands (the bands of
`woodshed.audio.distance`, floored 80 dB below the loudest bin of a full-scale sine). The distance of two sets is the
root of the mean over the bands of (difference of means)^2 + (difference of deviations)^2, in dB: the Wasserstein
distance of two normal distributions with independent bands, divided by the root of their number.

    python recipes/woodshed_tiny_dit/samples.py --work /somewhere/big --to results.json --sounds docs/models
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from grid import Look, looks

sys.path.insert(1, str(Path(__file__).parents[1] / "woodshed_tiny"))
from demo import write_opus

from woodshed.audio.distance import N_FFT, RANGE_DB, mel_power
from woodshed.backends.tiny_dit import TinyDitBackend
from woodshed.backends.tiny_dit_network import TinyDit, load_tiny_dit, load_woodshed_tiny_dit
from woodshed.encoders.tiny import TinyCodec, load_woodshed_tiny

NUM_FRAMES = 256
STEPS = 32
GUIDANCE = 2.0
PER_TAG = 4
NUM_REAL = 12
"""Real crops of each tag."""
KBITS = 40

Levels = np.ndarray
"""`[frame, 80]` in dB."""


@torch.no_grad()
def sound(codec: TinyCodec, latents: torch.Tensor) -> np.ndarray:
    """`[time]` at 24 kHz of `[64, frame]`."""
    return codec.decode(latents[None])[0, 0].numpy()


def levels(samples: np.ndarray) -> Levels:
    floor = (N_FFT / 4) ** 2 * 10 ** (-RANGE_DB / 10)
    return 10 * np.log10(np.maximum(mel_power(samples.astype(np.float64), rate_hz=24_000), floor))


def distance_db(a: Levels, b: Levels) -> float:
    square = (a.mean(0) - b.mean(0)) ** 2 + (a.std(0) - b.std(0)) ** 2
    return float(np.sqrt(square.mean()))


def real(codec: TinyCodec, work: Path, split: str) -> dict[str, list[Levels]]:
    """Levels of real crops by tag, through the codec as samples are."""
    found: dict[str, list[Levels]] = {}
    chosen: list[Look] = looks(work, split=split, per_tag=NUM_REAL)
    for look in chosen:
        if look.tag is not None:
            found.setdefault(look.tag, []).append(levels(sound(codec, look.latents.T)))
    return found


def sampled(
    network: TinyDit, codec: TinyCodec, *, guidance: float, per_tag: int, steps: int = STEPS
) -> dict[str, list[np.ndarray]]:
    """Sounds by tag, of seeds 0, 1, ..."""
    model = TinyDitBackend(network)
    return {
        tag: [sound(codec, model.sample(tag, NUM_FRAMES, seed, steps, guidance)) for seed in range(per_tag)]
        for tag in network.config.tags
    }


def table(sets: dict[str, list[Levels]], pools: dict[str, Levels]) -> dict[str, dict]:
    """For each tag: distance of each sound to its own tag's held-out pool, the mean to the others', how often own is
    the nearest."""
    found = {}
    for tag, own in sets.items():
        distances = [{other: distance_db(one, pool) for other, pool in pools.items()} for one in own]
        found[tag] = {
            "each": [row[tag] for row in distances],
            "own": float(np.mean([row[tag] for row in distances])),
            "others": float(np.mean([v for row in distances for other, v in row.items() if other != tag])),
            "nearest": float(np.mean([min(row, key=row.__getitem__) == tag for row in distances])),
            "together": distance_db(np.concatenate(own), pools[tag]),
        }
    return found


def measure(network: TinyDit, work: Path, sounds: Path | None) -> dict:
    codec = load_woodshed_tiny()
    held_out, train = real(codec, work, "held_out"), real(codec, work, "train")
    pools = {tag: np.concatenate(held_out[tag]) for tag in network.config.tags}
    torch.manual_seed(0)
    untrained = TinyDit(network.config).requires_grad_(False)
    made = sampled(network, codec, guidance=GUIDANCE, per_tag=PER_TAG)
    if sounds is not None:
        for tag, own in made.items():
            path = sounds / f"woodshed-tiny-dit-{tag.replace(' ', '-')}.opus"
            write_opus(own[0][None], path, rate_hz=24_000, kbits=KBITS)
    kinds = {
        f"samples, guidance {GUIDANCE:g}": made,
        "samples, guidance 1": sampled(network, codec, guidance=1.0, per_tag=PER_TAG),
        "untrained network": sampled(untrained, codec, guidance=1.0, per_tag=1),
    }
    tables = {"held-out crops themselves": table({tag: held_out[tag] for tag in pools}, pools)}
    tables["training crops of the tag"] = table({tag: train[tag] for tag in pools}, pools)
    for kind, own in kinds.items():
        tables[kind] = table({tag: [levels(one) for one in ones] for tag, ones in own.items()}, pools)
    return tables


def print_tables(tables: dict[str, dict]) -> None:
    tags = list(next(iter(tables.values())))
    print("| set | all: own tag | all: other tags | own tag nearest | " + " | ".join(tags) + " |")
    print("| --- |" + " --- |" * (3 + len(tags)))
    for kind, rows in tables.items():
        means = {key: np.mean([row[key] for row in rows.values()]) for key in ("own", "others", "nearest")}
        cells = [f"{rows[tag]['own']:.1f}" for tag in tags]
        print(f"| {kind} | {means['own']:.1f} | {means['others']:.1f} | {means['nearest']:.0%} | {' | '.join(cells)} |")
    print("\n| sample | " + " | ".join(tags) + " |\n| --- |" + " --- |" * len(tags))
    rows = tables[f"samples, guidance {GUIDANCE:g}"]
    for seed in range(PER_TAG):
        print(f"| seed {seed} | " + " | ".join(f"{rows[tag]['each'][seed]:.1f}" for tag in tags) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="a file of export.py; the shipped one, if left out")
    parser.add_argument("--to", type=Path, required=True, help="where to write the numbers, as JSON")
    parser.add_argument("--sounds", type=Path, help="folder for the first sample of each tag, as Opus")
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = load_tiny_dit(args.weights) if args.weights else load_woodshed_tiny_dit()
    tables = measure(network.requires_grad_(False), args.work, args.sounds)
    args.to.write_text(json.dumps(tables, indent=1))
    print_tables(tables)


if __name__ == "__main__":
    main()
