"""How `woodshed speech` runs: batches, processes, interruptions, memory, disks, and who reads what it leaves."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.test_runs import mount
from tests.cli.test_runs import read_only as read_only
from tests.jobs.speech_fixtures import (
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
from tests.jobs.test_resume import killed
from tests.jobs.tiny_indextts import LAYER, TEXTS, rows_of, write_clips, write_manifest
from tests.speech.trainer_reader import collate, read_pairs
from woodshed.audio.probe import probe
from woodshed.cli.main import main
from woodshed.contracts import FillsSeats, Item, Summary
from woodshed.encoders.speech import encoder as encoder_module
from woodshed.encoders.speech.conditioning import Conditioning
from woodshed.encoders.speech.encoder import PASSED_ON, SpeechEncoder, SpeechJoiner
from woodshed.encoders.speech.semantic_codec import SemanticCodec
from woodshed.encoders.speech.w2vbert import W2VBert
from woodshed.errors import StoreError, UsageError
from woodshed.jobs import inspect
from woodshed.jobs.complaints import checked
from woodshed.jobs.encode import Silent
from woodshed.jobs.settings import InspectSettings
from woodshed.jobs.speech import speech
from woodshed.jobs.speech_model import batch_limits, clips_per_batch, make_encoder
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.sources.speech_manifest import read_speech_manifest
from woodshed.store.reader import open_reader
from woodshed.store.store import Store
from woodshed.store.verify import verify_files

SECONDS = (0.9, 0.33, 1.7, 0.08, 1.21, 0.5, 0.71, 1.3)
FLOATS = 1e-5


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_models(tmp_path_factory)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips; one is longer than the reference of 1.5 s that the tests below ask for."""
    return data_set(tmp_path_factory.mktemp("runs") / "data", SECONDS)


@pytest.fixture(scope="module")
def single(models: Path, manifest: Path) -> dict[str, dict[str, np.ndarray]]:
    """What each clip gives alone."""
    with tempfile.TemporaryDirectory() as folder:
        run(models, manifest, Path(folder) / "out", batch_size=1, reference_seconds=1.5)
        return features(Path(folder) / "out")


