"""The questions of any command: what it cannot do without, then whatever else is to be changed, then a summary."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from woodshed.cli.commands import Command
from woodshed.cli.consent import CONSENT
from woodshed.cli.wizard.equal_command import command_words, save_script, shell_lines
from woodshed.cli.wizard.fields import (
    GO_ON,
    all_fields_question,
    current,
    field_question,
    spoken,
    with_value,
)
from woodshed.cli.wizard.models import NEED_A_CHECKPOINT, Model, models_in
from woodshed.cli.wizard.questions import Option, Question, State, Step, Work
from woodshed.errors import UsageError
from woodshed.jobs.complaints import checked
from woodshed.jobs.settings import DEFAULT_MODEL, Settings

ASKED: Mapping[str, Mapping[str, str]] = {
    "encode": {"pretrained_name": DEFAULT_MODEL},
    "songs": {"checkpoint_dir": "checkpoints"},
    "speech": {"output_dir": "processed_data"},
}
"""Command -> fields that need no value and are asked for all the same, with what is offered."""
_PLAIN_SOURCES = ("input", "audio_dir", "manifest")
"""Of two ways to say where data comes from, the one that most people have."""
_THERE = (*_PLAIN_SOURCES, "dataset_config_path", "dataset_json", "folder")
"""Paths that have to exist."""
MORE, EDIT, SAVE, WRITE, CONFIRM, PERFORM = "more", "edit", "save", "write", "confirm", "perform"
RUN, DRY, SAVE_IT, CHANGE = "run", "dry", "save", "change"
Perform = Callable[[State], State]
"""Runs the job, and gives back the state after it."""
NOT_LISTED = frozenset({"dry_run", "yes", "accept_turbo"})
"""Fields that have a place of their own in a flow."""


def form_steps(
    command: Command, perform: Perform, *, offered: Mapping[str, str], known: frozenset[str] = frozenset()
) -> list[Step]:
    """The flow of a command.

    Args:
        command: to be asked about.
        perform: runs it.
        offered: field -> what is offered as its default, from before.
        known: fields that are given already and are not asked for.
    """
    model = command.settings_model()
    steps: list[Step] = []
    wanted = ASKED.get(command.name, {})
    offered = {**wanted, **offered}
    for names in model.sections.values():
        for name in names:
            pair = model.alternatives.get(name)
            if name in known or (pair and pair in known) or any(step.name == name for step in steps):
                continue
            if pair:
                steps += _either(model, (name, pair), offered)
            elif model.model_fields[name].is_required() or name in wanted:
                steps.append(field_step(model, name, offered, is_needed=True))
                if command.name == "songs" and name == "checkpoint_dir":
                    steps.append(variant_step(lambda _: "acestep", default=offered.get("model", "")))
    return [*steps, *closing_steps(command, perform, summary=lambda _: "")]


def _either(model: type[Settings], names: tuple[str, str], offered: Mapping[str, str]) -> list[Step]:
    """A list of two ways to say the same, and the question of each."""
    first, second = sorted(names, key=lambda name: name not in _PLAIN_SOURCES)
    default = second if second in offered and first not in offered else first

    def todo(_: State) -> Question:
        options = tuple(
            Option(value=name, label=spoken(name), about=model.model_fields[name].description or "")
            for name in (first, second)
        )
        return Question(
            key=f"{first} or {second}",
            text="Where does the data come from?",
            help=f"{model.model_fields[first].description} Or else: {model.model_fields[second].description}",
            kind="choice",
            default=default,
            options=options,
        )

    def answered(state: State, answer: str) -> State:
        other = second if answer == first else first
        return state.without(other).asked_again(answer).given(f"{first} or {second}").given(other)

    steps = [field_step(model, name, offered, is_needed=True) for name in (first, second)]
    return [Step(name=f"{first} or {second}", todo=todo, answered=answered), *steps]


def field_step(model: type[Settings], name: str, offered: Mapping[str, str], *, is_needed: bool) -> Step:
    """Ask for one field once."""

    def todo(state: State) -> Question:
        known = current(model, state.values, name) if name in state.values else offered.get(name, "")
        return field_question(model, name, default=known or current(model, {}, name), is_needed=is_needed)

    def answered(state: State, answer: str) -> State:
        if name in _THERE and not Path(answer).expanduser().exists():
            raise UsageError(f"there is no {answer}", hint="Tab completes names; b goes back")
        return dataclasses.replace(state, values=with_value(model, state.values, name, answer)).given(name)

    return Step(name=name, todo=todo, answered=answered)


def variant_step(backend_of: Callable[[State], str], *, default: str = "") -> Step:
    """Choose among the models of a checkpoint folder; not asked where there is one only."""

    def models(state: State) -> dict[str, Model]:
        if "checkpoint_dir" not in state.values or backend_of(state) not in NEED_A_CHECKPOINT:
            return {}
        try:
            found = models_in(backend_of(state), str(state.values["checkpoint_dir"]))
        except UsageError:
            # The job says better what is wrong with the folder.
            return {}
        return {model.label: model for model in found}

    def todo(state: State) -> Question:
        return Question(
            key="model",
            text="Which variant?",
            help="The checkpoint folder holds several models. base is the one to train from.",
            kind="choice",
            default=str(state.values.get("model", default)),
            options=tuple(Option(value=label, label=label) for label in models(state)),
        )

    def answered(state: State, answer: str) -> State:
        chosen = models(state)[answer]
        state = state.without("model").given("model", checkpoint_dir=chosen.checkpoint_dir)
        return state if chosen.variant is None else state.given("model", model=chosen.variant)

    return Step(name="model", applies=lambda state: len(models(state)) > 1, todo=todo, answered=answered)


def settings_of(command: Command, state: State) -> Settings:
    """The settings that the answers give.

    Raises:
        UsageError: they do not go together.
    """
    return checked(command.settings_model(), state.values)


def words_of(command: Command, state: State) -> list[str]:
    """The equal command line."""
    return command_words(command, settings_of(command, state), given=state.values.keys())


def closing_steps(
    command: Command,
    perform: Perform,
    *,
    summary: Callable[[State], str],
    jumps: Sequence[tuple[Option, Callable[[State], State]]] = (),
    left_out: frozenset[str] = frozenset(),
    script_folder: Callable[[State], Path] = lambda _: Path(),
) -> list[Step]:
    """What every flow ends with: the list of all fields, the script, the summary, and the run.

    Args:
        perform: runs the job; when it fails, the summary is asked again.
        summary: lines above the command line.
        jumps: further choices of the summary, each with the state that it leads to.
        left_out: fields that are not in the list.
        script_folder: where the script is offered to be put.
    """
    model = command.settings_model()
    return [
        Step(
            name=EDIT,
            applies=lambda state: state.editing is not None,
            todo=lambda state: _edit(model, state),
            answered=lambda state, answer: _edited(model, state, answer),
        ),
        Step(
            name=MORE,
            todo=lambda state: all_fields_question(model, state.values, left_out=left_out | NOT_LISTED),
            answered=lambda state, answer: _more(command, state, answer),
        ),
        Step(name=WRITE, applies=lambda state: state.save_to is not None, todo=lambda state: _write(command, state)),
        Step(
            name=SAVE,
            todo=lambda state: Question(
                key="script",
                text="Save the command line as",
                help="A shell script that runs this command from the folder you are in now.",
                kind="path",
                default=str(script_folder(state) / f"{command.name}.sh"),
            ),
            answered=lambda state, answer: dataclasses.replace(state.given(SAVE), save_to=Path(answer).expanduser()),
        ),
        Step(
            name=CONFIRM,
            todo=lambda state: _confirm(command, state, summary(state), [option for option, _ in jumps]),
            answered=lambda state, answer: _confirmed(state, answer, jumps),
        ),
        Step(name=PERFORM, todo=lambda state: Work(text="", do=lambda: _performed(state, perform))),
    ]


def _performed(state: State, perform: Perform) -> State:
    after = perform(state)
    return after.asked_again(CONFIRM) if state.is_dry else after.given(PERFORM)


def opening_state(*settled: str, **values: object) -> State:
    """What a flow starts from: nothing is to be saved yet."""
    return State(values=values, settled=frozenset({SAVE, *values, *settled}))


def _edit(model: type[Settings], state: State) -> Question:
    assert state.editing is not None
    question = field_question(model, state.editing, default=current(model, state.values, state.editing))
    return dataclasses.replace(question, text=state.editing.replace("_", "-"), preface=question.help)


def _edited(model: type[Settings], state: State, answer: str) -> State:
    assert state.editing is not None
    values = with_value(model, state.values, state.editing, answer)
    # What was measured, and what the job would stop at, may be otherwise now; and a word that was given for one file
    # or one model is not given for another.
    agreed = {"output": CONSENT["overwrite"], "model": CONSENT["turbo"]}.get(state.editing, "")
    return dataclasses.replace(state.asked_again("gates", "plan"), values=values, editing=None).without(agreed)


def _more(command: Command, state: State, answer: str) -> State:
    if answer != GO_ON:
        return dataclasses.replace(state, editing=answer)
    settings_of(command, state)
    return state.given(MORE)


def _confirm(command: Command, state: State, summary: str, jumps: Sequence[Option]) -> Question:
    line = shell_lines(words_of(command, state))
    options = [Option(value=RUN, label="run it")] if not state.trouble else []
    if "dry_run" in command.settings_model().model_fields and command.name != "analyze":
        options.append(Option(value=DRY, label="plan only, and write nothing (--dry-run)"))
    options += [
        *jumps,
        Option(value=CHANGE, label="change anything else"),
        Option(value=SAVE_IT, label="save this command line as a script"),
    ]
    return Question(
        key=CONFIRM,
        text="Ready?",
        help="Run it now, save the equal command line to run it later, or change something first. b goes back.",
        kind="choice",
        options=tuple(options),
        preface="\n".join((summary, f"the same as a command line:\n{line}")),
        is_menu=True,
    )


def _confirmed(state: State, answer: str, jumps: Sequence[tuple[Option, Callable[[State], State]]]) -> State:
    if answer == CHANGE:
        return state.asked_again(MORE)
    if answer == SAVE_IT:
        return state.asked_again(SAVE)
    for option, lead in jumps:
        if option.value == answer:
            return lead(state)
    return dataclasses.replace(state.given(CONFIRM), is_dry=answer == DRY)


def _write(command: Command, state: State) -> Work:
    assert state.save_to is not None
    path, words = state.save_to, words_of(command, state)

    def do() -> State:
        save_script(path, words)
        return dataclasses.replace(state, save_to=None)

    return Work(text=f"saved; to run it: sh {shlex.quote(str(path))}", do=do)
