"""The leak audit against a slow and plain count."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.speech.leaks import LeakAudit
from woodshed.speech.split import GROUP_KEYS

ROWS = st.lists(
    st.tuples(
        st.fixed_dictionaries(
            {
                "id": st.text(max_size=2),
                "speaker": st.sampled_from(["", "a", "b", "c"]),
                "text": st.sampled_from(["", "Hi.", "hi", "bye", "bye bye"]),
                "audio_path": st.sampled_from(["x_1.wav", "x_2.wav", "y_1.wav", "7.wav"]),
            }
        ),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS)
def test_counts_equal_a_plain_count(rows: list[tuple[dict[str, Any], bool]]) -> None:
    audit = LeakAudit()
    for row, is_val in rows:
        audit.add(row, is_val=is_val)
    for leak in audit.leaks():
        keys = [(GROUP_KEYS[leak.kind](row), is_val) for row, is_val in rows]
        train = {key for key, is_val in keys if not is_val} - {None}
        val = {key for key, is_val in keys if is_val} - {None}
        assert (leak.num_train, leak.num_val, leak.num_both) == (len(train), len(val), len(train & val))
        assert leak.num_val_rows == sum(is_val and key in train & val for key, is_val in keys)
        assert len(leak.examples) == min(3, leak.num_both)


def test_notes_name_examples_and_the_cure() -> None:
    audit = LeakAudit()
    audit.add({"id": "1", "speaker": "anna", "text": "Hello, you!", "audio_path": "a_1.wav"}, is_val=False)
    audit.add({"id": "2", "speaker": "anna", "text": "hello you", "audio_path": "b_1.wav"}, is_val=True)
    audit.add({"id": "3", "speaker": "anna", "text": "x" * 99, "audio_path": "c_1.wav"}, is_val=True)
    assert audit.notes() == [
        "1 of 1 speakers in validation are in training too, with 2 rows (such as 'anna'): --split-by speaker keeps "
        "each on one side",
        "1 of 2 texts in validation are in training too, with 1 rows (such as 'hello you'): --split-by text keeps "
        "each on one side",
    ]


def test_nothing_leaks_from_nothing() -> None:
    audit = LeakAudit()
    assert audit.notes() == []
    assert [leak.num_both for leak in audit.leaks()] == [0, 0, 0]


def test_long_texts_are_cut_in_examples() -> None:
    audit = LeakAudit()
    for is_val in (False, True):
        audit.add({"id": "1", "speaker": None, "text": "word " * 40, "audio_path": ""}, is_val=is_val)
    (text,) = (leak for leak in audit.leaks() if leak.kind == "text")
    assert [len(example) for example in text.examples] == [60]
