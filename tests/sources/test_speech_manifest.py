"""Speech manifests: what a row gives, what is refused, where sounds are looked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.contracts import BadRow, Item
from woodshed.errors import UsageError
from woodshed.sources.speech_manifest import compat_audio_path, read_speech_manifest

GOLDEN = Path(__file__).parents[1] / "golden" / "indextts2" / "pure_functions.json"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`data/lists` holds the manifest, and `elsewhere` is the working folder; `w/x.wav` exists below `data/lists`."""
    for name in ("data/lists/w/x.wav", "data/lists/x.wav", "elsewhere/y.wav", "data/z.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def read(folder: Path, *lines: object, **options: Any) -> list[Item | BadRow]:
    path = folder / "data/lists/m.jsonl"
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(texts))
    return list(read_speech_manifest(str(path), language=None, **options))


def item(row: Item | BadRow) -> Item:
    assert isinstance(row, Item), row
    return row


def row(**columns: object) -> dict[str, object]:
    return {"id": "a", "text": "hello", "audio": "x.wav"} | columns


def test_a_row_with_everything(folder: Path) -> None:
    columns = row(text=" Speaker 1: hello ", speaker="s1", language="EN", duration=2.5, room="hall", take=3)
    (found,) = read(folder, columns)
    found = item(found)
    status = (folder / "data/lists/x.wav").stat()
    assert (found.id, found.relpath, found.path) == ("a", "x.wav", str(folder / "data/lists/x.wav"))
    assert (found.size_bytes, found.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert found.meta == {
        "text": " Speaker 1: hello ",
        "audio_path": "x.wav",
        "speaker": "s1",
        "language": "EN",
        "duration": 2.5,
        "extra": {"room": "hall", "take": 3},
    }
    assert found.audio is not None
    assert (found.audio.rate_hz, found.audio.num_channels, found.audio.num_samples) == (16_000, 1, 40_000)
    assert (found.audio.format, found.audio.decoder) == ("announced", "")


def test_a_row_with_the_least(folder: Path) -> None:
    path = folder / "data/lists/m.jsonl"
    path.write_text("\ufeff" + json.dumps(row(id=7)) + "\n\n" + json.dumps(row(id="8", language="ja")))
    seven, eight = map(item, read_speech_manifest(str(path), language="am"))
    assert (seven.id, seven.audio) == ("7", None)
    assert seven.meta == {
        "text": "hello",
        "audio_path": "x.wav",
        "speaker": "",
        "language": "",
        "duration": None,
        "hint": "am",
    }
    assert (eight.meta["language"], "hint" in eight.meta) == ("ja", False)


def test_a_dirty_manifest_is_accounted_for_line_by_line(folder: Path) -> None:
    notes: list[str] = []
    rows = read(
        folder,
        row(),
        b'{"id": "torn", "text": "he',
        row(id="gone", audio="w/nowhere.wav"),
        row(id="mute", text="  \u3000 "),
        {"text": "hello", "audio": "x.wav"},
        row(text="again"),
        b"",
        row(id="deaf", audio=None),
        ["a", "list"],
        b"\xff\xfe",
        row(id=""),
        row(id=True),
        row(id=1.5),
        row(id="number", text=3),
        row(id="nul", audio="a\0b.wav"),
        b'{"id": "half", "text": "\\ud83d", "audio": "x.wav"}',
        b'{"id": "whole", "text": "\\ud83d\\ude00", "audio": "x.wav"}',
        row(id="m.jsonl:20"),
        row(id="mute"),
        row(id="mute"),
        notes=notes,
    )
    assert [(r.id, r.kind, r.line, r.skipped) if isinstance(r, BadRow) else r.id for r in rows] == [
        "a",
        ("m.jsonl:2", "bad_row", 2, False),
        ("gone", "missing", 3, False),
        ("mute", "no_text", 4, False),
        ("m.jsonl:5", "no_id", 5, False),
        ("m.jsonl:6", "duplicate", 6, True),
        ("deaf", "no_audio", 8, False),
        ("m.jsonl:9", "bad_row", 9, False),
        ("m.jsonl:10", "bad_row", 10, False),
        ("m.jsonl:11", "no_id", 11, False),
        ("m.jsonl:12", "bad_row", 12, False),
        ("m.jsonl:13", "bad_row", 13, False),
        ("number", "bad_row", 14, False),
        ("nul", "bad_row", 15, False),
        ("m.jsonl:16", "bad_row", 16, False),
        "whole",
        "m.jsonl:20",
        ("m.jsonl:19", "duplicate", 19, True),
        ("m.jsonl:20'", "duplicate", 20, True),
    ]
    assert all(isinstance(r, Item) or f"line {r.line} of m.jsonl" in r.reason for r in rows)
    assert notes == []


def test_reasons_say_what_to_do(folder: Path) -> None:
    gone, torn, first, second, number, backslash, absolute = read(
        folder,
        row(id="gone", audio="~/nowhere.wav"),
        b"{",
        row(),
        row(),
        row(id=2.5),
        row(id="b", audio="w\\x.wav"),
        row(id="c", audio="/nowhere/x.wav"),
    )
    places = [
        Path("~/nowhere.wav").expanduser(),
        *(folder / p / "~/nowhere.wav" for p in ("elsewhere", "data/lists", "data")),
    ]
    assert (
        gone.reason == f"line 1 of m.jsonl: there is no file '~/nowhere.wav': looked for {', '.join(map(str, places))}"
    )
    assert torn.reason.startswith("line 2 of m.jsonl: this is not valid JSON: ")
    assert isinstance(first, Item)
    assert second.reason == (
        "line 4 of m.jsonl has the id 'a' of line 3, which counts (try: give it another id if both are wanted)"
    )
    assert number.reason == "line 5 of m.jsonl: `id` is 2.5, not text or a whole number"
    assert backslash.reason.endswith("(try: write folders with / instead of \\)")
    assert absolute.reason == "line 7 of m.jsonl: there is no file '/nowhere/x.wav'"


def test_an_empty_or_missing_manifest_is_an_error(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"m\.jsonl has no rows .*one JSON object a line"):
        read(folder, b"", b"  ")
    with pytest.raises(UsageError, match=r"the manifest .*nothing\.jsonl cannot be read: No such file"):
        list(read_speech_manifest(str(folder / "nothing.jsonl"), language=None))


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("y.wav", "elsewhere/y.wav"),
        ("x.wav", "data/lists/x.wav"),
        ("w/x.wav", "data/lists/w/x.wav"),
        ("z.wav", "data/z.wav"),
        ("../elsewhere/y.wav", "elsewhere/../elsewhere/y.wav"),
        ("w/", None),
        ("w/x.wav/", "data/lists/w/x.wav"),
        ("w/../x.wav", "data/lists/w/../x.wav"),
        (" x.wav", None),
        ("x" * 5000, None),
    ],
)
def test_where_sounds_are_looked_for(folder: Path, written: str, found: str | None) -> None:
    (result,) = read(folder, row(audio=written))
    if found is None:
        assert isinstance(result, BadRow)
        assert result.kind == "missing"
    else:
        assert item(result).path == str(folder / found)
        assert item(result).relpath == written


