"""Written files hold what was given, and exist whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.audio.conftest import make_music
from woodshed.audio.write import Encoding, write_audio
from woodshed.errors import StoreError, UsageError


@pytest.mark.parametrize(
    ("name", "encoding", "step"),
    [
        *[("a.wav", "pcm16", 1 / 32767), ("a.WAV", "pcm24", 2**-22), ("a.wav", "float32", 0)],
        *[("a.flac", "pcm16", 1 / 32767), ("a.flac", "pcm24", 2**-22)],
    ],
)
def test_round_trip(tmp_path: Path, name: str, encoding: Encoding, step: float) -> None:
    audio = make_music(150_000).T
    write_audio(tmp_path / name, audio, 44_100, encoding=encoding)
    read, rate_hz = soundfile.read(tmp_path / name, dtype="float32")
    assert rate_hz == 44_100
    assert np.abs(read.T - audio).max() <= step
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_beyond_full_scale_is_clamped(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", np.array([[1.5, -1.5, 0.0]]), 16_000)
    assert soundfile.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == [32767, -32768, 0]
    write_audio(tmp_path / "a.wav", np.array([[1.5, -1.5, 0.0]]), 16_000, encoding="float32")
    assert soundfile.read(tmp_path / "a.wav")[0].tolist() == [1.5, -1.5, 0.0]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    audio = np.zeros((1, 10), np.float32)
    for name, encoding in [("a.ogg", "pcm16"), ("a", "pcm16"), ("a.flac", "float32")]:
        with pytest.raises(UsageError, match=f"cannot be written as {encoding}"):
            write_audio(tmp_path / name, audio, 16_000, encoding=encoding)
    with pytest.raises(StoreError, match="No such file or directory"):
        write_audio(tmp_path / "none" / "a.wav", audio, 16_000)
    with pytest.raises(StoreError, match="cannot be written"):
        write_audio(tmp_path / "a.wav", np.zeros((70_000, 1), np.float32), 16_000)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_older_file(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.flac", np.zeros((1, 10), np.float32), 16_000)
    before = (tmp_path / "a.flac").read_bytes()
    with pytest.raises(StoreError):
        write_audio(tmp_path / "a.flac", np.zeros((9, 10), np.float32), 16_000)
    assert (tmp_path / "a.flac").read_bytes() == before
