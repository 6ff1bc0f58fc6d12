"""What `woodshed songs dataset` has to say when it is done, for people."""

from __future__ import annotations

import shlex

from rich.console import Group

from woodshed.cli.parts import facts_table, failure_table, line_of, note_lines, with_kinds
from woodshed.cli.quantities import audio_length, clock
from woodshed.jobs.songs_dataset import SongsDatasetReport


def lines_of(report: SongsDatasetReport) -> Group:
    """The report, ready to be printed."""
    skipped = sum(report.skipped.values())
    facts = {
        "songs": f"{report.num_songs}",
        "samples": f"{report.num_written} ({report.num_captioned} with a caption that was given)",
        "skipped": with_kinds(skipped, report.skipped) if skipped else "",
        "failed": with_kinds(report.num_failed, report.failure_kinds) if report.num_failed else "",
        "audio": audio_length(report.audio_s),
        "file": report.output,
        "time": clock(report.elapsed_s),
    }
    return Group(
        line_of(_head(report)),
        facts_table(facts),
        *failure_table(report.failures, report.num_failed),
        *note_lines(report.notes),
        *(line_of(line) for line in _next(report)),
    )


def _head(report: SongsDatasetReport) -> str:
    if report.dry_run:
        return "looked only: nothing was written"
    if report.num_failed:
        return f"done, but {report.num_failed} of {report.num_songs} songs failed and are not in the file"
    return "done" if report.is_written else "nothing to do: the file says this already"


def _next(report: SongsDatasetReport) -> list[str]:
    if report.dry_run:
        return []
    return ["next:", f"  woodshed songs --dataset-json {shlex.quote(report.output)} --output my-tensors"]
