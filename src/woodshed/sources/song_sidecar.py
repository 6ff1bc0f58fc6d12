"""Sidecars of songs: what stands beside `song.wav` in `song.txt`, `song.json`, `song.caption.txt`, `song.lyrics.txt`.

A text sidecar holds `key: value` lines. A line starts a field if its key is one of `TEXT_KEYS`, in any case; every
other line goes on with the field before it. `lyrics` comes last and takes all that follows, lines with colons included.
Lines that start with `#` are comments, except in lyrics. Text before the first field is the caption.

A text without any known key is a caption, as everywhere in Woodshed, unless it has section marks such as `[Verse]` on
lines of their own, or a `song.caption.txt` stands beside it: then it is lyrics. Where several files give one field,
`.json` wins over `.txt`, and that over `.caption.txt` and `.lyrics.txt`.

Side-Step reads some of this in another way, and `compat` does as it does: a text without a caption in it is lyrics as
a whole, comments after a field of text belong to that field, what stands before it is dropped, of a field that is
given twice the last counts, and `.json` files are not read.
"""

# Songs can be many: `pathlib` takes several times as long per file as `os`.
# ruff: noqa: PTH118, PTH119, PTH122

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from woodshed.audio.opening import open_file
from woodshed.errors import AudioError, ItemError
from woodshed.sources.sidecar import LIMIT_BYTES, parse_object
from woodshed.sources.song_fields import ALIASES, FIELDS, TEXT_FIELDS, Known, known_fields, tidy

KIND: Final = "bad_sidecar"
TEXT, JSON, CAPTION, LYRICS = ".txt", ".json", ".caption.txt", ".lyrics.txt"
SUFFIXES: Final = (CAPTION, LYRICS, TEXT, JSON)
"""Endings of sidecars, in any case; the longer ones first."""

TEXT_KEYS: Final[Mapping[str, str]] = {field: field for field in FIELDS} | {**ALIASES, "tags": "custom_tag"}
"""What can start a field of a text sidecar, and the field. In JSON, `tags` tends to be a list of styles: not there."""
WRITTEN_KEYS: Final[Mapping[str, str]] = {"keyscale": "key", "timesignature": "signature"}
"""How fields are called in text that we write, where not by their own names: so that Side-Step reads them."""

_SECTION = re.compile(r"^\s*\[[^\[\]\n]+\]\s*$", re.MULTILINE)
_ORDER = ("tag_position", *(field for field in FIELDS if field != "tag_position"))
"""Side-Step does not know `tag_position`. It drops what stands before the first field that it knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarFiles:
    """Paths of the sidecars of one song that exist."""

    text: str | None = None
    json: str | None = None
    caption: str | None = None
    lyrics: str | None = None

    def __bool__(self) -> bool:
        return any(path is not None for path in (self.text, self.json, self.caption, self.lyrics))


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarReading:
    """What the sidecars of one song say."""

    known: Known
    plain: str | None = None
    """`caption` or `lyrics` where a text without known keys was read as that."""
    overruled: tuple[str, ...] = ()
    """Fields that two files give different values; the stronger file's counts."""


def sidecar_name(name: str) -> str | None:
    """A file name with its ending in lower case, if that is the ending of a sidecar: what sidecars are looked up by.

    >>> sidecar_name("A.TXT"), sidecar_name("A.Caption.txt"), sidecar_name("A.wav")
    ('A.txt', 'A.caption.txt', None)
    """
    lower = name.lower()
    suffix = next((suffix for suffix in SUFFIXES if lower.endswith(suffix) and len(name) > len(suffix)), None)
    return None if suffix is None else name[: -len(suffix)] + suffix


def sidecar_listing(names: Iterable[str]) -> dict[str, str]:
    """The sidecars among the files of one folder: `sidecar_name` -> the name as it is."""
    return {key: name for name in sorted(names, reverse=True) if (key := sidecar_name(name)) is not None}


def sidecars_beside(sound: str, listing: Mapping[str, str]) -> SidecarFiles:
    """The sidecars of one sound.

    Args:
        sound: path of the sound.
        listing: `sidecar_listing` of its folder.
    """
    folder, name = os.path.split(sound)
    stem = os.path.splitext(name)[0]
    text, json, caption, lyrics = (
        os.path.join(folder, listing[stem + suffix]) if stem + suffix in listing else None
        for suffix in (TEXT, JSON, CAPTION, LYRICS)
    )
    return SidecarFiles(text=text, json=json, caption=caption, lyrics=lyrics)


