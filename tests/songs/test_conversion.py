"""From one form of sidecar to the other and back: equal, or refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sources.test_song_sidecar import COLUMNS, EVERYTHING
from woodshed.errors import ItemError
from woodshed.songs.conversion import convert
from woodshed.songs.samples import json_of
from woodshed.sources.song_fields import known_fields
from woodshed.sources.song_sidecar import known_of_text

EXTRA = st.dictionaries(
    st.sampled_from(["mood", "tags", "artist", "x"]), st.none() | st.integers() | st.text(max_size=5)
)


@given(columns=COLUMNS, extra=EXTRA)
def test_json_holds_everything(columns: dict[str, Any], extra: dict[str, Any]) -> None:
    known = known_fields({**columns, **extra}, where="x", kind="bad_row")
    assert known_fields(json.loads(json_of(known)), where="x", kind="bad_row") == known


@given(columns=COLUMNS)
def test_json_to_text_to_json_is_exact(columns: dict[str, Any]) -> None:
    known = known_fields(columns, where="x", kind="bad_row")
    text: bytes | None = None
    try:
        text = convert(known, "txt", existing=None, path="x.txt", overwrite=False).content
    except ItemError:
        # of known reasons: see `test_text_is_read_back_as_it_was_or_refused_for_a_reason`
        return
    if text is None:
        assert known == {}
        return
    back = known_of_text(text.decode(), where="x")
    assert back == known
    assert json_of(back) == json_of(known)


@pytest.mark.parametrize(
    ("existing", "overwrite", "skipped"),
    [
        (None, False, ""),
        ("", False, ""),
        ("caption: other", False, "exists"),
        ("caption: other", True, ""),
        ("bpm: fast", False, "exists"),
        ("genre: rock\nCaption: a\n", False, "equal"),
        ("genre: rock\nCaption: a\n", True, "equal"),
    ],
)
def test_what_is_there_is_left_alone(existing: str | None, overwrite: bool, skipped: str) -> None:
    known = {"caption": "a", "genre": "rock", "extra": {"mood": 1}}
    result = convert(known, "txt", existing=existing, path="x.txt", overwrite=overwrite)
    assert (result.skipped, result.content is None) == (skipped, bool(skipped))
    assert result.left_out == ("mood",), "text has no place for it"


def test_a_song_that_nothing_is_known_of_gets_no_sidecar() -> None:
    assert convert({}, "json", existing=None, path="x.json", overwrite=True).skipped == "nothing_known"
    assert (
        convert({"extra": {"mood": 1}}, "txt", existing=None, path="x.txt", overwrite=True).skipped == "nothing_known"
    )
    assert convert({"extra": {"mood": 1}}, "json", existing=None, path="x", overwrite=True).content is not None


def test_json_is_equal_only_with_its_other_columns() -> None:
    known = {**EVERYTHING, "extra": {"mood": 1}}
    written = json_of(known).decode()
    assert convert(known, "json", existing=written, path="x.json", overwrite=True).skipped == "equal"
    assert convert(EVERYTHING, "json", existing=written, path="x.json", overwrite=False).skipped == "exists"
