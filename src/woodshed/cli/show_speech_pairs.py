"""What `woodshed speech pairs` has to say when it is done, for people."""

from __future__ import annotations

import shlex

from rich.console import Group

from woodshed.cli.parts import facts_table, failure_table, line_of, note_lines, table_of, with_kinds
from woodshed.cli.quantities import clock
from woodshed.jobs.speech_pairs import PairsReport


def lines_of(report: PairsReport) -> Group:
    """The report, ready to be printed."""
    rows = [
        (
            file.manifest,
            f"{file.num_rows}",
            f"{file.num_targets}",
            with_kinds(sum(file.left_out.values()), file.left_out),
            f"{file.num_speakers}",
            f"{file.num_pairs}",
            file.output or "not written",
        )
        for file in report.files
    ]
    written = [file.output for file in report.files if file.output is not None]
    head = f"done, but {report.num_failed} lines could not be read" if report.num_failed else "done"
    return Group(
        line_of(head),
        table_of(("manifest", "rows", "targets", "no targets", "speakers", "pairs", "output"), rows),
        facts_table({"time": clock(report.elapsed_s)}),
        *failure_table(report.failures, report.num_failed),
        *note_lines(report.notes),
        line_of("next:"),
        *(line_of(f"  give the trainer {shlex.quote(output)}") for output in written),
    )
