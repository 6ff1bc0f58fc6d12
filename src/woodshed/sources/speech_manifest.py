"""Speech manifests: one JSON object a line with `id`, `text` and `audio`, as the IndexTTS2 trainers' tools take them.

`speaker`, `language` and `duration` may come along, and any other column is kept. `NaN` and `Infinity`, which several
tools write for an empty cell, are read as null. What cannot be used is a `BadRow` that names its line.
"""

# A manifest can hold millions of rows: `pathlib` takes several times as long per file as `os`.
# ruff: noqa: PTH109, PTH111, PTH116, PTH120

from __future__ import annotations

import errno
import json
import math
import os
import stat
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePath

from woodshed.contracts import AudioInfo, BadRow, Item, Json
from woodshed.errors import ItemError, UsageError
from woodshed.sources.manifest import numbered_lines, type_name, unused_id

MAX_DURATION_S = 24 * 3600.0
"""A longer `duration` is taken for a mistake, such as milliseconds."""
PLAN_RATE_HZ = 16_000
"""Rate in which an announced duration is put: the one that the front end works at."""
MAX_FOLDERS_REMEMBERED = 10_000
MAX_LENGTHS_REMEMBERED = 20_000
"""Rows of one length share what is said of it: in milliseconds, as they are often given, few lengths are unlike."""

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_COLUMNS = frozenset({"id", "text", "audio", "speaker", "language", "duration"})


def read_speech_manifest(
    path: str,
    *,
    language: str | None,
    one_language: bool = False,
    compat: bool = False,
    notes: list[str] | None = None,
) -> Iterator[Item | BadRow]:
    """The rows of a speech manifest, lazily. The first row with an id has it; later ones are skipped duplicates.

    A sound is looked for under its name as written (`~` is the home folder), then under the working folder, the
    manifest's folder and the folder above that. `Item.relpath` is the name as written. `Item.meta` holds `text` as
    given, `audio_path`, `speaker` and `language` (empty where not given), `duration` (seconds, or None), `hint` (the
    run's language) where the row names none, and `extra` with all other columns where there are any. A row with a
    duration has its `Item.audio` filled from it, so that nothing needs to open the file.

    Args:
        language: the run's language, for rows that name none.
        one_language: give `hint` to all rows, as the original reads every row in the run's language.
        compat: write `audio_path` as the original does, without leading dots and slashes.
        notes: receives what the user should know, one sentence each, when the last row is read.

    Raises:
        UsageError: while reading, when the file cannot be read or has no rows.
    """
    reader = _Reader(path, language=language, one_language=one_language, compat=compat)
    for line, text in numbered_lines(path):
        if isinstance(text, ItemError):
            yield reader.bad_row("", line, kind=text.kind, reason=str(text))
        elif text and not text.isspace():
            yield reader.row(line, text)
    if not reader.first_lines:
        raise UsageError(
            f"the manifest {path} has no rows",
            hint='write one JSON object a line: {"id": ..., "text": ..., "audio": ...}',
        )
    if notes is not None:
        notes.extend(reader.notes())


def compat_audio_path(written: str, found: str, roots: Sequence[str]) -> str:
    """A sound's name as the original writes it into its manifests: all leading dots and slashes are gone.

    Args:
        written: the name in the input manifest.
        found: where the file lies.
        roots: folders that the name may be relative to; used where nothing is left of `written`.

    >>> compat_audio_path("../w/x.wav", "/data/w/x.wav", ["/data/sub"])
    'w/x.wav'
    """
    written = written.strip()
    if written and (name := PurePath(written).as_posix().lstrip("./")):
        return name
    real = PurePath(os.path.realpath(found))
    for root in roots:
        top = os.path.realpath(root)
        if real.is_relative_to(top) and (name := real.relative_to(top).as_posix().lstrip("./")):
            return name
    return real.name


