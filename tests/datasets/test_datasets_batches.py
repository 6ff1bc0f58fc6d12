"""Length buckets, collating, the drop-in for stable-audio-tools' trainers, and statistics."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from woodshed.datasets.buckets import LengthBucketSampler, plan_batches, share_batches
from woodshed.datasets.collate import collate
from woodshed.datasets.folder import open as open_folder
from woodshed.datasets.stable_audio import WrappedMask
from woodshed.datasets.statistics import statistics
from woodshed.errors import StoreError, UsageError

RUNS = Path(__file__).parents[1] / "golden" / "stable_audio" / "pre_encode_runs"
QUICK = settings(max_examples=80, deadline=None)
LENGTHS = st.lists(st.integers(0, 400), min_size=1, max_size=60)


def padded_frames(lengths: list[int], batches: list[list[int]]) -> int:
    return sum(len(batch) * max(lengths[item] for item in batch) for batch in batches)


@QUICK
@given(LENGTHS, st.integers(1, 1000), st.none() | st.integers(1, 9), st.booleans(), st.integers(0, 5))
def test_every_item_is_in_one_batch_and_batches_are_bounded(
    lengths: list[int], batch_frames: int, max_items: int | None, shuffle: bool, epoch: int
) -> None:
    batches = plan_batches(lengths, batch_frames=batch_frames, max_items=max_items, shuffle=shuffle, key=(0, epoch))
    assert sorted(item for batch in batches for item in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= (max_items or len(batch))
        assert len(batch) == 1 or padded_frames(lengths, [batch]) <= batch_frames
    again = plan_batches(lengths, batch_frames=batch_frames, max_items=max_items, shuffle=shuffle, key=(0, epoch))
    assert batches == again


@QUICK
@given(LENGTHS, st.integers(1, 1000), st.integers(1, 8), st.sampled_from(["pad", "drop", "keep"]))
def test_ranks_share_all_items_evenly(lengths: list[int], batch_frames: int, world_size: int, remainder: str) -> None:
    batches = plan_batches(lengths, batch_frames=batch_frames)
    shares = [
        share_batches(batches, rank=rank, world_size=world_size, remainder=remainder)  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    seen = sorted(item for share in shares for batch in share for item in batch)
    assert all(len(batch) == 1 or padded_frames(lengths, [batch]) <= batch_frames for s in shares for batch in s)
    sizes = {len(share) for share in shares}
    num_batches = sum(map(len, shares))
    splittable = len(lengths) >= -(-len(batches) // world_size) * world_size
    if splittable or remainder == "keep":
        assert seen == list(range(len(lengths)))
    if splittable or remainder != "keep":
        assert len(sizes) == 1
    if remainder == "drop":
        assert len(seen) == len(set(seen)) > len(lengths) - world_size
    if remainder == "pad":
        assert set(seen) == set(range(len(lengths)))
        assert num_batches <= max(len(batches), len(lengths)) + world_size - 1


def test_buckets_pad_little_and_change_with_the_epoch() -> None:
    lengths = np.random.default_rng(0).integers(50, 1500, 2000).tolist()
    planned = [plan_batches(lengths, batch_frames=12_000, key=(0, epoch)) for epoch in range(2)]
    assert planned[0] != planned[1]
    assert {frozenset(batch) for batch in planned[0]}.isdisjoint({frozenset(batch) for batch in planned[1]})
    for batches in planned:
        assert padded_frames(lengths, batches) < 1.12 * sum(lengths)
    in_order = [list(range(start, start + 10)) for start in range(0, 2000, 10)]
    assert padded_frames(lengths, in_order) > 1.5 * sum(lengths)


def test_the_sampler_feeds_a_loader_each_item_once_per_epoch(plain_tree: Callable[..., Path]) -> None:
    lengths = [200, 40, 130, 90, 200, 10, 70]
    dataset = open_folder(plain_tree(lengths), pad=False)
    sampler = LengthBucketSampler(dataset, batch_frames=40, seed=2)
    loaders = [DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=n) for n in (0, 2)]
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert dataset.epoch == epoch
        batches = [list(loader) for loader in loaders]
        for alone, parallel in zip(*batches, strict=True):
            assert torch.equal(alone["latents"], parallel["latents"])
            assert torch.equal(alone["mask"], parallel["mask"])
            assert alone["mask"].numel() <= 40
        names = [info["latent_filename"] for batch in batches[0] for info in batch["info"]]
        assert len(batches[0]) == len(sampler)
        assert len(set(names)) == len(names) == len(lengths)
        orders.append(names)
    assert orders[0] != orders[1]


def test_sampler_arguments_that_cannot_work(plain_tree: Callable[..., Path]) -> None:
    dataset = open_folder(plain_tree([100]))
    with pytest.raises(UsageError, match="rank=2 of world_size=2"):
        LengthBucketSampler(dataset, batch_frames=10, rank=2, world_size=2)
    with pytest.raises(UsageError, match="batch_frames=0"):
        LengthBucketSampler(dataset, batch_frames=0)


# ---- collate


def test_collate_fills_up_to_the_longest_and_says_so(plain_tree: Callable[..., Path]) -> None:
    dataset = open_folder(plain_tree([40, 130]), pad=False)
    batch = collate([dataset[0], dataset[1]])
    assert batch["latents"].shape == (2, 2, 13)
    assert torch.equal(batch["latents"][0, :, :4], dataset[0]["latents"])
    assert batch["latents"][0, :, 4:].eq(0).all()
    assert batch["mask"].dtype == torch.bool
    assert batch["mask"].sum(1).tolist() == [4, 13]
    assert [info["prompt"] for info in batch["info"]] == ["a sound", "a sound"]
    tokens = collate([open_folder(RUNS / "fsq")[0]])
    assert tokens["tokens"].shape == (1, 2, 128)


def test_outputs_of_two_models_do_not_share_a_batch(plain_tree: Callable[..., Path]) -> None:
    narrow, wide = open_folder(plain_tree([40], name="a")), open_folder(plain_tree([40], name="b", rows=3))
    with pytest.raises(StoreError, match=r"b/0/0000000000000.npy has 3 rows, but .*a/0/0000000000000.npy has 2"):
        collate([narrow[0], wide[0]])


# ---- stable-audio-tools' trainers: what they do with a batch, in their words


def test_masks_serve_every_trainer() -> None:
    dataset = open_folder(RUNS / "tanh_bs1", crop_frames=100, as_stable_audio=True)
    reals, metadata = collate([dataset[0], dataset[4]])
    assert reals.shape == (2, 8, 100)
    masks = [md["padding_mask"] for md in metadata]
    # the diffusion trainer unwraps lists of one; ARC and stable-audio-3 take element 0; the LM trainer asks for ndim
    assert all(isinstance(mask, list) and len(mask) == 1 for mask in masks)
    assert all(mask.ndim != 1 for mask in masks)
    padding_masks = torch.stack([mask[0] for mask in masks])
    assert padding_masks.shape == (2, 100)
    loss = torch.arange(reals.numel(), dtype=torch.float32).reshape(reals.shape)
    picked = loss[padding_masks.unsqueeze(1).repeat(1, 8, 1)]  # an integer mask would gather rows here
    assert picked.shape == (8 * (78 + 100),)
    for md, index in zip(metadata, (0, 4), strict=True):
        assert md["audio"] is not None
        assert md["latent_crop_start"] == 0
        assert isinstance(md["seconds_start"], int)
        assert isinstance(md["seconds_total"], int)
        assert md["prompt"] == open_folder(RUNS / "tanh_bs1")[index]["info"]["prompt"]
    copied = pickle.loads(pickle.dumps(masks[0]))
    assert isinstance(copied, WrappedMask)
    assert torch.equal(copied[0], masks[0][0])


def test_pairs_of_different_length_get_masks_of_one_length(plain_tree: Callable[..., Path]) -> None:
    dataset = open_folder(plain_tree([40, 130]), pad=False, as_stable_audio=True)
    reals, metadata = collate([dataset[0], dataset[1]])
    assert reals.shape == (2, 2, 13)
    assert torch.stack([md["padding_mask"][0] for md in metadata]).sum(1).tolist() == [4, 13]


# ---- statistics


def test_statistics_are_those_of_all_valid_frames_together(plain_tree: Callable[..., Path]) -> None:
    tree = plain_tree([200, 40, 130, 5])
    for path in (tree / "0").glob("*.npy"):
        np.save(path, np.load(path) * np.float32(3) + np.float32([[1000], [-2]]))
    frames = np.concatenate(
        [
            np.load(tree / "0" / f"{number:09d}0000.npy")[:, :valid].astype(np.float64)
            for number, valid in enumerate([20, 4, 13, 1])
        ],
        axis=1,
    )
    measured = statistics(open_folder(tree, crop_frames=3))
    assert measured.num_frames == frames.shape[1] == 38
    np.testing.assert_allclose(measured.mean, frames.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(measured.std, frames.std(axis=1), rtol=1e-10)
    assert measured.scale == pytest.approx(frames.std(), rel=1e-12)
    assert statistics(open_folder(tree), max_items=2).num_frames == 20 + 13


def test_statistics_of_moments_are_those_of_draws(plain_tree: Callable[..., Path]) -> None:
    tree = plain_tree([200, 200])
    for path in (tree / "0").glob("*.npy"):
        save_file({"std": torch.full((2, 20), 4.0)}, path.with_name(path.stem + ".moments.safetensors"))
    means, draws = statistics(open_folder(tree, sample=False)), statistics(open_folder(tree))
    np.testing.assert_allclose(draws.std**2, means.std**2 + 16, rtol=1e-6)
    np.testing.assert_allclose(draws.mean, means.mean)


def test_what_has_no_statistics(plain_tree: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tokens are names of codebook entries"):
        statistics(open_folder(RUNS / "fsq"))
    with pytest.raises(UsageError, match="no valid frame in 1 windows"):
        statistics(open_folder(plain_tree([0])))
