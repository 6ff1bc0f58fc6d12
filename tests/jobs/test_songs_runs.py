"""`woodshed songs` as a whole, on a tiny ACE-Step of the true classes: what is stored, accounted for, made again."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import woodshed
from tests.encoders.acestep.tiny_acestep import TinyAceStep
from tests.jobs.conftest import tree
from tests.jobs.songs_fixtures import HOP, RATE_HZ, SIDECAR, checkpoint, make_songs, prepare, write_song
from woodshed.chance import generator
from woodshed.cli.main import main
from woodshed.errors import StoreError, UsageError
from woodshed.jobs import decode, inspect, verify
from woodshed.jobs.encode import Silent
from woodshed.jobs.report import InspectReport, PlanReport
from woodshed.jobs.settings import DecodeSettings, InspectSettings, VerifySettings
from woodshed.jobs.songs import run
from woodshed.jobs.songs_settings import SongsSettings
from woodshed.store.reader import open_reader


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("songs")


@pytest.fixture(scope="module")
def model(home: Path) -> tuple[Path, TinyAceStep]:
    return checkpoint(home)


@pytest.fixture(scope="module")
def prepared(home: Path, model: tuple[Path, TinyAceStep]) -> Path:
    prepare(make_songs(home / "songs"), home / "out", model[0])
    return home / "out"


def by_id(folder: Path) -> dict[str, dict[str, Any]]:
    dataset = woodshed.open(folder, sample=False)
    return {dataset[index]["info"]["id"]: dataset[index] for index in range(len(dataset))}


def whole_moments(parts: TinyAceStep, path: Path, *, gain: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation by diffusers' own autoencoder, over the whole song at once."""
    audio, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    assert rate_hz == RATE_HZ
    wave = torch.from_numpy(audio.T.copy())[None] * gain
    wave = torch.nn.functional.pad(wave, (0, -wave.shape[-1] % HOP))
    with torch.no_grad():
        moments = parts.vae.encode(wave).latent_dist
    return moments.mean[0].numpy(), moments.std[0].numpy()


def test_every_row_is_accounted_for(prepared: Path) -> None:
    reader = open_reader(prepared)
    statuses = {entry.id: (entry.status, entry.kind) for entry in reader.entries()}
    assert {name for name, (status, _) in statuses.items() if status == "done"} == {
        "live/song.wav", "studio/song.wav", "nothing known.flac", "silent words.wav", "tagged.wav",
    }  # fmt: skip
    assert {name: kind for name, (status, kind) in statuses.items() if status == "failed"} == {
        "nine channels.wav": "too_many_channels", "broken.wav": "damaged", "odd.wav": "bad_sidecar",
    }  # fmt: skip


