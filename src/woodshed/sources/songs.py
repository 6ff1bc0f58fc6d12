"""Songs with what is known of them: a folder with sidecars, a `dataset.json`, a manifest, or one sound.

`Item.meta` of a song always holds `caption`, `genre`, `lyrics`, `bpm`, `keyscale`, `timesignature`, `language`,
`is_instrumental`, `custom_tag`, `tag_position`, `prompt_override`, `use_genre`, `repeat`, `given_duration_s` and
`has_sidecar`; `prompt` (the caption again) and `extra` (all other columns) only where there are any. A song without a
caption gets its file's name for one, as in Side-Step; a note counts them, for a made-up caption teaches little.
"""

# Songs can be many: `pathlib` takes several times as long per file as `os`.
# ruff: noqa: PTH118, PTH119, PTH120, PTH122

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TypeAlias

from woodshed.chance import generator
from woodshed.contracts import BadRow, Item
from woodshed.errors import ItemError, UsageError
from woodshed.sources.dataset_json import DatasetFile, load_dataset_json, read_dataset_json
from woodshed.sources.folder import AUDIO_SUFFIXES, Root, file_row, read_folders
from woodshed.sources.manifest import SUFFIXES as MANIFEST_SUFFIXES
from woodshed.sources.manifest import read_manifest
from woodshed.sources.song_fields import TagPosition, canonical, caption_of_name, finished_meta, known_fields
from woodshed.sources.song_sidecar import SUFFIXES, read_song_sidecars, sidecar_listing, sidecars_beside
from woodshed.sources.source import Source

SIDE_STEP_SEED = 42
"""With which Side-Step shuffles songs to pick those that are prompted by genre."""
MAX_NAMES_TOLD = 3
DATASET_NAME = "dataset.json"
_BELONG_TO_NO_SONG = ("readme", "license", "licence", "notice", "copying", "credits", "dataset", "requirements")
"""Beginnings of text and JSON files that nobody takes for sidecars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRules:
    """What the run says of tags and genres. What it leaves open comes from `metadata` of a `dataset.json`."""

    custom_tag: str = ""
    """For songs that bring none of their own."""
    tag_position: TagPosition | None = None
    """Where a tag goes in the prompt, for songs that do not say: None is `prepend`."""
    genre_ratio: float | None = None
    """Per cent of the songs that are prompted by genre instead of caption, None is 0."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.genre_ratio is not None and not 0 <= self.genre_ratio <= 100:
            raise UsageError(f"a genre ratio of {self.genre_ratio:g} is no percentage from 0 to 100")

    def chooses_genre(self, item_id: str) -> bool:
        """Whether the ratio falls on this song: by its id alone, so that it stays when songs are added.

        >>> sum(TagRules(genre_ratio=25).chooses_genre(f"{n}.wav") for n in range(1000))
        255
        """
        ratio = self.genre_ratio or 0
        return ratio > 0 and float(generator(self.seed, item_id, "genre").random()) * 100 < ratio


