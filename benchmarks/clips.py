"""The clips that the benchmarks encode: made from formulas, the same on every machine (but for the lossy coders)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

DURATIONS_S = (
    2.0, 2.6, 3.3, 4.1, 5.2, 6.0, 7.1, 8.3, 9.4, 11.0, 14.5, 16.0,
    18.0, 19.5, 21.0, 22.0, 24.0, 25.0, 28.0, 29.0, 30.0, 34.0, 38.0, 40.0,
)  # fmt: skip
"""418 s in all."""
KINDS = (
    ("wav", 44_100, 2), ("flac", 48_000, 2), ("mp3", 44_100, 2), ("ogg", 44_100, 1), ("wav", 48_000, 1),
    ("flac", 44_100, 2), ("mp3", 32_000, 1), ("ogg", 96_000, 2), ("wav", 22_050, 2), ("flac", 96_000, 1),
    ("mp3", 48_000, 2),
)  # fmt: skip
"""Format, rate (Hz), channels; dealt out in turn. Eleven of them, so that no length is tied to a kind."""
SIX = (2, 6, 10, 14, 18, 22)
"""Numbers of the clips that stand for all of them."""
QUICK = (2, 6)


def wave(duration_s: float, rate_hz: int, num_channels: int, *, seed: int) -> Float32[np.ndarray, "time channel"]:
    """Decaying chords over noise: structure at every scale, peaks below 0.6."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    chord = sum(np.sin(2 * np.pi * hz * time_s + phase) for hz, phase in rng.uniform((80, 0), (3000, 6), (5, 2)))
    mono = 0.1 * chord * np.exp(-3 * (time_s % 0.5)) + 0.01 * rng.standard_normal(time_s.size)
    return np.stack([mono * gain for gain in np.linspace(1.0, 0.6, num_channels)], axis=1).astype(np.float32)


def write(path: Path, audio: Float32[np.ndarray, "time channel"], rate_hz: int) -> None:
    """Write a sound file second by second: libsndfile's Vorbis encoder crashes on long blocks."""
    with soundfile.SoundFile(path, "w", rate_hz, audio.shape[1]) as file:
        for start in range(0, len(audio), rate_hz):
            file.write(audio[start : start + rate_hz])


def make_clips(folder: Path, numbers: tuple[int, ...] | None = None) -> float:
    """Write the clips of these numbers (all without) and give their seconds in all."""
    folder.mkdir(parents=True)
    chosen = range(len(DURATIONS_S)) if numbers is None else numbers
    for number in chosen:
        suffix, rate_hz, num_channels = KINDS[number % len(KINDS)]
        audio = wave(DURATIONS_S[number], rate_hz, num_channels, seed=number)
        write(folder / f"clip-{number:02d}.{suffix}", audio, rate_hz)
    return sum(DURATIONS_S[number] for number in chosen)
