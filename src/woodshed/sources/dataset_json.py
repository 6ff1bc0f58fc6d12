"""`dataset.json` of ACE-Step's dataset builder and of Side-Step: one file that names songs and what is known of them.

It holds `{"metadata": {...}, "samples": [...]}`, or the samples alone. A sample names its sound by `audio_path`,
absolute or relative to the file's folder, or by `filename`; a path of another computer falls back to the file of that
name beside the JSON. Of `metadata`, `custom_tag`, `tag_position` and `genre_ratio` count.
"""

# Songs can be many: `pathlib` takes several times as long per file as `os`.
# ruff: noqa: PTH100, PTH111, PTH113, PTH118, PTH119, PTH120

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from woodshed.contracts import BadRow, Item, Json
from woodshed.errors import ItemError, UsageError
from woodshed.sources.folder import file_row
from woodshed.sources.manifest import type_name, unused_id
from woodshed.sources.song_fields import (
    INSTRUMENTAL,
    TAG_POSITIONS,
    TagPosition,
    caption_of_name,
    has_words,
    known_fields,
)

KIND: Final = "bad_row"
PLACE_COLUMNS: Final = ("audio_path", "filename")
"""Columns that say where the sound lies; they are no metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFile:
    """A `dataset.json`, read."""

    path: str
    """Absolute."""
    samples: Sequence[Json]
    name: str = ""
    custom_tag: str = ""
    tag_position: TagPosition | None = None
    genre_ratio: float | None = None
    """Per cent of the songs that are prompted by their genre."""


def load_dataset_json(path: str) -> DatasetFile:
    """Read the file as a whole; `NaN`, which some tools write for an empty cell, is read as null.

    Raises:
        UsageError: it cannot be read, is not JSON of this form, has no samples, or its `metadata` holds a value that
            cannot be.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"the data set {path} cannot be read: {error.strerror}") from error
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_constant=_no_value)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error
    samples = value.get("samples") if isinstance(value, dict) else value
    if not isinstance(samples, list):
        keys = f"an object with {', '.join(list(value)[:8]) or 'no keys'}" if isinstance(value, dict) else ""
        raise UsageError(
            f"{path} is no data set of songs: it holds {keys or type_name(value)}",
            hint='it must be {"samples": [...]} or a list of samples, each with an "audio_path"',
        )
    if not samples:
        raise UsageError(f"the data set {path} has no samples")
    about = value.get("metadata") if isinstance(value, dict) else None
    return _with_metadata(DatasetFile(path=os.path.abspath(path), samples=samples), about)


def read_dataset_json(
    dataset: DatasetFile, *, audio_dir: str | None = None, compat: bool = False
) -> Iterator[Item | BadRow]:
    """The rows of a data set, in its order; `Item.meta` is what `known_fields` gives.

    An id is the song's path below `audio_dir` or the JSON's folder; for songs elsewhere it is the path below the folder
    that all of those share. A second sample of the same file is a skipped duplicate.

    Args:
        audio_dir: another folder in which sounds are looked for.
    """
    return _Reader(dataset, audio_dir, compat=compat).rows()


def _with_metadata(dataset: DatasetFile, about: Json) -> DatasetFile:
    if about is None:
        return dataset
    where = f"`metadata` of {dataset.path}"
    if not isinstance(about, dict):
        raise UsageError(f"{where} is {type_name(about)}, not an object")
    tag, position, ratio = (about.get(key) for key in ("custom_tag", "tag_position", "genre_ratio"))
    if not isinstance(tag, str | None):
        raise UsageError(f"{where}: `custom_tag` is {type_name(tag)}, not text")
    if position not in (None, "", *TAG_POSITIONS):
        raise UsageError(f"{where}: `tag_position` is {position!r}", hint=f"allowed: {', '.join(TAG_POSITIONS)}")
    is_number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
    if ratio is not None and not (is_number and 0 <= ratio <= 100):
        raise UsageError(f"{where}: `genre_ratio` is {ratio!r}, not a percentage from 0 to 100")
    return replace(
        dataset,
        name=str(about.get("name") or ""),
        custom_tag=(tag or "").strip(),
        tag_position=position or None,
        genre_ratio=ratio,
    )


