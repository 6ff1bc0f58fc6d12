"""Killed with SIGKILL at random moments, the real command ends in the tree of an undisturbed run, byte for byte."""

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

import woodshed
from tests.jobs.conftest import GOLDEN, sound, tree

ROOT = Path(__file__).parents[2]
VAE = ["--model-config", str(GOLDEN / "models/tiny_vae.json"), "--ckpt-path", str(GOLDEN / "models/tiny_vae.ckpt")]
both_layouts = pytest.mark.parametrize("layout", ["stable_audio", "shards"])


def make_sounds(folder: Path, count: int) -> Path:
    """Short clips of several rates and lengths, captions, and three files that fail."""
    rng = np.random.default_rng(count)
    for number in range(count):
        path = folder / f"album {number % 3}" / f"{number:02d}.{('wav', 'flac', 'ogg')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds, rate_hz = float(rng.uniform(0.02, 2.0)), (44_100, 22_050, 48_000)[number % 3]
        soundfile.write(path, sound(seconds, rate_hz, 1 + number % 2, seed=number), rate_hz)
        if number % 4 == 0:
            path.with_suffix(".txt").write_text(f"take {number}")
    (folder / "empty.wav").write_bytes(b"")
    cut = (folder / "album 0" / "00.wav").read_bytes()
    (folder / "cut.wav").write_bytes(cut[: len(cut) // 2])
    soundfile.write(folder / "nan.wav", np.full((4_000, 2), np.nan), 44_100, subtype="FLOAT")
    return folder


def order(
    folder: Path, flags: list[str], *, kills: int, seed: int = 0, start: Path | None = None, in_planning: bool = False
) -> dict[str, Any]:
    """What the process that kills is told: a run below `folder`, undisturbed once and then under fire."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "flags": [*flags, "--device", "cpu", "--num-workers", "2"], "output": str(folder / "out"), "kills": kills,
        "undisturbed": str(folder / "undisturbed"), "seed": seed, "start": None if start is None else str(start),
        "in_planning": in_planning, "codes": [3],
    }  # fmt: skip


def killed(*orders: dict[str, Any]) -> list[dict[str, Any]]:
    """Carries the orders out, and asserts that every folder ends as the undisturbed one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.jobs.killing", json.dumps(orders)],
        check=False, capture_output=True, text=True, timeout=900, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    for given, report in zip(orders, reports, strict=True):
        print({name: report[name] for name in ("kills", "rounds", "phases", "life_s")})
        assert report["kills"] == given["kills"]
        expected = tree(Path(given["undisturbed"]))
        assert len(expected) > 1
        for name in report["folders"]:
            made = tree(Path(name))
            assert made.keys() == expected.keys(), name
            assert [file for file in made if made[file] != expected[file]] == [], name
            assert list((Path(name) / ".woodshed" / "tmp").iterdir()) == []
    return reports


def test_a_few_kills(tmp_path: Path) -> None:
    flags = ["--input", str(make_sounds(tmp_path / "sounds", 18)), "--sample-size", "16384", *VAE]
    *_, planning = killed(
        order(tmp_path / "files", [*flags, "--layout", "stable_audio"], kills=3),
        order(tmp_path / "shards", [*flags, "--layout", "shards"], kills=3),
        order(tmp_path / "planning", flags, kills=5, in_planning=True),
    )
    assert sum(planning["phases"].values()) == 5, "five kills hit, wherever this machine was by then"


@pytest.mark.slow
@both_layouts
def test_thirty_kills(tmp_path: Path, layout: str) -> None:
    source = make_sounds(tmp_path / "sounds", 60)
    flags = ["--input", str(source), "--sample-size", "16384", "--layout", layout, *VAE]
    (report,) = killed(order(tmp_path, flags, kills=30, seed=1))
    assert len(report["phases"]) >= 3, "the kills are spread over the run's life"


@pytest.mark.parametrize(
    ("layout", "kills"),
    [("shards", 2), *(pytest.param(layout, 30, marks=pytest.mark.slow) for layout in ("stable_audio", "shards"))],
)
def test_kills_while_new_and_changed_sources_are_encoded(tmp_path: Path, layout: str, kills: int) -> None:
    source = make_sounds(tmp_path / "sounds", 18)
    other = shutil.copytree(source, tmp_path / "other" / "sounds")
    for number in (3, 8, 13):
        path = next(other.rglob(f"{number:02d}.*"))
        soundfile.write(path, sound(1.3, 44_100, 2, seed=100 + number), 44_100)
    next(other.rglob("05.*")).with_suffix(".txt").write_text("a caption that was not there")
    next(other.rglob("06.*")).write_bytes(b"spoilt")
    next(other.rglob("07.*")).unlink()
    soundfile.write(other / "nan.wav", sound(0.5, 44_100, 2, seed=9), 44_100)
    make_sounds(other / "new", 10)
    flags = ["--sample-size", "16384", "--layout", layout, *VAE]
    first = order(tmp_path / "first", ["--input", str(source), *flags], kills=0)
    start = Path(first["undisturbed"])
    second = order(tmp_path / "second", ["--input", str(other), *flags], kills=kills, start=start, seed=2)
    killed(first, second)
    assert tree(start).keys() != tree(Path(second["undisturbed"])).keys()


@both_layouts
def test_a_mended_row_keeps_its_place_when_the_run_that_planned_it_dies(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row failed before it was ever planned, so the log knows no position of it."""
    source = make_sounds(tmp_path / "sounds", 4)
    spoilt = source / "album 1" / "01.json"
    outputs = [tmp_path / "undisturbed", tmp_path / "disturbed"]
    settings = {"model_config_path": VAE[1], "ckpt_path": VAE[3], "layout": layout, "sample_size": 16384}
    spoilt.write_text("no JSON")
    for output in outputs:
        woodshed.encode(source, output, device="cpu", **settings)
    spoilt.write_text("{}")
    woodshed.encode(source, outputs[0], device="cpu", **settings)
    with monkeypatch.context() as dying:
        dying.setattr("woodshed.run.engine.Engine.run", lambda *_: (_ for _ in ()).throw(RuntimeError("dies")))
        with pytest.raises(RuntimeError, match="dies"):
            woodshed.encode(source, outputs[1], device="cpu", **settings)
    assert woodshed.encode(source, outputs[1], device="cpu", **settings).num_new == 1
    assert tree(outputs[0]) == tree(outputs[1])


@pytest.mark.slow
def test_kills_with_the_embedded_model(tmp_path: Path) -> None:
    source = make_sounds(tmp_path / "sounds", 12)
    killed(order(tmp_path, ["--input", str(source), "--layout", "shards"], kills=5))
