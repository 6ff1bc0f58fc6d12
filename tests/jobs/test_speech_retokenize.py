"""`woodshed speech retokenize`: what a new tokenizer changes, what it leaves alone, and that nothing can tear it."""

from __future__ import annotations

import base64
import errno
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import sentencepiece
import yaml

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
from tests.jobs.tiny_indextts import TEXTS, rows_of, write_clips, write_manifest
from tests.store.bad_disks import CountingDisk, Killed, PowerCutDisk
from woodshed.cli.main import main
from woodshed.errors import ModelError, StoreError, UsageError
from woodshed.jobs.repair import open_store
from woodshed.jobs.speech import speech
from woodshed.jobs.speech_retokenize import RetokenizeReport, speech_retokenize
from woodshed.store.disk import Disk
from woodshed.store.folder import OtherRunError
from woodshed.store.reader import open_reader
from woodshed.store.verify import verify_files

SECONDS = (0.5, 0.33, 0.7)


def train(path: Path, texts: tuple[str, ...], vocab_size: int) -> Path:
    """A SentencePiece model that knows the letters of some texts."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.upper() for text in texts] * 20),
        model_writer=content,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    path.write_bytes(content.getvalue())
    return path


def with_pairs(vocabulary: Path, path: Path) -> Path:
    """A tiktoken vocabulary that has pairs of letters, too: one of each text."""
    pairs = [base64.b64encode(pair).decode() for pair in (b"el", b"an", b"Ab")]
    lines_of_it = vocabulary.read_text().splitlines()
    lines_of_it += [f"{pair} {rank}" for rank, pair in enumerate(pairs, start=len(lines_of_it))]
    path.write_text("\n".join(lines_of_it) + "\n")
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_models(tmp_path_factory)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer without Chinese, and with few pieces."""
    texts = ("Hello, is this the second one?", "and you", "Ab c", "The rain in Spain.", "One, two, three!", "Yes")
    return train(tmp_path_factory.mktemp("tokenizer") / "new.model", texts, 60)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("retokenize") / "data", SECONDS)


