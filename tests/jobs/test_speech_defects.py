"""The defects D1 to D28 of IndexTTS2's preprocessing tools, each shown to be absent here.

One line in each test says what the original does. Everything runs through what users call, with the input that
triggers the defect there.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import woodshed
from tests.jobs.plain_indextts import plain_cjk, plain_is_validation
from tests.jobs.speech_fixtures import (
    ARRAYS,
    arrays,
    assert_same_features,
    data_set,
    features,
    lines,
    rows,
    run,
    settings_of,
    shared_models,
    stats,
    tree,
)
from tests.jobs.tiny_indextts import LAYER, TEXTS, rows_of, write_clips, write_manifest
from tests.speech.original_folder import Original, array, change, encoder_of, lose_ledgers, tear
from tests.speech.trainer_reader import read_pairs
from tests.store.bad_disks import CountingDisk, Killed
from woodshed.cli.main import main
from woodshed.encoders.speech import clip as clip_module
from woodshed.encoders.speech.encoder import SpeechEncoder
from woodshed.encoders.speech.text.engine import open_engine
from woodshed.encoders.speech.w2vbert import W2VBert
from woodshed.errors import ModelError, StoreError
from woodshed.jobs.speech import speech
from woodshed.jobs.speech_model import make_encoder
from woodshed.jobs.speech_retokenize import speech_retokenize
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.store.reader import open_reader
from woodshed.store.store import Store
from woodshed.store.verify import verify_files

FLOATS = 1e-5
FRAMES = (49, 37, 33, 41, 20, 48, 37)
"""Lengths, in codes, of the seven clips of the original's own experiment."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_models(tmp_path_factory)


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of seven clips."""
    return data_set(tmp_path_factory.mktemp("seven") / "data", [seconds_of(frames) for frames in FRAMES])


@pytest.fixture(scope="module")
def batched(models: Path, seven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seven clips, made in one batch."""
    output = tmp_path_factory.mktemp("seven") / "batched"
    assert run(models, seven, output, batch_size=8, val_ratio=0.3).num_done == len(FRAMES)
    return output


