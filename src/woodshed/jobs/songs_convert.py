"""`woodshed songs convert`: what is known of songs, from one form to another; nothing is lost without a word."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from woodshed.contracts import BadRow, Failure, Item, Json
from woodshed.errors import ItemError
from woodshed.jobs.report import to_json
from woodshed.jobs.songs_account import SongTally
from woodshed.jobs.songs_convert_settings import SongsConvertSettings
from woodshed.jobs.songs_dataset import SongsDatasetReport, write_dataset
from woodshed.songs.conversion import Form, convert
from woodshed.songs.samples import BUILDERS_COLUMNS, DEFAULT_NAME, DatasetHead
from woodshed.sources.dataset_json import DatasetFile
from woodshed.sources.song_fields import Known
from woodshed.sources.song_rows import SongAccount, find_songs, sidecars_in
from woodshed.sources.song_sidecar import read_sidecar_text, sidecars_beside
from woodshed.store.whole_file import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class SongsConvertReport:
    """What `woodshed songs convert` wrote: `num_songs == num_written + sum(skipped.values()) + num_failed`."""

    source: str
    to: str
    num_songs: int
    num_written: int
    """Under `dry_run`: what would be written."""
    skipped: Mapping[str, int]
    """By reason: `nothing_known`, `equal`, `exists`, `same_sidecar` (two sounds share one), `duplicate`."""
    num_failed: int
    failure_kinds: Mapping[str, int]
    failures: tuple[Failure, ...]
    """The first hundred."""
    left_out: Mapping[str, int]
    """Columns that text has no place for -> songs that have them."""
    dry_run: bool
    elapsed_s: float
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 3 some songs failed."""
        return 3 if self.num_failed else 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


def run(settings: SongsConvertSettings) -> SongsConvertReport | SongsDatasetReport:
    """Convert song by song; a sidecar is written whole or not at all.

    Raises:
        UsageError: the source does not exist or cannot be used.
        StoreError: the disk refuses.
    """
    source = str(settings.source)
    audio_dir = None if settings.audio_dir is None else str(settings.audio_dir)
    found = find_songs(*((source, None) if settings.source.is_dir() else (audio_dir, source)), called="SOURCE")
    if settings.to == "dataset":
        return write_dataset(
            found,
            head=_head(found.dataset),
            output=settings.output,
            overwrite=settings.overwrite,
            dry_run=settings.dry_run,
        )
    started = time.monotonic()
    account, converter = SongAccount(), _Converter(settings.to, settings, shared=_shared(found.dataset))
    for row in found.read(account):
        converter.take(row)
    tally = converter.tally
    return SongsConvertReport(
        source=source,
        to=settings.to,
        num_songs=tally.num_songs,
        num_written=tally.num_written,
        skipped=dict(tally.skipped),
        num_failed=tally.num_failed,
        failure_kinds=dict(tally.failed),
        failures=tuple(tally.failures),
        left_out=dict(converter.left_out),
        dry_run=settings.dry_run,
        elapsed_s=time.monotonic() - started,
        notes=(*account.notes(), *converter.notes(), *_ratio_note(found.dataset)),
    )


def _head(dataset: DatasetFile | None) -> DatasetHead:
    if dataset is None:
        return DatasetHead()
    return DatasetHead(
        name=dataset.name or DEFAULT_NAME,
        custom_tag=dataset.custom_tag,
        tag_position=dataset.tag_position or "prepend",
        genre_ratio=round(dataset.genre_ratio or 0),
    )


def _shared(dataset: DatasetFile | None) -> Known:
    """What a data set says of all its songs and a sidecar can say, too; a song that says it itself keeps its own."""
    if dataset is None:
        return {}
    shared = {"custom_tag": dataset.custom_tag, "tag_position": dataset.tag_position}
    return {field: value for field, value in shared.items() if value}


def _ratio_note(dataset: DatasetFile | None) -> list[str]:
    if dataset is None or not dataset.genre_ratio:
        return []
    return [
        f"the data set's genre ratio has no place in sidecars: give --genre-ratio {dataset.genre_ratio:g} to the run"
    ]


class _Converter:
    """Converts one song after the other."""

    def __init__(self, form: Form, settings: SongsConvertSettings, *, shared: Known) -> None:
        self.form, self.settings, self.shared = form, settings, shared
        self.tally = SongTally()
        self.left_out: Counter[str] = Counter()
        self._listings: dict[str, dict[str, str]] = {}
        self._seen: set[str] = set()

    def take(self, row: Item | BadRow) -> None:
        if isinstance(row, BadRow):
            self.tally.fail(row)
            return
        try:
            self._convert(row)
        except ItemError as error:
            self.tally.fail(BadRow(id=row.id, kind=error.kind, reason=str(error)))

    def _convert(self, item: Item) -> None:
        stem = os.path.splitext(item.path)[0]  # noqa: PTH122 - names that are not UTF-8
        if stem in self._seen:
            self.tally.skip("same_sidecar")
            return
        self._seen.add(stem)
        folder = os.path.dirname(item.path)  # noqa: PTH120
        if folder not in self._listings:
            self._listings[folder] = sidecars_in(folder)
        files = sidecars_beside(item.path, self._listings[folder])
        there = files.text if self.form == "txt" else files.json
        path = there or f"{stem}.{self.form}"
        existing = None if there is None else read_sidecar_text(there)
        known = {**self.shared, **item.meta}
        result = convert(known, self.form, existing=existing, path=path, overwrite=self.settings.overwrite)
        self.left_out.update(result.left_out)
        if result.content is None:
            self.tally.skip(result.skipped)
            return
        if not self.settings.dry_run:
            write_whole(Path(path), result.content)
        self.tally.write()

    def notes(self) -> list[str]:
        """What the user should know, one sentence each."""
        notes = []
        columns = {name: count for name, count in self.left_out.items() if name not in BUILDERS_COLUMNS}
        if columns:
            told = ", ".join(f"{name} ({count})" for name, count in sorted(columns.items()))
            notes.append(f"text has no place for these columns, which stay where they are: {told}")
        if count := self.tally.skipped["exists"]:
            songs = f"{count} songs have" if count > 1 else "one song has"
            notes.append(f"{songs} a .{self.form} sidecar that says something else: --overwrite replaces it")
        return notes
