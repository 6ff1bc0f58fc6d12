"""The questions of ordinary commands, without a terminal."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.asking import BACK, Scripted
from woodshed.cli.commands import COMMANDS, Command, command_named
from woodshed.cli.flags import build_parser, read_command_line, settings_from
from woodshed.cli.wizard.equal_command import command_words, save_script, shell_lines
from woodshed.cli.wizard.fields import GO_ON, all_fields_question, field_question, parsed, with_value
from woodshed.cli.wizard.form import form_steps, opening_state
from woodshed.cli.wizard.menu import ENTRIES, Earlier, menu_question
from woodshed.cli.wizard.questions import State, walk
from woodshed.errors import ModelError, UsageError
from woodshed.jobs.complaints import checked
from woodshed.jobs.settings import EncodeSettings, Settings
from woodshed.jobs.songs_settings import SongsSettings


def the(name: str) -> Command:
    command = command_named(name)
    assert command is not None
    return command


def read_back(command: Command, words: list[str]) -> Settings:
    model = command.settings_model()
    parser = build_parser(
        model, prog="x", summary="", examples=(), layered=command.is_layered, watched=command.is_watched
    )
    return settings_from(model, read_command_line(parser, model, words[1 + len(command.name.split()) :]))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sounds").mkdir()
    return tmp_path


def fill(name: str, *answers: str, offered: dict[str, str] | None = None) -> tuple[State | None, Scripted]:
    asker = Scripted(list(answers))
    steps = form_steps(the(name), lambda state: state, offered=offered or {})
    return walk(steps, opening_state(), asker), asker


def test_what_a_command_needs_is_asked_and_nothing_else() -> None:
    state, asker = fill("encode", "", "input", "sounds", "latents", GO_ON, "run")
    assert state is not None
    assert asker.keys == ["pretrained_name", "input or dataset_config_path", "input", "output_path", "all fields",
                          "confirm"]  # fmt: skip
    assert checked(EncodeSettings, state.values) == EncodeSettings(input=Path("sounds"), output_path=Path("latents"))
    assert "woodshed encode --pretrained-name woodshed-tiny --input sounds" in asker.text


def test_the_other_way_to_name_the_data() -> None:
    Path("d.json").write_text("{}")
    state, _ = fill("songs", "dataset_json", "d.json", "models", "out", GO_ON, "run")
    assert state is not None
    assert dict(state.values) == {"dataset_json": "d.json", "checkpoint_dir": "models", "output": "out"}


def test_back_goes_one_question_back_and_offers_what_was_answered() -> None:
    state, asker = fill("songs", "audio_dir", "sounds", BACK, "", "ace", "out", GO_ON, "run")
    assert state is not None
    assert asker.keys[:4] == ["audio_dir or dataset_json", "audio_dir", "checkpoint_dir", "audio_dir"]
    assert asker.asked[3].default == "sounds"
    assert state.values["audio_dir"] == "sounds"


def test_back_at_the_first_question_leaves() -> None:
    assert fill("inspect", BACK)[0] is None


def test_a_path_that_is_not_there_is_asked_again() -> None:
    state, asker = fill("inspect", "nowhere", "sounds", GO_ON, "run")
    assert state is not None
    assert "there is no nowhere" in asker.text
    assert state.values == {"folder": "sounds"}


def test_any_field_can_be_changed_and_a_wrong_value_is_asked_again() -> None:
    state, asker = fill("inspect", "sounds", "limit", "three", "-4", "3", GO_ON, "run")
    assert state is not None
    assert state.values["limit"] == 3
    assert "'three' is no whole number" in asker.text
    assert "--limit is -4, but must be at least 0" in asker.text


def test_two_values_that_contradict_each_other_are_told_when_all_is_said() -> None:
    """The first of two that belong together must not be refused for want of the second."""
    start = ("", "input", "sounds", "out")
    change = ("pretrained_name", "-", "model_config_path", "a.json", GO_ON, "ckpt_path", "a.ckpt", GO_ON, "run")
    state, asker = fill("encode", *start, *change)
    assert state is not None
    assert "--ckpt-path" in asker.text.split("the same as")[0]
    assert state.values["ckpt_path"] == "a.ckpt"


def test_a_run_that_fails_leads_back_to_the_summary() -> None:
    failures = [ModelError("no such checkpoint")]

    def perform(state: State) -> State:
        if failures:
            raise failures.pop()
        return state

    asker = Scripted(["sounds", GO_ON, "run", "run"])
    assert walk(form_steps(the("inspect"), perform, offered={}), opening_state(), asker) is not None
    assert asker.keys[-2:] == ["confirm", "confirm"]
    assert "no such checkpoint" in asker.text


def test_a_plan_only_comes_back_to_the_summary() -> None:
    runs: list[bool] = []

    def perform(state: State) -> State:
        runs.append(state.is_dry)
        return state

    asker = Scripted(["", "input", "sounds", "out", GO_ON, "dry", "run"])
    walk(form_steps(the("encode"), perform, offered={}), opening_state(), asker)
    assert runs == [True, False]


def test_the_script_does_what_the_wizard_would_have_done(here: Path) -> None:
    state, _ = fill("inspect", "sounds", GO_ON, "save", "my scripts/look.sh", "run")
    assert state is not None
    path = here / "my scripts" / "look.sh"
    done = subprocess.run(["sh", "-n", path], check=False)
    assert done.returncode == 0
    assert path.read_text().splitlines()[1:] == [f"cd {shlex.quote(str(here))} || exit", "exec woodshed inspect sounds"]
    assert path.stat().st_mode & 0o100
    save_script(path, ["woodshed", "inspect", "other"])
    assert "other" in path.read_text()


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@settings(deadline=None)
@given(words, words, st.lists(words, max_size=3), st.booleans(), st.integers(0, 99), st.floats(-60, 0))
def test_the_command_line_gives_the_same_settings(
    folder: str, model: str, options: list[str], flag: bool, seed: int, level: float
) -> None:
    encode = checked(
        EncodeSettings,
        {"input": f"x{folder}", "output_path": folder, "pretrained_name": f"m{model}", "model_options": options,
         "captions": flag, "seed": seed},
    )  # fmt: skip
    given_fields = ("input", "output_path", "pretrained_name", "model_options", "captions", "seed")
    line = command_words(the("encode"), encode, given=given_fields)
    assert read_back(the("encode"), line) == encode
    assert shlex.split(shell_lines(line).replace("\\\n", " ")) == line
    songs = checked(SongsSettings, {"audio_dir": folder, "output": "o", "model": model, "target_db": level})
    line = command_words(the("songs"), songs, given=("audio_dir", "output", "model", "target_db"))
    assert read_back(the("songs"), line) == songs


def test_only_what_is_no_default_stands_in_the_command_line() -> None:
    settings = checked(SongsSettings, {"audio_dir": "a", "output": "o", "checkpoint_dir": "checkpoints", "seed": 0})
    line = command_words(the("songs"), settings, given=("audio_dir", "output", "checkpoint_dir", "seed"))
    assert line == ["woodshed", "songs", "--audio-dir", "a", "--output", "o"]


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command.name in dict(ENTRIES)], ids=lambda command: command.name
)
def test_every_field_can_be_asked_for(command: Command) -> None:
    model = command.settings_model()
    for name, info in model.model_fields.items():
        question = field_question(model, name)
        assert question.help.startswith(info.description or name)
        if question.kind == "choice":
            with_value(model, {}, name, question.options[-1].value)
    listed = all_fields_question(model, {}, left_out=frozenset())
    assert [option.value for option in listed.options[1:]] == [
        name for part in model.sections.values() for name in part
    ]
    assert all(len(option.label) <= 76 for option in listed.options)


def test_answers_become_values() -> None:
    assert parsed(EncodeSettings, "captions", "n") is False
    assert parsed(EncodeSettings, "model_options", "n_fft=2048 'a b'") == ("n_fft=2048", "a b")
    assert parsed(EncodeSettings, "channels", "-") is None
    with pytest.raises(UsageError, match="close the quotes"):
        parsed(EncodeSettings, "model_options", "'a")
    with pytest.raises(UsageError, match="needed"):
        parsed(EncodeSettings, "output_path", "-")


def test_the_menu_shows_the_commands_that_there_are() -> None:
    shown = [option.value for option in menu_question().options]
    assert shown == ["encode", "speech", "songs", "analyze", "inspect", "settings", "exit"]
    assert menu_question().options[3].label == "Preprocessing++ (auto-targeting + adaptive ranks)"


def test_what_one_action_made_is_offered_to_the_next() -> None:
    earlier = Earlier().after(the("songs"), {"output": "tensors", "audio_dir": "a", "checkpoint_dir": "c"})
    assert earlier.answers == {
        "dataset_dir": "tensors", "folder": "tensors", "audio_dir": "a", "checkpoint_dir": "c"
    }  # fmt: skip
    later = earlier.after(the("inspect"), {"folder": "elsewhere"})
    assert later.answers["dataset_dir"] == "tensors"
