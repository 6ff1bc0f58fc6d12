"""The split: equal to the original by id, whole groups otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.speech.split import Splitter, bucket, is_validation, recording_key, share_notes, speaker_key, text_key

GOLDEN = Path(__file__).parents[1] / "golden" / "indextts2" / "pure_functions.json"
ROWS = [
    {
        "id": f"utt{n}",
        "speaker": f"s{n % 40}",
        "text": f"Sentence number {n % 50}!",
        "audio_path": f"wavs/tape{n % 60}_{n:04}.wav",
    }
    for n in range(600)
]


def test_split_by_id_equals_the_known_answers() -> None:
    cases = json.loads(GOLDEN.read_text())["split"]
    assert len(cases) > 100
    for case in cases:
        assert bucket(case["id"]) == case["bucket"]
        for ratio in (key for key in case if key not in ("id", "bucket")):
            assert is_validation(case["id"], float(ratio)) == case[ratio], (case["id"], ratio)
            assert Splitter(ratio=float(ratio)).is_validation({"id": case["id"]}) == case[ratio]


@pytest.mark.parametrize(("by", "key_of"), [("speaker", speaker_key), ("recording", recording_key), ("text", text_key)])
def test_groups_stay_whole_and_get_about_their_share(by: Any, key_of: Any) -> None:
    splitter = Splitter(ratio=0.3, by=by)
    sides: dict[str, set[bool]] = {}
    for row in ROWS:
        sides.setdefault(key_of(row), set()).add(splitter.is_validation(row))
    assert all(len(side) == 1 for side in sides.values())
    assert 0.1 < sum(True in side for side in sides.values()) / len(sides) < 0.5


@pytest.mark.parametrize("by", ["speaker", "recording", "text"])
def test_the_seed_picks_the_groups_and_the_ratio_only_adds_to_them(by: Any) -> None:
    def chosen(**options: Any) -> set[str]:
        splitter = Splitter(by=by, **options)
        return {row["id"] for row in ROWS if splitter.is_validation(row)}

    assert chosen(ratio=0.3, seed=1) != chosen(ratio=0.3, seed=2)
    assert chosen(ratio=0.2) < chosen(ratio=0.5)
    assert chosen(ratio=0.0) == set()
    assert len(chosen(ratio=1.0)) == len(ROWS)


def test_rows_without_a_group_are_split_one_by_one() -> None:
    splitter = Splitter(ratio=0.5, by="speaker")
    sides = [splitter.is_validation({"id": f"u{n}", "speaker": ""}) for n in range(200)]
    assert 60 < sum(sides) < 140
    # A speaker whose name is an id is still a group of their own.
    named = [splitter.is_validation({"id": "x", "speaker": f"u{n}"}) for n in range(200)]
    assert named != sides


def test_a_recording_column_beats_the_name_of_the_sound() -> None:
    assert recording_key({"audio_path": "a/x_1.wav", "extra": {"recording": "tape"}}) == "tape"
    assert recording_key({"audio_path": "a/x_1.wav", "recording": 7}) == "7"
    assert recording_key({"audio_path": "a/x_1.wav", "recording": " ", "extra": {"other": 1}}) == "a/x"
    assert recording_key({"audio_path": ""}) is None
    assert recording_key({"id": "a"}) is None


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("talk-000100-000250.wav", "talk"),
        ("talk-00100-000250.wav", "talk-00100"),
        ("talk_chunk_3.wav", "talk"),
        ("talk.part12.flac", "talk"),
        ("Talk UTT 9.mp3", "Talk"),
        ("tape2.wav", "tape"),
        ("a.b.c.wav", "a.b.c"),
        ("0001.wav", None),
        ("seg_0001.wav", None),
    ],
)
def test_numbers_of_segments_are_no_part_of_a_recording(name: str, key: str | None) -> None:
    assert recording_key({"audio_path": name}) == key
    in_folder = recording_key({"audio_path": f"one/{name}"})
    assert in_folder == (None if key is None else f"one/{key}")


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=20))
def test_texts_are_the_same_whatever_case_and_punctuation(text: str) -> None:
    key = text_key({"text": text})
    assert key == text_key({"text": f"  {text} …!?  "})
    assert key is None or text_key({"text": key}) == key


def test_vowel_signs_are_part_of_a_text() -> None:
    assert text_key({"text": "कि"}) != text_key({"text": "का"})
    assert text_key({"text": "ＨＥＬＬＯ。"}) == "hello"
    assert text_key({"text": "?!"}) is None
    assert text_key({}) is None


def test_notes_about_shares() -> None:
    asked = Splitter(ratio=0.1, by="speaker")
    assert share_notes(num_train=900, num_val=100, splitter=asked) == []
    assert share_notes(num_train=0, num_val=0, splitter=asked) == []
    assert share_notes(num_train=10, num_val=0, splitter=Splitter(ratio=0.0)) == []
    off, few = share_notes(num_train=95, num_val=5, splitter=asked)
    assert off.startswith("validation has 5.00% of the rows, not the 10.00% asked for: whole groups (one speaker each)")
    assert few.startswith("validation has only 5 of 100 rows")
