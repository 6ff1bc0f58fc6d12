"""Folders as IndexTTS2's own preprocessing leaves them, its defects included; written plainly and in its order.

The features of a clip alone are those of our networks under the original's numbers; that these are the original's is
shown elsewhere (`tests/jobs/test_speech_parity.py`). What batches, crashes and odd ids do to them is told here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from tests.jobs.plain_indextts import MANIFEST_KEYS, plain_is_validation
from tests.jobs.speech_fixtures import settings_of
from woodshed.audio.probe import probe
from woodshed.contracts import Item
from woodshed.encoders.speech.encoder import SpeechEncoder
from woodshed.jobs.complaints import checked
from woodshed.jobs.speech_model import as_original, make_encoder
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.run.single import encode_item
from woodshed.sources.speech_manifest import read_speech_manifest

ARRAYS = ("text_ids", "codes", "condition", "emo_vec")
PROGRESS = ".preprocessing_progress.txt"

Features = dict[str, np.ndarray]


def encoder_of(models: Path, **more: Any) -> SpeechEncoder:
    """The encoder of a run with these models."""
    given = settings_of(models, manifest=Path("m.jsonl"), output_dir=Path("out"), **more)
    encoder = make_encoder(checked(SpeechSettings, given), 0)
    assert isinstance(encoder, SpeechEncoder)
    return encoder


@dataclass
class Original:
    """The original preprocessing with some models."""

    encoder: SpeechEncoder
    """Of a run with these models; the original's numbers are worked out from it."""
    _known: dict[tuple[str, str], Features] = field(default_factory=dict)

    def alone(self, item: Item) -> Features:
        """What a batch of one gives."""
        key = (item.path, item.meta["text"])
        if key not in self._known:
            probed = Item(
                id=item.id, path=item.path, relpath=item.relpath, size_bytes=item.size_bytes, mtime_ns=item.mtime_ns,
                meta=item.meta, audio=probe(item.path),
            )  # fmt: skip
            (record,) = encode_item(as_original(self.encoder), probed)
            self._known[key] = record.arrays
        return dict(self._known[key])

    def batch(self, items: Sequence[Item]) -> list[Features]:
        """All codes as long as the longest clip's (D1); in shorter clips some of them, and all floats, are off."""
        made = [self.alone(item) for item in items]
        longest = max(len(own["codes"]) for own in made)
        for number, own in enumerate(made):
            padding = longest - len(own["codes"])
            if padding:
                rng = np.random.default_rng(number)
                codes = np.concatenate([own["codes"], rng.integers(0, 32, padding, dtype=np.int32)])
                codes[-padding - 2 : -padding] ^= 1
                noise = {name: 0.05 * rng.standard_normal(own[name].shape) for name in ("condition", "emo_vec")}
                own |= {name: (own[name] + values).astype(np.float32) for name, values in noise.items()}
                own["codes"] = codes
        return made

    def write(
        self, folder: Path, manifest: Path, *, batch_size: int = 1, val_ratio: float = 0.01, ids: Sequence[str] = ()
    ) -> Path:
        """A folder of all usable rows of a manifest, or of those with some ids, in the manifest's order.

        An id is the name of its files, wherever that leads (D18).
        """
        items = [row for row in read_speech_manifest(str(manifest), language=None) if isinstance(row, Item)]
        items = [item for item in items if not ids or item.id in ids]
        for name in ARRAYS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for side in ("train", "val"):
            (folder / f"{side}_manifest.jsonl").touch()
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            for item, own in zip(batch, self.batch(batch), strict=True):
                for name in ARRAYS:
                    path = folder / name / f"{item.id}.npy"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.save(path, own[name])
                side = "val" if plain_is_validation(item.id, val_ratio) else "train"
                append(folder / f"{side}_manifest.jsonl", json.dumps(row_of(item, own), ensure_ascii=False))
                append(folder / PROGRESS, item.id)
        write_stats(folder)
        return folder


def row_of(item: Item, own: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A row of the original's manifest."""
    meta = item.meta
    values: list[Any] = [
        item.id, PurePath(meta["audio_path"]).as_posix().lstrip("./"), meta["text"], meta["speaker"], meta["language"],
        meta["duration"],
    ]  # fmt: skip
    for name in ARRAYS:
        values.append((PurePath(name) / f"{item.id}.npy").as_posix())
        if name != "emo_vec":
            values.append(len(own[name]))
    return dict(zip(MANIFEST_KEYS, values, strict=True))


def append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def write_stats(folder: Path) -> None:
    """The original's five numbers."""
    counts = {side: _num_lines(folder / f"{side}_manifest.jsonl") for side in ("train", "val")}
    stats = {"total": sum(counts.values()), **counts, "tokenizer": "bpe.model", "gpt_checkpoint": "gpt.pth"}
    (folder / "stats.json").write_text(json.dumps(stats, indent=2))


def _num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def array(folder: Path, name: str, row_id: str) -> Path:
    return folder / name / f"{row_id}.npy"


def tear(path: Path, *, keep_bytes: int) -> None:
    """What a full disk or a kill leaves of a file."""
    path.write_bytes(path.read_bytes()[:keep_bytes])


def change(path: Path, **places: float) -> None:
    """Put a value into the first element of an array."""
    values = np.load(path)
    values.flat[0] = places["first"]
    np.save(path, values)


def lose_ledgers(folder: Path) -> None:
    """Manifests, statistics and progress are gone (D12)."""
    for name in ("train_manifest.jsonl", "val_manifest.jsonl", "stats.json", PROGRESS):
        (folder / name).unlink(missing_ok=True)
