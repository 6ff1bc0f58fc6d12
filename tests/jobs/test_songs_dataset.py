"""`woodshed songs dataset`: a folder as one file, which is read back as the same songs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.jobs.test_songs_convert import shown
from woodshed.cli.show_songs_dataset import lines_of
from woodshed.errors import UsageError
from woodshed.jobs.complaints import checked
from woodshed.jobs.songs_convert import run as convert
from woodshed.jobs.songs_convert_settings import SongsConvertSettings
from woodshed.jobs.songs_dataset import SongsDatasetReport, run
from woodshed.jobs.songs_dataset_settings import SongsDatasetSettings
from woodshed.sources.songs import TagRules, open_songs

DIFFERS = ("extra", "given_duration_s")
"""The file's own books, and the length that it measures."""


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    for number, name in enumerate(("a/one.wav", "b/one.wav", "my_other-tune.flac", "x.wav")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.zeros(8000 * (number + 2) - 10, np.float32), 8000)
    (folder / "a/one.txt").write_text(
        "tag_position: append\ncaption: first é\ngenre: rock\nbpm: 85\nkey: C minor\nsignature: 4/4\n"
        "language: english\ntrigger: own\nprompt_override: genre\nrepeat: 3\nduration: 99\nlyrics:\n[Verse]\nla: la\n"
    )
    (folder / "b/one.json").write_text('{"caption": "second", "is_instrumental": false, "mood": ["calm"]}')
    (folder / "x.txt").write_text("lyrics: [instrumental]")
    return folder


def dataset(folder: Path, **settings: Any) -> SongsDatasetReport:
    report = run(checked(SongsDatasetSettings, {"folder": folder, **settings}))
    assert report.num_songs == report.num_written + sum(report.skipped.values()) + report.num_failed
    return report


def metas(audio_dir: Path | None, dataset_json: Path | None, tags: TagRules | None = None) -> dict[str, Any]:
    given = [None if path is None else str(path) for path in (audio_dir, dataset_json)]
    rows = open_songs(*given, tags=tags).rows()
    return {row.id: {k: v for k, v in getattr(row, "meta", {}).items() if k not in DIFFERS} for row in rows}


def test_the_file_is_read_back_as_the_same_songs(songs: Path) -> None:
    report = dataset(songs)
    assert (report.num_written, report.num_captioned, report.is_written, report.exit_code) == (4, 2, True, 0)
    assert metas(None, songs / "dataset.json") == metas(songs, None)
    dataset(songs, custom_tag=" run ", tag_position="replace", genre_ratio=30, overwrite=True)
    rules = TagRules(custom_tag="run", tag_position="replace", genre_ratio=30)
    assert metas(None, songs / "dataset.json") == metas(songs, None, rules)


def test_a_sample_has_the_fields_of_side_step(songs: Path) -> None:
    dataset(songs, name="mine", custom_tag="run", genre_ratio=30)
    content = json.loads((songs / "dataset.json").read_text())
    assert content["metadata"] == {
        "name": "mine",
        "custom_tag": "run",
        "tag_position": "prepend",
        "num_samples": 4,
        "all_instrumental": False,
        "genre_ratio": 30,
    }
    first = content["samples"][0]
    assert len(first.pop("id")) == 12
    assert first == {
        "audio_path": "a/one.wav",
        "filename": "one.wav",
        "caption": "first é",
        "genre": "rock",
        "lyrics": "[Verse]\nla: la",
        "raw_lyrics": "[Verse]\nla: la",
        "formatted_lyrics": "",
        "bpm": 85,
        "keyscale": "C minor",
        "timesignature": "4/4",
        "duration": 1,
        "language": "english",
        "is_instrumental": False,
        "custom_tag": "own",
        "labeled": True,
        "prompt_override": "genre",
        "repeat": 3,
        "tag_position": "append",
    }
    bare = content["samples"][2]
    assert (bare["caption"], bare["lyrics"], bare["labeled"]) == ("my other tune", "[Instrumental]", False)
    assert (bare["custom_tag"], bare["bpm"], bare["language"]) == ("run", None, "unknown")
    assert content["samples"][1]["mood"] == ["calm"]


