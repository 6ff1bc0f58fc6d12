"""Which rows are for validation: by the id alone, as the original, or by groups that stay together.

A row is anything with the keys of the output manifest (`id`, `speaker`, `text`, `audio_path`), such as an item's `meta`
with its `id`; a `recording` may stand beside them or in `extra`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, TypeAlias

from woodshed.contracts import Json

BUCKETS = 1_000_000
FEWEST_VALIDATION_ROWS = 10
MOST_OFF_SHARE = 0.2
"""Relative difference between the share asked for and the share found that is worth a word."""

SplitBy: TypeAlias = Literal["id", "speaker", "recording", "text"]

_SEGMENT_NUMBER = re.compile(r"(?:[-_. ]*(?:segment|seg|chunk|part|clip|utt))?[-_. ]*\d+$", re.IGNORECASE)
_SEGMENT_TIMES = re.compile(r"[-_.](\d{5,})[-_](\d{5,})$")


def bucket(row_id: str) -> int:
    """The bucket of an id, `0..999_999`: its SHA-1 as a number, modulo a million.

    >>> bucket("utt_00000")
    22021
    """
    digest = hashlib.sha1(row_id.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
    return int.from_bytes(digest) % BUCKETS


def is_validation(row_id: str, ratio: float) -> bool:
    """Whether a row is for validation by the rule of the original: a function of the id and nothing else."""
    return ratio > 0 and (ratio >= 1 or bucket(row_id) / BUCKETS < ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitter:
    """Decides for each row alone, so that every run, machine and order of rows decides alike."""

    ratio: float
    """Share of the rows (of the groups, when not by id) that validation gets."""
    by: SplitBy = "id"
    """What stays on one side. Rows that do not tell their group are groups of their own."""
    seed: int = 17
    """Picks the groups; by id it has no say."""

    def is_validation(self, row: Mapping[str, Json]) -> bool:
        """Whether this row is for validation."""
        if self.by == "id":
            return is_validation(row["id"], self.ratio)
        key = GROUP_KEYS[self.by](row)
        group = ("id", row["id"]) if key is None else (self.by, key)
        return is_validation("\x00".join((str(self.seed), *group)), self.ratio)


def speaker_key(row: Mapping[str, Json]) -> str | None:
    """Who speaks, or None."""
    speaker = row.get("speaker")
    return str(speaker).strip() or None if speaker is not None else None


def recording_key(row: Mapping[str, Json]) -> str | None:
    """Which recording a row is a piece of, or None where nothing tells.

    That is its `recording`, or else the folder and name of its sound without the number of the segment: without one
    number at the end, with `seg`, `segment`, `chunk`, `part`, `clip` or `utt` before it, or without two of one width
    and at least five digits (start and end). A name that is nothing but a number tells no recording.

    >>> names = ("wavs/LJ001-0012.wav", "84-121123-0003.flac", "a/talk_seg07.wav", "talk-0001234-0004321.wav")
    >>> [recording_key({"audio_path": name}) for name in names]
    ['wavs/LJ001', '84-121123', 'a/talk', 'talk']
    >>> [recording_key({"audio_path": name}) for name in ("wavs/00012.wav", "wavs/intro.wav")]
    [None, 'wavs/intro']
    >>> recording_key({"audio_path": "x_1.wav", "recording": "tape 7"})
    'tape 7'
    """
    extra = row.get("extra")
    recording = row.get("recording", extra.get("recording") if isinstance(extra, Mapping) else None)
    if recording is not None and str(recording).strip():
        return str(recording).strip()
    path = PurePosixPath(row.get("audio_path") or "")
    times = _SEGMENT_TIMES.search(path.stem)
    if times is not None and len(times[1]) == len(times[2]):
        name = path.stem[: times.start()]
    else:
        name = _SEGMENT_NUMBER.sub("", path.stem)
    return str(path.with_name(name)) if name else None


class _Deletions(dict[int, int | None]):
    """For `str.translate`: characters that are no part of a word (punctuation, space, control) are deleted."""

    def __missing__(self, code: int) -> int | None:
        is_deleted = unicodedata.category(chr(code))[0] in "PZC"
        self[code] = None if is_deleted else code
        return self[code]


_DELETIONS = _Deletions()


def text_key(row: Mapping[str, Json]) -> str | None:
    """What is said, whatever its case, width, spacing and punctuation; None where no word is left.

    >>> text_key({"text": "  Don't — STOP! "}) == text_key({"text": "don’t stop"})
    True
    """
    folded = unicodedata.normalize("NFKC", str(row.get("text") or "")).casefold()
    bare = unicodedata.normalize("NFKC", folded).translate(_DELETIONS)
    # Once more: an accent may have found its letter when the space between them went.
    return unicodedata.normalize("NFKC", bare) or None


GROUP_KEYS: Mapping[str, Callable[[Mapping[str, Json]], str | None]] = {
    "speaker": speaker_key,
    "recording": recording_key,
    "text": text_key,
}
"""What rows of a group have in common."""


def share_notes(*, num_train: int, num_val: int, splitter: Splitter) -> list[str]:
    """What the user should know about a finished split, one sentence each."""
    total = num_train + num_val
    if not total or not 0 < splitter.ratio < 1:
        return []
    share = num_val / total
    notes = []
    if abs(share - splitter.ratio) > MOST_OFF_SHARE * splitter.ratio:
        notes.append(
            f"validation has {share:.2%} of the rows, not the {splitter.ratio:.2%} asked for: whole "
            + ("buckets of ids" if splitter.by == "id" else f"groups (one {splitter.by} each)")
            + " go to one side"
        )
    if num_val < FEWEST_VALIDATION_ROWS:
        notes.append(f"validation has only {num_val} of {total} rows: a larger --val-ratio gives a steadier loss")
    return notes
