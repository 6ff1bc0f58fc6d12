"""The wizard as somebody meets it: the real command in a pseudo-terminal of 80 columns and 24 lines, by keys alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest
import soundfile

import woodshed
from tests.encoders.acestep.tiny_acestep import build_acestep, save_upstream
from tests.jobs.conftest import sound
from tests.jobs.songs_fixtures import prepare, write_song

SOURCES = str(Path(woodshed.__file__).parents[1])
CTRL_C, ESCAPE, ENTER = "\x03", "\x1b", "\r"
MENU = "What shall be done?"


@dataclass
class Person:
    """Somebody at a terminal: waits until a question is there, then types."""

    terminal: pexpect.spawn

    def sees(self, *texts: str) -> None:
        for text in texts:
            self.terminal.expect_exact(text)

    def answers(self, question: str, answer: str) -> None:
        self.sees(question)
        self.terminal.send(answer + ENTER)

    def picks(self, question: str, search: str) -> None:
        """Choose from a list by searching it."""
        self.sees(question)
        self.terminal.send("/")
        self.terminal.send(search + ENTER)

    def presses(self, question: str, key: str) -> None:
        self.sees(question)
        self.terminal.send(key)

    def leaves(self) -> int:
        """Wait for the end; gives back the exit code."""
        self.terminal.expect(pexpect.EOF)
        self.terminal.close()
        assert self.terminal.signalstatus is None
        code: int = self.terminal.exitstatus
        return code


@pytest.fixture
def wizard(folder: Path, tmp_path: Path) -> Iterator[Person]:
    env = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "HF_HOME")}
    env |= {"PYTHONPATH": SOURCES, "TERM": "xterm-256color", "NO_COLOR": "1", "OMP_NUM_THREADS": "1",
            "PROMPT_TOOLKIT_NO_CPR": "1", "WOODSHED_CONFIG_DIR": str(tmp_path), "PYTHONWARNINGS": "ignore"}  # fmt: skip
    terminal = pexpect.spawn(
        sys.executable, ["-m", "woodshed", "wizard"], cwd=str(folder), env=env, dimensions=(24, 80), encoding="utf-8",
        timeout=60,
    )  # fmt: skip
    # Escape sequences of a terminal come in one piece; a person's keys do not.
    terminal.delaybeforesend = 0.05
    yield Person(terminal)
    terminal.close(force=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`latents` of six sounds, `few` of three, and `empty`."""
    place = tmp_path_factory.mktemp("wizard")
    for name, num in (("latents", 6), ("few", 3)):
        (place / f"sounds-{name}").mkdir()
        for seed in range(num):
            soundfile.write(place / f"sounds-{name}" / f"{seed}.wav", sound(0.5, 24_000, 1, seed=seed), 24_000)
        woodshed.encode(place / f"sounds-{name}", place / name, device="cpu")
    (place / "empty").mkdir()
    return place


def start_preprocessing(wizard: Person) -> None:
    wizard.picks(MENU, "Preproc")
    wizard.answers("preset file?", "")
    wizard.picks("Which model will be trained?", "tiny")


def test_preprocessing_from_the_menu_to_the_map(wizard: Person, folder: Path) -> None:
    """The whole way: every wrong answer is told and asked again, and one step is taken back."""
    start_preprocessing(wizard)
    wizard.answers("Folder of the data:", "latnets")
    wizard.sees("there is no folder latnets")
    wizard.answers("Folder of the data:", "empty")
    wizard.sees("empty holds no data")
    wizard.answers("Folder of the data:", "sounds-few")
    wizard.answers("Prepare them now with woodshed encode? [Y/n]:", "n")
    wizard.answers("Folder of the data:", "few")
    wizard.answers("Go on with so few? [y/N]:", "")
    wizard.answers("Folder of the data:", "latents")
    wizard.sees("found 6 items")
    wizard.presses("Which timesteps count?", "b")
    wizard.answers("Folder of the data [latents]:", "")
    wizard.presses("Which timesteps count?", ENTER)
    wizard.answers("Base rank: the median to aim at [64]:", "?")
    wizard.answers("Base rank: the median to aim at [64]:", "eight")
    wizard.sees("'eight' is no whole number")
    wizard.answers("Base rank: the median to aim at [64]:", "8")
    wizard.answers("Least rank of a layer [8]:", "9")
    wizard.sees("9 is more than the base rank 8")
    wizard.answers("Least rank of a layer [8]:", "4")
    wizard.answers("Largest rank of a layer [128]:", "16")
    wizard.sees("6 songs", "8 as the median, 4 at least, 16 at most", "on this machine", "for the model",
                "woodshed analyze --dataset-dir latents", "--rank 8", "--rank-min 4", "--rank-max 16")  # fmt: skip
    wizard.picks("Ready?", "save this")
    wizard.answers("Save the command line as [latents/analyze.sh]:", "")
    wizard.picks("Ready?", "run it")
    wizard.sees("fisher_map.json")
    wizard.presses(MENU, "b")
    assert wizard.leaves() == 0
    ranks = json.loads((folder / "latents" / "fisher_map.json").read_text())["rank_pattern"]
    assert 4 <= min(ranks.values()) <= max(ranks.values()) <= 16
    assert "woodshed analyze --dataset-dir latents" in (folder / "latents" / "analyze.sh").read_text()