@pytest.fixture(scope="module")
def undisturbed(models: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert run(models, manifest, output).num_done == len(SECONDS)
    return output


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of a few clips, so that a small data set has many."""
    monkeypatch.setattr("woodshed.jobs.speech.UNIT_AUDIO_S", 2.0)


# Batches, orders, processes


@settings(max_examples=5, deadline=None)
@given(
    batch_size=st.integers(0, 9),
    order=st.permutations(range(len(SECONDS))),
    unit_s=st.sampled_from([1.0, 3.0, 300.0]),
    first=st.integers(0, len(SECONDS)),
)
def test_no_batch_order_or_limit_changes_a_clip(
    models: Path,
    manifest: Path,
    single: dict[str, dict[str, np.ndarray]],
    batch_size: int,
    order: list[int],
    unit_s: float,
    first: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("woodshed.jobs.speech.UNIT_AUDIO_S", unit_s)
        given_rows = manifest.read_text().splitlines()
        shuffled = write_manifest(Path(folder) / "m.jsonl", [given_rows[place] for place in order])
        patch.chdir(manifest.parent)
        options = {"batch_size": batch_size, "reference_seconds": 1.5}
        output = Path(folder) / "out"
        part = run(models, shuffled, output, max_samples=first, **options)
        assert part.num_new == (first or len(SECONDS))
        assert part.num_pending == len(SECONDS) - part.num_new
        rest = run(models, shuffled, output, **options)
        assert rest.num_new == part.num_pending
        assert_same_features(features(output), single, tolerance=FLOATS)
        assert list(verify_files(open_reader(output))) == []


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_give_the_bytes_of_one(models: Path, manifest: Path, tmp_path: Path, processes: int) -> None:
    assert run(models, manifest, tmp_path / "one").num_done == len(SECONDS)
    made = run(models, manifest, tmp_path / "many", num_processes=processes)
    assert made.num_done == len(SECONDS)
    assert tree(tmp_path / "many") == tree(tmp_path / "one")


def test_a_limit_is_a_pause(models: Path, manifest: Path, undisturbed: Path, tmp_path: Path) -> None:
    first = run(models, manifest, tmp_path / "out", max_samples=3)
    assert (first.num_new, first.num_pending, first.exit_code) == (3, len(SECONDS) - 3, 0)
    assert list(rows(tmp_path / "out")) == [f"utt_{number:03d}" for number in range(3)]
    assert stats(tmp_path / "out")["total"] == 3
    second = run(models, manifest, tmp_path / "out", max_samples=3)
    assert (second.num_new, second.num_pending) == (3, len(SECONDS) - 6)
    assert run(models, manifest, tmp_path / "out").num_new == len(SECONDS) - 6
    assert_same_features(features(tmp_path / "out"), features(undisturbed), tolerance=FLOATS)
    for name in ("train_manifest.jsonl", "val_manifest.jsonl", "stats.json", ".preprocessing_progress.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_what_an_interrupted_run_had_planned_counts_to_the_limit(
    models: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SpeechEncoder, "encode", signalling(2, signal.SIGINT))
        first = run(models, manifest, tmp_path / "out", max_samples=4, batch_size=1)
    assert (first.stopped_by, stats(tmp_path / "out")["rows_in_source"]) == ("SIGINT", len(SECONDS))
    assert 0 < first.num_new < 4
    second = run(models, manifest, tmp_path / "out", max_samples=4, batch_size=1)
    assert second.num_new == 4


def test_rows_that_cannot_be_read_do_not_use_up_the_limit(models: Path, tmp_path: Path) -> None:
    source = data_set(tmp_path / "data", (0.4, 0.5, 0.6, 0.7))
    for number in (0, 1):
        (tmp_path / "data" / "wavs" / f"clip_{number:03d}.wav").write_bytes(b"no sound")
    first = run(models, source, tmp_path / "out", max_samples=1)
    assert (first.num_new, first.num_failed, first.num_pending) == (1, 2, 1)
    second = run(models, source, tmp_path / "out", max_samples=1)
    assert (second.num_new, second.num_failed, second.num_pending) == (1, 2, 0)


def test_a_plan_refuses_what_a_run_refuses(models: Path, tmp_path: Path) -> None:
    source = data_set(tmp_path / "data", (0.4,))
    with pytest.raises(StoreError, match="was not made by Woodshed"):
        run(models, source, tmp_path / "data", dry_run=True)


def test_rows_that_left_the_source_stay_and_are_told(models: Path, tmp_path: Path) -> None:
    source = data_set(tmp_path / "data", (0.4, 0.5, 0.6))
    run(models, source, tmp_path / "out")
    _, second, third = source.read_text().splitlines()
    broken = json.dumps({**json.loads(second), "text": ""})
    source.write_text(f"{broken}\n{third}\n")
    summary = run(models, source, tmp_path / "out")
    assert (summary.num_rows, summary.num_done, summary.num_failed) == (2, 1, 1)
    assert len(rows(tmp_path / "out")) == 3
    assert any("2 items of earlier runs are no longer in the source, or fail there" in note for note in summary.notes)
    report = inspect.run(InspectSettings(folder=tmp_path / "out"))
    assert any("2 rows of the manifests are of earlier runs" in note for note in report.notes)


def test_a_manifest_that_is_no_file_is_named(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no plain file"):
        run(models, tmp_path, tmp_path / "out")


# Interruptions


def signalling(calls: int, number: int) -> Callable[..., Any]:
    """`SpeechEncoder.encode` that sends this process a signal at one of its calls."""
    encode, left = SpeechEncoder.encode, [calls]

    def encode_and_signal(self: SpeechEncoder, batch: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), number)
        return encode(self, batch)

    return encode_and_signal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_finished_and_the_run_goes_on(
    models: Path,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    run(models, manifest, tmp_path / "whole", batch_size=2)
    argv = ["speech", "--manifest", str(manifest), "--output-dir", str(tmp_path / "out"), "--num-processes", "1"]
    argv += ["--config", str(models / "config.yaml"), "--semantic-layer", str(LAYER), "--device", "cpu"]
    argv += ["--batch-size", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(SpeechEncoder, "encode", signalling(2, number))
        assert main(argv) == code
    assert f"stopped by {signal.Signals(number).name}" in capsys.readouterr().out
    done = rows(tmp_path / "out")
    assert 0 < len(done) < len(SECONDS)
    assert list(verify_files(open_reader(tmp_path / "out"))) == []
    assert main([*argv, "--quiet"]) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("target", ["2.0", "2.5"])
def test_what_stands_in_for_a_clip_has_its_shape(models: Path, tmp_path: Path, target: str) -> None:
    folder = models / "2.5" if target == "2.5" else models
    source = data_set(tmp_path / "data", (0.33, 1.9, 0.771))
    given = checked(SpeechSettings, settings_of(folder, manifest=source, target=target, reference_seconds=1.0))
    own = make_encoder(given, 0)
    assert isinstance(own, FillsSeats)
    for item in read_speech_manifest(str(source), language="en"):
        assert isinstance(item, Item)
        probed = replace(item, audio=probe(item.path))
        (example,) = own.prepare(probed)
        filler = own.stand_in(probed).arrays
        assert {name: values.shape for name, values in filler.items()}.items() <= {
            name: values.shape for name, values in example.arrays.items()
        }.items()
        assert example.arrays.keys() - filler.keys() <= {*PASSED_ON}
        assert filler["valid"] == example.arrays["valid"]


class Dead(BaseException):
    """The process is gone."""


@pytest.mark.parametrize(
    ("target", "deaths"),
    [("2.0", 2), ("2.0", 3), ("2.0", 4), ("2.5", 3), pytest.param("whisper", 3, marks=pytest.mark.slow)],
)
def test_a_batch_that_is_half_done_is_finished_with_the_same_bytes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, target: str
) -> None:
    """The longest of a batch is committed first; without it the others would be padded to another length."""
    source = data_set(tmp_path / "data", (1.9, 0.5, 0.33, 1.41))
    folder = models / "2.5" if target == "2.5" else models
    announced = [json.loads(line) | {"duration": 1.45} for line in source.read_text().splitlines()]
    write_manifest(source, [announced[0], *source.read_text().splitlines()[1:]])
    options: dict[str, Any] = {"batch_size": 4, "target": target, "reference_seconds": 1.5}
    if target == "whisper":
        own = {"semantic": "whisper", "target": "2.0", "config": None, "tokenizer": (models / "bpe.model",)}
        options |= own
    run(folder, source, tmp_path / "whole", **options)
    left, real_add, real_open = [deaths], SpeechJoiner.add, Store.open.__func__  # type: ignore[attr-defined]

    def add(self: SpeechJoiner, part: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise Dead
        return real_add(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(SpeechJoiner, "add", add)
        patch.setattr(Store, "open", classmethod(lambda cls, *a, **b: real_open(cls, *a, **b, group_s=0.0)))
        with pytest.raises(Dead):
            run(folder, source, tmp_path / "out", **options)
    entries = [entry for entry in open_reader(tmp_path / "out").entries() if entry.status == "done"]
    assert len(entries) == deaths - 1
    assert run(folder, source, tmp_path / "out", **options).num_new == 5 - deaths
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def messy(folder: Path, count: int) -> Path:
    """Rows of all kinds: good ones, lines that are none, sounds that cannot be used, twins."""
    seconds = tuple(np.random.default_rng(count).uniform(0.1, 1.2, count))
    given_rows = rows_of(write_clips(folder, seconds))
    soundfile.write(folder / "nan.wav", np.full(8_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(8_000), 16_000)
    (folder / "torn.wav").write_bytes((folder / "wavs" / "clip_000.wav").read_bytes()[:900])
    given_rows[1:1] = [{"id": "nan", "text": TEXTS[0], "audio": "nan.wav", "duration": 0.5}, '{"id": "torn']
    given_rows[4:4] = [{"id": "silent", "text": TEXTS[0], "audio": "silent.wav"}, given_rows[0]]
    given_rows += [
        {"id": "torn file", "text": TEXTS[0], "audio": "torn.wav"},
        {"id": "lost", "text": "x", "audio": "0"},
    ]
    return write_manifest(folder / "manifest.jsonl", given_rows)


def order(folder: Path, models: Path, source: Path, *, kills: int, processes: int, **more: Any) -> dict[str, Any]:
    """What the process that kills is told."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--manifest", str(source), "--config", str(models / "config.yaml"), "--semantic-layer", str(LAYER)]
    flags += ["--device", "cpu", "--batch-size", "3", "--num-processes", str(processes), "--val-ratio", "0.3"]
    plain = {"words": ["speech"], "flags": flags, "output_flag": "--output-dir", "output": str(folder / "out")}
    plain |= {"undisturbed": str(folder / "undisturbed"), "kills": kills, "codes": [3], "seed": 3, "start": None}
    return plain | {"in_planning": False} | more


