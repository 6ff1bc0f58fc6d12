"""Folders of `.pt` files as Side-Step's preprocessing writes them. Nothing in them can run: tensors and plain values.

Only what training needs is handed out: the latents, and the condition without its padding. Staging files
(`.tmp.pt`) are no songs.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from woodshed.contracts import Json
from woodshed.datasets.spans import Clock, Span, read_span
from woodshed.datasets.stored import StoredItem
from woodshed.errors import StoreError
from woodshed.store.sidestep import STAGING_SUFFIX, SUFFIX, as_float32, load

RATE_HZ = 48_000
HOP_SAMPLES = 1920
"""ACE-Step's: 25 frames a second."""


def is_side_step_folder(folder: Path) -> bool:
    """Whether a folder without a log of ours holds `.pt` files, and no `.npy` tree."""
    return next(_songs(folder), None) is not None and next(folder.rglob("*.npy"), None) is None


class SideStepFolder:
    """Songs of one folder, in the order of their names (numbers by value).

    Raises:
        StoreError: the first file cannot be read.
    """

    kind = "latents"
    clock = Clock(rate_hz=RATE_HZ, hop_samples=HOP_SAMPLES)

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(_songs(folder), key=lambda path: _by_value(path.name))
        self.item(0)

    def __len__(self) -> int:
        return len(self._paths)

    def span(self, index: int) -> Span:
        return self.item(index).span

    def item(self, index: int) -> StoredItem:
        path = self._paths[index]
        try:
            stored = load(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error}", hint="preprocess the song again") from error
        latents = stored["target_latents"]
        valid = stored.get("attention_mask")
        num_valid = latents.shape[0] if valid is None else int((valid > 0).sum())
        meta = _meta(stored.get("metadata"), num_frames=latents.shape[0], num_valid=num_valid)
        mask = stored.get("encoder_attention_mask")
        return StoredItem(
            name=path.name.removesuffix(SUFFIX),
            where=str(path),
            meta=meta,
            span=read_span(meta, rows=latents.shape[1], stored_frames=latents.shape[0], clock=self.clock),
            rows=latents.shape[1],
            read=lambda start, stop: torch.from_numpy(np.ascontiguousarray(as_float32(latents[start:stop]).T)),
            whole={"condition": partial(_condition, stored["encoder_hidden_states"], mask)},
        )

    def silence(self) -> Shaped[Tensor, "row frame"] | None:
        return None


def _songs(folder: Path) -> filter[Path]:
    return filter(lambda path: not path.name.endswith(STAGING_SUFFIX), folder.glob(f"*{SUFFIX}"))


def _by_value(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _condition(states: Tensor, mask: Tensor | None) -> Tensor:
    whole = states.float()
    return whole.clone() if mask is None else whole[mask.bool()]


def _meta(metadata: object, *, num_frames: int, num_valid: int) -> dict[str, Json]:
    """Side-Step's own metadata, and the lengths under the names that our data sets look for."""
    own = dict(metadata) if isinstance(metadata, dict) else {}
    return {
        **own,
        "prompt": own.get("caption", ""),
        "relpath": str(own.get("filename", "")),
        "sample_rate": RATE_HZ,
        "sample_offset": 0,
        "num_samples": num_valid * HOP_SAMPLES,
        "total_samples": num_valid * HOP_SAMPLES,
        "num_frames": num_frames,
        "valid_frames": num_valid,
    }
