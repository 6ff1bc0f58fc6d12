from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

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


def test_without_a_terminal_nothing_is_asked() -> None:
    assert consented(GIVEN, stops(Stop("overwrite"))) is GIVEN
