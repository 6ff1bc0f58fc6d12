from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pexpect
import pytest

import woodshed
from woodshed.cli.consent import consented
from woodshed.errors import UsageError
from woodshed.jobs.analyze_settings import AnalyzeSettings

GIVEN = AnalyzeSettings(dataset_dir=Path("x"), rank=32)


@dataclass(frozen=True)
class Stop:
    kind: Literal["turbo", "overwrite", "checkpoint"]
    question: str = "go on?"


def stops(*gates: Stop) -> Callable[[AnalyzeSettings], Sequence[Stop]]:
    return lambda settings: gates


def answers(*said: str) -> Callable[[str], str]:
    waiting = list(said)
    return lambda question: waiting.pop(0)


def test_each_answer_opens_its_gate() -> None:
    gates = stops(Stop("checkpoint"), Stop("turbo"), Stop("overwrite"))
    made = consented(GIVEN, gates, ask=answers("models\n", "y\n", "YES\n"))
    assert made == AnalyzeSettings(dataset_dir=Path("x"), rank=32, checkpoint_dir="models", accept_turbo=True, yes=True)


@pytest.mark.parametrize("answer", ["\n", "n\n", "nope\n"])
@pytest.mark.parametrize("kind", ["turbo", "overwrite"])
def test_anything_but_yes_stops(kind: Literal["turbo", "overwrite"], answer: str) -> None:
    with pytest.raises(UsageError, match="stopped before anything was done"):
        consented(GIVEN, stops(Stop(kind)), ask=answers(answer))


def test_an_answer_that_raises_a_question_is_followed_by_it() -> None:
    def gates(settings: AnalyzeSettings) -> Sequence[Stop]:
        if settings.checkpoint_dir is None:
            return (Stop("checkpoint"),)
        return () if settings.accept_turbo else (Stop("turbo"),)

    assert consented(GIVEN, gates, ask=answers("turbo-model\n", "y\n")).accept_turbo
    # A question that stays open is not put twice: what is missing is for the job to say.
    assert consented(GIVEN, gates, ask=answers("\n")).checkpoint_dir is None


def test_a_terminal_is_asked_on_stderr_before_a_map_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    old = tmp_path / "data" / "fisher_map.json"
    old.write_text("an earlier map")
    command = f"{sys.executable} -m woodshed analyze -d data --backend woodshed-tiny-dit > out.txt"
    env = {"PYTHONPATH": str(Path(woodshed.__file__).parents[1]), "PATH": os.environ["PATH"]}
    terminal = pexpect.spawn("/bin/sh", ["-c", command], cwd=str(tmp_path), env=env, encoding="utf-8", timeout=60)
    terminal.expect_exact("Write over it? [y/N]")
    terminal.sendline("n")
    terminal.expect_exact("stopped before anything was done")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 2
    assert old.read_text() == "an earlier map"
    assert (tmp_path / "out.txt").read_text() == ""


def test_without_a_terminal_nothing_is_asked() -> None:
    assert consented(GIVEN, stops(Stop("overwrite"))) is GIVEN
