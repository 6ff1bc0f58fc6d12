"""The trees that stable-audio-tools' `pre_encode.py` wrote, written again by `woodshed encode`.

Its settings were: window 65,536 samples, batch 1, no random crop, no polarity flip. Of its eight inputs three are kept
here, so its tree is read whole and compared where we have the sound.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import woodshed
from tests.jobs.conftest import GOLDEN, RATIO, WINDOW

INPUTS = sorted(path.name for path in (GOLDEN / "inputs").iterdir())
FLOAT32_STEPS = 2e-6
"""Of the largest magnitude: what two orders of summation in float32 may differ by."""
KEYS = ("padding_mask", "timestamps", "seconds_start", "seconds_total", "sample_rate", "relpath")


def their_records(run: str) -> dict[str, tuple[dict[str, Any], Path]]:
    """Metadata and array file by source file."""
    return _records(GOLDEN / "pre_encode_runs" / run)


def _records(folder: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    found = {}
    for path in sorted(folder.glob("[0-9]*/*.json")):
        meta = json.loads(path.read_text())
        found[meta["relpath"]] = (meta, path.with_suffix(".npy"))
    return found


def encode(output: Path, model: str, window: str, **settings: Any) -> dict[str, tuple[dict[str, Any], Path]]:
    summary = woodshed.encode(
        GOLDEN / "inputs",
        output,
        model_config_path=GOLDEN / "models" / f"{model}.json",
        ckpt_path=GOLDEN / "models" / f"{model}.ckpt",
        sample_size=WINDOW,
        window=window,
        resampler="torchaudio_sinc",
        device="cpu",
        num_workers=0,
        **settings,
    )
    assert (summary.num_done, summary.exit_code) == (len(INPUTS), 0)
    return _records(output)


def test_the_goldens_hold_what_this_file_says() -> None:
    for run in ("tanh_bs1", "fsq"):
        theirs = their_records(run)
        assert set(INPUTS) < set(theirs)
        assert all(np.load(path).shape[-1] == WINDOW // RATIO for _, path in theirs.values())


@pytest.mark.parametrize("window", ["first", "tile"])
def test_latents_equal_the_originals_in_sound_and_padding(window: str, tmp_path: Path) -> None:
    ours, theirs = encode(tmp_path / "out", "tiny_tanh", window), their_records("tanh_bs1")
    assert sorted(ours) == INPUTS
    for name in INPUTS:
        made, wanted = np.load(ours[name][1]), np.load(theirs[name][1])
        assert (made.dtype, made.shape) == (wanted.dtype, wanted.shape)
        valid = sum(theirs[name][0]["padding_mask"])
        assert 0 < valid < wanted.shape[1], "the comparison below sees sound and padding"
        for part in (slice(0, valid), slice(valid, None)):
            np.testing.assert_allclose(
                made[:, part], wanted[:, part], rtol=0, atol=FLOAT32_STEPS * np.abs(wanted).max()
            )


@pytest.mark.parametrize("window", ["first", "tile"])
def test_tokens_equal_the_originals_in_sound_and_padding(window: str, tmp_path: Path) -> None:
    ours, theirs = encode(tmp_path / "out", "tiny_fsq", window, is_discrete=True), their_records("fsq")
    for name in INPUTS:
        np.testing.assert_array_equal(np.load(ours[name][1]), np.load(theirs[name][1]))


@pytest.mark.parametrize(("model", "run"), [("tiny_tanh", "tanh_bs1"), ("tiny_fsq", "fsq")])
def test_metadata_equals_the_originals(model: str, run: str, tmp_path: Path) -> None:
    ours, theirs = encode(tmp_path / "out", model, "tile", is_discrete=model == "tiny_fsq"), their_records(run)
    for name in INPUTS:
        meta, wanted = ours[name][0], theirs[name][0]
        assert {key: meta[key] for key in KEYS} == {key: wanted[key] for key in KEYS}
        assert set(wanted) - set(meta) <= {"load_time", "prompt", "n_ch"}, "wall time, and their custom metadata"
        assert sum(meta["padding_mask"]) == math.ceil(meta["num_samples"] / RATIO)


def test_names_of_files_have_the_originals_form(tmp_path: Path) -> None:
    ours = encode(tmp_path / "out", "tiny_tanh", "tile")
    forms = [
        {(path.parent.name, len(path.stem), path.stem[:3]) for _, path in records.values()}
        for records in (ours, their_records("tanh_bs1"))
    ]
    assert forms[0] == forms[1] == {("0", 13, "000")}


@pytest.mark.parametrize(("model", "run"), [("tiny_tanh", "tanh_bs1"), ("tiny_fsq", "fsq")])
def test_both_trees_read_alike(model: str, run: str, tmp_path: Path) -> None:
    discrete = model == "tiny_fsq"
    encode(tmp_path / "out", model, "tile", is_discrete=discrete)
    main = "tokens" if discrete else "latents"
    trees = [woodshed.open(folder) for folder in (tmp_path / "out", GOLDEN / "pre_encode_runs" / run)]
    ours, theirs = ({item["info"]["relpath"]: item for item in tree} for tree in trees)
    assert (len(ours), len(theirs)) == (3, 8)
    for name in INPUTS:
        mine, other = ours[name], theirs[name]
        assert torch.equal(mine["mask"], other["mask"])
        assert mine[main].dtype == other[main].dtype
        scale = 0.0 if discrete else FLOAT32_STEPS * float(other[main].abs().max())
        torch.testing.assert_close(mine[main], other[main], rtol=0, atol=scale)
        assert {key: mine["info"][key] for key in KEYS[1:]} == {key: other["info"][key] for key in KEYS[1:]}


@pytest.mark.parametrize("start", [0, 20])
def test_crops_of_both_trees_are_the_same_frames(start: int, tmp_path: Path) -> None:
    encode(tmp_path / "out", "tiny_tanh", "tile")
    for folder in (tmp_path / "out", GOLDEN / "pre_encode_runs" / "tanh_bs1"):
        whole = {item["info"]["relpath"]: item for item in woodshed.open(folder)}
        for item in woodshed.open(folder, crop_frames=40, random_crop=start > 0, seed=start):
            name, first = item["info"]["relpath"], item["info"]["latent_crop_start"]
            assert torch.equal(item["latents"], whole[name]["latents"][:, first : first + 40])
            assert torch.equal(item["mask"], whole[name]["mask"][first : first + 40])
