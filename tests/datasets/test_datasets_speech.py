"""`woodshed.open` on folders of `woodshed speech`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import woodshed
from tests.jobs.speech_fixtures import data_set, features, rows, run, shared_models
from woodshed.datasets.buckets import LengthBucketSampler
from woodshed.datasets.collate import collate
from woodshed.errors import StoreError, UsageError

SECONDS = (1.0, 2.5, 0.7, 1.6, 0.9, 1.3)
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Folders of these clips, one for each kind of settings."""
    models = shared_models(tmp_path_factory)
    manifest = data_set(tmp_path_factory.mktemp("data"), SECONDS)
    home = tmp_path_factory.mktemp("folders")

    def made(name: str, **more: Any) -> Path:
        if not (home / name).exists():
            if more.get("target") == "both":
                more["gpt_checkpoint"] = (models / "gpt.pth", models / "2.5" / "gpt.pth")
            run(models, manifest, home / name, val_ratio=0.4, **more)
        return home / name

    return made


def test_rows_are_what_the_manifests_name(make: Make) -> None:
    folder = make("files")
    wanted, known = features(folder), rows(folder)
    dataset = woodshed.open(folder)
    assert len(dataset) == len(SECONDS)
    for index in range(len(dataset)):
        row = dataset[index]
        info = row.pop("info")
        own = wanted[info["id"]]
        assert row.keys() == own.keys()
        for name, values in own.items():
            assert row[name].dtype == (torch.int64 if values.dtype.kind == "i" else torch.float32)
            np.testing.assert_array_equal(row[name].numpy(), values)
        assert (info["text"], info["speaker"]) == (known[info["id"]]["text"], known[info["id"]]["speaker"])
        assert info["seconds"] == SECONDS[int(info["id"][-3:])]


@pytest.mark.parametrize("layout", ["indextts", "shards"])
def test_both_layouts_and_both_releases_give_their_columns(make: Make, layout: str) -> None:
    dataset = woodshed.open(make(f"both-{layout}", target="both", layout=layout))
    assert dataset[0].keys() == {
        "text_ids", "codes", "condition", "emo_vec", "text_ids_25", "codes_25", "speaker_vec_25", "emo_vec_25", "info",
    }  # fmt: skip
    one, other = dataset[1], woodshed.open(make("files"))[1]
    assert torch.equal(one["codes"], other["codes"])
    assert one["codes_25"].shape == (-(-one["codes"].shape[0] // 2),)


@pytest.mark.parametrize("name", ["files", "both-indextts"])
def test_a_split_gives_the_rows_of_its_manifest(make: Make, name: str) -> None:
    folder = make(name, **({"target": "both", "layout": "indextts"} if name != "files" else {}))
    manifests = folder if name == "files" else folder / "2.5"
    for split in ("train", "val"):
        lines = (manifests / f"{split}_manifest.jsonl").read_text().splitlines()
        dataset = woodshed.open(folder, split=split)
        assert [dataset[index]["info"]["id"] for index in range(len(dataset))] == [json.loads(x)["id"] for x in lines]


def test_lengths_choose_rows(make: Make) -> None:
    dataset = woodshed.open(make("files"), min_seconds=0.9, max_seconds=1.3)
    assert [dataset[index]["info"]["seconds"] for index in range(len(dataset))] == [1.0, 0.9, 1.3]
    with pytest.raises(UsageError, match="min_seconds=9"):
        woodshed.open(make("files"), min_seconds=9)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_filled_up_and_masks_say_where(make: Make, num_workers: int) -> None:
    dataset = woodshed.open(make("files"))
    sampler = LengthBucketSampler(dataset, batch_frames=200, seed=3)
    seen: list[str] = []
    for batch in DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=num_workers):
        assert batch["condition"].shape == (len(batch["info"]), 5, 20)
        assert batch["codes"].numel() <= 200
        for number, info in enumerate(batch["info"]):
            index = int(info["id"][-3:])
            for name in ("codes", "text_ids"):
                own, mask = dataset[index][name], batch[f"{name}_mask"][number]
                assert torch.equal(batch[name][number][mask], own)
                assert int(mask.sum()) == len(own)
                assert not batch[name][number][~mask].any()
            seen.append(info["id"])
    assert sorted(seen) == [f"utt_{number:03d}" for number in range(len(SECONDS))]


def test_what_a_speech_folder_has_no_use_for_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="handed out whole"):
        woodshed.open(make("files"), crop_frames=10)
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(UsageError, match="has no manifests"):
        woodshed.open(tmp_path, split="train")
    # in a process of its own: the checks of types that tests run under would be first to speak
    program = f"import woodshed; woodshed.open({str(make('splits'))!r}, split='test')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "UsageError: split='test' is no split" in done.stderr


def test_a_manifest_that_is_gone_is_named(make: Make) -> None:
    folder = make("cut")
    (folder / "val_manifest.jsonl").unlink()
    with pytest.raises(StoreError, match=r"val manifest of .* cannot be read: it is missing"):
        woodshed.open(folder, split="val")
    assert len(woodshed.open(folder)) == len(SECONDS)
