"""Preprocessing++, steps 0 to 2: a preset, the model, and the data it is analysed with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from woodshed.cli.wizard.form import variant_step
from woodshed.cli.wizard.models import NEED_A_CHECKPOINT, models_in
from woodshed.cli.wizard.outside import Outside
from woodshed.cli.wizard.presets import read_preset
from woodshed.cli.wizard.questions import Option, Question, State, Step, Work
from woodshed.errors import UsageError
from woodshed.jobs.analyze_settings import AnalyzeSettings

FEW_SONGS = 5
BACKENDS: Mapping[str, str] = {
    "acestep": "ACE-Step 1.5: songs that `woodshed songs` prepared",
    "stable-audio": "Stable Audio Open: latents that `woodshed encode` made",
    "whisper": "Whisper: speech with its text",
    "woodshed-tiny-dit": "a tiny transformer that comes with Woodshed, to try things out",
}
PREPARED_BY: Mapping[str, str] = {"acestep": "songs", "stable-audio": "encode", "woodshed-tiny-dit": "encode"}
"""Backend -> command that makes its data of sounds."""


def preset_step(outside: Outside) -> Step:
    """Take ranks and focus from a file, for whoever has one."""

    def answered(state: State, answer: str) -> State:
        if not answer:
            return state.given("preset")
        preset = read_preset(Path(answer).expanduser())
        outside.say(preset.told())
        return state.given("preset", **preset.values)

    return Step(
        name="preset",
        todo=lambda _: Question(
            key="preset",
            text="Take ranks and focus from a preset file? (Enter: no)",
            help="A preset of Side-Step (JSON) or a settings file (YAML). Only rank, rank_min, rank_max and "
            "timestep_focus are taken from it, as defaults of the questions below; nothing else changes.",
            kind="path",
            is_optional=True,
            is_menu=True,
        ),
        answered=answered,
    )


def model_steps(offered: Mapping[str, str]) -> list[Step]:
    """Ask which kind of model, where it lies, and which one of several."""

    def backend(state: State) -> Question:
        return Question(
            key="backend",
            text="Which model will be trained?",
            help=AnalyzeSettings.model_fields["backend"].description or "",
            kind="choice",
            default=str(state.values.get("backend", offered.get("backend", "acestep"))),
            options=tuple(Option(value=name, label=name, about=about) for name, about in BACKENDS.items()),
        )

    def backend_answered(state: State, answer: str) -> State:
        if answer != "acestep":
            # What is remembered or was given is of ACE-Step.
            state = state.without("checkpoint_dir", "model").asked_again("checkpoint_dir", "model")
        return state.given("backend", backend=answer)

    def checkpoint(state: State) -> Question:
        return Question(
            key="checkpoint_dir",
            text="Checkpoint folder",
            help="The folder that the model was downloaded to, or a hub name as OWNER/NAME. A folder that holds "
            "several models will do: they are listed next. `woodshed settings` can remember it.",
            kind="path",
            default=str(state.values.get("checkpoint_dir", offered.get("checkpoint_dir", ""))),
        )

    def checkpoint_answered(state: State, answer: str) -> State:
        found = models_in(_backend(state), answer)
        state = state.without("model").given("checkpoint_dir", checkpoint_dir=answer)
        if len(found) > 1:
            return state
        state = state.given("checkpoint_dir", checkpoint_dir=found[0].checkpoint_dir)
        return state if found[0].variant is None else state.given("checkpoint_dir", model=found[0].variant)

    return [
        Step(name="backend", todo=backend, answered=backend_answered),
        Step(
            name="checkpoint_dir",
            applies=lambda state: _backend(state) in NEED_A_CHECKPOINT,
            todo=checkpoint,
            answered=checkpoint_answered,
        ),
        variant_step(_backend, default=offered.get("model", "")),
    ]


def _backend(state: State) -> str:
    return str(state.values.get("backend", "acestep"))


def data_steps(outside: Outside, offered: Mapping[str, str]) -> list[Step]:
    """Ask for the data, and see what is there."""

    def folder(state: State) -> Question:
        maker = PREPARED_BY.get(_backend(state), "speech")
        return Question(
            key="dataset_dir",
            text="Folder of the data",
            help=f"What `woodshed {maker}` made, or Side-Step's folder of .pt files. A folder of sounds will do too: "
            "it can be prepared first.",
            kind="path",
            default=str(state.values.get("dataset_dir", offered.get("dataset_dir", ""))),
        )

    def has_sounds_only(state: State) -> bool:
        return state.found is not None and state.found.kind == "sounds"

    def sounds(state: State) -> Question:
        assert state.found is not None
        maker = PREPARED_BY[_backend(state)]
        return Question(
            key="sounds",
            text=f"Prepare them now with woodshed {maker}?",
            help=f"The analysis reads what `woodshed {maker}` makes of sounds. n asks for another folder.",
            kind="yes_no",
            default="y",
            preface=f"{state.found.folder} holds {state.found.num_items} sound files that are not prepared yet.",
            is_menu=True,
        )

    def sounds_answered(state: State, answer: str) -> State:
        return state.given("sounds") if answer == "y" else _another_folder(state)

    return [
        Step(name="dataset_dir", todo=folder, answered=partial(_folder_answered, outside)),
        Step(name="sounds", applies=has_sounds_only, todo=sounds, answered=sounds_answered),
        Step(
            name="prepare",
            applies=has_sounds_only,
            todo=lambda state: Work(text="", do=lambda: _prepared(state, outside)),
        ),
        _few_step(),
    ]


def _folder_answered(outside: Outside, state: State, answer: str) -> State:
    path = Path(answer).expanduser()
    found = outside.look_at(path)
    if found.kind == "missing":
        raise UsageError(f"there is no folder {path}", hint="Tab completes names; b goes back")
    if found.kind == "nothing":
        raise UsageError(
            f"{path} holds no data: {found.reason}",
            hint=f"give a folder that `woodshed {PREPARED_BY.get(_backend(state), 'speech')}` made",
        )
    if found.kind == "sounds" and _backend(state) not in PREPARED_BY:
        raise UsageError(
            f"{path} holds {found.num_items} sound files that are not prepared yet",
            hint="`woodshed speech` prepares them, told of their texts by a manifest: see the main menu",
        )
    if found.kind == "features":
        outside.say(f"found {found.told} in {path}")
    state = dataclasses.replace(state.given("dataset_dir", dataset_dir=str(path)), found=found)
    return state.asked_again("sounds", "few", "prepare", "gates", "plan")


def _another_folder(state: State) -> State:
    return dataclasses.replace(state.without("dataset_dir").asked_again("dataset_dir"), found=None)


def _prepared(state: State, outside: Outside) -> State:
    assert state.found is not None
    shared = {name: state.values[name] for name in ("checkpoint_dir", "model") if name in state.values}
    output = outside.prepare(PREPARED_BY[_backend(state)], Path(state.found.folder), shared)
    if output is None:
        return _another_folder(state)
    found = outside.look_at(output)
    if found.kind != "features":
        return _another_folder(state)
    outside.say(f"found {found.told} in {output}")
    return dataclasses.replace(state.given("prepare", dataset_dir=str(output)), found=found)


def _few_step() -> Step:
    def todo(state: State) -> Question:
        assert state.found is not None
        return Question(
            key="few",
            text="Go on with so few?",
            help="The interval of each layer comes from the differences between songs. With fewer than "
            f"{FEW_SONGS} there is hardly anything to tell them by, and ranks stay close to flat. n asks for "
            "another folder.",
            kind="yes_no",
            default="n",
            preface=f"{state.found.told} say little about what this data needs: {FEW_SONGS} or more would.",
            is_menu=True,
        )

    return Step(
        name="few",
        applies=lambda state: state.found is not None and state.found.num_items < FEW_SONGS,
        todo=todo,
        answered=lambda state, answer: state.given("few") if answer == "y" else _another_folder(state),
    )
