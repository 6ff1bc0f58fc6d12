"""What `woodshed songs tag` has to say when it is done, for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType

from woodshed.cli.parts import facts_table, failure_table, line_of, note_lines, table_of, with_kinds
from woodshed.cli.quantities import clock
from woodshed.jobs.songs_tag import SongsTagReport

SHOWN_SONGS = 10
SHOWN_TAGS = 8
NO_TAG = "(none)"


def lines_of(report: SongsTagReport) -> Group:
    """The report, ready to be printed."""
    tags = [f"{tag or NO_TAG} ({count})" for tag, count in report.tags.items()]
    changed = f"{report.num_changed}" + (f" ({report.num_created} got a new sidecar)" if report.num_created else "")
    is_listing = report.action == "list"
    facts = {
        "songs": f"{report.num_songs}",
        "to be changed" if report.dry_run else "changed": "" if is_listing else changed,
        "unchanged": "" if is_listing else f"{report.num_unchanged}",
        "failed": with_kinds(report.num_failed, report.failure_kinds) if report.num_failed else "",
        "tags": ", ".join(tags[:SHOWN_TAGS]) + (", ..." if len(tags) > SHOWN_TAGS else ""),
        "folder": report.folder,
        "time": clock(report.elapsed_s),
    }
    return Group(
        line_of(_head(report)),
        facts_table(facts),
        *_songs(report),
        *failure_table(report.failures, report.num_failed),
        *note_lines(report.notes),
    )


def _head(report: SongsTagReport) -> str:
    if report.action == "list":
        return f"tags of {report.num_songs} songs"
    if report.dry_run:
        return "looked only: nothing was written"
    if report.num_failed:
        return f"done, but {report.num_failed} of {report.num_songs} songs failed"
    return "done" if report.num_changed else "nothing to do"


def _songs(report: SongsTagReport) -> Iterator[RenderableType]:
    shown = report.songs[:SHOWN_SONGS]
    if not shown:
        return
    if report.action == "list":
        yield table_of(("song", "tags"), [(song.id, song.after or NO_TAG) for song in shown])
    else:
        rows = [(song.id, song.before or NO_TAG, song.after or NO_TAG) for song in shown]
        yield table_of(("song", "tags before", "tags"), rows)
    total = report.num_songs - report.num_failed if report.action == "list" else report.num_changed
    if total > len(shown):
        yield line_of(f"and {total - len(shown)} more")
