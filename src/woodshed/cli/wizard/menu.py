"""The main menu: what there is to do, done by questions, with what was answered before as defaults."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from woodshed.cli.commands import COMMANDS, Command
from woodshed.cli.show import show
from woodshed.cli.wizard import preprocessing
from woodshed.cli.wizard.data import look_at
from woodshed.cli.wizard.equal_command import shell_lines
from woodshed.cli.wizard.fields import shown
from woodshed.cli.wizard.form import form_steps, opening_state, settings_of, words_of
from woodshed.cli.wizard.outside import Outside
from woodshed.cli.wizard.questions import Asker, Back, Option, Question, State, Step, walk
from woodshed.errors import WoodshedError
from woodshed.jobs import user_settings
from woodshed.jobs.analyze_report import AnalyzePlan
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.user_settings import UserSettings

EXIT_INTERRUPTED = 130
STOPPED = (EXIT_INTERRUPTED, 143)
"""Exit codes of a job that a signal ended in order."""
ENTRIES: tuple[tuple[str, str], ...] = (
    ("encode", "Encode sounds to latents or tokens"),
    ("speech", "Speech features for TTS (IndexTTS 2.0, 2.5)"),
    ("songs", "Songs for fine-tuning ACE-Step"),
    ("analyze", preprocessing.TITLE),
    ("train", "Train an adapter"),
    ("synth", "Program a synthesizer by ear"),
    ("inspect", "Look into a folder of encoded data"),
    ("settings", "Settings: checkpoint folder and variant"),
)
"""Command -> its line. Those that this version does not have are not shown."""
LEAVE = "exit"
_HANDED_ON = (
    *("checkpoint_dir", "model", "audio_dir", "dataset_json", "input", "manifest"),
    *("backend", "timestep_focus", "rank", "rank_min", "rank_max"),
)
"""Fields that are asked for, and mean the same whichever command asks."""
_OUTPUTS = ("output", "output_path", "output_dir")
CallJob = Callable[[Command, Any], Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What earlier actions of this run have settled, as defaults for later ones."""

    answers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def after(self, command: Command, values: Mapping[str, object]) -> Earlier:
        """With what one action was told. Its output is where the next one may find its data.

        >>> from woodshed.cli.commands import command_named
        >>> songs = command_named("songs")
        >>> after = Earlier().after(songs, {"output": "my-tensors", "checkpoint_dir": "ace", "seed": 3})
        >>> after.answers["dataset_dir"], after.answers["checkpoint_dir"], "seed" in after.answers
        ('my-tensors', 'ace', False)
        """
        learnt = {name: shown(values[name]) for name in _HANDED_ON if name in values}
        made = next((shown(values[name]) for name in _OUTPUTS if name in values), None)
        if made is not None and command.name in ("encode", "songs", "speech"):
            learnt |= {"dataset_dir": made, "folder": made}
        if "dataset_dir" in values:
            learnt |= {"dataset_dir": shown(values["dataset_dir"]), "folder": shown(values["dataset_dir"])}
        return Earlier(answers={**self.answers, **learnt})


def menu_question() -> Question:
    """The main menu, of the commands that there are."""
    there = {command.name: command for command in COMMANDS}
    options = [Option(value=name, label=label, about=there[name].summary) for name, label in ENTRIES if name in there]
    return Question(
        key="menu",
        text="What shall be done?",
        help="Every entry asks what it needs, shows the equal command line, and starts only when you say so. Paths "
        "complete with Tab; an empty answer takes what stands in brackets. A file called b is ./b.",
        kind="choice",
        options=(*options, Option(value=LEAVE, label="Exit")),
        is_menu=True,
    )


