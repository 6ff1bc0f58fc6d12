"""What `stats.json` says of a data set: counted while its rows go by once, in little memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from woodshed.contracts import Json
from woodshed.speech.leaks import LeakAudit

MAX_NAMED = 50
"""Speakers, languages and characters that are named; all are counted."""
MAX_COUNTED = 100_000
"""Different unknown characters whose counts are kept."""
_PERCENTILES = (0, 5, 50, 95, 100)


@dataclass(slots=True)
class Statistics:
    """Sums over the rows of one manifest pair."""

    num_train: int = 0
    num_val: int = 0
    speakers: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    unknown_characters: Counter[str] = field(default_factory=Counter)
    num_adopted: int = 0
    """Rows that the original preprocessing made."""
    num_unknown: int = 0
    num_rows_unknown: int = 0
    leaks: LeakAudit = field(default_factory=LeakAudit)
    _text_lengths: array[int] = field(default_factory=lambda: array("i"))
    _code_lengths: array[int] = field(default_factory=lambda: array("i"))
    _seconds: array[float] = field(default_factory=lambda: array("d"))

    def add(self, row: Mapping[str, Json], known: Mapping[str, Json], *, audio_s: float, is_val: bool) -> None:
        """Take one row.

        Args:
            row: as the manifest has it.
            known: what the log knows of it: also `unknown`, `unknown_characters`, perhaps `recording` or `adopted`.
            audio_s: its measured length.
        """
        self.num_train += not is_val
        self.num_val += is_val
        self.num_adopted += bool(known.get("adopted"))
        self.speakers[row["speaker"]] += 1
        self.languages[row["language"]] += 1
        self.num_unknown += known["unknown"]
        self.num_rows_unknown += bool(known["unknown"])
        if len(self.unknown_characters) < MAX_COUNTED:
            self.unknown_characters.update(known["unknown_characters"])
        self._text_lengths.append(row["text_len"])
        self._code_lengths.append(row["code_len"])
        self._seconds.append(audio_s)
        self.leaks.add(known, is_val=is_val)

    @property
    def unknown_rate(self) -> float:
        """Share of the text ids that stand for characters which the tokenizer does not know."""
        return self.num_unknown / max(1, sum(self._text_lengths))

    def to_json(self) -> dict[str, Json]:
        """The part of `stats.json` that describes the rows."""
        named = {name: count for name, count in self.speakers.items() if name}
        return {
            "adopted": self.num_adopted,
            "hours": round(sum(self._seconds) / 3600, 6),
            "speakers": {
                "count": len(named),
                "rows_without": self.speakers.get("", 0),
                "most_rows": _most_common(Counter(named)),
            },
            "languages": {name or "(not given)": count for name, count in _most_common(self.languages).items()},
            "lengths": {
                "seconds": _percentiles(self._seconds, digits=3),
                "text_len": _percentiles(self._text_lengths),
                "code_len": _percentiles(self._code_lengths),
            },
            "unknown_tokens": {
                "count": self.num_unknown,
                "rate": round(self.unknown_rate, 6),
                "rows": self.num_rows_unknown,
                "characters": _most_common(self.unknown_characters),
            },
            "leaks": {
                leak.kind: {"on_both_sides": leak.num_both, "val_rows": leak.num_val_rows, "examples": leak.examples}
                for leak in self.leaks.leaks()
            },
        }


def _most_common(counts: Counter[str]) -> dict[str, int]:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return dict(ordered[:MAX_NAMED])


def _percentiles(values: array[int] | array[float], *, digits: int = 0) -> dict[str, float | int] | None:
    """Smallest, median, largest and two between; None of nothing."""
    if not values:
        return None
    found = np.percentile(np.frombuffer(values, dtype=values.typecode), _PERCENTILES, method="nearest").tolist()
    names = ("min", "p5", "median", "p95", "max")
    return {name: round(value, digits) if digits else int(value) for name, value in zip(names, found, strict=True)}
