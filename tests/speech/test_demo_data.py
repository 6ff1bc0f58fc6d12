"""The embedded speech as a manifest: true paths, measured lengths, no music."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from woodshed.speech.demo_data import demo_manifest


def test_every_line_points_at_a_sound_of_the_length_it_states(tmp_path: Path) -> None:
    manifest = demo_manifest(tmp_path / "demo")
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == 11
    for row in rows:
        assert list(row) == ["id", "text", "audio", "speaker", "language", "duration"]
        sound = soundfile.info(manifest.parent / row["audio"])
        assert row["duration"] == pytest.approx(sound.frames / sound.samplerate, abs=1e-3)
        assert 1 < row["duration"] < 15
        assert row["text"] == row["text"].strip() != ""
    assert {row["speaker"] for row in rows} == {"allison-smith", "librivox-reader"}
    assert {row["language"] for row in rows} == {"en"}
    texts = {row["id"]: row["text"] for row in rows}
    assert texts["austen-0930"] == "he might even have been made amiable himself"
    assert texts["prompt-pm-invalid-option"] == "That option is invalid. Please try again."


def test_music_is_left_out_and_a_second_run_gives_the_same(tmp_path: Path) -> None:
    first = demo_manifest(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name.partition("-")[0] for path in before if path.suffix == ".opus"} == {"austen", "prompt"}
    assert demo_manifest(tmp_path) == first
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
