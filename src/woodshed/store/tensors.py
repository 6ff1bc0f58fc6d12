"""The safetensors format, written so that equal arrays give equal bytes, and read by memory-mapping.

A file is an 8-byte little-endian length, a JSON header (name -> dtype, shape, byte range; `__metadata__` -> texts)
padded with spaces to a multiple of 8, then the arrays. Arrays with wider elements come first, so all are aligned.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedIOBase

import numpy as np

from woodshed.store.sealed import to_line

_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in _NAMES.items()}
_LENGTH_BYTES = 8
_HEADER_LIMIT_BYTES = 100_000_000
"""The reference reader refuses longer headers."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Name, type and shape of one array."""

    name: str
    dtype: str
    """Numpy's name, such as `float32`."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def in_file_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The order in which arrays lie in a file: wider elements first, otherwise as given."""
    return sorted(tensors, key=lambda tensor: -np.dtype(tensor.dtype).itemsize)


def header(tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> bytes:
    """Everything before the arrays, which follow `in_file_order` without gaps."""
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for tensor in in_file_order(tensors):
        end = start + tensor.num_bytes
        fields[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = to_line(fields)
    text += b" " * (-len(text) % 8)
    assert len(text) <= _HEADER_LIMIT_BYTES, "too many arrays for one safetensors file"
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def pack(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A whole safetensors file."""
    tensors = [Tensor(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    data = (little_endian(arrays[tensor.name]) for tensor in in_file_order(tensors))
    return b"".join([header(tensors, metadata), *data])


def little_endian(array: np.ndarray) -> bytes:
    """The bytes of an array as safetensors and .npy hold them: C order, little-endian."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


@dataclass(frozen=True, slots=True)
class Location:
    """Where an array lies in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the start of the file."""

    def view(self, data: np.ndarray) -> np.ndarray:
        """The array, as a view into the bytes of the file."""
        dtype = _DTYPES[self.dtype]
        end = self.start + int(np.prod(self.shape, dtype=np.int64)) * dtype.itemsize
        if end > data.size:
            raise ValueError(f"array {self.name!r} is cut short")
        return data[self.start : end].view(dtype).reshape(self.shape)

    def renamed(self, name: str) -> Location:
        return Location(name, self.dtype, self.shape, self.start)


def locate(file: BufferedIOBase) -> tuple[list[Location], dict[str, str]]:
    """What the header of a file says: places of the arrays in the order of the file, and metadata.

    Raises:
        ValueError: it is not a safetensors file.
    """
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > _HEADER_LIMIT_BYTES:
        raise ValueError("no safetensors header")
    fields = json.loads(file.read(length))
    metadata = fields.pop("__metadata__", {})
    first = _LENGTH_BYTES + length
    locations = [
        Location(name, sys.intern(field["dtype"]), tuple(field["shape"]), first + field["data_offsets"][0])
        for name, field in fields.items()
    ]
    return locations, metadata


def unpack(content: np.ndarray | bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays (views into `content`, in the order of the file) and metadata of a small file.

    Raises:
        ValueError: it is not a safetensors file, or is cut short.
    """
    data = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else content
    length = int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
    locations, metadata = locate(io.BytesIO(data[: _LENGTH_BYTES + min(length, data.size)].tobytes()))
    return {location.name: location.view(data) for location in locations}, metadata
