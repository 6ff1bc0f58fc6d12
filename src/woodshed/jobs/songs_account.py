"""The account of a command that goes over sidecars: how many songs came out how."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from woodshed.contracts import BadRow, Failure

MAX_FAILURES_LISTED = 100


@dataclass(slots=True)
class SongTally:
    """Counts while songs go by: `num_songs == num_written + sum(skipped.values()) + num_failed`."""

    num_songs: int = 0
    num_written: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    """The first hundred."""

    @property
    def num_failed(self) -> int:
        return self.failed.total()

    def write(self) -> None:
        self.num_songs += 1
        self.num_written += 1

    def skip(self, why: str) -> None:
        self.num_songs += 1
        self.skipped[why] += 1

    def fail(self, row: BadRow) -> None:
        """Count a row that gives nothing: a duplicate is skipped, anything else has failed."""
        if row.skipped:
            self.skip(row.kind)
            return
        self.num_songs += 1
        self.failed[row.kind] += 1
        if len(self.failures) < MAX_FAILURES_LISTED:
            self.failures.append(Failure(id=row.id, kind=row.kind, reason=row.reason, line=row.line))
