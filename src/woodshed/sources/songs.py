"""Songs with what is known of them: a folder with sidecars, a `dataset.json`, a manifest, or one sound.

`Item.meta` of a song always holds `caption`, `genre`, `lyrics`, `bpm`, `keyscale`, `timesignature`, `language`,
`is_instrumental`, `custom_tag`, `tag_position`, `prompt_override`, `use_genre`, `repeat`, `given_duration_s` and
`has_sidecar`; `prompt` (the caption again) and `extra` (all other columns) only where there are any. A song without a
caption gets its file's name for one, as in Side-Step; a note counts them, for a made-up caption teaches little.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from woodshed.chance import generator
from woodshed.contracts import BadRow, Item
from woodshed.errors import UsageError
from woodshed.sources.dataset_json import DatasetFile
from woodshed.sources.song_fields import TagPosition, caption_of_name, finished_meta, has_words
from woodshed.sources.song_rows import FoundSongs, SongAccount, find_songs
from woodshed.sources.source import Source

TAGS = "tags"
"""In `Source.about`: what the run and the data set say of tags and genres."""
SIDE_STEP_SEED = 42
"""With which Side-Step shuffles songs to pick those that are prompted by genre."""


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
    found = find_songs(audio_dir, dataset_json, exclude=exclude)
    if found.dataset is not None:
        tags = _over(tags, found.dataset)
    # Side-Step gives songs of a data set no caption where the data set has none.
    songs = _Songs(
        found=found, tags=tags, compat=compat, notes=notes, captioned=not (compat and found.kind == "dataset")
    )
    root = found.path if found.kind in ("folder", "file") else found.path.parent
    said = {"custom_tag": tags.custom_tag, "tag_position": tags.tag_position or "prepend"}
    about = {
        "kind": found.kind,
        "name": found.path.resolve().name,
        TAGS: {**said, "genre_ratio": tags.genre_ratio or 0},
    }
    return Source(roots=(str(root),), read=songs.rows, about=about)


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


@dataclass(frozen=True, kw_only=True)
class _Songs:
    """Rows that are found, finished by the rules of the run."""

    found: FoundSongs
    tags: TagRules
    compat: bool
    notes: list[str] | None
    captioned: bool
    """Whether a song without a caption gets its name for one."""

    def rows(self) -> Iterator[Item | BadRow]:
        account = SongAccount(compat=self.compat)
        rows = self.found.read(account)
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

    def _finished(self, row: Item, *, use_genre: bool, account: SongAccount) -> Item:
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
        if not self.compat and meta["is_instrumental"] and has_words(meta["lyrics"]):
            account.count("unsung_words", row.id)
        if self.compat and meta["given_duration_s"] is None and (not self.captioned or not row.meta):
            # Side-Step measures a song of which a sidecar says something, and takes any other for 0 seconds long.
            meta["given_duration_s"] = 0
        return replace(row, meta=meta)


def _over(tags: TagRules, dataset: DatasetFile) -> TagRules:
    """The run's rules, completed by those of a data set."""
    return replace(
        tags,
        custom_tag=tags.custom_tag or dataset.custom_tag,
        tag_position=tags.tag_position or dataset.tag_position,
        genre_ratio=dataset.genre_ratio if tags.genre_ratio is None else tags.genre_ratio,
    )
