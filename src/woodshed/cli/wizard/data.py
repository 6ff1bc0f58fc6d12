"""What a folder holds that somebody points the wizard at: features, sounds, or neither."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from woodshed.cli.quantities import audio_length
from woodshed.errors import WoodshedError

MAX_FILES = 200_000
"""Files that are looked at in search of sounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a folder holds."""

    folder: str
    kind: Literal["features", "sounds", "nothing", "missing"]
    num_items: int = 0
    audio_s: float | None = None
    """Seconds of sound; None where the folder does not tell."""
    reason: str = ""
    """Why there are no features."""

    @property
    def told(self) -> str:
        """How many, and how much.

        >>> Found(folder="x", kind="features", num_items=12, audio_s=2400.0).told
        '12 items (40.0 min)'
        """
        word = "item" if self.num_items == 1 else "items"
        length = f" ({audio_length(self.audio_s)})" if self.audio_s else ""
        return f"{self.num_items} {word}{length}"


def look_at(folder: Path) -> Found:
    """Look into a folder, without loading a model.

    >>> look_at(Path("no such folder")).kind
    'missing'
    """
    if not folder.is_dir():
        return Found(folder=str(folder), kind="missing")
    # Here: it loads torch, which questions alone do not need.
    from woodshed.datasets.folder import open as open_dataset
    from woodshed.store.reader import open_reader

    try:
        if (folder / ".woodshed" / "run.json").exists():
            totals = open_reader(folder).totals
            if totals.num_done:
                return Found(
                    folder=str(folder), kind="features", num_items=totals.num_done, audio_s=totals.audio_s or None
                )
            return Found(folder=str(folder), kind="nothing", reason="the run that made it has finished no item")
        return Found(folder=str(folder), kind="features", num_items=len(open_dataset(folder)))
    except WoodshedError as error:
        num_sounds = _count_sounds(folder)
        kind: Literal["sounds", "nothing"] = "sounds" if num_sounds else "nothing"
        return Found(folder=str(folder), kind=kind, num_items=num_sounds, reason=error.message)


def _count_sounds(folder: Path) -> int:
    from woodshed.sources.folder import AUDIO_SUFFIXES

    num_seen = num_sounds = 0
    for _, _, names in os.walk(folder):
        num_seen += len(names)
        num_sounds += sum(Path(name).suffix.lower() in AUDIO_SUFFIXES for name in names)
        if num_seen > MAX_FILES:
            break
    return num_sounds
