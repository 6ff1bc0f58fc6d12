"""Arrays of a CTranslate2 `model.bin`, by name, without CTranslate2.

The format (binary version 6, little-endian): u32 version, spec name, u32 revision, u32 number of variables; each
variable is its name, u8 rank, u32 per dimension, u8 type, u32 length in bytes, and the values in C order; then u32
number of aliases, each two names: the alias and what it stands for. A name is a u16 length and that many bytes, the
last of them zero. Source: the serialisation that CTranslate2's converters write.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from woodshed.errors import ModelError

BINARY_VERSION = 6
TYPES: dict[int, np.dtype[Any]] = {kind: np.dtype(name) for kind, name in enumerate(("<f4", "i1", "<i2", "<i4", "<f2"))}
"""Types that a numpy array can hold; CTranslate2's sixth, bfloat16, is refused."""
MOST_DIMENSIONS = 8
"""Real models have 4 at most: more means damage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CTranslate2Model:
    """What a `model.bin` holds."""

    path: Path
    spec: str
    """Class of the model, such as `WhisperSpec`."""
    revision: int
    """Version of that class's layout."""
    variables: Mapping[str, np.ndarray]
    """Read-only views of the mapped file, aliases included. They may lie at odd addresses: copy before torch."""


def read_ctranslate2(path: Path) -> CTranslate2Model:
    """Map a file and list its arrays; values are read from disk when they are used.

    Raises:
        ModelError: the file is missing, of another format or version, or damaged; says where.
    """
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise ModelError(f"{path} cannot be read: {error}", hint="check the path of the model's model.bin") from error
    cursor = _Cursor(path, content)
    version = cursor.number("I")
    if version != BINARY_VERSION:
        raise ModelError(
            f"{path} is no CTranslate2 file of binary version {BINARY_VERSION}: it begins with {version}",
            hint="give a model.bin that a current CTranslate2 converter wrote",
        )
    spec, revision = cursor.name(), cursor.number("I")
    variables: dict[str, np.ndarray] = {}
    for _ in range(cursor.number("I")):
        name = cursor.name()
        cursor.refuse_if(name in variables, f"the name {name} twice")
        variables[name] = cursor.array(name)
    for _ in range(cursor.number("I")):
        alias, name = cursor.name(), cursor.name()
        cursor.refuse_if(name not in variables, f"an alias {alias} of {name}, which is not there")
        cursor.refuse_if(alias in variables, f"the name {alias} twice")
        variables[alias] = variables[name]
    cursor.refuse_if(cursor.at != len(content), f"{len(content) - cursor.at} bytes more than it lists")
    return CTranslate2Model(path=path, spec=spec, revision=revision, variables=variables)


class _Cursor:
    """Reads forward through the mapped bytes and never past their end."""

    def __init__(self, path: Path, content: np.memmap[tuple[int], np.dtype[np.uint8]]) -> None:
        self._path = path
        self._content = content
        self.at = 0

    def refuse_if(self, wrong: bool, what: str) -> None:
        if wrong:
            raise ModelError(
                f"{self._path} is damaged: it holds {what} (near byte {self.at})", hint="install or download it again"
            )

    def take(self, num_bytes: int) -> np.ndarray:
        left = len(self._content) - self.at
        self.refuse_if(num_bytes > left, f"{left} bytes where {num_bytes} are announced")
        self.at += num_bytes
        return self._content[self.at - num_bytes : self.at]

    def number(self, layout: str) -> int:
        (value,) = struct.unpack("<" + layout, self.take(struct.calcsize(layout)).tobytes())
        return int(value)

    def name(self) -> str:
        raw = self.take(self.number("H")).tobytes()
        text, ended = raw[:-1], raw[-1:] == b"\0"
        self.refuse_if(not ended or not text.isascii() or b"\0" in text, f"no name but {raw[:40]!r}")
        return text.decode("ascii")

    def array(self, name: str) -> np.ndarray:
        rank = self.number("B")
        self.refuse_if(rank > MOST_DIMENSIONS, f"{name} with {rank} dimensions")
        shape = tuple(self.number("I") for _ in range(rank))
        kind = self.number("B")
        self.refuse_if(kind not in TYPES, f"{name} of the unknown type {kind}")
        announced, needed = self.number("I"), math.prod(shape) * TYPES[kind].itemsize
        self.refuse_if(announced != needed, f"{name} of shape {list(shape)} in {announced} bytes instead of {needed}")
        values: np.ndarray = self.take(announced).view(TYPES[kind]).reshape(shape)
        return values