def test_a_few_kills(models: Path, tmp_path: Path) -> None:
    killed(order(tmp_path, models, messy(tmp_path / "data", 9), kills=3, processes=1))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["indextts", "shards"])
def test_thirty_kills(models: Path, tmp_path: Path, layout: str) -> None:
    source = messy(tmp_path / "data", 30)
    told = order(tmp_path, models, source, kills=30, processes=1)
    (report,) = killed(told | {"flags": [*told["flags"], "--layout", layout]})
    assert len(report["phases"]) >= 3, "the kills are spread over the run's life"


@pytest.mark.slow
def test_kills_of_a_run_with_workers(models: Path, tmp_path: Path) -> None:
    killed(order(tmp_path, models, messy(tmp_path / "data", 30), kills=3, processes=2))


class Intruder(Silent):
    """Starts a second run on the folder of the first while that one works."""

    def __init__(self, second: Callable[[], object]) -> None:
        self.second, self.error = second, ""

    def message(self, text: str) -> None:
        if text.startswith("making features"):
            with pytest.raises(StoreError) as caught:
                self.second()
            self.error = str(caught.value)


def test_a_second_run_on_one_folder_is_refused(models: Path, manifest: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    intruder = Intruder(lambda: run(models, manifest, output))
    speech(manifest, output, observer=intruder, **settings_of(models))
    assert f"another run is writing to {output}: process {os.getpid()}" in intruder.error
    assert "wait for it or stop it, or choose another output folder" in intruder.error
    assert tree(output) == tree(undisturbed)


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=140k", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing_and_the_run_goes_on(
    models: Path, manifest: Path, undisturbed: Path, small_disk: Path
) -> None:
    output = small_disk / "out"
    with pytest.raises(StoreError) as caught:
        run(models, manifest, output)
    assert str(caught.value).startswith(f"cannot write {output}")
    assert "No space left on device" in str(caught.value)
    assert "free some space and run the same command again: what is committed is kept" in str(caught.value)
    assert list(verify_files(open_reader(output))) == []
    mount("-o", "remount,size=40m", str(small_disk))
    assert run(models, manifest, output).num_failed == 0
    assert tree(output) == tree(undisturbed)


