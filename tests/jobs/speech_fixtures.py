"""What the tests of whole speech runs share: one folder of models, data sets, and views of what a run wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.tiny_indextts import LAYER, rows_of, write_clips, write_manifest, write_models
from woodshed.contracts import Summary
from woodshed.jobs.speech import speech

ARRAYS = ("text_ids", "codes", "condition", "emo_vec")


def shared_models(factory: pytest.TempPathFactory) -> Path:
    """One model folder for all tests of a process."""
    return _models_below(factory.getbasetemp())


@cache
def _models_below(folder: Path) -> Path:
    return write_models(folder / "indextts-models")


def settings_of(models: Path, **more: Any) -> dict[str, Any]:
    """Settings that name the models."""
    plain: dict[str, Any] = {"config": models / "config.yaml", "semantic_layer": LAYER, "device": "cpu"}
    return plain | {"num_processes": 1} | more


def run(models: Path, manifest: Path, output: Path, **more: Any) -> Summary:
    """`woodshed speech` over one manifest, in this process unless told otherwise."""
    (summary,) = speech(manifest, output, **settings_of(models, **more)).results
    assert isinstance(summary, Summary)
    return summary


def data_set(folder: Path, seconds: Sequence[float], *, seed: int = 0, rate_hz: int = 16_000) -> Path:
    """Clips of these lengths and a manifest with a plain row for each."""
    return write_manifest(folder / "manifest.jsonl", rows_of(write_clips(folder, tuple(seconds), seed=seed)))


def tree(folder: Path, *, but: Iterable[str] = ()) -> dict[str, str]:
    """Digest of every file outside of `.woodshed`: what a user trains from."""
    left_out = set(but)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".woodshed" not in path.parts and path.name not in left_out
    }


def lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of both manifests, by id; none may stand in both."""
    both = [*lines(folder / "train_manifest.jsonl"), *lines(folder / "val_manifest.jsonl")]
    assert len({row["id"] for row in both}) == len(both)
    return {row["id"]: row for row in both}


def stats(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
    return made


def arrays(folder: Path, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a row, by the paths that its manifest gives."""
    keys = {key.removesuffix("_path"): path for key, path in row.items() if key.endswith("_path")}
    return {name: np.load(folder / path, allow_pickle=False) for name, path in keys.items() if name != "audio"}


def features(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """All arrays of a folder, by id."""
    return {row_id: arrays(folder, row) for row_id, row in rows(folder).items()}


def assert_same_features(
    made: Mapping[str, Mapping[str, np.ndarray]],
    wanted: Mapping[str, Mapping[str, np.ndarray]],
    *,
    tolerance: float,
) -> None:
    """Whole numbers equal, others within a tolerance."""
    assert made.keys() == wanted.keys()
    for row_id, own in wanted.items():
        assert made[row_id].keys() == own.keys()
        for name, values in own.items():
            found = made[row_id][name]
            assert (found.dtype, found.shape) == (values.dtype, values.shape), (row_id, name)
            if values.dtype.kind == "f":
                np.testing.assert_allclose(found, values, rtol=0, atol=tolerance, err_msg=f"{row_id} {name}")
            else:
                np.testing.assert_array_equal(found, values, err_msg=f"{row_id} {name}")