@pytest.fixture(scope="module")
def alone(models: Path, seven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seven clips, one at a time."""
    output = tmp_path_factory.mktemp("seven") / "alone"
    run(models, seven, output, batch_size=1, val_ratio=0.3)
    return output


def seconds_of(frames: int) -> float:
    return (400 + 160 * (2 * frames - 1)) / 16_000


def beep(path: Path, seconds: float, *, rate_hz: int = 8_000) -> Path:
    """Silence with a short tone, cheap at any length."""
    wave = np.zeros(round(seconds * rate_hz), np.float32)
    wave[:200] = 0.5 * np.sin(np.arange(200))
    soundfile.write(path, wave, rate_hz)
    return path


def flags(models: Path, manifest: Path, output: Path, *more: str) -> list[str]:
    plain = ["speech", "--manifest", str(manifest), "--output-dir", str(output), "--num-processes", "1"]
    plain += ["--config", str(models / "config.yaml"), "--semantic-layer", str(LAYER), "--device", "cpu"]
    return [*plain, *more]


def kinds(folder: Path) -> dict[str, str]:
    """Kind of every row that gave nothing, by id."""
    return {failure["id"]: failure["kind"] for failure in lines(folder / "failures.jsonl")}


def test_d01_codes_have_their_true_length(batched: Path) -> None:
    """The original stores every clip's codes at the length of its batch: 49 for one of 20."""
    for number, frames in enumerate(FRAMES):
        row = rows(batched)[f"utt_{number:03d}"]
        assert row["code_len"] == frames
        assert arrays(batched, row)["codes"].shape == (frames,)


def test_d02_codes_do_not_depend_on_the_batch(batched: Path, alone: Path) -> None:
    """In the original 0 to 5 codes near the end of a clip differ with its neighbours."""
    for row_id, own in features(alone).items():
        np.testing.assert_array_equal(arrays(batched, rows(batched)[row_id])["codes"], own["codes"])


def test_d03_condition_and_emotion_do_not_depend_on_the_batch(batched: Path, alone: Path) -> None:
    """In the original they differ by up to 0.09, on values of 0.8."""
    assert_same_features(features(batched), features(alone), tolerance=FLOATS)
    values = np.concatenate([own["condition"].ravel() for own in features(alone).values()])
    assert values.std() > 0.1, "values that could tell a difference"


def test_d04_the_reference_is_what_inference_takes(models: Path, tmp_path: Path) -> None:
    """The original takes the whole clip by way of 24 kHz; inference at most 15 s, at 16 kHz."""
    (whole,) = write_clips(tmp_path, (15.5,))
    wave, rate_hz = soundfile.read(whole, dtype="float32")
    soundfile.write(tmp_path / "wavs" / "beginning.wav", wave[: 15 * rate_hz], rate_hz)
    given = rows_of([whole, tmp_path / "wavs" / "beginning.wav"])
    run(models, write_manifest(tmp_path / "m.jsonl", given), tmp_path / "out")
    long, short = features(tmp_path / "out").values()
    for name in ("condition", "emo_vec"):
        np.testing.assert_allclose(long[name], short[name], rtol=0, atol=FLOATS)
    assert len(long["codes"]) > len(short["codes"])


def test_d05_limits_hold_before_anything_is_decoded(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original has no limits: a 37 s clip crashes the training, NaN and silence become features."""
    good, *_ = write_clips(tmp_path, (0.5,))
    (tmp_path / "sounds").mkdir()
    for name, seconds in (("37_s", 37.0), ("200_s", 200.5), ("announced", 200.5)):
        beep(tmp_path / "sounds" / f"{name}.wav", seconds)
    for name, samples in (("one_fbank_frame", 400), ("two_model_frames", 960), ("tiny", 200)):
        soundfile.write(
            tmp_path / "sounds" / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(samples), 16_000
        )
    soundfile.write(tmp_path / "sounds" / "nan.wav", np.full(8_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "sounds" / "silent.wav", np.zeros(8_000), 16_000)
    given: list[Any] = [{"id": "good", "text": TEXTS[0], "audio": str(good)}]
    for path in sorted((tmp_path / "sounds").iterdir()):
        given.append({"id": path.stem, "text": TEXTS[0], "audio": str(path)})
    given[[row["id"] for row in given].index("announced")]["duration"] = 0.5
    given.append({"id": "wordy", "text": "so many words " * 200, "audio": str(good)})
    decoded: list[str] = []
    read_wave = clip_module.read_wave
    monkeypatch.setattr(
        clip_module, "read_wave", lambda path, *a, **b: decoded.append(Path(path).stem) or read_wave(path, *a, **b)
    )
    summary = run(models, write_manifest(tmp_path / "m.jsonl", given), tmp_path / "out")
    assert (summary.num_done, summary.exit_code) == (1, 3)
    assert kinds(tmp_path / "out") == {
        "37_s": "too_long", "200_s": "too_long", "announced": "too_long", "one_fbank_frame": "too_short",
        "two_model_frames": "too_short", "tiny": "too_short", "nan": "not_finite", "silent": "silent",
        "wordy": "text_too_long",
    }  # fmt: skip
    assert sorted(decoded) == sorted([good.stem, "nan", "silent"])
    assert list(rows(tmp_path / "out")) == ["good"]


def test_d06_rows_without_a_speaker_are_not_paired_by_a_guess(models: Path, tmp_path: Path) -> None:
    """The original pairs such rows across speakers, by their file names, or crashes."""
    paths = write_clips(tmp_path, (0.3, 0.4, 0.35, 0.45))
    given: list[Any] = rows_of(paths)
    for row, speaker in zip(given, ("s0", "s0", "", ""), strict=True):
        row["speaker"] = speaker
    del given[3]["speaker"]
    run(models, write_manifest(tmp_path / "m.jsonl", given), tmp_path / "out", val_ratio=0)
    assert main(["speech", "pairs", str(tmp_path / "out")]) == 0
    pairs = lines(tmp_path / "out" / "gpt_pairs_train.jsonl")
    assert {pair["speaker"] for pair in pairs} == {"s0"}
    assert {pair["target_id"] for pair in pairs} == {"utt_000", "utt_001"}


def test_d07_numbers_are_read_in_the_rows_own_language(models: Path, tmp_path: Path) -> None:
    """The original reads German numbers in English, Russian ones in Chinese, and counts no unknown pieces."""
    (path,) = write_clips(tmp_path, (0.4,))
    texts = {"de": "25% Rabatt", "ru": "скидка 25%", "ko": "25% 할인", "en": "25% off", "zh": "共465篇"}
    given = [{"id": code, "text": text, "audio": str(path), "language": code} for code, text in texts.items()]
    manifest = write_manifest(tmp_path / "m.jsonl", given)
    dataset = f"am={manifest}={tmp_path / 'out'}"
    report = speech(dataset=(dataset,), **settings_of(models))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(models / "bpe.model"))
    spoken = texts | {"en": "twenty five percent off", "zh": "共四百六十五篇"}
    for code, own in features(tmp_path / "out").items():
        assert own["text_ids"].tolist() == pieces.encode(plain_cjk(spoken[code])), code
    unknown = stats(tmp_path / "out")["unknown_tokens"]
    expected = [pieces.encode(plain_cjk(text)).count(pieces.unk_id()) for text in spoken.values()]
    assert unknown["count"] == sum(expected) > 0
    assert unknown["rows"] == sum(bool(count) for count in expected)
    assert "할" in unknown["characters"]
    assert any("unknown to the tokenizer" in note for note in report.results[0].notes)


def out_of_memory(real: Callable[..., Any], *, most_rows: int) -> Callable[..., Any]:
    def method(self: Any, batch: torch.Tensor, *others: Any) -> Any:
        if len(batch) > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch, *others)

    return method


def test_d08_nothing_in_a_batch_ends_the_run(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the original any exception is an UnboundLocalError, and the next start meets the same batch again."""
    paths = write_clips(tmp_path, (0.5, 0.9, 0.7))
    short = 0.1 * np.random.default_rng(0).standard_normal(1300)
    for name, samples in (("300.wav", 300), ("1300.wav", 1300)):
        soundfile.write(tmp_path / name, short[:samples], 24_000)
    beep(tmp_path / "long.wav", 201)
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF" + bytes(100))
    given = rows_of(paths)
    for name in ("300.wav", "1300.wav", "long.wav", "corrupt.wav"):
        given.insert(1, {"id": name, "text": TEXTS[0], "audio": name})
    given.insert(2, {"id": {"not": "an id"}, "text": TEXTS[0], "audio": "300.wav"})
    manifest = write_manifest(tmp_path / "m.jsonl", given)
    monkeypatch.setattr(W2VBert, "forward", out_of_memory(W2VBert.forward, most_rows=1))
    first = run(models, manifest, tmp_path / "out", batch_size=4)
    assert (first.num_done, first.num_failed, first.exit_code) == (3, 5, 3)
    assert set(kinds(tmp_path / "out")) == {"300.wav", "1300.wav", "long.wav", "corrupt.wav", "m.jsonl:3"}
    before = tree(tmp_path / "out")
    again = run(models, manifest, tmp_path / "out", batch_size=4)
    assert (again.num_new, again.num_done, again.num_failed) == (0, 3, 5)
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize(("most_rows", "num_done"), [(1, 20), (0, 0)])
def test_d09_memory_that_runs_out_loses_no_row(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_rows: int, num_done: int
) -> None:
    """From 16 with room for 1 the original loses 2 of 20; with room for none 20 of 20, at exit code 0."""
    manifest = data_set(tmp_path / "data", [0.2] * 20)
    monkeypatch.setattr("woodshed.run.memory.release_memory", lambda: None)  # takes long in a large process
    monkeypatch.setattr(W2VBert, "forward", out_of_memory(W2VBert.forward, most_rows=most_rows))
    summary = run(models, manifest, tmp_path / "out", batch_size=16)
    assert (summary.num_done, summary.num_failed) == (num_done, 20 - num_done)
    assert summary.exit_code == (0 if num_done else 3)
    assert set(kinds(tmp_path / "out").values()) == (set() if num_done else {"out_of_memory"})


def test_d10_nothing_is_skipped_in_silence(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The original raises one counter: no ids, no reasons, exit code 0."""
    (path,) = write_clips(tmp_path, (0.4,))
    (tmp_path / "noise.wav").write_text("no sound at all")
    given: list[Any] = rows_of([path])
    given += [
        {"id": "lost", "text": "hello", "audio": "nowhere.wav"},
        {"id": "unreadable", "text": "hello", "audio": "noise.wav"},
        {"id": "speechless", "text": "speaker 3:", "audio": str(path)},
        '{"id": "half',
    ]
    assert main(flags(models, write_manifest(tmp_path / "m.jsonl", given), tmp_path / "out")) == 3
    told = {failure["id"]: failure for failure in lines(tmp_path / "out" / "failures.jsonl")}
    assert set(told) == {"lost", "unreadable", "speechless", "m.jsonl:5"}
    assert (told["lost"]["kind"], told["lost"]["line"]) == ("missing", 2)
    assert told["speechless"]["kind"] == "no_tokens"
    assert told["m.jsonl:5"]["kind"] == "bad_row"
    assert all(failure["reason"] for failure in told.values())
    shown = capsys.readouterr()
    assert "line 5 of m.jsonl: this is not valid JSON" in shown.err


@pytest.fixture(scope="module")
def original(models: Path) -> Original:
    return Original(encoder_of(models))


def test_d11_a_torn_manifest_is_no_end(models: Path, seven: Path, original: Original, tmp_path: Path) -> None:
    """The original fails with JSONDecodeError at its start, for ever."""
    folder = original.write(tmp_path / "out", seven)
    ledger = folder / "train_manifest.jsonl"
    tear(ledger, keep_bytes=ledger.stat().st_size - 40)
    assert run(models, seven, folder).num_done == len(FRAMES)
    assert len(rows(folder)) == len(FRAMES)
    whole = tree(folder)
    tear(ledger, keep_bytes=ledger.stat().st_size - 40)
    again = run(models, seven, folder)
    assert (again.num_done, again.num_new) == (len(FRAMES), 0)
    assert tree(folder) == whole, "manifests of ours are written again from the log"


def test_d12_existing_files_are_opened_before_they_are_kept(
    models: Path, seven: Path, original: Original, alone: Path, tmp_path: Path
) -> None:
    """With lost manifests the original ignores all clips, though one file is 6 bytes long and one is missing."""
    folder = original.write(tmp_path / "out", seven)
    lose_ledgers(folder)
    tear(array(folder, "codes", "utt_002"), keep_bytes=6)
    array(folder, "condition", "utt_005").unlink()
    summary = run(models, seven, folder, skip_existing=True, compat=True)
    assert (summary.num_done, summary.num_new) == (len(FRAMES), 2)
    assert len(rows(folder)) == len(FRAMES)
    run(models, seven, tmp_path / "fresh", compat=True)
    assert_same_features(features(folder), features(tmp_path / "fresh"), tolerance=FLOATS)
    assert list(verify_files(open_reader(folder))) == []


def test_d13_no_crash_leaves_half_a_file_under_its_name(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original writes arrays, manifests and stats in place, without a lock."""
    manifest = data_set(tmp_path / "data", (0.3, 0.4))
    real = Store.open.__func__  # type: ignore[attr-defined]
    disk = CountingDisk()
    monkeypatch.setattr(Store, "open", classmethod(lambda cls, *a, **b: real(cls, *a, **b, disk=disk)))
    run(models, manifest, tmp_path / "whole")
    whole, calls = tree(tmp_path / "whole"), disk.calls
    assert calls > 20
    for k in range(3, calls, 7):
        output = tmp_path / f"out {k}"
        disk = CountingDisk(k)
        with pytest.raises(Killed):
            run(models, manifest, output)
        found = {name: digest for name, digest in tree(output).items() if name.endswith(".npy")}
        assert found.items() <= whole.items(), f"a torn array after call {k}"
        for path in output.glob("*.jsonl"):
            assert all(json.loads(line) for line in path.read_text().splitlines())
        disk = CountingDisk()
        run(models, manifest, output)
        assert tree(output) == whole
        assert list((output / ".woodshed" / "tmp").iterdir()) == []


def other_models(models: Path, folder: Path, **replaced: Callable[[Path], object]) -> Path:
    """The same folder of models, but for some files that functions write."""
    folder.mkdir()
    for path in models.iterdir():
        (folder / path.name).symlink_to(path)
    for name, write in replaced.items():
        path = folder / name.replace("__", ".")
        path.unlink()
        write(path)
    return folder


def small_tokenizer(path: Path) -> None:
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text.upper() for text in TEXTS]),
            model_writer=file,
            vocab_size=38,
            minloglevel=2,
            character_coverage=1.0,
        )


