"""What can be done with a folder once it is encoded: decode, verify, inspect; and models beyond autoencoders."""

from __future__ import annotations

import json
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
from woodshed.encoders.checkpoints import load_autoencoder
from woodshed.errors import StoreError, UsageError
from woodshed.jobs import decode, demo, inspect, verify
from woodshed.jobs import encode as encode_job
from woodshed.jobs.encode import Silent
from woodshed.jobs.settings import DecodeSettings, DemoSettings, EncodeSettings, InspectSettings, VerifySettings

Model = Callable[[str], dict[str, Path]]


def encode(source: Path, output: Path, **settings: Any) -> None:
    woodshed.encode(source, output, **({"sample_size": WINDOW, "device": "cpu"} | settings))


@pytest.mark.parametrize("layout", ["stable_audio", "shards"])
@pytest.mark.parametrize("name", ["tiny_tanh", "tiny_fsq"])
def test_decoding_equals_the_unchunked_decode(
    sounds: Path, tmp_path: Path, model: Model, layout: str, name: str
) -> None:
    encode(sounds, tmp_path / "out", layout=layout, is_discrete=name == "tiny_fsq", **model(name))
    report = decode.run(DecodeSettings(folder=tmp_path / "out", output=tmp_path / "heard"), observer=Silent())
    assert (report.num_decoded, report.num_failed, report.exit_code) == (8, 0, 0)
    own = load_autoencoder(*model(name).values(), parts="both")
    audio = read(str(sounds / "c.WAV"), probe(str(sounds / "c.WAV")), rate_hz=44_100, num_channels=2)
    windows = -(-audio.shape[1] // WINDOW)
    padded = np.pad(audio, ((0, 0), (0, windows * WINDOW - audio.shape[1])))
    with torch.inference_mode():
        valid = -(-audio.shape[1] // RATIO)
        frames = own.bottleneck.analyse(own.encode(torch.from_numpy(padded[None])))
        expected = own.decode(own.bottleneck.synthesise({key: value[..., :valid] for key, value in frames.items()}))
    heard, rate_hz = soundfile.read(tmp_path / "heard" / "c.WAV.wav", dtype="float32", always_2d=True)
    assert rate_hz == 44_100
    assert heard.shape == (audio.shape[1], 2)
    np.testing.assert_allclose(heard.T, expected[0, :, : audio.shape[1]].numpy().clip(-1, 1), atol=1e-4)


def test_only_the_wanted_items_are_decoded(sounds: Path, tmp_path: Path, model: Model) -> None:
    encode(sounds, tmp_path / "out", **model("tiny_tanh"))
    chosen = DecodeSettings(folder=tmp_path / "out", ids=("a.wav", "b.flac"), format="flac")
    report = decode.run(chosen, observer=Silent())
    assert sorted(report.files) == ["a.wav.flac", "b.flac.flac"]
    assert Path(report.output) == tmp_path / "out-decoded"
    with pytest.raises(UsageError, match="none of the ids"):
        decode.run(DecodeSettings(folder=tmp_path / "out", ids=("nothing",)), observer=Silent())


def test_verify_accounts_for_every_second_and_encodes_again(sounds: Path, tmp_path: Path, model: Model) -> None:
    encode(sounds, tmp_path / "out", **model("tiny_vae"))
    report = verify.run(VerifySettings(folder=tmp_path / "out", reencode=3, device="cpu"), observer=Silent())
    assert (report.num_problems, report.num_reencoded, report.exit_code) == (0, 3, 0)
    assert report.source_s == pytest.approx(report.covered_s)
    assert report.source_s == pytest.approx(0.9 + 1.2 + 4.0 + 1.0 + 0.5 + 1.0 + 0.6 + 0.02, abs=1e-3)
    assert report.max_difference is not None
    assert report.max_difference < 1e-5


def test_verify_finds_what_is_wrong(sounds: Path, tmp_path: Path, model: Model) -> None:
    encode(sounds, tmp_path / "out", **model("tiny_tanh"))
    arrays = sorted((tmp_path / "out").rglob("*.npy"))
    flipped = bytearray(arrays[0].read_bytes())
    flipped[-7] ^= 1
    arrays[0].write_bytes(flipped)
    arrays[1].unlink()
    soundfile.write(sounds / "late.wav", sound(0.2, 44_100, 2), 44_100)
    soundfile.write(sounds / "h.wav", sound(0.5, 44_100, 2), 44_100)
    report = verify.run(VerifySettings(folder=tmp_path / "out"), observer=Silent())
    assert report.exit_code == 1
    assert {problem.kind for problem in report.problems} >= {"checksum", "missing", "coverage"}
    assert any(problem.id == "late.wav" and problem.kind == "missing" for problem in report.problems)


def test_verify_looks_at_what_lies_around_the_records(sounds: Path, tmp_path: Path, model: Model) -> None:
    encode(sounds, tmp_path / "out", **model("tiny_tanh"))
    np.save(tmp_path / "out" / "0" / "0000000000099.npy", np.zeros((8, 128), np.float32))
    details = tmp_path / "out" / "details.json"
    details.write_bytes(details.read_bytes().replace(b"44100", b"44101", 1))
    plan = next((tmp_path / "out" / ".woodshed" / "plan").glob("*.jsonl"))
    plan.write_bytes(plan.read_bytes().replace(b"a.wav", b"b.wav", 1))
    report = verify.run(VerifySettings(folder=tmp_path / "out"), observer=Silent())
    assert {(problem.id, problem.kind) for problem in report.problems} == {
        ("0/0000000000099.npy", "foreign"),
        ("details.json", "checksum"),
        (plan.name, "checksum"),
    }


def test_damaged_settings_are_named(sounds: Path, tmp_path: Path, model: Model) -> None:
    encode(sounds, tmp_path / "out", **model("tiny_tanh"))
    path = tmp_path / "out" / ".woodshed" / "settings.json"
    path.write_text(path.read_text().replace("output_path", "outqut_path"))
    with pytest.raises(StoreError, match=r"settings\.json is damaged"):
        verify.run(VerifySettings(folder=tmp_path / "out"), observer=Silent())


def test_a_dry_run_tells_that_the_folder_is_another_runs(sounds: Path, tmp_path: Path, model: Model) -> None:
    encode(sounds, tmp_path / "out", **model("tiny_tanh"))
    other = EncodeSettings(
        input=sounds, output_path=tmp_path / "out", sample_size=WINDOW, seed=7, dry_run=True, **model("tiny_tanh")
    )
    with pytest.raises(StoreError, match=r"preprocessing\.seed: 0 -> 7"):
        encode_job.run(other, observer=Silent())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"windw": "tile"}, "windw"),
        ({"batch_size": 0}, "batch"),
        ({"pretrained_name": "woodshed-tny"}, "did you mean woodshed-tiny"),
    ],
)
def test_wrong_arguments_are_usage_errors(sounds: Path, tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        woodshed.encode(sounds, tmp_path / "out", **wrong)


def test_a_moved_source_is_found_by_its_new_name(sounds: Path, tmp_path: Path, model: Model) -> None:
    encode(sounds, tmp_path / "out", **model("tiny_tanh"))
    moved = tmp_path / "elsewhere"
    shutil.move(sounds, moved)
    lost = verify.run(VerifySettings(folder=tmp_path / "out"), observer=Silent())
    assert lost.num_problems == 0
    assert "--source" in lost.notes[0]
    found = verify.run(VerifySettings(folder=tmp_path / "out", source=moved), observer=Silent())
    assert (found.num_problems, found.covered_s) == (0, pytest.approx(found.source_s))
    assert found.covered_s > 9


def test_inspect_shows_own_and_foreign_folders(sounds: Path, tmp_path: Path, model: Model) -> None:
    encode(sounds, tmp_path / "out", **model("tiny_tanh"))
    own = inspect.run(InspectSettings(folder=tmp_path / "out", limit=3))
    assert (own.num_items, own.num_records, len(own.records), own.layout) == (8, 10, 3, "stable_audio")
    assert own.arrays[0].shapes == "8 x 128"
    shutil.rmtree(tmp_path / "out" / ".woodshed")
    foreign = inspect.run(InspectSettings(folder=tmp_path / "out", limit=3))
    assert (foreign.num_records, foreign.arrays[0].shapes) == (10, "8 x 128")
    assert foreign.audio_s == pytest.approx(own.audio_s, abs=1e-3)


def test_shards_are_completed_when_sources_change_and_vanish(sounds: Path, tmp_path: Path, model: Model) -> None:
    shards = {"layout": "shards", "window": "whole", **model("tiny_tanh")}
    encode(sounds, tmp_path / "out", limit_batches=4, **shards)
    soundfile.write(sounds / "a.wav", sound(0.4, 44_100, 2, seed=5), 44_100)
    (sounds / "b.flac").unlink()
    encode(sounds, tmp_path / "out", **shards)
    staged = list((tmp_path / "out" / ".woodshed" / "staging").glob("*"))
    assert staged == [], "every shard is complete"
    names = {item["info"]["relpath"] for item in woodshed.open(tmp_path / "out")}
    assert names == {path.name for path in sounds.iterdir()} | {"b.flac"}, "what is done stays, also without its source"
    report = verify.run(VerifySettings(folder=tmp_path / "out"), observer=Silent())
    assert report.num_problems == 0


def test_log_mel_spectra_take_their_options(sounds: Path, tmp_path: Path) -> None:
    options = ("num_mels=20", "n_fft=512", "hop_samples=128", "rate_hz=16000", "log=log1p")
    woodshed.encode(sounds, tmp_path / "out", pretrained_name="logmel", model_options=options)
    item = next(iter(woodshed.open(tmp_path / "out")))
    assert item["features"].shape[0] == 20
    with pytest.raises(UsageError, match=r"did you mean num_mels="):
        woodshed.encode(sounds, tmp_path / "other", pretrained_name="logmel", model_options=("mels=20",))
    with pytest.raises(UsageError, match="hold no phase"):
        decode.run(DecodeSettings(folder=tmp_path / "out"), observer=Silent())


@pytest.mark.parametrize("kind", ["encodec", "dac"])
def test_codecs_of_transformers_give_tokens_and_sound(sounds: Path, tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the codecs extra is not installed")
    torch.manual_seed(0)
    if kind == "encodec":
        config = transformers.EncodecConfig(
            hidden_size=16, num_filters=4, num_lstm_layers=1, codebook_size=64, upsampling_ratios=[8, 5, 4],
            sampling_rate=16_000, target_bandwidths=[1.2],
        )  # fmt: skip
        transformers.EncodecModel(config).save_pretrained(tmp_path / "codec")
    else:
        config = transformers.DacConfig(
            encoder_hidden_size=8, downsampling_ratios=[2, 4, 5], decoder_hidden_size=32, upsampling_ratios=[5, 4, 2],
            n_codebooks=3, codebook_size=32, codebook_dim=4, hidden_size=64, sampling_rate=16_000,
        )  # fmt: skip
        transformers.DacModel(config).save_pretrained(tmp_path / "codec")
    name = str(tmp_path / "codec")
    for output in ("out", "again"):
        woodshed.encode(sounds, tmp_path / output, pretrained_name=name, window="whole", is_discrete=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "again")
    details = json.loads((tmp_path / "out" / "details.json").read_text())
    assert details["spec"]["kind"] == "tokens"
    item = next(iter(woodshed.open(tmp_path / "out")))
    assert item["tokens"].dtype == torch.int64
    report = decode.run(DecodeSettings(folder=tmp_path / "out"), observer=Silent())
    assert (report.num_decoded, report.num_failed) == (8, 0)


@pytest.mark.slow
def test_the_demo_ends_with_verified_and_recognisable_sound(tmp_path: Path) -> None:
    report = demo.run(DemoSettings(output=tmp_path / "demo"), observer=Silent())
    assert report.exit_code == 0
    assert len(report.clips) >= 10
    assert np.median([clip.log_mel_error_db for clip in report.clips]) < 3.5
    assert np.median([clip.si_sdr_db for clip in report.clips]) > 10
    with pytest.raises(UsageError, match="not a folder of an earlier demo"):
        demo.run(DemoSettings(output=tmp_path), observer=Silent())
