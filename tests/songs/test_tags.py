"""Tags in sidecars: what changes, that nothing else does, and that doing it again changes nothing."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodshed.errors import ItemError
from woodshed.songs.tags import retagged_json, retagged_text, tags_in, with_tag, without_tag
from woodshed.sources.song_fields import tidy
from woodshed.sources.song_sidecar import known_of_text, plain_field

TAG = st.from_regex(r"[a-z#:]([a-z #:]*[a-z#:])?", fullmatch=True)
POSITION = st.sampled_from(["prepend", "append", "replace"])


def retagged(text: str, custom_tag: str, *, has_caption_file: bool = False) -> str:
    content = retagged_text(text.encode(), custom_tag, where="sidecar 'x.txt'", has_caption_file=has_caption_file)
    return content.decode()


@given(tags=st.lists(TAG, max_size=4), tag=TAG, position=POSITION)
def test_adding_twice_is_adding_once_and_removing_undoes_it(
    tags: list[str], tag: str, position: Literal["prepend", "append", "replace"]
) -> None:
    before = ", ".join(tags)
    after = with_tag(before, tag, position)
    assert tag in tags_in(after)
    assert with_tag(after, tag, position) == after
    assert set(tags_in(after)) == ({tag} if position == "replace" else {*tags, tag})
    assert tag not in tags_in(without_tag(after, tag))
    if tag not in tags and position != "replace":
        assert tags_in(without_tag(after, tag)) == tuple(tags)


@pytest.mark.parametrize(
    ("before", "tag", "after"),
    [
        # a line that is there is changed in its place, with its key, its spaces and its line end
        ("bpm: 85\r\nTrigger:\told\r\nkey: C\r\n", "zed", "bpm: 85\r\nTrigger:\tzed\r\nkey: C\r\n"),
        ("custom_tag:\nbpm: 85", "zed", "custom_tag: zed\nbpm: 85"),
        ("custom_tag: a\n  b\n\n# comment\nbpm: 85\n", "zed", "custom_tag: zed\n\n# comment\nbpm: 85\n"),
        ("bpm: 85\ncustom_tag: old", "zed", "bpm: 85\ncustom_tag: zed"),
        ("tags: old\nbpm: 85\ntrigger: old\n", "zed", "tags: zed\nbpm: 85\n"),
        # a new line stands before the lyrics, or at the end
        ("caption: x\nlyrics:\ncustom_tag: sung\n", "zed", "caption: x\ncustom_tag: zed\nlyrics:\ncustom_tag: sung\n"),
        ("caption: x", "zed", "caption: x\ncustom_tag: zed\n"),
        ("# mine\ncaption: x  \n\n", "zed", "# mine\ncaption: x  \n\ncustom_tag: zed\n"),
        ("A slow waltz\nbpm: 90\n", "zed", "A slow waltz\nbpm: 90\ncustom_tag: zed\n"),
        ("", "zed", "custom_tag: zed\n"),
        # a plain text gets a key, or it would become a part of the tag
        ("A slow waltz\n", "zed", "custom_tag: zed\ncaption: A slow waltz\n"),
        # taking it away
        ("bpm: 85\ntrigger: old\nkey: C\n", "", "bpm: 85\nkey: C\n"),
        ("custom_tag: a\nb\n\n# comment\nbpm: 85\n", "", "\n# comment\nbpm: 85\n"),
        ("A slow waltz\n", "", "A slow waltz\n"),
        ("caption: x\nlyrics: la\ntags: sung", "", "caption: x\nlyrics: la\ntags: sung"),
    ],
)
def test_only_the_tag_changes(before: str, tag: str, after: str) -> None:
    assert retagged(before, tag) == after
    assert retagged(after, tag) == after


def test_plain_lyrics_stay_lyrics_and_the_byte_order_mark_stays() -> None:
    assert retagged("[Verse]\nla", "zed") == "custom_tag: zed\nlyrics:\n[Verse]\nla"
    assert retagged("la", "zed", has_caption_file=True) == "custom_tag: zed\nlyrics:\nla"
    marked = retagged_text("\ufeffbpm: 85\n".encode(), "zed", where="x", has_caption_file=False)
    assert marked == "\ufeffbpm: 85\ncustom_tag: zed\n".encode()


def test_a_text_that_cannot_take_a_tag_is_refused() -> None:
    with pytest.raises(
        ItemError, match=r"sidecar 'x.txt' cannot take the tag 'zed': it would not be read back"
    ) as error:
        retagged("A slow waltz\n# number one\n", "zed")
    assert error.value.kind == "not_text"
    with pytest.raises(ItemError, match=r"is not UTF-8 \(byte 0\)"):
        retagged_text(b"\xff", "zed", where="sidecar 'x.txt'", has_caption_file=False)


LINES = st.lists(
    st.sampled_from(["caption: a", "more", "", "# c", "bpm: 85", "Tags: x, y", "  z", "key: C", "lyrics:", "[Verse]"]),
    max_size=8,
)


@given(lines=LINES, end=st.sampled_from(["\n", "\r\n", "\r"]), tag=TAG | st.just(""))
def test_every_other_field_is_read_as_before(lines: list[str], end: str, tag: str) -> None:
    text = end.join(lines)
    try:
        before, after = known_of(text), retagged(text, tag)
    except ItemError:
        return
    found = known_of(after)
    assert found.pop("custom_tag", "") == tag
    assert found == {field: value for field, value in before.items() if field != "custom_tag"}
    assert retagged(after, tag) == after


def known_of(text: str) -> dict[str, Any]:
    plain = plain_field(text, has_caption_file=False)
    return known_of_text(text, where="x") if plain is None else {plain: tidy(text)}


@pytest.mark.parametrize(
    ("before", "tag", "after"),
    [
        ('{"caption": "é", "trigger": "old", "bpm": 85}', "zed", '{"caption": "é", "trigger": "zed", "bpm": 85}'),
        ('{\n    "bpm": 85.5\n}\n', "zed", '{\n    "bpm": 85.5,\n    "custom_tag": "zed"\n}\n'),
        ('{"custom_tag": "a", "bpm": 85}', "", '{"bpm": 85}'),
        ('{"tags": ["rock"]}', "", '{"tags": ["rock"]}'),
        ("", "zed", '{"custom_tag": "zed"}\n'),
    ],
)
def test_json_keeps_its_order_and_indent(before: str, tag: str, after: str) -> None:
    assert retagged_json(before.encode(), tag, where="x").decode() == after


def test_json_keeps_every_value() -> None:
    columns = {"a": 1e-7, "b": [None, True, {"c": "\u2028"}], "custom_tag": None}
    after = json.loads(retagged_json(json.dumps(columns).encode(), "zed", where="x"))
    assert after == columns | {"custom_tag": "zed"}
