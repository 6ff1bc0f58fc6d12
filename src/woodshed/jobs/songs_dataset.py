"""`woodshed songs dataset`: a folder of songs with sidecars to a `dataset.json`, as Side-Step and ACE-Step read it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from woodshed.audio.probe import probe
from woodshed.contracts import BadRow, Failure, Item, Json
from woodshed.errors import ItemError, UsageError
from woodshed.jobs.report import to_json
from woodshed.jobs.songs_account import SongTally
from woodshed.jobs.songs_dataset_settings import SongsDatasetSettings
from woodshed.songs.samples import DatasetHead, dataset_of, notes_on_names
from woodshed.sources.dataset_json import load_dataset_json
from woodshed.sources.song_rows import DATASET_NAME, FoundSongs, SongAccount, find_songs
from woodshed.store.whole_file import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class SongsDatasetReport:
    """What `woodshed songs dataset` wrote: `num_songs == num_written + sum(skipped.values()) + num_failed`."""

    source: str
    output: str
    num_songs: int
    num_written: int
    """Samples in the file."""
    num_captioned: int
    """Samples with a caption that somebody gave; the others have their name for one."""
    skipped: Mapping[str, int]
    num_failed: int
    failure_kinds: Mapping[str, int]
    failures: tuple[Failure, ...]
    """The first hundred."""
    audio_s: float
    is_written: bool
    """False under `dry_run`, and where the file holds exactly this already."""
    dry_run: bool
    elapsed_s: float
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 3 some songs failed and are not in the file."""
        return 3 if self.num_failed else 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


def run(settings: SongsDatasetSettings) -> SongsDatasetReport:
    """Read all sidecars and headers, then write the file whole.

    Raises:
        UsageError: the folder does not exist or gives no samples, or another data set is in the way.
        StoreError: the disk refuses.
    """
    if not settings.folder.is_dir():
        raise UsageError(f"{settings.folder} is not a folder", hint="give the folder that the songs lie in")
    head = DatasetHead(
        name=settings.name,
        custom_tag=settings.custom_tag.strip(),
        tag_position=settings.tag_position,
        genre_ratio=settings.genre_ratio,
    )
    return write_dataset(
        find_songs(str(settings.folder), None),
        head=head,
        output=settings.output,
        overwrite=settings.overwrite,
        dry_run=settings.dry_run,
    )


def write_dataset(
    found: FoundSongs, *, head: DatasetHead, output: Path | None, overwrite: bool, dry_run: bool
) -> SongsDatasetReport:
    """Write one `dataset.json` of songs from anywhere; for the arguments see `SongsDatasetSettings`.

    Raises:
        UsageError: no song gives a sample, or another file is in the way.
        StoreError: the disk refuses.
    """
    started = time.monotonic()
    folder = found.path if found.kind == "folder" else found.path.parent
    path = (output or folder / DATASET_NAME).absolute()
    if path.is_dir():
        path = path / DATASET_NAME
    account, tally = SongAccount(), SongTally()
    songs = [song for row in found.read(account) if (song := _measured(row, tally)) is not None]
    if not songs:
        raise UsageError(
            f"{found.path} gives no samples: all {tally.num_songs} songs failed",
            hint=f"the first: {tally.failures[0].reason}" if tally.failures else None,
        )
    content = dataset_of(songs, head, folder=path.parent)
    is_new = not (path.is_file() and path.read_bytes() == content)
    if is_new:
        _check_in_the_way(path, overwrite=overwrite)
    if is_new and not dry_run:
        write_whole(path, content)
    return SongsDatasetReport(
        source=str(found.path),
        output=str(path),
        num_songs=tally.num_songs,
        num_written=tally.num_written,
        num_captioned=sum("caption" in item.meta for item, _ in songs),
        skipped=dict(tally.skipped),
        num_failed=tally.num_failed,
        failure_kinds=dict(tally.failed),
        failures=tuple(tally.failures),
        audio_s=sum(duration_s for _, duration_s in songs),
        is_written=is_new and not dry_run,
        dry_run=dry_run,
        elapsed_s=time.monotonic() - started,
        notes=(*_other_notes(account), *notes_on_names([item for item, _ in songs])),
    )


def _measured(row: Item | BadRow, tally: SongTally) -> tuple[Item, float] | None:
    """A song and its length in seconds; None for one that gives no sample."""
    if isinstance(row, BadRow):
        tally.fail(row)
        return None
    try:
        duration_s = probe(row.path).duration_s
        row.path.encode()
    except ItemError as error:
        tally.fail(BadRow(id=row.id, kind=error.kind, reason=str(error)))
        return None
    except UnicodeEncodeError:
        tally.fail(
            BadRow(id=row.id, kind="metadata", reason="its name is not UTF-8: JSON cannot hold it (try: rename it)")
        )
        return None
    tally.write()
    return row, duration_s


def _check_in_the_way(path: Path, *, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: its folder does not exist", hint=f"mkdir -p {path.parent}")
    if not path.exists():
        return
    if not overwrite:
        raise UsageError(
            f"{path} exists and says something else", hint="--overwrite replaces it, --output names another"
        )
    try:
        load_dataset_json(str(path))
    except UsageError as error:
        raise UsageError(
            f"{path} exists and is no data set of songs, so it is not written over", hint="choose another --output"
        ) from error


def _other_notes(account: SongAccount) -> list[str]:
    """Notes but the one that the folder holds a data set: it is the one that is written."""
    account.counts.pop("dataset_unread", None)
    return list(account.notes())
