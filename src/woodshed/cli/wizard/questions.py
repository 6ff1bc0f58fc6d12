"""What a flow of questions is made of: plain values, decided on without a terminal.

A flow is a tuple of steps. The first step that is neither settled nor out of place is asked; its answer gives the next
state. States are kept in a trail, so that going back is taking the last one off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from woodshed.cli.wizard.data import Found
from woodshed.errors import UsageError, WoodshedError
from woodshed.jobs.analyze_report import AnalyzePlan

Kind = Literal["text", "path", "choice", "yes_no"]
UNSET = "-"
"""Answer that takes a value away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One line of a list."""

    value: str
    label: str
    about: str = ""
    """Shown while it is pointed at."""
    section: str = ""
    """Heading that it stands under."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something to ask. Every answer is text: of a list the option's value, of yes or no `y` or `n`."""

    key: str
    """What the answer is remembered by, as the default of the same question."""
    text: str
    help: str
    kind: Kind = "text"
    default: str = ""
    """Taken when the answer is empty; of a list, where the pointer stands."""
    options: tuple[Option, ...] = ()
    preface: str = ""
    """Printed before it."""
    is_optional: bool = False
    """An empty answer without a default will do."""
    is_menu: bool = False
    """Its last answer says nothing about the next one."""


@dataclass(frozen=True, slots=True)
class Back:
    """The answer that goes back to the question before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is known in the middle of a flow."""

    values: Mapping[str, object] = field(default_factory=dict)
    """Settings given so far by their field, as on a command line."""
    settled: frozenset[str] = frozenset()
    """Steps that have nothing to ask any more."""
    editing: str | None = None
    """Field that is being changed from the list of all fields."""
    save_to: Path | None = None
    """Where the command line is about to be written."""
    found: Found | None = None
    """What the folder of data holds."""
    gates: frozenset[str] = frozenset()
    """Kinds of what the job would stop at."""
    plan: AnalyzePlan | None = None
    """What was measured."""
    trouble: str = ""
    """Why nothing could be measured."""
    is_dry: bool = False
    """To be planned only."""

    def given(self, step: str, **values: object) -> State:
        """With a step settled, and fields given."""
        return dataclasses.replace(self, values={**self.values, **values}, settled=self.settled | {step})

    def without(self, *fields: str) -> State:
        """With fields taken away."""
        kept = {name: value for name, value in self.values.items() if name not in fields}
        return dataclasses.replace(self, values=kept)

    def asked_again(self, *steps: str) -> State:
        """With steps unsettled."""
        return dataclasses.replace(self, settled=self.settled - set(steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Something to do before the next question: measuring, writing, another job."""

    text: str
    """Printed first; may be empty."""
    do: Callable[[], State]


def always(_: State) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One place in a flow."""

    name: str
    todo: Callable[[State], Question | Work]
    answered: Callable[[State, str], State] = lambda state, _: state
    """The state after an answer; raises `UsageError` for one that cannot be."""
    applies: Callable[[State], bool] = always


@runtime_checkable
class Asker(Protocol):
    """Where questions are put and things are said."""

    def ask(self, question: Question) -> str | Back: ...
    def say(self, text: str) -> None: ...
    def complain(self, error: WoodshedError | OSError) -> None: ...


def next_step(steps: Sequence[Step], state: State) -> Step | None:
    """The step that is due; None when the flow is through."""
    return next((step for step in steps if step.name not in state.settled and step.applies(state)), None)


def walk(steps: Sequence[Step], state: State, asker: Asker) -> State | None:
    """Go through a flow.

    Args:
        steps: of the flow.
        state: what is known already.
        asker: who is asked.

    Returns:
        The last state; None if the first question was answered by going back.
    """
    trail: list[State] = [state]
    # The question that led to each state but the first, and its answer: what going back takes back, and offers again.
    given: list[tuple[str, str] | None] = [None]
    taken_back = dict[str, str]()
    while (step := next_step(steps, trail[-1])) is not None:
        try:
            todo = step.todo(trail[-1])
            if isinstance(todo, Work):
                if todo.text:
                    asker.say(todo.text)
                # In the place of the state before it: going back leads to a question, not to the work.
                trail[-1] = todo.do()
                continue
        except (WoodshedError, OSError) as error:
            asker.complain(error)
            answer: str | Back = Back()
        else:
            if todo.key in taken_back and not todo.is_menu:
                todo = dataclasses.replace(todo, default=taken_back[todo.key])
            answer = asker.ask(todo)
            if isinstance(answer, str):
                try:
                    trail.append(step.answered(trail[-1], answer))
                    given.append((todo.key, answer))
                    taken_back.pop(todo.key, None)
                except UsageError as error:
                    asker.complain(error)
                continue
        trail.pop()
        if (last := given.pop()) is None:
            return None
        taken_back[last[0]] = last[1]
    return trail[-1]
