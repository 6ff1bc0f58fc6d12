"""The twenty defects of stable-audio-tools' `pre_encode.py`, each shown to be absent here.

One line in each test says what the original does. Everything runs through what users call.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from vector_quantize_pytorch import ResidualVQ

import woodshed
from tests.encoders.plain_oobleck import PlainAutoencoder, model_config
from tests.jobs.conftest import GOLDEN, RATIO, WINDOW, sound, tree
from woodshed.audio.clip import file_digest, read
from woodshed.audio.probe import probe
from woodshed.cli.main import main
from woodshed.contracts import Arrays, Example, Item, Summary
from woodshed.encoders.autoencoder import FrameEncoder
from woodshed.encoders.checkpoints import load_autoencoder
from woodshed.errors import ModelError
from woodshed.jobs.model import load_encoder
from woodshed.jobs.settings import EncodeSettings
from woodshed.run.plan import PlanOptions

Model = Callable[[str], dict[str, Path]]
FRAMES = WINDOW // RATIO


def run(source: Path | None, output: Path, **settings: Any) -> Summary:
    defaults: dict[str, Any] = {"sample_size": WINDOW, "num_workers": 2, "device": "cpu"}
    return woodshed.encode(source, output, **(defaults | settings))


def stored(folder: Path) -> dict[str, list[tuple[dict[str, Any], np.ndarray]]]:
    """By source file: metadata and array of each record, in order."""
    found: dict[str, list[tuple[dict[str, Any], np.ndarray]]] = {}
    for path in sorted(folder.glob("[0-9]*/*.npy")):
        meta = json.loads(path.with_suffix(".json").read_text())
        found.setdefault(meta["relpath"], []).append((meta, np.load(path)))
    return found


def unchunked(path: Path, model: dict[str, Path], num_frames: int) -> dict[str, np.ndarray]:
    """One call of the network on the file, filled up with zeros."""
    own = load_autoencoder(*model.values(), parts="encoder")
    audio = read(str(path), probe(str(path)), rate_hz=own.rate_hz, num_channels=own.audio_channels)
    padded = np.zeros((1, own.audio_channels, num_frames * own.ratio), np.float32)
    padded[0, :, : audio.shape[1]] = audio[:, : padded.shape[2]]
    with torch.inference_mode():
        made = own.bottleneck.analyse(own.encode(torch.from_numpy(padded)))
    return {name: value[0].numpy() for name, value in made.items()}


def clips(folder: Path, seconds: Sequence[float], *, rate_hz: int = 44_100, channels: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, length_s in enumerate(seconds):
        soundfile.write(folder / f"{number}.wav", sound(length_s, rate_hz, channels, seed=number), rate_hz)
    return folder


def dataset_config(folder: Path, sounds: Path, code: str) -> dict[str, Any]:
    """Settings that name the sounds through a config with a metadata module."""
    (folder / "about.py").write_text(f"def get_custom_metadata(info, audio):\n{code}\n")
    entry = {"id": "mine", "path": str(sounds), "custom_metadata_module": str(folder / "about.py")}
    config = {"dataset_type": "audio_dir", "datasets": [entry]}
    (folder / "data.json").write_text(json.dumps(config))
    return {"dataset_config_path": folder / "data.json", "trust_remote_code": True}


def test_defect_01_no_item_stands_in_for_another(tmp_path: Path, model: Model) -> None:
    """The original puts a random other file in the place of one that is broken, silent or rejected."""
    sounds = clips(tmp_path / "sounds", [0.3] * 5)
    (sounds / "broken.wav").write_text("not a sound")
    soundfile.write(sounds / "silent.wav", np.zeros((8_000, 2)), 44_100)
    config = dataset_config(tmp_path, sounds, "    return {'__reject__': info['relpath'] == '3.wav'}")
    summary = run(None, tmp_path / "out", **config, **model("tiny_tanh"))
    assert (summary.num_rows, summary.num_done, summary.num_failed, summary.num_skipped) == (7, 5, 1, 1)
    assert summary.failures[0].id == "broken.wav"
    found = stored(tmp_path / "out")
    assert sorted(found) == ["0.wav", "1.wav", "2.wav", "4.wav", "silent.wav"]
    assert all(len(records) == 1 for records in found.values())
    assert len({records[0][1].tobytes() for records in found.values()}) == 5, "five files, five different arrays"
    assert found["silent.wav"][0][0]["silent"] is True


def test_defect_02_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """The original takes any checkpoint and encodes with random weights, exit code 0."""
    sounds = clips(tmp_path / "sounds", [0.3])
    state = torch.load(model("tiny_tanh")["ckpt_path"], weights_only=True)["state_dict"]
    (name, tensor), *_ = state.items()
    torch.save({"state_dict": {name: tensor}}, tmp_path / "one key.ckpt")
    torch.save({"state_dict": {f"unknown_wrapper.{key}": value for key, value in state.items()}}, tmp_path / "odd.ckpt")
    with pytest.raises(ModelError, match=r"missing \(encoder\."):
        run(sounds, tmp_path / "out", **model("tiny_tanh") | {"ckpt_path": tmp_path / "one key.ckpt"})
    argv = ["encode", "--input", str(sounds), "--output-path", str(tmp_path / "out"), "--device", "cpu"]
    argv += ["--model-config", str(model("tiny_tanh")["model_config_path"]), "--ckpt-path", str(tmp_path / "odd.ckpt")]
    assert main(argv) == 1
    assert "holds no encoder of an autoencoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_defect_03_nothing_of_a_long_file_is_lost(tmp_path: Path, model: Model) -> None:
    """The original encodes one window per file and drops the rest, while `seconds_total` still counts it."""
    sounds = clips(tmp_path / "sounds", [5.3])
    run(sounds, tmp_path / "out", **model("tiny_tanh"))
    ((name, records),) = stored(tmp_path / "out").items()
    length = round(5.3 * 44_100)
    assert [meta["sample_offset"] for meta, _ in records] == [0, WINDOW, 2 * WINDOW, 3 * WINDOW]
    assert sum(meta["num_samples"] for meta, _ in records) == length
    assert sum(meta["duration"] for meta, _ in records) == pytest.approx(5.3, abs=1e-4)
    made = np.concatenate([latents for _, latents in records], axis=1)
    expected = unchunked(sounds / name, model("tiny_tanh"), 4 * FRAMES)["latents"]
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5 * expected.std())


def test_defect_04_padding_is_not_computed(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original computes the padding of every clip: 83 % of the work for clips of 5 s in windows of 30 s."""
    seconds = [1.1, 0.9, 2.2, 5.0, 0.4]
    sounds = clips(tmp_path / "sounds", seconds)
    seen: list[int] = []
    encode = FrameEncoder.encode

    def counting(self: FrameEncoder, batch: Sequence[Example]) -> list[Arrays]:
        seen.extend(example.arrays["audio"].shape[1] for example in batch)
        return encode(self, batch)

    monkeypatch.setattr(FrameEncoder, "encode", counting)
    run(sounds, tmp_path / "out", sample_size=1_320_960, **model("tiny_tanh"))
    useful, padded = sum(seconds) * 44_100, len(seconds) * 1_320_960
    assert useful < sum(seen) < 1.25 * useful, "context and a whole number of quanta, and no padding"
    assert sum(seen) < 0.1 * padded
    expected = unchunked(sounds / "0.wav", model("tiny_tanh"), 2580)["latents"]
    np.testing.assert_allclose(stored(tmp_path / "out")["0.wav"][0][1], expected, rtol=0, atol=1e-5 * expected.std())