def open_songs(
    audio_dir: str | None,
    dataset_json: str | None,
    *,
    tags: TagRules | None = None,
    exclude: Sequence[str] = (),
    compat: bool = False,
    notes: list[str] | None = None,
) -> Source:
    """The songs to prepare, in the order of their paths, or in that of the data set or manifest.

    Args:
        audio_dir: a folder, read with all below it; or a manifest, a `.json` data set, or one sound.
        dataset_json: a `dataset.json` or a manifest (`.jsonl`, `.ndjson`, `.csv`, `.tsv`): what it names is read, and
            sidecars are not; the sounds of a `dataset.json` are then looked for in `audio_dir`, too.
        exclude: folders that are left out although they lie in `audio_dir`, such as the output folder.
        compat: read sidecars and choose genres as Side-Step does; all rows are then collected before the first.
        notes: receives what the user should know, one sentence each, when the last row is read.

    Raises:
        UsageError: neither is given, or what is given does not exist or cannot be used.
    """
    tags = tags or TagRules()
    given = dataset_json if dataset_json is not None else audio_dir
    flag = "--audio-dir" if dataset_json is None else "--dataset-json"
    if given is None:
        raise UsageError("no songs are given", hint="give --audio-dir FOLDER or --dataset-json FILE")
    path = Path(given).absolute()
    suffix = path.suffix.lower()
    found: _Found
    if not path.exists():
        raise UsageError(f"{flag} {given} does not exist", hint="relative paths start at the working folder")
    if path.is_dir() and dataset_json is None:
        kind, found = "folder", partial(_in_folder, str(path), tuple(exclude))
    elif suffix in MANIFEST_SUFFIXES:
        kind, found = "manifest", partial(_in_manifest, str(path))
    elif suffix == ".json":
        dataset = load_dataset_json(str(path))
        tags = _over(tags, dataset)
        kind, found = "dataset", partial(_in_dataset, dataset, audio_dir if dataset_json is not None else None)
    elif suffix in AUDIO_SUFFIXES and dataset_json is None:
        kind, found = "file", partial(_one_file, str(path))
    else:
        wish = "a dataset.json or a manifest" if dataset_json is not None else "a folder, a data set, nor a sound"
        raise UsageError(
            f"{flag} {given} is not {wish}",
            hint=f"a data set is a .json, a manifest {', '.join(MANIFEST_SUFFIXES)}; a folder goes to --audio-dir",
        )
    # Side-Step gives songs of a data set no caption where the data set has none.
    songs = _Songs(found=found, tags=tags, compat=compat, notes=notes, captioned=not (compat and kind == "dataset"))
    return Source(
        roots=(str(path if kind in ("folder", "file") else path.parent),),
        read=songs.rows,
        about={"kind": kind, "name": path.resolve().name},
    )


def side_step_genre_choice(paths: Mapping[str, str], genre_ratio: float) -> frozenset[str]:
    """The songs that Side-Step prompts by genre: the first share of a shuffle of all, sorted by path.

    Args:
        paths: item id -> path.

    >>> sorted(side_step_genre_choice({name: f"/songs/{name}" for name in "abcdefgh"}, 25))
    ['d', 'e']
    """
    ids = sorted(paths, key=lambda item_id: PurePath(paths[item_id]).parts)
    num_chosen = int(len(ids) * genre_ratio / 100)
    random.Random(SIDE_STEP_SEED).shuffle(ids)  # noqa: S311 - the same order as theirs is the point
    return frozenset(ids[:num_chosen])


