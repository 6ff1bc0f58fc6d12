"""`woodshed encode` from sound to records: exact, complete, reproducible, and honest about what failed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import woodshed
from tests.jobs.conftest import RATIO, WINDOW, sound, tree
from woodshed.audio.clip import read
from woodshed.audio.probe import probe
from woodshed.contracts import Summary
from woodshed.encoders.checkpoints import load_autoencoder
from woodshed.errors import StoreError, UsageError
from woodshed.jobs import encode
from woodshed.jobs.report import PlanReport
from woodshed.jobs.settings import EncodeSettings

Model = Callable[[str], dict[str, Path]]


def run(source: Path, output: Path, **settings: Any) -> Summary:
    defaults: dict[str, Any] = {"sample_size": WINDOW, "num_workers": 2, "device": "cpu"}
    return woodshed.encode(source, output, **(defaults | settings))


def unchunked(path: Path, model: dict[str, Path], num_frames: int | None = None) -> dict[str, np.ndarray]:
    """The plain way: read all, pad with zeros, one call of the network."""
    own = load_autoencoder(*model.values(), parts="encoder")
    audio = read(str(path), probe(str(path)), rate_hz=own.rate_hz, num_channels=own.audio_channels)
    total = num_frames or -(-audio.shape[1] // own.ratio)
    padded = np.zeros((1, own.audio_channels, total * own.ratio), np.float32)
    padded[0, :, : audio.shape[1]] = audio[:, : padded.shape[2]]
    with torch.inference_mode():
        made = own.bottleneck.analyse(own.encode(torch.from_numpy(padded)))
    return {name: value[0].numpy() for name, value in made.items()}


def records(folder: Path) -> dict[str, list[tuple[dict[str, Any], np.ndarray]]]:
    """By source file: metadata and array of each record, in order."""
    found: dict[str, list[tuple[dict[str, Any], np.ndarray]]] = {}
    for path in sorted(folder.rglob("*.npy")):
        meta = json.loads(path.with_suffix(".json").read_text())
        found.setdefault(meta["relpath"], []).append((meta, np.load(path)))
    return found


def test_every_file_is_encoded_once_and_tiles_are_slices_of_one_encode(
    sounds: Path, tmp_path: Path, model: Model
) -> None:
    summary = run(sounds, tmp_path / "out", **model("tiny_tanh"))
    assert (summary.num_rows, summary.num_done, summary.num_failed, summary.exit_code) == (8, 8, 0, 0)
    stored = records(tmp_path / "out")
    assert sorted(stored) == sorted(path.name for path in sounds.iterdir())
    assert len(stored["c.WAV"]) == 3
    for name, own in stored.items():
        frames = WINDOW // RATIO
        expected = unchunked(sounds / name, model("tiny_tanh"), len(own) * frames)["latents"]
        made = np.concatenate([array for _, array in own], axis=1)
        np.testing.assert_allclose(made, expected, atol=1e-5 * expected.std())
        assert [meta["sample_offset"] for meta, _ in own] == [index * WINDOW for index in range(len(own))]
        valid = sum(sum(meta["padding_mask"]) for meta, _ in own)
        assert valid == -(-sum(meta["num_samples"] for meta, _ in own) // RATIO)


def test_whole_gives_the_unchunked_encode(sounds: Path, tmp_path: Path, model: Model) -> None:
    run(sounds, tmp_path / "out", window="whole", latents="mean", layout="shards", **model("tiny_vae"))
    dataset = woodshed.open(tmp_path / "out")
    assert len(dataset) == 8
    for item in dataset:
        expected = unchunked(sounds / item["info"]["relpath"], model("tiny_vae"))["mean"]
        np.testing.assert_allclose(item["latents"].numpy(), expected, atol=1e-5 * expected.std())
        assert bool(item["mask"].all())


def test_tokens_equal_the_unchunked_tokens(sounds: Path, tmp_path: Path, model: Model) -> None:
    run(sounds, tmp_path / "out", is_discrete=True, **model("tiny_fsq"))
    for name, own in records(tmp_path / "out").items():
        expected = unchunked(sounds / name, model("tiny_fsq"), len(own) * WINDOW // RATIO)["tokens"]
        made = np.concatenate([array for _, array in own], axis=1)
        assert made.dtype == np.int16
        np.testing.assert_array_equal(made, expected)


def test_samples_are_drawn_from_the_moments_and_repeat_with_the_seed(
    sounds: Path, tmp_path: Path, model: Model
) -> None:
    run(sounds, tmp_path / "moments", latents="moments", **model("tiny_vae"))
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        run(sounds, tmp_path / name, seed=seed, **model("tiny_vae"))
    assert tree(tmp_path / "one") == tree(tmp_path / "again")
    means, ones, others = (records(tmp_path / name) for name in ("moments", "one", "other"))
    draws = []
    for name, own in ones.items():
        for index, (_, latents) in enumerate(own):
            assert not np.array_equal(latents, others[name][index][1])
            draws.append((latents - means[name][index][1]).ravel())
    drawn = np.concatenate(draws)
    assert abs(drawn.mean()) < 0.05 * drawn.std()


def test_the_plan_decides_the_bytes_whatever_the_workers(sounds: Path, tmp_path: Path, model: Model) -> None:
    for workers in (0, 1, 5):
        run(sounds, tmp_path / str(workers), num_workers=workers, **model("tiny_vae"))
    assert tree(tmp_path / "0") == tree(tmp_path / "1") == tree(tmp_path / "5")


def test_another_batching_gives_equal_tokens_and_close_floats(sounds: Path, tmp_path: Path, model: Model) -> None:
    for size in (1, 3):
        run(sounds, tmp_path / f"floats{size}", batch_size=size, shuffle=size == 3, **model("tiny_tanh"))
        run(sounds, tmp_path / f"tokens{size}", batch_size=size, is_discrete=True, **model("tiny_fsq"))
    ones, threes = records(tmp_path / "floats1"), records(tmp_path / "floats3")
    for name, own in ones.items():
        for (_, one), (_, three) in zip(own, threes[name], strict=True):
            np.testing.assert_allclose(one, three, atol=1e-5 * one.std())
    assert tree(tmp_path / "tokens1").keys() == tree(tmp_path / "tokens3").keys()
    for name, own in records(tmp_path / "tokens1").items():
        for (_, one), (_, three) in zip(own, records(tmp_path / "tokens3")[name], strict=True):
            np.testing.assert_array_equal(one, three)


def test_a_second_run_has_nothing_to_do(sounds: Path, tmp_path: Path, model: Model) -> None:
    run(sounds, tmp_path / "out", **model("tiny_tanh"))
    before = tree(tmp_path / "out")
    again = run(sounds, tmp_path / "out", **model("tiny_tanh"))
    assert (again.num_done, again.num_new, again.bytes_written) == (8, 0, 0)
    assert tree(tmp_path / "out") == before


def test_new_and_changed_files_are_encoded_alone(sounds: Path, tmp_path: Path, model: Model) -> None:
    run(sounds, tmp_path / "out", **model("tiny_tanh"))
    before = tree(tmp_path / "out")
    soundfile.write(sounds / "new.wav", sound(0.3, 44_100, 2, seed=99), 44_100)
    soundfile.write(sounds / "a.wav", sound(0.7, 44_100, 2, seed=98), 44_100)
    os.utime(sounds / "b.flac")
    (sounds / "e.txt").write_text("a caption")
    summary = run(sounds, tmp_path / "out", **model("tiny_tanh"))
    assert (summary.num_rows, summary.num_done, summary.num_new) == (9, 9, 3), "b.flac was only touched"
    stored = records(tmp_path / "out")
    assert all(len(own) == (3 if name == "c.WAV" else 1) for name, own in stored.items())
    assert stored["a.wav"][0][0]["num_samples"] == round(0.7 * 44_100)
    assert stored["e.ogg"][0][0]["prompt"] == "a caption"
    kept = {name: content for name, content in before.items() if name in tree(tmp_path / "out")}
    assert all(tree(tmp_path / "out")[name] == content for name, content in kept.items())


def test_another_model_is_refused_for_the_same_folder(sounds: Path, tmp_path: Path, model: Model) -> None:
    run(sounds, tmp_path / "out", **model("tiny_tanh"))
    with pytest.raises(StoreError, match=r"weights") as caught:
        run(sounds, tmp_path / "out", **model("tiny_vae"))
    assert "fingerprint" in str(caught.value) or "differ" in str(caught.value)


def test_broken_files_fail_with_a_reason_and_the_rest_is_done(sounds: Path, tmp_path: Path, model: Model) -> None:
    (sounds / "empty.wav").write_bytes(b"")
    (sounds / "text.wav").write_text("not a sound")
    whole = (sounds / "b.flac").read_bytes()
    (sounds / "cut.flac").write_bytes(whole[: len(whole) // 2])
    bad = sound(0.5, 44_100, 2)
    bad[100, 0] = np.nan
    soundfile.write(sounds / "nan.wav", bad, 44_100, subtype="FLOAT")
    soundfile.write(sounds / "quiet.wav", np.zeros((44_100, 2)), 44_100)
    (sounds / "sub").mkdir()
    shutil.copy(sounds / "a.wav", sounds / "sub" / "a.wav")
    shutil.copy(sounds / "a.wav", os.fsencode(sounds) + b"/caf\xe9.wav")
    summary = run(sounds, tmp_path / "out", **model("tiny_tanh"))
    assert (summary.num_rows, summary.num_done, summary.num_failed, summary.exit_code) == (15, 11, 4, 3)
    assert {failure.id for failure in summary.failures} == {"empty.wav", "text.wav", "cut.flac", "nan.wav"}
    assert all(failure.reason for failure in summary.failures)
    assert summary.failure_kinds["not_finite"] == 1
    stored = records(tmp_path / "out")
    assert len(stored) == 11
    assert stored["quiet.wav"][0][0]["silent"] is True
    assert stored["caf\udce9.wav"][0][0]["num_samples"] == stored["a.wav"][0][0]["num_samples"]
    again = run(sounds, tmp_path / "out", **model("tiny_tanh"))
    assert (again.num_new, again.num_failed, again.num_done) == (0, 4, 11), "failures are remembered"
    soundfile.write(sounds / "nan.wav", sound(0.5, 44_100, 2), 44_100, subtype="FLOAT")
    healed = run(sounds, tmp_path / "out", **model("tiny_tanh"))
    assert (healed.num_new, healed.num_failed) == (1, 3), "a repaired file is tried again"


def test_silent_clips_can_be_left_out(sounds: Path, tmp_path: Path, model: Model) -> None:
    soundfile.write(sounds / "quiet.wav", np.zeros((44_100, 2)), 44_100)
    summary = run(sounds, tmp_path / "out", drop_silence=True, **model("tiny_tanh"))
    assert (summary.num_rows, summary.num_done, summary.num_skipped) == (9, 8, 1)
    assert "quiet.wav" not in records(tmp_path / "out")


def test_a_dry_run_plans_and_writes_nothing(sounds: Path, tmp_path: Path, model: Model) -> None:
    (sounds / "empty.wav").write_bytes(b"")
    settings = EncodeSettings(
        input=sounds, output_path=tmp_path / "out", sample_size=WINDOW, dry_run=True, **model("tiny_tanh")
    )
    report = encode.run(settings, observer=encode.Silent())
    assert isinstance(report, PlanReport)
    assert not (tmp_path / "out").exists()
    assert (report.num_rows, report.num_planned, report.num_unreadable, report.num_records) == (9, 8, 1, 10)
    assert report.estimated_s is not None
    run(sounds, tmp_path / "out", **model("tiny_tanh"))
    written = sum(array.nbytes for own in records(tmp_path / "out").values() for _, array in own)
    assert report.estimated_bytes == pytest.approx(written, rel=0.05)


def test_limit_batches_leaves_the_rest_for_later(sounds: Path, tmp_path: Path, model: Model) -> None:
    summary = run(sounds, tmp_path / "out", limit_batches=3, **model("tiny_tanh"))
    assert (summary.num_rows, summary.num_done, summary.num_pending) == (8, 3, 5)
    rest = run(sounds, tmp_path / "out", **model("tiny_tanh"))
    assert (rest.num_done, rest.num_new, rest.num_pending) == (8, 5, 0)


def test_compat_crops_and_flips_by_the_seed(tmp_path: Path, model: Model) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(6):
        soundfile.write(folder / f"{number}.wav", sound(4.0, 44_100, 2, seed=number), 44_100)
    for name in ("one", "again"):
        run(folder, tmp_path / name, compat=True, **model("tiny_tanh"))
    run(folder, tmp_path / "other", compat=True, seed=7, **model("tiny_tanh"))
    assert tree(tmp_path / "one") == tree(tmp_path / "again")
    offsets = [own[0][0]["sample_offset"] for own in records(tmp_path / "one").values()]
    others = [own[0][0]["sample_offset"] for own in records(tmp_path / "other").values()]
    assert len(offsets) == 6
    assert offsets != others
    assert all(0 <= offset <= 4 * 44_100 - WINDOW for offset in offsets)
    own = load_autoencoder(*model("tiny_tanh").values(), parts="encoder")
    signs = set()
    for name, made in records(tmp_path / "one").items():
        meta, latents = made[0]
        audio = read(
            str(folder / name),
            probe(str(folder / name)),
            rate_hz=44_100,
            num_channels=2,
            resampler="torchaudio_sinc",
        )[None, :, meta["sample_offset"] : meta["sample_offset"] + WINDOW]
        with torch.inference_mode():
            close = {
                sign: np.abs(own.bottleneck.analyse(own.encode(torch.from_numpy(sign * audio)))["latents"][0] - latents)
                .max()
                .item()
                for sign in (-1, 1)
            }
        best = min(close, key=lambda sign: close[sign])
        assert close[best] < 1e-5
        signs.add(best)
    assert signs == {-1, 1}


def test_empty_folder_and_missing_folder_are_usage_errors(tmp_path: Path, model: Model) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="nothing"):
        run(tmp_path / "nothing", tmp_path / "out", **model("tiny_tanh"))
    with pytest.raises(UsageError, match="missing"):
        run(tmp_path / "missing", tmp_path / "out", **model("tiny_tanh"))


def test_a_vanished_source_is_a_failure_of_that_item(sounds: Path, tmp_path: Path, model: Model) -> None:
    class Remover(encode.Silent):
        def message(self, text: str) -> None:
            if text.startswith("encoding"):
                (sounds / "g.wav").unlink()

    settings = EncodeSettings(input=sounds, output_path=tmp_path / "out", sample_size=WINDOW, **model("tiny_tanh"))
    summary = encode.run(settings, observer=Remover())
    assert isinstance(summary, Summary)
    assert (summary.num_done, summary.num_failed, summary.exit_code) == (7, 1, 3)
    assert summary.failures[0].id == "g.wav"