def test_defect_05_two_runs_give_the_same_bytes_and_no_flip_is_baked_in(tmp_path: Path, model: Model) -> None:
    """The original crops, flips and draws noise without a seed; polarity is flipped in half of all items."""
    sounds = clips(tmp_path / "sounds", [0.4] * 6 + [2.0])
    for name in ("one", "again"):
        run(sounds, tmp_path / name, **model("tiny_vae"))
    assert tree(tmp_path / "one") == tree(tmp_path / "again")
    run(sounds, tmp_path / "means", latents="mean", **model("tiny_vae"))
    for name, records in stored(tmp_path / "means").items():
        expected = unchunked(sounds / name, model("tiny_vae"), len(records) * FRAMES)["mean"]
        made = np.concatenate([latents for _, latents in records], axis=1)
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5 * expected.std())


def test_defect_06_mean_and_scale_can_be_stored(tmp_path: Path, model: Model) -> None:
    """The original stores one sample of a variational model and throws mean and scale away."""
    sounds = clips(tmp_path / "sounds", [0.7, 1.3])
    run(sounds, tmp_path / "out", latents="moments", **model("tiny_vae"))
    plain = {item["info"]["relpath"]: item for item in woodshed.open(tmp_path / "out", sample=False)}
    expected = {name: unchunked(sounds / name, model("tiny_vae"), FRAMES) for name in plain}
    for name, item in plain.items():
        mean = expected[name]["mean"]
        np.testing.assert_allclose(item["latents"].numpy(), mean, rtol=0, atol=1e-5 * mean.std())
    drawing = woodshed.open(tmp_path / "out", seed=1)
    draws = []
    for epoch in range(40):
        drawing.set_epoch(epoch)
        draws.append(torch.stack([item["latents"] for item in drawing]).numpy())
    names = [item["info"]["relpath"] for item in drawing]
    means, stds = (np.stack([expected[name][part] for name in names]) for part in ("mean", "std"))
    scores = (np.stack(draws) - means) / stds
    assert abs(scores.mean()) < 0.02
    assert abs(scores.std() - 1) < 0.02


