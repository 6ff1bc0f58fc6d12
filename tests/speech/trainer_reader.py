"""How the IndexTTS2 GPT trainer reads what we write: a small reader of our own, by what is known of the original.

It takes paired manifests only, opens feature paths relative to the manifest's own folder, believes `text_len` and
`code_len`, and puts the stop token behind them. The original checks little; this one fails where training would go
wrong silently or crash: a length that is not the array's, a value out of range, a table of positions too short.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STOP_TEXT, STOP_CODE = 1, 8193
NUM_CODES = 8192
MAX_TEXT_LEN, MAX_CODE_LEN = 600, 1815
PAIRED_KEYS = ("prompt_condition_path", "target_codes_path")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One pair, loaded."""

    id: str
    text_ids: np.ndarray
    codes: np.ndarray
    condition: np.ndarray
    emo_vec: np.ndarray
    text_len: int
    code_len: int
    language: str | None


def read_pairs(manifest: Path, *, condition_shape: Sequence[int] | None = None) -> list[Example]:
    """All pairs of a paired manifest.

    Args:
        condition_shape: what every condition must be, such as `(32, 1280)`; unset: two axes.
    """
    records = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert records, f"{manifest.name} holds no pairs"
    return [_example(record, manifest.parent, condition_shape) for record in records]


def _example(record: dict[str, Any], folder: Path, condition_shape: Sequence[int] | None) -> Example:
    assert all(key in record for key in PAIRED_KEYS), "the trainer takes paired manifests only"
    assert record["prompt_id"] != record["target_id"]
    emotion = record.get("prompt_emo_vec_path") or record.get("target_emo_vec_path")
    assert emotion, "a pair needs an emotion vector"
    language = record.get("target_language") or record.get("language")
    example = Example(
        id=record["id"],
        text_ids=_load(folder, record["target_text_ids_path"]).astype(np.int64),
        codes=_load(folder, record["target_codes_path"]).astype(np.int64),
        condition=_load(folder, record["prompt_condition_path"]).astype(np.float32),
        emo_vec=_load(folder, emotion).astype(np.float32),
        text_len=int(record["target_text_len"]),
        code_len=int(record["target_code_len"]),
        language=language.strip().lower() or None if language else None,
    )
    assert example.text_ids.shape == (example.text_len,)
    assert example.codes.shape == (example.code_len,)
    assert example.text_len <= MAX_TEXT_LEN
    assert example.code_len <= MAX_CODE_LEN
    assert example.codes.min() >= 0
    assert example.codes.max() < NUM_CODES
    assert example.text_ids.min() >= 0
    assert len(example.condition) == int(record.get("prompt_condition_len", 32))
    assert example.condition.ndim == 2 if condition_shape is None else example.condition.shape == tuple(condition_shape)
    assert example.emo_vec.ndim == 1
    assert np.isfinite(example.condition).all()
    assert np.isfinite(example.emo_vec).all()
    return example


def _load(folder: Path, written: str) -> np.ndarray:
    assert written, "a feature path is empty"
    array: np.ndarray = np.load(folder / written, allow_pickle=False)
    assert array.size, f"{written} holds an empty array"
    return array


def collate(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """One batch: ids and codes padded to the longest, with the stop token behind what is announced."""
    return {
        "text_ids": _padded([example.text_ids[: example.text_len] for example in examples], STOP_TEXT),
        "codes": _padded([example.codes[: example.code_len] for example in examples], STOP_CODE),
        "condition": np.stack([example.condition for example in examples]),
        "emo_vec": np.stack([example.emo_vec for example in examples]),
        "text_lens": np.array([example.text_len for example in examples]),
        "code_lens": np.array([example.code_len for example in examples]),
    }


def _padded(rows: Sequence[np.ndarray], stop: int) -> np.ndarray:
    batch = np.full((len(rows), max(map(len, rows)) + 1), stop, dtype=np.int64)
    for line, row in zip(batch, rows, strict=True):
        line[: len(row)] = row
    return batch
