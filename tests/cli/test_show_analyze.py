"""Claims about how a map, a plan and a comparison look in a terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.importance.example_map import SHAPES, example_map, layer_names
from woodshed.cli.rank_grid import grid_lines, histogram_lines, interval_bar
from woodshed.cli.show import OWN_PAGES, show
from woodshed.cli.show_analyze import lines_of
from woodshed.cli.show_compare import lines_of as compare_lines
from woodshed.importance.fisher_map import FisherMap
from woodshed.importance.layer_grid import layer_grid
from woodshed.importance.map_view import LayerView, layer_views
from woodshed.jobs.analyze_compare import report_on
from woodshed.jobs.analyze_report import AnalyzePlan, AnalyzeReport, AnalyzeStopped, CompareReport

MAP = example_map(num_blocks=24)
REPORT = AnalyzeReport(
    output="/data/songs/fisher_map.json", map=MAP, num_failed=0, failures=(), elapsed_s=123.0,
    announced_bytes=2**29, peak_extra_bytes=2**29,
    plots=("plots/ranks.png",), notes=("mind the gap",), next_steps=("woodshed train",),
)  # fmt: skip
THEIRS = replace(REPORT, map=MAP.model_copy(update={"woodshed": None}), peak_extra_bytes=0, notes=())
PLAN = AnalyzePlan(
    dataset="songs", output="songs/fisher_map.json", backend="acestep", variant="turbo", num_items=12, audio_s=3000.0,
    num_layers=264, timestep_focus="texture", rank=64, rank_min=16, rank_max=128, budget_params=None, most_draws=600,
    fewest_draws=100, s_per_draw=0.5, model_bytes=3 * 2**30, extra_bytes=2**29, disk_bytes=6 * 2**30,
    mean_gradients="sketch", fragile="adapters can spoil a Turbo model",
)  # fmt: skip
STOPPED = AnalyzeStopped(output="songs/fisher_map.json", num_draws=80, most_draws=600, stopped_by="SIGINT")
COMPARED = report_on(
    example_map(noise_seed=1),
    example_map(noise_seed=2, planted={"layers.1.mlp.up_proj": 2.0}),
    name_a="drums.json",
    name_b="strings.json",
)


def page(report: object, width: int = 80, **console: Any) -> str:
    """As `width` columns of a terminal show it."""
    stream = io.StringIO()
    lines = compare_lines(report) if isinstance(report, CompareReport) else lines_of(report)  # type: ignore[arg-type]
    Console(file=stream, width=width, **console).print(lines, markup=False, highlight=False, emoji=False)
    return stream.getvalue()


def flat(text: str) -> str:
    return " ".join(text.split())


def with_part(report: AnalyzeReport, **part: object) -> AnalyzeReport:
    assert report.map.woodshed is not None
    changed = report.map.woodshed.model_copy(update=part)
    return replace(report, map=report.map.model_copy(update={"woodshed": changed}))


def shown_ranks(views: tuple[LayerView, ...], width: int) -> dict[tuple[str, str], str]:
    """What a reader takes from the grid: the number below each column's head, in each block's line."""
    found: dict[tuple[str, str], str] = {}
    lines = list(grid_lines(views, width))
    heads = [at for at, line in enumerate(lines) if line.startswith("layers ")]
    projections = iter(layer_grid(view.name for view in views).projections)
    for at, following in zip(heads, [*heads[1:], len(lines) + 1], strict=True):
        ends = [match.end() for match in re.finditer(r"\S+", lines[at])][1:]
        columns = [next(projections) for _ in ends]
        for line in lines[at + 1 : following - 1]:
            block = line.split()[0]
            for column, end in zip(columns, ends, strict=True):
                found[block, column] = line[:end].split()[-1]
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(20, 130))
def test_the_grid_shows_each_layers_rank_in_its_place_at_any_width(width: int) -> None:
    views = layer_views(MAP)
    found = shown_ranks(views, width)
    assert found == {tuple(view.name.split(".", 2)[1:]): f"{view.rank}" for view in views}
    assert max(map(len, grid_lines(views, width))) <= width


def test_a_layer_without_adapter_and_one_that_a_block_lacks_look_different() -> None:
    names = ("layers.0.attn.q_proj", "layers.0.attn.v_proj", "layers.1.attn.v_proj")
    views = [LayerView(name=name, rank=rank) for name, rank in zip(names, (0, 16, 32), strict=True)]
    *_, first, second = grid_lines(views, 80)
    assert first.split() == ["0", "-", "16"]
    assert second.split() == ["1", "32"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=400), st.integers(20, 100))
def test_the_histogram_counts_every_layer_and_fits(ranks: list[int], width: int) -> None:
    lines = list(histogram_lines(ranks, width))
    assert sum(int(line.split()[-1]) for line in lines) == len(ranks)
    assert max(map(len, lines)) <= width
    assert all(("#" in line) == (line.split()[-1] != "0") for line in lines)


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1.0, 1e3), st.integers(3, 40))
def test_the_value_lies_on_its_interval(value: float, reach: float, width: int) -> None:
    bar = interval_bar(value, value / reach, value * reach, scale=(0.25, 8.0), width=width)
    assert len(bar) == width
    assert bar.count("o") == 1
    assert re.fullmatch(r" *-*o-* *", bar)


@pytest.mark.parametrize("report", [REPORT, THEIRS, PLAN, COMPARED], ids=["map", "Side-Step's", "plan", "compared"])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal(report: object, width: int) -> None:
    assert max(map(len, page(report, width).splitlines())) <= width


@pytest.mark.parametrize("width", [44, 60, 80])
def test_numbers_are_never_broken_in_two(width: int) -> None:
    best = sorted(layer_views(MAP), key=lambda view: (-view.rank, -(view.score or 0)))[:10]
    rows = page(REPORT, width).split("highest ranks:")[1].split("rank of each layer:")[0].splitlines()[2:]
    ranks = [match[1] for row in rows if (match := re.match(r"\S+ +(\d+) ", row))]
    assert ranks == [f"{view.rank}" for view in best]


def test_eighty_columns_have_room_for_names_intervals_and_bars() -> None:
    rows = page(REPORT).split("highest ranks:")[1].splitlines()[2:12]
    for row in rows:
        assert re.fullmatch(r"layers\.\d+\.\w+\.\w+_proj +\d+ +\d+\.\d\d +[\d.]+\.\.[\d.]+ +-*o-* +\d+\s*", row), row


def test_plain_output_has_no_escape_codes_and_any_name_is_printed_safely() -> None:
    strange = MAP.model_copy(update={"model_variant": "ba\x1b[31mse"})
    layers = [layer.model_copy(update={"name": f"{layer.name}\x1b[2J"}) for layer in MAP.woodshed.layers]  # type: ignore[union-attr]
    report = with_part(replace(REPORT, map=strange), layers=layers, leverage=[{"id": "a\r\n[b]", "share": 0.9}] * 2)
    text = page(report, force_terminal=True, color_system="truecolor")
    assert "\x1b[31m" not in text
    assert "\x1b[2J" not in text
    assert "\r" not in text
    assert r"a\r\n[b]" in text
    assert "\x1b" not in page(report)


def test_the_map_says_why_it_stopped_and_what_ranks_cost() -> None:
    text = flat(page(REPORT))
    flat_params = sum(64 * sum(SHAPES[name.split(".", 2)[2]]) for name in layer_names(24))
    assert MAP.woodshed is not None
    more = MAP.woodshed.allocation.num_params / flat_params - 1
    assert "stable: ranks stayed put for 5 checks" in text
    assert f"{more:.1%} more than flat rank 64 ({flat_params / 1e6:.2f} M)" in text
    assert "600 draws in 188 backward passes" in text
    assert "median 64 (16 to 128), in 264 of 264 layers" in text
    assert "yes, to this data (scores on silence correlate 0.81" in text
    assert "scores of two halves of the songs correlate 0.97" in text
    assert "5e-5 where you took 1e-4" in text


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("budget of passes used", "before the ranks were stable"),
        ("not converged", "still moving"),
        ("fixed", "every song was looked at"),
    ],
)
def test_every_reason_has_its_words(reason: str, words: str) -> None:
    assert MAP.woodshed is not None
    convergence = MAP.woodshed.convergence.model_copy(update={"reason": reason})
    assert words in flat(page(with_part(REPORT, convergence=convergence)))


def test_a_budget_is_compared_with_the_budget() -> None:
    assert MAP.woodshed is not None
    allocation = MAP.woodshed.allocation.model_copy(update={"budget_params": 90_000_000, "base_rank": None})
    assert "of a budget of 90.00 M" in flat(page(with_part(REPORT, allocation=allocation)))


def test_a_map_that_is_not_specific_says_so_and_one_without_reference_says_nothing() -> None:
    assert MAP.woodshed is not None
    assert MAP.woodshed.reference is not None
    plain = MAP.woodshed.reference.model_copy(update={"is_specific": False, "kind": "permuted"})
    assert "no: the map tells of the model, hardly of this data (scores on permuted" in flat(
        page(with_part(REPORT, reference=plain))
    )
    assert "specific" not in page(with_part(REPORT, reference=None))


def test_a_loss_without_noise_has_no_timesteps_to_tell_of() -> None:
    assert "timesteps" in page(REPORT)
    assert "timesteps" not in page(with_part(REPORT, trace={}))


def test_songs_that_drive_the_map_are_named_the_largest_first() -> None:
    text = page(with_part(REPORT, leverage=[{"id": "loud", "share": 0.5}, {"id": "soft", "share": 0.125}]))
    assert re.search(r"50\.0%  loud\n +12\.5%  soft\n", text)
    assert "(equal: 8.3%)" in text


def test_layers_that_the_output_reacts_to_are_named_only_if_their_ranks_are_high() -> None:
    assert MAP.woodshed is not None
    by_rank = sorted(MAP.woodshed.layers, key=lambda layer: layer.rank)
    for layer, is_warned in ((by_rank[-1], True), (by_rank[0], False)):
        profile = layer.profiles["balanced"]
        assert profile.sensitivity is not None
        huge = profile.model_copy(update={"sensitivity": profile.sensitivity.model_copy(update={"value": 1.0})})
        changed = layer.model_copy(update={"profiles": {"balanced": huge}})
        layers = [changed if one.name == layer.name else one for one in MAP.woodshed.layers]
        warning = flat(page(with_part(REPORT, layers=layers))).split("mind forgetting:")[1]
        assert (f"{layer.name} ({layer.rank})" in warning) is is_warned


def test_turbo_is_warned_of_and_base_is_not() -> None:
    assert "Turbo" not in page(REPORT)
    turbo = MAP.model_copy(update={"model_variant": "acestep-v15-xl-turbo"})
    assert "prefer a Base model" in flat(page(replace(REPORT, map=turbo)))


def test_a_map_of_side_step_shows_what_it_has_and_invents_nothing() -> None:
    text = page(THEIRS)
    for invented in ("shrinkage", "certainty", "specific", "halves", "90 %", "group", "forgetting", "parameters"):
        assert invented not in text
    assert "made by    Side-Step, schema 2" in text
    assert "density/mean" in text


def test_failures_are_counted_and_named() -> None:
    failed = replace(REPORT, num_failed=12, failures=tuple((f"song-{n}", "truncated") for n in range(12)))
    text = page(failed)
    assert text.startswith("done, but 12 items failed\n")
    assert "song-9" in text
    assert "song-10" not in text
    assert "and 2 more" in text


def test_the_plan_tells_time_from_shortest_to_longest_and_memory() -> None:
    text = flat(page(PLAN))
    assert "0:50 if the ranks are soon stable, 5:00 at most (100 to 600 draws, 0.5 s each)" in text
    assert "3.0 GiB for the model, 512.0 MiB beside it" in text
    assert "12, 50.0 min of sound" in text
    assert "mean gradients kept as sketches" in text
    assert "mind: adapters can spoil a Turbo model" in text
    assert "soon" not in page(replace(PLAN, fewest_draws=600))
    assert "9.00 M parameters" in page(replace(PLAN, rank=None, budget_params=9_000_000))


def test_a_comparison_begins_with_its_verdict_and_marks_what_is_distinct() -> None:
    lines = page(COMPARED).splitlines()
    assert lines[0] == "The maps differ beyond their intervals in 1 of 44 layers."
    marked = [line for line in lines if line.rstrip().endswith(" *")]
    assert [line.split()[0] for line in marked] == ["layers.1.mlp.up_proj"]


def test_a_comparison_without_intervals_shows_no_z() -> None:
    theirs: FisherMap = example_map(seed=1).model_copy(update={"woodshed": None})
    text = page(report_on(example_map(), theirs, name_a="a", name_b="b"))
    assert text.startswith("It cannot be said whether the maps differ beyond chance: b has no intervals.")
    assert not re.search(r"\bz\b", text)


def test_the_reports_find_their_pages() -> None:
    for report in (REPORT, PLAN, COMPARED, STOPPED):
        stream = io.StringIO()
        show(report, Console(file=stream))
        assert max(map(len, stream.getvalue().splitlines())) <= 120
        assert type(report).__name__ in OWN_PAGES


def test_an_analysis_that_was_stopped_says_how_to_go_on() -> None:
    stream = io.StringIO()
    show(STOPPED, Console(file=stream))
    text = flat(stream.getvalue())
    assert text.startswith("stopped by SIGINT; what is measured is kept, and the same command goes on from here")
    assert "80 of 600 draws" in text
    assert "songs/fisher_map.json, not written" in text
