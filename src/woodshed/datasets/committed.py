"""Our own output folders, read through their commit log: the `stable_audio` and `shards` layouts alike."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from woodshed.datasets.spans import Clock, Span, read_span
from woodshed.datasets.stored import MASK_SUFFIX, StoredItem, record_name
from woodshed.errors import StoreError
from woodshed.store.reader import RecordEntry, open_reader


class CommittedFolder:
    """Every committed record, in the order of the plan; what a later run recomputed shows its latest state.

    Raises:
        StoreError: the folder's log is damaged, it holds no finished item, or its records have no frames.
    """

    def __init__(self, folder: Path) -> None:
        self._reader = open_reader(folder)
        spec = self._reader.spec
        self.kind = str(spec["kind"])
        self.clock = Clock(rate_hz=spec["rate_hz"], hop_samples=spec["hop_samples"])
        self._main = str(spec["main"])
        axes = tuple(spec["arrays"][self._main]["axes"])
        if len(axes) != 2 or "frame" not in axes:
            raise StoreError(
                f"{folder} holds records with axes {axes}: a data set needs two, one of them 'frame'",
                hint="read it with woodshed.store.reader.open_reader",
            )
        self._is_transposed = axes[0] == "frame"
        # As bytes: a hundred thousand records as objects take 100 MB, and reading the log anew for each item is slow.
        self._records = [
            pickle.dumps(record)
            for entry in self._reader.entries()
            if entry.status == "done"
            for record in entry.records
        ]
        if not self._records:
            raise StoreError(f"{folder} holds no finished item yet", hint="finish the run: `woodshed encode`")

    def __len__(self) -> int:
        return len(self._records)

    def span(self, index: int) -> Span:
        facts = self._record(index).facts
        if not {"start_sample", "num_samples", "num_frames", "valid_frames"} <= facts.keys():
            return self.item(index).span
        return read_span(facts, rows=0, stored_frames=facts["num_frames"], clock=self.clock)

    def item(self, index: int) -> StoredItem:
        record = self._record(index)
        meta = self._reader.meta(record)
        arrays = self._reader.arrays(record)
        main = self._frames_last(arrays[self._main])
        std = self._frames_last(arrays["std"]) if "std" in arrays and self._main != "std" else None
        dtype = np.int64 if self.kind == "tokens" else np.float32
        return StoredItem(
            name=record_name(record.id, record.index),
            where=self._where(record),
            meta=meta,
            span=read_span(meta, rows=main.shape[0], stored_frames=main.shape[1], clock=self.clock),
            rows=main.shape[0],
            read=lambda start, stop: torch.from_numpy(np.array(main[:, start:stop], dtype=dtype, order="C")),
            read_std=None if std is None else lambda start, stop: _float_frames(std, start, stop),
            whole=self._of_tokens(arrays),
        )

    def _of_tokens(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, Callable[[], Shaped[Tensor, "..."]]]:
        """What is handed out whole; padding that a mask beside an array tells of is not."""
        stored = self._reader.spec["arrays"]
        names = [name for name in arrays if stored[name]["axes"][0] == "token" and not name.endswith(MASK_SUFFIX)]
        return {name: partial(_unpadded, arrays[name], arrays.get(name + MASK_SUFFIX)) for name in names}

    def silence(self) -> Shaped[Tensor, "row frame"] | None:
        return None

    def _record(self, index: int) -> RecordEntry:
        record: RecordEntry = pickle.loads(self._records[index])  # noqa: S301 our own bytes, of this process
        return record

    def _where(self, record: RecordEntry) -> str:
        for file in record.files:
            if file.path.endswith(".npy"):
                return str(self._reader.folder / file.path)
        return f"record {record.index} of item {record.id!r} in {self._reader.folder}"

    def _frames_last(self, array: Shaped[np.ndarray, "a b"]) -> Shaped[np.ndarray, "row frame"]:
        return array.T if self._is_transposed else array


def _unpadded(array: np.ndarray, mask: np.ndarray | None) -> Shaped[Tensor, "..."]:
    return torch.from_numpy(np.array(array if mask is None else array[mask], order="C"))


def _float_frames(array: Shaped[np.ndarray, "row stored"], start: int, stop: int) -> Shaped[Tensor, "row frame"]:
    return torch.from_numpy(np.array(array[:, start:stop], dtype=np.float32, order="C"))
