"""`woodshed.open` over folders that the real store wrote, in both layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from woodshed.contracts import ArraySpec, AudioInfo, Item, Layout, Place, Record, RecordSpec
from woodshed.datasets.collate import collate
from woodshed.datasets.folder import open as open_folder
from woodshed.errors import StoreError
from woodshed.store.shards import Shards
from woodshed.store.stable_audio import StableAudio
from woodshed.store.store import SourceFacts, Store

RATE_HZ, HOP, FRAMES = 1000, 10, 12
LENGTHS = {"drums/a.wav": 305, "drums/b.wav": 120, "voice/c.wav": 47}
DIGEST = "xxh3_128:" + "0" * 32


def latent_spec() -> RecordSpec:
    array = ArraySpec(axes=("latent", "frame"), dtype="float32", bytes_per_frame=12)
    return RecordSpec(
        kind="latents",
        main="mean",
        arrays={"mean": array, "std": array},
        rate_hz=RATE_HZ,
        hop_samples=HOP,
        audio_channels=1,
    )


def token_spec() -> RecordSpec:
    return RecordSpec(
        kind="tokens",
        main="tokens",
        arrays={"tokens": ArraySpec(axes=("frame", "codebook"), dtype="int16", bytes_per_frame=4)},
        rate_hz=RATE_HZ,
        hop_samples=HOP,
        audio_channels=1,
        codebook_sizes=(1000, 1000),
    )


def arrays_of(spec: RecordSpec, position: int, num_frames: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(position)
    if spec.kind == "tokens":
        return {"tokens": rng.integers(0, 1000, (num_frames, 2)).astype(np.int16)}
    return {
        "mean": rng.normal(size=(3, num_frames)).astype(np.float32),
        "std": rng.uniform(0.5, 1, (3, num_frames)).astype(np.float32),
    }


@pytest.fixture
def encoded(tmp_path: Path) -> Callable[..., Path]:
    """Write three clips in windows of 12 frames, the last one padded, and a failure, with the real store."""

    def write(layout_name: str, spec: RecordSpec, *, expected_items: int = 4) -> Path:
        folder = tmp_path / f"{layout_name}-{spec.kind}"
        layout: Layout = Shards(spec=spec)
        if layout_name == "stable_audio":
            layout = StableAudio(spec=spec, window_samples=FRAMES * HOP)
        with Store.open(folder, layout=layout, fingerprint={"model": "small"}, spec=spec) as store:
            store.expect_shards({0: expected_items})
            store.fail(SourceFacts(id="broken.wav", position=0, shard=0), kind="truncated", reason="ends early")
            position = 0
            for name, num_samples in LENGTHS.items():
                position = write_clip(store, spec, name, num_samples, position)
            store.render("details.json", json.dumps({"spec": asdict(spec), "sample_size": FRAMES * HOP}).encode())
        return folder

    return write


def write_clip(store: Store, spec: RecordSpec, name: str, num_samples: int, position: int) -> int:
    audio = AudioInfo(rate_hz=RATE_HZ, num_channels=1, num_samples=num_samples, format="WAV", decoder="none")
    item = Item(
        id=name, path=f"/s/{name}", relpath=name, size_bytes=1, mtime_ns=1, meta={"prompt": f"p {name}"}, audio=audio
    )
    starts = range(0, num_samples, FRAMES * HOP)
    facts = SourceFacts(id=name, digest=DIGEST, meta_digest=DIGEST, position=position, shard=0)
    with store.item(facts) as writer:
        for index, start in enumerate(starts):
            valid = min(FRAMES * HOP, num_samples - start)
            meta = {
                "start_sample": start,
                "num_samples": valid,
                "num_frames": FRAMES,
                "valid_frames": -(-valid // HOP),
            }
            record = Record(arrays=arrays_of(spec, position + index, FRAMES), meta=meta)
            place = Place(
                item=item, digest=DIGEST, rank=0, position=position + index, index=index, num_records=len(starts)
            )
            writer.write(record, place)
        writer.done(audio_s=num_samples / RATE_HZ)
    return position + len(starts)


@pytest.mark.parametrize("expected_items", [4, 5])  # 5: the shard is incomplete, its records are still staged
@pytest.mark.parametrize("layout", ["stable_audio", "shards"])
def test_windows_come_out_in_the_order_of_the_plan(
    encoded: Callable[..., Path], layout: str, expected_items: int
) -> None:
    folder = encoded(layout, latent_spec(), expected_items=expected_items)
    dataset = open_folder(folder, sample=False)
    assert [(item["info"]["start_s"], item["info"]["duration_s"]) for item in dataset] == [
        (0.0, 0.12),
        (0.12, 0.12),
        (0.24, 0.065),
        (0.0, 0.12),
        (0.0, 0.047),
    ]
    for position in range(5):
        item = dataset[position]
        assert np.array_equal(item["latents"].numpy(), arrays_of(latent_spec(), position, FRAMES)["mean"])
    assert dataset[2]["mask"].tolist() == [True] * 7 + [False] * 5
    assert dataset[2]["info"]["prompt"] == "p drums/a.wav"
    assert dataset[2]["info"]["relpath"] == "drums/a.wav"
    assert dataset[2]["info"]["seconds_total"] == 1
    assert dataset.clock.hop_samples == HOP


def test_both_layouts_and_a_copy_without_the_log_give_the_same_draws(
    encoded: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [encoded("stable_audio", latent_spec()), encoded("shards", latent_spec())]
    copy = shutil.copytree(folders[0], tmp_path / "copy", ignore=shutil.ignore_patterns(".woodshed"))
    datasets = [open_folder(folder, crop_frames=5, random_crop=True, seed=4) for folder in [*folders, copy]]
    starts = set()
    for epoch in range(3):
        for dataset in datasets:
            dataset.set_epoch(epoch)
        for index in range(5):
            first, *others = (dataset[index] for dataset in datasets)
            start = first["info"]["latent_crop_start"]
            starts.add(start)
            mean = arrays_of(latent_spec(), index, FRAMES)["mean"][:, start : start + 5]
            assert not np.allclose(first["latents"].numpy(), mean, atol=0.1)
            for other in others:
                assert torch.equal(first["latents"], other["latents"])
                assert torch.equal(first["mask"], other["mask"])
                for key in ("start_s", "duration_s", "seconds_start", "latent_crop_start", "prompt"):
                    assert first["info"][key] == other["info"][key]
    assert len(starts) > 3


@pytest.mark.parametrize("layout", ["stable_audio", "shards"])
def test_filters_are_exact_to_the_sample(encoded: Callable[..., Path], layout: str) -> None:
    folder = encoded(layout, latent_spec())
    assert len(open_folder(folder, min_seconds=0.065)) == 4
    assert len(open_folder(folder, min_seconds=0.0651)) == 3
    assert len(open_folder(folder, max_seconds=0.065)) == 2
    assert open_folder(folder, pad=False).frame_counts().tolist() == [12, 12, 7, 12, 5]


@pytest.mark.parametrize("layout", ["stable_audio", "shards"])
def test_workers_read_a_committed_folder(encoded: Callable[..., Path], layout: str) -> None:
    dataset = open_folder(encoded(layout, latent_spec()), crop_frames=6, random_crop=True)
    alone, parallel = (
        list(DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=workers)) for workers in (0, 2)
    )
    assert len(alone) == 3
    for left, right in zip(alone, parallel, strict=True):
        assert torch.equal(left["latents"], right["latents"])


@pytest.mark.parametrize("layout", ["stable_audio", "shards"])
def test_tokens_that_are_stored_frames_first_come_out_codebooks_first(
    encoded: Callable[..., Path], layout: str, tmp_path: Path
) -> None:
    folder = encoded(layout, token_spec())
    folders = [folder]
    if layout == "stable_audio":
        folders.append(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".woodshed")))
    for place in folders:
        dataset = open_folder(place)
        assert dataset.kind == "tokens"
        for position in range(5):
            tokens = dataset[position]["tokens"]
            assert tokens.dtype == torch.int64
            assert np.array_equal(tokens.numpy(), arrays_of(token_spec(), position, FRAMES)["tokens"].T)


def test_a_folder_without_a_finished_item(tmp_path: Path) -> None:
    spec = latent_spec()
    with Store.open(tmp_path / "out", layout=Shards(spec=spec), fingerprint={}, spec=spec) as store:
        store.fail(SourceFacts(id="broken.wav", position=0, shard=0), kind="truncated", reason="ends early")
    with pytest.raises(StoreError, match="holds no finished item yet"):
        open_folder(tmp_path / "out")


def test_shards_without_their_log_say_what_is_missing(encoded: Callable[..., Path]) -> None:
    folder = encoded("shards", latent_spec())
    shutil.rmtree(folder / ".woodshed")
    with pytest.raises(StoreError, match=r"\.woodshed folder beside them"):
        open_folder(folder)