def test_defect_07_a_run_goes_on_and_a_rerun_leaves_no_strangers(tmp_path: Path, model: Model) -> None:
    """The original cannot resume, overwrites in place, and leaves a rerun's ids among the first run's."""
    sounds = clips(tmp_path / "sounds", [0.4] * 7)
    run(sounds, tmp_path / "whole", batch_size=1, **model("tiny_vae"))
    first = run(sounds, tmp_path / "out", batch_size=1, limit_batches=3, **model("tiny_vae"))
    assert (first.num_done, first.num_pending) == (3, 4)
    arrays = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0/*.npy")}
    rest = run(sounds, tmp_path / "out", batch_size=1, **model("tiny_vae"))
    assert (rest.num_new, rest.num_pending) == (4, 0)
    assert all(path.stat().st_mtime_ns == before for path, before in arrays.items()), "nothing is written twice"
    # Planned in two goes or in one: the files are the same, only the settings that name the batches may differ.
    arrays_of = [
        {name: content for name, content in tree(tmp_path / name_of).items() if name != "details.json"}
        for name_of in ("whole", "out")
    ]
    assert arrays_of[0] == arrays_of[1]
    again = run(sounds, tmp_path / "out", batch_size=3, **model("tiny_vae"))
    assert again.num_new == 0
    assert len(list((tmp_path / "out").glob("0/*.npy"))) == 7
    assert main(["verify", str(tmp_path / "out"), "--quiet"]) == 0


@pytest.mark.parametrize("kind", ["s3", "wds"])
def test_defect_08_tar_datasets_do_not_crash_on_the_way(
    tmp_path: Path, model: Model, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The original crashes on the first batch of tars, with a truncated JSON left behind."""
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": kind, "datasets": [{"id": "x", "path": "tars"}]}))
    names = model("tiny_tanh")
    argv = ["encode", "--dataset-config", str(tmp_path / "data.json"), "--output-path", str(tmp_path / "out")]
    argv += ["--model-config", str(names["model_config_path"]), "--ckpt-path", str(names["ckpt_path"])]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert f"has dataset_type '{kind}': tar shards and S3 come with the scale release" in said
    assert "try: unpack the shards into a folder" in said
    assert not (tmp_path / "out").exists()


def test_defect_09_ids_follow_from_the_plan_alone(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original's ids depend on batch size and number of processes, and processes repeat each other's files."""
    # Ranks get whole units of thousands of items: two items a unit here, so that five suffice.
    monkeypatch.setattr("woodshed.jobs.encode.PlanOptions", partial(PlanOptions, unit_items=2))
    sounds = clips(tmp_path / "sounds", [0.3, 2.0, 0.3, 0.3, 1.6])
    places = []
    for size, ranks in ((1, 1), (4, 1), (2, 3)):
        out = tmp_path / f"{size} {ranks}"
        run(sounds, out, batch_size=size, ranks=ranks, **model("tiny_tanh"))
        found = stored(out)
        assert sorted(found) == [f"{number}.wav" for number in range(5)]
        files = sorted(out.glob("[0-9]*/*.npy"))
        assert len(files) == 7, "each window once, whatever the number of ranks"
        assert all(path.stem[:3] == f"{int(path.parent.name):03d}" for path in files)
        places.append(
            {
                path.stem[3:]: (meta["relpath"], meta["record_index"])
                for path in files
                for meta in [json.loads(path.with_suffix(".json").read_text())]
            }
        )
    assert places[0] == places[1] == places[2]
    assert len({path.parent.name for path in (tmp_path / "2 3").glob("[0-9]*/*.npy")}) > 1


