"""Worker processes: each holds the model once and computes units of the plan as it becomes free.

A worker is `python -m woodshed.run.worker`, joined by one pipe. It gets leases (a unit and the seats that are to be
done) and sends back what `run.unit` tells. When a worker dies, what its lease had finished stays, and the rest is
leased again; a unit that keeps killing workers is leased seat by seat, until the item that does it is found.
Batches keep the shape of the plan throughout, so the results are the same for any number of workers.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeAlias

from woodshed.contracts import Encoder
from woodshed.errors import WoodshedError
from woodshed.run.plan import Unit
from woodshed.run.unit import Broken, Event, Finished

MAX_DEATHS = 2
"""Workers that a unit may kill before its seats are leased one by one."""
STOP_S = 10.0
"""Time in which a worker must end when it is told to."""

MakeEncoder: TypeAlias = Callable[[int], Encoder]
"""Makes the encoder of the worker with this number. It travels to the worker by pickle: a function of a module, or a
`functools.partial` of one."""


class Lease(NamedTuple):
    """Work for one worker."""

    unit: Unit
    seats: tuple[int, ...]
    """Items of the unit that are to be done."""


@dataclass(frozen=True, slots=True)
class Split:
    """How often batches of a lease did not fit into memory."""

    count: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker died; what it told of these seats is void, and they are done again."""

    seats: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker is told at its start."""

    number: int
    compute_threads: int
    decode_threads: int
    max_waiting_bytes: int
    stall_s: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's model is loaded."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker is through with its lease."""

    num_splits: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A worker met an error that is not an item's."""

    error: BaseException


Told: TypeAlias = Event | Ready | Ended | Fault


class _Worker:
    """One process, and what it is doing."""

    def __init__(self, make_encoder: MakeEncoder, options: WorkerOptions) -> None:
        ours, theirs = socket.socketpair()
        # The path of this process: a worker must find the same modules, wherever the user's program has them from.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "woodshed.run.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.is_ready = False
        self.lease: Lease | None = None
        self.open_seats: set[int] = set()
        self.send((make_encoder, options))

    def send(self, message: object) -> bool:
        """Whether the worker was there to take it."""
        try:
            self.connection.send_bytes(pickle.dumps(message))
        except OSError:
            return False
        return True

    def take(self, lease: Lease) -> None:
        self.lease, self.open_seats = lease, set(lease.seats)
        self.send(lease)

    def receive(self) -> Told | None:
        """The next message; None when the process has died."""
        try:
            told: Told = pickle.loads(self.connection.recv_bytes())  # noqa: S301 - from a process of our own
        except (EOFError, OSError):
            return None
        return told

    def end(self, *, at_once: bool) -> None:
        self.connection.close()  # a worker that reads or writes finds its pipe closed, and ends
        if at_once:
            self.process.kill()
        try:
            self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _has_descriptor(stream: object) -> bool:
    try:
        return stream.fileno() >= 0  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError, ValueError):
        return False


