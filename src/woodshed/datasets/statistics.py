"""Mean and spread of a folder's latents, in one pass and constant memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from woodshed.datasets.folder import LatentDataset
from woodshed.datasets.stored import StoredItem
from woodshed.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Over all valid frames."""

    mean: Float64[np.ndarray, "latent"]
    std: Float64[np.ndarray, "latent"]
    """Per channel; of draws from the moments where moments are stored."""
    scale: float
    """Standard deviation over all channels together: as `scale` of the pretransform in a stable-audio-tools model
    config, it brings latents to unit spread (its trainer divides by it)."""
    num_frames: int
    num_items: int


def statistics(dataset: LatentDataset, *, max_items: int | None = None) -> Statistics:
    """Measure whole windows, not crops; padding is left out. Draws nothing: moments enter as what draws would give.

    Args:
        max_items: measure at most this many windows, evenly spaced over the data set.

    Raises:
        UsageError: tokens have no mean; no valid frame to measure.
        StoreError: a window cannot be read.
    """
    if dataset.kind == "tokens":
        raise UsageError("tokens are names of codebook entries: they have no mean and spread")
    num_items = len(dataset) if max_items is None else min(max_items, len(dataset))
    total, mean, spread = 0, np.zeros(1), np.zeros(1)
    for number in range(num_items):
        item = dataset.stored_item(number * len(dataset) // num_items)
        count, item_mean, item_spread = _item_moments(item, sample=dataset.view.sample)
        if count == 0:
            continue
        # Chan's update: sums of squares about a running mean lose no digits when the mean is far from zero.
        total += count
        step = item_mean - mean
        mean = mean + step * (count / total)
        spread = spread + item_spread + step**2 * (count * (total - count) / total)
    if total == 0:
        raise UsageError(f"no valid frame in {num_items} windows", hint="look at their masks: `woodshed inspect`")
    variance = spread / total
    return Statistics(
        mean=mean,
        std=np.sqrt(variance),
        scale=float(np.sqrt(variance.mean() + mean.var())),
        num_frames=total,
        num_items=num_items,
    )


def _item_moments(
    item: StoredItem, *, sample: bool
) -> tuple[int, Float64[np.ndarray, "latent"], Float64[np.ndarray, "latent"]]:
    """Valid frames, their mean, and the sum of their squared distances from it, per channel."""
    valid = np.flatnonzero(item.span.mask)
    if not valid.size:
        return 0, np.zeros(item.rows), np.zeros(item.rows)
    stop = int(valid[-1]) + 1
    frames = item.read(0, stop).numpy().astype(np.float64)[:, valid]
    mean = frames.mean(axis=1)
    spread = ((frames - mean[:, None]) ** 2).sum(axis=1)
    if item.read_std is not None and sample:
        spread += (item.read_std(0, stop).numpy().astype(np.float64)[:, valid] ** 2).sum(axis=1)
    return valid.size, mean, spread