def other_gpt(source: Path) -> Callable[[Path], object]:
    state = torch.load(source, weights_only=True)["model"]
    state["emo_layer.bias"] = state["emo_layer.bias"] + 1
    return lambda path: torch.save({"model": state}, path)


def test_d14_another_model_is_never_mixed_in(models: Path, seven: Path, batched: Path, tmp_path: Path) -> None:
    """The original skips every row and writes the new model's path into stats.json."""
    before = tree(batched)
    swapped = {
        "emo_layer": other_models(models, tmp_path / "gpt", gpt__pth=other_gpt(models / "gpt.pth")),
        "tokenizer": other_models(models, tmp_path / "tokenizer", bpe__model=small_tokenizer),
    }
    told = {"emo_layer": "fingerprint.models.gpt_2.0: '", "tokenizer": "fingerprint.text.2.0.tokenizer: 'sha256:"}
    for name, folder in swapped.items():
        with pytest.raises(StoreError) as caught:
            run(folder, seven, batched, val_ratio=0.3)
        assert f"{batched} was made by another run; these differ (there -> now):" in str(caught.value)
        assert told[name] in str(caught.value)
    with pytest.raises(StoreError, match=r"preprocessing.strict_trim: False -> True"):
        run(models, seven, batched, val_ratio=0.3, strict_trim=True)
    assert tree(batched) == before
    made_with = stats(batched)["made_with"]
    digest = made_with["fingerprint"]["models"]["gpt_2.0"]
    assert re.fullmatch(r"[a-z0-9_]+:[0-9a-f]{32,}", digest)
    assert made_with["versions"]["woodshed"] == woodshed.__version__


