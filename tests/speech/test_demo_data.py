"""The embedded speech as a manifest: true paths, measured lengths, no music."""

from __future__ import annotations

import json
from importlib.resources import files
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


def test_the_tokenizer_that_ships_spells_the_demo_and_shows_what_it_cannot_spell(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    content = (files("woodshed") / "assets" / "speech-demo-bpe.model").read_bytes()
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    assert (model.get_piece_size(), model.bos_id(), model.eos_id(), model.unk_id()) == (1000, 0, 1, 2)
    for line in demo_manifest(tmp_path).read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"].upper()
        ids = model.encode(text)
        assert model.unk_id() not in ids
        assert model.decode(ids) == " ".join(text.split())
        assert len(ids) < 3 * len(text.split())
    assert model.encode("TRY \u0416").count(model.unk_id()) == 1
