"""Reading an output folder: no lock, nothing changed, fine beside a running writer.

`open_reader(folder)` gives a view of what was committed at that moment. Arrays are memory-mapped: a crop of a long
record reads only the pages that it touches. A reader can be pickled (data loader workers) and outlives a fork.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from woodshed.contracts import Failure, Json
from woodshed.errors import StoreError
from woodshed.store import indextts, shards, sidestep, stable_audio
from woodshed.store.describe import ROW
from woodshed.store.entries import Entry, FullEntry, RecordEntry, Totals
from woodshed.store.folder import read_run
from woodshed.store.log import CommitLog

__all__ = ["Entry", "FullEntry", "Reader", "RecordEntry", "Totals", "open_reader"]


class Reader:
    """A view of a folder's committed items. Made by `open_reader`."""

    def __init__(self, folder: Path, run: Mapping[str, Json], log: CommitLog) -> None:
        self.folder = folder
        self.layout: str = run["layout"]
        """`stable_audio`, `shards`, `indextts` or `sidestep`."""
        self.fingerprint: Mapping[str, Json] = run["fingerprint"]
        self.spec: Mapping[str, Json] = run["spec"]
        """The `RecordSpec` as a dict: `kind`, `main`, `arrays` (name -> axes, dtype, bytes_per_frame), `rate_hz`,
        `hop_samples`, `audio_channels`, `codebook_sizes`."""
        self.log = log

    @property
    def totals(self) -> Totals:
        """Counts and sums over all items."""
        return self.log.totals

    def failures(self) -> Iterator[Failure]:
        """Every failed item with its reason."""
        return self.log.failures()

    def entry(self, item_id: str) -> FullEntry | None:
        """The latest committed word on an item, with its records."""
        entry = self.log.entry(item_id)
        if entry is None:
            return None
        return FullEntry(
            **{name: getattr(entry, name) for name in Entry.__dataclass_fields__}, records=self.log.records(item_id)
        )

    def entries(self) -> Iterator[FullEntry]:
        """All items, done, failed and skipped, in the order of the plan."""
        for item_id in self.log.in_order():
            entry = self.entry(item_id)
            assert entry is not None
            yield entry

    def arrays(self, record: RecordEntry) -> dict[str, np.ndarray]:
        """The arrays of a record, read-only and memory-mapped.

        Raises:
            StoreError: a file is missing or is not what was committed.
        """
        try:
            if self.layout == shards.Shards.name:
                return shards.read_arrays(self.folder, record)
            if self.layout == indextts.IndexTTS.name:
                return indextts.read_arrays(self.folder, record, self.spec["arrays"])
            if self.layout == sidestep.SideStep.name:
                return sidestep.read_arrays(self.folder, record, self.spec["arrays"], main=self.spec["main"])
            return stable_audio.read_arrays(self.folder, record, main=self.spec["main"])
        except (OSError, ValueError) as error:
            raise self._unreadable(record, error) from error

    def meta(self, record: RecordEntry) -> dict[str, Json]:
        """All that is stored about a record: the keys of `store.describe`, and every column of its source row.

        Raises:
            StoreError: a file is missing or is not what was committed.
        """
        try:
            if self.layout == shards.Shards.name:
                return shards.read_meta(self.folder, record)
            if self.layout == indextts.IndexTTS.name:
                return {**record.facts, **record.facts[ROW], "id": record.id}
            if self.layout == sidestep.SideStep.name:
                return sidestep.read_meta(self.folder, record)
            return stable_audio.read_meta(self.folder, record)
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(record, error) from error

    def _unreadable(self, record: RecordEntry, error: Exception) -> StoreError:
        return StoreError(
            f"record {record.index} of item {record.id!r} in {self.folder} cannot be read: {error}",
            hint="open the folder again if a run is writing to it; otherwise `woodshed verify` lists what is damaged",
        )


def open_reader(folder: str | Path) -> Reader:
    """Open an output folder for reading.

    Raises:
        StoreError: it is not an output folder of ours, or its log is damaged.
    """
    folder = Path(folder)
    run = read_run(folder)
    if run is None:
        raise StoreError(
            f"{folder} is not a Woodshed output folder: there is no {folder / '.woodshed' / 'run.json'}",
            hint="name the folder that `woodshed encode` wrote to",
        )
    log = CommitLog.read(folder, only_applied=True)
    # A revision changes both, the run last: what was read between two equal looks at it belongs together.
    while (now := read_run(folder)) != run and now is not None:
        run, log = now, CommitLog.read(folder, only_applied=True)
    return Reader(folder, run, log)
