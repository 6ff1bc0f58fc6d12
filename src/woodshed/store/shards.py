"""The native layout: safetensors shards with an index; unpadded arrays, read by memory-mapping.

`shards/<nnnnn>.safetensors` holds the arrays of the plan's n-th shard as `<position>/<array>`, and
`shards/<nnnnn>.index.json` what is known about each record. Until all items of a shard are settled, its records wait
in `.woodshed/staging` as *blobs*: small safetensors files of one record each, which carry their metadata.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import xxhash

from woodshed.contracts import Json, Layout, Place, Record, RecordSpec
from woodshed.errors import StoreError
from woodshed.store import tensors
from woodshed.store.describe import describe, log_facts, to_json
from woodshed.store.entries import Blob, RecordEntry
from woodshed.store.sealed import to_line

_META = "woodshed"
_MAPPED_SHARDS = 256
"""Mappings that are kept: each costs an open file."""
_KNOWN_SHARDS = 4096
"""Shards whose tables of contents are kept."""
Load = Callable[[], bytes]
"""Brings back the blob of one record."""


@runtime_checkable
class PackedLayout(Layout, Protocol):
    """A layout whose files hold many records each. Its `files` gives exactly one blob for a record."""

    def pack(self, shard: int, blobs: Sequence[tuple[int, Load]]) -> Iterable[tuple[str, Iterator[bytes]]]:
        """The files of a complete shard from (position, blob) pairs in the order of positions, as streams."""
        ...

    def unpack(self, folder: Path, shard: int) -> Iterator[tuple[int, str, Load]]:
        """Position, item id and blob of all records of a complete shard; blobs are as they were packed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Safetensors shards, for fast durable writing and random reading."""

    spec: RecordSpec

    name = "shards"

    def files(self, record: Record, place: Place) -> Iterator[tuple[str, bytes]]:
        """One blob.

        Raises:
            ItemError: metadata that JSON cannot hold.
        """
        metadata = to_json(describe(record, place, self.spec), place).decode("ascii")
        yield f"{place.position}", tensors.pack(record.arrays, {_META: metadata})

    def facts(self, record: Record, place: Place) -> dict[str, Json]:
        """`store.describe.log_facts`."""
        return log_facts(record, place, self.spec)

    def pack(self, shard: int, blobs: Sequence[tuple[int, Load]]) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The two files of a shard: names, order and bytes follow from the records alone."""
        if not blobs:
            return
        lines, all_tensors = [], []
        for position, load in blobs:
            blob = load()
            arrays, metadata = tensors.unpack(blob)
            lines.append(_index_line(position, blob, arrays, json.loads(metadata[_META])))
            for name, array in arrays.items():
                all_tensors.append(tensors.Tensor(f"{position}/{name}", array.dtype.name, array.shape))
        yield f"{_stem(shard)}.safetensors", _shard_bytes(all_tensors, dict(blobs))
        yield f"{_stem(shard)}.index.json", iter([_index(shard, lines)])

    def unpack(self, folder: Path, shard: int) -> Iterator[tuple[int, str, Load]]:
        """The records of a complete shard."""
        for record in json.loads((folder / f"{_stem(shard)}.index.json").read_bytes())["records"]:
            yield record["position"], record["id"], partial(_blob_again, folder, shard, record)


def _blob_again(folder: Path, shard: int, record: Json) -> bytes:
    arrays = _record_arrays(folder, shard, record["position"])
    in_blob_order = {name: arrays[name] for name in record["arrays"]}
    metadata = {_META: json.dumps(record["meta"], ensure_ascii=True, allow_nan=False)}
    blob = tensors.pack(in_blob_order, metadata)
    if xxhash.xxh3_64_hexdigest(blob) != record["xxh3_64"]:
        raise StoreError(
            f"record {record['position']} in {folder / _stem(shard)}.safetensors does not match its checksum",
            hint="`woodshed verify` lists what is damaged; restore the shard from a backup",
        )
    return blob


def _stem(shard: int) -> str:
    return f"shards/{shard:05d}"


