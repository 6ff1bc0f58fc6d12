"""What `woodshed analyze` has to say when it was ended early, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group

from woodshed.cli.parts import facts_table, line_of

if TYPE_CHECKING:
    from woodshed.jobs.analyze_report import AnalyzeStopped


def lines_of(report: AnalyzeStopped) -> Group:
    """The report, ready to be printed."""
    return Group(
        line_of(f"stopped by {report.stopped_by}; what is measured is kept, and the same command goes on from here"),
        facts_table(
            {"looked at": f"{report.num_draws} of {report.most_draws} draws", "map": f"{report.output}, not written"}
        ),
    )