class Pool:
    """Some worker processes; use it in a `with` statement. It may serve several runs, one after the other.

    Args:
        make_encoder: see `MakeEncoder`.
        num_workers: how many processes.
        compute_threads: threads that each computes with. The same number gives the same bytes.
        decode_threads: threads of each that decode ahead.
        max_waiting_bytes: decoded audio that may wait, in each.
        stall_s: as in `EngineOptions`.
    """

    def __init__(
        self,
        make_encoder: MakeEncoder,
        *,
        num_workers: int,
        compute_threads: int,
        decode_threads: int,
        max_waiting_bytes: int,
        stall_s: float,
    ) -> None:
        self._make_encoder, self._num_workers = make_encoder, num_workers
        self._compute_threads, self._decode_threads = compute_threads, decode_threads
        self._max_waiting_bytes, self._stall_s = max_waiting_bytes, stall_s
        self._workers: dict[int, _Worker] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.end(at_once=True)
        self._workers.clear()

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Of the workers that are alive."""
        return tuple(worker.process.pid for worker in self._workers.values())

    def events(
        self, leases: Sequence[Lease], stopped: Callable[[], bool]
    ) -> Iterator[tuple[Unit, Event | Lost | Split]]:
        """Work off all leases; what happens, as it happens. Ends early when `stopped()` becomes true.

        Raises:
            WoodshedError: a worker cannot load its model, or met an error that is not an item's.
        """
        waiting, deaths = deque(leases), dict.fromkeys((lease.unit.number for lease in leases), 0)
        while not stopped():
            self._hand_out(waiting)
            if not waiting and all(worker.lease is None for worker in self._workers.values()):
                return
            busy = [worker for worker in self._workers.values() if worker.lease is not None or not worker.is_ready]
            heard = wait([worker.connection for worker in busy], timeout=0.2)
            for number in [n for n, worker in self._workers.items() if worker.connection in heard]:
                yield from self._listen(number, waiting, deaths)
        self.close()  # what is under way is given up: a stopped run commits what is finished, at once

    def _listen(
        self, number: int, waiting: deque[Lease], deaths: dict[int, int]
    ) -> Iterator[tuple[Unit, Event | Lost | Split]]:
        """Take one message of a worker."""
        worker = self._workers[number]
        told = worker.receive()
        if told is None:
            yield from self._bury(number, waiting, deaths)
        elif isinstance(told, Ready):
            worker.is_ready = True
        elif isinstance(told, Fault):
            raise told.error
        else:
            assert worker.lease is not None, "only a lease has anything to tell"
            unit = worker.lease.unit
            if isinstance(told, Ended):
                worker.lease = None
                yield unit, Split(told.num_splits)
                return
            if isinstance(told, Finished | Broken):
                worker.open_seats.discard(told.seat)
            yield unit, told

    def _hand_out(self, waiting: deque[Lease]) -> None:
        # Not before a worker is ready: a lease may be larger than the pipe, and nobody would read it while models load.
        for worker in self._workers.values():
            if waiting and worker.is_ready and worker.lease is None:
                worker.take(waiting.popleft())
        num_loading = sum(not worker.is_ready for worker in self._workers.values())
        for number in range(self._num_workers):
            if number not in self._workers and num_loading < len(waiting):
                self._workers[number] = self._start(number)
                num_loading += 1

    def _start(self, number: int) -> _Worker:
        options = WorkerOptions(
            number=number,
            compute_threads=self._compute_threads,
            decode_threads=self._decode_threads,
            max_waiting_bytes=self._max_waiting_bytes,
            stall_s=self._stall_s,
        )
        return _Worker(self._make_encoder, options)

    def _bury(self, number: int, waiting: deque[Lease], deaths: dict[int, int]) -> Iterator[tuple[Unit, Broken | Lost]]:
        worker = self._workers.pop(number)
        worker.end(at_once=True)
        how = _how_it_died(worker.process.returncode)
        if not worker.is_ready:
            raise WoodshedError(
                f"a worker process died while it loaded the model ({how})",
                hint="see its last words above; if memory ran out, use fewer of them: --num-processes",
            )
        assert worker.lease is not None
        unit, seats = worker.lease.unit, tuple(sorted(worker.open_seats))
        if not seats:
            return
        deaths[unit.number] += 1
        yield unit, Lost(seats)
        if len(seats) == 1 and deaths[unit.number] > MAX_DEATHS:
            reason = f"the process that encoded it died ({how}), and again when it was tried alone"
            yield unit, Broken(seats[0], "", "crashed", reason)
        elif deaths[unit.number] >= MAX_DEATHS:
            waiting.extendleft(Lease(unit, (seat,)) for seat in reversed(seats))
        else:
            waiting.appendleft(Lease(unit, seats))


def _how_it_died(code: int | None) -> str:
    """In words.

    >>> _how_it_died(-9), _how_it_died(3)
    ('signal 9: killed, perhaps because memory ran out', 'exit code 3')
    """
    if code is not None and code < 0:
        return f"signal {-code}: {'killed, perhaps because memory ran out' if code == -9 else 'crashed'}"
    return f"exit code {code}"
