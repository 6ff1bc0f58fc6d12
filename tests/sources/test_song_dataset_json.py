"""`dataset.json`: where sounds are looked for, what ids are, which rows are refused, and what `metadata` says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from woodshed.contracts import BadRow, Item
from woodshed.errors import UsageError
from woodshed.sources.songs import TagRules, open_songs

SAMPLE = {
    "id": "00edb2c3",
    "audio_path": "./songs/track1.mp3",
    "filename": "track1.mp3",
    "caption": "An energetic rock track",
    "genre": "Rock",
    "lyrics": "[Verse 1]\nRising up",
    "raw_lyrics": "",
    "bpm": 140,
    "keyscale": "E minor",
    "timesignature": "4",
    "duration": 180,
    "language": "en",
    "is_instrumental": False,
    "custom_tag": "",
    "labeled": True,
    "prompt_override": None,
}


def rows_of(folder: Path, value: object, *, audio_dir: Path | None = None, **options: Any) -> list[Item | BadRow]:
    path = folder / "dataset.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    rows = list(open_songs(None if audio_dir is None else str(audio_dir), str(path), **options).rows())
    assert len({row.id for row in rows}) == len(rows)
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("data/songs/track1.mp3", "data/track2.wav", "data/b/track1.mp3", "far/x/one.wav", "far/y/one.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path / "data"


def item(row: Item | BadRow) -> Item:
    assert isinstance(row, Item), row
    return row


def bad(row: Item | BadRow) -> BadRow:
    assert isinstance(row, BadRow), row
    return row


def test_a_sample_as_the_dataset_builder_writes_it(folder: Path) -> None:
    about = {"custom_tag": "mytag", "tag_position": "append", "genre_ratio": 100, "name": "x", "num_samples": 1}
    (row,) = rows_of(folder, {"metadata": about, "samples": [SAMPLE]})
    assert (item(row).id, item(row).path) == ("songs/track1.mp3", str(folder / "songs/track1.mp3"))
    assert row.meta == {  # type: ignore[union-attr]
        "caption": "An energetic rock track",
        "genre": "Rock",
        "lyrics": "[Verse 1]\nRising up",
        "bpm": 140,
        "keyscale": "E minor",
        "timesignature": "4",
        "language": "en",
        "is_instrumental": False,
        "custom_tag": "mytag",
        "tag_position": "append",
        "prompt_override": None,
        "use_genre": True,
        "repeat": 1,
        "given_duration_s": 180,
        "has_sidecar": True,
        "prompt": "An energetic rock track",
        "extra": {"id": "00edb2c3", "raw_lyrics": "", "labeled": True},
    }


def test_the_run_s_own_rules_stand_above_those_of_the_file(folder: Path) -> None:
    about = {"custom_tag": "file", "tag_position": "append", "genre_ratio": 100}
    rules = TagRules(custom_tag="run", tag_position="replace", genre_ratio=0)
    (row,) = rows_of(folder, {"metadata": about, "samples": [SAMPLE]}, tags=rules)
    meta = item(row).meta
    assert (meta["custom_tag"], meta["tag_position"], meta["use_genre"]) == ("run", "replace", False)


def test_a_bare_list_and_files_of_another_computer(folder: Path) -> None:
    rows = rows_of(
        folder,
        [
            {"audio_path": "C:\\music\\track2.wav", "filename": "track2.wav"},
            {"audio_path": "/home/else/track1.mp3", "filename": "songs/track1.mp3"},
            {"filename": "b/track1.mp3"},
        ],
    )
    assert [item(row).id for row in rows] == ["track2.wav", "songs/track1.mp3", "b/track1.mp3"]


def test_a_windows_path_without_a_filename_is_found_beside_the_json(folder: Path) -> None:
    (row,) = rows_of(folder, [{"audio_path": "D:\\x\\track2.wav"}])
    assert item(row).id == "track2.wav"


def test_songs_elsewhere_are_named_from_the_folder_they_share(folder: Path) -> None:
    far = folder.parent / "far"
    paths = [str(far / "x/one.wav"), str(far / "y/one.wav"), "track2.wav"]
    rows = rows_of(folder, [{"audio_path": path} for path in paths])
    assert [item(row).id for row in rows] == ["x/one.wav", "y/one.wav", "track2.wav"]


def test_ids_of_different_roots_never_meet(folder: Path) -> None:
    outside = folder.parent / "far" / "track2.wav"
    outside.touch()
    rows = rows_of(folder, [{"audio_path": "track2.wav"}, {"audio_path": str(outside)}])
    assert [item(row).id for row in rows] == ["track2.wav", "track2.wav'"]


def test_sounds_are_looked_for_in_the_audio_folder_too(folder: Path) -> None:
    rows = rows_of(folder, [{"audio_path": "x/one.wav"}], audio_dir=folder.parent / "far")
    assert [(item(row).id, item(row).path) for row in rows] == [("x/one.wav", str(folder.parent / "far/x/one.wav"))]


def test_every_sample_is_accounted_for(folder: Path) -> None:
    rows = rows_of(
        folder,
        [
            SAMPLE,
            SAMPLE | {"audio_path": "songs/../songs/track1.mp3"},
            {"audio_path": "nope.wav"},
            3,
            {"caption": "no file"},
            {"audio_path": ["a"]},
            {"audio_path": "track2.wav", "bpm": "fast"},
            {"audio_path": "b/track1.mp3", "repeat": 0},
        ],
    )
    assert [(row.id, row.kind, row.skipped, row.line) for row in map(bad, rows[1:])] == [
        ("dataset.json:2", "duplicate", True, 2),
        ("dataset.json:3", "missing", False, 3),
        ("dataset.json:4", "bad_row", False, 4),
        ("dataset.json:5", "bad_row", False, 5),
        ("dataset.json:6", "bad_row", False, 6),
        ("track2.wav", "bad_row", False, 7),
        ("b/track1.mp3", "bad_row", False, 8),
    ]
    assert [bad(row).reason for row in rows[1:]] == [
        "sample 2 of dataset.json is the same file as sample 1, which counts",
        "sample 3 of dataset.json: there is no file 'nope.wav', nor one of that name beside the JSON "
        "(try: correct `audio_path`, or put the file beside the JSON)",
        "sample 4 of dataset.json: this is a number, not an object",
        "sample 5 of dataset.json: it names no file: neither `audio_path` nor `filename`",
        "sample 6 of dataset.json: `audio_path` is a list, not the path of a file",
        "sample 7 of dataset.json: `bpm` is 'fast', but must be a number from 1 to 999",
        "sample 8 of dataset.json: `repeat` is 0, but must be a whole number from 1 to 10000",
    ]


def test_numbers_as_other_tools_write_them(folder: Path) -> None:
    (row,) = rows_of(folder, '[{"audio_path": "track2.wav", "bpm": NaN, "timesignature": 4, "duration": 0.0}]')
    meta = item(row).meta
    assert (meta["bpm"], meta["timesignature"], meta["given_duration_s"]) == (None, "4", None)


def test_compat_gives_no_captions_and_leaves_texts_as_they_are(folder: Path) -> None:
    samples = [{"audio_path": "track2.wav", "lyrics": " la \n", "bpm": 99.9}]
    meta = item(rows_of(folder, samples, compat=True)[0]).meta
    assert (meta["caption"], meta["lyrics"], meta["bpm"]) == ("", " la \n", 99)
    assert "prompt" not in meta
    meta = item(rows_of(folder, samples)[0]).meta
    assert (meta["caption"], meta["lyrics"], meta["bpm"]) == ("track2", "la", 100)


def test_what_builders_write_where_they_know_nothing_is_not_known(folder: Path) -> None:
    filler = {
        "labeled": False,
        "caption": "track2",
        "lyrics": "[Instrumental]",
        "raw_lyrics": "",
        "language": "unknown",
    }
    sample = {"audio_path": "track2.wav", **filler}
    meta = item(rows_of(folder, [sample])[0]).meta
    assert (meta["caption"], meta["lyrics"], meta["has_sidecar"]) == ("track2", "", False)
    meta = item(rows_of(folder, [sample], compat=True)[0]).meta
    assert (meta["lyrics"], meta["has_sidecar"]) == ("[Instrumental]", True)
    meta = item(rows_of(folder, [sample | {"labeled": True}])[0]).meta
    assert meta["has_sidecar"], "somebody wrote this caption"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("{", r"dataset.json is not valid JSON"),
        ({"sample": []}, r"is no data set of songs: it holds an object with sample \(try: it must be"),
        ("3", r"is no data set of songs: it holds a number"),
        ([], r"has no samples"),
        ({"samples": [SAMPLE], "metadata": []}, r"`metadata` of .* is a list, not an object"),
        ({"samples": [SAMPLE], "metadata": {"tag_position": "x"}}, r"`tag_position` is 'x' \(try: allowed: prepend"),
        ({"samples": [SAMPLE], "metadata": {"genre_ratio": 101}}, r"`genre_ratio` is 101, not a percentage"),
        ({"samples": [SAMPLE], "metadata": {"custom_tag": 3}}, r"`custom_tag` is a number, not text"),
    ],
)
def test_what_is_no_data_set(value: object, complaint: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=complaint):
        rows_of(folder, value)


def test_two_thousand_samples_in_seconds(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.wav").touch()
    started = time.perf_counter()
    rows = rows_of(tmp_path, [SAMPLE | {"audio_path": f"{number}.wav", "filename": ""} for number in range(2000)])
    assert time.perf_counter() - started < 10
    assert all(isinstance(row, Item) for row in rows)
