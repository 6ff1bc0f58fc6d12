"""The reference of `encode.py`: what a short script does that knows none of our tricks.

For each file: decode it whole, resample it whole, cut or pad it to the window, run the network as a library writes it
(weight norm as a hook, Snake as its formula, one clip at a time), write an array and a JSON file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from jaxtyping import Float32
from tests.encoders.plain_oobleck import plain_encoder
from torch import Tensor, nn


def load_plain(config_path: Path, ckpt_path: Path, device: str) -> nn.Module:
    config = json.loads(config_path.read_text())
    encoder = plain_encoder(config["model"]["encoder"]["config"])
    weights = torch.load(ckpt_path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    own = {key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")}
    encoder.load_state_dict(own)
    return encoder.eval().to(device)


def read_window(
    path: Path, *, rate_hz: int, window_samples: int
) -> tuple[Float32[np.ndarray, "channel window"], float]:
    """The file's first window in stereo, and the seconds of sound in it."""
    audio, file_rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    resampled = soxr.resample(audio, file_rate_hz, rate_hz, quality="HQ") if file_rate_hz != rate_hz else audio
    stereo = np.repeat(resampled, 2, axis=1) if resampled.shape[1] == 1 else resampled[:, :2]
    kept = np.clip(stereo[:window_samples], -1, 1)
    window = np.zeros((2, window_samples), np.float32)
    window[:, : len(kept)] = kept.T
    return window, len(kept) / rate_hz


@torch.no_grad()
def encode_plainly(
    clips: Path, output: Path, encoder: nn.Module, *, rate_hz: int, window_samples: int, ratio: int, device: str
) -> Iterator[float]:
    """Encode a folder; gives the seconds of sound in each window."""
    output.mkdir()
    for path in sorted(clips.iterdir()):
        window, useful_s = read_window(path, rate_hz=rate_hz, window_samples=window_samples)
        frames: Tensor = encoder(torch.from_numpy(window)[None].to(device))
        mean, scale = frames.chunk(2, dim=1)
        scale = nn.functional.softplus(scale) + 1e-4
        np.save(output / f"{path.stem}.npy", mean[0].cpu().numpy())
        num_valid = int(np.ceil(round(useful_s * rate_hz) / ratio))
        mask = [1] * num_valid + [0] * (mean.shape[-1] - num_valid)
        (output / f"{path.stem}.json").write_text(json.dumps({"path": str(path), "padding_mask": mask}))
        yield useful_s
