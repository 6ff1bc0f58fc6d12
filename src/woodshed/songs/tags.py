"""Trigger tags in sidecars: lists of tags, and how a sidecar is changed where it must be and nowhere else.

A song's `custom_tag` is a list of tags with commas between them. Tags are compared as they are, without white space
around them.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Literal, TypeAlias

from woodshed.errors import ItemError
from woodshed.sources.sidecar import parse_object
from woodshed.sources.song_fields import Known, canonical, tidy
from woodshed.sources.song_sidecar import KIND, TEXT_KEYS, key_of_line, known_of_text, plain_field

Position: TypeAlias = Literal["prepend", "append", "replace"]
FIELD = "custom_tag"

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z")
_INDENT = re.compile(r"\n([ \t]+)\S")


def tags_in(custom_tag: str) -> tuple[str, ...]:
    """The tags of a list.

    >>> tags_in(" zed,  my style ,")
    ('zed', 'my style')
    """
    return tuple(tag.strip() for tag in custom_tag.split(",") if tag.strip())


def with_tag(custom_tag: str, tag: str, position: Position) -> str:
    """The list with a tag (or several) in it; as it was, if all are there already and no others are to go.

    >>> with_tag("zed", "neo", "prepend"), with_tag("zed, neo", "neo", "prepend"), with_tag("zed", "neo", "replace")
    ('neo, zed', 'zed, neo', 'neo')
    """
    old = tags_in(custom_tag)
    new = tuple(one for one in tags_in(tag) if one not in old)
    if position == "replace":
        return custom_tag if old == tags_in(tag) else ", ".join(tags_in(tag))
    if not new:
        return custom_tag
    return ", ".join((*new, *old) if position == "prepend" else (*old, *new))


def without_tag(custom_tag: str, tag: str) -> str:
    """The list without a tag (or several); as it was, if none is in it.

    >>> without_tag("zed, neo", "zed"), without_tag("zed,neo", "x")
    ('neo', 'zed,neo')
    """
    gone = tags_in(tag)
    kept = tuple(one for one in tags_in(custom_tag) if one not in gone)
    return custom_tag if kept == tags_in(custom_tag) else ", ".join(kept)


def retagged_text(content: bytes, custom_tag: str, *, where: str, has_caption_file: bool) -> bytes:
    """A text sidecar with another `custom_tag`; an empty one takes the field away. All other bytes stay.

    A text without known keys gets one for what it is, or its tag would be read as a part of it.

    Args:
        has_caption_file: whether a `.caption.txt` stands beside it: then a text without known keys is lyrics.

    Raises:
        ItemError: of kind `bad_sidecar`, if it is not UTF-8 or cannot be read; of kind `not_text`, if it would not be
            read back as the same but for the tag.
    """
    text = _decoded(content, where)
    mark = "\ufeff" if content.startswith(b"\xef\xbb\xbf") else ""
    plain = plain_field(text, has_caption_file=has_caption_file)
    new = _opened(text, plain, custom_tag) if plain is not None else _retagged(text, custom_tag)
    before, after = (_known(part, where, has_caption_file=has_caption_file) for part in (text, new))
    expected = {**before, FIELD: custom_tag}
    if after != {field: value for field, value in expected.items() if value != ""}:
        raise ItemError(
            f"{where} cannot take the tag {custom_tag!r}: it would not be read back as the same",
            kind="not_text",
            hint="add a line `custom_tag: ...` to it by hand",
        )
    return (mark + new).encode()


def retagged_json(content: bytes, custom_tag: str, *, where: str) -> bytes:
    """A JSON sidecar with another `custom_tag`; an empty one takes the column away. Order, indent and values stay.

    Raises:
        ItemError: of kind `bad_sidecar`, if it is not UTF-8 or no JSON object.
    """
    text = _decoded(content, where)
    columns = parse_object(text, where=where, kind=KIND) if text.strip() else {}
    names = [name for name in columns if canonical(name) == FIELD]
    kept = {name: columns[name] for name in columns if name not in names[1:]}
    if custom_tag:
        kept[names[0] if names else FIELD] = custom_tag
    elif names:
        del kept[names[0]]
    indent = _INDENT.search(text)
    ends = "\n" if text.endswith("\n") or not text else ""
    return (json.dumps(kept, ensure_ascii=text.isascii(), indent=indent and indent[1]) + ends).encode()


def _known(text: str, where: str, *, has_caption_file: bool) -> Known:
    plain = plain_field(text, has_caption_file=has_caption_file)
    return known_of_text(text, where=where) if plain is None else {plain: tidy(text)}


def _opened(text: str, plain: str, custom_tag: str) -> str:
    """A text without known keys, with keys for what it is and for its tag."""
    if not custom_tag:
        return text
    end = _line_end(text)
    opened = f"lyrics:{end}{text}" if plain == "lyrics" else f"caption: {text.lstrip()}"
    return f"{FIELD}: {custom_tag}{end}{opened}"


def _retagged(text: str, custom_tag: str) -> str:
    lines, end = _LINE.findall(text), _line_end(text)
    field = f"{FIELD}: {custom_tag}{end}" if custom_tag else ""
    starts = _field_lines(lines)
    spans = [
        (first, _end_of_value(lines, first, following))
        for (first, name), (following, _) in pairwise([*starts, (len(lines), "")])
        if name == FIELD
    ]
    if not spans:
        place = next((number for number, name in starts if name == "lyrics"), len(lines))
        before = "".join(lines[:place])
        gap = end if field and before and not before.endswith(("\n", "\r")) else ""
        return before + gap + field + "".join(lines[place:])
    for first, last in reversed(spans[1:]):
        del lines[first:last]
    first, last = spans[0]
    key, _, rest = lines[first].partition(":")
    space = rest[: len(rest) - len(rest.lstrip(" \t"))] if rest.strip() else " "
    own_end = lines[first][len(lines[first].rstrip("\r\n")) :]
    lines[first:last] = [f"{key}:{space}{custom_tag}{own_end}"] if custom_tag else []
    return "".join(lines)


def _line_end(text: str) -> str:
    found = re.search(r"\r\n|\r|\n", text)
    return "\n" if found is None else found[0]


def _field_lines(lines: list[str]) -> list[tuple[int, str]]:
    """Where fields start, and which; none is sought in lyrics."""
    found = []
    for number, line in enumerate(lines):
        start = key_of_line(line)
        if start is not None:
            found.append((number, TEXT_KEYS[start[0]]))
            if start[0] == "lyrics":
                break
    return found


def _end_of_value(lines: list[str], first: int, following: int) -> int:
    """After the last line of the value that starts at `first`: what follows of blank lines and comments stays."""
    last = following
    while last > first + 1 and (not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#")):
        last -= 1
    return last


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{where} is not UTF-8 (byte {error.start})"
        raise ItemError(reason, kind=KIND, hint="save it as UTF-8") from error