def read_song_sidecars(files: SidecarFiles, *, compat: bool = False) -> SidecarReading:
    """What the sidecars of one song say, merged.

    Raises:
        ItemError: of kind `bad_sidecar`, naming file and key: a file that cannot be read, is larger than 4 MiB or not
            UTF-8, is not a JSON object, or holds a value that its field cannot have.
    """
    if compat:
        return _as_side_step(files)
    plain = None
    layers: list[Known] = [{}, {}, {}]
    if files.caption or files.lyrics:
        layers[0] = _separate(files)
    if files.text is not None:
        text = read_sidecar_text(files.text)
        layers[1] = known_of_text(text, where=where(files.text))
        if plain := plain_field(text, has_caption_file=files.caption is not None):
            layers[1] = {plain: tidy(text)}
    if files.json is not None:
        columns = parse_object(read_sidecar_text(files.json), where=where(files.json), kind=KIND)
        layers[2] = known_fields(columns, where=where(files.json), kind=KIND)
    merged = layers[0] | layers[1] | layers[2]
    overruled = tuple(
        field for field in FIELDS if any(field in layer and layer[field] != merged[field] for layer in layers)
    )
    return SidecarReading(known=merged, plain=plain, overruled=overruled)


def known_of_text(text: str, *, where: str, compat: bool = False) -> Known:
    """The fields of a text sidecar; empty for a text without known keys.

    Raises:
        ItemError: of kind `bad_sidecar`.

    >>> known_of_text("caption: rain\\non glass\\nTempo: 85\\nlyrics:\\n[Verse]\\nkey: in the door", where="x")
    {'caption': 'rain\\non glass', 'bpm': 85, 'lyrics': '[Verse]\\nkey: in the door'}
    """
    values: dict[str, str] = {}
    for key, value in _blocks(text, compat=compat):
        if not key and compat:
            continue
        field = TEXT_KEYS.get(key, "caption")
        if not value or values.get(field) == value:
            continue
        if field in values and not compat:
            twice = f"{where}: `{field}` is given twice, as {_short(values[field])} and as {_short(value)}"
            first = "; the first stands before all fields" if "caption" in values and field == "caption" else ""
            raise ItemError(twice + first, kind=KIND, hint="keep one of the two")
        values[field] = value
    return known_fields(values, where=where, kind=KIND, compat=compat)


def text_of(known: Known) -> str:
    """A text sidecar that holds these fields and is read back as exactly these; `extra` has no place in it.

    Raises:
        ItemError: of kind `not_text`, naming the field that text cannot hold.

    >>> text_of({"caption": "rain", "keyscale": "C minor", "lyrics": "[Verse]\\nHello"})
    'caption: rain\\nkey: C minor\\nlyrics:\\n[Verse]\\nHello\\n'
    """
    fields = {field: known[field] for field in _ORDER if field in known}
    text = "".join(_written(field, value) for field, value in fields.items())
    try:
        back = known_of_text(text, where="the text")
    except ItemError as error:
        back = {}
        reason = f": read back, {error.message}"
    else:
        reason = ""
    wrong = [field for field in fields if field not in back or back[field] != fields[field]]
    if wrong or reason:
        field = _culprit(fields) or wrong[0]
        raise ItemError(
            f"`{field}` cannot be written as text{reason or ': it would be read back as something else'}",
            kind="not_text",
            hint="a line of it starts with a known key and a colon, or with #, or ends in white space: change it, "
            "or keep the JSON",
        )
    return text


def key_of_line(line: str) -> tuple[str, str] | None:
    """The key (as in `TEXT_KEYS`) and the rest of a line that starts a field; None for every other line."""
    key, colon, rest = line.lstrip().partition(":")
    plain = key.strip().lower()
    return (plain, rest) if colon and plain in TEXT_KEYS else None


def has_fields(text: str) -> bool:
    """Whether any line starts a field, with or without a value."""
    return any(key_of_line(line) for line in _lines(text))


