"""What reports are made of: lines, facts, tables, failures, notes; printable whatever they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from woodshed.cli.quantities import printable
from woodshed.contracts import Failure

SHOWN_FAILURES = 10


def line_of(text: str) -> Text:
    return Text(printable(text))


def with_kinds(count: int, kinds: Mapping[str, int]) -> str:
    told = ", ".join(f"{kind} {kinds[kind]}" for kind in sorted(kinds, key=lambda kind: -kinds[kind]))
    return f"{count} ({told})" if told else f"{count}"


def facts_table(facts: Mapping[str, str]) -> Table:
    """Name and value, one a line; what has no value is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    # A folder's name is there to be copied, so a long one is folded and never cut.
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            grid.add_row(Text(name), line_of(value))
    return grid


def table_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in head:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(line_of(cell) for cell in row))
    return table


def failure_table(failures: Sequence[Failure], count: int) -> list[RenderableType]:
    if not failures:
        return []
    shown = failures[:SHOWN_FAILURES]
    table = table_of(("what", "kind", "reason"), [(failure.id, failure.kind, failure.reason) for failure in shown])
    more = count - len(shown)
    return [table, line_of(f"and {more} more")] if more > 0 else [table]


def note_lines(notes: Iterable[str]) -> list[Text]:
    return [line_of(f"note: {note}") for note in notes]
