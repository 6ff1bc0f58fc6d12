"""Manifests: columns, lines that cannot be used, duplicates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.contracts import BadRow, Item
from woodshed.errors import UsageError
from woodshed.sources.manifest import read_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav", "sub/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"xyz")
    return tmp_path


def read(folder: Path, name: str, content: str | bytes) -> list[Item | BadRow]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_manifest(str(path)))


def test_json_lines_keep_every_column(folder: Path) -> None:
    lines = [
        {"path": "a.wav", "text": "a bell", "bpm": 90, "offset": 1.5, "tags": ["x"]},
        {"audio_filepath": str(folder / "sub/c.wav"), "id": 7, "prompt": "rain", "caption": "other"},
        {"path": "./b.wav"},
    ]
    a, c, b = read(folder, "m.jsonl", "\n".join(map(json.dumps, lines)))
    assert isinstance(a, Item)
    assert (a.id, a.relpath, a.path, a.size_bytes) == ("a.wav", "a.wav", str(folder / "a.wav"), 3)
    assert a.meta == {"text": "a bell", "bpm": 90, "offset": 1.5, "tags": ["x"], "prompt": "a bell"}
    assert isinstance(c, Item)
    assert (c.id, c.relpath, c.meta) == ("7", "sub/c.wav", {"prompt": "rain", "caption": "other"})
    assert (b.id, isinstance(b, Item)) == ("b.wav", True)


def test_paths_outside_the_folder_stay_relative(folder: Path) -> None:
    (folder / "lists").mkdir()
    (row,) = read(folder / "lists", "m.jsonl", json.dumps({"path": str(folder / "a.wav")}))
    assert (row.id, isinstance(row, Item)) == ("../a.wav", True)


@pytest.mark.parametrize(("name", "mark"), [("m.csv", ","), ("m.tsv", "\t"), ("M.CSV", ",")])
def test_tables(folder: Path, name: str, mark: str) -> None:
    table = [["file", "caption", "bpm"], ["a.wav", '"two\nlines"', "90"], ["b.wav", "", ""]]
    text = "\ufeff" + "".join(mark.join(cells) + "\r\n" for cells in table) + "\r\n"
    a, b = read(folder, name, text)
    assert isinstance(a, Item)
    assert isinstance(b, Item)
    assert (a.id, a.meta) == ("a.wav", {"caption": "two\nlines", "bpm": "90", "prompt": "two\nlines"})
    assert (b.id, b.meta) == ("b.wav", {})


def test_every_bad_line_of_json_is_one_row_with_its_number(folder: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"path": "a.wav"}\r',
        b"{broken",
        b"",
        b"[1]",
        b'{"text": "no path"}',
        b'{"path": 5}',
        b'{"path": "a\\u0000.wav"}',
        b'{"path": "\\ud800.wav"}',
        b'{"path": "b.wav", "id": 1.5}',
        b'{"path": "caf\xe9.wav"}',
        b'{"path": "gone.wav"}',
        b'{"path": "sub"}',
        b'{"path": "https://example.org/a.wav"}',
        b'{"path": "a.wav"}',
        b'{"path": "b.wav", "id": "a.wav"}',
        b'{"path": "b.wav"}',
    ]
    found = read(folder, "m.jsonl", b"\n".join(lines))
    assert [row.id for row in found if isinstance(row, Item)] == ["a.wav", "b.wav"]
    bad = [row for row in found if isinstance(row, BadRow)]
    assert len({row.id for row in found}) == len(found) == 15
    expected = [
        ("m.jsonl:2", "bad_row", "line 2 of m.jsonl is not valid JSON"),
        ("m.jsonl:4", "bad_row", "line 4 of m.jsonl holds a JSON list, not an object"),
        ("m.jsonl:5", "bad_row", "line 5 of m.jsonl has no path (one of path, audio, audio_path"),
        ("m.jsonl:6", "bad_row", "line 6 of m.jsonl: `path` is a number, not the path of a file"),
        ("m.jsonl:7", "bad_row", "line 7 of m.jsonl: `path` holds a character that no file name can have"),
        ("m.jsonl:8", "bad_row", "line 8 of m.jsonl: `path` holds a character that no file name can have"),
        ("m.jsonl:9", "bad_row", "line 9 of m.jsonl: `id` is a number, not text or a whole number"),
        ("m.jsonl:10", "bad_row", "line 10 of m.jsonl is not UTF-8 (byte 13 of the line)"),
        ("gone.wav", "missing", "line 11 of m.jsonl: 'gone.wav' does not exist"),
        ("sub", "not_a_file", "line 12 of m.jsonl: 'sub' is not a regular file"),
        ("m.jsonl:13", "bad_row", "is an address, not the path of a file (try: download the sounds first)"),
        ("m.jsonl:14", "duplicate", "line 14 of m.jsonl has the id 'a.wav' of line 1 (try: an `id` column"),
        ("m.jsonl:15", "duplicate", "line 15 of m.jsonl has the id 'a.wav' of line 1"),
    ]
    for row, (row_id, kind, reason) in zip(bad, expected, strict=True):
        assert (row.id, row.kind, row.skipped) == (row_id, kind, kind == "duplicate")
        assert reason in row.reason


def test_every_bad_line_of_a_table_is_one_row_with_its_number(folder: Path) -> None:
    lines = [
        b"path,text",
        b"a.wav,one",
        b"b.wav",
        b"b.wav,x,y",
        b'"b.wav"z,x',
        b"b.wav,caf\xe9",
        b",",
        b",no path",
        b"b.wav,ok",
    ]
    found = read(folder, "m.csv", b"\n".join(lines) + b"\n")
    assert [(row.id, type(row)) for row in found] == [
        ("a.wav", Item),
        ("m.csv:3", BadRow),
        ("m.csv:4", BadRow),
        ("m.csv:5", BadRow),
        ("m.csv:6", BadRow),
        ("m.csv:8", BadRow),
        ("b.wav", Item),
    ]
    reasons = [row.reason for row in found if isinstance(row, BadRow)]
    for reason, part in zip(
        reasons,
        [
            "has 1 cells under 2 columns",
            "has 3 cells under 2",
            "is not a row of a table",
            "is not UTF-8",
            "has no path",
        ],
        strict=True,
    ):
        assert part in reason


def test_a_quote_that_never_ends_is_one_bad_row(folder: Path) -> None:
    (bad,) = read(folder, "m.csv", 'path,text\na.wav,"open\nb.wav,x\n')
    assert isinstance(bad, BadRow)
    assert bad.reason == "line 2 of m.csv is not a row of a table: unexpected end of data"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", "", "has no rows"),
        ("m.csv", "path\n", "has no rows"),
        ("m.csv", "sound,text\na.wav,x\n", "names no path: it has sound, text (try: name one column path, audio"),
        ("m.csv", "path;text\na.wav;x\n", ".csv is cut at commas, .tsv at tabs"),
        ("m.csv", "path,text,text\n", "names text more than once"),
        ("m.csv", b"path,caf\xe9\n", "the header of"),
    ],
)
def test_manifests_that_cannot_work(folder: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(folder, name, content)
    assert message in str(caught.value)


def test_endless_lines_are_not_held_in_memory(folder: Path) -> None:
    found = read(folder, "m.jsonl", b'{"path": "a.wav"}\n"' + b"x" * (40 * 2**20) + b'\n{"path": "b.wav"}\n')
    assert [row.id for row in found] == ["a.wav", "m.jsonl:2", "b.wav"]
    assert isinstance(found[1], BadRow)
    assert found[1].reason == "line 2 of m.jsonl is longer than 16 MiB"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=8))
def test_no_bytes_break_the_reader_and_each_line_gives_one_row(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.wav").write_bytes(b"x")
    found = read(folder, "m.jsonl", b"\n".join([b'{"path": "a.wav"}', *lines]))
    assert len(found) == 1 + sum(map(_holds_something, lines))
    assert len({row.id for row in found}) == len(found)


def _holds_something(line: bytes) -> bool:
    try:
        return bool(line.decode().strip())
    except UnicodeDecodeError:
        return True
