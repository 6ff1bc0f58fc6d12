"""Batches of windows of similar length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Sampler

from woodshed.chance import generator
from woodshed.errors import UsageError

Remainder = Literal["pad", "drop", "keep"]

_BUCKETS_PER_OCTAVE = 4
"""Lengths within 19 % of each other are shuffled among themselves: random batches, at little padding."""


def plan_batches(
    lengths: Sequence[int],
    *,
    batch_frames: int,
    max_items: int | None = None,
    shuffle: bool = True,
    key: tuple[int, ...] = (0,),
) -> list[list[int]]:
    """Group item numbers into batches: every item once, and at most `batch_frames` frames in a padded batch.

    Args:
        lengths: frames of each item.
        batch_frames: most frames of a batch when all its items are padded to the longest. A longer item comes alone.
        max_items: most items of a batch.
        shuffle: batch items of about equal length at random, in random order; else by length, shortest first.
        key: of the random order: seed and epoch.

    >>> plan_batches([3, 10, 4, 9], batch_frames=20, shuffle=False)
    [[0, 2], [3, 1]]
    """
    counts = np.asarray(lengths, dtype=np.int64)
    if shuffle:
        draws = generator(key[0], *key[1:], "buckets")
        buckets = np.floor(_BUCKETS_PER_OCTAVE * np.log2(np.maximum(counts, 1))).astype(np.int64)
        order = np.lexsort((draws.permutation(len(counts)), buckets))
    else:
        order = np.argsort(counts, kind="stable")
    batches: list[list[int]] = []
    longest = 0
    for item in order.tolist():
        longest = max(longest, int(counts[item]))
        last = batches[-1] if batches else []
        fits = longest * (len(last) + 1) <= batch_frames and (max_items is None or len(last) < max_items)
        if last and fits:
            last.append(item)
        else:
            batches.append([item])
            longest = int(counts[item])
    if not shuffle:
        return batches
    return [batches[number] for number in generator(key[0], *key[1:], "batches").permutation(len(batches)).tolist()]


def share_batches(batches: Sequence[list[int]], *, rank: int, world_size: int, remainder: Remainder) -> list[list[int]]:
    """One rank's batches. All ranks get equally many: batches are split in two until their number divides evenly.

    That changes no item's turn to be seen once. Only where every batch is down to one item and the number still does
    not divide, `remainder` decides: `pad` repeats the first batches, `drop` leaves the last ones out of this epoch,
    `keep` gives some ranks one batch more (which hangs trainers that wait for each other in every step).

    >>> [share_batches([[0, 1, 2]], rank=rank, world_size=2, remainder="pad") for rank in (0, 1)]
    [[[0, 1]], [[2]]]
    """
    even = [list(batch) for batch in batches]
    while even and len(even) % world_size:
        largest = max(range(len(even)), key=lambda number: (len(even[number]), -number))
        batch = even[largest]
        if len(batch) == 1:
            break
        half = -(-len(batch) // 2)
        even[largest : largest + 1] = [batch[:half], batch[half:]]
    missing = -len(even) % world_size
    if missing and remainder == "pad":
        even += [even[number % len(even)] for number in range(missing)]
    elif missing and remainder == "drop":
        del even[len(even) - len(even) % world_size :]
    return even[rank::world_size]


@runtime_checkable
class Measured(Protocol):
    """A data set that tells the lengths of its items: a `LatentDataset` or a `SpeechDataset`."""

    @property
    def epoch(self) -> int: ...

    def set_epoch(self, epoch: int) -> None: ...

    def frame_counts(self) -> Int64[np.ndarray, "item"]:
        """Frames (of speech: codes) that each item is handed out with."""
        ...


class LengthBucketSampler(Sampler[list[int]]):
    """A `batch_sampler` for a `DataLoader` over what `woodshed.open` gives; goes with `woodshed.datasets.collate`.

    An epoch is the same for any number of worker processes, and all ranks plan it alike without talking.

    Args:
        dataset: what to sample; `set_epoch` is passed on to it.
        batch_frames: most frames of a batch when all its items are padded to the longest. A longer item comes alone.
        max_items: most items of a batch.
        shuffle: other batches in another order each epoch.
        seed: of the order.
        rank: which share of the batches to give.
        world_size: number of shares: processes that train together.
        remainder: see `share_batches`.

    Raises:
        UsageError: arguments that cannot work.
        StoreError: a window's length cannot be read.
    """

    def __init__(
        self,
        dataset: Measured,
        *,
        batch_frames: int,
        max_items: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        remainder: Remainder = "pad",
    ) -> None:
        if batch_frames < 1 or (max_items is not None and max_items < 1):
            raise UsageError(
                f"batch_frames={batch_frames}, max_items={max_items}: no item fits into such a batch",
                hint="give at least 1; batch_frames is usually several times a window's length",
            )
        if not 0 <= rank < world_size:
            raise UsageError(f"rank={rank} of world_size={world_size}", hint="ranks count from 0 to world_size - 1")
        self._dataset = dataset
        self._lengths = dataset.frame_counts().tolist()
        self._batch_frames = batch_frames
        self._max_items = max_items
        self._shuffle = shuffle
        self._seed = seed
        self._share = (rank, world_size)
        self._remainder: Remainder = remainder
        self._epoch = dataset.epoch
        self._planned: tuple[int, list[list[int]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Plan other batches, and draw other crops and noise."""
        self._epoch = epoch
        self._dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[int]]:
        return iter([list(batch) for batch in self._batches()])

    def _batches(self) -> list[list[int]]:
        if self._planned is None or self._planned[0] != self._epoch:
            batches = plan_batches(
                self._lengths,
                batch_frames=self._batch_frames,
                max_items=self._max_items,
                shuffle=self._shuffle,
                key=(self._seed, self._epoch),
            )
            rank, world_size = self._share
            mine = share_batches(batches, rank=rank, world_size=world_size, remainder=self._remainder)
            self._planned = (self._epoch, mine)
        return self._planned[1]