def test_defect_10_metadata_that_json_cannot_hold_fails_its_item_only(tmp_path: Path, model: Model) -> None:
    """The original dies midway over such metadata and leaves an array with half a JSON file."""
    sounds = clips(tmp_path / "sounds", [0.3] * 5)
    code = (
        "    import pathlib, numpy, torch\n"
        "    if info['relpath'] == '2.wav':\n"
        "        return {'thing': object()}\n"
        "    return {'pitch': numpy.arange(3), 'place': pathlib.Path('a/b'), 'level': torch.tensor([0.5]),\n"
        "            '__audio__': {'extra': audio}}"
    )
    summary = run(None, tmp_path / "out", **dataset_config(tmp_path, sounds, code), **model("tiny_tanh"))
    assert (summary.num_done, summary.num_failed, summary.exit_code) == (4, 1, 3)
    assert "key 'thing' is of type object, which JSON cannot hold" in summary.failures[0].reason
    arrays = {path.with_suffix("") for path in (tmp_path / "out").glob("0/*.npy")}
    texts = {path.with_suffix("") for path in (tmp_path / "out").glob("0/*.json")}
    assert arrays == texts
    assert len(arrays) == 4
    for records in stored(tmp_path / "out").values():
        meta = records[0][0]
        assert (meta["pitch"], meta["place"], meta["level"]) == ([0, 1, 2], "a/b", [0.5])
        assert "__audio__" not in meta


def quantised(folder: Path, kind: str) -> dict[str, Path]:
    """A small autoencoder with codebooks of a kind whose tokens the original writes the other way round."""
    options: dict[str, Any] = {"dim": 6, "codebook_size": 16, "num_quantizers": 3}
    state = ResidualVQ(**options).state_dict()
    extra = {f"bottleneck.quantizer.{name}": value for name, value in state.items()}
    if kind == "dithered_fsq":
        options, extra = {"dim": 2, "levels": 5, "num_codebooks": 3, "dither_inference": False}, {}
    config = model_config(strides=(8, 8), bottleneck={"type": kind, "config": options})
    (folder / f"{kind}.json").write_text(json.dumps(config))
    plain = PlainAutoencoder(config["model"], seed=4).state_dict()
    torch.save({"state_dict": plain | extra}, folder / f"{kind}.ckpt")
    return {"model_config_path": folder / f"{kind}.json", "ckpt_path": folder / f"{kind}.ckpt"}


