"""`woodshed verify --repair` on folders of `woodshed encode`: damaged files, shards and staging, and what a run makes
of the folder afterwards."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.jobs.conftest import tree
from woodshed.contracts import Progress
from woodshed.jobs import verify
from woodshed.jobs.encode import Silent, encode, run
from woodshed.jobs.report import PlanReport, VerifyReport
from woodshed.jobs.settings import EncodeSettings, VerifySettings
from woodshed.store.reader import open_reader

Model = Callable[[str], dict[str, Path]]


def verified(folder: Path, **more: Any) -> VerifyReport:
    return verify.run(VerifySettings(folder=folder, device="cpu", **more), observer=Silent())


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(3))
def test_files_that_are_damaged_anywhere_come_back_as_they_were(
    sounds: Path, tmp_path: Path, model: Model, seed: int
) -> None:
    encode(sounds, tmp_path / "out", **model("tiny_vae"))
    whole = shutil.copytree(tmp_path / "out", tmp_path / "whole")
    rng = np.random.default_rng(seed)
    files = [path for path in sorted((tmp_path / "out").rglob("*.*")) if ".woodshed" not in path.parts]
    files = [path for path in files if path.suffix in (".npy", ".json") and path.name != "details.json"]
    for index in rng.permutation(len(files))[:4]:
        if rng.random() < 0.3:
            files[index].unlink()
        else:
            flip(files[index], int(rng.integers(files[index].stat().st_size)))
    repaired = verified(tmp_path / "out", repair=True)
    assert repaired.exit_code == 3
    assert 1 <= repaired.num_taken_back <= 4
    assert "run: woodshed encode --model-config" in repaired.notes[-1]
    assert verified(tmp_path / "out").num_problems == 0
    encode(sounds, tmp_path / "out", **model("tiny_vae"))
    assert verified(tmp_path / "out").num_problems == 0
    assert tree(tmp_path / "out") == tree(whole)


def test_a_sound_that_cannot_be_decoded_is_not_taken_for_damage_to_the_folder(
    sounds: Path, tmp_path: Path, model: Model
) -> None:
    broken = sounds / "broken.flac"
    soundfile.write(broken, np.random.default_rng(0).standard_normal((100_000, 2)) * 0.1, 44_100)
    content = bytearray(broken.read_bytes())
    for offset in range(len(content) // 3, len(content) // 2):
        content[offset] ^= 0xFF
    broken.write_bytes(content)
    (failure,) = encode(sounds, tmp_path / "out", **model("tiny_vae")).failures
    assert (failure.id, failure.kind) == ("broken.flac", "damaged")

    report = verified(tmp_path / "out", repair=True)
    assert (report.exit_code, report.num_taken_back, report.notes) == (0, 0, ())
    settings = EncodeSettings(input=sounds, output_path=tmp_path / "out", dry_run=True, **model("tiny_vae"))
    plan = run(settings, observer=Silent())
    assert isinstance(plan, PlanReport)
    assert plan.num_planned == 0, "only --retry-failed tries it again"


def unlink_index(folder: Path) -> None:
    next(folder.glob("shards/*.index.json")).unlink()


def cut_data(folder: Path) -> None:
    path = next(folder.glob("shards/*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(next(folder.glob("shards/*.safetensors")), 40),
        lambda folder: flip(next(folder.glob("shards/*.index.json")), 40),
        cut_data,
        unlink_index,
    ],
    ids=["flipped data", "flipped index", "cut data", "no index"],
)
def test_a_damaged_shard_is_given_up_and_made_again(
    sounds: Path, tmp_path: Path, model: Model, damage: Callable[[Path], None]
) -> None:
    shards: dict[str, Any] = {"layout": "shards", **model("tiny_tanh")}
    out = tmp_path / "out"
    encode(sounds, out, **shards)
    whole = shutil.copytree(out, tmp_path / "whole")
    damage(out)
    repaired = verified(out, repair=True)
    assert (repaired.exit_code, repaired.num_taken_back) == (3, 8)
    assert list(out.glob("shards/*")) == []
    assert verified(out).num_problems == 0
    encode(sounds, out, **shards)
    assert tree(out) == tree(whole)
    assert verified(out).num_problems == 0


def test_sound_shards_stay_beside_a_damaged_one(sounds: Path, tmp_path: Path, model: Model) -> None:
    shards: dict[str, Any] = {"layout": "shards", **model("tiny_tanh")}
    out = tmp_path / "out"
    encode(sounds, out, limit_batches=4, **shards)
    encode(sounds, out, **shards)
    first, second = sorted(out.glob("shards/*.safetensors"))
    whole = tree(out)
    flip(first, -3)
    repaired = verified(out, repair=True)
    assert (repaired.exit_code, repaired.num_taken_back) == (3, 4)
    assert sorted(out.glob("shards/*.safetensors")) == [second]
    encode(sounds, out, **shards)
    assert verified(out).num_problems == 0
    assert tree(out) == whole


class _Stopping(Silent):
    """Asks the run to stop, once, when three items are done."""

    has_asked = False

    def progress(self, progress: Progress) -> None:
        if progress.items_done >= 3 and not self.has_asked:
            self.has_asked = True
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_record_that_waits_for_its_shard_is_taken_back_alone(
    sounds: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A quick machine is through with all of them before progress would be shown again.
    monkeypatch.setattr("woodshed.run.engine.PROGRESS_EVERY_S", 0.0)
    shards: dict[str, Any] = {"layout": "shards", "batch_size": 1, "num_workers": 0, **model("tiny_tanh")}
    out = tmp_path / "out"
    encode(sounds, tmp_path / "whole", **shards)
    assert encode(sounds, out, observer=_Stopping(), **shards).stopped_by == "SIGTERM"
    (staged,) = (out / ".woodshed" / "staging").iterdir()
    num_done = open_reader(out).totals.num_done
    assert 1 < num_done < 8, "some wait for the rest of their shard"
    flip(staged, -3)
    repaired = verified(out, repair=True)
    assert (repaired.num_taken_back, open_reader(out).totals.num_done) == (1, num_done - 1)
    encode(sounds, out, **shards)
    assert verified(out).num_problems == 0
    assert tree(out) == tree(tmp_path / "whole")
