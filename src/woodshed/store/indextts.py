"""The layout that the IndexTTS2 trainers read: one `.npy` per feature and utterance, in folders named by the feature.

    text_ids/<stem>.npy   int32 [token]
    codes/<stem>.npy      int32 [frame]
    condition/<stem>.npy  float32 [latent, channel]     2.0 only
    speaker_vec/<stem>.npy float32 [channel]            2.5 only
    emo_vec/<stem>.npy    float32 [channel]

A folder for both releases has them twice, below `2.0/` and `2.5/`. The manifests that name these files are derived from
the log (`woodshed.speech.manifests`): what they need of a row stands in its facts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from woodshed.contracts import Json, Place, Record, RecordSpec
from woodshed.errors import StoreError
from woodshed.store.describe import log_facts
from woodshed.store.entries import RecordEntry
from woodshed.store.npy import npy_bytes

OF_25 = "_25"
"""Ends the names of the arrays that IndexTTS 2.5 needs: `codes` are those of 2.0, `codes_25` those of 2.5."""
STEM = "stem"
"""The column of an item's metadata that names its files, where that is not its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexTTS:
    """Files per record, named by the `stem` in the item's metadata or else by its id."""

    spec: RecordSpec

    name = "indextts"

    def files(self, record: Record, place: Place) -> Iterator[tuple[str, bytes]]:
        """One file per array."""
        stem = place.item.meta.get(STEM, place.item.id)
        for array, values in record.arrays.items():
            yield f"{array_folder(array, self.spec.arrays)}/{stem}.npy", npy_bytes(values)

    def facts(self, record: Record, place: Place) -> dict[str, Json]:
        """`store.describe.log_facts`."""
        return log_facts(record, place, self.spec)


def array_folder(array: str, arrays: Iterable[str]) -> str:
    """The folder that an array's files lie in, given the names of all arrays of the data set.

    >>> array_folder("codes_25", ["text_ids_25", "codes_25"]), array_folder("codes_25", ["codes", "codes_25"])
    ('codes', '2.5/codes')
    """
    names = list(arrays)
    if not any(name.endswith(OF_25) for name in names) or all(name.endswith(OF_25) for name in names):
        return array.removesuffix(OF_25)
    return f"{'2.5' if array.endswith(OF_25) else '2.0'}/{array.removesuffix(OF_25)}"


def read_arrays(folder: Path, record: RecordEntry, arrays: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of a record of this layout, memory-mapped.

    Raises:
        OSError, ValueError: a file is missing or is not what was committed.
    """
    by_folder = {array_folder(name, arrays): name for name in arrays}
    made = {}
    for file in record.files:
        name = by_folder.get(file.path.rpartition("/")[0])
        if name is None:
            raise StoreError(f"{file.path} belongs to no array of {folder}", hint="`woodshed verify` looks closer")
        made[name] = np.load(folder / file.path, mmap_mode="r", allow_pickle=False)
    return made
