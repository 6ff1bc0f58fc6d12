"""Where songs are found, and what is known of each, before a run's own rules are added.

In all rows here `Item.meta` is what `known_fields` gives: only what is known, under canonical names.
"""

# Songs can be many: `pathlib` takes several times as long per file as `os`.
# ruff: noqa: PTH118, PTH119, PTH120, PTH122

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from woodshed.contracts import BadRow, Item
from woodshed.errors import ItemError, UsageError
from woodshed.sources.dataset_json import DatasetFile, load_dataset_json, read_dataset_json
from woodshed.sources.folder import AUDIO_SUFFIXES, Root, file_row, read_folders
from woodshed.sources.manifest import SUFFIXES as MANIFEST_SUFFIXES
from woodshed.sources.manifest import read_manifest
from woodshed.sources.song_fields import canonical, known_fields
from woodshed.sources.song_sidecar import SUFFIXES, SidecarFiles, read_song_sidecars, sidecar_listing, sidecars_beside

DATASET_NAME = "dataset.json"
MAX_NAMES_TOLD = 3
_BELONG_TO_NO_SONG = ("readme", "license", "licence", "notice", "copying", "credits", "dataset", "requirements")
"""Beginnings of text and JSON files that nobody takes for sidecars."""


@dataclass(slots=True)
class SongAccount:
    """What one reading of the source comes across."""

    compat: bool = False
    """Whether sidecars are read as Side-Step reads them."""
    counts: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, str] = field(default_factory=dict)
    """The first song of each count."""
    orphans: dict[str, set[str]] = field(default_factory=dict)
    """Folder -> its sidecars that belong to no song so far."""

    def count(self, what: str, name: str) -> None:
        self.counts[what] += 1
        self.firsts.setdefault(what, name)

    def saw_folder(self, below: str, listing: Mapping[str, str]) -> None:
        """Learn of the sidecars (`sidecar_listing`) of one more folder, given by its path below the source."""
        self.orphans[below] = {name for name in listing.values() if not name.lower().startswith(_BELONG_TO_NO_SONG)}
        if not below and DATASET_NAME in listing:
            self.count("dataset_unread", DATASET_NAME)

    def notes(self) -> Iterator[str]:
        """What the user should know, one sentence each."""
        sentences = {
            "no_caption": "{songs} without a caption: the file name is taken for one, which teaches little",
            "plain_caption": "{songs} with a text beside it that has no known key: it is read as the caption",
            "plain_lyrics": "{songs} with a text beside it that has no caption in it: it is read as the lyrics",
            "overruled": "{songs} with sidecars that do not agree: .json counts more than .txt, and that more than "
            ".caption.txt and .lyrics.txt",
            "json_unread": "{songs} with a .json sidecar, which Side-Step does not read: it is left out",
            "unsung_words": "{songs} with words and the mark `is_instrumental`: the words are left out",
            "no_genre": "{songs} chosen by the genre ratio without a genre: the caption stays the prompt",
        }
        for what, sentence in sentences.items():
            if count := self.counts[what]:
                songs = f"{count} songs" if count > 1 else "one song"
                yield f"{sentence.format(songs=songs)} (the first is {self.firsts[what]!r})"
        if self.counts["dataset_unread"]:
            yield f"the folder holds a {DATASET_NAME}, which is not read: give it to --dataset-json if it is to count"
        lost = sorted(os.path.join(folder, name) for folder, names in self.orphans.items() for name in names)
        if lost:
            names = ", ".join(map(repr, lost[:MAX_NAMES_TOLD])) + (", ..." if len(lost) > MAX_NAMES_TOLD else "")
            what = f"{len(lost)} sidecars belong" if len(lost) > 1 else "one sidecar belongs"
            yield f"{what} to no song: {names}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSongs:
    """What the songs of a run come from."""

    kind: str
    """`folder`, `dataset`, `manifest` or `file`."""
    path: Path
    read: Callable[[SongAccount], Iterator[Item | BadRow]]
    dataset: DatasetFile | None = None


