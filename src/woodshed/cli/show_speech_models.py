"""What `woodshed speech models` has to say, for people."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from woodshed.cli.quantities import printable, size
from woodshed.encoders.speech.model_files import ModelFile
from woodshed.jobs.speech_models import SpeechModelsReport


def lines_of(report: SpeechModelsReport) -> RenderableType:
    """One row per file; below it what is wrong with each that will not do, and what to do next."""
    bad = [file for file in report.files if not file.is_fine]
    head = f"all files for --target {report.target} are there"
    if bad:
        head = f"{len(bad)} of {len(report.files)} files for --target {report.target} are missing or cannot be used"
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("file", "what it is", "state", "size", "where"):
        table.add_column(Text(name), overflow="fold")
    for file in report.files:
        cells = (file.role, file.title, _state(file, report), _size(file), _where(file))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    lines = [line for file in bad for line in _trouble(file)]
    lines += [f"note: {note}" for note in report.notes]
    lines += _next(report, bad)
    return Group(Text(head), table, *(Text(printable(line)) for line in lines))


def _state(file: ModelFile, report: SpeechModelsReport) -> str:
    if file.state == "absent":
        return "not needed"
    return f"{file.state}, just fetched" if file.role in report.downloaded else file.state


def _size(file: ModelFile) -> str:
    return f"about {size(file.about_bytes)}" if file.size_bytes is None else size(file.size_bytes)


def _where(file: ModelFile) -> str:
    if file.path is None:
        return f"hub: {file.hub_repo}/{file.hub_file}" if file.is_fetchable else ""
    return f"{file.path} ({file.source})"


def _trouble(file: ModelFile) -> list[str]:
    lines = [f"{file.role}: {file.problem or file.state}"]
    if file.path is None:
        lines += [f"  looked at {place}" for place in file.looked_at]
    return lines


def _next(report: SpeechModelsReport, bad: list[ModelFile]) -> list[str]:
    """How to get what is missing; licences first, because fetching is agreeing."""
    fetchable = [file for file in bad if file.is_fetchable]
    if not fetchable:
        return []
    licences = dict.fromkeys(f"  {file.hub_repo}: {file.licence}" for file in fetchable)
    return [
        "licences:",
        *licences,
        "next:",
        f"  woodshed speech models --target {report.target} --download",
        "or, one by one:",
        *(f"  {file.fetch}" for file in fetchable),
    ]
