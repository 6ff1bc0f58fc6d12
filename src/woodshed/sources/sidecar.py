"""Captions and other metadata that lie beside a sound: `song.txt` and `song.json` belong to `song.wav`.

The text of the `.txt` file is the `prompt`. The keys of the `.json` object are metadata as they are; where it has no
`prompt`, its `caption` or `text` becomes one too. When both files exist they are merged, and the `.json` file wins.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from woodshed.contracts import Json
from woodshed.errors import ItemError

SUFFIXES = (".txt", ".TXT", ".json", ".JSON")
LIMIT_BYTES = 4 * 2**20
"""A larger sidecar is no caption: it is refused instead of being copied into every record."""
CAPTION_KEYS = ("prompt", "caption", "text")
"""Keys that hold a caption; the first one found wins."""


def read_sidecars(stem: str, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Json]:
    """Metadata from the files beside one sound; empty when there are none.

    Args:
        stem: path of the sound without its suffix.
        suffixes: those of `SUFFIXES` that may exist; fewer save time.

    Raises:
        ItemError: of kind `bad_sidecar`, when a file cannot be read, is not UTF-8, or is not a JSON object.
    """
    texts = {suffix.lower(): text for suffix in sorted(suffixes) if (text := _text(stem + suffix)) is not None}
    meta: dict[str, Json] = {}
    if ".txt" in texts:
        meta["prompt"] = texts[".txt"].strip()
    if ".json" in texts:
        where = f"sidecar {Path(stem).name + '.json'!r}"
        meta |= with_prompt(parse_object(texts[".json"], where=where, kind="bad_sidecar"))
    return meta


def parse_object(text: str, *, where: str, kind: str) -> dict[str, Json]:
    """A JSON object; `NaN` and `Infinity` are no JSON. Raises `ItemError` of `kind`.

    >>> parse_object('{"bpm": 120}', where="line 1", kind="bad_row")
    {'bpm': 120}
    >>> parse_object('[1]', where="line 1", kind="bad_row")
    Traceback (most recent call last):
    woodshed.errors.ItemError: line 1 holds a JSON list, not an object
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ItemError(f"{where} is not valid JSON: {error}", kind=kind) from error
    if not isinstance(value, dict):
        names = {list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
        raise ItemError(f"{where} holds a JSON {names.get(type(value), 'null')}, not an object", kind=kind)
    return value


def with_prompt(meta: dict[str, Json]) -> dict[str, Json]:
    """The same metadata, with `prompt` taken from `caption` or `text` where it is missing.

    >>> with_prompt({"text": "a bell"})
    {'text': 'a bell', 'prompt': 'a bell'}
    """
    for key in CAPTION_KEYS:
        if isinstance(meta.get(key), str):
            return meta | {"prompt": meta[key]}
    return meta


def _text(path: str) -> str | None:
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ItemError(f"sidecar {Path(path).name!r} is not a regular file", kind="bad_sidecar")
            content = file.read(LIMIT_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError as error:
        raise ItemError(f"sidecar {Path(path).name!r} cannot be read: {error.strerror}", kind="bad_sidecar") from error
    if len(content) > LIMIT_BYTES:
        raise ItemError(f"sidecar {Path(path).name!r} is larger than {LIMIT_BYTES // 2**20} MiB", kind="bad_sidecar")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"sidecar {Path(path).name!r} is not UTF-8 (byte {error.start})"
        raise ItemError(reason, kind="bad_sidecar", hint="save it as UTF-8") from error


def _open_at_once(path: str, flags: int) -> int:
    # without O_NONBLOCK, opening a named pipe would wait for ever for somebody to write to it
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