class _Reader:
    """Finds the sounds of all samples first: ids depend on the folder that they share."""

    def __init__(self, dataset: DatasetFile, audio_dir: str | None, *, compat: bool) -> None:
        self.dataset, self.compat = dataset, compat
        self.name = os.path.basename(dataset.path)
        folder = os.path.dirname(dataset.path)
        self.roots = tuple(dict.fromkeys([*([os.path.abspath(audio_dir)] if audio_dir else []), folder]))
        self.search = tuple(dict.fromkeys([folder, *self.roots]))
        self.ids: dict[str, int] = {}
        self.numbers: dict[str, int] = {}
        """Real path of a sound -> number of its first sample."""

    def rows(self) -> Iterator[Item | BadRow]:
        found = [self._found(sample) for sample in self.dataset.samples]
        elsewhere = [path for path in found if isinstance(path, str) and self._root(path) is None]
        shared = os.path.commonpath([os.path.dirname(path) for path in elsewhere]) if elsewhere else ""
        for number, (path, sample) in enumerate(zip(found, self.dataset.samples, strict=True), 1):
            where = f"sample {number} of {self.name}"
            if isinstance(path, ItemError):
                yield self._bad(number, kind=path.kind, reason=f"{where}: {path}")
            else:
                yield self._row(number, path, sample, root=self._root(path) or shared)

    def _row(self, number: int, path: str, sample: Mapping[str, Json], *, root: str) -> Item | BadRow:
        where = f"sample {number} of {self.name}"
        first = self.numbers.setdefault(os.path.realpath(path), number)
        if first != number:
            reason = f"{where} is the same file as sample {first}, which counts"
            return self._bad(number, kind="duplicate", reason=reason, skipped=True)
        relpath = os.path.relpath(path, root)
        row_id = unused_id(relpath, self.ids)
        self.ids[row_id] = number
        row = file_row(path, row_id=row_id, relpath=relpath, sidecars=())
        if isinstance(row, BadRow):
            return replace(row, reason=f"{where}: {row.reason}", line=number)
        columns = {key: value for key, value in sample.items() if key not in PLACE_COLUMNS}
        if not self.compat:
            columns = _without_fillers(columns, path)
        try:
            return replace(row, meta=known_fields(columns, where=where, kind=KIND, compat=self.compat))
        except ItemError as error:
            return BadRow(id=row_id, kind=error.kind, reason=str(error), line=number)

    def _bad(self, number: int, *, kind: str, reason: str, skipped: bool = False) -> BadRow:
        row_id = unused_id(f"{self.name}:{number}", self.ids)
        self.ids[row_id] = number
        return BadRow(id=row_id, kind=kind, reason=reason, line=number, skipped=skipped)

    def _root(self, path: str) -> str | None:
        return next((root for root in self.roots if path.startswith(root.rstrip("/") + "/")), None)

    def _found(self, sample: Json) -> str | ItemError:
        """Absolute path of a sample's sound."""
        if not isinstance(sample, dict):
            return ItemError(f"this is {type_name(sample)}, not an object", kind=KIND)
        written = [sample.get(column) for column in PLACE_COLUMNS]
        for column, value in zip(PLACE_COLUMNS, written, strict=True):
            if not isinstance(value, str | None):
                return ItemError(f"`{column}` is {type_name(value)}, not the path of a file", kind=KIND)
        names = [value for value in written if value]
        if not names:
            return ItemError("it names no file: neither `audio_path` nor `filename`", kind=KIND)
        for path in self._candidates(names):
            if os.path.isfile(path):
                return os.path.abspath(path)
        hint = "correct `audio_path`, or put the file beside the JSON"
        return ItemError(
            f"there is no file {names[0]!r}, nor one of that name beside the JSON", kind="missing", hint=hint
        )

    def _candidates(self, names: Sequence[str]) -> Iterator[str]:
        for name in names:
            yield from (os.path.join(folder, os.path.expanduser(name)) for folder in self.search)
        for name in names:
            # a path of another computer, perhaps one with backslashes
            base = name.replace("\\", "/").rpartition("/")[2]
            yield from (os.path.join(folder, base) for folder in self.search if base)


def _without_fillers(columns: dict[str, Json], path: str) -> dict[str, Json]:
    """Without what dataset builders write where they know nothing: a caption made of the name, lyrics nobody gave, and
    `is_instrumental` beside words."""
    is_made_up = columns.get("labeled") is False and columns.get("caption") == caption_of_name(path)
    is_unsung = columns.get("raw_lyrics") == "" and columns.get("lyrics") == INSTRUMENTAL
    # They say of every song with an instrumental break that it is instrumental.
    lyrics = columns.get("lyrics")
    is_broken = columns.get("is_instrumental") is True and isinstance(lyrics, str) and has_words(lyrics)
    found = (("caption", is_made_up), ("lyrics", is_unsung), ("is_instrumental", is_broken))
    fillers = [name for name, is_filler in found if is_filler]
    return {key: value for key, value in columns.items() if key not in fillers}


def _no_value(_: str) -> None:
    return None