class _Finder:
    """Looks sounds up in the order of the original, with one look at the disk for most."""

    def __init__(self, manifest: str) -> None:
        folder = os.path.dirname(os.path.realpath(os.path.expanduser(manifest)))
        roots = (os.path.realpath(os.getcwd()), folder, os.path.dirname(folder))
        self.roots = tuple(dict.fromkeys(f"{root.rstrip('/')}/" for root in roots))
        # A folder that a root lacks holds none of the files named below it, so that root is left out for all of them.
        self._roots_with = lru_cache(MAX_FOLDERS_REMEMBERED)(self._find_roots_with)

    def find(self, written: str) -> tuple[str, os.stat_result]:
        """The absolute path of a sound, and its status.

        Raises:
            ItemError: of kind `missing`, `unreadable` or `bad_row`.
        """
        if written.endswith(("/", "/.")):
            written = str(PurePath(written))
        barred = ""
        for path in self._candidates(written):
            try:
                status = os.stat(path)
            except ValueError as error:
                raise ItemError("`audio` holds a character that no file name can have", kind="bad_row") from error
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    barred = barred or f"{path} cannot be read: {error.strerror}"
                continue
            if stat.S_ISREG(status.st_mode):
                return path, status
        raise ItemError(barred, kind="unreadable") if barred else self._missing(written)

    def _candidates(self, written: str) -> Iterator[str]:
        if written.startswith("/"):
            yield written
            return
        if written.startswith("~") and (home := os.path.expanduser(written)).startswith("/"):
            yield home
        for root in self._roots_with(os.path.dirname(written)):
            yield root + written

    def _find_roots_with(self, folder: str) -> tuple[str, ...]:
        return tuple(root for root in self.roots if not folder or _may_hold(root + folder))

    def _missing(self, written: str) -> ItemError:
        places = [os.path.expanduser(written)] if written.startswith("~") else []
        places += [root + written for root in self.roots]
        hint = "write folders with / instead of \\" if "\\" in written else None
        where = "" if written.startswith("/") else f": looked for {', '.join(places)}"
        return ItemError(f"there is no file {written!r}{where}", kind="missing", hint=hint)