class Wizard:
    """Everything that happens between the first question and the last.

    Args:
        asker: who is asked.
        call_job: runs a command's job and gives back its report.
    """

    def __init__(self, asker: Asker, call_job: CallJob) -> None:
        self._asker, self._call_job = asker, call_job
        self._earlier = Earlier()
        self._running: str | None = None
        """Command line of the job at work."""

    def run(self) -> int:
        """Ask until somebody leaves; gives back the exit code: 0, or 130 after Ctrl-C."""
        try:
            while True:
                self._asker.say("")
                choice = self._asker.ask(menu_question())
                if isinstance(choice, Back) or choice == LEAVE:
                    return 0
                self._act(next(command for command in COMMANDS if command.name == choice))
        except KeyboardInterrupt:
            if self._running is not None:
                self._asker.say(f"\ninterrupted; the same command goes on from what is done:\n{self._running}")
            else:
                self._asker.say("\nleft the wizard; what was not started has changed nothing")
            return EXIT_INTERRUPTED

    def _act(self, command: Command) -> None:
        try:
            if command.name == "settings":
                self._settings()
            elif command.name == "analyze":
                self._analyze(command)
            else:
                self._form(command)
        except (WoodshedError, OSError) as error:
            self._asker.complain(error)

    def _form(self, command: Command, **values: object) -> Path | None:
        """Ask for a command and run it; gives back where its output lies, None if nothing came of it."""
        steps = form_steps(command, partial(self._perform, command), offered=self._offered(), known=frozenset(values))
        state = walk(steps, opening_state(**values), self._asker)
        if state is None:
            return None
        return next((Path(shown(state.values[name])) for name in _OUTPUTS if name in state.values), None)

    def _offered(self) -> Mapping[str, str]:
        remembered = user_settings.load().model_dump(exclude_none=True)
        return {**remembered, **self._earlier.answers}

    def _perform(self, command: Command, state: State) -> State:
        """Run a job and show its report."""
        settings = settings_of(command, state)
        if state.is_dry:
            settings = settings.model_copy(update={"dry_run": True})
        self._running = shell_lines(words_of(command, state))
        try:
            report = self._call_job(command, settings)
        except (WoodshedError, OSError):
            self._running = None
            raise
        show(report, Console(file=sys.stdout))
        if report.exit_code in STOPPED:
            raise KeyboardInterrupt
        self._running = None
        self._earlier = self._earlier.after(command, state.values)
        return state

    def _analyze(self, command: Command) -> None:
        remembered = UserSettings() if "checkpoint_dir" in self._earlier.answers else user_settings.load()
        if remembered.checkpoint_dir is not None:
            model = f" and variant {remembered.model}" if remembered.model else ""
            self._asker.say(f"from woodshed settings: checkpoint folder {remembered.checkpoint_dir}{model}")
        outside = Outside(
            look_at=look_at,
            gates=lambda settings: import_module(command.module).gates(settings),
            # Going back and forth measures the same but once; another action may find other data.
            measure=lru_cache(maxsize=32)(self._measure),
            prepare=self._prepare,
            perform=partial(self._perform, command),
            say=self._asker.say,
        )
        steps = preprocessing.analyze_steps(command, outside, offered=self._earlier.answers)
        start = preprocessing.start(checkpoint_dir=remembered.checkpoint_dir, model=remembered.model)
        walk(steps, start, self._asker)

    def _measure(self, settings: AnalyzeSettings) -> AnalyzePlan:
        self._asker.say("measuring time and memory on a first batch ...")
        plan = self._call_job(next(command for command in COMMANDS if command.name == "analyze"), settings)
        assert isinstance(plan, AnalyzePlan)
        return plan

    def _prepare(self, name: str, sounds: Path, given: Mapping[str, object]) -> Path | None:
        command = next(command for command in COMMANDS if command.name == name)
        if name == "songs":
            return self._form(command, audio_dir=str(sounds), **given)
        # An autoencoder that belongs to the model lies in its pipeline's folder.
        model = {"pretrained_name": given["checkpoint_dir"]} if "checkpoint_dir" in given else {}
        return self._form(command, input=str(sounds), **model)

    def _settings(self) -> None:
        state = walk(remembering_steps(), opening_state(), self._asker)
        if state is not None:
            self._asker.say(f"kept in {user_settings.settings_path()}")


DONE = "done"


def remembering_steps() -> list[Step]:
    """The flow of `woodshed settings`: choose a setting, say what it is; an empty answer leaves it, - forgets it."""

    def which(_: State) -> Question:
        now = user_settings.load()
        options = [
            Option(
                value=name,
                label=f"{name:<16}{getattr(now, name) or '(not set)'}",
                about=info.description or "",
            )
            for name, info in UserSettings.model_fields.items()
        ]
        return Question(
            key="setting",
            text="Which setting?",
            help=f"Kept in {user_settings.settings_path()}, for this machine. `woodshed settings` does the same.",
            kind="choice",
            options=(*options, Option(value=DONE, label="done")),
            is_menu=True,
        )

    def value(state: State) -> Question:
        name = state.editing or ""
        return Question(
            key=name,
            text=name,
            help=f"{UserSettings.model_fields[name].description} Answer - to forget it.",
            kind="path" if name == "checkpoint_dir" else "text",
            default=getattr(user_settings.load(), name) or "",
            is_optional=True,
            is_menu=True,
        )

    def answered(state: State, answer: str) -> State:
        assert state.editing is not None
        if answer:
            now = user_settings.load()
            user_settings.save(user_settings.changed(now, state.editing, None if answer == "-" else answer))
        return dataclasses.replace(state, editing=None)

    return [
        Step(name="value", applies=lambda state: state.editing is not None, todo=value, answered=answered),
        Step(
            name="which",
            todo=which,
            answered=lambda state, answer: (
                state.given("which") if answer == DONE else dataclasses.replace(state, editing=answer)
            ),
        ),
    ]
