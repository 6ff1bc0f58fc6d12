"""Writers of small output trees, as the original programs and ours leave them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WriteItem = Callable[..., None]


def original_metadata(
    *, num_samples: int, offset: int, window_samples: int, rate_hz: int, valid_frames: int, num_frames: int
) -> dict[str, Any]:
    """The keys that stable-audio-tools writes for a window at `offset` of a file of `num_samples`."""
    spare = max(0, num_samples - window_samples)
    return {
        "path": "/data/a.wav",
        "relpath": "a.wav",
        "timestamps": [offset / (spare + window_samples), (offset + window_samples) / (spare + window_samples)],
        "seconds_start": offset // rate_hz,
        "seconds_total": math.ceil(num_samples / rate_hz),
        "padding_mask": [1] * valid_frames + [0] * (num_frames - valid_frames),
        "sample_rate": rate_hz,
        "prompt": "a sound",
    }


@pytest.fixture
def metadata() -> Callable[..., dict[str, Any]]:
    return original_metadata


@pytest.fixture
def write_item() -> WriteItem:
    """Write one `.npy` + `.json` pair; the array is given, or counts up so that every frame is told apart."""

    def write(path: Path, meta: dict[str, Any], array: np.ndarray | None = None, *, rows: int = 2) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if array is None:
            num_frames = len(meta["padding_mask"])
            array = np.arange(rows * num_frames, dtype=np.float32).reshape(rows, num_frames)
        np.save(path, array)
        path.with_name(path.name.removesuffix(".npy") + ".json").write_text(json.dumps(meta))

    return write


@pytest.fixture
def plain_tree(tmp_path: Path, write_item: WriteItem) -> Callable[..., Path]:
    """A stable-audio-tools tree at 100 Hz, hop 10, window 200 samples (20 frames), with these valid samples."""

    def make(lengths: Sequence[int], *, name: str = "tree", rows: int = 2) -> Path:
        folder = tmp_path / name
        for number, num_samples in enumerate(lengths):
            valid = min(20, -(-num_samples // 10))
            meta = original_metadata(
                num_samples=num_samples, offset=0, window_samples=200, rate_hz=100, valid_frames=valid, num_frames=20
            )
            array = np.random.default_rng(number).normal(size=(rows, 20)).astype(np.float32)
            write_item(folder / "0" / f"{number:09d}0000.npy", meta, array)
        (folder / "details.json").write_text(json.dumps({"sample_size": 200, "args": {}}))
        return folder

    return make
