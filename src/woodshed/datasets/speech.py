"""`woodshed.open(folder)` on a folder of `woodshed speech`: its rows as a torch data set, arrays of their true lengths.

Rows come from the commit log and not from the manifests: a manifest that was cut or edited costs no row. Which side of
the split a row is on is what the manifests say.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import Dataset

from woodshed.contracts import Json
from woodshed.errors import StoreError, UsageError
from woodshed.store.describe import ROW
from woodshed.store.folder import read_run
from woodshed.store.reader import Reader, RecordEntry, open_reader

Split: TypeAlias = Literal["train", "val"]
_MANIFESTS = {"train": "train_manifest.jsonl", "val": "val_manifest.jsonl"}
_RELEASES = ("", "2.0/", "2.5/")
"""Where manifests lie: a folder for both releases has the same rows twice."""


def is_speech_folder(folder: Path) -> bool:
    """Whether `woodshed speech` made it.

    Raises:
        StoreError: it is ours and cannot be read.
    """
    run = read_run(folder)
    return run is not None and run["spec"]["kind"] == "speech"


def open_speech(folder: Path, *, split: Split | None, min_s: float | None, max_s: float | None) -> SpeechDataset:
    """Rows of a speech folder, in the order of their source.

    Args:
        split: rows of one manifest only.
        min_s, max_s: shortest and longest clip, in seconds.

    Raises:
        StoreError: the folder or its manifest cannot be read.
        UsageError: there is no such split, or no row is left.
    """
    if split is not None and split not in _MANIFESTS:
        raise UsageError(f"split={split!r} is no split", hint=f"one of {', '.join(_MANIFESTS)}, or None for all rows")
    reader = open_reader(folder)
    kept = None if split is None else _ids(folder, split)
    records = []
    for item_id in reader.log.in_order():
        for record in reader.log.records(item_id) if kept is None or item_id in kept else ():
            seconds = record.facts["num_samples"] / reader.spec["rate_hz"]
            if (min_s is None or seconds >= min_s) and (max_s is None or seconds <= max_s):
                records.append(record)
    if not records:
        raise UsageError(
            f"no row of {folder} is left by split={split!r}, min_seconds={min_s}, max_seconds={max_s}",
            hint="`woodshed inspect` tells what the folder holds",
        )
    return SpeechDataset(reader, records)


def _ids(folder: Path, split: Split) -> set[str]:
    paths = [folder / f"{root}{_MANIFESTS[split]}" for root in _RELEASES]
    path = next((path for path in paths if path.is_file()), None)
    try:
        if path is None:
            raise OSError("it is missing")
        with path.open("rb") as lines:
            return {json.loads(line)["id"] for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"the {split} manifest of {folder} cannot be read: {error}",
            hint="`woodshed verify --repair` writes it again from the log",
        ) from error


class SpeechDataset(Dataset[Any]):
    """Rows of a speech folder, by number. Made by `woodshed.open`.

    An item is a dict of what the folder holds: `text_ids` and `codes` (int64, one axis, of the row's own length),
    `condition` (float32, "latent channel"), `emo_vec`, `speaker_vec` (float32); those for IndexTTS 2.5 end in `_25`.
    `info` holds `id`, `text`, `speaker`, `language`, `seconds` and `audio_path`.

    `woodshed.datasets.collate.collate` makes batches of them, `LengthBucketSampler` plans which.
    """

    def __init__(self, reader: Reader, records: list[RecordEntry]) -> None:
        self._reader = reader
        # As bytes: objects of a hundred thousand records take 100 MB.
        self._records = [pickle.dumps(record) for record in records]
        self._lengths = np.array([record.facts["num_frames"] for record in records], dtype=np.int64)
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._records)

    def id_of(self, index: int) -> str:
        """The id of a row, without reading its arrays."""
        record: RecordEntry = pickle.loads(self._records[index])  # noqa: S301 our own bytes, of this process
        return record.id

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row.

        Raises:
            StoreError: a file of it cannot be read.
            IndexError: there is no such row.
        """
        record: RecordEntry = pickle.loads(self._records[index])  # noqa: S301 our own bytes, of this process
        arrays = self._reader.arrays(record)
        dtypes = {name: np.int64 if arrays[name].dtype.kind == "i" else np.float32 for name in arrays}
        row: dict[str, Any] = {
            name: torch.from_numpy(np.array(arrays[name], dtype=dtypes[name], order="C"))
            for name in self._reader.spec["arrays"]
        }
        return {**row, "info": self._info(record)}

    def _info(self, record: RecordEntry) -> dict[str, Json]:
        row = record.facts[ROW]
        return {
            "id": record.id,
            **{name: row[name] for name in ("text", "speaker", "language", "audio_path")},
            "seconds": record.facts["num_samples"] / self._reader.spec["rate_hz"],
        }

    @property
    def epoch(self) -> int:
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Rows are the same in every epoch; samplers pass theirs on."""
        self._epoch = epoch

    def frame_counts(self) -> Int64[np.ndarray, "item"]:
        """Codes of each row (those of 2.0, where the folder has both): what batches are planned from."""
        return self._lengths
