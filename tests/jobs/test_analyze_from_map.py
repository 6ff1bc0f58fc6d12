"""Ranks given anew from a map, and two maps compared: no model is loaded and no data is looked at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.jobs.analyze_fixtures import OWN, Heard, analyze, analyze_anew, encoded, ranks_of
from woodshed.errors import StoreError, UsageError
from woodshed.importance.fisher_map import FisherMap
from woodshed.importance.kept_draws import draws_path
from woodshed.importance.map_files import read_map
from woodshed.jobs.analyze import run
from woodshed.jobs.analyze_report import CompareReport
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.complaints import checked

GOLDEN = Path(__file__).parents[1] / "golden" / "sidestep"


@pytest.fixture(scope="module")
def map_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny model, and its songs are gone."""
    folder = tmp_path_factory.mktemp("made")
    latents = encoded(folder)
    made = folder / "map.json"
    analyze(latents, output=made, runs=8, **OWN)
    shutil.rmtree(latents)
    return made


def prices(made: FisherMap) -> dict[str, int]:
    assert made.woodshed is not None
    return {layer.name: layer.d_in + layer.d_out for layer in made.woodshed.layers}


def test_equal_requests_give_equal_ranks(map_file: Path, tmp_path: Path) -> None:
    report = analyze_anew(map_file, output=tmp_path / "again.json")
    assert report.exit_code == 0
    assert ranks_of(tmp_path / "again.json") == ranks_of(map_file)
    assert len(set(ranks_of(map_file).values())) > 1, "equal ranks would be equal whatever was asked"
    first, again = read_map(map_file).woodshed, report.map.woodshed
    assert first is not None
    assert again is not None
    assert [layer.profiles for layer in again.layers] == [layer.profiles for layer in first.layers]
    assert again.weights_digest == first.weights_digest


def test_another_median(map_file: Path, tmp_path: Path) -> None:
    made = analyze_anew(map_file, output=tmp_path / "b.json", rank=16, rank_max=48).map
    assert made.base_rank == 16
    assert made.woodshed is not None
    assert abs(made.woodshed.allocation.median_rank - 16) <= 2


@pytest.mark.parametrize("budget", [9_000, 12_345, 20_000])
def test_a_budget_is_never_overspent(budget: int, map_file: Path, tmp_path: Path) -> None:
    made = analyze_anew(map_file, output=tmp_path / "b.json", budget_params=budget, rank_max=64).map
    spent = sum(prices(made)[name] * rank for name, rank in made.rank_pattern.items())
    assert budget - 2 * max(prices(made).values()) < spent <= budget


def test_a_budget_in_megabytes_is_that_of_a_bf16_file(map_file: Path, tmp_path: Path) -> None:
    a = analyze_anew(map_file, output=tmp_path / "a.json", budget_mb=0.02, rank_max=64).map
    b = analyze_anew(map_file, output=tmp_path / "b.json", budget_params=10_000, rank_max=64).map
    assert a.rank_pattern == b.rank_pattern


@pytest.mark.parametrize("score", ["density", "spectrum"])
def test_another_score(score: str, map_file: Path, tmp_path: Path) -> None:
    made = analyze_anew(map_file, output=tmp_path / "b.json", score=score, rank_max=48).map
    assert made.woodshed is not None
    assert made.woodshed.allocation.score == score


def test_the_rule_of_side_step(map_file: Path, tmp_path: Path) -> None:
    given = {"rank": 8, "rank_min": 8, "rank_multiple": 8, "allocator": "sidestep"}
    made = analyze_anew(map_file, output=tmp_path / "b.json", **given).map
    assert len(made.rank_pattern) == int(0.55 * 6)
    assert len(made.excluded_modules) == 6 - len(made.rank_pattern)


def test_true_exclusion(map_file: Path, tmp_path: Path) -> None:
    """What is left out has a score, and no ending in `target_modules` that PEFT would find it by."""
    made = analyze_anew(map_file, output=tmp_path / "b.json", coverage=0.5).map
    left_out = {name.removeprefix("decoder.") for name in made.excluded_modules}
    assert len(made.rank_pattern) == 3
    assert len(left_out) == 3
    assert not any(name.endswith(target) for name in left_out for target in made.target_modules)


def test_a_named_focus_comes_from_its_profile(map_file: Path, tmp_path: Path) -> None:
    made = analyze_anew(map_file, output=tmp_path / "b.json", timestep_focus="texture").map
    assert (made.timestep_focus, made.timestep_range) == ("texture", [0.0, 0.4])
    without_draws = tmp_path / "alone.json"
    shutil.copy(map_file, without_draws)
    assert analyze_anew(without_draws, timestep_focus="texture", output=tmp_path / "c.json").map == made


def test_any_range_is_told_from_the_draws(map_file: Path, tmp_path: Path) -> None:
    made = analyze_anew(map_file, output=tmp_path / "b.json", timestep_focus="0.2,0.7", score="density").map
    assert made.timestep_range == [0.2, 0.7]
    whole = analyze_anew(map_file, output=tmp_path / "c.json", timestep_focus="0,1", score="density").map
    named = analyze_anew(map_file, output=tmp_path / "d.json", timestep_focus="uniform", score="density").map
    assert whole.rank_pattern == named.rank_pattern, "they are one distribution, told in two ways"


