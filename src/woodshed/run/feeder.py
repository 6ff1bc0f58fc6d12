"""Threads that decode ahead of the device.

Each thread takes the next item and runs its encoder's `prepare` to the end. What is decoded waits in memory until its
batch is run. The threads stop when more than a set number of bytes waits, unless the engine is waiting for a piece:
then they go on, so a piece that is needed late can never block one that is needed now.

A thread that makes no progress on its item for a set time is left behind and replaced, and the item fails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from woodshed.audio.clip import file_digest
from woodshed.contracts import Encoder, Example, Item
from woodshed.errors import ItemError, StoreError
from woodshed.run.memory import is_out_of_memory, release_memory
from woodshed.run.patience import STALL_S, patience_s, refuse_many_stalled, stalled

JOIN_S = 3.0
MEMORY_ATTEMPTS = 3
MEMORY_PAUSE_S = 2.0
"""Longest time in which what is decoded may be used up, before an item that found no memory is tried again."""

Ticket = tuple[int, int]
"""Number of an item among those fed, and number of the piece."""


class Feeder:
    """Hands out the pieces of some items, in any order that roughly follows the items'.

    Use as a context manager: leaving it stops the threads.

    Args:
        num_threads: 0 decodes in the caller's thread, when a piece is asked for; then nobody watches the time.
        max_waiting_bytes: decoded audio that may wait; a soft bound (see the module's text).
        stall_s: time in which an item must give its next piece, besides the time to read its file.
    """

    def __init__(
        self,
        items: Sequence[Item],
        encoder: Encoder,
        *,
        num_threads: int,
        max_waiting_bytes: int = 256 * 2**20,
        stall_s: float = STALL_S,
    ) -> None:
        self._items, self._encoder = items, encoder
        self._max_bytes, self._stall_s = max_waiting_bytes, stall_s
        self._ready: dict[Ticket, Example] = {}
        self._digests: dict[int, str] = {}
        self._errors: dict[int, BaseException] = {}
        self._next_item = 0
        self._waiting_bytes = 0
        self._wanted = False
        self._stopped = False
        self._changed = threading.Condition()
        self._inline = num_threads == 0
        self._num_threads = min(num_threads, len(items))
        self._threads: list[threading.Thread] = []
        self._busy: dict[int, tuple[float, threading.Thread]] = {}
        """Items that are being decoded: time of the last progress, and the thread. Waiting for room does not count."""
        self._left_behind: set[threading.Thread] = set()

    def __enter__(self) -> Feeder:
        for _ in range(self._num_threads):
            self._start_thread()
        return self

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"decode-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
        # a thread inside a decoder that hangs cannot be stopped: it is a daemon and is left behind
        give_up_s = time.monotonic() + JOIN_S
        for thread in self._threads:
            if thread not in self._left_behind:
                thread.join(timeout=max(0.0, give_up_s - time.monotonic()))

    def take(self, item: int, piece: int, *, stopped: Callable[[], bool] = lambda: False) -> Example | None:
        """The piece, once it is decoded; None when `stopped()` becomes true first.

        Raises:
            ItemError: the item cannot be decoded. Every later call for it raises the same.
            WoodshedError: so many items hang that their disk must be at fault.
        """
        if self._inline:
            while self._next_item <= item and (item, piece) not in self._ready and item not in self._errors:
                self._decode(self._claim())
        with self._changed:
            self._wanted = True
            self._changed.notify_all()
            try:
                while (item, piece) not in self._ready:
                    if item in self._errors:
                        raise self._errors[item]
                    if stopped() or self._stopped:
                        return None
                    self._changed.wait(timeout=0.1)
                    self._leave_stalled_behind()
            finally:
                self._wanted = False
            example = self._ready.pop((item, piece))
            self._waiting_bytes -= _num_bytes(example)
            self._changed.notify_all()
            return example

    def digest(self, item: int) -> str:
        """Content digest of an item of which a piece has been taken."""
        with self._changed:
            return self._digests[item]

    def drop(self, item: int) -> None:
        """Forget an item that has failed: its pieces are not wanted any more."""
        with self._changed:
            self._errors.setdefault(item, ItemError("dropped", kind="dropped"))
            for ticket in [ticket for ticket in self._ready if ticket[0] == item]:
                self._waiting_bytes -= _num_bytes(self._ready.pop(ticket))
            self._changed.notify_all()

    def _claim(self) -> int:
        with self._changed:
            number = self._next_item
            self._next_item += 1
            return number

    def _work(self) -> None:
        me = threading.current_thread()
        while not self._stopped and me not in self._left_behind and (number := self._claim()) < len(self._items):
            with self._changed:
                self._busy[number] = (time.monotonic(), me)
            self._decode(number)
            with self._changed:
                self._busy.pop(number, None)

    def _leave_stalled_behind(self) -> None:
        """Fail the items that make no progress, and put new threads in the place of theirs. Called with the lock."""
        now_s = time.monotonic()
        for number, (since_s, thread) in list(self._busy.items()):
            item = self._items[number]
            if now_s - since_s > patience_s(item, self._stall_s):
                del self._busy[number]
                self._left_behind.add(thread)
                self._fail(number, stalled(item, now_s - since_s))
                self._start_thread()
        refuse_many_stalled(len(self._left_behind))

    def _decode(self, number: int) -> None:
        item = self._items[number]
        try:
            digest = file_digest(item.path)
            with self._changed:
                self._digests[number] = digest
            # The last piece waits until the decoder has come to its end: only then is it certain that the file holds
            # what it announced, and an item whose pieces are all taken is committed.
            held: Example | None = None
            for example in self._pieces(item):
                if held is not None and not self._put(number, held):
                    return
                held = example
            if held is not None:
                self._put(number, held)
        except (ItemError, StoreError, OSError, MemoryError) as error:
            self._fail(number, as_item_error(item, error))
        except BaseException as error:  # noqa: BLE001 - a defect in a thread must reach the caller, not vanish
            self._fail(number, error)

    def _pieces(self, item: Item) -> Iterator[Example]:
        """The pieces of an item. When memory runs out, what waits is used up first; then it goes on where it was."""
        given = num_attempts = 0
        while True:
            try:
                for example in islice(self._encoder.prepare(item), given, None):
                    given += 1
                    yield example
                return
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                num_attempts += 1
                if num_attempts == MEMORY_ATTEMPTS or self._inline:
                    raise MemoryError(str(error)) from error
            # Outside of `except`: a live exception would keep what the failed attempt had decoded.
            release_memory()
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting_bytes == 0, timeout=MEMORY_PAUSE_S)

    def _put(self, number: int, example: Example) -> bool:
        with self._changed:
            self._busy.pop(number, None)
            while not self._inline and self._waiting_bytes > self._max_bytes and not (self._wanted or self._stopped):
                self._changed.wait(timeout=1.0)
            if self._stopped or number in self._errors:
                return False
            self._ready[(number, example.index)] = example
            self._waiting_bytes += _num_bytes(example)
            self._busy[number] = (time.monotonic(), threading.current_thread())
            self._changed.notify_all()
            return True

    def _fail(self, number: int, error: BaseException) -> None:
        with self._changed:
            self._errors.setdefault(number, error)
            self._changed.notify_all()


def as_item_error(item: Item, error: BaseException) -> BaseException:
    """What a failure of one item's decoding is called."""
    if isinstance(error, ItemError):
        return error
    if isinstance(error, FileNotFoundError):
        return ItemError(f"{item.relpath} has vanished since it was planned", kind="missing", hint="run again")
    if isinstance(error, MemoryError):
        return ItemError(f"{item.relpath} needs more memory to decode than there is", kind="out_of_memory")
    return ItemError(f"{item.relpath} cannot be read: {error}", kind="unreadable")


def _num_bytes(example: Example) -> int:
    return sum(array.nbytes for array in example.arrays.values())
