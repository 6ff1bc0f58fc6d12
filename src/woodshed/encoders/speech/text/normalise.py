"""Our rules from a cleaned text to the text that is tokenized. The version of the rules is part of a run's fingerprint.

All languages: characters without sound (controls, byte order mark, zero-width space, soft hyphen, direction marks) go;
Unicode composition; a run of blanks is one space; Latin and Chinese punctuation becomes the few marks that the models
know, a run of ellipses one ellipsis. Then by the reading that `languages.reading_of` chose:

- `plain` and `ja`: NFKC first (full-width letters, ligatures, half-width kana); numbers stay as they are written.
- `am`: NFC; a speaker tag in Amharic goes; Ethiopic full stop, comma, question mark and paragraph mark get their
  counterparts, semicolon and both colons a comma, as ";" and ":" of every script do; the word separator is a space.
- `en`: curly apostrophes are made straight and "it's", "that's" and the like expanded, but no possessive; numbers,
  prices, dates and titles are read by the engine. Where it has no reading for a text, it reads word by word, and a
  word that it cannot read stays.
- `zh`: the same engine for Chinese. Pinyin with tones and dotted names are kept from it; j, q, x with u or ü get v.
  Full-width digits, letters and the colon between digits count as plain ones. Characters are not converted between
  traditional and simplified.
- Before an engine a backslash becomes a space, and those the engine adds to quotes are dropped.

`plain`, `ja` and `am` are settled: normalising twice changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from woodshed.encoders.speech.text.clean import SPEAKER_TAG
from woodshed.encoders.speech.text.engine import Engine, Spoken
from woodshed.encoders.speech.text.languages import reading_of
from woodshed.encoders.speech.text.marks import (
    CHINESE_MARKS,
    CONTRACTION,
    ELLIPSIS,
    ETHIOPIC_MARKS,
    NAME,
    PINYIN,
    SINGLE_MARKS,
    marks_table,
    put_marks,
    settled_pinyin,
)

RULES_VERSION = 1

_SILENT = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]"
)
_BLANKS = re.compile(r"\s+")
_ELLIPSES = re.compile(rf"(?:\.\.\.|,,,|{ELLIPSIS})+")
_MARKS = marks_table(SINGLE_MARKS)
_CHINESE = marks_table(SINGLE_MARKS, CHINESE_MARKS)
_AMHARIC = marks_table(SINGLE_MARKS, ETHIOPIC_MARKS, dict.fromkeys("፤፥፦", ","))
_AMHARIC_TAGS = re.compile(rf"^(?:{SPEAKER_TAG}|\s*ተናጋሪ\s*\d+\s*[:：]\s*)+", re.IGNORECASE)
_CONTRACTION = re.compile(rf"\b{CONTRACTION}\b", re.IGNORECASE)
_NARROW = {wide: wide - 0xFEE0 for wide in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
_NARROW |= {ord("％"): ord("%"), ord("．"): ord(".")}
_CLOCK = re.compile(r"(?<=\d)：(?=\d)")


def normalise(text: str, language: str | None, engine: Engine) -> str:
    """A cleaned text as it goes to the tokenizer.

    Args:
        language: the record's own code, or the run's; None or empty lets the script decide.
    """
    text = _SILENT.sub("", text)
    match reading_of(text, language):
        case "plain" | "ja":
            return _plain(text)
        case "am":
            text = _BLANKS.sub(" ", unicodedata.normalize("NFC", text))
            return _settled(put_marks(_AMHARIC_TAGS.sub("", text), _AMHARIC))
        case "en":
            return _english(text, engine)
        case "zh":
            return _chinese(text, engine)


def _settled(text: str) -> str:
    return _BLANKS.sub(" ", _ELLIPSES.sub(ELLIPSIS, text)).strip()


def _plain(text: str) -> str:
    return _settled(put_marks(unicodedata.normalize("NFKC", text), _MARKS))


def _read(text: str, language: Spoken, engine: Engine) -> str | None:
    """What the engine says, without the backslashes it puts before quotes; None where it says nothing."""
    spoken = engine.read(text, language)
    return spoken.replace("\\", "") if spoken else None


def _for_reading(text: str) -> str:
    return _BLANKS.sub(" ", unicodedata.normalize("NFC", text).replace("\\", " ")).strip()


def _english(text: str, engine: Engine) -> str:
    text = _CONTRACTION.sub(r"\1 is", _for_reading(text).replace("’", "'"))
    spoken = _read(text, "en", engine)
    if spoken is None:
        spoken = " ".join(_read(word, "en", engine) or _plain(word) for word in text.split())
    return _settled(put_marks(spoken, _MARKS))


def _chinese(text: str, engine: Engine) -> str:
    text = _CONTRACTION.sub(r"\1 is", _CLOCK.sub(":", _for_reading(text).translate(_NARROW)))
    spare = _unused(text)
    kept: dict[str, str] = {}

    def keep(found: re.Match[str]) -> str:
        place = next(spare)
        kept[place] = found.group()
        return place

    guarded = NAME.sub(keep, PINYIN.sub(keep, text))
    spoken = _read(guarded, "zh", engine) or guarded
    for place, original in kept.items():
        spoken = spoken.replace(place, settled_pinyin(original))
    return _settled(put_marks(spoken, _CHINESE))


def _unused(text: str) -> Iterator[str]:
    """Characters for private use that the text does not hold: the engine passes them through."""
    return (place for place in map(chr, range(0xF0000, 0xFFFFE)) if place not in text)
