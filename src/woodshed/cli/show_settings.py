"""What `woodshed settings` has to say, for people."""

from __future__ import annotations

from rich.console import Group, RenderableType

from woodshed.cli.parts import facts_table, line_of
from woodshed.jobs.remember import SettingsReport

NOT_SET = "(not set)"


def lines_of(report: SettingsReport) -> RenderableType:
    """The report, ready to be printed."""
    if report.action == "path":
        return line_of(report.path)
    facts = {name: value or NOT_SET for name, value in report.values.items()}
    return Group(facts_table(facts), line_of(f"kept in {report.path}"))
