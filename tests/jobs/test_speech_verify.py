"""`woodshed verify` and `--repair` on folders of `woodshed speech`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.jobs.speech_fixtures import lines, run, shared_models, stats, tree
from tests.jobs.tiny_indextts import rows_of, write_clips, write_manifest
from woodshed.errors import StoreError
from woodshed.jobs import verify
from woodshed.jobs.encode import Silent
from woodshed.jobs.report import VerifyReport
from woodshed.jobs.settings import VerifySettings
from woodshed.jobs.speech_verify import array_problems
from woodshed.store.folder import Lock
from woodshed.store.reader import open_reader

SECONDS = (1.0, 2.5, 0.7, 1.6, 0.9, 1.3)
VARIANTS: dict[str, dict[str, Any]] = {
    "2.0": {"target": "2.0"},
    "both": {"target": "both"},
    "shards": {"target": "2.0", "layout": "shards"},
    "whisper": {"semantic": "whisper"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_models(tmp_path_factory)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of six good rows, one without a sound, one twice, and a line that is no JSON."""
    folder = tmp_path_factory.mktemp("data")
    good = rows_of(write_clips(folder, SECONDS))
    missing = {"id": "gone", "text": "Nothing to hear", "audio": "wavs/none.wav"}
    return write_manifest(folder / "manifest.jsonl", [*good[:2], "{torn", *good[2:], missing, good[0]])


class Made:
    """Folders as runs left them, one of a sort."""

    def __init__(self, models: Path, data: Path, home: Path) -> None:
        self._models, self._data, self._home = models, data, home

    def more(self, variant: str) -> dict[str, Any]:
        more: dict[str, Any] = {"val_ratio": 0.4, **VARIANTS[variant]}
        if variant == "both":
            more["gpt_checkpoint"] = (self._models / "gpt.pth", self._models / "2.5" / "gpt.pth")
        if variant == "whisper":
            more["tokenizer"] = (self._models / "bpe.model",)
        return more

    def pristine(self, variant: str) -> Path:
        folder = self._home / variant
        if not folder.exists():
            run(self._models, self._data, folder, **self.more(variant))
        return folder

    def copy(self, variant: str, to: Path) -> Path:
        return shutil.copytree(self.pristine(variant), to)

    def run_again(self, variant: str, folder: Path) -> None:
        run(self._models, self._data, folder, **self.more(variant))