def test_d15_another_ratio_moves_rows_and_doubles_none(models: Path, seven: Path, tmp_path: Path) -> None:
    """In the original all ids end in both manifests."""
    for ratio, train, val in ((0.0, 7, 0), (1.0, 0, 7), (0.5, None, None)):
        summary = run(models, seven, tmp_path / "out", val_ratio=ratio)
        assert summary.num_done == 7
        assert len(rows(tmp_path / "out")) == 7, "each id once, in one of the two"
        split = [len(lines(tmp_path / "out" / f"{name}_manifest.jsonl")) for name in ("train", "val")]
        assert sum(split) == 7
        assert train is None or split == [train, val]
    ids = {row["id"] for row in lines(tmp_path / "out" / "val_manifest.jsonl")}
    assert ids == {row_id for row_id in rows(tmp_path / "out") if plain_is_validation(row_id, 0.5)}


@pytest.mark.parametrize("batch_size", [1, 8])
def test_d16_the_first_of_two_rows_with_one_id_counts(models: Path, tmp_path: Path, batch_size: int) -> None:
    """In the original's batch the second one's arrays get the first one's row; across batches it vanishes."""
    first, second = write_clips(tmp_path, (0.4, 0.9))
    given = [
        {"id": "twin", "text": "The rain in Spain.", "audio": str(first)},
        {"id": "twin", "text": "Yes", "audio": str(second)},
    ]
    summary = run(models, write_manifest(tmp_path / "m.jsonl", given), tmp_path / "out", batch_size=batch_size)
    assert (summary.num_rows, summary.num_done, summary.num_skipped) == (2, 1, 1)
    (row,) = rows(tmp_path / "out").values()
    own = arrays(tmp_path / "out", row)
    assert (row["text"], row["audio_path"]) == ("The rain in Spain.", str(first))
    assert (row["text_len"], row["code_len"]) == (len(own["text_ids"]), len(own["codes"]))
    assert row["code_len"] < 25
    (told,) = lines(tmp_path / "out" / "failures.jsonl")
    assert (told["kind"], told["line"]) == ("duplicate", 2)
    assert "has the id 'twin' of line 1, which counts" in told["reason"]


