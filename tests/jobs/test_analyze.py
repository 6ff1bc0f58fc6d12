"""`woodshed analyze` from a folder to a map: what stands in it, what it depends on, and when it ends."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import woodshed
from tests.jobs.analyze_fixtures import OWN, Heard, analyze, encoded, hidden, plan, scores, spoil
from tests.jobs.conftest import tree
from tests.jobs.speech_fixtures import shared_models
from woodshed.backends.tiny_dit import woodshed_tiny_dit
from woodshed.errors import UsageError, WoodshedError
from woodshed.importance.kept_draws import draws_path
from woodshed.importance.map_files import read_map
from woodshed.jobs import inspect, verify
from woodshed.jobs.analyze_report import AnalyzeReport
from woodshed.jobs.encode import Silent
from woodshed.jobs.report import to_json
from woodshed.jobs.settings import InspectSettings, VerifySettings

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/fisher_map.schema.json").read_text())


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded(tmp_path_factory.mktemp("songs"))


@pytest.fixture(scope="module")
def made(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> AnalyzeReport:
    folder = tmp_path_factory.mktemp("made")
    return analyze(latents, output=folder / "map.json", plots=folder / "plots")


def test_the_map_names_every_layer_and_keeps_to_what_was_asked(made: AnalyzeReport) -> None:
    content = json.loads(Path(made.output).read_text())
    jsonschema.validate(content, SCHEMA)
    layers = list(woodshed_tiny_dit().layers())
    assert len(layers) == 66
    assert [layer["name"] for layer in content["woodshed"]["layers"]] == layers
    assert sorted(content["rank_pattern"]) == sorted(layers), "no layer is left out, unless somebody asks for that"
    ranks = list(content["rank_pattern"].values())
    assert {rank for rank in ranks if rank < 2 or rank > 24 or rank % 2} == set()
    assert abs(np.median(ranks) - 8) <= 2
    assert all(alpha == 2 * content["rank_pattern"][name] for name, alpha in content["alpha_pattern"].items())
    assert read_map(Path(made.output)) == made.map


def test_the_report_tells_what_happened(made: AnalyzeReport) -> None:
    assert made.exit_code == 0
    assert made.num_failed == 0
    assert made.map.woodshed is not None
    convergence = made.map.woodshed.convergence
    assert (convergence.num_draws, convergence.reason) == (18, "budget of passes used")
    assert made.map.total_batches == 18
    # Batches of 4 in two groups of looks, 16 and 2, of songs of four lengths; every fourth look once more.
    assert 18 / 4 <= convergence.num_passes <= 18 + 5
    assert made.announced_bytes > 1e6
    assert "--from-map" in made.next_steps[0]
    assert {Path(path).name for path in made.plots} >= {"ranks.png", "ranks.svg"}
    assert all(Path(path).stat().st_size > 1000 for path in made.plots)
    json.dumps(to_json(made))


def test_the_header_says_where_this_differs_from_other_tools(latents: Path, tmp_path: Path) -> None:
    heard = Heard()
    analyze(latents, heard, output=tmp_path / "map.json", runs=1, **OWN)
    said = "\n".join(heard.messages)
    assert said.count("balanced is the distribution of timesteps that the model itself trains with") == 1
    assert said.count("every layer gets an adapter") == 1
    assert "memory beside the model" in said


def test_equal_seeds_give_equal_files(latents: Path, made: AnalyzeReport, tmp_path: Path) -> None:
    again = analyze(latents, output=tmp_path / "map.json")
    other = analyze(latents, output=tmp_path / "other.json", seed=1)
    first = Path(made.output)
    assert Path(again.output).read_bytes() == first.read_bytes()
    assert draws_path(tmp_path / "map.json").read_bytes() == draws_path(first).read_bytes()
    assert scores(other.map) != scores(made.map)
    assert draws_path(tmp_path / "other.json").read_bytes() != draws_path(first).read_bytes()


def test_neighbours_in_a_batch_change_no_score(latents: Path, made: AnalyzeReport, tmp_path: Path) -> None:
    """Bytes may differ: the size of batches is told in the map."""
    alone = analyze(latents, output=tmp_path / "map.json", batch_size=1)
    for score in ("wg", "density", "energy"):
        a, b = scores(alone.map, score=score), scores(made.map, score=score)
        assert max(abs(a[name] / b[name] - 1) for name in a) < 1e-4, score
    assert alone.map.woodshed is not None
    assert made.map.woodshed is not None
    assert alone.map.woodshed.convergence.num_passes > made.map.woodshed.convergence.num_passes


def test_patience_is_paid_for_in_passes(latents: Path, tmp_path: Path) -> None:
    passes, reasons = [], []
    for patience in (1, 3):
        found = analyze(
            latents, output=tmp_path / "map.json", runs=None, convergence_patience=patience, max_relative_error=9.0,
            **OWN,
        ).map.woodshed  # fmt: skip
        assert found is not None
        passes.append(found.convergence.num_passes)
        reasons.append(found.convergence.reason)
    assert reasons == ["stable", "stable"]
    assert passes[1] >= passes[0] + 2 * 16 / 4, "two more checks of 16 draws, in batches of 4 at best"


def test_runs_and_batches_limit_what_is_looked_at(latents: Path, tmp_path: Path) -> None:
    found = analyze(latents, output=tmp_path / "map.json", runs=2, batches=4, **OWN).map
    assert found.woodshed is not None
    assert (found.num_runs, found.batches_per_run, found.total_batches) == (2, 4, 8)
    assert found.woodshed.convergence.reason == "budget of passes used"
    assert len(found.woodshed.items_used) == 6, "the second round begins with the songs that the first left out"


def test_few_draws_make_a_map_with_wide_intervals(latents: Path, tmp_path: Path) -> None:
    """Of five draws one alone lies in some focus: nothing is known there but a value."""
    made = analyze(latents, output=tmp_path / "map.json", runs=1, batches=5, crop_s=0.5, sensitivity=False).map
    assert made.woodshed is not None
    lonely = [focus for focus, number in made.woodshed.effective_draws.items() if number == 1]
    assert lonely
    assert all(math.isinf(made.woodshed.layers[0].profiles[focus].wg.high) for focus in lonely)


def test_a_dry_run_writes_nothing(latents: Path) -> None:
    before = tree(latents)
    found = plan(latents, runs=None)
    assert tree(latents) == before
    assert hidden(latents) == []
    assert (found.num_items, found.num_layers, found.most_draws) == (6, 66, 600)
    assert 0 < found.shortest_s < found.longest_s
    assert found.audio_s == pytest.approx(6 * 2.4 + 0.2 * (0 + 1 + 2 + 3 + 0 + 1), abs=0.2)
    assert min(found.model_bytes, found.extra_bytes, found.disk_bytes) > 1e6


def test_a_map_beside_the_data_changes_nothing_of_the_data(tmp_path: Path) -> None:
    latents = encoded(tmp_path, count=3)
    before = woodshed.open(latents)
    shown = to_json(inspect.run(InspectSettings(folder=latents)))
    analyze(latents, runs=1, **OWN)
    assert {path.name for path in latents.iterdir() if path.name.startswith("fisher_map")} == {
        "fisher_map.json", "fisher_map.draws.safetensors",
    }  # fmt: skip
    after = woodshed.open(latents)
    assert [after[i]["info"]["relpath"] for i in range(len(after))] == [f"song {i}.wav" for i in range(3)]
    assert len(before) == 3
    assert to_json(inspect.run(InspectSettings(folder=latents))) == shown
    # Another analysis of the same songs: neither the map nor its draws are data.
    again = analyze(latents, runs=1, **OWN)
    assert again.map.woodshed is not None
    assert again.map.woodshed.num_items == 3
    first = json.loads((latents / "fisher_map.json").read_text())
    assert first["dataset_hash"] == analyze(latents, runs=1, output=tmp_path / "elsewhere.json", **OWN).map.dataset_hash


def test_verify_knows_the_files_of_a_map(tmp_path: Path) -> None:
    latents = encoded(tmp_path, count=2)
    analyze(latents, runs=1, **OWN)
    assert verify.run(VerifySettings(folder=latents), observer=Silent()).exit_code == 0


def test_a_song_that_cannot_be_looked_at_is_told_and_the_others_are_used(tmp_path: Path) -> None:
    latents = encoded(tmp_path, count=4)
    spoil(latents, "song 2")
    report = analyze(latents, **OWN)
    assert report.exit_code == 3
    assert [name for name, _ in report.failures] == ["song 2.wav"]
    assert "finite" in report.failures[0][1]
    assert report.map.woodshed is not None
    assert report.map.woodshed.items_used == ["song 0.wav", "song 1.wav", "song 3.wav"]
    assert report.map.total_batches == 9


def test_without_one_good_song_there_is_no_map(tmp_path: Path) -> None:
    latents = encoded(tmp_path, count=2)
    spoil(latents, "song")
    with pytest.raises(UsageError, match=r"not one song can be looked at: .*finite"):
        analyze(latents)
    assert not (latents / "fisher_map.json").exists()
    assert hidden(latents) == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nowhere", "nowhere is not a folder"),
        (lambda folder: _made(folder / "empty"), "empty holds no latents or tokens"),
        (lambda folder: _text(folder / "a file"), "a file is not a folder"),
    ],
    ids=["missing", "empty", "a file"],
)
def test_what_is_no_folder_of_data_is_refused(make: object, said: str, tmp_path: Path) -> None:
    assert callable(make)
    with pytest.raises(WoodshedError, match=said):
        analyze(make(tmp_path))


def test_a_folder_for_another_model_is_refused(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Speech has no latents of woodshed-tiny."""
    from tests.docs.test_docs import speech_manifest
    from tests.jobs.tiny_indextts import LAYER

    speech_manifest(tmp_path)
    models = shared_models(tmp_path_factory)
    woodshed.speech_features(
        tmp_path / "data/manifest.jsonl", tmp_path / "features", config=models / "config.yaml", num_processes=1,
        semantic_layer=LAYER,
    )  # fmt: skip
    with pytest.raises(UsageError, match="woodshed-tiny gives 64"):
        analyze(tmp_path / "features")
    assert hidden(tmp_path / "features") == []


