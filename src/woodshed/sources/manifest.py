"""Manifests: one row a line, JSON Lines (`.jsonl`, `.ndjson`) or a table with a header (`.csv`, `.tsv`).

A row needs a path, in the first of the columns `PATH_COLUMNS` that it has; relative paths start at the manifest's
folder. `id` names the item (default: the path), `prompt`, `caption` or `text` is its caption, and every other column is
kept as metadata: numbers stay numbers in JSON Lines, all cells of a table are text, and empty cells are left out.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from woodshed.contracts import BadRow, Item, Json
from woodshed.errors import ItemError, UsageError
from woodshed.sources.folder import file_row
from woodshed.sources.sidecar import parse_object, with_prompt

PATH_COLUMNS = ("path", "audio", "audio_path", "audio_filepath", "file", "filename", "wav")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*JSON_LINES, *DELIMITERS)
MAX_LINE_BYTES = 16 * 2**20

_Parsed = tuple[int, dict[str, Json] | ItemError]
"""Number of a row's first line, and its columns or what is wrong with it."""


def read_manifest(path: str) -> Iterator[Item | BadRow]:
    """The rows of a manifest, lazily. A row that cannot be used is a `BadRow` that names its line.

    Raises:
        UsageError: when the file cannot be read, has no rows, or its header lacks a path or repeats a column.
    """
    parse = _json_lines if _suffix(path) in JSON_LINES else _table
    name, folder = Path(path).name, str(Path(path).absolute().parent)
    first_lines: dict[str, int] = {}
    for line, columns in parse(path):
        row = _row(columns, folder=folder, where=f"line {line} of {name}")
        if row.id in first_lines:
            reason = f"line {line} of {name} has the id {row.id!r} of line {first_lines[row.id]}"
            hint = "an `id` column with different values keeps both"
            row = BadRow(id="", kind="duplicate", reason=f"{reason} (try: {hint})", skipped=True)
        if not row.id:
            row = replace(row, id=unused_id(f"{name}:{line}", first_lines))
        first_lines[row.id] = line
        yield row
    if not first_lines:
        raise UsageError(f"the manifest {path} has no rows")


def _row(columns: dict[str, Json] | ItemError, *, folder: str, where: str) -> Item | BadRow:
    """The row of one line; its id is empty where the line gives none."""
    if isinstance(columns, ItemError):
        return BadRow(id="", kind=columns.kind, reason=str(columns))
    row_id = ""
    try:
        column, written = _path_cell(columns, where)
        path = written if written.startswith("/") else f"{folder}/{written}"
        relpath = os.path.relpath(path, folder) if path is written else os.path.normpath(written)
        row_id = _id_cell(columns.get("id"), where) or relpath
    except ItemError as error:
        return BadRow(id="", kind=error.kind, reason=str(error))
    row = file_row(path, row_id=row_id, relpath=relpath, sidecars=())
    if isinstance(row, BadRow):
        return replace(row, reason=f"{where}: {row.reason}")
    meta = {key: value for key, value in columns.items() if key not in ("id", column)}
    return replace(row, meta=with_prompt(meta))


def _path_cell(columns: Mapping[str, Json], where: str) -> tuple[str, str]:
    column = next((name for name in PATH_COLUMNS if columns.get(name) not in (None, "")), None)
    if column is None:
        raise ItemError(f"{where} has no path (one of {', '.join(PATH_COLUMNS)})", kind="bad_row")
    value = columns[column]
    if not isinstance(value, str):
        raise ItemError(f"{where}: `{column}` is {type_name(value)}, not the path of a file", kind="bad_row")
    if "://" in value:
        raise ItemError(
            f"{where}: {value!r} is an address, not the path of a file",
            kind="bad_row",
            hint="download the sounds first",
        )
    if not _can_name_a_file(value):
        raise ItemError(f"{where}: `{column}` holds a character that no file name can have", kind="bad_row")
    return column, value


def _can_name_a_file(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _id_cell(value: Json, where: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ItemError(f"{where}: `id` is {type_name(value)}, not text or a whole number", kind="bad_row")


def _json_lines(path: str) -> Iterator[_Parsed]:
    for number, text in numbered_lines(path):
        where = f"line {number} of {Path(path).name}"
        if isinstance(text, ItemError):
            yield number, text
        elif text.strip():
            try:
                yield number, parse_object(text, where=where, kind="bad_row")
            except ItemError as error:
                yield number, error


def _table(path: str) -> Iterator[_Parsed]:
    name = Path(path).name
    # A quoted cell may hold line ends: the reader takes lines as it needs them, and a broken line breaks its row.
    broken: list[ItemError] = []
    reader = csv.reader(_whole_lines(path, broken), delimiter=DELIMITERS[_suffix(path)], strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        broken.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            cells = []
            broken.append(ItemError(f"line {number} of {name} is not a row of a table: {error}", kind="bad_row"))
        if cells is None:
            return
        if header is None and broken:
            raise UsageError(f"the header of {path} cannot be read: {broken[0]}")
        if header is None:
            header = _header(cells, path) if cells else None
        elif broken:
            yield number, broken[0]
        elif any(cells):
            yield number, _cells(header, cells, where=f"line {number} of {name}")


def _whole_lines(path: str, broken: list[ItemError]) -> Iterator[str]:
    for _, text in numbered_lines(path):
        if isinstance(text, ItemError):
            broken.append(text)
        yield "\n" if isinstance(text, ItemError) else text


def _suffix(path: str) -> str:
    return Path(path).suffix.lower()


def _header(cells: list[str], path: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not set(names) & set(PATH_COLUMNS):
        raise UsageError(
            f"the header of {path} names no path: it has {', '.join(names)}",
            hint=f"name one column {', '.join(PATH_COLUMNS)}; .csv is cut at commas, .tsv at tabs",
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"the header of {path} names {', '.join(repeated)} more than once")
    return names


def _cells(header: list[str], cells: list[str], *, where: str) -> dict[str, Json] | ItemError:
    if len(cells) != len(header):
        return ItemError(f"{where} has {len(cells)} cells under {len(header)} columns", kind="bad_row")
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell}


def numbered_lines(path: str) -> Iterator[tuple[int, str | ItemError]]:
    """Numbered lines as text (UTF-8, with or without a byte-order mark), or what is wrong with them."""
    name = Path(path).name
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                where = f"line {number} of {name}"
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while rest := file.readline(MAX_LINE_BYTES):
                        if rest.endswith(b"\n"):
                            break
                    yield number, ItemError(f"{where} is longer than {MAX_LINE_BYTES // 2**20} MiB", kind="bad_row")
                    continue
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    reason = f"{where} is not UTF-8 (byte {error.start} of the line)"
                    yield number, ItemError(reason, kind="bad_row", hint="save the manifest as UTF-8")
    except OSError as error:
        raise UsageError(f"the manifest {path} cannot be read: {error.strerror}") from error


def unused_id(name: str, taken: Mapping[str, int]) -> str:
    while name in taken:
        name += "'"
    return name


def type_name(value: Json) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number", str: "text"}
    return names.get(type(value), "null")