def test_the_home_folder_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "data"))
    (folder / "elsewhere/~").mkdir()
    (folder / "elsewhere/~/z.wav").write_bytes(b"")
    (folder / "elsewhere/~/only.wav").write_bytes(b"")
    home, literal = read(folder, row(audio="~/z.wav"), row(id="b", audio="~/only.wav"))
    assert item(home).path == str(folder / "data/z.wav")
    assert item(literal).path == str(folder / "elsewhere/~/only.wav")


def test_a_link_to_a_manifest_counts_where_it_leads(folder: Path) -> None:
    (folder / "data/lists/m.jsonl").write_text(json.dumps(row(audio="w/x.wav")))
    (folder / "link.jsonl").symlink_to(folder / "data/lists/m.jsonl")
    (found,) = read_speech_manifest(str(folder / "link.jsonl"), language=None)
    assert item(found).path == str(folder / "data/lists/w/x.wav")


NAMES = st.sampled_from(["x.wav", "w/x.wav", "w/y.wav", "v/x.wav", "./w/x.wav", "w/v/x.wav", "../a/x.wav"])


@settings(max_examples=40, deadline=None)
@given(
    existing=st.lists(st.tuples(st.sampled_from(["cwd", "a/b", "a"]), NAMES), max_size=6),
    asked=st.lists(NAMES, min_size=1, max_size=8),
)
def test_remembering_folders_never_changes_what_is_found(
    tmp_path_factory: pytest.TempPathFactory, existing: list[tuple[str, str]], asked: list[str]
) -> None:
    top = tmp_path_factory.mktemp("roots")
    for root in ("cwd", "a/b", "a"):
        (top / root).mkdir(parents=True, exist_ok=True)
    for root, name in existing:
        (top / root / name).parent.mkdir(parents=True, exist_ok=True)
        (top / root / name).write_bytes(b"")
    lines = [json.dumps(row(id=f"{number}", audio=name)) for number, name in enumerate(asked)]
    (top / "a/b/m.jsonl").write_text("\n".join(lines))
    before = Path.cwd()
    os.chdir(top / "cwd")
    try:
        rows = list(read_speech_manifest(str(top / "a/b/m.jsonl"), language=None))
    finally:
        os.chdir(before)
    for found, name in zip(rows, asked, strict=True):
        places = [top / root / name for root in ("cwd", "a/b", "a")]
        first = next((place for place in places if place.is_file()), None)
        assert (Path(found.path) if isinstance(found, Item) else None) == first


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_what_cannot_be_reached_is_not_called_missing(folder: Path) -> None:
    (folder / "elsewhere/w").mkdir(mode=0)
    (row_found,) = read(folder, row(audio="w/nowhere.wav"))
    assert (row_found.kind, "Permission denied" in row_found.reason) == ("unreadable", True)


