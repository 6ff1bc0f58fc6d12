"""Questions that a command asks before it starts, where somebody is there to answer them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

from woodshed.errors import UsageError
from woodshed.jobs.complaints import SomeSettings, checked


@runtime_checkable
class Gate(Protocol):
    """Something that a job goes past only when it is told to."""

    @property
    def kind(self) -> Literal["turbo", "overwrite", "checkpoint"]: ...
    @property
    def question(self) -> str:
        """What to ask; for `checkpoint` the answer is a folder, for the others yes or no."""
        ...


CONSENT = {"turbo": "accept_turbo", "overwrite": "yes"}
"""Kind of a gate -> the setting that opens it."""


def is_interactive() -> bool:
    """Whether somebody can be asked. Questions go to stderr, as stdout may be a file."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def consented(
    settings: SomeSettings,
    gates_of: Callable[[SomeSettings], Sequence[Gate]],
    *,
    ask: Callable[[str], str] | None = None,
) -> SomeSettings:
    """The settings with what a person has answered; without a terminal the settings as they are, and the job judges.

    Args:
        settings: of the job.
        gates_of: what the job would stop at.
        ask: puts a question and gives back the answer; the terminal, where it is not given.

    Raises:
        UsageError: the answer is no.
    """
    if ask is None:
        if not is_interactive():
            return settings
        ask = _asked
    asked = set[str]()
    # One answer can lead to another question: which checkpoint it is says whether it is a Turbo model.
    while (gate := next((gate for gate in gates_of(settings) if gate.kind not in asked), None)) is not None:
        asked.add(gate.kind)
        given = {name: getattr(settings, name) for name in settings.model_fields_set}
        settings = checked(type(settings), {**given, **_answered(gate, ask)})
    return settings


def _answered(gate: Gate, ask: Callable[[str], str]) -> dict[str, object]:
    if gate.kind == "checkpoint":
        checkpoint = ask(f"{gate.question} ").strip()
        return {"checkpoint_dir": checkpoint} if checkpoint else {}
    if ask(f"{gate.question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise UsageError("stopped before anything was done, as the answer was no", hint=_instead(gate))
    return {CONSENT[gate.kind]: True}


def _instead(gate: Gate) -> str:
    if gate.kind == "overwrite":
        return "--output puts the map elsewhere"
    return "--model base, or a checkpoint folder that holds base"


def _asked(question: str) -> str:
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        raise UsageError("the input ended before an answer", hint="answer in the terminal, or give the flags")
    return answer