@pytest.fixture(scope="module")
def made(models: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(models, data, tmp_path_factory.mktemp("made"))


def verified(folder: Path, **more: Any) -> VerifyReport:
    return verify.run(VerifySettings(folder=folder, device="cpu", **more), observer=Silent())


def flip(path: Path, offset: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_as_a_run_left_it_is_sound(made: Made, variant: str) -> None:
    report = verified(made.pristine(variant), reencode=2)
    assert (report.num_problems, report.problems, report.exit_code) == (0, (), 0)
    assert (report.num_records, report.num_reencoded) == (len(SECONDS), 2)
    assert report.source_s == pytest.approx(sum(SECONDS))
    assert report.covered_s == report.source_s
    assert report.max_difference is not None
    assert report.max_difference < 1e-4
    assert "at most 0.00% of the text ids or codes differ" in report.notes[0]


Damage = Callable[[Path], None]


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(f"{line}\n" for line in change(path.read_text(encoding="utf-8").splitlines())))


def swap_sides(folder: Path) -> None:
    moved = (folder / "train_manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rewrite(folder / "train_manifest.jsonl", lambda rows: rows[1:])
    rewrite(folder / "val_manifest.jsonl", lambda rows: [*rows, moved[0]])


DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "a flipped bit": (lambda folder: flip(folder / "codes" / "utt_001.npy"), "checksum", "was committed"),
    "a missing file": (lambda folder: (folder / "emo_vec" / "utt_002.npy").unlink(), "missing", "were committed"),
    "a cut file": (lambda folder: (folder / "text_ids" / "utt_002.npy").write_bytes(b""), "size", "0 bytes"),
    "a stranger": (lambda folder: np.save(folder / "codes" / "x.npy", np.zeros(3)), "foreign", "not made by a"),
    "a row left out": (
        lambda folder: rewrite(folder / "train_manifest.jsonl", lambda rows: rows[1:]),
        "manifest", "is done, but stands in no manifest",
    ),
    "a row twice": (
        lambda folder: rewrite(folder / "val_manifest.jsonl", lambda rows: [*rows, rows[0]]),
        "manifest", "again",
    ),
    "a torn line": (
        lambda folder: rewrite(folder / "val_manifest.jsonl", lambda rows: [rows[0][:20], *rows[1:]]),
        "manifest", "line 1 of val_manifest.jsonl is not a row",
    ),
    "an edited length": (
        lambda folder: rewrite(
            folder / "train_manifest.jsonl", lambda rows: [rows[0].replace('"code_len": ', '"code_len": 1'), *rows[1:]]
        ),
        "manifest", "has other values than the log: code_len: 1",
    ),
    "a row on the other side": (swap_sides, "manifest", "belongs in train_manifest.jsonl"),
    "a strange row": (
        lambda folder: rewrite(
            folder / "train_manifest.jsonl", lambda rows: [*rows, rows[0].replace('"id": "', '"id": "x')]
        ),
        "manifest", "is not done",
    ),
    "another order": (
        lambda folder: rewrite(folder / "train_manifest.jsonl", lambda rows: rows[::-1]),
        "manifest", "in another order or spelling",
    ),
    "no manifest": (lambda folder: (folder / "val_manifest.jsonl").unlink(), "manifest", "stands in no manifest"),
    "an edited count": (
        lambda folder: (folder / "stats.json").write_text(
            (folder / "stats.json").read_text().replace('"total": 6', '"total": 7')
        ),
        "manifest", "stats.json differs from what the log says: total: 7 -> 6",
    ),
    "no stats": (lambda folder: (folder / "stats.json").write_text("{"), "manifest", "is not JSON"),
    "no accounts": (lambda folder: (folder / "failures.jsonl").unlink(), "manifest", "rows that gave nothing"),
    "old progress": (
        lambda folder: rewrite(folder / ".preprocessing_progress.txt", lambda rows: rows[1:]),
        "manifest", "does not list the rows that are done",
    ),
    "a broken plan": (
        lambda folder: flip(next((folder / ".woodshed" / "plan").glob("*.jsonl")), 30), "checksum", "is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(made: Made, tmp_path: Path, name: str) -> None:
    damage, kind, reason = DAMAGES[name]
    folder = made.copy("2.0", tmp_path / "out")
    damage(folder)
    report = verified(folder)
    assert report.exit_code == 1
    assert any(problem.kind == kind and reason in problem.reason for problem in report.problems), report.problems


@pytest.mark.parametrize(
    ("array", "change", "told"),
    [
        ("codes", lambda values: np.where(np.arange(len(values)) == 3, 32, values).astype(np.int32), "reach from"),
        ("codes_25", lambda values: values - 50, "there are 48 of them"),
        ("text_ids", lambda values: values + 10_000, "but there are 260 of them"),
        ("text_ids_25", lambda values: values[:-1], "but the log knows of"),
        ("codes", lambda values: values.astype(np.int64), "expected int32 with axes frame"),
        ("condition", lambda values: values * np.float32(np.nan), "holds NaN"),
        ("condition", lambda values: values[:, :-1], "bytes, not"),
        ("emo_vec_25", lambda values: values[:0], "is empty"),
        ("speaker_vec_25", lambda _: None, "is missing"),
    ],
)
def test_arrays_that_no_trainer_could_use_are_told(
    made: Made, array: str, change: Callable[[np.ndarray], np.ndarray | None], told: str
) -> None:
    reader = open_reader(made.pristine("both"))
    (record,) = reader.log.records("utt_001")
    arrays = reader.arrays(record)
    assert list(array_problems(arrays, reader, record.facts)) == []
    changed = change(np.array(arrays.pop(array)))
    spoilt = arrays if changed is None else {**arrays, array: changed}
    assert any(array in reason and told in reason for reason in array_problems(spoilt, reader, record.facts))


def test_every_row_of_the_manifest_is_accounted_for(made: Made, data: Path, tmp_path: Path) -> None:
    folder = made.copy("2.0", tmp_path / "out")
    home = shutil.copytree(data.parent, tmp_path / "moved")
    late = {"id": "late", "text": "One more", "audio": "wavs/clip_000.wav"}
    with (home / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps(late) + "\n")
    soundfile.write(home / "wavs" / "clip_002.wav", np.full(16_000, 0.1), 16_000)
    report = verified(folder, source=home / "manifest.jsonl")
    assert {(problem.id, problem.kind) for problem in report.problems} == {("late", "missing"), ("utt_002", "coverage")}
    changed = verified(folder, source=home / "manifest.jsonl", reencode=len(SECONDS))
    assert {problem.id for problem in changed.problems if problem.kind == "reencode"} == {"utt_002"}


def test_a_manifest_out_of_reach_is_a_note(made: Made, tmp_path: Path) -> None:
    folder = made.copy("2.0", tmp_path / "out")
    settings = folder / ".woodshed" / "settings.json"
    settings.write_text(settings.read_text().replace("manifest.jsonl", "nowhere.jsonl"))
    report = verified(folder)
    assert (report.num_problems, report.source_s) == (0, 0.0)
    assert "--source" in report.notes[0]


def test_models_out_of_reach_or_others_are_a_note(made: Made, models: Path, tmp_path: Path) -> None:
    folder = made.copy("2.0", tmp_path / "out")
    settings = folder / ".woodshed" / "settings.json"
    plain = json.loads(settings.read_text())
    settings.write_text(json.dumps({**plain, "config": str(tmp_path / "none" / "config.yaml")}))
    gone = verified(folder, reencode=2)
    assert (gone.num_problems, gone.num_reencoded) == (0, 0)
    assert "nothing was made again" in gone.notes[0]
    settings.write_text(json.dumps({**plain, "semantic_layer": 1}))
    other = verified(folder, reencode=2)
    assert (other.num_problems, other.num_reencoded) == (0, 0)
    assert "models.layer" in other.notes[0]
    assert models.is_dir()


@pytest.mark.parametrize("variant", ["2.0", "both", "shards"])
def test_a_repaired_folder_that_ran_again_is_as_if_never_damaged(
    made: Made, models: Path, tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made.copy(variant, tmp_path / "out")
    arrays = sorted(path for path in folder.rglob("*.npy") if path.stem in ("utt_001", "utt_004"))
    for number, path in enumerate(arrays):
        path.unlink() if number % 2 else flip(path)
    for shard in folder.glob("shards/*.safetensors"):
        flip(shard)
    root = folder / "2.0" if variant == "both" else folder
    (root / "train_manifest.jsonl").write_text("")
    (root / "stats.json").write_text(json.dumps({**stats(root), "hours": 7}))
    (folder / ".woodshed" / "tmp" / "left").write_bytes(b"by a crash")
    lost = {"utt_001", "utt_004"} if variant != "shards" else {f"utt_{number:03d}" for number in range(len(SECONDS))}

    with monkeypatch.context() as without_models:
        without_models.setattr("woodshed.jobs.speech_verify.make_encoder", None)
        repaired = verified(folder, repair=True)
    assert repaired.exit_code == 3
    assert (repaired.num_taken_back, repaired.num_mended) == (len(lost), repaired.num_problems)
    assert f"{len(lost)} items were damaged and wait to be made again; run: woodshed speech --" in repaired.notes[-1]
    assert f"--output-dir {folder} " in f"{repaired.notes[-1]} ", "where it lies now"
    assert not any(path.exists() for path in arrays)
    assert not (folder / ".woodshed" / "tmp" / "left").exists()
    left = {row["id"] for side in ("train", "val") for row in lines(root / f"{side}_manifest.jsonl")}
    assert left == {f"utt_{number:03d}" for number in range(len(SECONDS))} - lost
    told = {failure["id"]: (failure["kind"], failure["line"]) for failure in lines(folder / "failures.jsonl")}
    assert told["gone"] == ("missing", 8)
    assert {name for name, (kind, _) in told.items() if kind == "taken_back"} == lost

    again = verified(folder)
    assert (again.num_problems, again.exit_code, again.num_records) == (0, 0, len(SECONDS) - len(lost))
    made.run_again(variant, folder)
    whole = verified(folder)
    assert (whole.num_problems, whole.num_records, whole.notes) == (0, len(SECONDS), ())
    assert tree(folder) == tree(made.pristine(variant))
    assert models.is_dir()


def test_repairing_what_is_sound_changes_nothing(made: Made, tmp_path: Path) -> None:
    folder = made.copy("both", tmp_path / "out")
    commits = sorted((folder / ".woodshed" / "commits").iterdir())
    report = verified(folder, repair=True)
    assert (report.exit_code, report.num_mended, report.num_taken_back) == (0, 0, 0)
    assert tree(folder) == tree(made.pristine("both"))
    assert sorted((folder / ".woodshed" / "commits").iterdir()) == commits


def test_a_stranger_stays_and_is_told(made: Made, tmp_path: Path) -> None:
    folder = made.copy("2.0", tmp_path / "out")
    np.save(folder / "codes" / "x.npy", np.zeros(3))
    (folder / "stats.json").unlink()
    report = verified(folder, repair=True)
    assert (report.exit_code, report.num_problems, report.num_mended) == (1, 2, 1)
    assert "cannot mend" in report.notes[-1]
    assert (folder / "codes" / "x.npy").exists()
    assert stats(folder)["total"] == len(SECONDS)


def test_a_folder_that_is_written_to_is_not_repaired(made: Made, tmp_path: Path) -> None:
    folder = made.copy("2.0", tmp_path / "out")
    lock = Lock(folder)
    try:
        with pytest.raises(StoreError, match="another run is writing"):
            verified(folder, repair=True)
    finally:
        lock.release()
