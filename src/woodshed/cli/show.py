"""What a command has to say when it is done, for people."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from woodshed.cli.quantities import audio_length, clock, printable, size
from woodshed.contracts import Failure, Summary
from woodshed.jobs.report import DecodeReport, DemoReport, InspectReport, PlanReport, VerifyReport

Report = Summary | PlanReport | DecodeReport | InspectReport | VerifyReport | DemoReport

SHOWN_FAILURES = 10
PLAIN_WIDTH = 120
"""Columns where the output is no terminal."""


def show(report: Report, console: Console) -> None:
    """Write a report for people; where the console is no terminal, as wide as `PLAIN_WIDTH`."""
    if not console.file.isatty():
        console.width = PLAIN_WIDTH
    console.print(_rendered(report), markup=False, highlight=False, emoji=False)


def _rendered(report: Report) -> RenderableType:
    match report:
        case Summary():
            return _summary(report)
        case PlanReport():
            return _plan(report)
        case DecodeReport():
            return _decoded(report)
        case InspectReport():
            return _inspected(report)
        case VerifyReport():
            return _verified(report)
        case DemoReport():
            return _demo(report)


def _summary(summary: Summary) -> Group:
    facts = {
        "rows": f"{summary.num_rows}",
        "done": f"{summary.num_done} ({summary.num_new} by this run)",
        "failed": _with_kinds(summary.num_failed, summary.failure_kinds),
        "skipped": f"{summary.num_skipped}",
        "pending": f"{summary.num_pending}" if summary.num_pending else "",
        "silent": f"{summary.num_silent}" if summary.num_silent else "",
        "records": f"{summary.num_records}",
        "audio": audio_length(summary.audio_s),
        "time": clock(summary.elapsed_s),
        "written": size(summary.bytes_written),
        "output": summary.output,
    }
    if summary.stopped_by:
        head = f"stopped by {summary.stopped_by}; what is done is kept, and the same command goes on from here"
    elif summary.num_failed:
        head = f"done, but {summary.num_failed} of {summary.num_rows} rows failed"
    else:
        head = "done"
    return Group(
        _line(head),
        _facts(facts),
        *_failures(summary.failures, summary.num_failed),
        *_notes(summary.notes),
        *_next(summary),
    )


def _next(summary: Summary) -> list[Text]:
    folder = shlex.quote(summary.output)
    steps = [f"woodshed verify {folder}", f"woodshed decode {folder} --limit 3"] if summary.num_done else []
    if summary.num_failed and not summary.stopped_by:
        steps.append("the same command with --retry-failed, once the causes are mended")
    return [_line("next:"), *(_line(f"  {step}") for step in steps)] if steps else []


def _plan(plan: PlanReport) -> Group:
    window = "whole files"
    if plan.window_samples is not None:
        window = f"{plan.window_samples} samples ({plan.window_samples / plan.rate_hz:.2f} s at {plan.rate_hz} Hz)"
    overhead = f" (the model sees {plan.computed_s / plan.audio_s:.2f}x that)" if plan.audio_s else ""
    facts = {
        "rows": f"{plan.num_rows}",
        "to encode": f"{plan.num_planned}, in {plan.num_batches} batches",
        "done before": f"{plan.num_done_before}" if plan.num_done_before else "",
        "duplicates": f"{plan.num_duplicates}",
        "unreadable": f"{plan.num_unreadable}",
        "audio": audio_length(plan.audio_s) + overhead,
        "window": window,
        "records": f"{plan.num_records}",
        "disk": f"about {size(plan.estimated_bytes)}",
        "time": "not known before the first run" if plan.estimated_s is None else f"about {clock(plan.estimated_s)}",
        "output": plan.output,
    }
    return Group(
        _line("plan only: nothing was written"),
        _facts(facts),
        *_failures(plan.unreadable, plan.num_unreadable),
        *_notes(plan.notes),
    )


def _decoded(report: DecodeReport) -> Group:
    facts = {
        "decoded": f"{report.num_decoded}",
        "failed": f"{report.num_failed}",
        "audio": audio_length(report.audio_s),
        "time": clock(report.elapsed_s),
        "output": report.output,
    }
    files = [_line("listen to:"), *(_line(f"  {file}") for file in report.files[:5])] if report.files else []
    return Group(_facts(facts), *_failures(report.failures, report.num_failed), *files)


def _inspected(report: InspectReport) -> Group:
    facts = {
        "folder": report.folder,
        "layout": report.layout,
        "model": f"{report.model}, {report.rate_hz} Hz, {report.hop_samples} samples per frame",
        "items": f"{report.num_items}",
        "records": f"{report.num_records}",
        "failed": _with_kinds(report.num_failed, dict(report.failure_kinds)),
        "silent": f"{report.num_silent}",
        "audio": audio_length(report.audio_s),
        "size": size(report.size_bytes),
    }
    parts: list[RenderableType] = [_facts(facts)]
    if report.arrays:
        rows = [(array.name, " x ".join(array.axes), array.dtype, array.shapes) for array in report.arrays]
        parts.append(_table(("array", "axes", "type", "shape"), rows))
    if report.records:
        rows_of_records = [
            (
                record.id,
                record.source,
                " x ".join(map(str, record.shape)),
                f"{record.start_s:.2f}",
                f"{record.duration_s:.2f}",
                record.prompt or "",
            )
            for record in report.records
        ]
        parts.append(_table(("record", "source", "shape", "start s", "length s", "prompt"), rows_of_records))
    return Group(*parts, *_notes(report.notes))


def _verified(report: VerifyReport) -> Group:
    again = f"{report.num_reencoded}"
    if report.max_difference is not None:
        again += f", largest difference {report.max_difference:.3g}"
    facts = {
        "folder": report.folder,
        "records": f"{report.num_records}",
        "files": f"{report.num_files}",
        "source audio": audio_length(report.source_s),
        "accounted for": audio_length(report.covered_s),
        "encoded again": again if report.num_reencoded else "",
        "problems": f"{report.num_problems}",
    }
    head = "all is well" if not report.num_problems else f"{report.num_problems} problems"
    return Group(_line(head), _facts(facts), *_failures(report.problems, report.num_problems), *_notes(report.notes))


def _demo(report: DemoReport) -> Group:
    rows = [
        (clip.name, f"{clip.duration_s:.1f}", f"{clip.log_mel_error_db:.2f}", f"{clip.si_sdr_db:.1f}", clip.decoded)
        for clip in report.clips
    ]
    folder = shlex.quote(report.output)
    tries = (
        f"woodshed inspect {folder}/latents",
        "woodshed encode --input MY_SOUNDS --output-path my-latents --dry-run",
        "woodshed encode --input MY_SOUNDS --output-path my-latents",
    )
    return Group(
        _line(f"encoded, verified and decoded {len(rows)} sounds in {clock(report.elapsed_s)}"),
        _table(("sound", "length s", "log-mel error dB", "SI-SDR dB", "listen to"), rows),
        *_failures(report.verified.problems, report.verified.num_problems),
        _line("try next:"),
        *(_line(f"  {step}") for step in tries),
    )


def _line(text: str) -> Text:
    return Text(printable(text))


def _with_kinds(count: int, kinds: Mapping[str, int]) -> str:
    told = ", ".join(f"{kind} {kinds[kind]}" for kind in sorted(kinds, key=lambda kind: -kinds[kind]))
    return f"{count} ({told})" if told else f"{count}"


def _facts(facts: Mapping[str, str]) -> Table:
    """Name and value, one a line; what has no value is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    # A folder's name is there to be copied, so a long one is folded and never cut.
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            grid.add_row(Text(name), _line(value))
    return grid


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in head:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*(_line(cell) for cell in row))
    return table


def _failures(failures: Sequence[Failure], count: int) -> list[RenderableType]:
    if not failures:
        return []
    shown = failures[:SHOWN_FAILURES]
    table = _table(("what", "kind", "reason"), [(failure.id, failure.kind, failure.reason) for failure in shown])
    more = count - len(shown)
    return [table, _line(f"and {more} more")] if more > 0 else [table]


def _notes(notes: Iterable[str]) -> list[Text]:
    return [_line(f"note: {note}") for note in notes]
