"""What lies on disk: the files of stable-audio-tools, and safetensors shards that its own library reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.store.small_store import LAYOUTS, SPEC, first_plan, run
from woodshed.contracts import ArraySpec, AudioInfo, Item, Place, Record, RecordSpec
from woodshed.errors import ItemError, StoreError
from woodshed.store.describe import clashing_columns
from woodshed.store.reader import open_reader
from woodshed.store.stable_audio import StableAudio

GOLDEN = Path(__file__).parents[2].parent / "shared/golden/stable_audio/pre_encode_runs"
TOKENS = RecordSpec(
    kind="tokens",
    main="tokens",
    arrays={"tokens": ArraySpec(axes=("codebook", "frame"), dtype="int32", bytes_per_frame=8)},
    rate_hz=44_100,
    hop_samples=512,
    audio_channels=2,
    codebook_sizes=(1024, 1024),
)
LATENTS = replace(TOKENS, kind="latents", codebook_sizes=())
WINDOW = 65_536


def item(name: str, *, num_samples: int, rate_hz: int = 44_100, **meta: Any) -> Item:
    audio = AudioInfo(rate_hz=rate_hz, num_channels=2, num_samples=num_samples, format="WAV", decoder="none")
    return Item(id=name, path=f"/data/{name}", relpath=name, size_bytes=1, mtime_ns=1, meta=meta, audio=audio)


def files(layout: StableAudio, array: np.ndarray, source: Item, *, rank: int = 0, **meta: Any) -> dict[str, bytes]:
    record = Record(arrays={layout.spec.main: array}, meta=meta)
    place = Place(item=source, digest="xxh3_128:ab", rank=rank, position=12, index=0, num_records=1)
    return dict(layout.files(record, place))


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"needs the golden output trees in {GOLDEN}")
@pytest.mark.parametrize("tree", ["tanh_bs1", "fsq"])
def test_metadata_equals_what_stable_audio_tools_wrote(tree: str) -> None:
    inputs = {"h": (44_100, 0.02), "f": (96_000, 1.0), "a": (44_100, 0.9), "c": (22_050, 2.0), "e": (16_000, 0.5)}
    compared = 0
    for path in sorted((GOLDEN / tree / "0").glob("*.json")):
        theirs = json.loads(path.read_bytes())
        if theirs["relpath"][0] not in inputs:
            continue
        array = np.load(path.with_suffix(".npy"))
        rate, length_s = inputs[theirs["relpath"][0]]
        source = item(theirs["relpath"], num_samples=round(length_s * rate), rate_hz=rate)
        source = replace(source, path=theirs["path"], meta={k: theirs[k] for k in ("prompt", "n_ch") if k in theirs})
        valid = min(WINDOW, round(length_s * 44_100))
        spec = LATENTS if array.dtype.kind == "f" else TOKENS
        layout = StableAudio(spec=spec, window_samples=WINDOW, absolute_paths=True)
        ours = files(layout, array, source, start_sample=0, num_samples=valid)
        meta = json.loads(ours["0/0000000000012.json"])
        assert {key: meta[key] for key in theirs if key != "load_time"} == {
            key: value for key, value in theirs.items() if key != "load_time"
        }
        (main,) = (content for name, content in ours.items() if name.endswith(".npy"))
        if array.dtype.kind == "f":
            assert main == path.with_suffix(".npy").read_bytes()
        compared += 1
    assert compared == 5


def test_both_key_sets_and_exact_places_of_a_tile() -> None:
    source = item("sub/a.wav", num_samples=150_000, prompt="drums", duration="3.4 s", bpm=120)
    layout = StableAudio(spec=LATENTS, window_samples=WINDOW)
    made = files(layout, np.zeros((8, 128), np.float16), source, rank=3, start_sample=131_072, num_samples=18_928)
    assert set(made) == {"3/0030000000012.npy", "3/0030000000012.json"}
    meta = json.loads(made["3/0030000000012.json"])
    valid_frames = 37
    assert meta == {
        "id": "sub/a.wav",
        "path": "sub/a.wav",
        "relpath": "sub/a.wav",
        "seconds_start": 2,
        "seconds_total": 4,
        "sample_rate": 44_100,
        "audio_channels": 2,
        "duration": 18_928 / 44_100,
        "start_time": 131_072 / 44_100,
        "end_time": 150_000 / 44_100,
        "sample_offset": 131_072,
        "num_samples": 18_928,
        "total_samples": 150_000,
        "num_frames": 128,
        "valid_frames": valid_frames,
        "silent": False,
        "source_digest": "xxh3_128:ab",
        "record_index": 0,
        "num_records": 1,
        "prompt": "drums",
        "bpm": 120,
        "columns": {"duration": "3.4 s"},
        "timestamps": [131_072 / 150_000, 1.0],
        "padding_mask": [1] * valid_frames + [0] * (128 - valid_frames),
    }
    assert clashing_columns(source.meta) == ("duration",)
    assert "/data" not in json.dumps(meta)


def test_names_that_are_not_utf8_survive() -> None:
    made = files(StableAudio(spec=LATENTS), np.zeros((8, 1), np.float32), item("caf\udce9.wav", num_samples=5))
    assert json.loads(made["0/0000000000012.json"].decode("ascii"))["relpath"] == "caf\udce9.wav"


@pytest.mark.parametrize(("size", "dtype"), [(256, "uint8"), (1024, "int16"), (65_536, "int32")])
def test_tokens_take_the_smallest_type_that_torch_reads(tmp_path: Path, size: int, dtype: str) -> None:
    layout = StableAudio(spec=replace(TOKENS, codebook_sizes=(size, 2)))
    tokens = np.array([[0, size - 1], [1, 0]], dtype=np.int64)
    (tmp_path / "a.npy").write_bytes(files(layout, tokens, item("a", num_samples=600))["0/0000000000012.npy"])
    loaded = np.load(tmp_path / "a.npy")
    assert loaded.dtype == dtype
    assert torch.equal(torch.from_numpy(loaded).long(), torch.from_numpy(tokens))
    with pytest.raises(ItemError, match=rf"tokens of 'a' run from 0 to {size}; its codebooks have {size} entries"):
        files(layout, tokens + np.array([[0, 1], [0, 0]]), item("a", num_samples=600))


def test_more_than_thirteen_digits_are_refused() -> None:
    with pytest.raises(StoreError, match="rank 1000, position 12 do not fit a name of 3 \\+ 10 digits"):
        files(StableAudio(spec=LATENTS), np.zeros((8, 1), np.float32), item("a", num_samples=5), rank=1000)


def test_moments_lie_beside_the_mean(tmp_path: Path) -> None:
    run(tmp_path, "stable_audio", first_plan())
    reader = open_reader(tmp_path)
    first = next(reader.entries()).records[0]
    assert sorted(path.name for path in (tmp_path / "0").glob("0000000000000*")) == [
        "0000000000000.json", "0000000000000.moments.safetensors", "0000000000000.npy",
    ]  # fmt: skip
    with safe_open(tmp_path / "0/0000000000000.moments.safetensors", "np") as moments:
        assert list(moments.keys()) == ["std"]
        np.testing.assert_array_equal(moments.get_tensor("std"), reader.arrays(first)["std"])


def test_shards_are_plain_safetensors(tmp_path: Path) -> None:
    run(tmp_path, "shards", first_plan())
    reader = open_reader(tmp_path)
    index = json.loads((tmp_path / "shards/00001.index.json").read_bytes())
    assert [record["position"] for record in index["records"]] == [3, 4, 5, 6, 7]
    assert [record["id"] for record in index["records"]] == ["clip 3.wav"] * 3 + ["clip 4.wav", "clip 5.wav"]
    with safe_open(tmp_path / "shards/00001.safetensors", "np") as shard:
        assert sorted(shard.keys()) == sorted(f"{p}/{name}" for p in range(3, 8) for name in ("mean", "std"))
        for entry in reader.entries():
            for record in entry.records:
                if record.shard == 1:
                    arrays = reader.arrays(record)
                    np.testing.assert_array_equal(shard.get_tensor(f"{record.position}/std"), arrays["std"])
                    assert isinstance(arrays["std"].base, np.memmap)
                    assert not arrays["std"].flags.writeable


def test_mixed_types_are_aligned_in_a_shard(tmp_path: Path) -> None:
    layout = LAYOUTS["shards"]
    arrays = {"a": np.arange(3, dtype=np.uint8), "mean": np.ones((2, 3), np.float32), "z": np.ones(1, np.int64)}
    record = Record(arrays=arrays, meta={"num_samples": 30})
    place = Place(item=item("x", num_samples=30), digest="", rank=0, position=0, index=0, num_records=1)
    ((_, blob),) = layout.files(record, place)
    (tmp_path / "x.safetensors").write_bytes(blob)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        for name, array in arrays.items():
            assert torch.equal(file.get_tensor(name), torch.from_numpy(array))


def test_spec_and_fingerprint_are_there_for_readers(tmp_path: Path) -> None:
    run(tmp_path, "shards", first_plan())
    reader = open_reader(tmp_path)
    assert (reader.layout, reader.fingerprint) == ("shards", {"model": {"digest": "a"}})
    std = {"axes": ["latent", "frame"], "dtype": "float32", "bytes_per_frame": 8, "bytes_per_record": 0}
    assert reader.spec["arrays"]["std"] == std
    assert (reader.spec["main"], reader.spec["hop_samples"]) == (SPEC.main, SPEC.hop_samples)
