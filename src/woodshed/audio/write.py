"""Writing WAV and FLAC files, whole or not at all."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import soundfile
from jaxtyping import Float

from woodshed.audio.opening import shown
from woodshed.errors import StoreError, UsageError

Encoding: TypeAlias = Literal["pcm16", "pcm24", "float32"]

WRITE_BLOCK_SAMPLES = 1 << 16

SUBTYPES: dict[str, dict[Encoding, str]] = {
    "WAV": {"pcm16": "PCM_16", "pcm24": "PCM_24", "float32": "FLOAT"},
    "FLAC": {"pcm16": "PCM_16", "pcm24": "PCM_24"},
}


def write_audio(
    path: str | Path, audio: Float[np.ndarray, "channel time"], rate_hz: int, *, encoding: Encoding = "pcm16"
) -> None:
    """Write sound to a `.wav` or `.flac` file; an older file of that name is replaced in one step, at the end.

    Args:
        audio: full scale is 1; what lies beyond is clamped, except with `float32`.
        encoding: `float32` is for WAV only.

    Raises:
        UsageError: another suffix, or a coding the format does not have.
        StoreError: the folder is missing, read-only or full.
    """
    target = Path(path)
    container = target.suffix.lstrip(".").upper()
    if encoding not in SUBTYPES.get(container, {}):
        raise UsageError(
            f"{shown(str(target))} cannot be written as {encoding}",
            hint="name it .wav (pcm16, pcm24, float32) or .flac (pcm16, pcm24)",
        )
    unfinished = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with unfinished.open("xb") as file:
            _write_blocks(file.fileno(), container, SUBTYPES[container][encoding], audio, rate_hz)
        unfinished.replace(target)
    except (OSError, soundfile.SoundFileRuntimeError) as error:
        raise StoreError(
            f"{shown(str(target))} cannot be written: {error}", hint="check the folder, its rights and the free space"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _write_blocks(
    descriptor: int, container: str, subtype: str, audio: Float[np.ndarray, "channel time"], rate_hz: int
) -> None:
    # In blocks: libsndfile's lossy encoders crash on a minute in one call, and a copy of the whole is never made.
    with soundfile.SoundFile(
        descriptor, "w", rate_hz, len(audio), subtype=subtype, format=container, closefd=False
    ) as sound:
        for at in range(0, audio.shape[1], WRITE_BLOCK_SAMPLES):
            block = audio[:, at : at + WRITE_BLOCK_SAMPLES].T
            sound.write(block if subtype == "FLOAT" else np.clip(block, -1, 1))