def find_songs(
    audio_dir: str | None, dataset_json: str | None, *, exclude: Sequence[str] = (), called: str | None = None
) -> FoundSongs:
    """Look at what is given, and open it when it is read; arguments as for `open_songs`.

    Args:
        called: how messages call what is given, where it is no flag of `woodshed songs`.

    Raises:
        UsageError: neither is given, or what is given does not exist or cannot be used.
    """
    given = dataset_json if dataset_json is not None else audio_dir
    flag = called or ("--audio-dir" if dataset_json is None else "--dataset-json")
    if given is None:
        raise UsageError("no songs are given", hint="give --audio-dir FOLDER or --dataset-json FILE")
    path = Path(given).absolute()
    suffix = path.suffix.lower()
    if not path.exists():
        raise UsageError(f"{flag} {given} does not exist", hint="relative paths start at the working folder")
    if path.is_dir() and dataset_json is None:
        return FoundSongs(kind="folder", path=path, read=partial(_in_folder, str(path), tuple(exclude)))
    if suffix in MANIFEST_SUFFIXES:
        return FoundSongs(kind="manifest", path=path, read=partial(_in_manifest, str(path)))
    if suffix == ".json":
        dataset = load_dataset_json(str(path))
        more = audio_dir if dataset_json is not None else None
        return FoundSongs(kind="dataset", path=path, read=partial(_in_dataset, dataset, more), dataset=dataset)
    if suffix in AUDIO_SUFFIXES and dataset_json is None:
        return FoundSongs(kind="file", path=path, read=partial(_one_file, str(path)))
    wish = "a dataset.json or a manifest" if dataset_json is not None else "a folder, a data set, nor a sound"
    raise UsageError(
        f"{flag} {given} is not {wish}",
        hint=f"a data set is a .json, a manifest {', '.join(MANIFEST_SUFFIXES)}; a folder goes to --audio-dir",
    )


def walk_songs(
    folder: str, *, exclude: Sequence[str] = (), account: SongAccount | None = None
) -> Iterator[tuple[Item | BadRow, SidecarFiles]]:
    """Every sound below a folder, with the paths of its sidecars; none of them is opened.

    Args:
        account: learns of sidecars that belong to no song.
    """
    account = account or SongAccount()
    listings: dict[str, dict[str, str]] = {}
    for row in read_folders([Root(path=folder)], exclude=exclude, captions=False):
        if isinstance(row, BadRow):
            yield row, SidecarFiles()
            continue
        place, name = os.path.split(row.path)
        below = os.path.dirname(row.relpath)
        if place not in listings:
            try:
                listings[place] = sidecars_in(place)
            except ItemError as error:
                yield BadRow(id=row.id, kind=error.kind, reason=str(error)), SidecarFiles()
                continue
            account.saw_folder(below, listings[place])
        stem = os.path.splitext(name)[0]
        account.orphans[below] -= {listings[place].get(stem + suffix, "") for suffix in SUFFIXES}
        yield row, sidecars_beside(row.path, listings[place])


def _in_folder(folder: str, exclude: Sequence[str], account: SongAccount) -> Iterator[Item | BadRow]:
    for row, files in walk_songs(folder, exclude=exclude, account=account):
        yield row if isinstance(row, BadRow) else _with_sidecars(row, files, account)


def _one_file(path: str, account: SongAccount) -> Iterator[Item | BadRow]:
    name = os.path.basename(path)
    row = file_row(path, row_id=name, relpath=name, sidecars=())
    if isinstance(row, BadRow):
        yield row
        return
    try:
        files = sidecars_beside(path, sidecars_in(os.path.dirname(path)))
    except ItemError as error:
        yield BadRow(id=row.id, kind=error.kind, reason=str(error))
    else:
        yield _with_sidecars(row, files, account)


def sidecars_in(folder: str) -> dict[str, str]:
    """`sidecar_listing` of a folder on the disk.

    Raises:
        ItemError: of kind `bad_sidecar`: it cannot be read, so nobody knows whether there are any.
    """
    try:
        with os.scandir(folder) as entries:
            return sidecar_listing(entry.name for entry in entries if not entry.is_dir())
    except OSError as error:
        reason = f"sidecars in {folder!r} cannot be looked for: {error.strerror}"
        raise ItemError(reason, kind="bad_sidecar") from error


def _with_sidecars(row: Item, files: SidecarFiles, account: SongAccount) -> Item | BadRow:
    if not files:
        return row
    try:
        reading = read_song_sidecars(files, compat=account.compat)
    except ItemError as error:
        return BadRow(id=row.id, kind=error.kind, reason=str(error))
    if reading.plain is not None:
        account.count(f"plain_{reading.plain}", row.id)
    if reading.overruled:
        account.count("overruled", row.id)
    if account.compat and files.json is not None:
        account.count("json_unread", row.id)
    return replace(row, meta=reading.known)


def _in_dataset(dataset: DatasetFile, audio_dir: str | None, account: SongAccount) -> Iterator[Item | BadRow]:
    return read_dataset_json(dataset, audio_dir=audio_dir, compat=account.compat)


def _in_manifest(path: str, account: SongAccount) -> Iterator[Item | BadRow]:
    for row in read_manifest(path):
        if isinstance(row, BadRow):
            yield row
            continue
        columns = dict(row.meta)
        prompt = columns.pop("prompt", None)
        if prompt is not None and not any(canonical(name) == "caption" for name in columns):
            columns["caption"] = prompt
            if columns.get("text") == prompt:
                del columns["text"]
        where = f"row {row.id!r} of {os.path.basename(path)}"
        try:
            known = known_fields(columns, where=where, kind="bad_row", compat=account.compat)
        except ItemError as error:
            yield BadRow(id=row.id, kind=error.kind, reason=str(error))
        else:
            yield replace(row, meta=known)