@pytest.mark.parametrize("kind", ["rvq", "dithered_fsq"])
def test_defect_11_tokens_lie_one_way_in_small_integers_under_a_mask_of_frames(tmp_path: Path, kind: str) -> None:
    """The original stores these as (frame, codebook) in int64, with a mask as long as there are codebooks."""
    sounds, own = clips(tmp_path / "sounds", [0.5]), quantised(tmp_path, kind)
    frames = 640
    run(sounds, tmp_path / "out", sample_size=frames * 64, is_discrete=True, **own)
    ((meta, tokens),) = stored(tmp_path / "out")["0.wav"]
    assert tokens.shape == (3, frames)
    assert tokens.dtype == np.uint8
    expected = unchunked(sounds / "0.wav", own, frames)["tokens"]
    np.testing.assert_array_equal(tokens, expected)
    assert len(np.unique(tokens)) > 2
    valid = -(-22_050 // 64)
    assert meta["padding_mask"] == [1] * valid + [0] * (frames - valid)
    spec = json.loads((tmp_path / "out" / "details.json").read_text())["spec"]
    assert spec["arrays"]["tokens"]["axes"] == ["codebook", "frame"]
    assert len(spec["codebook_sizes"]) == 3
    run(sounds, tmp_path / "compat", sample_size=frames * 64, is_discrete=True, compat=True, **own)
    ((meta, turned),) = stored(tmp_path / "compat")["0.wav"]
    assert turned.shape == (frames, 3)
    assert len(meta["padding_mask"]) == frames
    assert woodshed.open(tmp_path / "compat")[0]["tokens"].shape == (3, frames)


def test_defect_12_limits_limit_and_no_worker_or_gpu_is_needed(tmp_path: Path, model: Model) -> None:
    """The original ignores --limit-batches, cannot run with --num-workers 0, and needs a CUDA device."""
    sounds = clips(tmp_path / "sounds", [0.3] * 5)
    summary = run(
        sounds, tmp_path / "out", limit_batches=1, batch_size=2, num_workers=0, device="cpu", **model("tiny_tanh")
    )
    assert (summary.num_done, summary.num_pending) == (2, 3)
    assert len(list((tmp_path / "out").glob("0/*.npy"))) == 2


def test_defect_13_the_last_batch_counts_even_if_it_is_not_full(tmp_path: Path, model: Model) -> None:
    """The original drops it by default: four files in batches of three give three outputs."""
    sounds = clips(tmp_path / "sounds", [0.3] * 4)
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(sounds)}], "drop_last": True}
    (tmp_path / "data.json").write_text(json.dumps(config))
    summary = run(
        None, tmp_path / "out", dataset_config_path=tmp_path / "data.json", batch_size=3, **model("tiny_tanh")
    )
    assert (summary.num_done, summary.num_records) == (4, 4)


@pytest.mark.parametrize("window", ["first", "tile", "whole"])
def test_defect_14_memory_does_not_grow_with_the_file(tmp_path: Path, model: Model, window: str) -> None:
    """The original decodes and resamples a whole file before it cuts a window out of it."""
    peaks = []
    for minutes in (1, 6):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", 8_000, 1) as file:
            for _ in range(minutes):
                file.write(sound(60.0, 8_000, 1))
        settings = EncodeSettings(
            input=tmp_path, output_path=tmp_path / "out", window=window, device="cpu",
            sample_size=None if window == "whole" else WINDOW, **model("tiny_tanh"),  # type: ignore[arg-type]
        )  # fmt: skip
        encoder = load_encoder(settings).encoder
        size = path.stat().st_size
        item = Item(
            id=path.name, path=str(path), relpath=path.name, size_bytes=size, mtime_ns=0, audio=probe(str(path))
        )
        tracemalloc.start()
        num_samples = sum(example.arrays["audio"].shape[1] for example in encoder.prepare(item))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        if window != "first":
            assert num_samples >= minutes * 60 * 44_100
    assert peaks[1] < 1.2 * peaks[0] + 2**20
    assert peaks[1] < 6 * 60 * 44_100 * 2 * 4 / 3, "a third of the decoded file"


