"""Sealed files: JSON lines that are written whole, once, and prove at every reading that they are complete.

A sealed file holds any number of body lines, one footer line (a JSON object of the writer's choice) and one line
with the checksum of all bytes before it. Truncation and flipped bits are found without parsing the body.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import xxhash

from woodshed.contracts import Json
from woodshed.errors import StoreError
from woodshed.store.disk import disk_error

_CHECK_BYTES = len(b'{"xxh3_64":"0123456789abcdef"}\n')
_BLOCK_BYTES = 1 << 20
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def to_line(value: Json) -> bytes:
    """One compact JSON line without its newline: ASCII only, so that ids with surrogate escapes survive.

    >>> to_line({"id": "caf\\udce9"})
    b'{"id":"caf\\\\udce9"}'
    """
    return _ENCODER.encode(value).encode("ascii")


def seal(lines: Iterable[bytes], footer: Mapping[str, Json]) -> bytes:
    """The bytes of a sealed file; `lines` are without newlines."""
    content = b"".join(line + b"\n" for line in lines)
    return content + seal_end(footer, xxhash.xxh3_64(content))


def seal_end(footer: Mapping[str, Json], digest: xxhash.xxh3_64) -> bytes:
    """What comes after the body of a sealed file, given the digest of that body."""
    end = to_line(dict(footer)) + b"\n"
    digest.update(end)
    return end + _check_line(digest.hexdigest())


def unseal(path: Path) -> tuple[bytes, dict[str, Json]]:
    """Read a sealed file: the body (lines with their newlines) and the footer.

    Raises:
        StoreError: the file cannot be read, or is not what was sealed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise disk_error("read", path, error) from error
    body, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
    if check != _check_line(xxhash.xxh3_64_hexdigest(body)) or not body.endswith(b"\n"):
        raise _damaged(path, len(content))
    footer_start = body.rfind(b"\n", 0, len(body) - 1) + 1
    return body[:footer_start], json.loads(body[footer_start:])


def check_sealed(path: Path) -> tuple[int, dict[str, Json]]:
    """Where the body of a sealed file ends, in bytes, and its footer; whatever its size, little of it is in memory.

    Raises:
        StoreError: the file cannot be read, or is not what was sealed.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END) - _CHECK_BYTES
            file.seek(0)
            digest, left = xxhash.xxh3_64(), end
            while left > 0 and (block := file.read(min(_BLOCK_BYTES, left))):
                digest.update(block)
                left -= len(block)
            if end < 1 or left or file.read() != _check_line(digest.hexdigest()):
                raise _damaged(path, end + _CHECK_BYTES)
            tail_bytes, tail, footer_start = 0, b"", 0
            while not footer_start and tail_bytes < end:
                tail_bytes = min(end, 2 * tail_bytes or _BLOCK_BYTES)
                file.seek(end - tail_bytes)
                tail = file.read(tail_bytes)
                footer_start = tail.rfind(b"\n", 0, -1) + 1
            return end - tail_bytes + footer_start, json.loads(tail[footer_start:])
    except OSError as error:
        raise disk_error("read", path, error) from error


def body_lines(path: Path, body_bytes: int) -> Iterator[bytes]:
    """The lines of a body that `check_sealed` has seen, with their newlines, one in memory at a time.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            while body_bytes > 0 and (line := file.readline()):
                body_bytes -= len(line)
                yield line
    except OSError as error:
        raise disk_error("read", path, error) from error


def _check_line(digest: str) -> bytes:
    return to_line({"xxh3_64": digest}) + b"\n"


def _damaged(path: Path, num_bytes: int) -> StoreError:
    return StoreError(
        f"{path} is damaged: its {num_bytes} bytes do not match the checksum in its last line",
        hint="restore this file from a backup; or delete it, and a new run encodes again the items it stood for",
    )
