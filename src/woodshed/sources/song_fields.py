"""What can be known of a song: its fields, the other names they go by, and the values that they may have.

Sidecars, `dataset.json` and manifests all hold the same fields. `known_fields` brings any of them to one form: only
fields with a value, under their canonical names, checked. `finished_meta` makes an item's metadata of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Final, Literal, TypeAlias, get_args

from woodshed.contracts import Json
from woodshed.errors import ItemError
from woodshed.sources.manifest import type_name

TagPosition: TypeAlias = Literal["prepend", "append", "replace"]
TAG_POSITIONS: Final = get_args(TagPosition)
PROMPT_OVERRIDES: Final = ("caption", "genre")
INSTRUMENTAL: Final = "[Instrumental]"
"""What stands in the place of lyrics where nobody sings."""

ALIASES: Final[Mapping[str, str]] = {
    "tempo": "bpm",
    "key": "keyscale",
    "scale": "keyscale",
    "signature": "timesignature",
    "time_signature": "timesignature",
    "sig": "timesignature",
    "lang": "language",
    "repeats": "repeat",
    "trigger": "custom_tag",
}
"""Other names of fields, in every form of metadata."""

FIELDS: Final = (
    *("caption", "genre", "bpm", "keyscale", "timesignature", "language", "is_instrumental"),
    *("custom_tag", "tag_position", "prompt_override", "repeat", "duration", "lyrics"),
)
"""Canonical names, in the order in which they are written."""
DESCRIPTIVE: Final = ("caption", "genre", "lyrics", "bpm", "keyscale", "timesignature", "language")
"""Fields that describe the music. Of a song with none of them nothing is known: tags and lengths are no description."""
TEXT_FIELDS: Final = frozenset({"caption", "genre", "keyscale", "timesignature", "language", "custom_tag", "lyrics"})

Known: TypeAlias = dict[str, Json]
"""Fields of one song that have a value; `extra` holds columns that are no field, where there are any."""

MAX_BPM: Final = 999
MAX_REPEAT: Final = 10_000
MAX_DURATION_S: Final = 24 * 3600
"""A longer `duration` is taken for a mistake, such as milliseconds."""

_NO_VALUE = frozenset({"", "n/a", "none", "null", "unknown"})
"""How tools write that something is not known; for all fields but free text."""
_FREE_TEXT = frozenset({"caption", "genre", "lyrics", "custom_tag"})
_TRUE, _FALSE = frozenset({"true", "yes", "1"}), frozenset({"false", "no", "0"})
_MARK = re.compile(r"\[[^\[\]\n]*\]")
_CLOCK = re.compile(r"(?:(\d{1,2}):)?(\d{1,2}):(\d{2}(?:\.\d+)?)")


def known_fields(columns: Mapping[str, Json], *, where: str, kind: str, compat: bool = False) -> Known:
    """The fields among some columns, under their canonical names and checked; others go to `extra` as they are.

    Numbers may be text. A tempo is rounded to a whole number, halves upwards. Text loses white space at its ends and
    at the ends of its lines. Nothing, an empty text, "N/A" and "unknown" are the same as a missing column.

    Args:
        where: what holds the columns, for messages.
        kind: of the error, such as `bad_sidecar`.
        compat: cut a tempo down to a whole number and leave text as it is, as Side-Step does.

    Raises:
        ItemError: a value that a field cannot have, or two values for one field.

    >>> known_fields({"Tempo": "85.5", "key": "C minor", "language": "unknown", "mood": 3}, where="x", kind="bad_row")
    {'bpm': 86, 'keyscale': 'C minor', 'extra': {'mood': 3}}
    """
    known: Known = {}
    extra: dict[str, Json] = {}
    for name, value in columns.items():
        field = canonical(name)
        if field is None:
            extra[name] = value
            continue
        try:
            checked = _checked(field, value, compat=compat)
        except ValueError as error:
            raise ItemError(f"{where}: `{name}` is {_shown(value)}, but must be {error}", kind=kind) from error
        if checked is None:
            continue
        if known.setdefault(field, checked) != checked:
            raise ItemError(
                f"{where}: `{name}` says {_shown(checked)}, but {_shown(known[field])} stands there for the same field",
                kind=kind,
                hint="keep one of the two",
            )
    return known | {"extra": extra} if extra else known


def canonical(name: str) -> str | None:
    """The field that a column's name stands for, in any case; None if it is no field.

    >>> canonical("Tempo"), canonical("mood")
    ('bpm', None)
    """
    plain = name.strip().lower()
    field = ALIASES.get(plain, plain)
    return field if field in FIELDS else None


def finished_meta(
    known: Mapping[str, Json], *, caption: str, custom_tag: str, tag_position: str, use_genre: bool
) -> dict[str, Json]:
    """The metadata of a song's item: every field has a value, and what the song leaves open comes from the run.

    `has_sidecar` says whether anything that describes the music was known, wherever it stood.

    Args:
        caption: for a song without one.
        custom_tag: of the run.
        tag_position: of the run.
        use_genre: whether the genre ratio chose this song.
    """
    lyrics = known.get("lyrics", "")
    # A song with an instrumental break has words besides its section marks.
    is_wordless = not lyrics or (INSTRUMENTAL.lower() in lyrics.lower() and not has_words(lyrics))
    meta: dict[str, Json] = {
        "caption": known.get("caption", caption),
        "genre": known.get("genre", ""),
        "lyrics": lyrics,
        "bpm": known.get("bpm"),
        "keyscale": known.get("keyscale", ""),
        "timesignature": known.get("timesignature", ""),
        "language": known.get("language", ""),
        "is_instrumental": known.get("is_instrumental", is_wordless),
        "custom_tag": known.get("custom_tag") or custom_tag,
        "tag_position": known.get("tag_position", tag_position),
        "prompt_override": known.get("prompt_override"),
        "use_genre": use_genre,
        "repeat": known.get("repeat", 1),
        "given_duration_s": known.get("duration"),
        "has_sidecar": any(field in known for field in DESCRIPTIVE),
    }
    if meta["caption"]:
        meta["prompt"] = meta["caption"]
    if "extra" in known:
        meta["extra"] = known["extra"]
    return meta


def has_words(lyrics: str) -> bool:
    """Whether lyrics hold anything but section marks.

    >>> has_words("[Instrumental]"), has_words("[Verse]\\nla\\n[Instrumental]")
    (False, True)
    """
    return bool(_MARK.sub("", lyrics).strip())


def caption_of_name(path: str) -> str:
    """A caption made of a file's name, as Side-Step makes one; bytes that are not UTF-8 become question marks.

    >>> caption_of_name("songs/heavy_metal-riff.wav")
    'heavy metal riff'
    """
    stem = PurePath(path).stem.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return stem.replace("_", " ").replace("-", " ").replace("\ufffd", "?").strip()


def tidy(text: str) -> str:
    r"""Text with line ends `\n`, without white space at its ends and at the ends of its lines."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()


