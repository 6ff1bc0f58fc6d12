"""`woodshed analyze`, ended at any moment, goes on from what it measured and comes to the map of an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.analyze_fixtures import OWN, analyze, encoded, hidden, spoil
from woodshed.importance.kept_draws import draws_path

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded(tmp_path_factory.mktemp("songs"))


def ended(folder: Path, latents: Path, *more: str, **order: Any) -> dict[str, Any]:
    """Ends runs with a signal, and asserts that the last one gives what an undisturbed run gives."""
    flags = ["--dataset-dir", str(latents), "--backend", OWN["backend"], "--device", "cpu", "--crop-s", "2", *more]
    given = {"flags": flags, "output": str(folder / "map.json"), "undisturbed": str(folder / "undisturbed.json"),
             "seed": 0, "delay_s": 0.2} | order  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.jobs.killing_analysis", json.dumps(given)],
        check=False, capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["code"] == 0, report["log"]
    made, expected = folder / "map.json", folder / "undisturbed.json"
    assert made.read_bytes() == expected.read_bytes()
    assert draws_path(made).read_bytes() == draws_path(expected).read_bytes()
    assert hidden(folder) == [], "what was measured is not kept twice"
    return report


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="alone"),
        pytest.param(("--reference", "permuted"), id="with a reference", marks=pytest.mark.slow),
    ],
)
def test_killed_runs_go_on(tmp_path: Path, latents: Path, more: tuple[str, ...]) -> None:
    flags = ["--runs", "60", "--max-relative-error", "0.001", *more]
    report = ended(tmp_path, latents, *flags, signal="SIGKILL", ends=3)
    draws = [each["draws"] for each in report["rounds"]]
    assert [each["code"] for each in report["rounds"]] == [-9, -9, -9]
    assert draws == sorted(set(draws)), "each run was further than the one before"
    assert 0 < draws[0] < 360
    assert not any(each["wrote_map"] for each in report["rounds"])
    assert f"going on after {draws[-1]} looks of an earlier run" in report["log"]


def test_a_run_that_is_asked_to_stop_says_how_far_it_came(tmp_path: Path, latents: Path) -> None:
    flags = ["--runs", "60", "--max-relative-error", "0.001"]
    report = ended(tmp_path, latents, *flags, signal="SIGINT", ends=1)
    (only,) = report["rounds"]
    assert only["code"] == 130
    assert not only["wrote_map"]
    assert "stopped by SIGINT" in report["log"]
    assert "the same command goes on from here" in report["log"]


def test_other_ranks_are_asked_of_what_was_measured(tmp_path: Path, latents: Path) -> None:
    """An analysis that was stopped can be gone on with for other ranks: draws do not depend on them."""
    script = (
        "import os, signal, sys, woodshed.importance.analysis as a; a.COMMIT_EVERY_S = 0.0\n"
        "from woodshed.cli.main import main\n"
        "before = a.Analysis._check\n"
        "def check(self):\n"
        "    before(self)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "a.Analysis._check = check\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["analyze", "--dataset-dir", str(latents), "--backend", OWN["backend"], "--device", "cpu", "--crop-s", "2",
             "--runs", "4", "--output", str(tmp_path / "map.json")]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run([sys.executable, "-c", script, *words], check=False, cwd=ROOT, env=env)
    assert first.returncode == 143
    (kept,) = hidden(tmp_path)
    second = [sys.executable, "-m", "woodshed", *words, "--rank", "8", "--rank-min", "4", "--rank-max", "32"]
    done = subprocess.run(second, check=True, capture_output=True, text=True, cwd=ROOT, env=env)
    assert "going on after 16 looks" in done.stderr
    assert not kept.exists()


def test_songs_that_failed_are_told_by_the_run_that_writes_the_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It need not be the run that looked at them: this one died when all was measured."""
    latents = encoded(tmp_path, count=4)
    spoil(latents, "song 1")
    with monkeypatch.context() as dying:
        dying.setattr("woodshed.jobs.analyze.write_map", lambda *_: (_ for _ in ()).throw(RuntimeError("dies")))
        with pytest.raises(RuntimeError, match="dies"):
            analyze(latents, **OWN)
    report = analyze(latents, **OWN)
    assert report.map.total_batches == 9
    assert report.exit_code == 3
