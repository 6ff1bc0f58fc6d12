"""Small folders to analyse, and `woodshed analyze` on them with woodshed-tiny-dit, which takes a few seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import woodshed
from tests.jobs.conftest import sound
from woodshed.importance.fisher_map import FisherMap
from woodshed.importance.map_files import read_map
from woodshed.jobs.analyze import run
from woodshed.jobs.analyze_report import AnalyzePlan, AnalyzeReport
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.complaints import checked

RATE_HZ = 24_000
TAGS = ("drums", "guitar", "rock")
SMALL: dict[str, Any] = {
    "backend": "woodshed-tiny-dit", "device": "cpu", "crop_s": 2.0, "rank": 8, "rank_min": 2, "rank_max": 24,
    "rank_multiple": 2, "runs": 3, "yes": True,
}  # fmt: skip
"""Settings of a quick run: of six songs it makes 18 draws."""
OWN: dict[str, Any] = {"backend": f"{Path(__file__).with_name('denoiser.py')}:Denoiser"}
"""Instead of woodshed-tiny-dit: a run takes a tenth of the time."""


class Heard:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def progress(self, progress: object) -> None: ...


def encoded(folder: Path, *, count: int = 6, first: int = 0, seconds: float = 2.4) -> Path:
    """Songs with tags as woodshed-tiny encodes them, in `folder/latents`."""
    for number in range(first, first + count):
        path = folder / "sounds" / f"song {number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound(seconds + 0.2 * (number % 4), RATE_HZ, 1, seed=number), RATE_HZ)
        path.with_suffix(".txt").write_text(TAGS[number % len(TAGS)])
    woodshed.encode(folder / "sounds", folder / "latents", device="cpu")
    return folder / "latents"


def settings_for(folder: Path | None, **more: Any) -> AnalyzeSettings:
    given = {"dataset_dir": folder} if folder is not None else {}
    return checked(AnalyzeSettings, SMALL | given | more)


def analyze(folder: Path, observer: Heard | None = None, **more: Any) -> AnalyzeReport:
    """A run that comes to its map."""
    report = run(settings_for(folder, **more), observer=observer or Heard())
    assert isinstance(report, AnalyzeReport)
    return report


def analyze_anew(map_file: Path, **more: Any) -> AnalyzeReport:
    """Ranks from a map."""
    given = {"from_map": map_file, "rank": 8, "rank_min": 2, "rank_max": 24, "rank_multiple": 2, "yes": True}
    report = run(checked(AnalyzeSettings, given | more), observer=Heard())
    assert isinstance(report, AnalyzeReport)
    return report


def plan(folder: Path, **more: Any) -> AnalyzePlan:
    found = run(settings_for(folder, dry_run=True, **more), observer=Heard())
    assert isinstance(found, AnalyzePlan)
    return found


def scores(found: FisherMap, *, score: str = "wg", focus: str = "balanced") -> dict[str, float]:
    assert found.woodshed is not None
    return {layer.name: getattr(layer.profiles[focus], score).value for layer in found.woodshed.layers}


def ranks_of(path: Path) -> dict[str, int]:
    return read_map(path).rank_pattern


def spoil(latents: Path, *names: str) -> None:
    """Make what is stored of some songs NaN, as a crash of an older tool might."""
    for described in (latents / "0").glob("*.json"):
        if any(name in json.loads(described.read_text())["relpath"] for name in names):
            stored = described.with_suffix(".npy")
            np.save(stored, np.full_like(np.load(stored), np.nan))


def hidden(folder: Path) -> list[Path]:
    """What analyses that were not finished left beside their map."""
    return sorted(folder.glob(".fisher_map*")) + sorted(folder.glob(".*.json-*"))
