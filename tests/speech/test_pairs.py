"""Pairs: what the trainer reads, balanced, seeded, and every row accounted for."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.speech.trainer_reader import STOP_CODE, STOP_TEXT, collate, read_pairs
from woodshed.cli.show_speech_pairs import lines_of
from woodshed.errors import UsageError
from woodshed.jobs.complaints import checked
from woodshed.jobs.speech_pairs import PairsReport, run
from woodshed.jobs.speech_pairs_settings import SpeechPairsSettings
from woodshed.speech.pairs import FeatureTable, PairRules, pair_record, plan_pairs, speaker_from_name

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "indextts2" / "pure_functions.json").read_text())


def row(row_id: str, speaker: str = "anna", **columns: object) -> dict[str, Any]:
    number = sum(row_id.encode())
    return {
        "id": row_id,
        "audio_path": f"wavs/{row_id}.wav",
        "text": f"text of {row_id}",
        "speaker": speaker,
        "language": "am",
        "duration": None,
        "text_ids_path": f"text_ids/{row_id}.npy",
        "text_len": 1 + number % 5,
        "codes_path": f"codes/{row_id}.npy",
        "code_len": 1 + number % 7,
        "condition_path": f"condition/{row_id}.npy",
        "condition_len": 4,
        "emo_vec_path": f"emo_vec/{row_id}.npy",
    } | columns


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any] | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def write_arrays(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    for record in rows:
        arrays = {
            "text_ids_path": np.arange(record["text_len"], dtype=np.int32),
            "codes_path": np.arange(record["code_len"], dtype=np.int32) + 8000,
            "condition_path": np.ones((4, 6), np.float32),
            "emo_vec_path": np.full(6, sum(record["id"].encode()), np.float32),
        }
        for column, array in arrays.items():
            (folder / record[column]).parent.mkdir(exist_ok=True)
            np.save(folder / record[column], array)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train = [row(f"t{n}", speaker) for n, speaker in enumerate("aaaabbbbbc")]
    val = [row(f"v{n}", speaker) for n, speaker in enumerate("aab")]
    for name, rows in (("train", train), ("val", val)):
        write_manifest(tmp_path / f"data/{name}_manifest.jsonl", rows)
        write_arrays(tmp_path / "data", rows)
    return tmp_path / "data"


def pairs_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def call(source: Path, **options: Any) -> PairsReport:
    return run(checked(SpeechPairsSettings, {"source": source, **options}))


def test_both_manifests_of_a_folder(folder: Path) -> None:
    report = call(folder)
    train, val = report.files
    assert (train.num_rows, train.num_targets, train.num_pairs, train.num_speakers) == (10, 9, 18, 2)
    assert (train.left_out, train.output) == ({"alone": 1}, str(folder / "gpt_pairs_train.jsonl"))
    assert (val.num_rows, val.num_targets, val.num_pairs) == (3, 2, 2)
    assert (report.exit_code, report.notes) == (0, ())
    pairs = pairs_of(folder / "gpt_pairs_train.jsonl")
    assert all(pair["prompt_id"] != pair["target_id"] for pair in pairs)
    assert max(Counter(pair["target_id"] for pair in pairs).values()) == 2
    assert len({pair["id"] for pair in pairs}) == 18
    assert not list(folder.glob(".*"))


def test_the_trainer_reads_the_pairs(folder: Path) -> None:
    call(folder)
    examples = read_pairs(folder / "gpt_pairs_train.jsonl", condition_shape=(4, 6))
    assert len(examples) == 18
    assert {example.language for example in examples} == {"am"}
    for example, pair in zip(examples, pairs_of(folder / "gpt_pairs_train.jsonl"), strict=True):
        assert example.emo_vec[0] == sum(pair["prompt_id"].encode())
    batch = collate(examples[:3])
    for line, example in enumerate(examples[:3]):
        assert (batch["codes"][line, example.code_len :] == STOP_CODE).all()
        assert (batch["text_ids"][line, example.text_len :] == STOP_TEXT).all()


@pytest.mark.parametrize("place", ["deep/er/out", "link/out", "."])
def test_feature_paths_hold_from_where_the_pairs_lie(folder: Path, place: str) -> None:
    (folder.parent / "far/away").mkdir(parents=True)
    (folder.parent / "link").symlink_to("far/away")
    output = folder.parent / place
    call(folder, output=output)
    assert len(read_pairs(output / "gpt_pairs_train.jsonl")) == 18
    one = output / "one.jsonl"
    call(folder / "val_manifest.jsonl", output=one)
    assert len(read_pairs(one)) == 2


def test_absolute_feature_paths_stay(folder: Path) -> None:
    rows = [row(f"t{n}") for n in range(3)]
    for record in rows:
        record["codes_path"] = str(folder / record["codes_path"])
    write_manifest(folder / "train_manifest.jsonl", rows)
    call(folder / "train_manifest.jsonl", output=folder.parent / "out/pairs.jsonl")
    pairs = pairs_of(folder.parent / "out/pairs.jsonl")
    assert {pair["target_codes_path"] for pair in pairs} == {record["codes_path"] for record in rows}
    assert {pair["target_text_ids_path"] for pair in pairs} == {f"../data/text_ids/t{n}.npy" for n in range(3)}


def test_compat_records_equal_the_known_answers() -> None:
    known = GOLDEN["pairs"]
    records = {record["id"]: record for record in known["records"]}
    compared = 0
    for case in known["cases"]:
        for pair in case["pairs"]:
            if pair["target_id"] in records and pair["prompt_id"] in records:
                made = pair_record(
                    records[pair["target_id"]],
                    records[pair["prompt_id"]],
                    speaker=pair["speaker"],
                    with_language=False,
                )
                assert json.dumps(made) == json.dumps(pair)
                compared += 1
    assert compared > 5


def test_compat_runs_pair_whom_the_original_pairs(tmp_path: Path) -> None:
    known = GOLDEN["pairs"]
    manifest = write_manifest(tmp_path / "m.jsonl", known["records"])
    (made,) = call(manifest, compat=True).files
    pairs = pairs_of(tmp_path / "m_pairs.jsonl")
    assert made.output == str(tmp_path / "m_pairs.jsonl")
    assert all(list(pair) == list(known["cases"][0]["pairs"][0]) for pair in pairs)
    speakers = {pair["target_id"]: pair["speaker"] for case in known["cases"] for pair in case["pairs"]}
    assert all(pair["speaker"] == speakers[pair["target_id"]] for pair in pairs)
    groups = Counter(speakers[record["id"]] for record in known["records"] if record["id"] in speakers)
    assert {pair["speaker"] for pair in pairs} <= set(groups)
    # u12 has no codes: a prompt, but no target.
    assert "u12" not in {pair["target_id"] for pair in pairs}
    assert made.left_out["too_short"] == 1


@pytest.mark.parametrize("case", GOLDEN["speaker_inference"], ids=lambda case: case["record"]["audio_path"])
def test_speakers_from_names_equal_the_known_answers(case: dict[str, Any]) -> None:
    found = speaker_from_name(case["record"]["audio_path"])
    assert found == (case["out"] if isinstance(case["out"], str) else None)


def test_rows_without_a_speaker_are_counted_or_guessed(folder: Path) -> None:
    rows = [row(f"bob_{n}", "", audio_path=f"w/bob_{n}.wav") for n in range(3)]
    write_manifest(folder / "train_manifest.jsonl", [*rows, row("x", "eve"), row("y", "eve")])
    report = call(folder / "train_manifest.jsonl")
    assert report.files[0].left_out == {"no_speaker": 3}
    assert report.notes == (
        "3 rows of train_manifest.jsonl have no speaker and are left out: --speaker-from-name guesses from file names",
    )
    report = call(folder / "train_manifest.jsonl", speaker_from_name=True)
    assert (report.files[0].num_targets, dict(report.files[0].left_out)) == (5, {})
    assert {pair["speaker"] for pair in pairs_of(folder / "gpt_pairs_train.jsonl")} == {"bob", "eve"}


def test_the_order_of_rows_does_not_matter_and_the_seed_does(folder: Path) -> None:
    rows = [row(f"t{n:02}", "ab"[n % 2]) for n in range(40)]
    outputs = []
    for name, order, seed in (("one", 0, 2025), ("two", 1, 2025), ("three", 0, 7)):
        random.Random(order).shuffle(rows)
        write_manifest(folder / "train_manifest.jsonl", rows)
        call(folder / "train_manifest.jsonl", output=folder / f"{name}.jsonl", seed=seed, max_pairs=50)
        outputs.append((folder / f"{name}.jsonl").read_bytes())
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]


def test_a_limit_is_shared_by_the_speakers(folder: Path) -> None:
    sizes = {"a": 2, "b": 10, "c": 30}
    rows = [row(f"{name}{n:02}", name) for name, size in sizes.items() for n in range(size)]
    manifest = write_manifest(folder / "train_manifest.jsonl", rows)
    output = folder / "gpt_pairs_train.jsonl"
    (made,) = call(manifest, max_pairs=22).files
    assert Counter(pair["speaker"] for pair in pairs_of(output)) == {"a": 2, "b": 10, "c": 10}
    assert made.num_rows == made.num_targets + sum(made.left_out.values())
    # First a pair for as many targets as possible: no target has two while another has none.
    assert max(Counter(pair["target_id"] for pair in pairs_of(output)).values()) == 1
    call(manifest, max_per_speaker=25)
    assert Counter(pair["speaker"] for pair in pairs_of(output)) == {"a": 2, "b": 20, "c": 25}
    (made,) = call(manifest, max_per_speaker=1).files
    assert (made.num_pairs, made.left_out) == (3, {"over_limit": 39})


def test_a_speaker_with_most_of_the_pairs_is_named(folder: Path) -> None:
    rows = [
        row(f"{name}{n:02}", name)
        for name, size in {"a": 30, **dict.fromkeys("bcdefghij", 2)}.items()
        for n in range(size)
    ]
    report = call(write_manifest(folder / "train_manifest.jsonl", rows))
    assert report.notes == ("speaker 'a' has 77% of the pairs of train_manifest.jsonl: --max-per-speaker limits that",)


def test_minima_are_for_targets_only(folder: Path) -> None:
    rows = [row("a", text_len=5, code_len=9), row("b", text_len=4, code_len=9), row("c", text_len=5, code_len=8)]
    manifest = write_manifest(folder / "train_manifest.jsonl", rows)
    (made,) = call(manifest, min_text_len=5, min_code_len=9).files
    assert (made.num_targets, made.num_pairs, made.left_out) == (1, 2, {"too_short": 2})
    assert {pair["prompt_id"] for pair in pairs_of(folder / "gpt_pairs_train.jsonl")} == {"b", "c"}


def test_validation_without_pairs_is_told_and_leaves_no_old_file(folder: Path) -> None:
    call(folder)
    assert (folder / "gpt_pairs_val.jsonl").exists()
    write_manifest(folder / "val_manifest.jsonl", [row("v", "b"), row("w", "c")])
    report = call(folder)
    assert report.exit_code == 0
    assert (report.files[1].num_pairs, report.files[1].output) == (0, None)
    assert not (folder / "gpt_pairs_val.jsonl").exists()
    assert report.notes == (
        "val_manifest.jsonl gives no pairs (2 are alone with their speaker), so gpt_pairs_val.jsonl is not written",
        "--val-prompts-from-train lets training rows of the same speaker be the prompts for validation",
    )
    write_arrays(folder, [row("v", "b"), row("w", "c")])
    report = call(folder, val_prompts_from_train=True)
    assert report.files[1].num_targets == 2
    val = pairs_of(folder / "gpt_pairs_val.jsonl")
    assert {pair["prompt_id"][0] for pair in val} == {"t"}
    assert len(read_pairs(folder / "gpt_pairs_val.jsonl")) == len(val)
    assert all(pair["target_id"] in ("v", "w") for pair in val)
    assert not {"v", "w"} & {pair["prompt_id"] for pair in pairs_of(folder / "gpt_pairs_train.jsonl")}


def test_a_folder_without_validation(folder: Path) -> None:
    (folder / "val_manifest.jsonl").unlink()
    report = call(folder)
    assert len(report.files) == 1
    assert report.notes[0].endswith("holds no val_manifest.jsonl: there are no pairs for validation")
    write_manifest(folder / "val_manifest.jsonl", [])
    assert call(folder).notes[0].startswith("val_manifest.jsonl gives no pairs (there is none)")


def test_a_damaged_manifest_is_accounted_for(folder: Path) -> None:
    lines: list[Mapping[str, Any] | bytes] = [
        row("a"),
        row("b"),
        row("a"),
        b"",
        {"speaker": "anna"},
        row("c", codes_path=""),
        row("d", condition_path=None),
        json.dumps(row("e")).encode()[:50],
    ]
    report = call(write_manifest(folder / "train_manifest.jsonl", lines))
    (made,) = report.files
    assert made.left_out == {"bad_row": 2, "duplicate": 1, "no_features": 1}
    assert (made.num_rows, made.num_targets, report.exit_code, report.num_failed) == (7, 3, 3, 2)
    assert [(failure.id, failure.line) for failure in report.failures] == [
        ("train_manifest.jsonl:5", 5),
        ("train_manifest.jsonl:8", 8),
    ]
    pairs = pairs_of(folder / "gpt_pairs_train.jsonl")
    assert {pair["target_id"] for pair in pairs} == {"a", "b", "d"}
    assert {pair["prompt_id"] for pair in pairs} == {"a", "b", "c"}


def test_nothing_is_written_when_training_has_no_pairs(folder: Path) -> None:
    write_manifest(folder / "train_manifest.jsonl", [row("a", ""), row("b", "x")])
    with pytest.raises(UsageError, match=r"of its 2 rows, 1 are alone with their speaker, 1 have no speaker .*--sp"):
        call(folder)
    assert not list(folder.glob("gpt_pairs*"))


@pytest.mark.parametrize("output", ["train_manifest.jsonl", "val_manifest.jsonl", "codes"])
def test_no_file_but_pairs_is_written_over(folder: Path, output: str) -> None:
    mine = folder / "codes/gpt_pairs_train.jsonl"
    mine.write_text("mine\n")
    before = {path: path.read_bytes() for path in (*folder.glob("*.jsonl"), mine)}
    with pytest.raises(UsageError, match=r"exists and is no file of pairs .*choose another --output"):
        call(folder / "train_manifest.jsonl", output=folder / output)
    assert {path: path.read_bytes() for path in (*folder.glob("*.jsonl"), mine)} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere"}, "the manifest .*nowhere cannot be read: No such file"),
        ({"source": "data/codes"}, "holds no train_manifest.jsonl .*output folder of"),
        ({"source": "data", "output": "pairs.jsonl"}, "names one file, but .* gives two"),
        ({"source": "data/train_manifest.jsonl", "val_prompts_from_train": True}, "no training manifest beside"),
        ({"source": "data", "pairs_per_target": 0}, "--pairs-per-target is 0, but must be at least 1"),
    ],
)
def test_what_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    paths = {key: folder.parent / value if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(UsageError, match=message):
        call(**paths)


@settings(max_examples=60, deadline=None)
@given(
    speakers=st.lists(st.sampled_from("abc"), min_size=1, max_size=14),
    per_target=st.integers(1, 4),
    max_per_speaker=st.none() | st.integers(1, 6),
    max_pairs=st.none() | st.integers(1, 12),
)
def test_every_plan_keeps_its_rules(
    tmp_path_factory: pytest.TempPathFactory,
    speakers: list[str],
    per_target: int,
    max_per_speaker: int | None,
    max_pairs: int | None,
) -> None:
    rows = [row(f"r{n}", name) for n, name in enumerate(speakers)]
    path = write_manifest(tmp_path_factory.mktemp("any") / "m.jsonl", rows)
    rules = PairRules(pairs_per_target=per_target, max_per_speaker=max_per_speaker, max_pairs=max_pairs)
    with FeatureTable(path, rules) as table:
        plan = plan_pairs(table, rules)
    sizes = Counter(speakers)
    full = {name: size * min(per_target, size - 1) for name, size in sizes.items() if size > 1}
    assert plan.num_rows == plan.num_targets + sum(plan.left_out.values())
    assert len({(pair.target.id, pair.prompt.id) for pair in plan.pairs}) == len(plan.pairs)
    for pair in plan.pairs:
        assert pair.target.id != pair.prompt.id
        assert speakers[int(pair.target.id[1:])] == speakers[int(pair.prompt.id[1:])] == pair.speaker
    capped = {name: min(count, max_per_speaker or count) for name, count in full.items()}
    assert len(plan.pairs) == min(sum(capped.values()), max_pairs or 10**9)
    for name, count in capped.items():
        got = plan.speakers.get(name, 0)
        assert got <= count
        # Whoever lacks some has as many as anyone, but for what cannot be divided.
        assert got == count or got >= max(plan.speakers.values()) - 1


def test_the_report_for_people(folder: Path) -> None:
    write_manifest(folder / "val_manifest.jsonl", [b"{", row("v", "b")])
    report = call(folder)
    console = Console(file=io.StringIO(), width=200)
    console.print(lines_of(report))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "done, but 1 lines could not be read" in text
    assert "not written" in text
    assert "line 1 of val_manifest.jsonl is not valid JSON" in text
    assert "gpt_pairs_train.jsonl" in text
    assert report.to_json()["exit_code"] == 3
