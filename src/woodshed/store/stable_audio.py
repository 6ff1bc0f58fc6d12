"""The layout that stable-audio-tools trains from: `<rank>/<13 digits>.npy` and `.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from woodshed.contracts import Json, Place, Record, RecordSpec, smallest_integer
from woodshed.errors import ItemError, StoreError
from woodshed.store import tensors
from woodshed.store.describe import describe, log_facts, to_json
from woodshed.store.entries import FileEntry, RecordEntry
from woodshed.store.npy import npy_bytes

_NUM_RANKS = 1000
_NUM_POSITIONS = 10**10


@dataclass(frozen=True, slots=True, kw_only=True)
class StableAudio:
    """Files per record, named by rank (3 digits) and running position (10 digits).

    The `.npy` holds the main array only, so that a reader which lists `*.npy` finds one file per record. Other
    arrays lie beside it: the standard deviation of VAE moments in `<13 digits>.moments.safetensors`, anything else in
    `.arrays.safetensors`. The `.json` holds `describe` and, as stable-audio-tools writes them, `timestamps`
    (window start and end as fractions of the longer of file and window) and `padding_mask`.
    """

    spec: RecordSpec
    window_samples: int | None = None
    """Length of a window at the model's rate; None when every record is a whole file."""
    absolute_paths: bool = False
    """Write the absolute path as `path`, as stable-audio-tools does, in place of the one below the source root."""

    name = "stable_audio"

    def files(self, record: Record, place: Place) -> Iterator[tuple[str, bytes]]:
        """The files of one record.

        Raises:
            ItemError: metadata that JSON cannot hold, or a token outside its codebook.
            StoreError: more ranks or records than thirteen digits can name.
        """
        if not (0 <= place.rank < _NUM_RANKS and 0 <= place.position < _NUM_POSITIONS):
            raise StoreError(
                f"rank {place.rank}, position {place.position} do not fit a name of 3 + 10 digits",
                hint="use fewer ranks, or --layout shards",
            )
        stem = f"{place.rank}/{place.rank:03d}{place.position:010d}"
        main = self._main_array(record, place)
        others = {name: array for name, array in record.arrays.items() if name != self.spec.main}
        metadata = to_json(self._metadata(record, place), place)
        yield f"{stem}.npy", npy_bytes(main)
        if others:
            kind = "moments" if set(others) == {"std"} else "arrays"
            yield f"{stem}.{kind}.safetensors", tensors.pack(others, {})
        yield f"{stem}.json", metadata

    def facts(self, record: Record, place: Place) -> dict[str, Json]:
        """`store.describe.log_facts`."""
        return log_facts(record, place, self.spec)

    def _main_array(self, record: Record, place: Place) -> np.ndarray:
        array = record.arrays[self.spec.main]
        if self.spec.kind != "tokens" or not self.spec.codebook_sizes:
            return array
        if array.size and (array.min() < 0 or array.max() >= max(self.spec.codebook_sizes)):
            raise ItemError(
                f"tokens of {place.item.id!r} run from {array.min()} to {array.max()}; "
                f"its codebooks have {max(self.spec.codebook_sizes)} entries",
                kind="bad_tokens",
                hint="check that the model's config names its true codebook sizes",
            )
        return array.astype(smallest_integer(max(self.spec.codebook_sizes)), copy=False)

    def _metadata(self, record: Record, place: Place) -> dict[str, Json]:
        described = describe(record, place, self.spec, absolute_path=self.absolute_paths)
        total, start = described["total_samples"], described["sample_offset"]
        window = self.window_samples or described["num_samples"]
        longest = max(total, window, 1)
        valid, frames = described["valid_frames"], described["num_frames"]
        described["timestamps"] = [min(1.0, start / longest), min(1.0, (start + window) / longest)]
        described["padding_mask"] = [1] * valid + [0] * (frames - valid)
        return described


def read_arrays(folder: Path, record: RecordEntry, *, main: str) -> dict[str, np.ndarray]:
    """The arrays of a record of this layout, memory-mapped."""
    arrays = {main: np.load(folder / _file(record, ".npy").path, mmap_mode="r", allow_pickle=False)}
    for file in record.files:
        if file.path.endswith(".safetensors"):
            arrays |= tensors.unpack(np.memmap(folder / file.path, np.uint8, "r"))[0]
    return arrays


def read_meta(folder: Path, record: RecordEntry) -> dict[str, Json]:
    """The metadata of a record of this layout."""
    meta: dict[str, Json] = json.loads((folder / _file(record, ".json").path).read_bytes())
    return meta


def _file(record: RecordEntry, suffix: str) -> FileEntry:
    return next(file for file in record.files if file.path.endswith(suffix))
