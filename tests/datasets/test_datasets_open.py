"""`woodshed.open` over trees of the original programs, stored ones and ones that are written here."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from woodshed.datasets.collate import collate
from woodshed.datasets.folder import LatentDataset
from woodshed.datasets.folder import open as open_folder
from woodshed.errors import StoreError, UsageError

RUNS = Path(__file__).parents[1] / "golden" / "stable_audio" / "pre_encode_runs"
VALID_FRAMES = [78, 2, 87, 104, 128, 87, 52, 44]


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


# ---- the original's own output


def test_latents_of_stable_audio_tools_come_out_as_stored() -> None:
    dataset = open_folder(RUNS / "tanh_bs1")
    assert len(dataset) == 8
    assert (dataset.kind, dataset.clock.hop_samples) == ("latents", 512)
    for index, valid in enumerate(VALID_FRAMES):
        item = dataset[index]
        path = RUNS / "tanh_bs1" / "0" / f"{index * 10_000:013d}"
        assert item["latents"].dtype == torch.float32
        assert np.array_equal(item["latents"].numpy(), np.load(path.with_suffix(".npy")))
        stored = json.loads(path.with_suffix(".json").read_text())
        assert item["mask"].dtype == torch.bool
        assert item["mask"].tolist() == [bool(value) for value in stored["padding_mask"]]
        assert int(item["mask"].sum()) == valid
        assert item["info"]["padding_mask"] is item["mask"]
        for key in ("relpath", "prompt", "seconds_total", "seconds_start", "timestamps", "n_ch"):
            assert item["info"][key] == stored[key]
    assert dataset[4]["info"]["duration_s"] == 65_536 / 44_100  # the window, not the file of 2 s
    assert dataset[0]["info"]["duration_s"] == 78 * 512 / 44_100


def test_tokens_of_stable_audio_tools_come_out_as_int64() -> None:
    dataset = open_folder(RUNS / "fsq", crop_frames=40, random_crop=True)
    whole = np.load(RUNS / "fsq" / "0" / "0000000000000.npy")
    item = dataset[0]
    start = item["info"]["latent_crop_start"]
    assert item["tokens"].dtype == torch.int64
    assert np.array_equal(item["tokens"].numpy(), whole[:, start : start + 40])
    assert "prompt" not in item["info"]


def test_tokens_with_frames_first_are_turned_round(tmp_path: Path) -> None:
    tree = tmp_path / "rvq"
    shutil.copytree(RUNS / "fsq", tree)
    for path in tree.glob("0/*.npy"):
        np.save(path, np.load(path).T.astype(np.int64))
        meta = json.loads(path.with_suffix(".json").read_text())
        # as the original does it: the mask of the samples, resized to the length of the second axis
        num_valid = sum(meta["padding_mask"])
        meta["padding_mask"] = [int(row * 64 < num_valid) for row in range(2)]
        path.with_suffix(".json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match=r"shape \(128, 2\): more rows than columns.*token_axes='frame codebook'"):
        open_folder(tree)
    turned, plain = open_folder(tree, token_axes="frame codebook"), open_folder(RUNS / "fsq")
    for index, valid in enumerate(VALID_FRAMES):
        assert torch.equal(turned[index]["tokens"], plain[index]["tokens"])
        assert turned[index]["mask"].shape == (128,)
        assert valid <= int(turned[index]["mask"].sum()) <= valid + 64


def test_random_crops_reach_every_start_and_move_the_seconds() -> None:
    dataset = open_folder(RUNS / "tanh_bs1", crop_frames=70, random_crop=True, seed=1)
    whole = np.load(RUNS / "tanh_bs1" / "0" / "0000000000000.npy")
    starts = []
    for epoch in range(120):
        dataset.set_epoch(epoch)
        item = dataset[0]
        start = item["info"]["latent_crop_start"]
        assert np.array_equal(item["latents"].numpy(), whole[:, start : start + 70])
        assert item["mask"].all()
        assert item["info"]["start_s"] == start * 512 / 44_100
        assert item["info"]["seconds_start"] == 0
        starts.append(start)
    assert set(starts) == set(range(9))  # 78 valid frames, 70 wanted


def test_a_short_window_is_cropped_at_its_start_and_masked() -> None:
    item = open_folder(RUNS / "tanh_bs1", crop_frames=60, random_crop=True)[7]
    assert item["info"]["latent_crop_start"] == 0
    assert item["mask"].tolist() == [True] * 44 + [False] * 16


def test_without_padding_items_are_as_long_as_their_sound() -> None:
    dataset = open_folder(RUNS / "tanh_bs1", pad=False, crop_frames=100)
    lengths = [min(100, valid) for valid in VALID_FRAMES]
    assert [item["latents"].shape[1] for item in map(dataset.__getitem__, range(8))] == lengths
    assert dataset.frame_counts().tolist() == lengths
    assert all(dataset[index]["mask"].all() for index in range(8))
    assert open_folder(RUNS / "tanh_bs1").frame_counts().tolist() == [128] * 8
    assert open_folder(RUNS / "tanh_bs1", crop_frames=300).frame_counts().tolist() == [300] * 8


# ---- length filters


def test_filters_count_the_windows_own_seconds_and_len_is_true() -> None:
    dataset = open_folder(RUNS / "tanh_bs1", min_seconds=1.0, max_seconds=1.3)
    # 87 frames are 1.01 s, but those files end within their first second. c has a window of 1.49 s of a file of 2 s.
    assert [(item["info"]["prompt"], item["info"]["duration_s"]) for item in dataset] == [
        ("clip f", 1.0),
        ("clip b", 104 * 512 / 44_100),
        ("clip d", 1.0),
    ]
    assert len(dataset) == 3


def test_filter_boundaries_are_inclusive(plain_tree: Callable[..., Path]) -> None:
    tree = plain_tree([50, 100, 150, 400])
    assert [item["info"]["duration_s"] for item in open_folder(tree, min_seconds=1.0, max_seconds=1.5)] == [1.0, 1.5]
    assert len(open_folder(tree, max_seconds=2.0)) == 4  # the last file lasts 4 s, its window 2 s
    with pytest.raises(UsageError, match=r"none of the 4 windows .* lasts from min_seconds=7"):
        open_folder(tree, min_seconds=7.0)


# ---- stable-audio-3's trees


@pytest.fixture
def sa3_tree(tmp_path: Path, write_item: Callable[..., None], metadata: Callable[..., dict[str, Any]]) -> Path:
    folder = tmp_path / "sa3"
    for number, valid in enumerate([3, 9, 5]):
        meta = metadata(
            num_samples=valid * 4096 - 100,
            offset=0,
            window_samples=9 * 4096,
            rate_hz=44_100,
            valid_frames=valid,
            num_frames=valid,
        )
        write_item(folder / f"{number:06d}0000.npy", meta, rows=256)
    np.save(folder / "silence.npy", np.arange(256 * 4, dtype=np.float32).reshape(1, 256, 4))
    return folder


def test_a_stable_audio_3_tree_is_filled_up_with_its_silence(sa3_tree: Path) -> None:
    dataset = open_folder(sa3_tree, crop_frames=8, random_crop=True)
    assert len(dataset) == 3
    assert dataset.clock.hop_samples == 4096
    item = dataset[0]
    silence = torch.from_numpy(np.load(sa3_tree / "silence.npy")[0])
    assert torch.equal(item["latents"][:, 3:], torch.cat([silence, silence[:, :1]], dim=1))
    assert item["mask"].tolist() == [True] * 3 + [False] * 5
    assert dataset[1]["latents"].shape == (256, 8)
    assert open_folder(sa3_tree).frame_counts().tolist() == [3, 9, 5]


def test_without_stored_silence_zeros_fill_up(sa3_tree: Path) -> None:
    (sa3_tree / "silence.npy").unlink()
    assert open_folder(sa3_tree, crop_frames=8)[0]["latents"][:, 3:].eq(0).all()


def test_silence_of_another_model_is_refused(sa3_tree: Path) -> None:
    np.save(sa3_tree / "silence.npy", np.zeros((1, 64, 4), np.float32))
    with pytest.raises(StoreError, match="encoded silence has 64 rows, but a window has 256"):
        open_folder(sa3_tree, crop_frames=8)[0]


# ---- finding files


def test_names_with_npy_in_the_folder_filelist_and_order(plain_tree: Callable[..., Path]) -> None:
    tree = plain_tree([100, 150, 200], name="run.npy-1")
    shutil.copytree(tree / "0", tree / "10")
    shutil.copytree(tree / "0", tree / "2")
    (tree / ".cache").mkdir()
    np.save(tree / ".cache" / "x.npy", np.zeros(3))
    dataset = open_folder(tree)
    names = [Path(item["info"]["latent_filename"]) for item in dataset]
    assert [name.parent.name for name in names] == ["0"] * 3 + ["2"] * 3 + ["10"] * 3
    (tree / "filelist.txt").write_text("10/0000000010000.npy\n\n0/0000000000000.npy \n")
    assert [item["info"]["duration_s"] for item in open_folder(tree)] == [1.5, 1.0]


def test_a_folder_that_links_to_itself_is_read_once(plain_tree: Callable[..., Path]) -> None:
    tree = plain_tree([100, 150])
    (tree / "0" / "again").symlink_to(tree, target_is_directory=True)
    assert len(open_folder(tree)) == 2


# ---- what can be wrong


def test_opening_reads_no_array_but_the_first_and_errors_name_the_file(plain_tree: Callable[..., Path]) -> None:
    tree = plain_tree([100, 100, 100, 100])
    arrays = sorted((tree / "0").glob("*.npy"))
    arrays[1].write_bytes(arrays[1].read_bytes()[:100])
    arrays[2].with_suffix(".json").write_text('{"padding_mask": [1, 1')
    arrays[3].with_suffix(".json").unlink()
    dataset = open_folder(tree)
    assert len(dataset) == 4
    with pytest.raises(StoreError, match=f"cannot read {re.escape(str(arrays[1]))}"):
        dataset[1]
    with pytest.raises(StoreError, match=r"cannot read .*/0000000020000\.json: .*cut it short"):
        dataset[2]
    with pytest.raises(StoreError, match=r"0000000030000\.json is missing"):
        dataset[3]
    with pytest.raises(IndexError):
        dataset[4]


def test_arguments_that_cannot_work(tmp_path: Path, plain_tree: Callable[..., Path]) -> None:
    with pytest.raises(StoreError, match="nowhere is not a folder"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="holds no latents or tokens"):
        open_folder(tmp_path)
    tree = plain_tree([100])
    with pytest.raises(UsageError, match="no crop_frames to crop to"):
        open_folder(tree, random_crop=True)
    with pytest.raises(UsageError, match="crop_frames=0 holds no frame"):
        open_folder(tree, crop_frames=0)
    with pytest.raises(UsageError, match=r"min_seconds=2\.0 is more than max_seconds=1\.0"):
        open_folder(tree, min_seconds=2.0, max_seconds=1.0)
    (tree / "details.json").unlink()
    with pytest.raises(UsageError, match="does not tell how many samples a frame stands for"):
        open_folder(tree, crop_frames=5, random_crop=True)
    moved = open_folder(tree, crop_frames=5, random_crop=True, hop_samples=10)[0]["info"]
    assert moved["start_s"] == moved["latent_crop_start"] / 10


# ---- chance and workers


def with_moments(tree: Path) -> Path:
    for path in (tree / "0").glob("*.npy"):
        std = torch.full((2, 20), 0.5)
        std[:, 10:] = 2.0
        save_file({"std": std}, path.with_name(path.stem + ".moments.safetensors"))
    return tree


def test_draws_from_moments_have_their_mean_and_spread(plain_tree: Callable[..., Path]) -> None:
    tree = with_moments(plain_tree([200]))
    dataset = open_folder(tree)
    mean = open_folder(tree, sample=False)[0]["latents"]
    assert np.array_equal(mean.numpy(), np.load(tree / "0" / "0000000000000.npy"))
    draws = []
    for epoch in range(400):
        dataset.set_epoch(epoch)
        draws.append(dataset[0]["latents"] - mean)
    spread = torch.stack(draws)
    assert spread.mean(0).abs().max() < 0.5
    assert spread[:, :, :10].std().item() == pytest.approx(0.5, rel=0.03)
    assert spread[:, :, 10:].std().item() == pytest.approx(2.0, rel=0.03)


def test_a_crop_of_a_draw_is_the_draw_of_the_crop(plain_tree: Callable[..., Path]) -> None:
    tree = with_moments(plain_tree([200, 180]))
    whole, cropped = open_folder(tree), open_folder(tree, crop_frames=7, random_crop=True)
    for index in range(2):
        item = cropped[index]
        start = item["info"]["latent_crop_start"]
        assert torch.equal(item["latents"], whole[index]["latents"][:, start : start + 7])


def loader(dataset: LatentDataset, num_workers: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=num_workers, **options)


@pytest.mark.parametrize("as_stable_audio", [False, True])
def test_batches_are_the_same_for_any_number_of_workers(plain_tree: Callable[..., Path], as_stable_audio: bool) -> None:
    tree = with_moments(plain_tree([200, 40, 130, 90, 200]))
    dataset = open_folder(tree, crop_frames=6, random_crop=True, as_stable_audio=as_stable_audio)
    workers = loader(dataset, 2, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        torch.manual_seed(epoch)  # global state has no say
        alone = list(loader(dataset, 0))
        assert equal(alone, list(workers))
        epochs.append(alone)
    assert not equal(epochs[0], epochs[1])
    dataset.set_epoch(0)
    assert equal(epochs[0], list(loader(dataset, 0)))


def test_a_data_set_can_be_pickled(plain_tree: Callable[..., Path]) -> None:
    dataset = open_folder(plain_tree([200, 100]), crop_frames=6, random_crop=True, seed=5)
    dataset.set_epoch(3)
    assert equal(dataset[1], pickle.loads(pickle.dumps(dataset))[1])


def test_another_seed_draws_other_crops(plain_tree: Callable[..., Path]) -> None:
    tree = plain_tree([200] * 12)
    first, other = (
        [item["info"]["latent_crop_start"] for item in open_folder(tree, crop_frames=5, random_crop=True, seed=seed)]
        for seed in (0, 1)
    )
    assert first != other
    assert len(set(first)) > 3