def _checked(field: str, value: Json, *, compat: bool) -> Json:
    """The value as it is kept, or None for no value. Raises `ValueError` that says what is allowed."""
    if value is None:
        return None
    if isinstance(value, str) and field not in _FREE_TEXT and value.strip().lower() in _NO_VALUE:
        return None
    if field == "bpm":
        return _bpm(value, compat=compat)
    if field == "repeat":
        return _repeat(value)
    if field == "duration":
        return _duration_s(value)
    if field == "is_instrumental":
        return _truth(value)
    if field == "tag_position":
        return _word(value, TAG_POSITIONS)
    if field == "prompt_override":
        return _word(value, PROMPT_OVERRIDES)
    assert field in TEXT_FIELDS
    return _text(value, as_it_is=compat)


def _text(value: Json, *, as_it_is: bool) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("text without half surrogate pairs") from error
    return (value if as_it_is else tidy(value)) or None


def _bpm(value: Json, *, compat: bool) -> int:
    wish = f"a number from 1 to {MAX_BPM}"
    number = _number(value, wish)
    bpm = math.floor(number if compat else number + 0.5)
    if not 1 <= bpm <= MAX_BPM:
        raise ValueError(wish)
    return bpm


def _repeat(value: Json) -> int:
    wish = f"a whole number from 1 to {MAX_REPEAT}"
    number = _number(value, wish)
    if not (number.is_integer() and 1 <= number <= MAX_REPEAT):
        raise ValueError(wish)
    return int(number)


def _duration_s(value: Json) -> int | float | None:
    wish = "a number of seconds, or minutes:seconds, up to a day"
    clock = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if clock is not None:
        hours, minutes, seconds = clock.groups()
        number = 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)
    else:
        number = _number(value, wish)
    if not 0 <= number <= MAX_DURATION_S:
        raise ValueError(wish)
    is_whole = isinstance(value, int) or (isinstance(value, str) and "." not in value and number.is_integer())
    # 0 is how tools write a length that nobody measured
    return (int(number) if is_whole else number) or None


def _truth(value: Json) -> bool:
    word = str(value).strip().lower() if isinstance(value, (bool, int, str)) else ""
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError("true or false")


def _word(value: Json, words: tuple[str, ...]) -> str:
    plain = value.strip().lower() if isinstance(value, str) else ""
    if plain not in words:
        raise ValueError(" or ".join(words))
    return plain


def _number(value: Json, wish: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(wish)
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(wish) from error
    if not math.isfinite(number):
        raise ValueError(wish)
    return number


def _shown(value: Json) -> str:
    text = repr(value) if isinstance(value, (str, int, float)) else type_name(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
