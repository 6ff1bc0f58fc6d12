"""What tagging does to the sidecars of one song: which files change, and to what."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from woodshed.songs.tags import FIELD, Position, retagged_json, retagged_text, tags_in, with_tag, without_tag
from woodshed.sources.song_sidecar import (
    TEXT,
    SidecarFiles,
    read_sidecar_bytes,
    read_song_sidecars,
    where,
)

Change: TypeAlias = Callable[[str], str]
"""From one list of tags to another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagAction:
    """What is to happen to the tags of every song."""

    kind: Literal["add", "remove", "clear", "list"]
    tag: str = ""
    position: Position = "prepend"

    def applied(self, custom_tag: str) -> str:
        """The list of tags that a song has afterwards.

        >>> TagAction(kind="remove", tag="zed").applied("zed, neo")
        'neo'
        """
        if self.kind == "add":
            return with_tag(custom_tag, self.tag, self.position)
        if self.kind == "remove":
            return without_tag(custom_tag, self.tag)
        return "" if self.kind == "clear" else custom_tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """What becomes of one song."""

    before: str
    after: str
    writes: Mapping[str, bytes]
    """Path of a sidecar -> its new content; empty where nothing changes."""


def tag_song(sound: str, files: SidecarFiles, action: TagAction) -> Tagged:
    """Work out what changes; nothing is written.

    A tag goes to the file that has one already, or to the text, or to the JSON; a song without sidecars gets a text. It
    is taken away from all files of the song.

    Args:
        sound: path of the song.

    Raises:
        ItemError: of kind `bad_sidecar` or `not_text`: a sidecar cannot be read, or cannot take the tag.
    """
    before = _tag_of(files)
    parts = {
        path: _tag_of(part)
        for part in (SidecarFiles(json=files.json), SidecarFiles(text=files.text, caption=files.caption))
        if (path := part.json or part.text) is not None
    }
    if action.kind == "add":
        holder = next((path for path, tag in parts.items() if tag), files.text or files.json)
        wanted = {holder or os.path.splitext(sound)[0] + TEXT: action.applied(before)}  # noqa: PTH122 - may be not UTF-8
    else:
        wanted = {path: action.applied(tag) for path, tag in parts.items()}
    writes = {path: _retagged(path, files, tag) for path, tag in wanted.items() if tag != parts.get(path, "")}
    left = [wanted.get(path, tag) for path, tag in {**parts, **wanted}.items()]
    return Tagged(before=before, after=next(filter(None, left), ""), writes=writes)


def shared_words(custom_tag: str, tag: str) -> bool:
    """Whether a tag is only a part of one that the song has: Side-Step joins tags by spaces, and we do not part them.

    >>> shared_words("zed neo", "neo"), shared_words("zed, neo", "neo")
    (True, False)
    """
    return any(tag.split() != one.split() and set(tag.split()) <= set(one.split()) for one in tags_in(custom_tag))


def _tag_of(files: SidecarFiles) -> str:
    return str(read_song_sidecars(files).known.get(FIELD, ""))


def _retagged(path: str, files: SidecarFiles, custom_tag: str) -> bytes:
    if path == files.json:
        return retagged_json(read_sidecar_bytes(path), custom_tag, where=where(path))
    content = read_sidecar_bytes(path) if path == files.text else b""
    return retagged_text(content, custom_tag, where=where(path), has_caption_file=files.caption is not None)
