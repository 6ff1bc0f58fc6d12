"""Tempo and key of songs whose tempo and key are known, because they are made here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from woodshed.audio.probe import probe
from woodshed.audio.tempo_key import EXCERPT_S, RATE_HZ, TONICS, Estimate, estimate, key_of, middle

CHORDS = {"major": (0, 4, 7), "minor": (0, 3, 7)}
PROGRESSION = {
    "major": ((0, "major"), (5, "major"), (7, "major"), (0, "major")),
    "minor": ((0, "minor"), (5, "minor"), (7, "major"), (0, "minor")),
}


def band(*, bpm: float, tonic: int, mode: str, duration_s: float = 30, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A bar of four beats per chord, a bass drum on one and three, and a noise on two and four."""
    beat = round(60 / bpm * rate_hz)
    noise = np.random.default_rng(0).standard_normal(beat)
    time_s = np.arange(beat) / rate_hz
    beats = []
    for number in range(math.ceil(duration_s * rate_hz / beat)):
        root, kind = PROGRESSION[mode][number // 4 % 4]
        notes_hz = [261.63 * 2 ** ((tonic + root + step) / 12) for step in CHORDS[kind]]
        sound = sum(0.1 * np.sin(2 * math.pi * hz * part * time_s) / part for hz in notes_hz for part in (1, 2, 3))
        drum = np.sin(2 * math.pi * 55 * time_s) if number % 2 == 0 else 0.5 * noise
        beats.append(np.asarray(sound) + 0.4 * drum * np.exp(-time_s / 0.05))
    return np.concatenate(beats)[: round(duration_s * rate_hz)].astype(np.float32)


def estimate_of(audio: np.ndarray, folder: Path, rate_hz: int = RATE_HZ) -> Estimate:
    path = folder / "song.wav"
    soundfile.write(path, audio, rate_hz)
    return estimate(str(path), probe(str(path)))


@pytest.mark.parametrize(
    ("bpm", "tonic", "mode"),
    [(72, 0, "major"), (85, 3, "minor"), (97, 10, "minor"), (120, 6, "major"), (138, 9, "minor")],
)
def test_tempo_and_key_of_a_band(bpm: int, tonic: int, mode: str, tmp_path: Path) -> None:
    found = estimate_of(band(bpm=bpm, tonic=tonic, mode=mode), tmp_path)
    assert found.bpm is not None
    assert found.bpm == pytest.approx(bpm, abs=1)
    assert found.keyscale == f"{TONICS[mode][tonic]} {mode}"


def test_the_rate_of_the_file_does_not_matter_and_the_estimate_is_the_same_again(tmp_path: Path) -> None:
    low, high = (
        estimate_of(band(bpm=110, tonic=7, mode="major", rate_hz=rate_hz), tmp_path, rate_hz)
        for rate_hz in (16_000, 48_000)
    )
    assert (low.bpm, low.keyscale) == (high.bpm, high.keyscale) == (110, "G major")
    assert estimate(str(tmp_path / "song.wav"), probe(str(tmp_path / "song.wav"))) == high


def test_noise_has_neither_tempo_nor_key(tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(1).standard_normal(30 * RATE_HZ).astype(np.float32)
    found = estimate_of(noise, tmp_path)
    assert (found.bpm, found.keyscale) == (None, "")
    assert found.bpm_confidence < 0.1


def test_what_is_silent_or_short_is_not_looked_at(tmp_path: Path) -> None:
    nothing = Estimate(bpm=None, keyscale="")
    assert estimate_of(np.zeros(20 * RATE_HZ, np.float32), tmp_path) == nothing
    assert estimate_of(band(bpm=100, tonic=0, mode="major", duration_s=5.9), tmp_path) == nothing


def test_only_the_middle_of_a_long_song_counts(tmp_path: Path) -> None:
    path, rate_hz = tmp_path / "long.wav", 8000
    levels = np.repeat(np.linspace(0, 0.5, 300, dtype=np.float32), rate_hz)
    soundfile.write(path, levels, rate_hz)
    excerpt = middle(str(path), probe(str(path)))
    assert excerpt.size == EXCERPT_S * RATE_HZ
    seconds = excerpt.reshape(EXCERPT_S, RATE_HZ)[:, RATE_HZ // 2]
    np.testing.assert_allclose(seconds, np.linspace(0, 0.5, 300)[90:210], atol=1e-3)


def test_a_key_moves_with_the_notes() -> None:
    notes = np.array([5, 0, 2, 0, 3, 2, 0, 4, 0, 2, 0, 1.0])
    for mode in TONICS:
        steps = notes if mode == "major" else notes[[0, 1, 2, 4, 3, 5, 6, 7, 9, 8, 10, 11]]
        assert [key_of(np.roll(steps, tonic))[0] for tonic in range(12)] == [f"{name} {mode}" for name in TONICS[mode]]
