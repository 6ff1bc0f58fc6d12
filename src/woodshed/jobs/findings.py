"""What `woodshed verify` finds, and the checks that hold for every folder of ours: files, plans, strangers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from woodshed.chance import generator
from woodshed.contracts import Arrays, Failure, Item, Json
from woodshed.errors import StoreError
from woodshed.importance.kept_draws import DRAWS_SUFFIX
from woodshed.jobs.settings import VerifySettings
from woodshed.store.reader import FullEntry, Reader
from woodshed.store.sealed import check_sealed
from woodshed.store.verify import verify_files

MAX_LISTED = 100
ArrayProblems: TypeAlias = Callable[[Arrays, Reader, Mapping[str, Json]], Iterator[str]]
"""What is wrong with a record's arrays, given what the log says of it."""


class Findings:
    """Problems as they are found: all are counted, the first hundred are kept.

    `--repair` can mend those of two sorts: what an item's files have come to (`spoilt`, its shard's included), and
    files that are derived from the log (`derived`).
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: list[Failure] = []
        self.spoilt: dict[str, str] = {}
        """Ids of items whose files are not as committed -> the first reason."""
        self.spoilt_shards: set[int] = set()
        """Shards of which a file is not as committed: all their items are spoilt."""
        self.num_spoilt = 0
        self.num_derived = 0

    @property
    def num_mendable(self) -> int:
        """How many of the problems `--repair` mends."""
        return self.num_spoilt + self.num_derived

    def is_spoilt(self, entry: FullEntry) -> bool:
        """Whether some file that holds the item is damaged."""
        return entry.id in self.spoilt or any(record.shard in self.spoilt_shards for record in entry.records)

    def add(self, name: str, kind: str, reason: str) -> None:
        self.count += 1
        if len(self.first) < MAX_LISTED:
            self.first.append(Failure(id=name, kind=kind, reason=reason))

    def add_spoilt(self, item_id: str, kind: str, reason: str) -> None:
        self.num_spoilt += 1
        self.spoilt.setdefault(item_id, reason)
        self.add(item_id, kind, reason)

    def add_derived(self, name: str, kind: str, reason: str) -> None:
        self.num_derived += 1
        self.add(name, kind, reason)


def check_files(reader: Reader, findings: Findings) -> int:
    """Compare every committed file with its checksum, the plans with their seals, and look for `.npy` and safetensors
    files that no run has committed. Gives the number of committed files."""
    shard_of = {file.path: shard.shard for shard in reader.log.shards.values() for file in shard.files}
    for problem in verify_files(reader):
        reason = f"{problem.path}: {problem.detail}"
        if problem.item_id is not None:
            findings.add_spoilt(problem.item_id, problem.kind, reason)
        else:
            findings.num_spoilt += 1
            findings.spoilt_shards.add(shard_of[problem.path])
            findings.add(problem.path, problem.kind, reason)
    for plan in sorted((reader.folder / ".woodshed" / "plan").glob("*.jsonl")):
        try:
            check_sealed(plan)
        except StoreError as error:
            findings.add(plan.name, "checksum", error.message)
    own = {file.path for entry in reader.entries() for record in entry.records for file in record.files}
    own |= shard_of.keys()
    for path in _arrays_on_disk(reader.folder):
        if path not in own:
            findings.add(path, "foreign", f"{path} was not made by a committed run, but readers would find it")
    return len(own)


def check_records(reader: Reader, findings: Findings, problems: ArrayProblems) -> int:
    """Open every record's arrays but those of files that are known to be damaged. Gives the number of records."""
    num_records = 0
    for entry in reader.entries():
        num_records += len(entry.records)
        for record in () if findings.is_spoilt(entry) else entry.records:
            try:
                arrays = reader.arrays(record)
            except StoreError as error:
                findings.add_spoilt(entry.id, "unreadable", error.message)
                continue
            for reason in problems(arrays, reader, record.facts):
                findings.add_spoilt(entry.id, "array", f"record {record.index}: {reason}")
    return num_records


def _arrays_on_disk(folder: Path) -> Iterator[str]:
    """Files below the folder that a reader would take for data."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        # Hidden: our log, and what an analysis keeps while it runs. It keeps its draws beside its map.
        is_other = relative.parts[0].startswith(".") or path.name.endswith(DRAWS_SUFFIX)
        if not is_other and path.suffix in (".npy", ".safetensors"):
            yield relative.as_posix()


def chosen_again(reader: Reader, items: Mapping[str, Item], findings: Findings, settings: VerifySettings) -> list[Item]:
    """The items to be made again for comparison: drawn by the seed, among those whose files are sound."""
    names = sorted(items)
    drawn = (names[index] for index in generator(settings.seed, "verify").permutation(len(names)))
    entries = ((name, reader.entry(name)) for name in drawn)
    sound = (items[name] for name, entry in entries if entry is not None and not findings.is_spoilt(entry))
    return list(islice(sound, settings.reencode))


def scaled_difference(stored: np.ndarray, fresh: np.ndarray) -> float:
    """Largest difference in standard deviations of `stored`; for tokens, the share that differs.

    >>> scaled_difference(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    0.25
    """
    if stored.size == 0:
        return 0.0
    if stored.dtype.kind in "iu":
        return float((stored != fresh).mean())
    scale = float(stored.std(dtype=np.float64)) or 1.0
    return float(np.abs(stored.astype(np.float64) - fresh.astype(np.float64)).max()) / scale
