"""Sound files of every kind, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from woodshed.audio.decode import blocks
from woodshed.audio.probe import probe

GOLDEN = Path(__file__).parents[1] / "golden"


def make_music(num_samples: int, num_channels: int = 2, seed: int = 0) -> np.ndarray:
    """Tones and noise, (time, channel), within +-0.5."""
    time = np.arange(num_samples)[:, None] / 44_100
    tones = 0.3 * np.sin(2 * np.pi * 440 * time * (1 + np.arange(num_channels)))
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, (num_samples, num_channels))
    return (tones + noise).astype(np.float32)


def write_sound(
    path: Path,
    num_samples: int = 30_000,
    *,
    format: str | None = None,
    subtype: str | None = None,
    rate_hz: int = 44_100,
    num_channels: int = 2,
    **options: object,
) -> Path:
    """Write music with libsndfile, in blocks (a minute of Vorbis in one call crashes it)."""
    audio = make_music(num_samples, num_channels)
    with soundfile.SoundFile(
        path, "w", rate_hz, num_channels, format=format or path.suffix[1:].upper(), subtype=subtype, **options
    ) as sound:
        for at in range(0, num_samples, 8192):
            sound.write(audio[at : at + 8192])
    return path


def write_with_ffmpeg(
    path: Path, codec: str, *, format: str | None = None, rate_hz: int = 44_100, num_samples: int = 60_000
) -> Path:
    av = pytest.importorskip("av")
    audio = np.ascontiguousarray(make_music(num_samples).T)
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="stereo")
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(audio, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate_hz, 0
        fitted = av.AudioResampler(
            format=stream.codec_context.format.name,
            layout="stereo",
            rate=rate_hz,
            frame_size=stream.codec_context.frame_size or 1024,
        )
        for part in [*fitted.resample(frame), *fitted.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def decode_all(path: Path | str) -> np.ndarray:
    """All samples at the native rate, (channel, time)."""
    return np.concatenate(list(blocks(str(path), probe(str(path)))), axis=1)


@pytest.fixture
def sound_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a sound file into the test's folder, by name."""
    return lambda name, *args, **options: write_sound(tmp_path / name, *args, **options)
