"""Sources of songs: what metadata a song gets, where tags and genres come from, and that every file is told of."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from woodshed.contracts import BadRow, Item
from woodshed.errors import UsageError
from woodshed.sources.songs import TagRules, open_songs, side_step_genre_choice


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Four songs, two of them with one name; one text belongs to none."""
    files = {
        "a/song.wav": "a",
        "a/song.txt": "caption: first\nbpm: 85\nlyrics: la",
        "b/my_other-tune.mp3": "b",
        "b/song.wav": "c",
        "b/song.txt": "A calm piano",
        "b/lost.lyrics.txt": "nobody's",
        "c.flac": "d",
        "c.json": '{"genre": "rock", "custom_tag": "own", "tag_position": "replace", "mood": 3}',
        "README.txt": "not a song",
    }
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(content)
    return tmp_path / "in"


def listed(
    audio_dir: Path | None, dataset_json: Path | None = None, **options: Any
) -> tuple[dict[str, Item | BadRow], list[str]]:
    notes: list[str] = []
    source = open_songs(
        None if audio_dir is None else str(audio_dir),
        None if dataset_json is None else str(dataset_json),
        notes=notes,
        **options,
    )
    rows = list(source.rows())
    assert len({row.id for row in rows}) == len(rows)
    return {row.id: row for row in rows}, notes


def meta(row: Item | BadRow) -> dict[str, Any]:
    assert isinstance(row, Item), row
    return dict(row.meta)


def test_a_song_has_every_field(songs: Path) -> None:
    rows, _ = listed(songs)
    assert list(rows) == ["a/song.wav", "b/my_other-tune.mp3", "b/song.wav", "c.flac"]
    assert meta(rows["a/song.wav"]) == {
        "caption": "first",
        "genre": "",
        "lyrics": "la",
        "bpm": 85,
        "keyscale": "",
        "timesignature": "",
        "language": "",
        "is_instrumental": False,
        "custom_tag": "",
        "tag_position": "prepend",
        "prompt_override": None,
        "use_genre": False,
        "repeat": 1,
        "given_duration_s": None,
        "has_sidecar": True,
        "prompt": "first",
    }
    item = rows["a/song.wav"]
    assert isinstance(item, Item)
    assert (item.path, item.relpath, item.size_bytes) == (str(songs / "a/song.wav"), "a/song.wav", 1)


def test_equal_names_in_different_folders_keep_their_own_captions(songs: Path) -> None:
    rows, _ = listed(songs)
    assert [meta(rows[name])["caption"] for name in ("a/song.wav", "b/song.wav")] == ["first", "A calm piano"]


def test_a_song_that_nothing_is_known_of_has_its_name_for_a_caption(songs: Path) -> None:
    rows, notes = listed(songs)
    bare = meta(rows["b/my_other-tune.mp3"])
    assert (bare["caption"], bare["prompt"], bare["has_sidecar"]) == ("my other tune", "my other tune", False)
    assert bare["is_instrumental"]
    assert meta(rows["c.flac"])["extra"] == {"mood": 3}
    assert notes == [
        "2 songs without a caption: the file name is taken for one, which teaches little "
        "(the first is 'b/my_other-tune.mp3')",
        "one song with a text beside it that has no known key: it is read as the caption (the first is 'b/song.wav')",
        "one sidecar belongs to no song: 'b/lost.lyrics.txt'",
    ]


def test_a_run_s_tag_fills_songs_without_one(songs: Path) -> None:
    rows, _ = listed(songs, tags=TagRules(custom_tag="run", tag_position="append"))
    found = {name: (meta(row)["custom_tag"], meta(row)["tag_position"]) for name, row in rows.items()}
    assert found["c.flac"] == ("own", "replace")
    assert set(found.values()) == {("own", "replace"), ("run", "append")}


@pytest.mark.parametrize(
    ("lyrics", "is_instrumental"),
    [("", True), ("[Instrumental]", True), ("[instrumental]", True), ("la", False)],
)
def test_who_sings_follows_from_the_lyrics_unless_it_is_given(songs: Path, lyrics: str, is_instrumental: bool) -> None:
    (songs / "c.json").write_text(json.dumps({"lyrics": lyrics}))
    assert meta(listed(songs)[0]["c.flac"])["is_instrumental"] is is_instrumental
    (songs / "c.json").write_text(json.dumps({"lyrics": lyrics, "is_instrumental": not is_instrumental}))
    assert meta(listed(songs)[0]["c.flac"])["is_instrumental"] is not is_instrumental


def test_a_bad_sidecar_is_its_song_s_failure_and_no_other_s(songs: Path) -> None:
    (songs / "a/song.txt").write_text("bpm: fast")
    rows, _ = listed(songs)
    bad = rows["a/song.wav"]
    assert isinstance(bad, BadRow)
    assert (bad.kind, bad.skipped) == ("bad_sidecar", False)
    assert bad.reason == "sidecar 'song.txt': `bpm` is 'fast', but must be a number from 1 to 999"
    assert all(isinstance(row, Item) for name, row in rows.items() if name != "a/song.wav")