def test_a_read_only_folder_is_refused(
    models: Path, manifest: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "shelf").mkdir()
    request.getfixturevalue("read_only")(tmp_path / "shelf")
    with pytest.raises(StoreError) as caught:
        run(models, manifest, tmp_path / "shelf" / "out")
    assert f"cannot create the folder {tmp_path / 'shelf' / 'out'}" in str(caught.value)
    assert "Read-only file system" in str(caught.value) or "Permission denied" in str(caught.value)


# Memory

STAGES: dict[str, tuple[Any, str]] = {
    "w2v-bert": (W2VBert, "forward"),
    "codec": (SemanticCodec, "codes"),
    "condition": (Conditioning, "condition"),
    "emotion": (Conditioning, "emotion"),
}


@pytest.fixture
def quick_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search for garbage after each time that memory ran out: in a large process it takes long."""
    monkeypatch.setattr("woodshed.run.memory.release_memory", lambda: None)


def short_of_memory(real: Callable[..., Any], *, most_rows: int) -> Callable[..., Any]:
    """A network's method that has memory for so many rows."""

    @functools.wraps(real)
    def method(self: Any, batch: torch.Tensor, *others: Any) -> Any:
        if len(batch) > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(self, batch, *others)

    return method


@pytest.mark.usefixtures("quick_cure")
@pytest.mark.parametrize(("stage", "most_rows"), [*((stage, 1) for stage in STAGES), ("w2v-bert", 3)])
def test_a_batch_that_does_not_fit_is_split_and_nothing_is_lost(
    models: Path,
    manifest: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    most_rows: int,
) -> None:
    owner, name = STAGES[stage]
    monkeypatch.setattr(owner, name, short_of_memory(getattr(owner, name), most_rows=most_rows))
    summary = run(models, manifest, tmp_path / "out", batch_size=8)
    assert (summary.num_done, summary.num_failed, summary.exit_code) == (len(SECONDS), 0, 0)
    assert any("memory ran out" in note for note in summary.notes)
    assert_same_features(features(tmp_path / "out"), features(undisturbed), tolerance=FLOATS)


