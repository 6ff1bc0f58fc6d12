"""From one form of sidecar to the other: what is to be written for a song, or why nothing is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from woodshed.contracts import Json
from woodshed.errors import ItemError
from woodshed.songs.samples import json_of
from woodshed.sources.sidecar import parse_object
from woodshed.sources.song_fields import FIELDS, Known, known_fields
from woodshed.sources.song_sidecar import KIND, known_of_text, text_of, where

Form: TypeAlias = Literal["txt", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What is to happen to one song's sidecar of the wanted form."""

    content: bytes | None = None
    """None where nothing is written."""
    skipped: str = ""
    """Why not: `nothing_known`, `equal` (it says the same already) or `exists` (it says something else)."""
    left_out: tuple[str, ...] = ()
    """Columns that the form has no place for; they stay where they are."""


def convert(known: Mapping[str, Json], form: Form, *, existing: str | None, path: str, overwrite: bool) -> Conversion:
    """Decide about one song. Pure.

    Args:
        known: all that is known of the song.
        existing: text of the sidecar of the wanted form that is there already.
        path: of that sidecar, for messages.

    Raises:
        ItemError: of kind `not_text`, if text cannot hold what is known.
    """
    fields: Known = {field: known[field] for field in FIELDS if field in known}
    extra: Known = known.get("extra", {})
    if form == "json" and extra:
        fields["extra"] = dict(extra)
    if not fields:
        return Conversion(skipped="nothing_known")
    left_out = tuple(extra) if form == "txt" else ()
    if existing is not None and _means(existing, form, path) == fields:
        return Conversion(skipped="equal", left_out=left_out)
    if existing is not None and existing.strip() and not overwrite:
        return Conversion(skipped="exists", left_out=left_out)
    content = text_of(fields).encode() if form == "txt" else json_of(fields)
    return Conversion(content=content, left_out=left_out)


def _means(text: str, form: Form, path: str) -> Known | None:
    """What a sidecar says; None for one that says nothing clear."""
    try:
        if form == "txt":
            return known_of_text(text, where=where(path))
        return known_fields(parse_object(text, where=where(path), kind=KIND), where=where(path), kind=KIND)
    except ItemError:
        return None
