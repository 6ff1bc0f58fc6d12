"""What training and validation share: speakers, recordings and texts on both sides."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from woodshed.contracts import Json
from woodshed.speech.split import GROUP_KEYS

NUM_EXAMPLES = 3
LONGEST_EXAMPLE = 60
MAX_LABELS = 10_000
"""Groups of validation, of each kind, whose names are kept for examples."""
_PLURALS = {"speaker": "speakers", "recording": "recordings", "text": "texts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """How far one kind of group stands on both sides."""

    kind: str
    """`speaker`, `recording` or `text`."""
    num_train: int
    """Different groups in training."""
    num_val: int
    num_both: int
    num_val_rows: int
    """Validation rows whose group is in training too."""
    examples: tuple[str, ...]
    """A few of the groups on both sides, in order."""


class LeakAudit:
    """Counts while rows go by. Memory: 24 bytes a training row, and up to 400 a validation row.

    Groups are told apart by 64-bit hashes: with a million of them, one in twenty million audits is off by one.
    """

    def __init__(self) -> None:
        self._train = {kind: array("q") for kind in GROUP_KEYS}
        self._val: dict[str, Counter[int]] = {kind: Counter() for kind in GROUP_KEYS}
        self._labels: dict[str, dict[int, str]] = {kind: {} for kind in GROUP_KEYS}
        """What the first groups of validation are called, by their hash."""

    def add(self, row: Mapping[str, Json], *, is_val: bool) -> None:
        """Take one row, with the keys that `woodshed.speech.split` reads."""
        for kind, key_of in GROUP_KEYS.items():
            key = key_of(row)
            if key is None:
                continue
            if not is_val:
                self._train[kind].append(hash(key))
                continue
            self._val[kind][hash(key)] += 1
            labels = self._labels[kind]
            if len(labels) < MAX_LABELS:
                labels.setdefault(hash(key), _label(kind, key, row))

    def leaks(self) -> tuple[Leak, ...]:
        """One finding per kind, also where nothing leaks."""
        return tuple(self._leak(kind) for kind in GROUP_KEYS)

    def _leak(self, kind: str) -> Leak:
        val, labels = self._val[kind], self._labels[kind]
        train: Int64[np.ndarray, "group"] = np.unique(np.frombuffer(self._train[kind], dtype=np.int64))
        hashes = np.fromiter(val, dtype=np.int64, count=len(val))
        both = hashes[np.isin(hashes, train)].tolist()
        return Leak(
            kind=kind,
            num_train=len(train),
            num_val=len(val),
            num_both=len(both),
            num_val_rows=sum(val[group] for group in both),
            examples=tuple(sorted(labels[group] for group in both if group in labels)[:NUM_EXAMPLES]),
        )

    def notes(self) -> list[str]:
        """One sentence per kind that stands on both sides."""
        return [
            f"{leak.num_both} of {leak.num_val} {_PLURALS[leak.kind]} in validation are in training too, with "
            f"{leak.num_val_rows} rows{_such_as(leak.examples)}: --split-by {leak.kind} keeps each on one side"
            for leak in self.leaks()
            if leak.num_both
        ]


def _such_as(examples: tuple[str, ...]) -> str:
    return f" (such as {', '.join(map(repr, examples))})" if examples else ""


def _label(kind: str, key: str, row: Mapping[str, Json]) -> str:
    shown = str(row["text"]).strip() if kind == "text" else key
    return shown if len(shown) <= LONGEST_EXAMPLE else shown[: LONGEST_EXAMPLE - 1] + "…"
