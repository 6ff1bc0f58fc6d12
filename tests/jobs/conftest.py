"""Sounds and models that the jobs' tests share: small, real, made or copied here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

GOLDEN = Path(__file__).parents[1] / "golden" / "stable_audio"
RATIO = 512
WINDOW = 65_536


def sound(seconds: float, rate_hz: int, channels: int, *, seed: int = 0) -> np.ndarray:
    """Decaying chords with noise, (time, channel): structure at every scale, and nothing clips."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    tones = sum(np.sin(2 * np.pi * hz * time + rng.uniform(0, 6)) for hz in rng.uniform(80, 3000, 5))
    wave = 0.1 * tones * np.exp(-3 * (time % 0.5)) + 0.01 * rng.standard_normal(time.size)
    return np.stack([wave * gain for gain in np.linspace(1.0, 0.6, channels)], axis=1).astype(np.float32)


@pytest.fixture
def model() -> Callable[[str], dict[str, Path]]:
    """Settings that name one of the golden models."""

    def settings(name: str) -> dict[str, Path]:
        models = GOLDEN / "models"
        return {"model_config_path": models / f"{name}.json", "ckpt_path": models / f"{name}.ckpt"}

    return settings


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder of eight sounds, 0.02 to 4 s, of many kinds."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    kinds = [
        ("a.wav", 0.9, 44_100, 2),
        ("b.flac", 1.2, 48_000, 1),
        ("c.WAV", 4.0, 22_050, 2),
        ("d.mp3", 1.0, 44_100, 2),
        ("e.ogg", 0.5, 16_000, 1),
        ("f.aiff", 1.0, 96_000, 2),
        ("g.wav", 0.6, 44_100, 6),
        ("h.wav", 0.02, 44_100, 2),
    ]
    for seed, (name, seconds, rate_hz, channels) in enumerate(kinds):
        container = {"mp3": "MP3", "ogg": "OGG", "aiff": "AIFF", "flac": "FLAC"}.get(name.split(".")[1].lower(), "WAV")
        soundfile.write(folder / name, sound(seconds, rate_hz, channels, seed=seed), rate_hz, format=container)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Everything outside of `.woodshed`: what a user trains from."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".woodshed" not in path.parts
    }