def test_the_same_songs_give_the_same_bytes_and_nothing_is_written_twice(songs: Path) -> None:
    dataset(songs)
    path = songs / "dataset.json"
    first, changed_ns = path.read_bytes(), path.stat().st_mtime_ns
    report = dataset(songs)
    assert (report.is_written, report.exit_code) == (False, 0)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (first, changed_ns)
    ids = [sample["id"] for sample in json.loads(first)["samples"]]
    (songs / "0.wav").write_bytes((songs / "x.wav").read_bytes())
    dataset(songs, overwrite=True)
    assert [sample["id"] for sample in json.loads(path.read_text())["samples"]][1:] == ids


def test_another_data_set_is_left_alone_unless_told(songs: Path) -> None:
    path = songs / "dataset.json"
    path.write_text('{"samples": [{"audio_path": "x.wav"}]}')
    with pytest.raises(UsageError, match=r"dataset.json exists and says something else \(try: --overwrite replaces it"):
        dataset(songs)
    assert dataset(songs, overwrite=True).is_written
    path.write_text('{"not": "a data set"}')
    with pytest.raises(UsageError, match="is no data set of songs, so it is not written over"):
        dataset(songs, overwrite=True)
    assert path.read_text() == '{"not": "a data set"}'


def test_a_file_elsewhere_names_sounds_by_their_whole_path(songs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    report = dataset(songs, output=tmp_path / "out")
    assert report.output == str(tmp_path / "out/dataset.json")
    samples = json.loads((tmp_path / "out/dataset.json").read_text())["samples"]
    assert samples[0]["audio_path"] == str(songs / "a/one.wav")
    assert metas(None, tmp_path / "out/dataset.json") == metas(songs, None)
    with pytest.raises(UsageError, match=r"its folder does not exist \(try: mkdir -p"):
        dataset(songs, output=tmp_path / "nope/d.json")


def test_a_song_that_cannot_be_used_is_left_out_with_its_reason(songs: Path) -> None:
    (songs / "b/one.json").write_text('{"repeat": 0}')
    (songs / "empty.wav").touch()
    report = dataset(songs)
    assert (report.num_songs, report.num_written, report.exit_code) == (5, 3, 3)
    assert {failure.id: failure.kind for failure in report.failures} == {
        "b/one.wav": "bad_sidecar",
        "empty.wav": "empty",
    }
    assert report.audio_s == pytest.approx(2 + 4 + 5, abs=0.01)


def test_equal_names_are_told_of(songs: Path) -> None:
    assert any("songs of one name in different folders: 'one.wav'" in note for note in dataset(songs).notes)


def test_a_dry_run_writes_nothing(songs: Path) -> None:
    report = dataset(songs, dry_run=True)
    assert (report.num_written, report.is_written) == (4, False)
    assert not (songs / "dataset.json").exists()


def test_how_the_report_reads(songs: Path) -> None:
    (songs / "empty.wav").touch()
    text = shown(lines_of(dataset(songs)))
    assert text.startswith(
        "done, but 1 of 5 songs failed and are not in the file\nsongs 5\nsamples 4 (2 with a caption"
    )
    assert f"woodshed songs --dataset-json {songs}/dataset.json" in text.replace("\n", " ")
    (songs / "empty.wav").unlink()
    assert shown(lines_of(dataset(songs))).startswith("nothing to do: the file says this already\n")


def test_convert_to_dataset_is_the_same(songs: Path, tmp_path: Path) -> None:
    dataset(songs, output=songs / "one.json")
    report = convert(checked(SongsConvertSettings, {"source": songs, "to": "dataset", "output": songs / "two.json"}))
    assert report.exit_code == 0
    assert (songs / "one.json").read_bytes() == (songs / "two.json").read_bytes()