def test_defect_15_many_clips_need_few_files(tmp_path: Path, model: Model) -> None:
    """The original writes two small files per clip, the mask as hundreds of numbers in JSON."""
    sounds = clips(tmp_path / "sounds", [0.2] * 30)
    run(sounds, tmp_path / "packed", layout="shards", **model("tiny_tanh"))
    run(sounds, tmp_path / "loose", **model("tiny_tanh"))
    packed, loose = tree(tmp_path / "packed"), tree(tmp_path / "loose")
    assert (len(packed), len(loose)) == (3, 61)
    assert not any(b"padding_mask" in content for content in packed.values())
    assert sum(map(len, packed.values())) < 0.3 * sum(map(len, loose.values())), "padding is not stored either"
    one, other = woodshed.open(tmp_path / "packed"), woodshed.open(tmp_path / "loose", pad=False)
    assert len(one) == len(other) == 30
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine["latents"], theirs["latents"], rtol=0, atol=0)


def test_defect_16_latents_are_tied_to_weights_config_source_and_code(tmp_path: Path, model: Model) -> None:
    """The original writes path strings: nothing ties a latent to what it was made with and from."""
    sounds = clips(tmp_path / "sounds", [0.3, 0.4])
    names = model("tiny_tanh")
    run(sounds, tmp_path / "out", **names)
    details = json.loads((tmp_path / "out" / "details.json").read_text())
    config = json.loads(names["model_config_path"].read_text())
    assert details["model_config"]["model"] == config["model"]
    assert {"woodshed", "torch", "numpy", "python"} <= set(details["versions"])
    for name, records in stored(tmp_path / "out").items():
        assert records[0][0]["source_digest"] == file_digest(str(sounds / name))
        assert records[0][0]["sample_offset"] == 0
    state = torch.load(names["ckpt_path"], weights_only=True)["state_dict"]
    changed = next(key for key in state if key.startswith("encoder.") and key.endswith("bias"))
    state[changed][0] += 1e-3
    torch.save({"state_dict": state}, tmp_path / "other.ckpt")
    run(sounds, tmp_path / "other", **names | {"ckpt_path": tmp_path / "other.ckpt"})
    other = json.loads((tmp_path / "other" / "details.json").read_text())
    assert other["fingerprint"]["model"]["weights"] != details["fingerprint"]["model"]["weights"]
    shutil.copy(names["ckpt_path"], tmp_path / "renamed.ckpt")
    run(sounds, tmp_path / "same", **names | {"ckpt_path": tmp_path / "renamed.ckpt"})
    same = json.loads((tmp_path / "same" / "details.json").read_text())
    assert same["fingerprint"] == details["fingerprint"], "the content counts, not the name of its file"


