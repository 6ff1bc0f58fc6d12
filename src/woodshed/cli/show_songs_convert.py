"""What `woodshed songs convert` has to say when it is done, for people."""

from __future__ import annotations

from rich.console import Group

from woodshed.cli.parts import facts_table, failure_table, line_of, note_lines, with_kinds
from woodshed.cli.quantities import clock
from woodshed.jobs.songs_convert import SongsConvertReport

WHY = {
    "nothing_known": "nothing is known",
    "equal": "says the same already",
    "exists": "says something else",
    "same_sidecar": "shares a sidecar",
    "duplicate": "listed twice",
}


def lines_of(report: SongsConvertReport) -> Group:
    """The report, ready to be printed."""
    skipped = {WHY.get(why, why): count for why, count in report.skipped.items()}
    facts = {
        "songs": f"{report.num_songs}",
        "to be written" if report.dry_run else "written": f"{report.num_written}",
        "left alone": with_kinds(sum(skipped.values()), skipped) if skipped else "",
        "failed": with_kinds(report.num_failed, report.failure_kinds) if report.num_failed else "",
        "from": report.source,
        "to": f".{report.to} beside each sound",
        "time": clock(report.elapsed_s),
    }
    return Group(
        line_of(_head(report)),
        facts_table(facts),
        *failure_table(report.failures, report.num_failed),
        *note_lines(report.notes),
    )


def _head(report: SongsConvertReport) -> str:
    if report.num_failed:
        end = f", but {report.num_failed} of {report.num_songs} songs failed"
    elif not report.num_written:
        return "nothing to do"
    else:
        end = ""
    return ("looked only: nothing was written" if report.dry_run else "done") + end