def test_d17_one_engine_reads_numbers_on_every_system(
    models: Path, batched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original takes `tn` on Linux and `wetext` elsewhere: 22 of 57 texts differ."""
    settings = SpeechSettings(manifest=Path("m"), config=models / "config.yaml", semantic_layer=LAYER, device="cpu")
    by_system = []
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        rules = make_encoder(settings, 0).rules["2.0"]  # type: ignore[union-attr]
        by_system.append(([rules.ids(text, "en").ids.tolist() for text in TEXTS], rules.fingerprint))
    assert by_system[0] == by_system[1] == by_system[2]
    engine = stats(batched)["made_with"]["fingerprint"]["text"]["2.0"]["engine"]
    assert engine == f"wetext {open_engine('wetext').version}", "and its version is part of the fingerprint"


STRANGE_IDS: tuple[Any, ...] = (
    "../../x", "/tmp/woodshed-absolute-id", "a/b", 7, "two\nlines", "Case", "case", "CASE", ".", "..", "con", "nul.txt",
    "x" * 300, "tab\tid", "ü", "u\u0308", "%2e", "~case", "a\\b", "trailing.", " spaced ", "ሰላም",
)  # fmt: skip


def test_d18_no_id_leaves_the_folder_or_takes_anothers_files(models: Path, tmp_path: Path) -> None:
    """The original writes `../../x` outside, absolute ids where they say, and loses integer ids."""
    (path,) = write_clips(tmp_path / "data", (0.2,))
    given = [
        {"id": row_id, "text": TEXTS[place % len(TEXTS)], "audio": str(path)}
        for place, row_id in enumerate(STRANGE_IDS)
    ]
    manifest = write_manifest(tmp_path / "data" / "m.jsonl", given)
    inside = tmp_path / "deep" / "below" / "out"
    summary = run(models, manifest, inside, batch_size=8)
    assert (summary.num_done, summary.num_failed) == (len(STRANGE_IDS), 0)
    outside = {
        item.name for item in (tmp_path, tmp_path / "deep", tmp_path / "deep" / "below") for item in item.iterdir()
    }
    assert outside == {"data", "deep", "below", "out"}
    assert not Path("/tmp/woodshed-absolute-id").exists()
    found = rows(inside)
    assert list(found) == [str(row_id) for row_id in STRANGE_IDS]
    for name in ARRAYS:
        files = [row[f"{name}_path"] for row in found.values()]
        assert all(Path(file).parent == Path(name) and "\n" not in file for file in files), "no folders below"
        folded = {unicodedata.normalize("NFC", file).casefold() for file in files}
        assert len(folded) == len(files), "no two share a file, on any file system"
        assert all(len(os.fsencode(Path(file).name)) <= 255 for file in files)
        assert {file.name for file in (inside / name).iterdir()} == {Path(file).name for file in files}
    assert run(models, manifest, inside, batch_size=8).num_new == 0, "they are found again"
    assert list(verify_files(open_reader(inside))) == []


class Exploit:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("name", ["gpt.pth", "wav2vec2bert_stats.pt"])
def test_d19_a_checkpoint_runs_no_code(models: Path, seven: Path, tmp_path: Path, name: str) -> None:
    """The original may unpickle whatever a checkpoint holds."""

    def write(path: Path) -> None:
        torch.save({"model": {"w": torch.zeros(1)}, "epoch": Exploit(tmp_path / "proof")}, path)

    folder = other_models(models, tmp_path / "models", **{name.replace(".", "__"): write})
    with pytest.raises(ModelError) as caught:
        run(folder, seven, tmp_path / "out")
    assert str(folder / name) in str(caught.value)
    assert not (tmp_path / "proof").exists()
    assert not (tmp_path / "out").exists()
    with (tmp_path / "plain.pkl").open("wb") as file:
        pickle.dump(Exploit(tmp_path / "proof"), file, protocol=2)
    with pytest.raises(ModelError):
        run(models, seven, tmp_path / "out", gpt_checkpoint=(tmp_path / "plain.pkl",))
    assert not (tmp_path / "proof").exists()


def test_d19_missing_weights_are_listed_and_never_made_up(models: Path, seven: Path, tmp_path: Path) -> None:
    """The original loads with strict=False: random weights give vectors that look plausible."""
    state = torch.load(models / "gpt.pth", weights_only=True)["model"]
    key = "conditioning_encoder.encoders.1.norm_ff.bias"
    del state[key]
    torch.save({"model": state}, tmp_path / "gpt.pth")
    with pytest.raises(ModelError) as caught:
        run(models, seven, tmp_path / "out", gpt_checkpoint=(tmp_path / "gpt.pth",))
    assert f"keys 1 missing ({key})" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_d20_groups_stay_on_one_side_and_leaks_are_told(models: Path, tmp_path: Path) -> None:
    """The original splits by the id alone: speakers, texts and recordings stand on both sides."""
    paths = write_clips(tmp_path, [0.2] * 24)
    given: list[Any] = [
        {"id": f"r{n:02d}", "text": f"say {n // 3}", "audio": str(path), "speaker": f"s{n % 6}"}
        for n, path in enumerate(paths)
    ]
    for row, number in zip(given, range(24), strict=True):
        row["recording"] = f"tape {number // 4}"
    manifest = write_manifest(tmp_path / "m.jsonl", given)
    groups = {"speaker": lambda n: n % 6, "recording": lambda n: n // 4, "text": lambda n: n // 3}
    by_id = run(models, manifest, tmp_path / "out", val_ratio=0.3)
    leaks = stats(tmp_path / "out")["leaks"]
    assert all(leaks[kind]["on_both_sides"] > 0 for kind in groups)
    assert any("validation rows share their speaker with training rows" in note for note in by_id.notes)
    for kind, group in groups.items():
        again = run(models, manifest, tmp_path / "out", val_ratio=0.4, split_by=kind)
        assert again.num_new == 0, "another split makes no feature again"
        sides = [
            {group(int(row["id"][1:])) for row in lines(tmp_path / "out" / f"{side}_manifest.jsonl")}
            for side in ("train", "val")
        ]
        assert sides[0]
        assert sides[1]
        assert not sides[0] & sides[1]
        assert stats(tmp_path / "out")["leaks"][kind]["on_both_sides"] == 0


def test_d20_ids_that_look_the_same_are_told(models: Path, tmp_path: Path) -> None:
    """In the original the two Unicode forms of one id fall on two sides, unseen."""
    (path,) = write_clips(tmp_path, (0.2,))
    given = [{"id": row_id, "text": "Yes", "audio": str(path)} for row_id in ("caf\u00e9", "cafe\u0301")]
    summary = run(models, write_manifest(tmp_path / "m.jsonl", given), tmp_path / "out")
    assert summary.num_done == 2
    assert any("differ from another only in how accents are encoded" in note for note in summary.notes)


def test_d20_pairs_are_refused_before_anything_is_written(models: Path, tmp_path: Path) -> None:
    """The original writes the training pairs, then crashes over a small validation set."""
    paths = write_clips(tmp_path, (0.2, 0.3, 0.25))
    given: list[Any] = rows_of(paths)
    for row, speaker in zip(given, "aab", strict=True):
        row["speaker"] = speaker
    run(models, write_manifest(tmp_path / "m.jsonl", given), tmp_path / "out", val_ratio=1.0)
    assert main(["speech", "pairs", str(tmp_path / "out")]) == 2
    assert not list((tmp_path / "out").glob("gpt_pairs*"))
    run(models, tmp_path / "m.jsonl", tmp_path / "out", val_ratio=0.0)
    assert main(["speech", "pairs", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").glob("gpt_pairs*")] == ["gpt_pairs_train.jsonl"]


def file_mappings() -> dict[str, str]:
    """Files that are mapped into this process -> access rights."""
    found = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6:
            found[parts[5]] = parts[1]
    return found


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is mapped")
def test_d21_processes_share_one_copy_of_the_weights_that_are_needed(models: Path) -> None:
    """In the original each of k processes holds all 1.5 billion parameters, of which half are needed."""
    settings = SpeechSettings(manifest=Path("m"), config=models / "config.yaml", semantic_layer=LAYER, device="cpu")
    encoder = make_encoder(settings, 0)
    assert isinstance(encoder, SpeechEncoder)
    mapped = file_mappings()
    addresses = [
        tuple(int(part, 16) for part in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(models) in line
    ]
    for name in ("gpt.pth", "hf_cache/w2v-bert-2.0/model.safetensors", "hf_cache/semantic_codec_model.safetensors"):
        assert str(models / name) in mapped, name
    own, shared = 0, 0
    networks = encoder.networks
    for network in (networks.w2v_bert, networks.codec, networks.conditioning):
        assert network is not None
        for values in network.parameters():
            is_mapped = any(first <= values.data_ptr() < last for first, last in addresses)
            own, shared = own + values.nbytes * (not is_mapped), shared + values.nbytes * is_mapped
    assert shared > 50 * own, "nearly everything lies in files that the system keeps once for all processes"
    layers = {key.split(".")[2] for key in networks.w2v_bert.state_dict() if key.startswith("encoder.layers.")}
    assert len(layers) == LAYER, "layers behind the one that is asked for are not loaded"


def test_d22_what_workers_left_is_checked_and_merged_once(
    models: Path, seven: Path, original: Original, tmp_path: Path
) -> None:
    """The original appends double rows, keeps stale arrays, and merges what a worker of another model left."""
    folder = original.write(tmp_path / "out", seven, ids=["utt_000", "utt_001"])
    original.write(folder / "worker_00", seven, ids=["utt_001", "utt_002", "utt_003"])
    change(array(folder, "codes", "utt_001"), first=9_999)
    other = other_models(models, tmp_path / "models", gpt__pth=other_gpt(models / "gpt.pth"))
    Original(encoder_of(other)).write(folder / "worker_01", seven, ids=["utt_004", "utt_005"])
    before = tree(folder)
    with pytest.raises(StoreError) as caught:
        run(models, seven, folder, compat=True)
    assert "was made with other checkpoints: of row 'utt_004' (worker_01/codes/utt_004.npy)" in str(caught.value)
    assert tree(folder) == before
    shutil.rmtree(folder / "worker_01")
    summary = run(models, seven, folder, compat=True)
    assert (summary.num_done, summary.num_new) == (len(FRAMES), 3)
    run(models, seven, tmp_path / "fresh", compat=True)
    assert_same_features(features(folder), features(tmp_path / "fresh"), tolerance=FLOATS)
    assert stats(folder)["total"] == len(FRAMES)
    assert not list(folder.glob("worker_*"))
    assert run(models, seven, folder, compat=True).num_new == 0


def test_d23_new_text_ids_leave_a_folder_that_trainers_open(
    models: Path, batched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original's second run empties the manifest, and its paths are relative to two different folders."""
    folder = shutil.copytree(batched, tmp_path / "out")
    small_tokenizer(tmp_path / "new.model")
    monkeypatch.chdir("/")
    first = speech_retokenize(folder, tokenizer=(tmp_path / "new.model",), language="en")
    assert (first.num_done, first.is_written) == (len(FRAMES), True)
    assert first.num_changed == len(FRAMES)
    before = tree(folder)
    again = speech_retokenize(folder, tokenizer=(tmp_path / "new.model",), language="en")
    assert (again.num_changed, again.is_written) == (0, False)
    assert tree(folder) == before
    assert len(rows(folder)) == len(FRAMES)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "new.model"))
    old = features(batched)
    for row_id, row in rows(folder).items():
        own = arrays(folder, row)
        assert row["text_len"] == len(own["text_ids"])
        assert pieces.decode(own["text_ids"].tolist())
        assert own["text_ids"].max() < pieces.get_piece_size()
        for name in ("codes", "condition", "emo_vec"):
            np.testing.assert_array_equal(own[name], old[row_id][name])
    assert stats(folder)["tokenizer"] == str(tmp_path / "new.model")
    assert main(["speech", "pairs", str(folder)]) == 0
    assert read_pairs(folder / "gpt_pairs_train.jsonl")


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, torch.Tensor):
                self.num_values = max(self.num_values, value.numel())
        return made


