"""The questions of Preprocessing++, without a terminal and without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tests.cli.asking import BACK, Scripted
from woodshed.backends.open import BACKENDS as KNOWN_BACKENDS
from woodshed.cli.commands import Command, command_named
from woodshed.cli.wizard.data import Found, look_at
from woodshed.cli.wizard.focus_and_ranks import FOCUSES
from woodshed.cli.wizard.form import words_of
from woodshed.cli.wizard.model_and_data import BACKENDS
from woodshed.cli.wizard.models import models_in
from woodshed.cli.wizard.outside import Outside
from woodshed.cli.wizard.preprocessing import analyze_steps, start
from woodshed.cli.wizard.presets import read_preset
from woodshed.cli.wizard.questions import State, walk
from woodshed.errors import ModelError, UsageError
from woodshed.importance.focuses import FOCUS_NAMES
from woodshed.jobs.analyze_report import AnalyzePlan
from woodshed.jobs.analyze_settings import AnalyzeSettings


@dataclass(frozen=True)
class Stop:
    kind: Literal["turbo", "overwrite", "checkpoint"]
    question: str = ""


def analyze() -> Command:
    command = command_named("analyze")
    assert command is not None
    return command


def plan_of(settings: AnalyzeSettings) -> AnalyzePlan:
    return AnalyzePlan(
        dataset=str(settings.dataset_dir), output="o", backend=settings.backend, variant=settings.model or "base",
        num_items=12, audio_s=2400.0, num_layers=264, timestep_focus=settings.timestep_focus, rank=settings.rank,
        rank_min=settings.rank_min, rank_max=settings.rank_max, budget_params=None, most_draws=600, fewest_draws=120,
        s_per_draw=0.5, model_bytes=2**30, extra_bytes=2**29, disk_bytes=0, mean_gradients="memory",
    )  # fmt: skip


@dataclass
class World:
    """A world in which folders hold what they are said to hold, and every model can be measured but `broken`."""

    asker: Scripted
    folders: dict[str, Found] = field(default_factory=dict)
    existing_map: bool = False
    measured: list[AnalyzeSettings] = field(default_factory=list)
    prepared: list[dict[str, object]] = field(default_factory=list)
    runs: list[State] = field(default_factory=list)

    def look_at(self, folder: Path) -> Found:
        return self.folders.get(str(folder), Found(folder=str(folder), kind="missing"))

    def gates(self, settings: AnalyzeSettings) -> Sequence[Stop]:
        turbo = settings.model == "turbo" and not settings.accept_turbo
        overwrite = self.existing_map and settings.output is None and not settings.yes
        return [*([Stop("turbo")] if turbo else []), *([Stop("overwrite")] if overwrite else [])]

    def measure(self, settings: AnalyzeSettings) -> AnalyzePlan:
        if settings.model == "broken":
            raise ModelError("its weights are truncated", hint="download it again")
        self.measured.append(settings)
        return plan_of(settings)

    def prepare(self, command: str, sounds: Path, given: Mapping[str, object]) -> Path | None:
        self.prepared.append(dict(given))
        return Path(f"made-by-{command}")

    def perform(self, state: State) -> State:
        self.runs.append(state)
        return state

    def outside(self) -> Outside:
        return Outside(
            look_at=self.look_at, gates=self.gates, measure=self.measure, prepare=self.prepare, perform=self.perform,
            say=self.asker.say,
        )  # fmt: skip


def features(num: int) -> Found:
    return Found(folder="data", kind="features", num_items=num, audio_s=200.0 * num)


@pytest.fixture
def models(tmp_path: Path) -> str:
    for name in ("base", "turbo", "broken"):
        folder = tmp_path / "models" / f"acestep-v15-{name}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "acestep"}')
    (tmp_path / "models" / "vae").mkdir()
    (tmp_path / "models" / "vae" / "config.json").write_text("{}")
    return str(tmp_path / "models")


TINY = ("", "woodshed-tiny-dit")


def go(
    *answers: str, state: State | None = None, offered: dict[str, str] | None = None, **world: object
) -> tuple[World, State | None]:
    asker = Scripted(list(answers))
    made = World(asker, folders={"data": features(12), "few": features(3), "made-by-songs": features(7)})
    for name, value in world.items():
        setattr(made, name, value)
    steps = analyze_steps(analyze(), made.outside(), offered=offered or {})
    opening = start(checkpoint_dir=None, model=None) if state is None else state
    return made, walk(steps, opening, asker)


def test_the_six_steps_with_what_is_offered(models: str) -> None:
    world, state = go("", "acestep", models, "base", "data", "balanced", "", "", "", "run")
    assert state is not None
    assert world.asker.keys == ["preset", "backend", "checkpoint_dir", "model", "dataset_dir", "timestep_focus",
                                "rank", "rank_min", "rank_max", "confirm"]  # fmt: skip
    assert [question.default for question in world.asker.asked[5:9]] == ["balanced", "64", "16", "128"]
    assert words_of(analyze(), world.runs[0]) == [
        "woodshed", "analyze", "--dataset-dir", "data", "--checkpoint-dir", models, "--model", "base",
    ]  # fmt: skip
    assert world.measured[0].dry_run
    for told in (
        "found 12 items (40.0 min) in data",
        "12 songs (40.0 min) in data",
        "acestep base",
        "balanced:",
        "64 as the median, 16 at least, 128 at most",
        "1:00 to 5:00 on this machine",
        "1.0 GiB for the model, 512.0 MiB for measuring",
        "from 1e-4 to 5e-5",
        "woodshed analyze --dataset-dir data",
    ):
        assert told in world.asker.text


def test_base_is_listed_first_and_shared_parts_are_no_models(models: str) -> None:
    assert [model.label for model in models_in("acestep", models)] == ["base", "broken", "turbo"]


def test_back_at_every_step(models: str) -> None:
    forth = ["", "acestep", models, "base", "data", "texture", "32", "8", "64"]
    # Each step is answered, taken back, and answered again.
    answers = [word for answer in forth for word in (answer, BACK, answer)]
    world, state = go(*answers, "run")
    assert state is not None
    assert (state.values["rank"], state.values["rank_min"], state.values["rank_max"]) == (32, 8, 64)
    assert len(world.runs) == 1
    # Going back past the first question leaves.
    assert go(BACK)[1] is None


def test_what_was_answered_is_offered_after_going_back() -> None:
    world, _ = go(*TINY, "data", "texture", "32", BACK, BACK, "", "", "", "", "run")
    offered = {question.key: question.default for question in world.asker.asked}
    assert (offered["timestep_focus"], offered["rank"]) == ("texture", "32")


@pytest.mark.parametrize(
    ("answers", "said", "values"),
    [
        (("32", "48", "16", "64"), "48 is more than the base rank 32", (32, 16, 64)),
        (("32", "16", "31", "32"), "31 is less than the base rank 32", (32, 16, 32)),
        (("0", "32", "0", "1", "64"), "'0' is no rank", (32, 1, 64)),
        (("many", "8", "", ""), "'many' is no whole number", (8, 8, 128)),
        (("600", "16", "1024"), "ranks above 512", (600, 16, 1024)),
    ],
)
def test_ranks_are_checked_as_they_are_answered(
    answers: tuple[str, ...], said: str, values: tuple[int, int, int]
) -> None:
    world, state = go(*TINY, "data", "balanced", *answers, "run")
    assert state is not None
    assert said in world.asker.text
    assert tuple(state.values[name] for name in ("rank", "rank_min", "rank_max")) == values


def test_a_focus_of_ones_own() -> None:
    world, state = go(*TINY, "data", "custom", "0.5,0.2", "0.2,0.5", "", "", "", "run")
    assert state is not None
    assert "--timestep-focus 0.5,0.2 is no focus" in world.asker.text
    assert state.values["timestep_focus"] == "0.2,0.5"


def test_a_folder_without_data_is_asked_for_again() -> None:
    empty = Found(folder="empty", kind="nothing", reason="there is nothing in it")
    folders = {"data": features(9), "empty": empty}
    world, state = go(*TINY, "empty", "nowhere", "data", "balanced", "", "", "", "run", folders=folders)
    assert state is not None
    assert "empty holds no data: there is nothing in it" in world.asker.text
    assert "there is no folder nowhere" in world.asker.text
    assert state.values["dataset_dir"] == "data"


def test_fewer_than_five_songs_need_a_yes() -> None:
    world, state = go(*TINY, "few", "", "few", "y", "balanced", "", "", "", "run")
    assert state is not None
    few = [question for question in world.asker.asked if question.key == "few"]
    assert [question.default for question in few] == ["n", "n"]
    assert "3 items (10.0 min) say little" in world.asker.text


def test_raw_sounds_are_prepared_first(models: str) -> None:
    raw = Found(folder="raw", kind="sounds", num_items=7)
    folders = {"raw": raw, "made-by-songs": features(7)}
    world, state = go("", "acestep", models, "base", "raw", "y", "balanced", "", "", "", "run", folders=folders)
    assert state is not None
    assert "raw holds 7 sound files that are not prepared yet" in world.asker.text
    assert state.values["dataset_dir"] == "made-by-songs"
    # What is known of the model is not asked again.
    assert world.prepared == [{"checkpoint_dir": models, "model": "base"}]


def test_raw_sounds_that_nobody_wants_prepared(models: str) -> None:
    folders = {"raw": Found(folder="raw", kind="sounds", num_items=7), "data": features(8)}
    _, state = go("", "acestep", models, "base", "raw", "n", "data", "balanced", "", "", "", "run", folders=folders)
    assert state is not None
    assert state.values["dataset_dir"] == "data"


def test_turbo_declined_leads_back_to_the_model_and_asks_nothing_else_again(models: str) -> None:
    answers = ("", "acestep", models, "turbo", "data", "texture", "", "", "", "", models, "base", "run")
    world, state = go(*answers)
    assert state is not None
    assert world.asker.keys[-4:] == ["turbo", "checkpoint_dir", "model", "confirm"]
    turbo = world.asker.asked[-4]
    assert (turbo.default, "fragile" in turbo.preface) == ("n", True)
    assert (state.values["model"], state.values["timestep_focus"]) == ("base", "texture")
    assert "accept_turbo" not in state.values
    # Nothing was measured, let alone run, with the model that was declined.
    assert [settings.model for settings in world.measured] == ["base"]


def test_turbo_accepted_stands_in_the_command_line(models: str) -> None:
    world, _ = go("", "acestep", models, "turbo", "data", "balanced", "", "", "", "y", "run")
    assert "--accept-turbo" in words_of(analyze(), world.runs[0])


def test_a_map_that_is_there_is_written_over_only_on_request() -> None:
    world, state = go(*TINY, "data", "balanced", "", "", "", "y", "run", existing_map=True)
    assert state is not None
    assert "--yes" in words_of(analyze(), state)
    assert "written over" in world.asker.text
    world, state = go(*TINY, "data", "balanced", "", "", "", "n", "other.json", "run", existing_map=True)
    assert state is not None
    assert words_of(analyze(), state)[-2:] == ["--output", "other.json"]
    # The other file is asked for before anything is measured.
    assert [settings.output for settings in world.measured] == [Path("other.json")]
    assert "yes" not in state.values


def test_consent_is_given_for_one_file_and_one_model(models: str) -> None:
    answers = ("", "acestep", models, "turbo", "data", "balanced", "", "", "", "y", "y")
    change = ("change", "output", "third.json", "model", "turbo", "go on", "y", "run")
    world, state = go(*answers, *change, existing_map=True)
    assert state is not None
    assert state.values["output"] == "third.json"
    assert "yes" not in state.values
    assert world.asker.keys.count("turbo") == 2


def test_sounds_that_need_a_manifest_are_not_taken(models: str) -> None:
    folders = {"raw": Found(folder="raw", kind="sounds", num_items=7), "data": features(8)}
    world, state = go("", "whisper", "raw", "data", "balanced", "", "", "", "run", folders=folders)
    assert state is not None
    assert "`woodshed speech` prepares them" in world.asker.text


def test_a_model_that_cannot_be_measured_cannot_be_run(models: str) -> None:
    answers = ("", "acestep", models, "broken", "data", "balanced", "", "", "", "to model", "", models, "base", "run")
    world, state = go(*answers)
    assert state is not None
    assert "its weights are truncated" in world.asker.text
    confirms = [question for question in world.asker.asked if question.key == "confirm"]
    assert [confirms[0].options[0].value, confirms[1].options[0].value] == ["to model", "run"]


def test_other_settings_are_changed_from_the_summary_and_measured_anew() -> None:
    answers = (*TINY, "data", "balanced", "", "", "", "change", "batch_size", "2", "go on", "to ranks", "8", "", "16")
    world, state = go(*answers, "run")
    assert state is not None
    assert [settings.batch_size for settings in world.measured] == [None, 2, 2]
    assert "--batch-size 2" in world.asker.text
    assert state.values["rank"] == 8


def test_what_is_remembered_is_not_asked(models: str) -> None:
    state = start(checkpoint_dir=models, model="base")
    world, end = go("", "acestep", "data", "balanced", "", "", "", "run", state=state)
    assert end is not None
    assert not {"checkpoint_dir", "model"} & set(world.asker.keys)
    assert (end.values["checkpoint_dir"], end.values["model"]) == (models, "base")
    # But it is of ACE-Step, and nothing else takes it.
    _, end = go(*TINY, "data", "balanced", "", "", "", "run", state=state)
    assert end is not None
    assert "checkpoint_dir" not in end.values


def test_what_an_earlier_analysis_was_told_is_offered() -> None:
    offered = {"backend": "woodshed-tiny-dit", "dataset_dir": "data", "timestep_focus": "0.1,0.2", "rank": "8",
               "rank_min": "4", "rank_max": "12"}  # fmt: skip
    _, state = go("", "", "", "", "", "", "", "", "run", offered=offered)
    assert state is not None
    values = dict(state.values)
    assert values == {**offered, "rank": 8, "rank_min": 4, "rank_max": 12}


def test_pipelines_below_a_folder_are_chosen_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ace", "ace-2"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "model_index.json").write_text('{"_class_name": "AceStepPipeline"}')
    monkeypatch.chdir(tmp_path)
    _, state = go("", "acestep", "checkpoints", "ace-2", "data", "balanced", "", "", "", "run")
    assert state is not None
    assert (state.values["checkpoint_dir"], "model" in state.values) == ("checkpoints/ace-2", False)
    # What lies there is of ACE-Step, and no other model is asked about it.
    world, _ = go(*TINY, "data", "balanced", "", "", "", "run")
    assert not {"checkpoint_dir", "model"} & set(world.asker.keys)


def test_a_misspelt_path_is_no_hub_name(models: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(models).parent)
    with pytest.raises(UsageError, match="there is no folder models/acestep-v15-bas"):
        models_in("acestep", "models/acestep-v15-bas")
    assert [model.checkpoint_dir for model in models_in("acestep", "owner/name")] == ["owner/name"]
    assert [model.variant for model in models_in("acestep", "models")] == ["base", "broken", "turbo"]
    assert [model.variant for model in models_in("acestep", "models/acestep-v15-base")] == [None]
    with pytest.raises(UsageError, match="holds no model for stable-audio"):
        models_in("stable-audio", "models")


def test_only_ranks_and_focus_are_taken_from_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    path.write_text(json.dumps({"rank": "32", "rank_max": 96, "alpha": 64, "dataset_dir": "/elsewhere"}))
    world, state = go(str(path), "woodshed-tiny-dit", "data", "", "", "", "", "run")
    assert state is not None
    assert (state.values["rank"], state.values["rank_min"], state.values["rank_max"]) == (32, 16, 96)
    assert state.values["dataset_dir"] == "data"
    assert "--rank 32, --rank-max 96; 2 other settings are left alone" in world.asker.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "holds no settings by name"),
        ("rank: -3", "a rank is a whole number"),
        ("rank: true", "a rank is a whole number"),
        ("timestep_focus: early", "is no focus"),
        ("a: [", "cannot be read"),
    ],
)
def test_presets_that_are_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=said):
        read_preset(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_preset(tmp_path / "nothing.yaml")


def test_lists_name_all_that_there_is() -> None:
    assert tuple(BACKENDS) == KNOWN_BACKENDS
    assert set(FOCUSES) == set(FOCUS_NAMES)


def test_looking_at_folders(tmp_path: Path) -> None:
    assert look_at(tmp_path / "no").kind == "missing"
    assert look_at(tmp_path).kind == "nothing"
    (tmp_path / "a.FLAC").touch()
    found = look_at(tmp_path)
    assert (found.kind, found.num_items) == ("sounds", 1)
