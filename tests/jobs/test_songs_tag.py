"""`woodshed songs tag`: tags of a whole folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.jobs.test_songs_convert import shown
from woodshed.cli.show_songs_tag import lines_of
from woodshed.errors import UsageError
from woodshed.jobs.complaints import checked
from woodshed.jobs.songs_tag import SongsTagReport, run
from woodshed.jobs.songs_tag_settings import SongsTagSettings
from woodshed.sources.songs import open_songs


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Songs with every form of sidecar, tagged and not."""
    files = {
        "bare.wav": "",
        "plain.wav": "",
        "plain.txt": "a slow waltz",
        "text.wav": "",
        "text.txt": "caption: x\nTrigger: old\nlyrics:\nla\n",
        "json.wav": "",
        "json.json": '{"caption": "y"}',
        "both.wav": "",
        "both.txt": "custom_tag: under\ncaption: z\n",
        "both.json": '{"custom_tag": "over"}',
        "ace.wav": "",
        "ace.caption.txt": "of ace",
        "twin.mp3": "",
        "twin.wav": "",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def tag(folder: Path, **settings: Any) -> SongsTagReport:
    report = run(checked(SongsTagSettings, {"folder": folder, **settings}))
    assert report.num_songs == report.num_changed + report.num_unchanged + report.num_failed
    return report


def tags_of(folder: Path) -> dict[str, str]:
    return {row.id: getattr(row, "meta", {}).get("custom_tag") for row in open_songs(str(folder), None).rows()}


def captions_of(folder: Path) -> dict[str, str]:
    return {row.id: getattr(row, "meta", {}).get("caption") for row in open_songs(str(folder), None).rows()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_tag_for_all_songs(songs: Path) -> None:
    captions = captions_of(songs)
    report = tag(songs, add="zed")
    assert tags_of(songs) == {
        "ace.wav": "zed",
        "bare.wav": "zed",
        "both.wav": "zed, over",
        "json.wav": "zed",
        "plain.wav": "zed",
        "text.wav": "zed, old",
        "twin.mp3": "zed",
        "twin.wav": "zed",
    }
    assert captions_of(songs) == captions
    assert (songs / "bare.txt").read_text() == "custom_tag: zed\n"
    assert (songs / "json.json").read_text() == '{"caption": "y", "custom_tag": "zed"}'
    assert (songs / "text.txt").read_text() == "caption: x\nTrigger: zed, old\nlyrics:\nla\n"
    assert (songs / "both.txt").read_text() == "custom_tag: under\ncaption: z\n"
    assert (report.num_songs, report.num_changed, report.num_created, report.exit_code) == (8, 7, 2, 0)
    assert report.tags == {"zed": 8, "over": 1, "old": 1}


def test_doing_it_again_changes_nothing_and_removing_it_brings_the_tags_back(songs: Path) -> None:
    before = tags_of(songs)
    tag(songs, add="zed")
    once = contents(songs)
    assert tag(songs, add="zed").num_changed == 0
    assert contents(songs) == once
    report = tag(songs, remove="zed")
    assert (report.num_changed, tags_of(songs)) == (7, before)
    assert tag(songs, remove="zed").num_changed == 0


def test_clearing_takes_the_tags_of_all_files(songs: Path) -> None:
    report = tag(songs, clear=True)
    assert set(tags_of(songs).values()) == {""}
    assert (songs / "both.txt").read_text() == "caption: z\n"
    assert (songs / "text.txt").read_text() == "caption: x\nlyrics:\nla\n"
    assert (report.num_changed, report.tags) == (2, {"": 8})
    assert not (songs / "bare.txt").exists()


def test_where_a_tag_goes(songs: Path) -> None:
    tag(songs, add="zed", position="append")
    assert tags_of(songs)["text.wav"] == "old, zed"
    tag(songs, add="neo", position="replace")
    assert set(tags_of(songs).values()) == {"neo"}


def test_listing_changes_nothing(songs: Path) -> None:
    before = contents(songs)
    report = tag(songs)
    assert (report.action, report.num_changed, report.num_failed) == ("list", 0, 0)
    assert report.tags == {"": 6, "over": 1, "old": 1}
    assert {song.id: song.after for song in report.songs}["text.wav"] == "old"
    assert contents(songs) == before


def test_a_dry_run_tells_and_writes_nothing(songs: Path) -> None:
    before = contents(songs)
    report = tag(songs, add="zed", dry_run=True)
    assert (report.num_changed, report.num_created) == (7, 2)
    assert {song.id: (song.before, song.after) for song in report.songs}["both.wav"] == ("over", "zed, over")
    assert contents(songs) == before


def test_a_sidecar_that_cannot_be_tagged_is_its_song_s_failure(songs: Path) -> None:
    (songs / "json.json").write_text("{")
    (songs / "plain.txt").write_text("a slow waltz\n# 1\n")
    report = tag(songs, add="zed")
    assert report.exit_code == 3
    assert {failure.id: failure.kind for failure in report.failures} == {
        "json.wav": "bad_sidecar",
        "plain.wav": "not_text",
    }
    assert (songs / "plain.txt").read_text() == "a slow waltz\n# 1\n"
    assert report.num_changed == 5


def test_a_part_of_a_longer_tag_is_left_alone_and_told(songs: Path) -> None:
    (songs / "text.txt").write_text("custom_tag: zed neo\n")
    report = tag(songs, remove="neo")
    assert tags_of(songs)["text.wav"] == "zed neo"
    assert report.notes == ("one song has 'neo' as a part of a longer tag, which is left alone: commas part tags",)


def test_how_the_report_reads(songs: Path) -> None:
    text = shown(lines_of(tag(songs)))
    assert text.startswith("tags of 8 songs\nsongs 8\ntags (none) (6), ")
    assert "both.wav over" in text
    assert "unchanged" not in text
    assert shown(lines_of(tag(songs, add="zed", dry_run=True))).startswith("looked only: nothing was written\n")
    text = shown(lines_of(tag(songs, add="zed")))
    assert text.startswith("done\nsongs 8\nchanged 7 (2 got a new sidecar)\nunchanged 1\n")
    assert "text.wav old zed, old" in text
    assert shown(lines_of(tag(songs, add="zed"))).startswith("nothing to do\n")
    for number in range(20):
        (songs / f"{number}.wav").touch()
    text = shown(lines_of(tag(songs, add="neo", position="replace", dry_run=True)))
    assert "to be changed 27 (20 got a new sidecar)" in text
    assert "and 17 more" in text


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"add": "a", "clear": True}, "--add and --clear do not go together"),
        ({"remove": "a", "list_tags": True}, "--remove and --list do not go together"),
        ({"add": " , "}, "--add ' , ' is no tag"),
        ({"add": "a\nb"}, r"--add 'a\\nb' is no tag"),
    ],
)
def test_what_is_no_action(settings: dict[str, Any], complaint: str, songs: Path) -> None:
    with pytest.raises(UsageError, match=complaint):
        tag(songs, **settings)


def test_a_file_is_no_folder(songs: Path) -> None:
    with pytest.raises(UsageError, match=r"bare.wav is not a folder \(try: give the folder that the songs lie in\)"):
        tag(songs / "bare.wav", add="a")