def _index_line(position: int, blob: bytes, arrays: dict[str, np.ndarray], meta: Json) -> bytes:
    line = {
        "position": position,
        "id": meta["id"],
        "index": meta["record_index"],
        "xxh3_64": xxhash.xxh3_64_hexdigest(blob),
        "arrays": {name: [array.dtype.name, list(array.shape)] for name, array in arrays.items()},
        "meta": meta,
    }
    return to_line(line)


def _index(shard: int, lines: Sequence[bytes]) -> bytes:
    head = to_line({"format": 1, "data": f"{shard:05d}.safetensors"})[:-1]
    return head + b',"records":[\n' + b",\n".join(lines) + b"\n]}\n"


def _shard_bytes(all_tensors: Sequence[tensors.Tensor], blobs: dict[int, Load]) -> Iterator[bytes]:
    yield tensors.header(all_tensors, {"format": "woodshed-shard-1"})
    position_now, arrays = -1, dict[str, np.ndarray]()
    for tensor in tensors.in_file_order(all_tensors):
        position, _, name = tensor.name.partition("/")
        if int(position) != position_now:
            position_now, arrays = int(position), tensors.unpack(blobs[int(position)]())[0]
        yield tensors.little_endian(arrays[name])


def read_blob(folder: Path, blob: Blob) -> bytes:
    """A blob from staging, checked.

    Raises:
        StoreError: it is not what was committed.
        OSError: its file cannot be read.
    """
    with (folder / blob.path).open("rb") as file:
        file.seek(blob.offset)
        content = file.read(blob.num_bytes)
    if xxhash.xxh3_64_hexdigest(content) != blob.xxh3_64:
        raise StoreError(
            f"{folder / blob.path} is damaged at byte {blob.offset}: it does not match its checksum",
            hint="restore it from a backup, or encode again into a new folder",
        )
    return content


def read_arrays(folder: Path, record: RecordEntry) -> dict[str, np.ndarray]:
    """The arrays of a record: mapped from its shard, or from staging while the shard is incomplete."""
    if record.shard is not None:
        return _record_arrays(folder, record.shard, record.position)
    return tensors.unpack(_staged(folder, record))[0]


def read_meta(folder: Path, record: RecordEntry) -> dict[str, Json]:
    """The metadata of a record."""
    if record.shard is None:
        metadata = tensors.unpack(_staged(folder, record))[1][_META]
        staged_meta: dict[str, Json] = json.loads(metadata)
        return staged_meta
    path = folder / f"{_stem(record.shard)}.index.json"
    start, end = _line_ranges(path, path.stat().st_mtime_ns)[record.position]
    with path.open("rb") as file:
        file.seek(start)
        meta: dict[str, Json] = json.loads(file.read(end - start))["meta"]
    return meta


def _staged(folder: Path, record: RecordEntry) -> np.ndarray:
    assert record.blob is not None
    return np.memmap(folder / record.blob.path, np.uint8, "r", record.blob.offset, (record.blob.num_bytes,))


# The time of change is part of these keys, so that a shard which was written again is read again.
@lru_cache(maxsize=_KNOWN_SHARDS)
def _line_ranges(index: Path, mtime_ns: int) -> dict[int, tuple[int, int]]:  # noqa: ARG001
    content = index.read_bytes()
    return {int(match[1]): match.span() for match in re.finditer(rb'^\{"position":(\d+),.*\}(?=,?$)', content, re.M)}


@lru_cache(maxsize=_KNOWN_SHARDS)
def _tensor_table(path: Path, mtime_ns: int) -> dict[int, list[tensors.Location]]:  # noqa: ARG001
    table: dict[int, list[tensors.Location]] = {}
    with path.open("rb") as file:
        for location in tensors.locate(file)[0]:
            position, _, name = location.name.partition("/")
            table.setdefault(int(position), []).append(location.renamed(sys.intern(name)))
    return table


@lru_cache(maxsize=_MAPPED_SHARDS)
def _mapped(path: Path, mtime_ns: int) -> np.ndarray:  # noqa: ARG001
    return np.memmap(path, np.uint8, "r")


def _record_arrays(folder: Path, shard: int, position: int) -> dict[str, np.ndarray]:
    path = folder / f"{_stem(shard)}.safetensors"
    changed_ns = path.stat().st_mtime_ns
    data = _mapped(path, changed_ns)
    return {location.name: location.view(data) for location in _tensor_table(path, changed_ns)[position]}
