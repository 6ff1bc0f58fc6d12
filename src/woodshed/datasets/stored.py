"""What a data set needs of a folder, whatever its files look like. Nothing is loaded before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float32, Shaped
from torch import Tensor

from woodshed.contracts import Json
from woodshed.datasets.spans import Clock, Span

MASK_SUFFIX = "_mask"
"""Ends the name of the mask of an array of tokens: False where it is padding."""
TokenAxes = Literal["codebook frame", "frame codebook"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem:
    """One window: what is known about it, and its arrays, read a span of frames at a time."""

    name: str
    """Name within the folder that stays when the folder moves or grows: chance derives from it."""
    where: str
    """The file that holds it, for people and error messages."""
    meta: Mapping[str, Json]
    span: Span
    rows: int
    """Latent channels or codebooks."""
    read: Callable[[int, int], Shaped[Tensor, "row frame"]]
    """Main array, frames `[start, stop)`: float32, or int64 for tokens."""
    read_std: Callable[[int, int], Float32[Tensor, "row frame"]] | None = None
    """Standard deviation beside a stored mean; `None` where no moments are stored."""
    whole: Mapping[str, Callable[[], Shaped[Tensor, "..."]]] = field(default_factory=dict)
    """Arrays of tokens, not frames, that belong to all of the window, such as the condition of a song."""


@runtime_checkable
class StoredFolder(Protocol):
    """Windows in a fixed order."""

    kind: str
    """Key of the main array in an item: `latents`, `tokens` or `features`."""
    clock: Clock

    def __len__(self) -> int: ...

    def span(self, index: int) -> Span:
        """As `item(index).span`, as cheaply as the folder allows."""
        ...

    def item(self, index: int) -> StoredItem:
        """Raises `StoreError` naming the file that cannot be read."""
        ...

    def silence(self) -> Shaped[Tensor, "row frame"] | None:
        """Encoded silence to fill short windows up with, where the folder has it."""
        ...


def record_name(item_id: str, index: int) -> str:
    """Name of the `index`-th record of one of our items.

    >>> record_name("drums/loop.wav", 2)
    'drums/loop.wav#2'
    """
    return f"{item_id}#{index}"