def plain_field(text: str, *, has_caption_file: bool) -> Literal["caption", "lyrics"] | None:
    """What a text without known keys is; None for one with keys, and for an empty one.

    >>> plain_field("a calm piano", has_caption_file=False), plain_field("[Verse]\\nla", has_caption_file=False)
    ('caption', 'lyrics')
    """
    if has_fields(text) or not tidy(text):
        return None
    return "lyrics" if has_caption_file or _SECTION.search(tidy(text)) is not None else "caption"


def where(path: str) -> str:
    """How messages name a sidecar."""
    return f"sidecar {os.path.basename(path)!r}"


def read_sidecar_bytes(path: str) -> bytes:
    """A sidecar as it lies on the disk.

    Raises:
        ItemError: of kind `bad_sidecar`: it cannot be read, is no regular file, or is larger than 4 MiB.
    """
    try:
        with open_file(path) as (descriptor, size_bytes):
            if size_bytes > LIMIT_BYTES:
                raise ItemError(f"{where(path)} is larger than {LIMIT_BYTES // 2**20} MiB", kind=KIND)
            parts = []
            while part := os.read(descriptor, LIMIT_BYTES):
                parts.append(part)
            return b"".join(parts)
    except AudioError as error:
        if error.kind == "empty":
            return b""
        raise ItemError(f"{where(path)} cannot be read: {error.message}", kind=KIND, hint=error.hint) from error
    except OSError as error:
        raise ItemError(f"{where(path)} cannot be read: {error.strerror}", kind=KIND) from error


def read_sidecar_text(path: str) -> str:
    """The text of a sidecar, without a byte-order mark.

    Raises:
        ItemError: of kind `bad_sidecar`, as `read_sidecar_bytes`, and where it is not UTF-8.
    """
    try:
        return read_sidecar_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{where(path)} is not UTF-8 (byte {error.start})"
        raise ItemError(reason, kind=KIND, hint="save it as UTF-8") from error


def _blocks(text: str, *, compat: bool) -> list[tuple[str, str]]:
    """Key and text of every field in turn; the key is empty for what stands before the first. None without fields."""
    blocks: list[tuple[str, list[str]]] = [("", [])]
    for line in _lines(text):
        in_lyrics = blocks[-1][0] == "lyrics"
        keeps_comments = in_lyrics or (compat and TEXT_KEYS.get(blocks[-1][0]) in TEXT_FIELDS)
        start = None if in_lyrics else key_of_line(line)
        if start is not None:
            blocks.append((start[0], [start[1]]))
        elif keeps_comments or not line.lstrip().startswith("#"):
            blocks[-1][1].append(line)
    if len(blocks) == 1:
        return []
    return [(key, tidy("\n".join(lines))) for key, lines in blocks]


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _separate(files: SidecarFiles, *, compat: bool = False) -> Known:
    known: Known = {}
    for field, path in (("caption", files.caption), ("lyrics", files.lyrics)):
        text = "" if path is None else read_sidecar_text(path)
        if text := _stripped(text) if compat else tidy(text):
            known[field] = text
    return known


def _stripped(text: str) -> str:
    """As Side-Step reads a text of one field: white space stays at the ends of lines."""
    return "\n".join(_lines(text)).strip()


def _as_side_step(files: SidecarFiles) -> SidecarReading:
    text = read_sidecar_text(files.text) if files.text is not None else ""
    known = known_of_text(text, where=where(files.text), compat=True) if files.text is not None else {}
    if "caption" in known:
        return SidecarReading(known=known)
    if "caption" in (separate := _separate(files, compat=True)):
        return SidecarReading(known=separate)
    whole = _stripped(text)
    return SidecarReading(known={"lyrics": whole} if whole else {}, plain="lyrics" if whole else None)


def _written(field: str, value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    key = WRITTEN_KEYS.get(field, field)
    return f"{key}:\n{text}\n" if field == "lyrics" else f"{key}: {text}\n"


def _culprit(fields: Known) -> str | None:
    """The field whose lines read as something else."""
    for field, value in fields.items():
        lines = str(value).split("\n")[1:] if field != "lyrics" else []
        if any(key_of_line(line) or line.lstrip().startswith("#") for line in lines):
            return field
    return None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
