"""Names of feature files: safe everywhere, never two alike, and the id itself where it can be."""

from __future__ import annotations

import unicodedata

from hypothesis import example, given, settings
from hypothesis import strategies as st

from woodshed.contracts import BadRow, Item
from woodshed.speech.stems import Stems, with_stems
from woodshed.store.names import checked_relpath

IDS = st.one_of(
    st.text(alphabet="aAbB%~._-/1", min_size=1, max_size=4),
    st.text(alphabet="aA", min_size=148, max_size=210),
    st.sampled_from(["con", "CON", "Con.x", "%63on", "~a", "..", "café", "cafe\u0301", "CAFÉ", "a\nb", "\0"]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80),
)


def seen_by_a_forgetful_disk(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(IDS, unique=True, max_size=12))
@example(ids=["ABC", "abc", "aBC", "%61bc"])
@example(ids=["abc", "ABC", "~a~b~c"])
@example(ids=["A" * 150, "a" * 150, "a" * 151, "A" * 151])
def test_no_two_stems_are_alike_on_any_disk(ids: list[str]) -> None:
    stems = Stems()
    names = [stems.stem(row_id) + ".npy" for row_id in ids]
    assert len({seen_by_a_forgetful_disk(name) for name in names}) == len(ids)
    for name in names:
        assert checked_relpath(f"codes/{name}") == f"codes/{name}"
        assert len(name.encode()) <= 204
        assert name.isascii()
        assert not set(name) & set('<>:"/\\|?*')
        assert not name.startswith(".")
        assert name.split(".")[0].lower() not in ("con", "prn", "aux", "nul", "com1", "lpt9")


def test_usual_ids_keep_their_name() -> None:
    stems = Stems()
    assert [stems.stem(row_id) for row_id in ("LJ001-0001", "utt_1.b", "84-121123-0003")] == [
        "LJ001-0001",
        "utt_1.b",
        "84-121123-0003",
    ]


def test_dangerous_ids_stay_in_the_folder() -> None:
    stems = Stems()
    names = [stems.stem(row_id) for row_id in ("../../x", "/etc/passwd", "a/b", "a\nb", "7", ".hidden", "nul")]
    assert names == ["%2e.%2f..%2fx", "%2fetc%2fpasswd", "a%2fb", "a%0ab", "7", "%2ehidden", "%6eul"]


def test_rows_get_stems_that_do_not_change_when_a_sound_turns_up() -> None:
    def item(row_id: str) -> Item:
        return Item(id=row_id, path="/x", relpath="x", size_bytes=1, mtime_ns=1, meta={"text": "t"})

    late = [item("ABC"), item("abc")]
    early = [BadRow(id="ABC", kind="missing", reason="no file"), item("abc")]
    assert [row.meta for row in with_stems(late) if isinstance(row, Item)] == [
        {"text": "t"},
        {"text": "t", "stem": "%61bc"},
    ]
    bad, abc = with_stems(early)
    assert isinstance(bad, BadRow)
    assert isinstance(abc, Item)
    assert abc.meta["stem"] == "%61bc"
