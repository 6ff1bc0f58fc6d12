"""`woodshed songs convert`: forms of sidecars turned into each other, with an account of every song."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, Group

from woodshed.cli.show_songs_convert import lines_of
from woodshed.errors import UsageError
from woodshed.jobs.complaints import checked
from woodshed.jobs.songs_convert import SongsConvertReport, run
from woodshed.jobs.songs_convert_settings import SongsConvertSettings
from woodshed.sources.songs import open_songs


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Six sounds: JSON, text, both, none, a bad one, and two that share a sidecar."""
    files = {
        "a/one.wav": "",
        "a/one.json": '{"caption": "first", "tempo": "85.5", "mood": "calm", "lyrics": "[Verse]\\nkey: x"}',
        "b/one.wav": "",
        "b/one.txt": "caption: second\ncustom_tag: zed\n",
        "c.wav": "",
        "c.json": '{"caption": "of json"}',
        "c.txt": "caption: of txt\nbpm: 90\n",
        "d.wav": "",
        "e.wav": "",
        "e.json": '{"bpm": "fast"}',
        "f.flac": "",
        "f.mp3": "",
        "f.json": '{"genre": "rock"}',
    }
    for name, content in files.items():
        (tmp_path / "songs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "songs" / name).write_text(content)
    return tmp_path / "songs"


def convert(source: Path, **settings: Any) -> SongsConvertReport:
    report = run(checked(SongsConvertSettings, {"source": source, **settings}))
    assert isinstance(report, SongsConvertReport)
    assert report.num_songs == report.num_written + sum(report.skipped.values()) + report.num_failed
    return report


def metas(source: Path) -> dict[str, Any]:
    """What a run would know of every song, but for columns that are no field."""
    rows = open_songs(str(source), None).rows() if source.is_dir() else open_songs(None, str(source)).rows()
    return {row.id: {k: v for k, v in getattr(row, "meta", {}).items() if k != "extra"} for row in rows}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_json_becomes_text_that_means_the_same(songs: Path) -> None:
    before = metas(songs)
    report = convert(songs)
    assert (songs / "a/one.txt").read_text() == "caption: first\nbpm: 86\nlyrics:\n[Verse]\nkey: x\n"
    assert (songs / "f.txt").read_text() == "genre: rock\n"
    assert (report.num_songs, report.num_written, report.num_failed, report.exit_code) == (7, 2, 1, 3)
    assert report.skipped == {"equal": 1, "exists": 1, "nothing_known": 1, "same_sidecar": 1}
    assert [(failure.id, failure.kind) for failure in report.failures] == [("e.wav", "bad_sidecar")]
    assert metas(songs) == before
    for json_file in songs.rglob("*.json"):
        json_file.unlink()
    after = metas(songs)
    assert {name: after[name] for name in ("a/one.wav", "b/one.wav", "f.flac")} == {
        name: before[name] for name in ("a/one.wav", "b/one.wav", "f.flac")
    }


def test_what_text_cannot_hold_is_told(songs: Path) -> None:
    (songs / "d.json").write_text('{"caption": "a song\\nbpm: 90 in the bridge", "id": "x1"}')
    report = convert(songs)
    refused = next(failure for failure in report.failures if failure.id == "d.wav")
    assert refused.kind == "not_text"
    assert refused.reason.startswith("`caption` cannot be written as text")
    assert report.left_out == {"mood": 1}
    assert "text has no place for these columns, which stay where they are: mood (1)" in report.notes


def test_overwriting_merges_what_both_say(songs: Path) -> None:
    convert(songs, overwrite=True)
    assert (songs / "c.txt").read_text() == "caption: of json\nbpm: 90\n"
    again = convert(songs, overwrite=True)
    assert again.num_written == 0
    assert again.skipped["equal"] == 4


def test_text_becomes_json(songs: Path) -> None:
    report = convert(songs, to="json")
    assert json.loads((songs / "b/one.json").read_text()) == {"caption": "second", "custom_tag": "zed"}
    assert json.loads((songs / "a/one.json").read_text())["mood"] == "calm"
    assert report.left_out == {}
    assert any("one song has a .json sidecar that says something else: --overwrite" in note for note in report.notes)


def test_a_dry_run_writes_nothing(songs: Path) -> None:
    before = contents(songs)
    report = convert(songs, dry_run=True)
    assert (report.num_written, report.dry_run) == (2, True)
    assert contents(songs) == before


def test_a_data_set_becomes_sidecars(songs: Path) -> None:
    samples = [
        {"audio_path": "a/one.wav", "caption": "x", "bpm": 80, "labeled": True, "language": "unknown"},
        {"audio_path": "d.wav", "caption": "y", "custom_tag": "own"},
        {"audio_path": "gone.wav", "caption": "z"},
    ]
    about = {"custom_tag": "all", "tag_position": "append", "genre_ratio": 20}
    path = songs / "dataset.json"
    path.write_text(json.dumps({"metadata": about, "samples": samples}))
    report = convert(path)
    assert (songs / "a/one.txt").read_text() == "tag_position: append\ncaption: x\nbpm: 80\ncustom_tag: all\n"
    assert (songs / "d.txt").read_text() == "tag_position: append\ncaption: y\ncustom_tag: own\n"
    assert (report.num_written, report.failure_kinds) == (2, {"missing": 1})
    assert any("give --genre-ratio 20 to the run" in note for note in report.notes)


def test_a_folder_becomes_a_data_set(songs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gives no samples: all 7 songs failed \(try: the first: .*is empty: 0 bytes"):
        run(checked(SongsConvertSettings, {"source": songs, "to": "dataset", "output": tmp_path / "d.json"}))


def test_how_the_report_reads(songs: Path) -> None:
    text = shown(lines_of(convert(songs)))
    assert text.startswith("done, but 1 of 7 songs failed\nsongs 7\nwritten 2\n")
    assert "left alone 4 (" in text
    assert "says something else 1" in text
    assert "failed 1 (bad_sidecar 1)" in text
    assert "note: text has no place for these columns, which stay where they are: mood (1)" in text
    (songs / "e.json").unlink()
    assert shown(lines_of(convert(songs))).startswith("nothing to do\n")
    (songs / "a/one.txt").unlink()
    assert shown(lines_of(convert(songs, dry_run=True))).startswith("looked only: nothing was written\n")


def shown(page: Group) -> str:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as capture:
        console.print(page, markup=False, highlight=False)
    return "\n".join(" ".join(line.split()) for line in capture.get().split("\n"))


def test_names_of_any_bytes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    for suffix, content in ((b".wav", b""), (b".json", b'{"caption": "a"}')):
        Path(os.fsdecode(name + suffix)).write_bytes(content)
    assert convert(tmp_path).num_written == 1
    assert Path(os.fsdecode(name + b".txt")).read_text() == "caption: a\n"


def test_what_does_not_go_together(songs: Path) -> None:
    with pytest.raises(UsageError, match=r"--output goes with --to dataset: a txt sidecar lies beside its sound"):
        convert(songs, output=songs / "x")
    with pytest.raises(UsageError, match=r"SOURCE .*nope does not exist"):
        convert(songs / "nope")
    with pytest.raises(UsageError, match=r"SOURCE .*c.txt is not a dataset.json or a manifest"):
        convert(songs / "c.txt")
