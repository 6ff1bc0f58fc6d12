"""`woodshed inspect` and `woodshed decode` on folders of `woodshed speech`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.speech_fixtures import run, shared_models, stats
from tests.jobs.tiny_indextts import rows_of, write_clips, write_manifest
from woodshed.cli.main import main
from woodshed.jobs import inspect
from woodshed.jobs.report import SpeechInspectReport, to_json
from woodshed.jobs.settings import InspectSettings

SECONDS = (1.0, 2.5, 0.7, 16.2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_models(tmp_path_factory)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    good = [{**row, "language": "en"} for row in rows_of(write_clips(folder, SECONDS)) if isinstance(row, dict)]
    bad = {"id": "gone", "text": "Nothing to hear", "audio": "wavs/none.wav"}
    odd = {**good[0], "id": "odd", "text": "a ☃ b", "speaker": ""}
    return write_manifest(folder / "manifest.jsonl", [*good, odd, bad, good[0]])


def make(models: Path, manifest: Path, folder: Path, **more: Any) -> Path:
    if more.get("target") == "both":
        more["gpt_checkpoint"] = (models / "gpt.pth", models / "2.5" / "gpt.pth")
    run(models, manifest, folder, val_ratio=0.4, **more)
    return folder


def inspected(folder: Path, limit: int = 10) -> SpeechInspectReport:
    report = inspect.run(InspectSettings(folder=folder, limit=limit))
    assert isinstance(report, SpeechInspectReport)
    return report


def test_a_fresh_reader_learns_what_is_in_the_folder(models: Path, manifest: Path, tmp_path: Path) -> None:
    folder = make(models, manifest, tmp_path / "out", target="both")
    report, of_20, of_25 = inspected(folder, limit=2), stats(folder / "2.0"), stats(folder / "2.5")
    assert (report.command, report.layout, report.num_rows) == ("woodshed speech", "indextts", 7)
    assert (report.num_train, report.num_val) == (of_20["train"], of_20["val"])
    assert report.num_train + report.num_val == len(SECONDS) + 1
    assert (dict(report.failed), dict(report.skipped)) == ({"missing": 1}, {"duplicate": 1})
    assert (report.speakers["count"], report.speakers["rows_without"]) == (2, 1)
    assert (report.hours, dict(report.languages)) == (of_20["hours"], {"en": 5})
    assert report.unknown_tokens["characters"] == {"☃": 1}
    assert [release.release for release in report.releases] == ["2.0", "2.5"]
    assert [release.codes_per_second for release in report.releases] == [50, 25]
    assert [release.lengths for release in report.releases] == [of_20["lengths"], of_25["lengths"]]
    assert report.releases[0].gpt_checkpoint.endswith("gpt.pth")
    columns = {column.name: column for column in report.columns}
    assert list(columns)[:4] == [f"2.0/{name}/<id>.npy" for name in ("text_ids", "codes", "condition", "emo_vec")]
    longest = of_20["lengths"]["code_len"]["max"]
    assert columns["2.0/codes/<id>.npy"].shapes == f"{of_20['lengths']['code_len']['min']}..{longest}"
    assert columns["2.0/codes/<id>.npy"].meaning == "2.0: semantic codes, 50 per second, 0..31"
    assert columns["2.5/codes/<id>.npy"].meaning == "2.5: semantic codes, 25 per second, 0..47"
    assert columns["2.0/condition/<id>.npy"].shapes == "5 x 20"
    assert columns["2.5/speaker_vec/<id>.npy"].meaning.endswith("of the first 15 s")
    assert [record.id for record in report.records] == ["utt_000", "utt_001"]
    assert (report.records[1].duration_s, report.records[1].speaker) == (2.5, "s1")
    assert all(len(digest) == 12 for role, digest in report.models.items() if role != "layer")
    assert json.loads(json.dumps(to_json(report)))["exit_code"] == 0


@pytest.mark.parametrize("layout", ["indextts", "shards"])
def test_codes_of_whisper_are_said_to_be_no_others(models: Path, manifest: Path, tmp_path: Path, layout: str) -> None:
    folder = make(
        models, manifest, tmp_path / "out", semantic="whisper", tokenizer=(models / "bpe.model",), layout=layout
    )
    report = inspected(folder)
    assert "not IndexTTS2's own" in report.semantic
    assert report.absent == ("condition", "emo_vec")
    place = "{}/<id>.npy" if layout == "indextts" else "{}"
    assert [column.name for column in report.columns] == [place.format("text_ids"), place.format("codes")]
    assert len(report.records) == len(SECONDS) + 1


def test_the_page_names_what_matters(
    models: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(models, manifest, tmp_path / "out")
    assert main(["inspect", str(folder), "--limit", "3"]) == 0
    page = capsys.readouterr().out
    for told in (
        "woodshed speech, for IndexTTS 2.0",
        "7 in the source, 5 done",
        "1 (missing 1)",
        "1 (duplicate 1)",
        "2, 1 rows without: s0 2, s1 2",
        "en 5",
        "in 1 rows: ☃",
        "50 per second, of 32",
        "semantic codes, 50 per second, 0..31",
        "emotion vector of the first 15 s",
    ):
        assert told in page, told
    assert main(["inspect", str(folder), "--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"][0]["text"] == "Hello, is this the 2nd one?"


def test_manifests_behind_the_log_are_a_note(models: Path, manifest: Path, tmp_path: Path) -> None:
    folder = make(models, manifest, tmp_path / "out")
    assert inspected(folder).notes == ("failures.jsonl names each failed row and why; --retry-failed tries them again",)
    (folder / "stats.json").unlink()
    assert "the manifests are not those of the log" in inspected(folder).notes[0]


def test_codes_of_a_speech_model_are_not_decoded(
    models: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(models, manifest, tmp_path / "out")
    assert main(["decode", str(folder)]) == 2
    told = capsys.readouterr().err
    assert "holds features for a speech model" in told
    assert "Traceback" not in told
    assert not (tmp_path / "out-decoded").exists()
