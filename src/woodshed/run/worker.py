"""A worker process of `run.pool`: `python -m woodshed.run.worker DESCRIPTOR`."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from woodshed.contracts import Encoder
from woodshed.errors import WoodshedError
from woodshed.run.feeder import Feeder
from woodshed.run.memory import Ceiling, freed_memory_kept
from woodshed.run.pool import Ended, Fault, Lease, MakeEncoder, Ready, Told, WorkerOptions
from woodshed.run.unit import UnitRun


def serve(connection: Connection) -> None:
    """Take leases until the pipe is closed."""
    make_encoder: MakeEncoder
    options: WorkerOptions
    make_encoder, options = pickle.loads(connection.recv_bytes())  # noqa: S301 - from the process that started this
    torch.set_num_threads(options.compute_threads)
    try:
        encoder = make_encoder(options.number)
        _tell(connection, Ready())
        ceiling = Ceiling()
        with freed_memory_kept():
            while True:
                _work(pickle.loads(connection.recv_bytes()), connection, encoder, ceiling, options)  # noqa: S301
    except WoodshedError as error:
        _tell(connection, Fault(error))
    except (EOFError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a defect must reach the process that commits, not look like a crash
        traceback.print_exc()
        told = WoodshedError(f"a worker process met {type(error).__name__}: {error}", hint="see the traceback above")
        _tell(connection, Fault(told))


def _work(lease: Lease, connection: Connection, encoder: Encoder, ceiling: Ceiling, options: WorkerOptions) -> None:
    unit, seats = lease
    splits = ceiling.num_splits
    with Feeder(
        [unit.items[index].item for index in seats],
        encoder,
        num_threads=options.decode_threads,
        max_waiting_bytes=options.max_waiting_bytes,
        stall_s=options.stall_s,
    ) as feeder:
        numbers = {seat: number for number, seat in enumerate(seats)}
        for event in UnitRun(unit, numbers, feeder, encoder, ceiling, lambda: False).events():
            _tell(connection, event)
    _tell(connection, Ended(ceiling.num_splits - splits))


def _tell(connection: Connection, told: Told) -> None:
    connection.send_bytes(pickle.dumps(told, protocol=pickle.HIGHEST_PROTOCOL))


def main() -> None:
    """Serve the process that started this one, until it has no more work or is gone."""
    # Ctrl-C reaches the whole group: the one that commits decides what is still finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        serve(Connection(int(sys.argv[1])))
    sys.stderr.flush()
    # Decoding threads that hang would keep the interpreter from its end.
    os._exit(0)


if __name__ == "__main__":
    main()