def _may_hold(folder: str) -> bool:
    """Whether there is such a folder; yes where the system does not say, so that its files get their own answer."""
    try:
        return stat.S_ISDIR(os.stat(folder).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True


class _Reader:
    """Makes rows, one line after the other; remembers the ids."""

    def __init__(self, path: str, *, language: str | None, one_language: bool, compat: bool) -> None:
        self.name = Path(path).name
        self.language, self.one_language, self.compat = language, one_language, compat
        self.finder = _Finder(path)
        self.first_lines: dict[str, int] = {}
        self.composed: dict[str, list[str]] = {}
        """Ids that are not in the composed normal form (NFC), by that form."""
        self.odd_cells: dict[str, tuple[int, int]] = {}
        """Column -> how many of its cells could not be used, and the first one's line."""

    def row(self, line: int, text: str) -> Item | BadRow:
        """The row of one line."""
        row_id = ""
        try:
            columns = _parse(text)
            row_id = _id(columns.get("id"))
            if row_id in self.first_lines:
                return self._duplicate(row_id, line)
            spoken = _required_text(columns, "text", kind="no_text")
            written = _required_text(columns, "audio", kind="no_audio")
            path, status = self.finder.find(written)
        except ItemError as error:
            return self.bad_row(row_id, line, kind=error.kind, reason=f"line {line} of {self.name}: {error}")
        self._remember(row_id, line)
        duration_s = self._duration_s(columns.get("duration"), line)
        meta: dict[str, Json] = {
            "text": spoken,
            "audio_path": compat_audio_path(written, path, self.finder.roots) if self.compat else written,
            "speaker": self._label(columns, "speaker", line),
            "language": self._label(columns, "language", line),
            "duration": duration_s,
        }
        if self.language is not None and (self.one_language or not meta["language"].strip()):
            meta["hint"] = self.language
        if not columns.keys() <= _COLUMNS:
            meta["extra"] = {key: value for key, value in columns.items() if key not in _COLUMNS}
        return Item(
            id=row_id,
            path=path,
            relpath=written,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            meta=meta,
            audio=None if duration_s is None else _announced(duration_s),
        )

    def bad_row(self, row_id: str, line: int, *, kind: str, reason: str) -> BadRow:
        """A row that cannot be used, under its own id or, where it has none, under its line."""
        row_id = row_id or unused_id(f"{self.name}:{line}", self.first_lines)
        self._remember(row_id, line)
        return BadRow(id=row_id, kind=kind, reason=reason, line=line)

    def _duplicate(self, row_id: str, line: int) -> BadRow:
        first = self.first_lines[row_id]
        own_id = unused_id(f"{self.name}:{line}", self.first_lines)
        self.first_lines[own_id] = line
        reason = f"line {line} of {self.name} has the id {row_id!r} of line {first}, which counts"
        hint = "give it another id if both are wanted"
        reason = f"{reason} (try: {hint})"
        return BadRow(id=own_id, kind="duplicate", reason=reason, skipped=True, line=line, duplicate_of=row_id)

    def _remember(self, row_id: str, line: int) -> None:
        self.first_lines[row_id] = line
        if not row_id.isascii() and not unicodedata.is_normalized("NFC", row_id):
            self.composed.setdefault(unicodedata.normalize("NFC", row_id), []).append(row_id)

    def _label(self, columns: dict[str, Json], column: str, line: int) -> str:
        value = columns.get(column)
        if isinstance(value, str):
            # one text for all the rows of a speaker
            return sys.intern(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            self._count_odd(column, line)
        return ""

    def _duration_s(self, value: Json, line: int) -> float | int | None:
        """A length in seconds that can be true, or None."""
        if value is None:
            return None
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and 0.5 / PLAN_RATE_HZ < value <= MAX_DURATION_S:
            number: float | int = value
            return number
        self._count_odd("duration", line)
        return None

    def _count_odd(self, column: str, line: int) -> None:
        count, first = self.odd_cells.get(column, (0, line))
        self.odd_cells[column] = (count + 1, first)

    def notes(self) -> Iterator[str]:
        """What the user should know about the manifest as a whole."""
        wishes = {
            "duration": f"a number of seconds up to {MAX_DURATION_S:.0f}: the length is read from the file instead",
            "speaker": "text: it is left empty",
            "language": "text: it is left empty",
        }
        for column, (count, line) in sorted(self.odd_cells.items()):
            rows = f"{count} rows have" if count > 1 else "one row has"
            yield f"{self.name}: {rows} a `{column}` that is not {wishes[column]} (the first is line {line})"
        alike = [[form] * (form in self.first_lines) + ids for form, ids in self.composed.items()]
        twins = [ids for ids in alike if len(ids) > 1]
        if twins:
            lines = " and ".join(str(self.first_lines[row_id]) for row_id in twins[0])
            yield (
                f"{self.name}: {sum(map(len, twins))} ids differ from another only in how accents are encoded "
                f"(the first on lines {lines}): they look the same and are kept apart"
            )


def _no_number(_: str) -> None:
    return None


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite)


def _parse(text: str) -> dict[str, Json]:
    try:
        columns = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ItemError(f"this is not valid JSON: {error}", kind="bad_row") from error
    if not isinstance(columns, dict):
        raise ItemError(f"this is {type_name(columns)}, not a JSON object", kind="bad_row")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(columns, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ItemError("half a surrogate pair cannot be stored as text", kind="bad_row") from error
    return columns


def _id(value: Json) -> str:
    """Raises `ItemError` where there is none."""
    if isinstance(value, str) and not value.isspace():
        row_id = value
    elif isinstance(value, int) and not isinstance(value, bool):
        row_id = str(value)
    elif value is None or isinstance(value, str):
        row_id = ""
    else:
        raise ItemError(f"`id` is {json.dumps(value)}, not text or a whole number", kind="bad_row")
    if not row_id:
        raise ItemError("there is no `id`", kind="no_id", hint="every row needs one, and no two the same")
    return row_id


def _required_text(columns: dict[str, Json], column: str, *, kind: str) -> str:
    """A cell as it is given. Raises `ItemError` of `kind` where it is blank."""
    value = columns.get(column)
    if isinstance(value, str):
        if value.strip():
            return value
    elif value is not None:
        raise ItemError(f"`{column}` is {type_name(value)}, not text", kind="bad_row")
    raise ItemError(f"there is no `{column}`", kind=kind)


@lru_cache(MAX_LENGTHS_REMEMBERED)
def _announced(duration_s: float) -> AudioInfo:
    num_samples = round(duration_s * PLAN_RATE_HZ)
    return AudioInfo(rate_hz=PLAN_RATE_HZ, num_channels=1, num_samples=num_samples, format="announced", decoder="")