def test_exit_code_and_words_tell_of_songs_that_failed(
    prepared: Path, model: tuple[Path, TinyAceStep], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--audio-dir", str(prepared.parent / "songs"), "--checkpoint-dir", str(model[0]), "--device", "cpu"]
    assert main(["songs", *flags, "--output", str(prepared)]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 of 8 rows failed" in shown
    assert "5 (0 by this run)" in shown
    assert "very fast" in shown


def test_two_songs_of_one_name_are_two_songs(prepared: Path) -> None:
    songs = by_id(prepared)
    live, studio = songs["live/song.wav"], songs["studio/song.wav"]
    assert (live["info"]["caption"], studio["info"]["caption"]) == ("a warm lo-fi piano", "drums")
    assert live["latents"].shape[1] == math.ceil(1.3 * 25)
    assert studio["latents"].shape[1] == math.ceil(0.9 * 25)


def test_what_is_known_of_a_song_is_what_it_is_conditioned_on(prepared: Path) -> None:
    songs = by_id(prepared)
    prompt = songs["live/song.wav"]["info"]["text_prompt"]
    assert "a warm lo-fi piano" in prompt
    assert "- bpm: 85\n- timesignature: 4\n- keyscale: C minor\n- duration: 1 seconds" in prompt
    assert songs["tagged.wav"]["info"]["text_prompt"].splitlines()[4] == "pads, zed"
    assert "nothing known" in songs["nothing known.flac"]["info"]["text_prompt"]


def test_conditions_equal_those_of_inference(prepared: Path, model: tuple[Path, TinyAceStep]) -> None:
    parts, item = model[1], by_id(prepared)["live/song.wav"]
    pipeline = parts.pipeline()
    lyrics = SIDECAR.split("lyrics:\n")[1].strip()
    text, text_mask, lyric, lyric_mask = pipeline.encode_prompt(
        "a warm lo-fi piano", lyrics, "cpu", vocal_language="en", audio_duration=1.3, bpm=85, keyscale="C minor",
        timesignature="4",
    )  # fmt: skip
    with torch.no_grad():
        expected, _ = parts.condition_encoder(
            text, text_mask, lyric, lyric_mask, parts.condition_encoder.silence_latent[:, :750],
            torch.zeros(1, dtype=torch.long),
        )  # fmt: skip
    assert item["condition"].shape == expected[0].shape
    assert float((item["condition"] - expected[0]).abs().max()) < 1e-5


def test_latents_equal_the_unchunked_encode(home: Path, model: tuple[Path, TinyAceStep]) -> None:
    """More than two windows long."""
    song = write_song(home / "long" / "song.wav", 26.37, seed=8)
    prepare(song.parent, home / "long out", model[0])
    reader = open_reader(home / "long out")
    (entry,) = reader.entries()
    arrays = reader.arrays(entry.records[0])
    mean, std = whole_moments(model[1], song)
    assert arrays["mean"].shape == mean.shape == (16, math.ceil(26.37 * 25))
    assert np.abs(arrays["mean"] - mean).max() < 1e-5 * mean.std()
    assert np.abs(arrays["std"] - std).max() < 1e-5 * std.std()


def test_readers_sample_with_a_seed(prepared: Path) -> None:
    reader = open_reader(prepared)
    entry = reader.entry("live/song.wav")
    assert entry is not None
    arrays = reader.arrays(entry.records[0])
    one, again, other = (woodshed.open(prepared, seed=seed) for seed in (1, 1, 2))
    index = next(i for i in range(len(one)) if one[i]["info"]["id"] == "live/song.wav")
    drawn = one[index]["latents"]
    assert torch.equal(drawn, again[index]["latents"])
    assert not torch.equal(drawn, other[index]["latents"])
    noise = (drawn.numpy() - arrays["mean"]) / arrays["std"]
    assert abs(noise.mean()) < 0.2
    assert 0.8 < noise.std() < 1.2


def test_a_second_run_does_nothing(prepared: Path, model: tuple[Path, TinyAceStep]) -> None:
    before = tree(prepared)
    summary = prepare(prepared.parent / "songs", prepared, model[0])
    assert (summary.num_new, summary.num_done, summary.num_failed) == (0, 5, 3)
    assert tree(prepared) == before


def test_an_edited_caption_recomputes_that_song_alone(
    tmp_path: Path, prepared: Path, model: tuple[Path, TinyAceStep]
) -> None:
    songs, output = shutil.copytree(prepared.parent / "songs", tmp_path / "songs"), tmp_path / "out"
    prepare(songs, output, model[0])
    first = by_id(output)
    (songs / "live" / "song.txt").write_text(SIDECAR.replace("warm lo-fi", "cold hi-fi"))
    summary = prepare(songs, output, model[0])
    assert (summary.num_new, summary.num_done) == (1, 5)
    second = by_id(output)
    changed = [name for name in first if not torch.equal(first[name]["condition"], second[name]["condition"])]
    assert changed == ["live/song.wav"]
    assert all(torch.equal(first[name]["latents"], second[name]["latents"]) for name in first)
    fresh = tmp_path / "fresh"
    prepare(songs, fresh, model[0])
    for name, item in by_id(fresh).items():
        assert torch.equal(item["condition"], second[name]["condition"])


def test_another_manner_does_not_mix_into_a_folder(prepared: Path, model: tuple[Path, TinyAceStep]) -> None:
    with pytest.raises(StoreError, match="manner"):
        prepare(prepared.parent / "songs", prepared, model[0], sidestep_compat=True, layout="shards")


def test_songs_are_cut_at_the_longest_duration(home: Path, model: tuple[Path, TinyAceStep]) -> None:
    song = write_song(home / "cut" / "song.wav", 2.5, seed=9)
    whole = prepare(song.parent, home / "cut whole", model[0], max_duration=9.0)
    prepare(song.parent, home / "cut out", model[0], max_duration=1.0)
    assert whole.exit_code == 0
    item = by_id(home / "cut out")["song.wav"]
    assert item["latents"].shape[1] == 25
    assert "- duration: 1 seconds" in item["info"]["text_prompt"]
    report = verify.run(VerifySettings(folder=home / "cut out", device="cpu"), observer=Silent())
    assert report.num_problems == 0


@pytest.mark.parametrize("method", ["peak", "lufs"])
def test_songs_are_brought_to_one_level(home: Path, model: tuple[Path, TinyAceStep], method: str) -> None:
    """As if the file had been made louder; the stored numbers say by how much."""
    # More than one window: what they share must be made louder once.
    song = write_song(home / method / "song.wav", 14.6, seed=10)
    prepare(song.parent, home / f"{method} out", model[0], normalize=method)
    reader = open_reader(home / f"{method} out")
    (entry,) = reader.entries()
    facts = entry.records[0].facts["row"]
    audio, _ = soundfile.read(song, dtype="float32")
    peak_db = 20 * math.log10(np.abs(audio).max())
    if method == "peak":
        assert facts["peak_db"] == pytest.approx(-1.0, abs=0.01)
        assert facts["gain_db"] == pytest.approx(-1.0 - peak_db, abs=0.01)
    else:
        assert facts["gain_db"] == pytest.approx(-14.0 - facts["lufs_before"], abs=0.02)
    mean, _ = whole_moments(model[1], song, gain=10 ** (facts["gain_db"] / 20))
    stored = reader.arrays(entry.records[0])["mean"]
    assert np.abs(stored - mean).max() < 2e-3 * mean.std(), "the gain is stored to a hundredth of a decibel"


def test_tempo_and_key_that_are_estimated_are_shown_as_such(home: Path, model: tuple[Path, TinyAceStep]) -> None:
    folder = home / "estimated"
    time_s = np.arange(20 * RATE_HZ) / RATE_HZ
    beat = np.exp(-40 * (time_s % 0.5)) * np.sin(2 * np.pi * 220 * time_s)
    folder.mkdir()
    soundfile.write(folder / "beat.wav", np.stack([0.5 * beat] * 2, 1), RATE_HZ)
    (folder / "beat.txt").write_text("caption: a beat\nkey: C major\n")
    summary = prepare(folder, home / "estimated out", model[0], estimate="missing")
    item = by_id(home / "estimated out")["beat.wav"]
    assert item["info"]["row"]["estimated"] == {"bpm": 120}
    assert item["info"]["bpm"] is None, "what the sidecar says stays what it says"
    assert "- bpm: 120" in item["info"]["text_prompt"]
    assert "- keyscale: C major" in item["info"]["text_prompt"]
    assert any("tempo that is stored of beat.wav (120) is an estimate" in note for note in summary.notes)


# ---- what Side-Step reads


@pytest.fixture(scope="module")
def side_step(home: Path, model: tuple[Path, TinyAceStep], prepared: Path) -> Path:
    prepare(prepared.parent / "songs", home / "side-step", model[0], layout="sidestep")
    return home / "side-step"


def test_side_step_files_have_the_documented_keys_shapes_and_types(
    side_step: Path, model: tuple[Path, TinyAceStep]
) -> None:
    files = sorted(side_step.glob("*.pt"))
    assert len(files) == 5
    for path in files:
        song = torch.load(path, weights_only=True)
        num_frames, num_tokens = song["target_latents"].shape[0], song["encoder_hidden_states"].shape[0]
        shapes = {
            "target_latents": (num_frames, 16), "attention_mask": (num_frames,), "context_latents": (num_frames, 32),
            "encoder_hidden_states": (num_tokens, 24), "encoder_attention_mask": (num_tokens,),
        }  # fmt: skip
        assert {name: tuple(song[name].shape) for name in shapes} == shapes
        assert song["target_latents"].dtype == song["context_latents"].dtype == torch.float32
        assert torch.equal(song["context_latents"][:, :16], model[1].condition_encoder.silence_latent[0, :num_frames])
        assert bool((song["context_latents"][:, 16:] == 1).all())


def test_side_step_latents_are_seeded_samples_of_the_moments(side_step: Path, prepared: Path) -> None:
    reader = open_reader(prepared)
    entry = reader.entry("tagged.wav")
    assert entry is not None
    arrays = reader.arrays(entry.records[0])
    noise = generator(0, "tagged.wav", "latents", 0).standard_normal(arrays["mean"].shape, dtype=np.float32)
    drawn = by_id(side_step)["tagged.wav"]["latents"].numpy()
    assert np.array_equal(drawn, arrays["mean"] + arrays["std"] * noise)


def test_preprocess_meta_is_as_side_step_writes_it(side_step: Path) -> None:
    meta = json.loads((side_step / "preprocess_meta.json").read_text())
    assert (meta["total"], meta["processed"], meta["failed"], meta["model_variant"]) == (8, 5, 3, "base")
    files = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in side_step.glob("*.pt")}
    assert meta["checksums"] == files
    assert (meta["source_audio_dir"], meta["normalize"], meta["genre_ratio"]) == ("songs", "none", 0)


def test_both_layouts_are_read_alike(side_step: Path, prepared: Path) -> None:
    native, theirs = by_id(prepared), by_id(side_step)
    assert native.keys() == theirs.keys()
    for name in native:
        assert torch.equal(native[name]["condition"], theirs[name]["condition"])
        assert native[name]["latents"].shape == theirs[name]["latents"].shape
        assert native[name]["info"]["text_prompt"] == theirs[name]["info"]["text_prompt"]


def test_a_copy_without_its_log_is_read_as_side_steps_own(side_step: Path, tmp_path: Path) -> None:
    for path in side_step.glob("*.pt"):
        shutil.copy(path, tmp_path)
    foreign = woodshed.open(tmp_path)
    ours = by_id(side_step)
    assert len(foreign) == 5
    for index in range(5):
        info = foreign[index]["info"]
        item = ours[info["audio_path"]]
        assert torch.equal(item["latents"], foreign[index]["latents"])
        assert torch.equal(item["condition"], foreign[index]["condition"])


def test_compat_makes_what_side_step_makes(home: Path, model: tuple[Path, TinyAceStep], prepared: Path) -> None:
    prepare(prepared.parent / "songs", home / "compat", model[0], sidestep_compat=True)
    song = torch.load(home / "compat" / "live__song.wav.pt", weights_only=True)
    assert song["encoder_hidden_states"].shape == (769, 24)
    assert 10 < int(song["encoder_attention_mask"].sum()) < 500
    prompt = song["metadata"]["woodshed"]["text_prompt"]
    assert "- timesignature: 4/4\n" in prompt
    assert "- duration: 1 seconds" in prompt, "measured, where a sidecar says something else of the song"
    bare = torch.load(home / "compat" / "nothing%20known.flac.pt", weights_only=True)
    assert "- duration: 0 seconds" in bare["metadata"]["woodshed"]["text_prompt"]
    item = by_id(home / "compat")["live/song.wav"]
    assert len(item["condition"]) == int(song["encoder_attention_mask"].sum()), "read without its padding"


def test_side_step_is_told_the_length_of_the_latents(home: Path, model: tuple[Path, TinyAceStep]) -> None:
    """Its trainer divides frames by `duration` to know the frames of a second."""
    song = write_song(home / "told" / "song.wav", 3.4, seed=12)
    song.with_suffix(".txt").write_text("caption: x\nduration: 60\n")
    for name, more, seconds in (("a", {}, 3), ("b", {"max_duration": 2.0}, 2), ("c", {"sidestep_compat": True}, 3)):
        prepare(song.parent, home / f"told {name}", model[0], layout="sidestep", **more)
        assert torch.load(home / f"told {name}" / "song.wav.pt", weights_only=True)["metadata"]["duration"] == seconds


def test_compat_has_no_frame_for_what_does_not_fill_one(home: Path, model: tuple[Path, TinyAceStep]) -> None:
    song = write_song(home / "part" / "song.wav", 1.3, seed=13)
    prepare(song.parent, home / "part out", model[0], sidestep_compat=True)
    stored = torch.load(home / "part out" / "song.wav.pt", weights_only=True)
    assert stored["target_latents"].shape[0] == stored["context_latents"].shape[0] == 32
    report = verify.run(VerifySettings(folder=home / "part out", reencode=1, device="cpu"), observer=Silent())
    assert report.num_problems == 0, report.problems


def test_preprocess_meta_says_what_dataset_json_says(home: Path, model: tuple[Path, TinyAceStep]) -> None:
    folder = home / "said"
    write_song(folder / "a.wav", 0.5, seed=14)
    about = {"custom_tag": "zed", "tag_position": "append", "genre_ratio": 50}
    data = {"metadata": about, "samples": [{"audio_path": "a.wav", "caption": "pads", "genre": "ambient"}]}
    (folder / "dataset.json").write_text(json.dumps(data))
    settings = SongsSettings(
        dataset_json=folder / "dataset.json", output=home / "said out", checkpoint_dir=str(model[0]), device="cpu",
        layout="sidestep",
    )  # fmt: skip
    run(settings, observer=Silent())
    meta = json.loads((home / "said out" / "preprocess_meta.json").read_text())
    assert {name: meta[name] for name in about} == about


def test_sounds_above_full_scale_are_not_cut_off(home: Path, model: tuple[Path, TinyAceStep]) -> None:
    """A loud master, brought to one peak, is what its quieter copy is."""
    wave = np.stack([np.sin(np.arange(48_000) / 20), np.cos(np.arange(48_000) / 31)], axis=1).astype(np.float32)
    for name, gain in (("loud", 2.0), ("quiet", 0.5)):
        (home / name).mkdir()
        soundfile.write(home / name / "song.wav", gain * wave, RATE_HZ, subtype="FLOAT")
        prepare(home / name, home / f"{name} out", model[0], normalize="peak")
    loud, quiet = (by_id(home / f"{name} out")["song.wav"]["latents"] for name in ("loud", "quiet"))
    assert float((loud - quiet).abs().max()) < 1e-4 * float(quiet.std())


def test_a_song_that_is_too_short_to_measure_is_told_of(home: Path, model: tuple[Path, TinyAceStep]) -> None:
    song = write_song(home / "blip" / "song.wav", 0.3, seed=15)
    summary = prepare(song.parent, home / "blip out", model[0], normalize="lufs")
    assert any("loudness of song.wav cannot be measured" in note for note in summary.notes)


def test_half_precision_is_stored_as_side_step_stores_it(
    home: Path, model: tuple[Path, TinyAceStep], prepared: Path
) -> None:
    songs = home / "half"
    write_song(songs / "a.wav", 0.6, seed=11)
    prepare(songs, home / "half out", model[0], layout="sidestep", precision="bf16")
    song = torch.load(home / "half out" / "a.wav.pt", weights_only=True)
    assert song["target_latents"].dtype == song["encoder_hidden_states"].dtype == torch.bfloat16
    report = verify.run(VerifySettings(folder=home / "half out", reencode=1, device="cpu"), observer=Silent())
    assert report.num_problems == 0


# ---- the other commands


@pytest.mark.parametrize("folder", ["prepared", "side_step"])
def test_verify_finds_nothing_wrong_and_makes_the_same_again(folder: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder)
    report = verify.run(VerifySettings(folder=path, reencode=2, device="cpu"), observer=Silent())
    assert report.num_problems == 0, report.problems
    assert (report.num_reencoded, report.max_difference) == (2, 0.0)
    assert report.covered_s == pytest.approx(report.source_s)


@pytest.mark.parametrize("layout", ["shards", "sidestep"])
def test_damage_is_taken_back_and_made_again(
    tmp_path: Path, model: tuple[Path, TinyAceStep], prepared: Path, layout: str
) -> None:
    songs, output = prepared.parent / "songs", tmp_path / "out"
    prepare(songs, output, model[0], layout=layout)
    before = tree(output)
    victim = next(path for path in sorted(output.rglob("*")) if path.suffix in (".pt", ".safetensors"))
    victim.write_bytes(victim.read_bytes()[:-9] + b"spoilt...")
    report = verify.run(VerifySettings(folder=output, device="cpu", repair=True), observer=Silent())
    assert report.num_taken_back
    assert any("woodshed songs" in note for note in report.notes)
    summary = prepare(songs, output, model[0], layout=layout)
    assert summary.num_new == report.num_taken_back
    assert tree(output) == before


def test_inspect_and_decode_know_the_folder(prepared: Path, tmp_path: Path) -> None:
    report = inspect.run(InspectSettings(folder=prepared))
    assert isinstance(report, InspectReport)
    assert (report.num_items, report.num_failed) == (5, 3)
    assert {array.name for array in report.arrays} == {"mean", "std", "condition"}
    settings = DecodeSettings(folder=prepared, output=tmp_path / "heard", limit=2, device="cpu")
    heard = decode.run(settings, observer=Silent())
    assert (heard.num_decoded, heard.num_failed) == (2, 0)
    assert soundfile.info(tmp_path / "heard" / heard.files[0]).samplerate == RATE_HZ


def test_a_dry_run_tells_and_writes_nothing(tmp_path: Path, model: tuple[Path, TinyAceStep], prepared: Path) -> None:
    settings = SongsSettings(
        audio_dir=prepared.parent / "songs", output=tmp_path / "out", checkpoint_dir=str(model[0]), device="cpu",
        dry_run=True,
    )  # fmt: skip
    report = run(settings, observer=Silent())
    assert isinstance(report, PlanReport)
    assert (report.num_rows, report.num_planned, report.num_unreadable) == (8, 5, 3)
    assert report.estimated_s is not None
    assert any("file name" in note or "name of" in note for note in report.notes), report.notes
    assert not (tmp_path / "out").exists()


def test_python_users_make_the_same_call(tmp_path: Path, model: tuple[Path, TinyAceStep]) -> None:
    write_song(tmp_path / "songs" / "a.wav", 0.5)
    summary = woodshed.prepare_songs(tmp_path / "songs", tmp_path / "out", checkpoint_dir=str(model[0]), device="cpu")
    assert (summary.num_done, summary.exit_code) == (1, 0)
    with pytest.raises(UsageError, match="no_such"):
        woodshed.prepare_songs(tmp_path / "songs", tmp_path / "out", no_such=1)


def test_what_is_missing_is_said_before_models_are_loaded(tmp_path: Path, model: tuple[Path, TinyAceStep]) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        prepare(tmp_path / "nowhere", tmp_path / "out", model[0])
    with pytest.raises(UsageError, match="no songs are given"):
        SongsSettings(output=tmp_path / "out")
    write_song(tmp_path / "songs" / "a.wav", 0.5)
    with pytest.raises(Exception, match="nothing here") as caught:
        prepare(tmp_path / "songs", tmp_path / "out", tmp_path / "nothing here")
    assert getattr(caught.value, "hint", None)
    assert not (tmp_path / "out").exists()
