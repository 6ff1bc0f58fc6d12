"""Bookkeeping of packed layouts: which records wait in staging, which shards are due, which staging files are spent."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from woodshed.store.log import STAGING, CommitLog
from woodshed.store.shards import Load, PackedLayout, read_blob


class Packing:
    """What stands between committed records and complete shards. Writes nothing itself."""

    def __init__(self, layout: PackedLayout, folder: Path, log: CommitLog) -> None:
        self.layout = layout
        self._folder, self._log = folder, log
        self._expected: dict[int, int] = {}
        self._waiting: defaultdict[int, dict[str, None]] = defaultdict(dict)
        self._uses: Counter[str] = Counter()
        for path in (folder / STAGING).glob("*.bin"):
            self._uses[f"{STAGING}/{path.name}"] = 0
        for item_id in log.unpacked_items():
            self._admit(item_id)

    def expect(self, num_items: Mapping[int, int]) -> None:
        """How many items of the plan belong to each shard."""
        self._expected.update(num_items)

    def hold(self, path: str) -> None:
        """A record of an item that is still being written lies in this staging file."""
        self._uses[path] += 1

    def let_go(self, paths: Iterable[str]) -> None:
        """Records in these staging files are given up."""
        self._uses.subtract(paths)

    def replace(self, item_id: str) -> None:
        """A new word on this item is about to be committed: what the old one left in staging is spent."""
        entry = self._log.entry(item_id)
        if entry is not None and entry.shard is not None and item_id in self._waiting[entry.shard]:
            del self._waiting[entry.shard][item_id]
            self.let_go(self._staged_paths(item_id))

    def settle(self, item_id: str) -> None:
        """A word on this item was committed; its records were held when they were written."""
        entry = self._log.entry(item_id)
        if entry is not None and entry.shard is not None:
            self._waiting[entry.shard][item_id] = None

    def _admit(self, item_id: str) -> None:
        self.settle(item_id)
        self._uses.update(self._staged_paths(item_id))

    def _staged_paths(self, item_id: str) -> list[str]:
        return [record.blob.path for record in self._log.records(item_id) if record.blob is not None]

    def due(self) -> list[int]:
        """Shards of which every item is settled and whose files are absent or behind the log."""
        due = []
        for shard, num_items in sorted(self._expected.items()):
            complete = self._log.shards.get(shard)
            behind = complete is None or complete.num_items != num_items or bool(self._waiting.get(shard))
            if behind and self._log.num_items_by_shard[shard] == num_items:
                due.append(shard)
        return due

    def blobs(self, shard: int) -> list[tuple[int, Load]]:
        """All records of a shard, by position: from staging, and from the shard's present files what is unchanged."""
        blobs: list[tuple[int, Load]] = []
        for item_id in self._waiting.get(shard, ()):
            for record in self._log.records(item_id):
                assert record.blob is not None, "a waiting record lies in staging"
                blobs.append((record.position, partial(read_blob, self._folder, record.blob)))
        complete = self._log.shards.get(shard)
        # Files that nobody needs any more may be damaged: they are not opened.
        if complete is not None and complete.files and self._log.is_shard_used(shard):
            for position, item_id, load in self.layout.unpack(self._folder, shard):
                entry = self._log.entry(item_id)
                if entry is not None and entry.shard == shard and self._log.is_in_shard(item_id):
                    blobs.append((position, load))
        return sorted(blobs, key=lambda blob: blob[0])

    def spend(self, shard: int) -> None:
        """The shard's files are about to be committed: its records need no staging any more."""
        for item_id in self._waiting.pop(shard, {}):
            self.let_go(self._staged_paths(item_id))

    def sweep(self, *, keep: str | None) -> list[str]:
        """Staging files that hold nothing of use; `keep` is the one being written."""
        spent = [path for path, uses in self._uses.items() if uses == 0 and path != keep]
        for path in spent:
            del self._uses[path]
        return spent
