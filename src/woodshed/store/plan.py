"""The plan log: units of work, written down once and read by every resume."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from woodshed.contracts import Json
from woodshed.store.disk import Disk
from woodshed.store.sealed import body_lines, check_sealed, seal_end, to_line

PLAN = ".woodshed/plan"


class Plan:
    """Units in the order of planning. A batch of new units is one immutable file; nothing is ever changed.

    >>> def costs(plan: Plan) -> list[float]:
    ...     return [unit["cost_s"] for unit in plan]
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk = folder, disk
        self._bodies: dict[Path, int] = {}
        footers = []
        for path in sorted((folder / PLAN).glob("*.jsonl")):
            self._bodies[path], footer = check_sealed(path)
            footers.append(footer)
        self._num_units: int = sum(footer["num_units"] for footer in footers)
        self.next_position: int = max((footer["next_position"] for footer in footers), default=0)
        """First position that no unit has taken."""

    def append(self, units: Iterable[Json], *, next_position: int) -> None:
        """Add units, durably and all or none; `next_position` is the first position that is still free after them.

        Raises:
            StoreError: the disk refuses.
        """
        digest, num_units, body_bytes = xxhash.xxh3_64(), 0, 0

        def chunks() -> Iterator[bytes]:
            nonlocal num_units, body_bytes
            for unit in units:
                line = to_line(unit) + b"\n"
                digest.update(line)
                num_units += 1
                body_bytes += len(line)
                yield line
            yield seal_end({"num_units": num_units, "next_position": next_position}, digest)

        path = self._folder / PLAN / f"{len(self._bodies):08d}.jsonl"
        temporary = self._folder / ".woodshed" / "tmp" / f"plan-{path.name}"
        self._disk.write(temporary, chunks())
        self._disk.sync([temporary])
        self._disk.rename(temporary, path)
        self._disk.sync([path.parent])
        self._bodies[path] = body_bytes
        self._num_units += num_units
        self.next_position = max(self.next_position, next_position)

    def __len__(self) -> int:
        return self._num_units

    def __iter__(self) -> Iterator[Json]:
        """Units one by one."""
        return map(json.loads, self.lines())

    def lines(self) -> Iterator[bytes]:
        """Units one by one, as they were written down: for whoever needs a part of each."""
        for path, num_bytes in self._bodies.items():
            yield from body_lines(path, num_bytes)