@dataclass(slots=True)
class _Account:
    """What one reading of the source comes across."""

    compat: bool
    counts: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, str] = field(default_factory=dict)
    """The first song of each count."""
    orphans: dict[str, set[str]] = field(default_factory=dict)
    """Folder -> its sidecars that belong to no song so far."""

    def count(self, what: str, name: str) -> None:
        self.counts[what] += 1
        self.firsts.setdefault(what, name)

    def notes(self) -> Iterator[str]:
        """What the user should know, one sentence each."""
        sentences = {
            "no_caption": "{songs} without a caption: the file name is taken for one, which teaches little",
            "plain_caption": "{songs} with a text beside it that has no known key: it is read as the caption",
            "plain_lyrics": "{songs} with a text beside it that has no caption in it: it is read as the lyrics",
            "overruled": "{songs} with sidecars that do not agree: .json counts more than .txt, and that more than "
            ".caption.txt and .lyrics.txt",
            "json_unread": "{songs} with a .json sidecar, which Side-Step does not read: it is left out",
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


_Found: TypeAlias = Callable[[_Account], Iterator[Item | BadRow]]
"""Finds rows whose `Item.meta` is what `known_fields` gives."""


@dataclass(frozen=True, kw_only=True)
class _Songs:
    """Rows that are found, finished by the rules of the run."""

    found: _Found
    tags: TagRules
    compat: bool
    notes: list[str] | None
    captioned: bool
    """Whether a song without a caption gets its name for one."""

    def rows(self) -> Iterator[Item | BadRow]:
        account = _Account(compat=self.compat)
        rows = self.found(account)
        choice = None
        if self.compat and self.tags.genre_ratio:
            collected = list(rows)
            paths = {row.id: row.path for row in collected if isinstance(row, Item)}
            choice, rows = side_step_genre_choice(paths, self.tags.genre_ratio), iter(collected)
        for row in rows:
            if isinstance(row, BadRow):
                yield row
                continue
            use_genre = self.tags.chooses_genre(row.id) if choice is None else row.id in choice
            yield self._finished(row, use_genre=use_genre, account=account)
        if self.notes is not None:
            self.notes.extend(account.notes())

    def _finished(self, row: Item, *, use_genre: bool, account: _Account) -> Item:
        if self.captioned and "caption" not in row.meta:
            account.count("no_caption", row.id)
        if use_genre and "genre" not in row.meta:
            account.count("no_genre", row.id)
        meta = finished_meta(
            row.meta,
            caption=caption_of_name(row.path) if self.captioned else "",
            custom_tag=self.tags.custom_tag,
            tag_position=self.tags.tag_position or "prepend",
            use_genre=use_genre,
        )
        return replace(row, meta=meta)


def _over(tags: TagRules, dataset: DatasetFile) -> TagRules:
    """The run's rules, completed by those of a data set."""
    return replace(
        tags,
        custom_tag=tags.custom_tag or dataset.custom_tag,
        tag_position=tags.tag_position or dataset.tag_position,
        genre_ratio=dataset.genre_ratio if tags.genre_ratio is None else tags.genre_ratio,
    )


def _in_folder(folder: str, exclude: Sequence[str], account: _Account) -> Iterator[Item | BadRow]:
    listings: dict[str, dict[str, str]] = {}
    for row in read_folders([Root(path=folder)], exclude=exclude, captions=False):
        if isinstance(row, BadRow):
            yield row
            continue
        place, name = os.path.split(row.path)
        if place not in listings:
            listings[place] = _sidecars_in(place)
            account.orphans[os.path.dirname(row.relpath)] = {
                listed for listed in listings[place].values() if not listed.lower().startswith(_BELONG_TO_NO_SONG)
            }
            if os.path.dirname(row.relpath) == "" and DATASET_NAME in listings[place]:
                account.count("dataset_unread", DATASET_NAME)
        stem = os.path.splitext(name)[0]
        account.orphans[os.path.dirname(row.relpath)] -= {listings[place].get(stem + end, "") for end in SUFFIXES}
        yield _with_sidecars(row, listings[place], account)


def _one_file(path: str, account: _Account) -> Iterator[Item | BadRow]:
    name = os.path.basename(path)
    row = file_row(path, row_id=name, relpath=name, sidecars=())
    yield row if isinstance(row, BadRow) else _with_sidecars(row, _sidecars_in(os.path.dirname(path)), account)


def _sidecars_in(folder: str) -> dict[str, str]:
    try:
        with os.scandir(folder) as entries:
            return sidecar_listing(entry.name for entry in entries if not entry.is_dir())
    except OSError as error:
        # its sounds were listed a moment ago
        raise UsageError(f"the folder {folder} cannot be read any more: {error.strerror}") from error


def _with_sidecars(row: Item, listing: Mapping[str, str], account: _Account) -> Item | BadRow:
    files = sidecars_beside(row.path, listing)
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


def _in_dataset(dataset: DatasetFile, audio_dir: str | None, account: _Account) -> Iterator[Item | BadRow]:
    return read_dataset_json(dataset, audio_dir=audio_dir, compat=account.compat)


def _in_manifest(path: str, account: _Account) -> Iterator[Item | BadRow]:
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
