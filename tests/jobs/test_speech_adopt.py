"""`woodshed speech` over folders of IndexTTS2's own preprocessing: what is sound stays, the rest is made anew."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

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
from tests.jobs.tiny_indextts import write_models
from tests.speech.original_folder import (
    ARRAYS,
    PROGRESS,
    Original,
    append,
    array,
    change,
    encoder_of,
    lose_ledgers,
    tear,
)
from woodshed.contracts import Summary
from woodshed.errors import StoreError
from woodshed.jobs.encode import Silent
from woodshed.jobs.report import PlanReport, VerifyReport
from woodshed.jobs.settings import VerifySettings
from woodshed.jobs.speech import speech
from woodshed.jobs.verify import run as verify
from woodshed.sources.speech_manifest import read_speech_manifest
from woodshed.store.reader import open_reader

SECONDS = (1.0, 0.7, 1.6, 1.24, 0.5, 1.61)
ROOT = Path(__file__).parents[2]
LEDGERS = ("train_manifest.jsonl", "val_manifest.jsonl", "stats.json", PROGRESS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_models(tmp_path_factory)


@pytest.fixture(scope="module")
def original(models: Path) -> Original:
    return Original(encoder_of(models))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("data"), SECONDS)


@pytest.fixture(scope="module")
def fresh(models: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """What a run without any folder of the original makes."""
    output = tmp_path_factory.mktemp("fresh") / "out"
    run(models, data, output)
    return features(output)


def old_features(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """All arrays that the manifests of an original's folder name."""
    listed = [*lines(folder / "train_manifest.jsonl"), *lines(folder / "val_manifest.jsonl")]
    return {row["id"]: arrays(folder, row) for row in listed}


def ledgers(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in LEDGERS if (folder / name).exists()}


def assert_account(summary: Summary, *, adopted: int, new: int, failed: int = 0, skipped: int = 0) -> None:
    """Every row of the source is in it, and `stats.json` says the same."""
    assert (summary.num_new, summary.num_failed, summary.num_skipped) == (new, failed, skipped)
    assert summary.num_done == adopted + new
    assert summary.num_rows == summary.num_done + failed + skipped
    told = stats(Path(summary.output))
    assert (told["adopted"], told["total"], told["rows_in_source"]) == (adopted, adopted + new, summary.num_rows)


def reasons(summary: Summary) -> dict[str, int]:
    """How many old rows were not kept, by the short word for why."""
    made_anew = [note for note in summary.notes if "are not kept but made anew" in note]
    return {note.rpartition("(")[2].rstrip(")"): int(note.split()[0]) for note in made_anew}


def test_a_folder_of_batch_size_1_is_kept_whole(models: Path, original: Original, data: Path, tmp_path: Path) -> None:
    folder = original.write(tmp_path / "out", data, val_ratio=0.3)
    before, kept = old_features(folder), ledgers(folder)
    summary = run(models, data, folder, val_ratio=0.3)
    assert_account(summary, adopted=6, new=0)
    assert_same_features(features(folder), before, tolerance=0)
    assert ledgers(folder / ".woodshed" / "adopted") == kept
    assert {row["id"] for row in lines(folder / "train_manifest.jsonl")} == {
        json.loads(line)["id"] for line in kept["train_manifest.jsonl"].splitlines()
    }
    assert any("6 rows that IndexTTS2's own preprocessing had made are kept" in note for note in summary.notes)
    records = [record for entry in open_reader(folder).entries() for record in entry.records]
    assert [record.facts["row"]["adopted"] for record in records] == [True] * 6
    content = tree(folder)
    again = run(models, data, folder, val_ratio=0.3)
    assert_account(again, adopted=6, new=0)
    assert tree(folder) == content
    assert not any("preprocessing" in note for note in again.notes), "it is told once"