def test_a_range_without_its_draws(map_file: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.json"
    shutil.copy(map_file, alone)
    with pytest.raises(StoreError, match=r"alone\.draws\.safetensors.*only the map's own focuses are known"):
        analyze_anew(alone, output=tmp_path / "b.json", timestep_focus="0.2,0.7", score="density")
    with pytest.raises(UsageError, match=r"the map has no wg for --timestep-focus 0\.2,0\.7"):
        analyze_anew(map_file, output=tmp_path / "b.json", timestep_focus="0.2,0.7")
    with pytest.raises(UsageError, match="draws lie within timesteps"):
        analyze_anew(map_file, output=tmp_path / "b.json", timestep_focus="0.2,0.2000001", score="density")
    assert not (tmp_path / "b.json").exists()


def test_draws_of_another_map_are_not_taken(map_file: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.json"
    shutil.copy(map_file, alone)
    latents = encoded(tmp_path, count=2)
    analyze(latents, output=tmp_path / "other.json", runs=1, **OWN)
    shutil.copy(draws_path(tmp_path / "other.json"), draws_path(alone))
    with pytest.raises(StoreError, match="holds the draws of another map"):
        analyze_anew(alone, output=tmp_path / "b.json", timestep_focus="0.2,0.7", score="density")


def test_a_map_of_side_step_has_not_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a map of Side-Step: .*--dataset-dir") as caught:
        analyze_anew(GOLDEN / "fisher_map_tiny_balanced.json", output=tmp_path / "b.json")
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_map(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"version": 2, "rank_pat')
    for name, said in (("nothing.json", "there is no map"), ("torn.json", "is damaged"), (".", "there is no map")):
        with pytest.raises(StoreError, match=said):
            analyze_anew(tmp_path / name, output=tmp_path / "b.json")


def test_the_map_itself_is_written_over_only_with_consent(map_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "map.json"
    shutil.copy(map_file, copy)
    with pytest.raises(UsageError, match="exists"):
        analyze_anew(copy, rank=16, yes=False)
    assert copy.read_bytes() == map_file.read_bytes()
    assert analyze_anew(copy, rank=16).output == str(copy)
    assert read_map(copy).base_rank == 16


def test_a_dry_run_tells_the_ranks_and_leaves_the_map_alone(map_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "map.json"
    shutil.copy(map_file, copy)
    told = analyze_anew(copy, rank=16, rank_max=48, yes=False, dry_run=True, plots=tmp_path / "plots")
    assert (
        told.map.rank_pattern
        == analyze_anew(map_file, rank=16, rank_max=48, output=tmp_path / "b.json").map.rank_pattern
    )
    assert "dry run: the map was not written" in told.notes
    assert copy.read_bytes() == map_file.read_bytes()
    assert not (tmp_path / "plots").exists()


def test_new_ranks_are_drawn_too(map_file: Path, tmp_path: Path) -> None:
    report = analyze_anew(map_file, output=tmp_path / "b.json", plots=tmp_path / "plots")
    assert sorted(report.plots) == sorted(str(path) for path in (tmp_path / "plots").iterdir())
    assert len(report.plots) >= 6


def test_a_reference_cannot_be_looked_at_afterwards(map_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--reference is looked at with the data"):
        analyze_anew(map_file, output=tmp_path / "b.json", reference="silence")


def compared(a: Path, b: Path) -> CompareReport:
    report = run(checked(AnalyzeSettings, {"compare": (a, b)}), observer=Heard())
    assert isinstance(report, CompareReport)
    return report


def test_a_map_does_not_differ_from_itself_with_other_ranks(map_file: Path, tmp_path: Path) -> None:
    analyze_anew(map_file, output=tmp_path / "b.json", rank=16, rank_max=48)
    report = compared(map_file, tmp_path / "b.json")
    assert report.exit_code == 0
    assert (report.num_common, report.only_a, report.only_b) == (6, (), ())
    assert report.rank_correlation == pytest.approx(1)
    assert not any(layer.is_distinct for layer in report.layers)
    assert report.moved_share > 0.1


def test_maps_of_different_models_cannot_be_compared(map_file: Path, tmp_path: Path) -> None:
    content = json.loads(map_file.read_text())
    content["woodshed"]["backend"] = "acestep"
    (tmp_path / "b.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="of acestep"):
        compared(map_file, tmp_path / "b.json")


def test_a_map_is_compared_with_one_of_side_step(map_file: Path, tmp_path: Path) -> None:
    """It has layers of the same names, and no intervals: nothing can be said to differ."""
    report = compared(map_file, GOLDEN / "fisher_map_tiny_balanced.json")
    assert report.num_common > 0
    assert not any(layer.is_distinct for layer in report.layers)


def test_the_sidestep_rule_finds_the_effective_ranks_again(tmp_path: Path) -> None:
    latents = encoded(tmp_path, count=3)
    made = analyze(latents, output=tmp_path / "a.json", allocator="sidestep", rank_multiple=8, rank_max=24)
    again = run_anew(tmp_path / "a.json", tmp_path / "b.json", allocator="sidestep")
    once_more = run_anew(tmp_path / "b.json", tmp_path / "c.json", allocator="sidestep")
    assert made.map.rank_pattern == again.map.rank_pattern == once_more.map.rank_pattern
    plain = analyze(latents, output=tmp_path / "d.json")
    without = run_anew(Path(plain.output), tmp_path / "e.json", allocator="sidestep")
    assert any("no effective ranks" in note for note in without.notes)


def run_anew(source: Path, output: Path, **more: Any) -> AnalyzeReport:
    return analyze_anew(source, output=output, rank_multiple=8, **more)


def test_spectra_are_of_the_focus_that_was_measured(map_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="spectra for --timestep-focus balanced only, not for texture"):
        analyze_anew(map_file, output=tmp_path / "b.json", timestep_focus="texture", score="spectrum")
