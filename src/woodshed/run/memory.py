"""How large a batch may be is learned: halved when memory runs out, raised again after a while.

Memory that is free again is kept while a run lasts.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from woodshed.errors import ItemError

Given = TypeVar("Given")
Made = TypeVar("Made")

RAISE_AFTER = 50
"""Batches without trouble after which the ceiling is doubled again: memory may have been short for a moment only."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of two options of glibc's `mallopt`."""
KEPT_BYTES = 2**30
"""Blocks up to this size come from memory that was used before, and this much of it may lie idle at the top."""
USUAL_BYTES = 32 * 2**20
"""Where glibc's own moving threshold ends up in a program that frees large blocks."""


class Ceiling:
    """Runs batches, in parts where they do not fit into memory.

    >>> def two_at_most(batch):
    ...     if len(batch) > 2:
    ...         raise MemoryError
    ...     return [10 * value for value in batch]
    >>> ceiling = Ceiling()
    >>> ceiling.run(two_at_most, [1, 2, 3, 4, 5], cost=1.0), ceiling.num_splits
    ([10, 20, 30, 40, 50], 1)
    """

    def __init__(self) -> None:
        self.cost: float | None = None
        """Largest cost that is tried at once; None as long as nothing has failed."""
        self.num_splits = 0
        self._calm = 0

    def run(
        self, encode: Callable[[Sequence[Given]], list[Made]], batch: Sequence[Given], *, cost: float
    ) -> list[Made]:
        """`encode(batch)`, split as memory demands.

        Args:
            cost: cost of one element, in the unit of the ceiling.

        Raises:
            ItemError: a single element does not fit (kind `out_of_memory`).
        """
        made: list[Made] = []
        while len(made) < len(batch):
            size = len(batch) - len(made)
            if self.cost is not None:
                size = min(size, max(1, int(self.cost / cost + 1e-9)))
            part = batch[len(made) : len(made) + size]
            result = self._attempt(encode, part)
            if result is not None:
                made += result
                self._grow()
                continue
            # Outside of `except`: a live exception would keep the failed batch's tensors in memory.
            release_memory()
            if size == 1:
                raise ItemError(f"one piece of {cost:.1f} s does not fit into memory", kind="out_of_memory",
                                hint="close other programs, or use --device cpu or --precision fp16")  # fmt: skip
            self.cost = cost * (size // 2)
            self.num_splits += 1
        return made

    def _attempt(self, encode: Callable[[Sequence[Given]], list[Made]], part: Sequence[Given]) -> list[Made] | None:
        try:
            return encode(part)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._calm = 0
            return None

    def _grow(self) -> None:
        self._calm += 1
        if self.cost is not None and self._calm >= RAISE_AFTER:
            self.cost, self._calm = 2 * self.cost, 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out: torch has several ways to say so.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    >>> is_out_of_memory(RuntimeError("shape mismatch"))
    False
    """
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return (type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") and "memory" in text) or any(
        phrase in text for phrase in ("out of memory", "can't allocate memory", "cudnn_status_alloc_failed")
    )


def release_memory() -> None:
    """Give cached device memory back, if torch holds any."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed for the next allocation, where the C library is glibc; elsewhere do nothing.

    By itself glibc hands each freed activation back to the kernel and asks for it again at the next layer; clearing
    its pages can take as long as the arithmetic. The peak is the same. Afterwards all that is free is given back.
    """
    library = _glibc()
    if library is None:
        yield
        return
    _set_thresholds(library, KEPT_BYTES)
    try:
        yield
    finally:
        _set_thresholds(library, USUAL_BYTES)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    names = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return library if all(hasattr(library, name) for name in names) else None


def _set_thresholds(library: ctypes.CDLL, num_bytes: int) -> None:
    if not library.mallopt(M_MMAP_THRESHOLD, num_bytes):  # old versions take no more than this
        library.mallopt(M_MMAP_THRESHOLD, USUAL_BYTES)
    library.mallopt(M_TRIM_THRESHOLD, num_bytes)
