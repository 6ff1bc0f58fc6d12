"""`woodshed songs tag`: add, remove, clear or list the trigger tags in all sidecars of a folder."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from woodshed.contracts import BadRow, Failure, Item, Json
from woodshed.errors import ItemError, UsageError
from woodshed.jobs.report import to_json
from woodshed.jobs.songs_account import SongTally
from woodshed.jobs.songs_tag_settings import SongsTagSettings
from woodshed.songs.tagging import TagAction, shared_words, tag_song
from woodshed.songs.tags import tags_in
from woodshed.sources.song_rows import SongAccount, walk_songs
from woodshed.sources.song_sidecar import SidecarFiles
from woodshed.store.whole_file import write_whole

MAX_SONGS_LISTED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SongTags:
    """The tags of one song, as one text with commas."""

    id: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SongsTagReport:
    """What `woodshed songs tag` did: `num_songs == num_changed + num_unchanged + num_failed`."""

    folder: str
    action: str
    """`add`, `remove`, `clear` or `list`."""
    tag: str
    num_songs: int
    num_changed: int
    """Under `dry_run`: what would change."""
    num_unchanged: int
    num_created: int
    """Songs that had no sidecar and got one."""
    num_failed: int
    failure_kinds: Mapping[str, int]
    failures: tuple[Failure, ...]
    """The first hundred."""
    tags: Mapping[str, int]
    """Tag -> songs that have it now; the empty tag stands for songs without any."""
    songs: tuple[SongTags, ...]
    """The first hundred: those that changed or, for `list`, all."""
    dry_run: bool
    elapsed_s: float
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 3 some songs failed."""
        return 3 if self.num_failed else 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


def run(settings: SongsTagSettings) -> SongsTagReport:
    """Go over all songs of the folder; a sidecar is written whole or not at all, and only if its tags change.

    Raises:
        UsageError: the folder does not exist or holds no sound.
        StoreError: the disk refuses.
    """
    started = time.monotonic()
    folder, action = str(settings.folder), settings.action
    if not settings.folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="give the folder that the songs lie in")
    account, tagger = SongAccount(), _Tagger(action, dry_run=settings.dry_run)
    for row, files in walk_songs(folder, account=account):
        tagger.take(row, files)
    tally = tagger.tally
    return SongsTagReport(
        folder=folder,
        action=action.kind,
        tag=action.tag,
        num_songs=tally.num_songs,
        num_changed=tally.num_written,
        num_unchanged=tally.skipped.total(),
        num_created=tagger.num_created,
        num_failed=tally.num_failed,
        failure_kinds=dict(tally.failed),
        failures=tuple(tally.failures),
        tags=dict(tagger.tags.most_common()),
        songs=tuple(tagger.songs),
        dry_run=settings.dry_run,
        elapsed_s=time.monotonic() - started,
        notes=(*account.notes(), *tagger.notes()),
    )


class _Tagger:
    """Tags one song after the other."""

    def __init__(self, action: TagAction, *, dry_run: bool) -> None:
        self.action, self.dry_run = action, dry_run
        self.tally = SongTally()
        self.tags: Counter[str] = Counter()
        self.songs: list[SongTags] = []
        self.num_created = 0
        self.num_shared = 0
        self._seen: dict[str, str] = {}
        """Song without its suffix -> its tags: two sounds can share a sidecar."""

    def take(self, row: Item | BadRow, files: SidecarFiles) -> None:
        if isinstance(row, BadRow):
            self.tally.fail(row)
            return
        try:
            self._tag(row, files)
        except ItemError as error:
            self.tally.fail(BadRow(id=row.id, kind=error.kind, reason=str(error)))

    def _tag(self, item: Item, files: SidecarFiles) -> None:
        stem = os.path.splitext(item.path)[0]  # noqa: PTH122 - names that are not UTF-8
        if stem in self._seen:
            self._count(self._seen[stem])
            self.tally.skip("same_sidecar")
            return
        tagged = tag_song(item.path, files, self.action)
        self._seen[stem] = tagged.after
        self._count(tagged.after)
        if not self.dry_run:
            for path, content in tagged.writes.items():
                write_whole(Path(path), content)
        if tagged.writes:
            self.tally.write()
            self.num_created += not files
        else:
            self.tally.skip("unchanged")
        self.num_shared += self.action.kind == "remove" and shared_words(tagged.after, self.action.tag)
        if (tagged.writes or self.action.kind == "list") and len(self.songs) < MAX_SONGS_LISTED:
            self.songs.append(SongTags(id=item.id, before=tagged.before, after=tagged.after))

    def _count(self, custom_tag: str) -> None:
        self.tags.update(tags_in(custom_tag) or ("",))

    def notes(self) -> list[str]:
        """What the user should know, one sentence each."""
        if not self.num_shared:
            return []
        songs = f"{self.num_shared} songs have" if self.num_shared > 1 else "one song has"
        return [f"{songs} {self.action.tag!r} as a part of a longer tag, which is left alone: commas part tags"]