def test_genres_are_chosen_by_the_ratio_and_stay_when_songs_are_added(tmp_path: Path) -> None:
    for number in range(400):
        (tmp_path / f"{number}.wav").touch()
    rules = TagRules(genre_ratio=30, seed=5)
    before = {name: meta(row)["use_genre"] for name, row in listed(tmp_path, tags=rules)[0].items()}
    assert 90 <= sum(before.values()) <= 150
    for number in range(400, 500):
        (tmp_path / f"{number}.wav").touch()
    after, notes = listed(tmp_path, tags=rules)
    assert before == {name: meta(after[name])["use_genre"] for name in before}
    assert any("chosen by the genre ratio without a genre" in note for note in notes)
    other = {
        name: meta(row)["use_genre"] for name, row in listed(tmp_path, tags=TagRules(genre_ratio=30, seed=6))[0].items()
    }
    assert other != {name: meta(row)["use_genre"] for name, row in after.items()}
    assert not any(meta(row)["use_genre"] for row in listed(tmp_path)[0].values())
    assert all(meta(row)["use_genre"] for row in listed(tmp_path, tags=TagRules(genre_ratio=100))[0].values())


def test_compat_chooses_the_very_songs_of_side_step(tmp_path: Path) -> None:
    # Known answer of the rule: random.Random(42).shuffle(list(range(10))) starts with 7, 3, 2
    names = [f"{number}.wav" for number in range(10)]
    assert side_step_genre_choice({name: f"/x/{name}" for name in names}, 39) == {"7.wav", "3.wav", "2.wav"}
    for name in names:
        (tmp_path / name).touch()
    rows, _ = listed(tmp_path, tags=TagRules(genre_ratio=39), compat=True)
    assert {name for name, row in rows.items() if meta(row)["use_genre"]} == {"7.wav", "3.wav", "2.wav"}


def test_compat_takes_a_plain_text_for_lyrics_and_leaves_json_alone(songs: Path) -> None:
    rows, notes = listed(songs, compat=True)
    plain = meta(rows["b/song.wav"])
    assert (plain["caption"], plain["lyrics"]) == ("song", "A calm piano")
    assert meta(rows["c.flac"])["custom_tag"] == ""
    assert any("one song with a .json sidecar, which Side-Step does not read" in note for note in notes)


def test_excluded_folders_are_left_out(songs: Path) -> None:
    assert list(listed(songs, exclude=[str(songs / "b")])[0]) == ["a/song.wav", "c.flac"]


def test_one_sound(songs: Path) -> None:
    rows, notes = listed(songs / "a/song.wav")
    assert list(rows) == ["song.wav"]
    assert meta(rows["song.wav"])["caption"] == "first"
    assert notes == []


def test_a_manifest(songs: Path) -> None:
    path = songs / "list.csv"
    path.write_text("path,prompt,tempo,mood\na/song.wav,from csv,120.5,calm\nb/song.wav,,x,\nnope.wav,,,\n")
    for given in ((path, None), (None, path)):
        rows, _ = listed(*given)
        first = meta(rows["a/song.wav"])
        assert (first["caption"], first["bpm"], first["extra"]) == ("from csv", 121, {"mood": "calm"})
        bad = rows["b/song.wav"]
        assert isinstance(bad, BadRow)
        assert bad.reason == "row 'b/song.wav' of list.csv: `tempo` is 'x', but must be a number from 1 to 999"
        missing = rows["nope.wav"]
        assert isinstance(missing, BadRow)
        assert missing.kind == "missing"


def test_reading_again_gives_the_same_rows_and_what_the_source_is_called(songs: Path) -> None:
    source = open_songs(str(songs), None)
    assert list(source.rows()) == list(source.rows())
    tags = {"custom_tag": "", "tag_position": "prepend", "genre_ratio": 0}
    assert source.describe() == {"kind": "folder", "name": "in", "tags": tags}
    assert source.roots == (str(songs),)


def test_two_thousand_songs_in_seconds(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.wav").touch()
        (tmp_path / f"{number}.txt").write_text(f"caption: song {number}\nbpm: 90\nlyrics:\nla\n")
    started = time.perf_counter()
    rows, notes = listed(tmp_path, tags=TagRules(genre_ratio=50))
    assert time.perf_counter() - started < 10
    assert len(rows) == 2000
    assert meta(rows["77.wav"])["caption"] == "song 77"
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ((None, None), r"no songs are given \(try: give --audio-dir FOLDER or --dataset-json FILE\)"),
        (("nope", None), r"--audio-dir nope does not exist"),
        ((None, "in"), r"--dataset-json in is not a dataset.json or a manifest"),
        (("in/README.txt", None), r"--audio-dir in/README.txt is not a folder, a data set, nor a sound"),
    ],
)
def test_what_is_no_source(
    given: tuple[str | None, str | None], complaint: str, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(songs.parent)
    with pytest.raises(UsageError, match=complaint):
        open_songs(*given)


def test_a_folder_without_songs_and_a_ratio_over_100(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sound below"):
        list(open_songs(str(tmp_path), None).rows())
    with pytest.raises(UsageError, match="a genre ratio of 101 is no percentage"):
        TagRules(genre_ratio=101)