@pytest.fixture(scope="module")
def made(models: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished folder; tests work on copies."""
    folder = tmp_path_factory.mktemp("retokenize") / "made"
    assert run(models, manifest, folder).num_done == len(SECONDS)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "features")


def identity(folder: Path) -> dict[str, Any]:
    """The run and the settings that a folder remembers."""
    return {name: json.loads((folder / ".woodshed" / name).read_bytes()) for name in ("run.json", "settings.json")}


def state(folder: Path) -> dict[str, Any]:
    """All that a later run, or a trainer, goes by."""
    return {**tree(folder), **identity(folder)}


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each file but the lock: nothing may have been written, not even the same again."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def lasting(folder: Path) -> dict[str, tuple[int, int]]:
    """The same, of what no tokenizer touches."""
    return {path: facts for path, facts in everything(folder).items() if path.endswith(".npy") and "text" not in path}


# What changes


def test_it_ends_as_a_new_run_with_that_tokenizer(
    folder: Path, new: Path, models: Path, manifest: Path, tmp_path: Path
) -> None:
    others, before = lasting(folder), stats(folder)
    report = speech_retokenize(folder, tokenizer=(new,))
    assert (report.num_rows, report.num_changed, report.num_done, report.exit_code) == (3, 3, 3, 0)
    assert report.is_written
    run(models, manifest, tmp_path / "fresh", tokenizer=(new,))
    assert tree(folder, but=["stats.json"]) == tree(tmp_path / "fresh", but=["stats.json"])
    assert stats(folder) == stats(tmp_path / "fresh")
    assert identity(folder)["run.json"] == identity(tmp_path / "fresh")["run.json"]
    assert identity(folder)["settings.json"]["tokenizer"] == [str(new)]
    assert lasting(folder) == others
    assert not list(verify_files(open_reader(folder)))
    after = stats(folder)
    assert after["tokenizer"] == str(new) != before["tokenizer"]
    assert after["gpt_checkpoint"] == before["gpt_checkpoint"]
    assert report.unknown_rate == pytest.approx(after["unknown_tokens"]["rate"], abs=1e-6)
    assert report.unknown_rate_before == pytest.approx(before["unknown_tokens"]["rate"], abs=1e-6)
    assert report.unknown_rate > report.unknown_rate_before
    assert any("are unknown to the tokenizer" in note for note in report.notes)


def test_lengths_are_those_of_the_arrays(folder: Path, new: Path) -> None:
    speech_retokenize(folder, tokenizer=(new,))
    for row in rows(folder).values():
        ids = arrays(folder, row)["text_ids"]
        assert (ids.dtype, ids.shape) == (np.dtype(np.int32), (row["text_len"],))


def test_a_second_run_writes_nothing(folder: Path, new: Path) -> None:
    speech_retokenize(folder, tokenizer=(new,))
    before = everything(folder)
    report = speech_retokenize(folder, tokenizer=(new,))
    assert (report.num_changed, report.is_written, report.exit_code) == (0, False, 0)
    assert everything(folder) == before
    assert not speech_retokenize(folder).is_written
    assert everything(folder) == before


def test_there_and_back_again(folder: Path, new: Path, models: Path) -> None:
    before = tree(folder)
    speech_retokenize(folder, tokenizer=(new,))
    assert tree(folder) != before
    speech_retokenize(folder, tokenizer=(models / "bpe.model",))
    assert tree(folder) == before


def test_a_dry_run_counts_the_same_and_writes_nothing(folder: Path, new: Path) -> None:
    before = everything(folder)
    counted = speech_retokenize(folder, tokenizer=(new,), dry_run=True)
    assert everything(folder) == before
    done = speech_retokenize(folder, tokenizer=(new,))
    assert (counted.dry_run, counted.is_written) == (True, False)
    for name in ("num_rows", "num_changed", "num_tokens_before", "num_tokens", "unknown_rate_before", "unknown_rate"):
        assert getattr(counted, name) == getattr(done, name)


def test_lost_manifests_are_written_again(folder: Path, new: Path) -> None:
    speech_retokenize(folder, tokenizer=(new,))
    before = tree(folder)
    (folder / "train_manifest.jsonl").unlink()
    report = speech_retokenize(folder)
    assert (report.num_changed, report.is_written) == (0, True)
    assert tree(folder) == before


# How a run goes on


def test_speech_goes_on_with_the_new_tokenizer_only(folder: Path, new: Path, models: Path, manifest: Path) -> None:
    speech_retokenize(folder, tokenizer=(new,))
    before = tree(folder)
    summary = run(models, manifest, folder, tokenizer=(new,))
    assert (summary.num_new, summary.num_done) == (0, 3)
    assert tree(folder) == before
    for dry_run in (False, True):
        with pytest.raises(
            OtherRunError, match=r"text\.2\.0\.tokenizer.*\n.*\n.*features would be others: text_ids"
        ) as e:
            speech(manifest, folder, **settings_of(models), dry_run=dry_run)
        assert e.value.hint is not None
        assert f"woodshed speech retokenize {folder} --tokenizer {models / 'bpe.model'} makes" in e.value.hint
    assert tree(folder) == before


def test_new_rows_join_a_retokenized_folder(folder: Path, new: Path, models: Path, tmp_path: Path) -> None:
    speech_retokenize(folder, tokenizer=(new,))
    longer = data_set(tmp_path / "more", (*SECONDS, 0.6))
    summary = run(models, longer, folder, tokenizer=(new,))
    assert summary.num_new >= 1
    assert len(rows(folder)) == 4


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"reference_seconds": 0.4}, "condition, emo_vec"),
        ({"strict_trim": True}, "codes"),
        ({"condition_dtype": "float16"}, "condition"),
        ({"semantic_layer": 1}, "codes, condition, emo_vec"),
    ],
)
def test_other_changes_name_the_features_they_touch(
    folder: Path, models: Path, manifest: Path, change: dict[str, Any], touched: str
) -> None:
    with pytest.raises(StoreError, match="made by another run") as refusal:
        run(models, manifest, folder, **change)
    assert refusal.value.message.endswith(f"these features would be others: {touched}")
    assert refusal.value.hint is not None
    assert "retokenize" not in refusal.value.hint


def test_text_rules_can_be_changed_alone(folder: Path, models: Path, manifest: Path) -> None:
    with pytest.raises(StoreError) as refusal:
        run(models, manifest, folder, text_compat=True)
    assert refusal.value.hint is not None
    assert f"retokenize {folder} --text-compat makes" in refusal.value.hint
    speech_retokenize(folder, text_compat=True)
    assert run(models, manifest, folder, text_compat=True).num_new == 0


def test_another_language_for_rows_that_name_none(models: Path, new: Path, tmp_path: Path) -> None:
    table = rows_of(write_clips(tmp_path / "data", SECONDS))
    texts = ("5 apples", "5 apples", "5 Äpfel")
    owns = ({}, {"language": "en"}, {"language": "de"})
    table = [{**row, "text": text, **own} for row, text, own in zip(table, texts, owns, strict=True)]  # type: ignore[dict-item]
    manifest = write_manifest(tmp_path / "data" / "manifest.jsonl", table)
    folder = tmp_path / "features"
    run(models, manifest, folder)
    assert rows(folder)["utt_000"]["text_len"] != rows(folder)["utt_001"]["text_len"]
    report = speech_retokenize(folder, language="en")
    assert report.num_changed == 1
    assert rows(folder)["utt_000"]["text_len"] == rows(folder)["utt_001"]["text_len"]
    assert run(models, manifest, folder, language="en").num_new == 0
    speech_retokenize(folder, language="de")
    (tmp_path / "data" / "manifest.jsonl").unlink()
    report = speech_retokenize(folder, language="en")
    assert report.num_changed == 1
    assert any("will take rows for changed" in note for note in report.notes)


# Rows that cannot be used


def test_a_row_that_cannot_be_used_leaves_and_comes_back(folder: Path, models: Path, manifest: Path) -> None:
    before, totals = state(folder), open_reader(folder).totals
    longest = max(rows(folder).values(), key=lambda row: row["text_len"])
    kept = arrays(folder, longest)
    report = speech_retokenize(folder, max_text_tokens=longest["text_len"] - 1)
    assert (report.num_failed, report.num_done, report.exit_code) == (1, 2, 3)
    assert report.failure_kinds == {"text_too_long": 1}
    assert f"has {longest['text_len']} tokens" in report.failures[0].reason
    assert longest["id"] not in rows(folder)
    assert [(line["id"], line["kind"]) for line in lines(folder / "failures.jsonl")] == [
        (longest["id"], "text_too_long")
    ]
    assert (stats(folder)["total"], stats(folder)["failed"]) == (2, {"text_too_long": 1})
    assert not [path for path in tree(folder) if path.endswith(f"/{longest['id']}.npy")]
    assert not list(verify_files(open_reader(folder)))
    for name in ("codes", "condition", "emo_vec"):
        there = np.load(folder / ".woodshed" / "kept" / longest[f"{name}_path"])
        np.testing.assert_array_equal(there, kept[name])
    again = speech_retokenize(folder)
    assert (again.num_failed, again.num_changed, again.is_written, again.exit_code) == (1, 0, False, 3)
    summary = run(models, manifest, folder, max_text_tokens=longest["text_len"] - 1)
    assert (summary.num_new, summary.num_failed) == (0, 1)
    back = speech_retokenize(folder, max_text_tokens=600)
    assert (back.num_back, back.num_done, back.num_failed, back.exit_code) == (1, 3, 0, 0)
    before["settings.json"] |= {"max_text_tokens": 600, "output_dir": str(folder)}
    assert state(folder) == before
    assert open_reader(folder).totals == totals


def test_a_row_that_is_made_again_spends_what_was_kept(folder: Path, models: Path, manifest: Path) -> None:
    before = features(folder)
    longest = max(row["text_len"] for row in rows(folder).values())
    speech_retokenize(folder, max_text_tokens=longest - 1)
    assert list((folder / ".woodshed" / "kept").rglob("*.npy"))
    summary = run(models, manifest, folder, retry_failed=True)
    assert (summary.num_new, summary.num_done) == (1, 3)
    assert not list((folder / ".woodshed" / "kept").rglob("*.npy"))
    assert_same_features(features(folder), before, tolerance=1e-5)


def test_rows_that_failed_before_are_told(models: Path, tmp_path: Path) -> None:
    table = rows_of(write_clips(tmp_path / "data", SECONDS))
    table[0] = {**table[0], "text": "spk 1: "}  # type: ignore[dict-item]
    manifest = write_manifest(tmp_path / "data" / "manifest.jsonl", ["not JSON", *table])
    folder = tmp_path / "features"
    assert run(models, manifest, folder).num_failed == 2
    told = lines(folder / "failures.jsonl")
    report = speech_retokenize(folder, text_compat=True)
    assert (report.num_rows, report.num_failed) == (2, 0)
    assert any("1 rows had failed of their text before" in note for note in report.notes)
    assert sorted(map(str, lines(folder / "failures.jsonl"))) == sorted(map(str, told))
    assert stats(folder)["rows_in_source"] == 4


def test_a_tokenizer_that_leaves_no_row_changes_nothing(folder: Path) -> None:
    before = tree(folder)
    with pytest.raises(UsageError, match=r"of the 3 rows of .* none would be left, such as 'utt_000': .* tokens"):
        speech_retokenize(folder, max_text_tokens=1)
    assert tree(folder) == before
    assert len(rows(folder)) == 3
    assert not speech_retokenize(folder).is_written


# What it works on


def test_both_releases(models: Path, manifest: Path, new: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    checkpoints = (models / "gpt.pth", models / "2.5" / "gpt.pth")
    run(models, manifest, folder, target="both", gpt_checkpoint=checkpoints)
    before = tree(folder)
    report = speech_retokenize(folder, tokenizer=(new,))
    vocabulary = models / "multilingual_zh_ja_yue_char_del.tiktoken"
    assert report.tokenizers == (str(new), str(vocabulary))
    changed = {path for path, digest in tree(folder).items() if before[path] != digest}
    assert {path for path in changed if path.endswith(".npy")} == {f"2.0/text_ids/utt_{n:03d}.npy" for n in range(3)}
    own = with_pairs(vocabulary, tmp_path / "own.tiktoken")
    report = speech_retokenize(folder, tokenizer=(own, new))
    assert report.tokenizers == (str(new), str(own))
    changed = {path for path, digest in tree(folder).items() if before[path] != digest}
    assert len({path for path in changed if path.startswith("2.5/text_ids")}) == 3
    settings = {"target": "both", "gpt_checkpoint": checkpoints, "tokenizer": (new, own)}
    run(models, manifest, tmp_path / "fresh", **settings)
    assert tree(folder, but=["stats.json"]) == tree(tmp_path / "fresh", but=["stats.json"])
    assert run(models, manifest, folder, **settings).num_new == 0


def test_release_25(models: Path, manifest: Path, tmp_path: Path) -> None:
    folder, own = tmp_path / "features", tmp_path / "own.tiktoken"
    gpt = (models / "2.5" / "gpt.pth",)
    run(models, manifest, folder, target="2.5", gpt_checkpoint=gpt, **_config_of_25(models))
    with_pairs(models / "multilingual_zh_ja_yue_char_del.tiktoken", own)
    report = speech_retokenize(folder, tokenizer=(own,))
    assert report.num_changed == 3
    for row in rows(folder).values():
        assert arrays(folder, row)["text_ids"].shape == (row["text_len"],)


def _config_of_25(models: Path) -> dict[str, Any]:
    """A config for 2.5 beside the other models."""
    config = yaml.safe_load((models / "config.yaml").read_text())
    (models / "config25.yaml").write_text(yaml.safe_dump({**config, "version": 2.5, "semantic_codec": {}}))
    return {"config": models / "config25.yaml"}


def test_what_it_cannot_work_on(folder: Path, models: Path, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a Woodshed output folder"):
        speech_retokenize(tmp_path / "nothing")
    run(models, manifest, tmp_path / "shards", layout="shards")
    with pytest.raises(UsageError, match="has the layout shards"):
        speech_retokenize(tmp_path / "shards")
    with pytest.raises(ModelError, match=r"no\.model"):
        speech_retokenize(folder, tokenizer=(tmp_path / "no.model",))
    with pytest.raises(ModelError, match=r"tiktoken; sentencepiece was expected"):
        speech_retokenize(folder, tokenizer=(models / "multilingual_zh_ja_yue_char_del.tiktoken",))
    with open_store(open_reader(folder)), pytest.raises(StoreError, match="another run is writing"):
        speech_retokenize(folder)


def test_the_command(folder: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speech", "retokenize", str(folder), "--tokenizer", str(new), "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert main(["speech", "retokenize", str(folder), "--tokenizer", str(new)]) == 0
    told = capsys.readouterr().out
    assert "with other text ids  3" in told
    assert "woodshed verify" in told
    assert main(["speech", "retokenize", str(folder), "--tokenizer", str(new), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_written"] is False
    assert main(["speech", "retokenize", str(folder), "--max-text-tokens", "10"]) == 3
    assert "text_too_long" in capsys.readouterr().out


# Whatever stops it


@pytest.fixture
def with_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Disk], None]:
    """Stores are opened on this disk from now on."""
    return lambda disk: monkeypatch.setattr("woodshed.store.store.Disk", lambda: disk)


def disturbed(folder: Path, new: Path, limit: int) -> RetokenizeReport:
    """A run that gives new text ids, lets a row go and another one come back."""
    return speech_retokenize(folder, tokenizer=(new,), max_text_tokens=limit)


@pytest.fixture
def start(folder: Path, new: Path) -> tuple[Path, int]:
    """A folder with a row that was put away, and the limit under which another one is."""
    lengths = {row["id"]: row["text_len"] for row in rows(folder).values()}
    speech_retokenize(folder, max_text_tokens=max(lengths.values()) - 1)
    counted = {row_id: _length(new, TEXTS[int(row_id[-1])]) for row_id in lengths}
    away = max(lengths, key=lambda row_id: lengths[row_id])
    limit = counted[away]
    return folder, limit


def _length(model: Path, text: str) -> int:
    return len(sentencepiece.SentencePieceProcessor(model_file=str(model)).EncodeAsIds(text.upper()))


def copies(folder: Path, below: Path) -> Iterator[Path]:
    for number in range(10_000):
        yield shutil.copytree(folder, below / str(number) / "features")


def check_untorn(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whoever opens the folder next finds the old state or the new one; tells which."""
    with open_store(open_reader(folder)):
        pass
    found = state(folder)
    assert found in (before, after)
    reader = open_reader(folder)
    assert not list(verify_files(reader))
    for row in rows(folder).values():
        assert arrays(folder, row)["text_ids"].shape == (row["text_len"],)
    assert not list((folder / ".woodshed" / "tmp").iterdir())
    return bool(found == after)


@pytest.mark.parametrize("code", [None, pytest.param(errno.ENOSPC, marks=pytest.mark.slow)])
def test_stopped_at_every_call(
    start: tuple[Path, int],
    new: Path,
    tmp_path: Path,
    with_disk: Callable[[Disk], None],
    code: int | None,
) -> None:
    folder, limit = start
    each = copies(folder, tmp_path / "copies")
    before = state(folder)
    counter = CountingDisk()
    with_disk(counter)
    undisturbed = next(each)
    disturbed(undisturbed, new, limit)
    after = state(undisturbed)
    assert after != before
    outcomes = []
    for k in range(counter.calls):
        torn = next(each)
        with_disk(CountingDisk(k, code=code))
        with pytest.raises(Killed if code is None else StoreError):
            disturbed(torn, new, limit)
        with_disk(Disk())
        look = open_reader(torn)
        is_new = look.fingerprint != open_reader(folder).fingerprint
        lengths = {entry.id: entry.records[0].facts["lengths"] for entry in look.entries() if entry.records}
        assert is_new == (
            lengths != {e.id: e.records[0].facts["lengths"] for e in open_reader(folder).entries() if e.records}
        )
        outcomes.append(check_untorn(torn, before, after))
        disturbed(torn, new, limit)
        assert state(torn) == after
        shutil.rmtree(torn)
    # First nothing has happened, then, from one call on, everything has.
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


@pytest.mark.slow
def test_power_cut(start: tuple[Path, int], new: Path, tmp_path: Path, with_disk: Callable[[Disk], None]) -> None:
    folder, limit = start
    each = copies(folder, tmp_path / "copies")
    before = state(folder)
    counter = CountingDisk()
    with_disk(counter)
    undisturbed = next(each)
    disturbed(undisturbed, new, limit)
    after = state(undisturbed)
    for k in range(counter.calls):
        torn = next(each)
        disk = PowerCutDisk(torn.parent, k)
        with_disk(disk)
        with pytest.raises(Killed):
            disturbed(torn, new, limit)
        disk.cut_power(Random(k))
        with_disk(Disk())
        check_untorn(torn, before, after)
        disturbed(torn, new, limit)
        assert state(torn) == after
        shutil.rmtree(torn)


def test_a_run_with_the_old_tokenizer_after_a_kill_is_refused(
    folder: Path, new: Path, models: Path, manifest: Path, with_disk: Callable[[Disk], None], tmp_path: Path
) -> None:
    counter = CountingDisk()
    with_disk(counter)
    speech_retokenize(shutil.copytree(folder, tmp_path / "counted"), tokenizer=(new,))
    with_disk(CountingDisk(counter.calls - 3))
    with pytest.raises(Killed):
        speech_retokenize(folder, tokenizer=(new,))
    with_disk(Disk())
    with pytest.raises(OtherRunError, match=r"text\.2\.0\.tokenizer"):
        run(models, manifest, folder)
    assert run(models, manifest, folder, tokenizer=(new,)).num_new == 0
    assert state(folder)["run.json"] == identity(tmp_path / "counted")["run.json"]
