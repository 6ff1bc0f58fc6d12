"""Sealed files: JSON lines that are written whole, once, and prove at every reading that they are complete.

A sealed file holds any number of body lines, one footer line (a JSON object of the writer's choice) and one line
with the checksum of all bytes before it. Truncation and flipped bits are found without parsing the body.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import xxhash

from woodshed.contracts import Json
from woodshed.errors import StoreError
from woodshed.store.disk import disk_error

_CHECK_BYTES = len(b'{"xxh3_64":"0123456789abcdef"}\n')
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def to_line(value: Json) -> bytes:
    """One compact JSON line without its newline: ASCII only, so that ids with surrogate escapes survive.

    >>> to_line({"id": "caf\\udce9"})
    b'{"id":"caf\\\\udce9"}'
    """
    return _ENCODER.encode(value).encode("ascii")


def seal(lines: Iterable[bytes], footer: Mapping[str, Json]) -> bytes:
    """The bytes of a sealed file; `lines` are without newlines."""
    content = b"".join(line + b"\n" for line in lines) + to_line(dict(footer)) + b"\n"
    return content + to_line({"xxh3_64": xxhash.xxh3_64_hexdigest(content)}) + b"\n"


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
    if check != to_line({"xxh3_64": xxhash.xxh3_64_hexdigest(body)}) + b"\n" or not body.endswith(b"\n"):
        raise StoreError(
            f"{path} is damaged: its {len(content)} bytes do not match the checksum in its last line",
            hint="restore this file from a backup; or delete it, and a new run encodes again the items it stood for",
        )
    footer_start = body.rfind(b"\n", 0, len(body) - 1) + 1
    return body[:footer_start], json.loads(body[footer_start:])
