"""Sidecars of songs: what a text means, which file wins, what is refused, and that what is written is read back."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodshed.errors import ItemError
from woodshed.sources.song_fields import FIELDS, known_fields, tidy
from woodshed.sources.song_sidecar import (
    TEXT_KEYS,
    SidecarFiles,
    SidecarReading,
    known_of_text,
    read_song_sidecars,
    sidecar_listing,
    sidecars_beside,
    text_of,
)

EVERYTHING = {
    "caption": "dreamy lo-fi: warm pads",
    "genre": "ambient, lo-fi",
    "bpm": 85,
    "keyscale": "C# minor",
    "timesignature": "6/8",
    "language": "english",
    "is_instrumental": False,
    "custom_tag": "mytag",
    "tag_position": "append",
    "prompt_override": "genre",
    "repeat": 3,
    "duration": 182.5,
    "lyrics": "[Verse]\nkey: in the door\n\n# not a comment\nbpm: 1",
}


def of(text: str, **options: Any) -> dict[str, Any]:
    return known_of_text(text, where="sidecar 'x.txt'", **options)


def read(folder: Path, compat: bool = False, **files: str | bytes) -> SidecarReading:
    """Sidecars of `song.wav`; `caption_txt="..."` writes `song.caption.txt`."""
    for suffix, content in files.items():
        path = folder / f"song.{suffix.replace('_', '.')}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_song_sidecars(beside(folder / "song.wav"), compat=compat)


def beside(sound: Path) -> SidecarFiles:
    return sidecars_beside(str(sound), sidecar_listing(path.name for path in sound.parent.iterdir()))


def test_everything_that_a_text_can_say() -> None:
    text = """# my song
        Tag_Position: append
        Caption : dreamy lo-fi: warm pads
        genre:ambient, lo-fi
        tempo: 84.5
        SCALE: C# minor
        sig: 6/8
        lang: english
        is_instrumental: No
        trigger: mytag
        # between fields, too
        prompt_override: Genre
        repeats: 3
        duration: 3:02.5
        lyrics: [Verse]
key: in the door

