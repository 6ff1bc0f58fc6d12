"""Held-out losses of woodshed-tiny-dit beside plain predictors, and what its tags are worth; prints Markdown tables.

python recipes/woodshed_tiny_dit/evaluate.py --work /somewhere/big --to results.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from grid import Look, by_tag, looks, losses, timesteps
from latents import load

from woodshed.backends.noise import noise
from woodshed.backends.tiny_dit_network import TAGS, TinyDit, TinyDitConfig, load_tiny_dit, load_woodshed_tiny_dit
from woodshed.contracts import Draw

PER_TAG, NUM_TIMES = 12, 8

Guess = Callable[[np.ndarray, float], np.ndarray]
"""Velocity from noisy frames `[frame, 64]` and a timestep."""


def constant(mean: np.ndarray) -> Guess:
    """The best that can be said without looking: noise is 0 in the mean, data is its training mean."""
    return lambda noisy, _: np.broadcast_to(-mean, noisy.shape)


def by_channel(mean: np.ndarray, variance: np.ndarray) -> Guess:
    """The best straight line through each channel by itself, of a training set's means and variances."""

    def guess(noisy: np.ndarray, t: float) -> np.ndarray:
        slope = (t - (1 - t) * variance) / (t * t + (1 - t) ** 2 * variance)
        return -mean + (noisy - (1 - t) * mean) * slope

    return guess


def by_frame(mean: np.ndarray, covariance: np.ndarray) -> Guess:
    """The best linear guess from all 64 channels of a frame, for data of this mean and covariance."""
    eye = np.eye(len(mean))

    def guess(noisy: np.ndarray, t: float) -> np.ndarray:
        joint = t * t * eye + (1 - t) ** 2 * covariance
        return -mean + (noisy - (1 - t) * mean) @ np.linalg.solve(joint, t * eye - (1 - t) * covariance)

    return guess


def losses_of(guess: Guess, looks: list[Look], times: list[float]) -> np.ndarray:
    """`[look, time]` of a plain predictor, with the noises of `grid.losses`."""
    results = np.zeros((len(looks), len(times)))
    for row, look in enumerate(looks):
        clean = look.latents.numpy().astype(np.float64)
        for column, t in enumerate(times):
            draw = Draw(seed=1000 * row + column)
            drawn = noise(draw, clean.shape, device="cpu", dtype=torch.float32).numpy().astype(np.float64)
            error = guess(t * drawn + (1 - t) * clean, t) - (drawn - clean)
            results[row, column] = np.mean(error * error)
    return results


def training_moments(work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[64]` and covariance of training frames, each tag counting alike."""
    own = [(piece.tag, latents) for piece, latents in load(work, "train") if piece.variant == "left"]
    frames = [np.concatenate([np.asarray(z, np.float64) for told, z in own if told == tag]) for tag in TAGS]
    mean = np.mean([f.mean(0) for f in frames], axis=0)
    second = np.mean([f.T @ f / len(f) for f in frames], axis=0)
    return mean, second - np.outer(mean, mean)


def untrained(config: TinyDitConfig) -> TinyDit:
    torch.manual_seed(0)
    return TinyDit(config).requires_grad_(False)


def measure(network: TinyDit, work: Path) -> dict:
    """All numbers of the card that are losses."""
    times = timesteps(NUM_TIMES, network.config)
    held_out = [look for look in looks(work, per_tag=PER_TAG) if look.tag is not None]
    seen = [look for look in looks(work, split="train", per_tag=PER_TAG) if look.tag is not None]
    mean, covariance = training_moments(work)
    grids = {
        "constant": losses_of(constant(mean), held_out, times),
        "untrained": losses(untrained(network.config), held_out, times),
        "line per channel": losses_of(by_channel(mean, np.diag(covariance)), held_out, times),
        "linear per frame": losses_of(by_frame(mean, covariance), held_out, times),
        "trained, no tag": losses(network, held_out, times, tags=[None] * len(held_out)),
        "trained": losses(network, held_out, times),
    }
    said = {tag: losses(network, held_out, times, tags=[tag] * len(held_out)) for tag in network.config.tags}
    return {
        "looks": {tag: sum(look.tag == tag for look in held_out) for tag in network.config.tags},
        "times": times,
        "held_out": {name: by_tag(held_out, grid) for name, grid in grids.items()},
        "by_time": {name: time_means(held_out, grid) for name, grid in grids.items()},
        "train": by_tag(seen, losses(network, seen, times)),
        "said": {tag: by_tag(held_out, grid) for tag, grid in said.items()},
        "tag_gain": tag_gains(held_out, grids["trained"], grids["trained, no tag"], said),
    }


def time_means(looks: list[Look], grid: np.ndarray) -> list[float]:
    """Mean of the tags' means at each timestep."""
    return [by_tag(looks, grid[:, column])["all"] for column in range(grid.shape[1])]


def tag_gains(looks: list[Look], right: np.ndarray, none: np.ndarray, said: dict[str, np.ndarray]) -> dict[str, dict]:
    """For each tag: losses with the right tag, none, and the mean over all wrong ones; how often right beats both."""
    found = {}
    for tag in said:
        rows = [look.tag == tag for look in looks]
        wrong = np.mean([grid[rows] for other, grid in said.items() if other != tag], axis=0).mean(1)
        own, null = right[rows].mean(1), none[rows].mean(1)
        found[tag] = {
            "right": float(own.mean()), "none": float(null.mean()), "wrong": float(wrong.mean()),
            "beats_none": float((own < null).mean()), "beats_wrong": float((own < wrong).mean()),
            "best": min(said, key=lambda other: said[other][rows].mean()),
        }  # fmt: skip
    return found


def print_tables(results: dict) -> None:
    tags = list(results["looks"])
    print("| predictor | " + " | ".join(["all", *tags]) + " |")
    print("| --- |" + " --- |" * (1 + len(tags)))
    for name, row in results["held_out"].items():
        print(f"| {name} | " + " | ".join(f"{row[tag]:.3f}" for tag in ["all", *tags]) + " |")
    print(
        "| trained, on training crops | " + " | ".join(f"{results['train'][tag]:.3f}" for tag in ["all", *tags]) + " |"
    )
    print("\n| t | " + " | ".join(f"{t:.2f}" for t in results["times"]) + " |")
    print("| --- |" + " --- |" * len(results["times"]))
    for name, row in results["by_time"].items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")
    print("\n| tag | right | none | wrong | right < none | right < wrong | best of all tags |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for tag, row in results["tag_gain"].items():
        print(
            f"| {tag} | {row['right']:.4f} | {row['none']:.4f} | {row['wrong']:.4f} | {row['beats_none']:.0%} | "
            f"{row['beats_wrong']:.0%} | {row['best']} |"
        )
    for kind in ("right", "none", "wrong"):
        print(f"mean {kind}: {np.mean([row[kind] for row in results['tag_gain'].values()]):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="a file of export.py; the shipped one, if left out")
    parser.add_argument("--to", type=Path, required=True, help="where to write the numbers, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = load_tiny_dit(args.weights) if args.weights else load_woodshed_tiny_dit()
    results = measure(network.requires_grad_(False), args.work)
    args.to.write_text(json.dumps(results, indent=1))
    print_tables(results)


if __name__ == "__main__":
    main()
