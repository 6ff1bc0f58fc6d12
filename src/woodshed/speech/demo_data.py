"""The speech that ships with Woodshed, as a manifest such as a user would bring."""

from __future__ import annotations

import json
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from woodshed.audio.probe import probe

SPEAKERS = {"austen": "librivox-reader", "prompt": "allison-smith"}
"""Who speaks, by the first word of the file's name; what begins otherwise is music."""
MANIFEST = "manifest.jsonl"
SOUNDS = "sounds"


def demo_manifest(folder: Path) -> Path:
    """Copy the embedded recordings with a text into `folder/sounds` and list them in `folder/manifest.jsonl`.

    Each line holds `id`, `text`, `audio` (relative to `folder`, where a manifest's paths are looked up), `speaker`,
    `language` and `duration` in seconds, measured. Running it again gives the same files.

    Returns:
        Path of the manifest, which is written last.
    """
    sounds = folder / SOUNDS
    sounds.mkdir(parents=True, exist_ok=True)
    lines = []
    with as_file(files("woodshed.assets") / "demo") as embedded:
        for original in sorted(embedded.glob("*.opus")):
            speaker = SPEAKERS.get(original.stem.partition("-")[0])
            if speaker is None:
                continue
            copy = sounds / original.name
            shutil.copyfile(original, copy)
            row = {
                "id": original.stem,
                "text": original.with_suffix(".txt").read_text(encoding="utf-8").strip(),
                "audio": f"{SOUNDS}/{original.name}",
                "speaker": speaker,
                "language": "en",
                "duration": round(probe(str(copy)).duration_s, 3),
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    manifest, unfinished = folder / MANIFEST, folder / f".{MANIFEST}.unfinished"
    unfinished.write_text("".join(lines), encoding="utf-8")
    return unfinished.replace(manifest)
