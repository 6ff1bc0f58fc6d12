"""The `sidestep` layout: the six keys that Side-Step trains from, names that never collide, bytes that never differ."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from woodshed.contracts import ArraySpec, AudioInfo, Item, Place, Record, RecordSpec
from woodshed.errors import StoreError
from woodshed.store.sidestep import SideStep, file_name, load, tiled

SPEC = RecordSpec(
    kind="latents",
    main="latents",
    arrays={
        "latents": ArraySpec(axes=("latent", "frame"), dtype="float32", bytes_per_frame=256),
        "condition": ArraySpec(axes=("token", "width"), dtype="float32", bytes_per_frame=0),
    },
    rate_hz=48_000,
    hop_samples=1920,
    audio_channels=2,
)
SILENCE = np.random.default_rng(1).normal(size=(10, 64)).astype(np.float32)
SONG: dict[str, Any] = {
    "caption": "warm pads", "genre": "ambient", "lyrics": "", "bpm": 85, "keyscale": "C minor", "timesignature": "4/4",
    "language": "", "is_instrumental": True, "custom_tag": "zed", "tag_position": "prepend", "prompt_override": None,
    "use_genre": False, "repeat": 1, "given_duration_s": None, "has_sidecar": True,
}  # fmt: skip


def place(name: str = "live/song.wav", **meta: Any) -> Place:
    audio = AudioInfo(rate_hz=48_000, num_channels=2, num_samples=14 * 1920, format="WAV", decoder="none")
    item = Item(
        id=name, path=f"/data/{name}", relpath=name, size_bytes=1, mtime_ns=1, meta={**SONG, **meta}, audio=audio
    )
    return Place(item=item, digest="xxh3_128:ab", rank=0, position=3, index=0, num_records=1)


def record(num_frames: int = 14, num_tokens: int = 7) -> Record:
    random = np.random.default_rng(2)
    arrays = {
        "latents": random.normal(size=(64, num_frames)).astype(np.float32),
        "condition": random.normal(size=(num_tokens, 32)).astype(np.float32),
    }
    return Record(arrays=arrays, meta={"num_samples": num_frames * 1920, "valid_frames": num_frames})


def stored(layout: SideStep, made: Record, where: Place) -> dict[str, Any]:
    ((_, content),) = layout.files(made, where)
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return loaded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_holds_what_side_step_reads(dtype: str) -> None:
    made = record()
    song = stored(SideStep(spec=SPEC, silence=SILENCE, dtype=dtype), made, place())
    assert list(song) == [
        "target_latents",
        "attention_mask",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "context_latents",
        "metadata",
    ]
    kind = getattr(torch, dtype)
    shapes = {"target_latents": (14, 64), "attention_mask": (14,), "encoder_hidden_states": (7, 32),
              "context_latents": (14, 128)}  # fmt: skip
    for name, shape in shapes.items():
        assert (tuple(song[name].shape), song[name].dtype) == (shape, kind), name
    assert (song["encoder_attention_mask"].shape, song["encoder_attention_mask"].dtype) == ((7,), torch.bool)
    assert torch.equal(song["target_latents"], torch.from_numpy(made.arrays["latents"].T).to(kind))
    expected = torch.from_numpy(np.concatenate([SILENCE, SILENCE[:4]])).to(kind)
    assert torch.equal(song["context_latents"][:, :64], expected)
    assert bool((song["context_latents"][:, 64:] == 1).all())
    assert bool((song["attention_mask"] == 1).all())


def test_metadata_has_the_types_of_side_step() -> None:
    meta = stored(SideStep(spec=SPEC, silence=SILENCE), record(), place(given_duration_s=None))["metadata"]
    ours = meta.pop("woodshed")
    assert meta == {
        "audio_path": "live/song.wav", "filename": "song.wav", "caption": "warm pads", "lyrics": "[Instrumental]",
        "duration": 0, "bpm": 85, "keyscale": "C minor", "timesignature": "4/4", "genre": "ambient",
        "is_instrumental": True, "custom_tag": "zed", "prompt_override": None, "repeat": 1,
    }  # fmt: skip
    assert (ours["id"], ours["num_frames"], ours["caption"]) == ("live/song.wav", 14, "warm pads")


def test_the_log_knows_the_file_by_its_md5() -> None:
    layout, made, where = SideStep(spec=SPEC, silence=SILENCE), record(), place()
    ((_, content),) = layout.files(made, where)
    assert layout.facts(made, where)["md5"] == hashlib.md5(content).hexdigest()
    # asked alone, and after another record
    fresh = SideStep(spec=SPEC, silence=SILENCE)
    assert fresh.facts(made, where) == layout.facts(made, where)
    assert fresh.facts(record(13), replace(where, position=4))["md5"] != layout.facts(made, where)["md5"]


NAMES = st.text(alphabet="aB_/.%~ é", min_size=1, max_size=9)


@given(st.lists(NAMES, min_size=2, max_size=6, unique=True))
def test_no_two_songs_share_a_file(names: list[str]) -> None:
    made = {file_name(name).lower() for name in names}
    assert len(made) == len(names)


@given(NAMES | st.text(min_size=1, max_size=400).filter(lambda text: "\0" not in text))
def test_every_song_has_a_file_that_side_step_lists(name: str) -> None:
    made = file_name(name)
    assert made.endswith(".pt")
    assert not made.endswith(".tmp.pt")
    assert "/" not in made
    assert not made.startswith(".")
    assert len(made.encode()) <= 200


def test_silence_repeats() -> None:
    assert tiled(SILENCE, 25).shape == (25, 64)
    assert np.array_equal(tiled(SILENCE, 25)[20:], SILENCE[:5])


class Bomb:
    """What a hostile checkpoint holds: something that runs when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code in a data file was run')",))


def test_code_in_a_file_never_runs(tmp_path: Path) -> None:
    torch.save({"target_latents": Bomb()}, tmp_path / "song.pt")
    with pytest.raises(StoreError, match=r"song\.pt is not a file of tensors"):
        load(tmp_path / "song.pt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text"])
def test_what_is_no_song_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "song.pt").write_bytes(content)
    with pytest.raises(StoreError, match=r"song\.pt"):
        load(tmp_path / "song.pt")


def test_tensors_of_something_else_are_refused(tmp_path: Path) -> None:
    torch.save({"target_latents": torch.zeros(2, 64)}, tmp_path / "song.pt")
    with pytest.raises(StoreError, match="has no encoder_hidden_states"):
        load(tmp_path / "song.pt")
