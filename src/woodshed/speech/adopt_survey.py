"""A first look at a folder of the original: which rows it has, and whether this run's models made them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from woodshed.contracts import BadRow, Item
from woodshed.encoders.speech.encoder import SpeechEncoder
from woodshed.errors import ItemError, StoreError
from woodshed.speech.adopt_files import Found, OriginalFolder
from woodshed.speech.adopt_rows import Examiner, Sound, demand_same_models

SAMPLE_ROWS = 256
"""Rows of one program run that are looked at for some that can be compared."""
SOUND_ROWS = 16
COMPARED_ROWS = 4


@dataclass(slots=True)
class _Sample:
    """The rows whose ids have the smallest hashes: the same ones in whatever order they come."""

    _rows: list[tuple[int, str, Item, Found]] = field(default_factory=list)
    """A heap with the largest hash on top."""

    def add(self, item: Item, found: Found) -> None:
        row = (-xxhash.xxh3_64_intdigest(item.id.encode("utf-8", "surrogatepass")), item.id, item, found)
        if len(self._rows) < SAMPLE_ROWS:
            heapq.heappush(self._rows, row)
        elif row > self._rows[0]:
            heapq.heapreplace(self._rows, row)

    def in_order(self) -> list[tuple[Item, Found]]:
        return [(item, found) for _, _, item, found in sorted(self._rows, key=lambda row: row[:2], reverse=True)]


@dataclass(slots=True)
class Survey:
    """What a folder has of the source's rows."""

    samples: dict[str, _Sample] = field(default_factory=dict)
    """By program run."""
    duplicates: set[str] = field(default_factory=set)
    known_ids: set[str] = field(default_factory=set)
    """Ids of the source."""
    num_candidates: int = 0

    def add(self, row: Item | BadRow, there: OriginalFolder, *, is_candidate: Callable[[str], bool]) -> None:
        self.known_ids.add(row.id)
        if isinstance(row, BadRow):
            if row.duplicate_of is not None:
                self.duplicates.add(row.duplicate_of)
            return
        if not is_candidate(row.id):
            return
        found = there.find(row.id)
        self.num_candidates += bool(found.paths)
        for files in found.sets:
            self.samples.setdefault(files.group, _Sample()).add(row, found)

    def trusted(
        self, folder: Path, encoder: SpeechEncoder, original: SpeechEncoder, *, go_on: Callable[[], None]
    ) -> list[str]:
        """The program runs whose models are this run's: some of their sound rows are computed and compared.

        Args:
            encoder: says which rows are sound.
            original: the same models with the original's numbers.
            go_on: called between rows; raises to end it.

        Raises:
            StoreError: the models of a program run are others, or the tokenizer of all of them.
        """
        examiner = Examiner(folder, encoder)
        trusted, other_texts = [], list[ItemError]()
        for group, sample in sorted(self.samples.items()):
            sound: list[Sound] = []
            for item, found in sample.in_order():
                verdict = examiner.judge(item, [files for files in found.sets if files.group == group])
                if isinstance(verdict, Sound):
                    sound.append(verdict)
                elif verdict.kind == "other_text":
                    other_texts.append(verdict)
                go_on()
                if len(sound) == SOUND_ROWS:
                    break
            if sound:
                demand_same_models(folder, _spread(sound), original)
                trusted.append(group)
        if other_texts and not trusted:
            raise StoreError(
                f"{folder} was made with another tokenizer or other text rules: no row that is sound otherwise "
                f"has this run's text ids; {other_texts[0].message}",
                hint="name its tokenizer and --language, try --text-compat, or choose another output folder",
            )
        return trusted


def _spread(sound: Sequence[Sound]) -> list[Sound]:
    """Some rows from the shortest to the longest."""
    by_length = sorted(sound, key=lambda row: (len(row.record.arrays["codes"]), row.item.id))
    chosen = np.linspace(0, len(by_length) - 1, min(COMPARED_ROWS, len(by_length))).round().astype(int)
    return [by_length[index] for index in chosen]