def test_d24_attention_needs_no_tensor_of_all_pairs_and_channels(models: Path, seven: Path) -> None:
    """The original's attention builds T x T x 64 values in each layer: 24 GiB for 200 s."""
    encoder = make_encoder(
        SpeechSettings(manifest=seven, config=models / "config.yaml", semantic_layer=LAYER, device="cpu"), 0
    )
    assert isinstance(encoder, SpeechEncoder)
    frames = 700
    with torch.inference_mode(), Largest() as largest:
        encoder.networks.w2v_bert(torch.randn(1, frames, 160), torch.tensor([frames]))
    assert largest.num_values < frames * frames * 64 / 2


def test_d24_clips_of_one_length_share_batches_and_reading_runs_ahead(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original batches in file order, and reads while the device waits."""
    lengths = [0.2, 2.0] * 8
    manifest = data_set(tmp_path / "data", lengths)
    seen: list[list[int]] = []
    prepared: set[str] = set()
    ahead: list[int] = []
    real_encode, real_prepare = SpeechEncoder.encode, SpeechEncoder.prepare

    def prepare(self: SpeechEncoder, item: Any) -> Any:
        yield from real_prepare(self, item)
        prepared.add(item.id)

    def encode(self: SpeechEncoder, batch: Sequence[Any]) -> Any:
        seen.append([len(example.arrays["features"]) for example in batch])
        made = real_encode(self, batch)
        ahead.append(len(prepared) - sum(map(len, seen)))
        return made

    monkeypatch.setattr(SpeechEncoder, "encode", encode)
    monkeypatch.setattr(SpeechEncoder, "prepare", prepare)
    run(models, manifest, tmp_path / "out", batch_size=4, workers=2)
    padded = sum(len(batch) * max(batch) for batch in seen)
    assert padded < 1.05 * sum(map(sum, seen)), "in file order it would be 1.8 times"
    assert max(ahead) >= 2, "clips of later batches are ready while one is computed"


def test_d25_many_clips_may_lie_in_few_files(models: Path, tmp_path: Path) -> None:
    """The original makes four files for every clip."""
    manifest = data_set(tmp_path / "data", [0.2] * 30)
    run(models, manifest, tmp_path / "shards", layout="shards")
    run(models, manifest, tmp_path / "files")
    assert len(list((tmp_path / "files").rglob("*.npy"))) == 120
    assert len([path for path in (tmp_path / "shards").rglob("*") if path.is_file()]) <= 20
    by_id = {item["info"]["id"]: item for item in woodshed.open(tmp_path / "shards")}
    for row_id, own in features(tmp_path / "files").items():
        for name in ("codes", "condition"):
            np.testing.assert_array_equal(np.asarray(by_id[row_id][name]), own[name])


def test_d26_no_sound_needs_torchaudio(
    models: Path, seven: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original loads sounds through torchaudio, whose new versions want torchcodec and ffmpeg."""
    for name in ("torchaudio", "torchcodec", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    run(models, seven, tmp_path / "out", batch_size=1, val_ratio=0.3)
    assert tree(tmp_path / "out") == tree(alone)
    for path in Path(woodshed.__file__).parent.rglob("*.py"):
        assert not re.search(r"^\s*(import|from) torch(audio|codec|vision)", path.read_text(), re.MULTILINE), path


def test_d27_a_signal_starts_no_more_work(
    models: Path, seven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original works all pending batches off before it ends, and does not handle SIGTERM."""
    real, calls = SpeechEncoder.encode, [0]

    def encode(self: SpeechEncoder, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    monkeypatch.setattr(SpeechEncoder, "encode", encode)
    summary = run(models, seven, tmp_path / "out", batch_size=1)
    assert (summary.stopped_by, summary.exit_code, calls[0]) == ("SIGTERM", 143, 2)
    assert summary.num_done == len(rows(tmp_path / "out")) == 2


def test_d27_a_full_disk_leaves_no_half_array(
    models: Path, seven: Path, batched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the original np.save fails half-way, and what it wrote stays under its final name."""
    import errno

    real = Store.open.__func__  # type: ignore[attr-defined]
    for k in (12, 25):
        output = tmp_path / str(k)
        with monkeypatch.context() as patch:
            full = CountingDisk(k, code=errno.ENOSPC)
            patch.setattr(Store, "open", classmethod(lambda cls, *a, full=full, **b: real(cls, *a, **b, disk=full)))
            with pytest.raises(StoreError, match="ENOSPC"):
                run(models, seven, output, batch_size=8, val_ratio=0.3)
        found = {name: digest for name, digest in tree(output).items() if name.endswith(".npy")}
        assert found.items() <= tree(batched).items()
        run(models, seven, output, batch_size=8, val_ratio=0.3)
        assert tree(output) == tree(batched)


def test_d28_stats_tell_what_is_in_the_folder(models: Path, tmp_path: Path) -> None:
    """The original counts the rows of two manifests, and nothing else."""
    paths = write_clips(tmp_path, (0.5, 1.0, 1.5))
    given: list[Any] = rows_of(paths)
    given[0]["language"] = "en"
    given += [{"id": "lost", "text": "hello", "audio": "nowhere.wav"}, given[0]]
    run(models, write_manifest(tmp_path / "m.jsonl", given), tmp_path / "out", val_ratio=0.5)
    told = stats(tmp_path / "out")
    assert list(told)[:5] == ["total", "train", "val", "tokenizer", "gpt_checkpoint"]
    assert (told["total"], told["rows_in_source"]) == (3, 5)
    assert (told["failed"], told["skipped"]) == ({"missing": 1}, {"duplicate": 1})
    assert told["hours"] == pytest.approx(3.0 / 3600, abs=1e-6)
    assert told["speakers"] == {"count": 2, "rows_without": 0, "most_rows": {"s0": 2, "s1": 1}}
    assert told["languages"] == {"(not given)": 2, "en": 1}
    assert told["lengths"]["seconds"]["median"] == 1.0
    lengths = sorted(row["code_len"] for row in rows(tmp_path / "out").values())
    assert [told["lengths"]["code_len"][name] for name in ("min", "median", "max")] == lengths
    assert set(told["unknown_tokens"]) == {"count", "rate", "rows", "characters"}
    assert told["split"] == {"by": "id", "ratio": 0.5, "seed": 17}
    assert told["absent_features"] == []


def test_every_defect_has_its_test() -> None:
    tests: Mapping[str, object] = globals()
    numbers = {int(name[6:8]) for name in tests if re.match(r"test_d\d\d_", name)}
    assert numbers == set(range(1, 29))
