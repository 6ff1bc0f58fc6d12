"""What `woodshed speech retokenize` has to say when it is done, for people."""

from __future__ import annotations

import shlex

from rich.console import Group

from woodshed.cli.parts import facts_table, failure_table, line_of, note_lines, with_kinds
from woodshed.cli.quantities import clock
from woodshed.jobs.speech_retokenize import RetokenizeReport


def lines_of(report: RetokenizeReport) -> Group:
    """The report, ready to be printed."""
    facts = {
        "rows": f"{report.num_rows}",
        "with other text ids": f"{report.num_changed}",
        "back again": f"{report.num_back}" if report.num_back else "",
        "failed": with_kinds(report.num_failed, report.failure_kinds) if report.num_failed else "",
        "in the manifests": f"{report.num_done}",
        "text ids": f"{report.num_tokens} (before: {report.num_tokens_before})",
        "unknown": f"{report.unknown_rate:.2%} (before: {report.unknown_rate_before:.2%})",
        "tokenizer": ", ".join(report.tokenizers),
        "folder": report.folder,
        "time": clock(report.elapsed_s),
    }
    return Group(
        line_of(_head(report)),
        facts_table(facts),
        *failure_table(report.failures, report.num_failed),
        *note_lines(report.notes),
        *(line_of(line) for line in _next(report)),
    )


def _head(report: RetokenizeReport) -> str:
    if report.dry_run:
        return "counted only: nothing was written"
    if not report.is_written:
        return "nothing to do: the folder has these text ids already"
    if report.num_failed:
        return f"done, but {report.num_failed} of {report.num_rows} rows have a text that cannot be used"
    return "done"


def _next(report: RetokenizeReport) -> list[str]:
    if report.dry_run or not report.is_written:
        return []
    folder = shlex.quote(report.folder)
    return ["next:", f"  woodshed verify {folder}", f"  woodshed speech pairs {folder}"]
