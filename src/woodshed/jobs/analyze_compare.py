"""`woodshed analyze --compare A B`: two maps side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from woodshed.importance.compare import MapComparison, compare_maps
from woodshed.importance.fisher_map import FisherMap
from woodshed.importance.map_files import notes_on, read_map
from woodshed.jobs.analyze_report import CompareReport, LayerDifference


def compare_report(path_a: Path, path_b: Path) -> CompareReport:
    """Compare two files.

    Raises:
        StoreError: a file is no map.
        UsageError: the maps are of different models, or have no scored layer in common.
    """
    a, b = read_map(path_a), read_map(path_b)
    report = report_on(a, b, name_a=str(path_a), name_b=str(path_b))
    old = (f"{path}: {note}" for path, one in ((path_a, a), (path_b, b)) for note in notes_on(one))
    return replace(report, notes=(*report.notes, *old))


def report_on(a: FisherMap, b: FisherMap, *, name_a: str, name_b: str) -> CompareReport:
    """Compare two maps.

    Args:
        name_a: what the first map is called, such as its file's path.
        name_b: the second.

    Raises:
        UsageError: the maps are of different models, or have no scored layer in common.
    """
    found = compare_maps(a, b, name_a=name_a, name_b=name_b)
    return CompareReport(
        map_a=name_a,
        map_b=name_b,
        score=found.score,
        num_common=len(found.names),
        only_a=found.only_a,
        only_b=found.only_b,
        rank_correlation=found.rank_correlation,
        moved_share=found.moved_share,
        layers=_most_different_first(found),
        verdict=found.verdict,
        notes=found.notes,
    )


def _most_different_first(found: MapComparison) -> tuple[LayerDifference, ...]:
    """By z; by the ratio of the scores where there are no intervals; by name where even that is equal."""
    rows = [
        LayerDifference(
            name=name,
            rank_a=int(rank_a),
            rank_b=int(rank_b),
            relative_a=float(relative_a),
            relative_b=float(relative_b),
            z=float(z),
            is_distinct=bool(is_distinct),
        )
        for name, rank_a, rank_b, relative_a, relative_b, z, is_distinct in zip(
            found.names,
            found.ranks_a,
            found.ranks_b,
            found.relative_a,
            found.relative_b,
            found.z,
            found.is_distinct,
            strict=True,
        )
    ]
    return tuple(sorted(rows, key=lambda row: (not row.is_distinct, -abs(row.z), -_fold(row), row.name)))


def _fold(row: LayerDifference) -> float:
    return max(row.relative_a / row.relative_b, row.relative_b / row.relative_a)
