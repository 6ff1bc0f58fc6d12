"""Calls that end in time, or are left behind: a C library or a dead mount may never give a thread back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from woodshed.contracts import Item
from woodshed.errors import ItemError, WoodshedError

STALL_S = 600.0
"""Time in which a file must get on, besides the time to read it."""
SLOWEST_BYTES_PER_S = 1e6
MAX_LEFT_BEHIND = 32
"""Threads that one run leaves behind; so many do not hang by chance."""

T = TypeVar("T")
R = TypeVar("R")


def patience_s(item: Item, stall_s: float) -> float:
    """How long a file may take without any sign of progress: large ones on slow disks are not stalled."""
    return stall_s + item.size_bytes / SLOWEST_BYTES_PER_S


def stalled(item: Item, waited_s: float) -> ItemError:
    """What an item has failed of whose decoder has not come back."""
    return ItemError(
        f"{item.relpath} made no progress for {waited_s:.0f} s: its decoder or its disk hangs",
        kind="too_slow",
        hint="check that the disk answers, or convert the file to FLAC or WAV; then --retry-failed",
    )


def refuse_many_stalled(count: int) -> None:
    """End the run when files hang one after the other.

    Raises:
        WoodshedError: more than `MAX_LEFT_BEHIND`.
    """
    if count > MAX_LEFT_BEHIND:
        raise WoodshedError(
            f"{count} source files made no progress until their time was up: the disk they lie on seems to hang",
            hint="check the disk or mount, then run the same command with --retry-failed: what is done is kept",
        )


class BoundedMap(Generic[T, R]):
    """Like `map` on some threads, but no call can hold up the whole. Threads are daemons: none delays the end.

    Args:
        limit_s: how long the call for a value may take.
    """

    def __init__(self, function: Callable[[T], R], *, num_threads: int, limit_s: Callable[[T], float]) -> None:
        self._function, self._num_threads, self._limit_s = function, num_threads, limit_s
        self.num_left_behind = 0

    def __call__(self, values: Sequence[T], *, stopped: Callable[[], bool] = lambda: False) -> list[R | None]:
        """Results in order; None for a value whose call did not end in time, or not before `stopped()` was true.

        Raises:
            Exception: whatever the function raised first.
        """
        batch = _Batch(self._function, values)
        for _ in range(min(self._num_threads, len(values))):
            batch.start_thread()
        try:
            while not (stopped() or batch.wait_for_end(0.1)):
                self.num_left_behind += batch.leave_behind(self._limit_s)
                refuse_many_stalled(self.num_left_behind)
        finally:
            batch.close()
        return batch.results


class _Batch(Generic[T, R]):
    """One call of a `BoundedMap`."""

    def __init__(self, function: Callable[[T], R], values: Sequence[T]) -> None:
        self._function, self._values = function, values
        self._shared: list[R | None] = [None] * len(values)
        self._next, self._left = 0, len(values)
        self._since_s: dict[int, float] = {}
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self.results: list[R | None] = []

    def start_thread(self) -> None:
        threading.Thread(target=self._work, name="probe", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._changed:
                number = self._next
                if number >= len(self._values):
                    return
                self._next += 1
                self._since_s[number] = time.monotonic()
            try:
                result = self._function(self._values[number])
            except BaseException as error:  # noqa: BLE001 - a defect in a thread must reach the caller, not vanish
                self._end(error)
                return
            with self._changed:
                if self._since_s.pop(number, None) is None:
                    return  # left behind: another thread has this one's place
                self._shared[number] = result
                self._left -= 1
                if self._left == 0:
                    self._changed.notify_all()

    def _end(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def wait_for_end(self, timeout_s: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._left == 0 or self._error is not None, timeout=timeout_s)
            if self._error is not None:
                raise self._error
            return self._left == 0

    def leave_behind(self, limit_s: Callable[[T], float]) -> int:
        """Give up on calls whose time is up; gives their number."""
        now_s = time.monotonic()
        with self._changed:
            late = [n for n, since_s in self._since_s.items() if now_s - since_s > limit_s(self._values[n])]
            for number in late:
                del self._since_s[number]
                self._left -= 1
        for _ in late:
            self.start_thread()
        return len(late)

    def close(self) -> None:
        """Take what there is; threads take no more."""
        with self._changed:
            self._next = len(self._values)
            self._since_s.clear()
            self.results = self._shared.copy()
