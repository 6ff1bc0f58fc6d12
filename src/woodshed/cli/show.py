"""What a command has to say when it is done, for people."""

from __future__ import annotations

import shlex
from importlib import import_module

from rich.console import Console, Group, RenderableType
from rich.text import Text

from woodshed.cli.parts import facts_table, failure_table, line_of, note_lines, table_of, with_kinds
from woodshed.cli.quantities import audio_length, clock, size
from woodshed.contracts import Summary
from woodshed.jobs.report import DecodeReport, DemoReport, InspectReport, PlanReport, SpeechReport, VerifyReport

OWN_PAGES = {
    "AnalyzePlan": "show_analyze",
    "AnalyzeReport": "show_analyze",
    "AnalyzeStopped": "show_analyze_stopped",
    "CompareReport": "show_compare",
    "SettingsReport": "show_settings",
    "SongsConvertReport": "show_songs_convert",
    "SongsDatasetReport": "show_songs_dataset",
    "SongsTagReport": "show_songs_tag",
    "SpeechDemoReport": "show_speech_demo",
    "SpeechInspectReport": "show_speech_inspect",
    "SpeechModelsReport": "show_speech_models",
    "PairsReport": "show_speech_pairs",
    "RetokenizeReport": "show_speech_retokenize",
}
"""Reports of jobs that are looked up by name: importing them here would load torch for every command."""

PLAIN_WIDTH = 120
"""Columns where the output is no terminal."""


def show(report: object, console: Console) -> None:
    """Write a report for people; where the console is no terminal, as wide as `PLAIN_WIDTH`."""
    if not console.file.isatty():
        console.width = PLAIN_WIDTH
    console.print(_rendered(report), markup=False, highlight=False, emoji=False)


def _rendered(report: object) -> RenderableType:
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
        case SpeechReport():
            return Group(*_speech(report))
        case _:
            page = import_module(f"woodshed.cli.{OWN_PAGES[type(report).__name__]}")
            lines: RenderableType = page.lines_of(report)
            return lines


def _speech(report: SpeechReport) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for name, result in zip(report.datasets, report.results, strict=True):
        if len(report.datasets) > 1:
            parts.append(line_of(f"data set {name}"))
        parts.append(_summary(result) if isinstance(result, Summary) else _plan(result))
    return parts


def _summary(summary: Summary) -> Group:
    facts = {
        "rows": f"{summary.num_rows}",
        "done": f"{summary.num_done} ({summary.num_new} by this run)",
        "failed": with_kinds(summary.num_failed, summary.failure_kinds),
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
        line_of(head),
        facts_table(facts),
        *failure_table(summary.failures, summary.num_failed),
        *note_lines(summary.notes),
        *_next(summary),
    )


def _next(summary: Summary) -> list[Text]:
    folder = shlex.quote(summary.output)
    steps = [f"woodshed verify {folder}", *(step.format(folder=folder) for step in summary.next_steps)]
    steps = steps if summary.num_done else []
    if summary.num_failed and not summary.stopped_by:
        steps.append("the same command with --retry-failed, once the causes are mended")
    return [line_of("next:"), *(line_of(f"  {step}") for step in steps)] if steps else []


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
        line_of("plan only: nothing was written"),
        facts_table(facts),
        *failure_table(plan.unreadable, plan.num_unreadable),
        *note_lines(plan.notes),
    )


def _decoded(report: DecodeReport) -> Group:
    facts = {
        "decoded": f"{report.num_decoded}",
        "failed": f"{report.num_failed}",
        "audio": audio_length(report.audio_s),
        "time": clock(report.elapsed_s),
        "output": report.output,
    }
    files = [line_of("listen to:"), *(line_of(f"  {file}") for file in report.files[:5])] if report.files else []
    return Group(facts_table(facts), *failure_table(report.failures, report.num_failed), *files)


def _inspected(report: InspectReport) -> Group:
    facts = {
        "folder": report.folder,
        "layout": report.layout,
        "model": f"{report.model}, {report.rate_hz} Hz, {report.hop_samples} samples per frame",
        "items": f"{report.num_items}",
        "records": f"{report.num_records}",
        "failed": with_kinds(report.num_failed, dict(report.failure_kinds)),
        "silent": f"{report.num_silent}",
        "audio": audio_length(report.audio_s),
        "size": size(report.size_bytes),
    }
    parts: list[RenderableType] = [facts_table(facts)]
    if report.arrays:
        rows = [(array.name, " x ".join(array.axes), array.dtype, array.shapes) for array in report.arrays]
        parts.append(table_of(("array", "axes", "type", "shape"), rows))
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
        parts.append(table_of(("record", "source", "shape", "start s", "length s", "prompt"), rows_of_records))
    return Group(*parts, *note_lines(report.notes))


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
        "mended": f"{report.num_mended}" if report.num_mended else "",
        "taken back": f"{report.num_taken_back} items" if report.num_taken_back else "",
    }
    head = "all is well" if not report.num_problems else f"{report.num_problems} problems"
    if report.num_problems and report.num_mended == report.num_problems:
        head += ", all mended"
    return Group(
        line_of(head),
        facts_table(facts),
        *failure_table(report.problems, report.num_problems),
        *note_lines(report.notes),
    )


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
        line_of(f"encoded, verified and decoded {len(rows)} sounds in {clock(report.elapsed_s)}"),
        table_of(("sound", "length s", "log-mel error dB", "SI-SDR dB", "listen to"), rows),
        *failure_table(report.verified.problems, report.verified.num_problems),
        line_of("try next:"),
        *(line_of(f"  {step}") for step in tries),
    )