def test_padded_codes_are_made_anew(
    models: Path, original: Original, data: Path, fresh: dict[str, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """D1 to D3: of a batch of 4 only the longest clip is right."""
    folder = original.write(tmp_path / "out", data, batch_size=4)
    before = old_features(folder)
    assert {len(own["codes"]) for own in before.values()} == {79, 80}
    summary = run(models, data, folder)
    assert_account(summary, adopted=2, new=4)
    assert reasons(summary) == {"padded_codes": 4}
    right = {"utt_002", "utt_005"}
    assert_same_features(
        features(folder),
        {row_id: before[row_id] if row_id in right else fresh[row_id] for row_id in fresh},
        tolerance=1e-5,
    )


def test_under_compat_an_adopted_folder_equals_one_made_from_scratch(
    models: Path, original: Original, data: Path, tmp_path: Path
) -> None:
    texts = {"text_compat": False}
    folder = original.write(tmp_path / "out", data, batch_size=4)
    run(models, data, tmp_path / "scratch", compat=True, **texts)
    summary = run(models, data, folder, compat=True, **texts)
    assert_account(summary, adopted=2, new=4)
    assert_same_features(features(folder), features(tmp_path / "scratch"), tolerance=1e-5)
    assert not any("24 kHz" in note for note in summary.notes), "under --compat all rows go that way"


def test_all_kinds_of_damage_are_seen(
    models: Path, original: Original, data: Path, fresh: dict[str, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """D11, D12, D15, D16, D22: torn or missing files, NaN; rows listed twice, in both manifests, only as progress."""
    folder = original.write(tmp_path / "out", data)
    before = old_features(folder)
    tear(array(folder, "codes", "utt_000"), keep_bytes=6)
    array(folder, "condition", "utt_001").unlink()
    change(array(folder, "condition", "utt_002"), first=np.nan)
    train = folder / "train_manifest.jsonl"
    listed = train.read_text(encoding="utf-8").splitlines()
    append(train, listed[3])
    append(folder / "val_manifest.jsonl", listed[3])
    train.write_text("\n".join([*train.read_text(encoding="utf-8").splitlines()[:4], listed[3], listed[5][:70]]))
    summary = run(models, data, folder)
    assert_account(summary, adopted=3, new=3)
    assert reasons(summary) == {"missing": 1, "not_finite": 1, "unreadable": 1}
    made_anew = {"utt_000", "utt_001", "utt_002"}
    wanted = {row_id: fresh[row_id] if row_id in made_anew else before[row_id] for row_id in fresh}
    assert_same_features(features(folder), wanted, tolerance=1e-5)
    assert sorted(path.name for path in folder.rglob("*.npy")) == sorted(
        f"{name}.npy" for name in fresh for _ in ARRAYS
    )


def test_ids_that_are_paths_are_not_followed(models: Path, original: Original, tmp_path: Path) -> None:
    """D18: `a/b` lies in sub-folders and moves to a safe name; `../../x` and absolute ids lie elsewhere, and stay."""
    data = data_set(tmp_path / "data", SECONDS[:4])
    outside = tmp_path / "elsewhere" / "absolute"
    text = data.read_text(encoding="utf-8").replace("utt_001", "a/b")
    text = text.replace("utt_002", "../../x").replace("utt_003", str(outside))
    data.write_text(text, encoding="utf-8")
    outside.parent.mkdir()
    folder = original.write(tmp_path / "deep" / "out", data)
    escaped = tmp_path / "deep" / "x.npy"
    assert escaped.exists()
    assert outside.with_suffix(".npy").exists()
    untouched = escaped.read_bytes(), outside.with_suffix(".npy").read_bytes()
    before = original.alone(next(iter(items_of(data, "a/b"))))
    summary = run(models, data, folder)
    assert_account(summary, adopted=2, new=2)
    assert (escaped.read_bytes(), outside.with_suffix(".npy").read_bytes()) == untouched
    made = features(folder)
    assert_same_features({"a/b": made["a/b"]}, {"a/b": before}, tolerance=0)
    assert rows(folder)["a/b"]["codes_path"] == "codes/a%2fb.npy"
    for name in ARRAYS:
        assert sorted(path.name for path in (folder / name).iterdir()) == sorted(
            Path(row[f"{name}_path"]).name for row in rows(folder).values()
        )


def test_files_under_names_that_might_be_ours_stay_and_are_told(
    models: Path, original: Original, tmp_path: Path
) -> None:
    data = data_set(tmp_path / "data", SECONDS[:2])
    data.write_text(data.read_text(encoding="utf-8").replace("utt_001", "100%"), encoding="utf-8")
    folder = original.write(tmp_path / "out", data)
    summary = run(models, data, folder)
    assert_account(summary, adopted=1, new=1)
    assert rows(folder)["100%"]["codes_path"] == "codes/100%25.npy"
    (told,) = (note for note in summary.notes if "stay where they are" in note)
    assert told.startswith("4 of the folder's old files")
    assert "such as text_ids/100%.npy" in told
    assert (folder / "codes" / "100%.npy").exists()


def items_of(manifest: Path, row_id: str) -> list[Any]:
    return [row for row in read_speech_manifest(str(manifest), language=None) if row.id == row_id]


def test_leftover_workers_are_taken_in(models: Path, original: Original, data: Path, tmp_path: Path) -> None:
    """D22: what the multi-process variant did not merge, a row that is in both, and files of another data set."""
    folder = original.write(tmp_path / "out", data, ids=["utt_000", "utt_001"])
    original.write(folder / "worker_00", data, ids=["utt_001", "utt_002"])
    original.write(folder / "worker_01", data, batch_size=2, ids=["utt_003", "utt_004"])
    np.save(array(folder / "worker_01", "codes", "stranger"), np.zeros(3, np.int32))
    kept = {name: ledgers(folder / name) for name in ("worker_00", "worker_01")}
    summary = run(models, data, folder)
    assert_account(summary, adopted=4, new=2)
    assert reasons(summary) == {"padded_codes": 1}
    assert not (folder / "worker_00").exists()
    assert [path.name for path in (folder / "worker_01").rglob("*.npy")] == ["stranger.npy"]
    assert ledgers(folder / "worker_01") == kept["worker_01"]
    assert {name: ledgers(folder / ".woodshed" / "adopted" / name) for name in kept} == kept
    (told,) = (note for note in summary.notes if "belong to no row of the source" in note)
    assert told.startswith("1 of the folder's old files")
    assert told.endswith("such as worker_01/codes/stranger.npy")
    assert not any("stranger" in note for note in run(models, data, folder).notes)


def test_lost_manifests_are_made_up_for_by_skip_existing(
    models: Path, original: Original, data: Path, tmp_path: Path
) -> None:
    """D12: files without a list are opened, checked, and get their manifest rows."""
    folder = original.write(tmp_path / "out", data)
    lose_ledgers(folder)
    tear(array(folder, "codes", "utt_003"), keep_bytes=6)
    array(folder, "condition", "utt_004").unlink()
    shutil.copytree(folder, tmp_path / "without")
    summary = run(models, data, folder, skip_existing=True)
    assert_account(summary, adopted=4, new=2)
    assert len(rows(folder)) == 6
    plain = run(models, data, tmp_path / "without")
    assert_account(plain, adopted=0, new=6)
    assert reasons(plain) == {"unlisted": 6}
    assert any("--skip-existing looks at such rows too" in note for note in plain.notes)


@pytest.mark.parametrize("place", ["", "worker_00"])
def test_a_folder_of_other_checkpoints_is_refused_untouched(
    models: Path, original: Original, data: Path, place: str, tmp_path: Path
) -> None:
    other = Original(encoder_of(write_models(tmp_path / "models", seed=1)))
    folder = original.write(tmp_path / "out", data, ids=["utt_000", "utt_001"])
    other.write(folder / place, data, ids=["utt_002", "utt_003"] if place else [])
    before = tree(folder)
    with pytest.raises(StoreError) as error:
        run(models, data, folder)
    assert error.value.message.startswith(f"{folder} was made with other checkpoints: of row 'utt_00")
    assert f"({place + '/' if place else ''}codes/utt_00" in error.value.message
    assert "codes are those of this run's models, condition differs by " in error.value.message
    assert error.value.message.endswith("nothing was changed")
    assert "choose another output folder" in (error.value.hint or "")
    assert tree(folder) == before
    assert not (folder / ".woodshed").exists()


def test_other_conditioning_weights_are_noticed(models: Path, original: Original, data: Path, tmp_path: Path) -> None:
    """The same codes, and a condition that is a little off."""
    folder = original.write(tmp_path / "out", data)
    for path in (folder / "condition").iterdir():
        np.save(path, np.load(path) + np.float32(0.08))
    with pytest.raises(StoreError, match=r"condition differs by 0\.0"):
        run(models, data, folder)


def test_another_tokenizer_or_source_is_refused_untouched(
    models: Path, original: Original, data: Path, tmp_path: Path
) -> None:
    folder = original.write(tmp_path / "out", data)
    for path in (folder / "text_ids").iterdir():
        np.save(path, np.load(path) + 1)
    before = tree(folder)
    with pytest.raises(StoreError, match=r"another tokenizer or other text rules.*text_ids/utt_00\d\.npy holds \["):
        run(models, data, folder)
    assert tree(folder) == before
    elsewhere = data_set(tmp_path / "elsewhere", (0.5,))
    elsewhere.write_text(elsewhere.read_text(encoding="utf-8").replace("utt_000", "stranger"), encoding="utf-8")
    with pytest.raises(StoreError, match=r"holds 6 rows of .*, and none of them is in this manifest"):
        run(models, elsewhere, folder)
    assert tree(folder) == before
    assert not (folder / ".woodshed").exists()


def test_runs_that_make_something_else_and_foreign_folders_are_refused(
    models: Path, original: Original, data: Path, tmp_path: Path
) -> None:
    folder = original.write(tmp_path / "out", data, ids=["utt_000"])
    with pytest.raises(StoreError, match=r"knows --layout indextts only; this run makes shards"):
        run(models, data, folder, layout="shards")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").touch()
    with pytest.raises(StoreError, match=r"is not empty and was not made by Woodshed: it holds letter\.txt"):
        run(models, data, tmp_path / "foreign")


def test_references_longer_than_allowed_are_made_anew(models: Path, original: Original, tmp_path: Path) -> None:
    """D4: the original's reference is the whole clip; inference hears its beginning."""
    data = data_set(tmp_path / "data", (1.0, 2.1))
    folder = original.write(tmp_path / "out", data)
    shutil.copytree(folder, tmp_path / "compat")
    summary = run(models, data, folder, reference_seconds=2.0)
    assert_account(summary, adopted=1, new=1)
    assert reasons(summary) == {"longer_than_reference": 1}
    kept = run(models, data, tmp_path / "compat", compat=True, text_compat=False)
    assert_account(kept, adopted=2, new=0)


def test_what_a_run_would_refuse_is_not_adopted(models: Path, original: Original, data: Path, tmp_path: Path) -> None:
    """D5: a silent clip, a text and a clip beyond the trainer's tables; their failures are accounted for."""
    data = data_set(tmp_path / "data", SECONDS)
    folder = original.write(tmp_path / "out", data)
    soundfile.write(data.parent / "wavs" / "clip_001.wav", np.zeros(11_200), 16_000)
    summary = run(models, data, folder, max_codes=78, max_text_tokens=17)
    assert summary.failure_kinds == {"silent": 1, "too_long": 2, "text_too_long": 2}
    assert_account(summary, adopted=1, new=0, failed=5)
    assert array(folder, "codes", "utt_002").exists(), "nothing that was produced is lost"


def test_a_dry_run_says_what_it_is_about(models: Path, original: Original, data: Path, tmp_path: Path) -> None:
    folder = original.write(tmp_path / "out", data)
    before = tree(folder)
    (plan,) = speech(data, folder, **settings_of(models), dry_run=True).results
    assert isinstance(plan, PlanReport)
    assert any("a run keeps those of its rows that are sound" in note for note in plan.notes)
    assert tree(folder) == before


def test_an_adopted_folder_verifies_and_adopted_rows_are_made_again_as_the_original_does(
    models: Path, original: Original, data: Path, tmp_path: Path
) -> None:
    folder = original.write(tmp_path / "out", data, batch_size=4)
    run(models, data, folder)
    report = verify(VerifySettings(folder=folder, reencode=6, device="cpu"), observer=Silent())
    assert isinstance(report, VerifyReport)
    assert (report.num_problems, report.num_reencoded) == (0, 6), report.problems


@pytest.mark.slow
def test_killed_adoptions_go_on(models: Path, original: Original, tmp_path: Path) -> None:
    """SIGKILL at random moments, until a start comes to its end: the folder is that of an undisturbed run."""
    kills = 20
    data = data_set(tmp_path / "data", tuple(0.3 + 0.07 * (number % 5) for number in range(40)))
    first, second = ([f"utt_{number:03d}" for number in numbers] for numbers in (range(20), range(20, 40)))
    template = original.write(tmp_path / "template", data, ids=first)
    original.write(template / "worker_00", data, batch_size=2, ids=second)
    words = [sys.executable, "-m", "tests.jobs.killing_adoption", *map(str, (models, data, template, tmp_path, kills))]
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, cwd=ROOT, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert sum(report["phases"].values()) == kills
    wanted = tree(tmp_path / "undisturbed")
    for folder in map(Path, report["folders"]):
        assert tree(folder) == wanted
        assert stats(folder)["total"] == 40
        assert not (folder / "worker_00").exists()
        assert ledgers(folder / ".woodshed" / "adopted") == ledgers(template)