def test_a_form_with_back_help_search_and_escape(wizard: Person) -> None:
    wizard.picks(MENU, "Look into")
    wizard.answers("Folder to look into:", "nowhere")
    wizard.sees("there is no nowhere")
    wizard.answers("Folder to look into:", "?")
    wizard.sees("Folder of encoded data, songs or speech features")
    wizard.answers("Folder to look into:", "latents")
    wizard.picks("Change anything else?", "limit")
    wizard.answers("limit [10]:", "many")
    wizard.sees("'many' is no whole number")
    wizard.answers("limit [10]:", "2")
    wizard.presses("Change anything else?", ESCAPE)
    wizard.answers("limit [2]:", "3")
    wizard.presses("Change anything else?", ENTER)
    wizard.sees("woodshed inspect latents --limit 3")
    wizard.presses("Ready?", ENTER)
    wizard.sees("2.wav")
    wizard.presses(MENU, CTRL_C)
    assert wizard.leaves() == 130


def test_ctrl_c_at_a_question_leaves_and_changes_nothing(wizard: Person, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    wizard.picks(MENU, "Encode")
    wizard.presses("Model that encodes [woodshed-tiny]:", CTRL_C)
    wizard.sees("what was not started has changed nothing")
    assert wizard.leaves() == 130
    assert sorted(folder.rglob("*")) == before


def test_ctrl_c_in_a_run_stops_it_and_tells_how_to_go_on(wizard: Person, folder: Path) -> None:
    start_preprocessing(wizard)
    wizard.answers("Folder of the data:", "latents")
    wizard.presses("Which timesteps count?", ENTER)
    for question, rank in (("Base rank", "8"), ("Least rank", ""), ("Largest rank", "")):
        wizard.answers(question, rank)
    if (folder / "latents" / "fisher_map.json").exists():
        wizard.answers("Write over it? [y/N]:", "n")
        wizard.answers("output:", "slow.json")
    wizard.picks("Ready?", "anything else")
    for field, value in (("runs", "500"), ("convergence-patience", "900")):
        wizard.picks("Change anything else?", field)
        wizard.answers(f"{field} ", value)
    wizard.presses("Change anything else?", ENTER)
    wizard.presses("Ready?", ENTER)
    wizard.presses(" draws of ", "")
    wizard.presses("left", CTRL_C)
    wizard.sees("the same command goes on from what is done", "--runs 500")
    assert wizard.leaves() == 130


def test_what_one_action_made_is_offered_to_the_next(wizard: Person, folder: Path) -> None:
    wizard.picks(MENU, "Encode")
    wizard.answers("Model that encodes [woodshed-tiny]:", "")
    wizard.presses("Where does the data come from?", ENTER)
    wizard.answers("Folder of sounds, or a manifest:", "sounds-few")
    wizard.answers("Folder for the results:", "made here")
    wizard.presses("Change anything else?", ENTER)
    wizard.sees("--output-path 'made here'")
    wizard.presses("Ready?", ENTER)
    wizard.picks(MENU, "Look into")
    wizard.answers("Folder to look into [made here]:", "b")
    wizard.picks(MENU, "Exit")
    assert wizard.leaves() == 0
    assert (folder / "made here").is_dir()


def test_turbo_declined_leads_back_to_the_model(wizard: Person, folder: Path) -> None:
    for variant in ("base", "turbo"):
        save_upstream(build_acestep(variant=variant), folder / "models", variant=variant)
    for seed in range(5):
        write_song(folder / "songs" / f"{seed}.wav", 0.4, seed=seed)
    prepare(folder / "songs", folder / "tensors", folder / "models", model="base")
    wizard.picks(MENU, "Preproc")
    wizard.answers("preset file?", "")
    wizard.picks("Which model will be trained?", "acestep")
    wizard.answers("Checkpoint folder:", "models")
    wizard.picks("Which variant?", "turbo")
    wizard.answers("Folder of the data:", "tensors")
    wizard.presses("Which timesteps count?", ENTER)
    for question in ("Base rank", "Least rank", "Largest rank"):
        wizard.answers(question, "")
    wizard.sees("Turbo is fragile")
    wizard.answers("Go on with Turbo all the same? [y/N]:", "")
    wizard.answers("Checkpoint folder [models]:", "")
    wizard.picks("Which variant?", "base")
    wizard.sees("acestep base in models", "woodshed analyze --dataset-dir tensors")
    wizard.presses("Ready?", CTRL_C)
    assert wizard.leaves() == 130
    assert not (folder / "tensors" / "fisher_map.json").exists()


def test_without_a_command_a_terminal_gets_the_wizard(folder: Path) -> None:
    env = {"PYTHONPATH": SOURCES, "TERM": "xterm", "PATH": os.environ["PATH"], "PROMPT_TOOLKIT_NO_CPR": "1"}
    terminal = pexpect.spawn(sys.executable, ["-m", "woodshed", "--plain"], env=env, dimensions=(24, 80), timeout=60)
    terminal.expect_exact(MENU)
    seen = terminal.before + terminal.after
    terminal.send("b")
    terminal.expect(pexpect.EOF)
    assert b"\x1b[3" not in seen
    terminal.close()
    assert terminal.exitstatus == 0
