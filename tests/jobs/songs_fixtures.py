"""A tiny ACE-Step checkpoint and small folders of songs, for the tests of `woodshed songs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import soundfile

from tests.encoders.acestep.tiny_acestep import TinyAceStep, build_acestep, save_diffusers
from tests.jobs.conftest import sound
from woodshed.contracts import Summary
from woodshed.jobs.encode import Silent
from woodshed.jobs.report import PlanReport
from woodshed.jobs.songs import run
from woodshed.jobs.songs_settings import SongsSettings

RATE_HZ = 48_000
HOP = 1920

SIDECAR = """caption: a warm lo-fi piano
genre: lo-fi
bpm: 85
key: C minor
signature: 4/4
language: english
lyrics:
[Verse 1]
The rain in Spain: stays mainly in the plain
"""


def checkpoint(folder: Path) -> tuple[Path, TinyAceStep]:
    parts = build_acestep()
    return save_diffusers(parts, folder / "checkpoint"), parts


def write_song(path: Path, seconds: float, *, seed: int = 0, rate_hz: int = RATE_HZ, channels: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(seconds, rate_hz, channels, seed=seed), rate_hz)
    return path


def make_songs(folder: Path) -> Path:
    """Five songs that are fine, of two with one name, and one of each kind that is not."""
    write_song(folder / "live" / "song.wav", 1.3, seed=1)
    (folder / "live" / "song.txt").write_text(SIDECAR)
    write_song(folder / "studio" / "song.wav", 0.9, seed=2, rate_hz=44_100, channels=1)
    (folder / "studio" / "song.json").write_text('{"caption": "drums", "bpm": 120, "lyrics": ""}')
    write_song(folder / "nothing known.flac", 0.5, seed=3)
    write_song(folder / "silent words.wav", 0.4, seed=4)
    (folder / "silent words.txt").write_text("caption: humming\nis_instrumental: false\nlyrics:\n")
    write_song(folder / "tagged.wav", 0.7, seed=5)
    (folder / "tagged.txt").write_text("caption: pads\ncustom_tag: zed\ntag_position: append\n")
    write_song(folder / "nine channels.wav", 0.3, seed=6, channels=9)
    (folder / "broken.wav").write_bytes(b"RIFF not a song")
    write_song(folder / "odd.wav", 0.3, seed=7)
    (folder / "odd.txt").write_text("caption: x\nbpm: very fast\n")
    return folder


def prepare(songs: Path, output: Path, checkpoint: Path, **more: Any) -> Summary:
    settings = SongsSettings(audio_dir=songs, output=output, checkpoint_dir=str(checkpoint), device="cpu", **more)
    result = run(settings, observer=Silent())
    assert not isinstance(result, PlanReport)
    return result
