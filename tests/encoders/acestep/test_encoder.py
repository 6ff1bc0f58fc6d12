"""How `SongEncoder` cuts songs: what is not visible in what `woodshed songs` stores of short ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.encoders.acestep.tiny_acestep import build_acestep, save_diffusers
from woodshed.audio.probe import probe
from woodshed.contracts import Item
from woodshed.encoders.acestep.encoder import SongEncoder
from woodshed.jobs.songs_model import load_song_model
from woodshed.jobs.songs_settings import SongsSettings


def encoder(folder: Path, checkpoint: Path, **settings: str) -> SongEncoder:
    made = SongsSettings(
        audio_dir=folder,
        output=folder,
        checkpoint_dir=str(checkpoint),
        device="cpu",
        **settings,  # type: ignore[arg-type]
    )
    return load_song_model(made).encoder


@pytest.mark.parametrize("window_frames", [300, 512])
def test_a_song_is_made_louder_once_where_windows_overlap(tmp_path: Path, window_frames: int) -> None:
    """Windows may be views of one array: with 512 frames the first ends where a decoded block does."""
    checkpoint = save_diffusers(build_acestep(), tmp_path / "checkpoint")
    path = tmp_path / "song.wav"
    wave = 0.05 * np.random.default_rng(0).standard_normal((48_000 * 63, 2))
    soundfile.write(path, wave.astype(np.float32), 48_000, subtype="FLOAT")
    item = Item(id="song.wav", path=str(path), relpath="song.wav", size_bytes=1, mtime_ns=1, audio=probe(str(path)))
    plain, louder = (encoder(tmp_path, checkpoint, normalize=method) for method in ("none", "peak"))
    for one in (plain, louder):
        one.frames._window = window_frames
    gain = 10 ** (-1 / 20) / np.abs(wave).max()
    windows = [
        (a.arrays["audio"], b.arrays["audio"])
        for a, b in zip(plain.prepare(item), louder.prepare(item), strict=True)
        if "audio" in a.arrays
    ]
    assert len(windows) > 3
    for before, after in windows:
        assert np.abs(after - gain * before).max() < 1e-5