@pytest.mark.parametrize("focus", ["texture", "structure", "uniform", "0.1,0.3"])
def test_a_focus_draws_most_of_its_timesteps_there(focus: str, latents: Path, tmp_path: Path) -> None:
    found = analyze(latents, output=tmp_path / "map.json", timestep_focus=focus, **OWN).map
    low, high = {"texture": (0, 0.4), "structure": (0.6, 1), "uniform": (0, 1), "0.1,0.3": (0.1, 0.3)}[focus]
    assert found.timestep_range == [low, high]
    assert found.woodshed is not None
    assert {"balanced", "texture", "structure", "uniform", focus} == set(found.woodshed.layers[0].profiles)
    assert found.woodshed.effective_draws[focus] >= 0.6 * found.total_batches


@pytest.mark.parametrize("floor", ["nothing=0.5", "mlp=0.5"])
def test_ranks_that_cannot_be_given_are_refused_before_anything_is_measured(
    floor: str, latents: Path, tmp_path: Path
) -> None:
    wanted = {"floors": (floor,)} if floor.startswith("nothing") else {"budget_params": 1000}
    heard = Heard()
    with pytest.raises(UsageError, match=r"no layer is of|more than the budget"):
        analyze(latents, heard, output=tmp_path / "map.json", **wanted)
    assert list(tmp_path.iterdir()) == []
    assert not any("draws of" in message for message in heard.messages)


def test_a_model_without_timesteps_has_no_focus(latents: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--timestep-focus texture: whisper has no timesteps"):
        analyze(latents, output=tmp_path / "map.json", backend="whisper", timestep_focus="texture", device="cpu")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _text(path: Path) -> Path:
    path.write_text("no folder")
    return path
