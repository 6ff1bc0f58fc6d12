"""`woodshed.open` over a folder as Side-Step's own preprocessing leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import woodshed
from woodshed.datasets.collate import collate
from woodshed.errors import StoreError


def write_song(path: Path, *, num_frames: int, num_tokens: int = 769, real_tokens: int = 300, **meta: Any) -> None:
    """A file with the keys, shapes and types that Side-Step 1.1.2 writes (width 8 in place of 2048)."""
    torch.manual_seed(num_frames)
    mask = torch.arange(num_tokens) < real_tokens
    tensors = {
        "target_latents": torch.randn(num_frames, 64).to(torch.bfloat16),
        "attention_mask": torch.ones(num_frames).to(torch.bfloat16),
        "encoder_hidden_states": torch.randn(num_tokens, 8).to(torch.bfloat16),
        "encoder_attention_mask": mask,
        "context_latents": torch.ones(num_frames, 128).to(torch.bfloat16),
        "metadata": {"audio_path": f"/music/{path.stem}.wav", "filename": f"{path.stem}.wav", "caption": "pads",
                     "lyrics": "[Instrumental]", "duration": 0, "bpm": None, "keyscale": "", **meta},
    }  # fmt: skip
    torch.save(tensors, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_song(tmp_path / "song10.pt", num_frames=50)
    write_song(tmp_path / "song2.pt", num_frames=75, real_tokens=20, caption="drums")
    write_song(tmp_path / "song3.tmp.pt", num_frames=75)
    (tmp_path / "preprocess_meta.json").write_text("{}")
    return tmp_path


def test_songs_come_in_the_order_of_their_names_without_staging_files(folder: Path) -> None:
    dataset = woodshed.open(folder)
    assert [dataset[index]["info"]["filename"] for index in range(len(dataset))] == ["song2.wav", "song10.wav"]


def test_a_song_is_handed_out_as_it_was_stored_without_padding(folder: Path) -> None:
    item = woodshed.open(folder)[0]
    stored = torch.load(folder / "song2.pt", weights_only=True)
    assert torch.equal(item["latents"], stored["target_latents"].float().T)
    assert torch.equal(item["condition"], stored["encoder_hidden_states"][:20].float())
    assert bool(item["mask"].all())
    assert (item["info"]["prompt"], item["info"]["duration_s"]) == ("drums", 3.0)


def test_crops_and_lengths_work_as_for_our_own_folders(folder: Path) -> None:
    dataset = woodshed.open(folder, crop_frames=30, random_crop=True, seed=1, min_seconds=2.5)
    assert len(dataset) == 1
    item = dataset[0]
    start = item["info"]["latent_crop_start"]
    stored = torch.load(folder / "song2.pt", weights_only=True)["target_latents"].float()
    assert torch.equal(item["latents"], stored[start : start + 30].T)


def test_batches_tell_what_of_a_condition_is_padding(folder: Path) -> None:
    dataset = woodshed.open(folder)
    batch = collate([dataset[0], dataset[1]])
    assert batch["latents"].shape == (2, 64, 75)
    assert batch["condition"].shape == (2, 300, 8)
    assert batch["condition_mask"].sum(1).tolist() == [20, 300]
    assert batch["mask"].sum(1).tolist() == [75, 50]


def test_inspect_shows_a_foreign_folder(folder: Path) -> None:
    from woodshed.jobs.inspect import run
    from woodshed.jobs.settings import InspectSettings

    report = run(InspectSettings(folder=folder))
    assert (report.num_items, report.rate_hz, report.audio_s) == (2, 48_000, 5.0)


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    dataset = woodshed.open(folder)
    (folder / "song10.pt").write_bytes(b"cut off")
    with pytest.raises(StoreError, match=r"song10\.pt"):
        dataset[1]
