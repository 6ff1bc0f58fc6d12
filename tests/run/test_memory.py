"""Running out of memory splits batches, keeps order and results, and is learned."""

from __future__ import annotations

import platform
import resource
from collections.abc import Sequence

import numpy as np
import pytest

from woodshed.errors import ItemError
from woodshed.run.memory import RAISE_AFTER, Ceiling, freed_memory_kept


class Device:
    """Computes squares, with room for so many at once."""

    def __init__(self, room: int, *, error: type[Exception] = MemoryError) -> None:
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [value * value for value in batch]


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_results_and_order_survive_splitting(room: int, error: type[Exception]) -> None:
    device, ceiling = Device(room, error=error), Ceiling()
    for start in range(5):
        batch = list(range(start, start + 8))
        assert ceiling.run(device, batch, cost=1.0) == [value * value for value in batch]
    assert ceiling.num_splits > 0


def test_the_ceiling_is_learned_and_tried_again_later() -> None:
    device, ceiling = Device(4), Ceiling()
    ceiling.run(device, list(range(8)), cost=1.0)
    assert ceiling.num_splits == 1
    for _ in range(3):
        ceiling.run(device, list(range(8)), cost=1.0)
    assert ceiling.num_splits == 1, "the limit is remembered"
    device.room = 8
    for _ in range(RAISE_AFTER):
        ceiling.run(device, list(range(8)), cost=1.0)
    assert device.sizes[-1] == 8, "and raised again"


def test_one_piece_that_does_not_fit_is_that_items_failure() -> None:
    with pytest.raises(ItemError, match=r"one piece of 3\.0 s does not fit into memory") as caught:
        Ceiling().run(Device(0), [1, 2], cost=3.0)
    assert caught.value.kind == "out_of_memory"


def test_other_errors_pass_through() -> None:
    def broken(batch: Sequence[int]) -> list[int]:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Ceiling().run(broken, [1, 2], cost=1.0)


def page_faults(num_blocks: int) -> int:
    """Of filling blocks of 64 MB one after the other, each freed before the next."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(num_blocks):
        np.empty(2**23).fill(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_memory_is_used_again_while_it_is_kept() -> None:
    with freed_memory_kept():
        page_faults(1)
        kept = page_faults(8)
    assert kept * 4 < page_faults(8)