@pytest.mark.usefixtures("quick_cure")
@pytest.mark.parametrize("stage", STAGES)
def test_a_clip_that_never_fits_is_told_and_can_be_tried_again(
    models: Path, manifest: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The longest clip needs more than there is; its batch is computed again without it."""
    owner, name = STAGES[stage]
    real = getattr(owner, name)

    @functools.wraps(real)
    def method(self: Any, batch: torch.Tensor, *others: Any) -> Any:
        if batch.shape[1] > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch, *others)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, method)
        summary = run(models, manifest, tmp_path / "out", batch_size=3)
    (failure,) = summary.failures
    assert (failure.id, failure.kind) == ("utt_002", "out_of_memory")
    assert "does not fit into memory" in failure.reason
    assert (summary.num_done, summary.exit_code) == (len(SECONDS) - 1, 3)
    again = run(models, manifest, tmp_path / "out", batch_size=3, retry_failed=True)
    assert (again.num_done, again.num_new, again.num_failed) == (len(SECONDS), 1, 0)
    assert_same_features(features(tmp_path / "out"), features(undisturbed), tolerance=FLOATS)


def test_the_front_end_may_run_out_of_memory_for_a_moment(
    models: Path, manifest: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = encoder_module.seamless_features, [2]

    def front_end(wave: np.ndarray) -> np.ndarray:
        if left[0]:
            left[0] -= 1
            raise MemoryError("Unable to allocate 3.2 GiB")
        return real(wave)

    monkeypatch.setattr("woodshed.run.feeder.MEMORY_PAUSE_S", 0.05)
    monkeypatch.setattr(encoder_module, "seamless_features", front_end)
    summary = run(models, manifest, tmp_path / "out")
    assert (summary.num_done, summary.num_failed, left) == (len(SECONDS), 0, [0])
    assert tree(tmp_path / "out") == tree(undisturbed)


@pytest.mark.parametrize(
    ("memory_gib", "promised"), [(7.6, 4), (11.6, 6), (15.6, 8), (23.6, 16), (39.4, 24), (79.1, 24), (None, 1)]
)
def test_each_device_gets_its_row_of_the_table(memory_gib: float | None, promised: int) -> None:
    assert clips_per_batch(memory_gib) >= promised
    assert memory_gib is None or clips_per_batch(memory_gib) == promised


def test_a_batch_size_is_taken_as_it_is() -> None:
    cpu = torch.device("cpu")
    assert batch_limits(7, cpu).max_pieces == 7
    assert batch_limits(0, cpu).max_cost_s == 15.0 * clips_per_batch(None)


# Who reads it


def test_the_trainers_read_the_pairs(models: Path, manifest: Path, tmp_path: Path) -> None:
    run(models, manifest, tmp_path / "out", val_ratio=0.4, language="en")
    assert main(["speech", "pairs", str(tmp_path / "out"), "--json"]) == 0
    shape = arrays(tmp_path / "out", next(iter(rows(tmp_path / "out").values())))["condition"].shape
    read = read_pairs(tmp_path / "out" / "gpt_pairs_train.jsonl", condition_shape=shape)
    assert len(read) >= 4
    for example in read:
        target, _, prompt = example.id.partition("__")
        own = arrays(tmp_path / "out", rows(tmp_path / "out")[target])
        np.testing.assert_array_equal(example.codes, own["codes"])
        np.testing.assert_array_equal(example.text_ids, own["text_ids"])
        of_prompt = arrays(tmp_path / "out", rows(tmp_path / "out")[prompt])
        np.testing.assert_array_equal(example.condition, of_prompt["condition"])
        np.testing.assert_array_equal(example.emo_vec, of_prompt["emo_vec"])
    batch = collate(read)
    assert batch["codes"].shape == (len(read), max(len(example.codes) for example in read) + 1)


# The command lines of the specification

SINGLE = r"""uv run python tools/preprocess_data.py \
  --manifest dataset/manifest.jsonl \
  --output-dir preprocessed \
  --tokenizer tokenizers/bpe.model \
  --language am \
  --val-ratio 0.01 \
  --batch-size 0 \
  --workers 0"""
SEVERAL = r"""uv run python tools/preprocess_data.py \
  --dataset am=am/manifest.jsonl=am_processed \
  --dataset ja=ja/manifest.jsonl=ja_processed \
  --output-root preprocessed_root \
  --tokenizer tokenizers/multilingual_bpe.model \
  --batch-size 0 --workers 0"""
PARALLEL = r"""uv run python tools/preprocess_multiproc.py \
  --manifest dataset/manifest.jsonl \
  --output-dir preprocessed \
  --tokenizer tokenizers/bpe.model \
  --language am \
  --num-processes 4 \
  --batch-size 4 \
  --workers 8 \
  --skip-existing"""
SMALL = ["--semantic-layer", str(LAYER), "--device", "cpu"]
"""The one thing in which the small models differ from the published ones: they have no 17 layers."""


def words(command: str) -> list[str]:
    """What the shell makes of a command, `woodshed speech` in the place of its first words."""
    split = shlex.split(command.replace("\\\n", " "))
    assert split[:3] == ["uv", "run", "python"]
    assert split[3] in ("tools/preprocess_data.py", "tools/preprocess_multiproc.py")
    return ["speech", *split[4:]]


@pytest.fixture
def project(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the commands are given in."""
    (tmp_path / "checkpoints").symlink_to(models)
    (tmp_path / "tokenizers").mkdir()
    for name in ("bpe.model", "multilingual_bpe.model"):
        shutil.copyfile(models / "bpe.model", tmp_path / "tokenizers" / name)
    for seed, folder in enumerate(("dataset", "am", "ja")):
        data_set(tmp_path / folder, (0.5, 0.9, 1.1), seed=seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_basic_command_runs(project: Path) -> None:
    assert main([*words(SINGLE), *SMALL]) == 0
    assert list(rows(project / "preprocessed")) == ["utt_000", "utt_001", "utt_002"]
    told = stats(project / "preprocessed")
    assert told["tokenizer"] == "tokenizers/bpe.model"
    assert told["gpt_checkpoint"] == "checkpoints/gpt.pth"


def test_the_command_for_new_text_ids_runs(project: Path) -> None:
    assert main([*words(SINGLE), *SMALL]) == 0
    before = tree(project / "preprocessed", but={"stats.json"})
    assert main(["speech", "retokenize", "preprocessed", "--tokenizer", "tokenizers/multilingual_bpe.model"]) == 0
    assert tree(project / "preprocessed", but={"stats.json"}) == before, "the same pieces give the same ids"


def test_the_command_for_several_data_sets_runs(project: Path) -> None:
    assert main([*words(SEVERAL), *SMALL]) == 0
    for name in ("am_processed", "ja_processed"):
        assert len(rows(project / name)) == 3
    assert not (project / "preprocessed_root").exists(), "an OUTPUT that is given is taken as it is"
    assert tree(project / "am_processed", but={"stats.json"}) != tree(project / "ja_processed", but={"stats.json"})


def test_the_parallel_command_runs(project: Path) -> None:
    assert main([*words(SINGLE), *SMALL, "--batch-size", "4", "--output-dir", "alone"]) == 0
    assert main([*words(PARALLEL), *SMALL]) == 0
    assert tree(project / "preprocessed") == tree(project / "alone")
    assert not list(project.rglob("worker_*")), "nothing is left over"


def test_the_account_adds_up(models: Path, tmp_path: Path) -> None:
    source = messy(tmp_path / "data", 5)
    summary = run(models, source, tmp_path / "out")
    assert isinstance(summary, Summary)
    assert summary.num_rows == len(source.read_text().splitlines())
    assert summary.num_done + summary.num_failed + summary.num_skipped == summary.num_rows
    told = lines(tmp_path / "out" / "failures.jsonl")
    assert len(told) == summary.num_failed + summary.num_skipped
    kinds = {failure["kind"] for failure in told}
    assert {"bad_row", "duplicate", "silent", "missing"} <= kinds
    assert json.loads((tmp_path / "out" / "stats.json").read_text())["failed"] == dict(summary.failure_kinds)


def test_the_account_in_stats_adds_up_when_the_source_changes(tmp_path: Path, models: Path) -> None:
    manifest = data_set(tmp_path / "data", (0.6, 0.7, 0.8, 0.9))
    lines = manifest.read_text().splitlines()
    run(models, manifest, tmp_path / "out", max_samples=3)
    assert (stats(tmp_path / "out")["pending"], stats(tmp_path / "out")["no_longer_in_source"]) == (1, 0)
    manifest.write_text("\n".join([lines[0], lines[1].replace("audio", "adio"), "{"]) + "\n")
    run(models, manifest, tmp_path / "out")
    told = stats(tmp_path / "out")
    assert told["no_longer_in_source"] == 2
    lost = sum(told["failed"].values()) + sum(told["skipped"].values())
    assert told["total"] + lost + told["pending"] == told["rows_in_source"] + told["no_longer_in_source"]


def test_compat_has_no_use_for_a_length_of_the_reference(tmp_path: Path, models: Path) -> None:
    with pytest.raises(UsageError, match="--reference-seconds has no say"):
        run(models, data_set(tmp_path / "data", (0.6,)), tmp_path / "out", compat=True, reference_seconds=5.0)