def test_links_in_circles_are_missing_and_not_fatal(folder: Path) -> None:
    (folder / "elsewhere/loop.wav").symlink_to("loop.wav")
    (found,) = read(folder, row(audio="loop.wav"))
    assert isinstance(found, BadRow)
    assert found.kind == "missing"


@pytest.mark.parametrize("bad", ["-1", "0", "1e-9", "1e9", "true", '"3.2"', "[1]", str(10**400)])
def test_a_duration_that_cannot_be_is_not_given_and_told_once(folder: Path, bad: str) -> None:
    notes: list[str] = []
    lines = [f'{{"id": {n}, "text": "t", "audio": "x.wav", "duration": {bad}}}'.encode() for n in range(2)]
    rows = read(folder, *lines, row(duration=1), notes=notes)
    assert [(item(r).meta["duration"], item(r).audio is None) for r in rows] == [(None, True), (None, True), (1, False)]
    (note,) = notes
    assert note.startswith("m.jsonl: 2 rows have a `duration` that is not a number of seconds up to 86400")
    assert note.endswith("(the first is line 1)")


@pytest.mark.parametrize("empty", ["null", "NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_no_json_are_empty_cells(folder: Path, empty: str) -> None:
    notes: list[str] = []
    line = f'{{"id": "a", "text": "t", "audio": "x.wav", "duration": {empty}, "speaker": {empty}, "snr": {empty}}}'
    (found,) = read(folder, line.encode(), notes=notes)
    assert item(found).meta["duration"] is None
    assert item(found).meta["speaker"] == ""
    assert item(found).meta["extra"] == {"snr": None}
    assert notes == []


def test_speakers_may_be_numbers_and_nothing_else(folder: Path) -> None:
    notes: list[str] = []
    number, odd = read(folder, row(speaker=12), row(id="b", speaker=["x"], language=5.5), notes=notes)
    assert item(number).meta["speaker"] == "12"
    assert (item(odd).meta["speaker"], item(odd).meta["language"]) == ("", "")
    assert notes == [
        "m.jsonl: one row has a `language` that is not text: it is left empty (the first is line 2)",
        "m.jsonl: one row has a `speaker` that is not text: it is left empty (the first is line 2)",
    ]


@pytest.mark.parametrize(("first", "second"), [("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9")])
def test_ids_that_only_look_the_same_are_kept_apart_and_told(folder: Path, first: str, second: str) -> None:
    notes: list[str] = []
    rows = read(folder, row(id=first), row(id="cafe"), row(id=second), row(id="x\u0301"), notes=notes)
    assert [item(r).id for r in rows] == [first, "cafe", second, "x\u0301"]
    (note,) = notes
    assert "2 ids differ from another only in how accents are encoded" in note
    assert "lines 1 and 3" in note or "lines 3 and 1" in note


def test_compat_writes_audio_paths_as_the_original(folder: Path) -> None:
    absolute = str(folder / "data/z.wav")
    names = [absolute, "./w/x.wav", "../data/z.wav", "w//./x.wav"]
    rows = read(folder, *(row(id=name, audio=name) for name in names), compat=True)
    written = [item(r).meta["audio_path"] for r in rows]
    assert written == [absolute.lstrip("/"), "w/x.wav", "data/z.wav", "w/x.wav"]
    assert [item(r).relpath for r in rows] == names


def test_compat_audio_paths_equal_the_known_answers() -> None:
    cases = json.loads(GOLDEN.read_text())["format_audio_reference"]
    found = [compat_audio_path(case["audio"], case["resolved"], case["roots"]) for case in cases]
    assert found == [case["out"] for case in cases]
    assert compat_audio_path("...", "/R/...", ["/R"]) == "..."


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b" ")),
            st.builds(
                lambda row_id, text: json.dumps(row(id=row_id, text=text)).encode(),
                st.one_of(st.sampled_from(["a", "m.jsonl:2", "m.jsonl:3"]), st.integers(0, 3), st.text(max_size=3)),
                st.text(max_size=3),
            ),
        ),
        max_size=8,
    )
)
def test_every_line_is_one_row_and_no_two_ids_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "x.wav").write_bytes(b"")
    (folder / "m.jsonl").write_bytes(b"\n".join([*lines, json.dumps(row(id="last")).encode()]))
    rows = list(read_speech_manifest(str(folder / "m.jsonl"), language="en"))
    texts = [line.decode("utf-8-sig" if n == 0 else "utf-8", "replace") for n, line in enumerate(lines)]
    assert len(rows) == 1 + sum(bool(text.strip()) for text in texts)
    assert len({r.id for r in rows}) == len(rows)
    for found in rows:
        json.dumps(found.meta if isinstance(found, Item) else found.reason, allow_nan=False)
        found.id.encode()
