"""The whole road: a folder of songs, what `woodshed songs` makes of it, and a gradient in every layer of the DiT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import woodshed
from tests.jobs.songs_fixtures import checkpoint, prepare, write_song
from woodshed.backends.acestep import AceStep
from woodshed.backends.open import open_backend
from woodshed.contracts import Draw


@pytest.mark.parametrize("layout", ["shards", "sidestep"])
def test_songs_reach_every_layer(layout: str, tmp_path: Path) -> None:
    folder, parts = checkpoint(tmp_path)
    for name, seconds in (("a", 1.3), ("b", 0.9)):
        write_song(tmp_path / "songs" / f"{name}.wav", seconds)
        (tmp_path / "songs" / f"{name}.txt").write_text(f"caption: a warm piano\nlyrics:\nsing {name}\n")
    prepare(tmp_path / "songs", tmp_path / "tensors", folder, layout=layout)
    model = open_backend("acestep", checkpoint=folder)
    assert isinstance(model, AceStep)
    data = woodshed.open(tmp_path / "tensors", sample=False)
    examples = [model.example(data[index]) for index in range(len(data))]
    # 1,920 samples a frame; a sound's last, partial frame counts
    assert [example.latents.shape for example in examples] == [(16, 33), (16, 23)]
    assert all(example.condition.shape[1] == parts.config["hidden_size"] for example in examples)
    draws = [Draw(seed=0, timestep=model.timestep(quantile)) for quantile in (0.25, 0.75)]
    model.losses(examples, draws).mean().backward()
    grads = [layer.weight.grad for layer in model.layers().values()]
    assert len(grads) == 22
    assert all(grad is not None and bool(grad.isfinite().all()) and float(grad.abs().sum()) > 0 for grad in grads)


def test_a_crop_is_a_shorter_song(tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path)
    write_song(tmp_path / "songs" / "a.wav", 2.0)
    prepare(tmp_path / "songs", tmp_path / "tensors", folder)
    model = open_backend("acestep", checkpoint=folder)
    whole = model.example(woodshed.open(tmp_path / "tensors", sample=False)[0])
    crop = model.example(woodshed.open(tmp_path / "tensors", sample=False, crop_frames=12)[0])
    assert torch.equal(crop.latents, whole.latents[:, :12])
    assert torch.equal(crop.condition, whole.condition)