# not a comment
bpm: 1
"""
    assert of(text) == EVERYTHING
    assert of("\ufeff".join(["", text]).replace("\n", "\r\n").lstrip("\ufeff")) == EVERYTHING


def test_fields_span_lines_until_a_known_key() -> None:
    known = of("caption: first\n  second: not a key\n\n[third]\ngenre: a\nb")
    assert known == {"caption": "first\n  second: not a key\n\n[third]", "genre": "a\nb"}


def test_text_before_the_first_field_is_the_caption() -> None:
    assert of("A slow waltz\nbpm: 90") == {"caption": "A slow waltz", "bpm": 90}
    with pytest.raises(ItemError, match=r"`caption` is given twice.*the first stands before all fields.*keep one"):
        of("A slow waltz\ncaption: a fast one")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        *[(f"bpm: {text}", {}) for text in ("", "N/A", "unknown", "none", "NULL")],
        *[
            (f"bpm: {text}", {"bpm": number})
            for text, number in (("85", 85), ("85.0", 85), ("85.5", 86), ("8.5e1", 85))
        ],
        *[(f"key: {text}", {}) for text in ("n/a", "Unknown")],
        ("duration: 0", {}),
        ("duration: 180", {"duration": 180}),
        ("duration: 180.0", {"duration": 180.0}),
        ("duration: 1:00:05", {"duration": 3605}),
        ("is_instrumental: 1", {"is_instrumental": True}),
        ("repeat: 2.0", {"repeat": 2}),
        ("genre: unknown", {"genre": "unknown"}),
    ],
)
def test_values_of_text(line: str, expected: dict[str, Any]) -> None:
    assert of(line) == expected


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("bpm: fast", "`bpm` is 'fast', but must be a number from 1 to 999"),
        ("bpm: 0", "`bpm` is '0'"),
        ("bpm: 0.4", "`bpm` is '0.4'"),
        ("bpm: 1000", "`bpm` is '1000'"),
        ("bpm: nan", "`bpm` is 'nan'"),
        ("repeat: 0", "`repeat` is '0', but must be a whole number from 1 to 10000"),
        ("repeat: 1.5", "`repeat` is '1.5'"),
        ("prompt_override: x", "`prompt_override` is 'x', but must be caption or genre"),
        ("tag_position: middle", "`tag_position` is 'middle', but must be prepend or append or replace"),
        ("is_instrumental: maybe", "`is_instrumental` is 'maybe', but must be true or false"),
        ("duration: -1", "`duration` is '-1', but must be a number of seconds"),
        ("duration: 1e9", "`duration` is '1e9'"),
        ("bpm: 80\ntempo: 90", "`bpm` is given twice, as '80' and as '90'"),
    ],
)
def test_values_that_cannot_be(line: str, complaint: str) -> None:
    with pytest.raises(ItemError) as caught:
        of(line)
    assert str(caught.value).startswith(f"sidecar 'x.txt': {complaint}")
    assert caught.value.kind == "bad_sidecar"


def test_a_text_without_keys_is_a_caption_or_clearly_lyrics(tmp_path: Path) -> None:
    assert read(tmp_path, txt="A calm piano\n") == SidecarReading(known={"caption": "A calm piano"}, plain="caption")
    lyrics = "[Verse 1]\nRain on the pane"
    assert read(tmp_path, txt=lyrics) == SidecarReading(known={"lyrics": lyrics}, plain="lyrics")
    known = {"caption": "rain song", "lyrics": "Rain on the pane"}
    assert read(tmp_path, txt="Rain on the pane", caption_txt="rain song").known == known


def test_a_form_that_was_not_filled_in_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, txt="caption: \ngenre: \nbpm: \nkey: \nsignature: \nlyrics:\n") == SidecarReading(known={})
    assert read(tmp_path, txt=b"") == SidecarReading(known={})


def test_stronger_files_win_field_by_field(tmp_path: Path) -> None:
    reading = read(
        tmp_path,
        json=json.dumps({"caption": "of json", "bpm": None, "keyscale": "C major", "mood": ["calm"]}),
        txt="caption: of txt\nbpm: 90\nkey: C major",
        caption_txt="of caption.txt",
        lyrics_txt="\ufeffla la\r\nla ",
    )
    assert reading.known == {
        "caption": "of json",
        "bpm": 90,
        "keyscale": "C major",
        "lyrics": "la la\nla",
        "extra": {"mood": ["calm"]},
    }
    assert reading.overruled == ("caption",)


def test_names_of_sidecars_may_be_in_any_case_and_hold_dots(tmp_path: Path) -> None:
    for name in ("song.TXT", "song.Caption.txt", "song.live.txt", "song.txt.bak", "song.JSON"):
        (tmp_path / name).touch()
    files = beside(tmp_path / "song.wav")
    assert [Path(path).name for path in (files.text, files.caption, files.json) if path] == [
        "song.TXT",
        "song.Caption.txt",
        "song.JSON",
    ]
    assert not beside(tmp_path / "songs.wav")
    assert beside(tmp_path / "song.live.flac").text is not None


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"json": "[1]"}, "sidecar 'song.json' holds a JSON list, not an object"),
        ({"json": "{"}, "sidecar 'song.json' is not valid JSON"),
        ({"json": '{"caption": ["a"]}'}, "sidecar 'song.json': `caption` is a list, but must be text"),
        ({"json": '{"bpm": true}'}, "sidecar 'song.json': `bpm` is True, but must be a number"),
        ({"json": '{"caption": "\\ud800"}'}, "sidecar 'song.json': `caption` is '\\ud800', but must be text without"),
        ({"json": '{"key": "C", "keyscale": "D"}'}, "sidecar 'song.json': `keyscale` says 'D', but 'C' stands there"),
        ({"txt": b"caption: \xff"}, "sidecar 'song.txt' is not UTF-8 (byte 9)"),
        ({"lyrics_txt": b"x" * (2**22 + 1)}, "sidecar 'song.lyrics.txt' is larger than 4 MiB"),
    ],
)
def test_files_that_cannot_be_used(files: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ItemError) as caught:
        read(tmp_path, **files)
    assert str(caught.value).startswith(complaint)
    assert caught.value.kind == "bad_sidecar"


def test_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "song.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(ItemError, match=r"sidecar 'song.txt' cannot be read: .* does not exist"):
        read(tmp_path)


def test_compat_reads_as_side_step_does(tmp_path: Path) -> None:
    # a text without a caption in it is lyrics as a whole, keys and all
    assert read(tmp_path, compat=True, txt="bpm: 90\nkey: C\n").known == {"lyrics": "bpm: 90\nkey: C"}
    assert read(tmp_path, compat=True, txt="A calm \r\npiano\r\n").known == {"lyrics": "A calm \npiano"}
    text = "dropped\ncaption: a\n# stays\nis_instrumental: false\n# goes\ntempo: 85.9\nbpm: 86.9\nlyrics:\nx"
    expected = {"caption": "a\n# stays", "is_instrumental": False, "bpm": 86, "lyrics": "x"}
    assert read(tmp_path, compat=True, txt=text, json='{"caption": "not read"}').known == expected
    known = {"caption": "b", "lyrics": "y"}
    assert read(tmp_path, compat=True, txt="bpm: 90", caption_txt="b", lyrics_txt="y").known == known


def test_a_known_song_as_text() -> None:
    assert text_of(EVERYTHING).split("\n")[:4] == [
        "tag_position: append",
        "caption: dreamy lo-fi: warm pads",
        "genre: ambient, lo-fi",
        "bpm: 85",
    ]
    assert text_of(EVERYTHING).endswith("lyrics:\n[Verse]\nkey: in the door\n\n# not a comment\nbpm: 1\n")
    assert of(text_of(EVERYTHING)) == EVERYTHING
    assert text_of({}) == ""


@pytest.mark.parametrize(
    "known",
    [
        {"caption": "a song\nbpm: 90"},
        {"caption": "a song\n  Key: change in the bridge"},
        {"caption": "a song\n# 1 in the charts", "bpm": 90},
        {"genre": "a\ntempo: x"},
        {"custom_tag": " spaces "},
        {"lyrics": "line \nends in a space"},
    ],
)
def test_what_text_cannot_hold_is_refused(known: dict[str, Any]) -> None:
    with pytest.raises(ItemError, match=rf"`{next(iter(known))}` cannot be written as text") as caught:
        text_of(known)
    assert caught.value.kind == "not_text"


LINES = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["bpm: 3", "Key:", "# x", "[Verse]", "lyrics:", "tags: a", "", " ", "caption", "x: y", "\u2028", "\x0c", "N/A", "0"]
)
TEXTS = st.lists(LINES, max_size=4).map("\n".join)
COLUMNS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("caption", "genre", "lyrics", "keyscale", "timesignature", "language"), TEXTS),
        "custom_tag": TEXTS,
        "bpm": st.floats(1, 999),
        "repeat": st.integers(1, 10_000),
        "duration": st.floats(0, 86_400) | st.integers(0, 86_400),
        "is_instrumental": st.booleans(),
        "tag_position": st.sampled_from(["prepend", "append", "replace"]),
        "prompt_override": st.sampled_from(["caption", "genre", None]),
    },
)


@given(columns=COLUMNS)
def test_text_is_read_back_as_it_was_or_refused_for_a_reason(columns: dict[str, Any]) -> None:
    known = known_fields(columns, where="x", kind="bad_sidecar")
    starts = tuple(f"{key}:" for key in TEXT_KEYS)
    risky = any(
        line.lstrip().lower().replace(" ", "").startswith(("#", *starts))
        for field in FIELDS
        if field != "lyrics"
        for line in str(known.get(field, "")).split("\n")[1:]
    )
    if risky:
        with suppress(ItemError):
            assert of(text_of(known)) == known
    else:
        assert of(text_of(known)) == known


@given(text=TEXTS, compat=st.booleans())
def test_any_text_is_read_or_refused(text: str, compat: bool) -> None:
    with suppress(ItemError):
        assert set(known_of_text(text, where="x", compat=compat)) <= set(FIELDS)


@given(text=TEXTS)
def test_tidying_twice_changes_nothing(text: str) -> None:
    assert tidy(tidy(text)) == tidy(text)
