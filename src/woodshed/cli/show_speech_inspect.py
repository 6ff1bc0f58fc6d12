"""What `woodshed inspect` has to say of a folder of `woodshed speech`, for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType

from woodshed.cli.parts import facts_table, line_of, note_lines, table_of, with_kinds
from woodshed.cli.quantities import audio_length, size
from woodshed.contracts import Json
from woodshed.jobs.report import ReleaseFacts, SpeechInspectReport

SHOWN = 8
"""Speakers, languages and characters that are named."""


def lines_of(report: SpeechInspectReport) -> Group:
    """The report, ready to be printed."""
    parts: list[RenderableType] = [facts_table(_facts(report))]
    parts += [facts_table(_release_facts(release)) for release in report.releases]
    lengths = [
        (f"{release.release} {name}", *(f"{values[key]:g}" for key in ("min", "p5", "median", "p95", "max")))
        for release in report.releases
        for name, values in release.lengths.items()
        if values is not None
    ]
    if lengths:
        parts.append(table_of(("length of a row", "min", "5 %", "median", "95 %", "max"), lengths))
    columns = [(column.name, column.dtype, column.shapes, column.meaning) for column in report.columns]
    parts.append(table_of(("feature", "type", "shape", "what it is"), columns))
    if report.absent:
        parts.append(line_of(f"absent, null in the manifests: {', '.join(report.absent)}"))
    if report.records:
        rows = [
            (
                record.id,
                record.side,
                record.speaker,
                record.language,
                f"{record.duration_s:.2f}",
                f"{record.text_len}",
                f"{record.code_len}",
                record.text,
            )
            for record in report.records
        ]
        parts.append(table_of(("row", "side", "speaker", "language", "s", "ids", "codes", "text"), rows))
    return Group(*parts, *note_lines(report.notes))


def _facts(report: SpeechInspectReport) -> dict[str, str]:
    split, speakers, unknown = report.split, report.speakers, report.unknown_tokens
    unnamed = f", {speakers['rows_without']} rows without" if speakers["rows_without"] else ""
    characters = " ".join(list(unknown["characters"])[:SHOWN])
    return {
        "folder": report.folder,
        "made by": f"{report.command}, for IndexTTS {' and '.join(one.release for one in report.releases)}",
        "codes heard by": report.semantic,
        "layout": report.layout,
        "rows": f"{report.num_rows} in the source, {report.num_done} done",
        "train, val": f"{report.num_train}, {report.num_val} (by {split['by']}, ratio {split['ratio']:g})",
        "failed": with_kinds(sum(report.failed.values()), report.failed),
        "skipped": with_kinds(sum(report.skipped.values()), report.skipped),
        "adopted": f"{report.num_adopted} rows that IndexTTS2's own tool had made" if report.num_adopted else "",
        "audio": audio_length(report.hours * 3600),
        "size": size(report.size_bytes),
        "speakers": f"{speakers['count']}{unnamed}{_named(speakers['most_rows'])}",
        "languages": _named(report.languages).removeprefix(": "),
        "unknown ids": f"{unknown['rate']:.2%} of the text ids, in {unknown['rows']} rows"
        + (f": {characters}" if characters else ""),
        "models": ", ".join(f"{role} {digest}" for role, digest in report.models.items()),
    }


def _release_facts(release: ReleaseFacts) -> dict[str, str]:
    return {
        f"IndexTTS {release.release}": release.manifests,
        "tokenizer": f"{release.tokenizer} ({release.vocab_size} ids)",
        "gpt checkpoint": release.gpt_checkpoint,
        "codes": f"{release.codes_per_second:g} per second, of {release.num_codes}",
    }


def _named(counts: Mapping[str, Json]) -> str:
    """The most frequent with their rows, after a colon."""
    shown = [f"{name} {count}" for name, count in list(counts.items())[:SHOWN]]
    more = [f"{len(counts) - SHOWN} more"] if len(counts) > SHOWN else []
    return f": {', '.join([*shown, *more])}" if shown else ""
