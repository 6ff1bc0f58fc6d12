"""The fixed looks at held-out music that every loss of woodshed-tiny-dit is measured with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from latents import load
from torch import Tensor

from woodshed.backends.noise import noise
from woodshed.backends.tiny_dit_network import TinyDit, TinyDitConfig
from woodshed.contracts import Draw

CROP_FRAMES = 256
"""5.12 s; shorter sounds are taken whole."""


@dataclass(frozen=True, slots=True)
class Look:
    """One held-out crop and what it is called."""

    tag: str | None
    file: str
    latents: Tensor
    """`[frame, 64]`"""


def timesteps(count: int, config: TinyDitConfig) -> list[float]:
    """The middles of `count` equally likely parts of the training distribution."""
    normal = NormalDist(config.time_mean, config.time_std)
    places = torch.tensor([normal.inv_cdf((k + 0.5) / count) for k in range(count)])
    return [float(t) for t in torch.sigmoid(places)]


def looks(work: Path, *, split: str = "held_out", per_tag: int) -> list[Look]:
    """`per_tag` crops of each tag, evenly spread over its files laid end to end; of short sounds each one once.

    Of training files, only the left channel as it is.
    """
    found = []
    pieces = [(piece, latents) for piece, latents in load(work, split) if piece.variant == "left"]
    for tag in sorted({piece.tag or "" for piece, _ in pieces}):
        own = [(piece, latents) for piece, latents in pieces if (piece.tag or "") == tag]
        crops = [
            (piece.file, latents[start : start + CROP_FRAMES])
            for piece, latents in own
            for start in range(0, max(1, piece.num_frames - CROP_FRAMES + 1), CROP_FRAMES)
        ]
        for index in np.unique(np.linspace(0, len(crops) - 1, per_tag).round().astype(int)):
            file, latents = crops[index]
            found.append(Look(tag or None, file, torch.from_numpy(np.array(latents, np.float32))))
    return found


@torch.no_grad()
def losses(
    network: TinyDit, looks: list[Look], times: list[float], *, tags: list[str | None] | None = None
) -> np.ndarray:
    """Mean squared error of the velocity, `[look, time]`. The noise of a look at a time is always the same.

    Args:
        tags: what each look is said to be; None: what it is.
    """
    said = [look.tag for look in looks] if tags is None else tags
    results = np.zeros((len(looks), len(times)))
    for row, (look, tag) in enumerate(zip(looks, said, strict=True)):
        clean = look.latents.expand(len(times), -1, -1)
        draws = [Draw(seed=1000 * row + column) for column in range(len(times))]
        noises = torch.stack([noise(d, look.latents.shape, device="cpu", dtype=torch.float32) for d in draws])
        t = torch.tensor(times)
        noisy = t[:, None, None] * noises + (1 - t)[:, None, None] * clean
        index = torch.full((len(times),), network.config.tag_index(tag))
        error = network(noisy, t, index) - (noises - clean)
        results[row] = error.square().mean((1, 2)).numpy()
    return results


def by_tag(looks: list[Look], losses: np.ndarray) -> dict[str, float]:
    """Mean over looks and times, for each tag; `all` is the mean of the tags, each counting alike."""
    tags = list(dict.fromkeys(look.tag for look in looks if look.tag is not None))
    means = {tag: float(losses[[look.tag == tag for look in looks]].mean()) for tag in tags}
    return means | {"all": float(np.mean(list(means.values())))}
