"""What `woodshed analyze --compare` has to say, for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType

from woodshed.cli.parts import facts_table, line_of, note_lines
from woodshed.cli.rank_grid import layer_table, times
from woodshed.jobs.analyze_report import CompareReport, LayerDifference

LEAST_SHOWN, MOST_SHOWN = 8, 20


def lines_of(report: CompareReport) -> Group:
    """The report, ready to be printed: the verdict first."""
    facts = {
        "A": report.map_a,
        "B": report.map_b,
        "compared by": report.score,
        "layers": f"{report.num_common}" + _alone(report.only_a, "A") + _alone(report.only_b, "B"),
        "correlation": f"{report.rank_correlation:.3f} between the orders of the layers (1: the same order)",
        "moved": f"{report.moved_share:.1%} of the ranks' parameters lie elsewhere in B than in A",
    }
    return Group(line_of(report.verdict), facts_table(facts), *_layers(report), *note_lines(report.notes))


def _alone(names: tuple[str, ...], which: str) -> str:
    return f", and {len(names)} in {which} alone" if names else ""


def _layers(report: CompareReport) -> Iterator[RenderableType]:
    num_distinct = sum(row.is_distinct for row in report.layers)
    shown = report.layers[: min(MOST_SHOWN, max(LEAST_SHOWN, num_distinct))]
    if not shown:
        return
    has_tests = any(row.z for row in report.layers)
    head = ("layer", "rank A", "rank B", "A/mean", "B/mean", *(("z",) if has_tests else ()))
    yield line_of("the most different layers" + (" (*: beyond their intervals):" if num_distinct else ":"))
    yield layer_table(head, [_row(row, has_tests) for row in shown], left=(5,))
    if num_distinct > len(shown):
        yield line_of(f"and {num_distinct - len(shown)} more that differ beyond their intervals")


def _row(row: LayerDifference, has_tests: bool) -> tuple[str, ...]:
    z = (f"{row.z:+.1f}{' *' if row.is_distinct else ''}",) if has_tests else ()
    ranks = (f"{row.rank_a or '-'}", f"{row.rank_b or '-'}")
    return (row.name, *ranks, times(row.relative_a), times(row.relative_b), *z)