def test_defect_17_decoding_runs_ahead_and_nothing_is_collected_per_batch(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original does one thing at a time, collects garbage before each batch, and syncs and writes after it."""
    sounds = clips(tmp_path / "sounds", [0.3] * 6)
    prepared = threading.Event()
    overlapped: list[bool] = []
    prepare, encode = FrameEncoder.prepare, FrameEncoder.encode

    def watched_prepare(self: FrameEncoder, item: Item) -> Iterator[Example]:
        yield from prepare(self, item)
        if item.id == "3.wav":
            prepared.set()

    def watched_encode(self: FrameEncoder, batch: Sequence[Example]) -> list[Arrays]:
        if not overlapped:
            # A loop that decodes between batches never gets past this.
            overlapped.append(batch[0].item_id != "3.wav" and prepared.wait(timeout=20))
        return encode(self, batch)

    monkeypatch.setattr(FrameEncoder, "prepare", watched_prepare)
    monkeypatch.setattr(FrameEncoder, "encode", watched_encode)
    collections: list[int] = []

    def counted_collect(generation: int = 2) -> int:
        collections.append(generation)
        return 0

    monkeypatch.setattr(gc, "collect", counted_collect)
    run(sounds, tmp_path / "out", batch_size=1, **model("tiny_tanh"))
    assert overlapped == [True]
    assert collections == []
    assert len(stored(tmp_path / "out")) == 6
    segments = list((tmp_path / "out" / ".woodshed" / "commits").glob("*.jsonl"))
    assert len(segments) < 6, "many items become durable in one go"


def test_defect_18_a_window_off_the_grid_is_refused(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """The original takes 65,000 samples at ratio 512, makes 126 frames of them and drops the rest."""
    sounds, names = clips(tmp_path / "sounds", [0.3]), model("tiny_tanh")
    argv = ["encode", "--input", str(sounds), "--output-path", str(tmp_path / "out"), "--sample-size", "65000"]
    argv += ["--model-config", str(names["model_config_path"]), "--ckpt-path", str(names["ckpt_path"])]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "--sample-size 65000" in said
    assert "512" in said
    assert "64512" in said
    assert "65024" in said
    assert not (tmp_path / "out").exists()


def test_defect_19_no_absolute_path_is_stored_and_a_moved_folder_works(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """The original writes absolute source paths into every JSON file: they leak, and break when data moves."""
    sounds = clips(tmp_path / "secret place" / "sounds", [0.3, 1.6])
    for layout in ("stable_audio", "shards"):
        out = tmp_path / "secret place" / layout
        run(sounds, out, layout=layout, **model("tiny_tanh"))
        for name, content in tree(out).items():
            assert b"secret place" not in content, name
            assert os.fsencode(tmp_path) not in content, name
            assert os.fsencode(GOLDEN) not in content, name
        before = [item["latents"] for item in woodshed.open(out)]
        shutil.move(out, tmp_path / "moved" / layout)
    shutil.move(sounds, tmp_path / "moved" / "sounds")
    assert not list((tmp_path / "secret place").iterdir())
    for layout in ("stable_audio", "shards"):
        out = tmp_path / "moved" / layout
        after = [item["latents"] for item in woodshed.open(out)]
        assert len(after) == len(before)
        assert main(["verify", str(out), "--quiet"]) == 0
        capsys.readouterr()
        assert main(["verify", str(out), "--source", str(tmp_path / "moved" / "sounds"), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["covered_s"] == pytest.approx(1.9, abs=1e-3)
        again = run(tmp_path / "moved" / "sounds", out, layout=layout, **model("tiny_tanh"))
        assert (again.num_new, again.num_done) == (0, 2)


def test_defect_20_clips_shorter_than_any_chunk_are_encoded(tmp_path: Path, model: Model) -> None:
    """The original's chunked encode, which its script leaves unused, crashes on sound shorter than one chunk."""
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for length in (1, 2, 511, 512, 513, 4_000):
        soundfile.write(sounds / f"{length}.wav", sound(length / 44_100, 44_100, 2, seed=length), 44_100)
    run(sounds, tmp_path / "tiles", **model("tiny_tanh"))
    run(sounds, tmp_path / "wholes", window="whole", layout="shards", **model("tiny_tanh"))
    wholes = {item["info"]["relpath"]: item["latents"].numpy() for item in woodshed.open(tmp_path / "wholes")}
    assert len(wholes) == 6
    for name, records in stored(tmp_path / "tiles").items():
        frames = -(-int(name.removesuffix(".wav")) // RATIO)
        padded = unchunked(sounds / name, model("tiny_tanh"), FRAMES)["latents"]
        np.testing.assert_allclose(records[0][1], padded, rtol=0, atol=1e-5 * padded.std())
        assert sum(records[0][0]["padding_mask"]) == frames
        alone = unchunked(sounds / name, model("tiny_tanh"), frames)["latents"]
        assert wholes[name].shape == alone.shape
        np.testing.assert_allclose(wholes[name], alone, rtol=0, atol=1e-5 * padded.std())


def test_every_defect_has_its_test() -> None:
    numbers = sorted(int(name.split("_")[2]) for name in globals() if name.startswith("test_defect_"))
    assert numbers == list(range(1, 21))
