"""A song with an instrumental break has words, whoever says that it is instrumental."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from woodshed.contracts import Item
from woodshed.sources.songs import open_songs

BREAK = "[Verse]\nreal words here\n[Instrumental]\n[Chorus]\nmore words"


def song(folder: Path) -> None:
    soundfile.write(folder / "song.wav", np.zeros((4800, 2)), 48_000)


def only(folder: Path, notes: list[str], *, dataset: str | None = None, compat: bool = False) -> Item:
    source = open_songs(str(folder), dataset, compat=compat, notes=notes)
    (row,) = source.rows()
    assert isinstance(row, Item)
    return row


def test_lyrics_with_a_break_are_sung(tmp_path: Path) -> None:
    song(tmp_path)
    (tmp_path / "song.txt").write_text(f"caption: x\nlyrics:\n{BREAK}\n")
    row = only(tmp_path, [])
    assert row.meta["is_instrumental"] is False
    assert row.meta["lyrics"] == BREAK


def test_lyrics_of_marks_alone_are_not(tmp_path: Path) -> None:
    song(tmp_path)
    (tmp_path / "song.txt").write_text("caption: x\nlyrics:\n[Intro]\n[Instrumental]\n")
    assert only(tmp_path, []).meta["is_instrumental"] is True


def test_dataset_builders_are_not_believed_beside_words(tmp_path: Path) -> None:
    song(tmp_path)
    sample = {"audio_path": "song.wav", "caption": "x", "lyrics": BREAK, "is_instrumental": True}
    data = tmp_path / "dataset.json"
    data.write_text(json.dumps({"samples": [sample]}))
    assert only(tmp_path, [], dataset=str(data)).meta["is_instrumental"] is False
    assert only(tmp_path, [], dataset=str(data), compat=True).meta["is_instrumental"] is True


def test_who_writes_a_sidecar_is_believed_and_told(tmp_path: Path) -> None:
    song(tmp_path)
    (tmp_path / "song.txt").write_text(f"caption: x\nis_instrumental: true\nlyrics:\n{BREAK}\n")
    notes: list[str] = []
    assert only(tmp_path, notes).meta["is_instrumental"] is True
    assert any("the words are left out" in note for note in notes)
