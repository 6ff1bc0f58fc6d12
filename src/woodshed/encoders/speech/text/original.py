"""The original preprocessor's text rules, faults included, for runs that must equal it.

`language` is what the original calls the preferred language: `am`, `ja`, `zh`, `en`, any other code, or None for its
detection. Known faults that are kept: French and German are hinted as English; with None, every text without a Latin
letter that is neither Ethiopic nor kana is read in Chinese; only the first of several speaker tags goes; one pass over
the punctuation, which is not settled after it; contractions are expanded within words ("rabbit's" becomes "rabbit is");
backslashes that `wetext` adds before double quotes stay. Where the original depends on the order of a set of strings,
that of their first appearance is taken.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from woodshed.encoders.speech.text.clean import SPEAKER_TAG
from woodshed.encoders.speech.text.engine import Engine
from woodshed.encoders.speech.text.marks import (
    CHINESE_MARKS,
    CONTRACTION,
    ETHIOPIC_MARKS,
    NAME,
    PINYIN,
    RUNS,
    SINGLE_MARKS,
    marks_table,
    put_marks,
    settled_pinyin,
)

_MARKS = marks_table(SINGLE_MARKS, RUNS)
_CHINESE = marks_table(SINGLE_MARKS, RUNS, CHINESE_MARKS)
_AMHARIC = marks_table(SINGLE_MARKS, RUNS, ETHIOPIC_MARKS)

_ETHIOPIC_BLOCKS = re.compile(r"[\u1200-\u139f\u2d80-\u2ddf\uab00-\uab2f]")
_JAPANESE_SIGNS = re.compile(r"[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f々〆〜〝〞〟]")
_EMAIL = re.compile(r"^[a-zA-Z0-9]+@[a-zA-Z0-9]+\.[a-zA-Z]+$")
_TAG = re.compile(rf"^{SPEAKER_TAG}", re.IGNORECASE)
_TAG_OR_AMHARIC_TAG = re.compile(rf"^(?:{SPEAKER_TAG}|\s*ተናጋሪ\s*\d+\s*[:：]\s*)", re.IGNORECASE)
_CONTRACTION = re.compile(CONTRACTION, re.IGNORECASE)
_WORDS = re.compile(r"[A-Z]+(?:[\s-][A-Z-]+)*", re.IGNORECASE)


def reads_as_chinese(text: str) -> bool:
    """Whether the original's detection, past Ethiopic and kana, takes Chinese rather than English."""
    if re.search(r"[\u4e00-\u9fff]", text) or not re.search(r"[a-zA-Z]", text) or _EMAIL.match(text):
        return True
    return bool(PINYIN.search(text))


def is_ethiopic(text: str) -> bool:
    """Whether the original's detection takes Amharic."""
    return bool(_ETHIOPIC_BLOCKS.search(text))


def is_japanese(text: str) -> bool:
    """Whether the original's detection takes Japanese: kana, or a mark that stands in Chinese names as well."""
    return bool(_JAPANESE_SIGNS.search(text))


def original_normalise(text: str, language: str | None, engine: Engine) -> str:
    """A cleaned text as the original hands it to its tokenizer's pre-splitting.

    Args:
        language: what `languages.language_hint` gives for the dataset; a record's own language plays no part.
    """
    language = language.strip().lower() if language else None
    if language is None:
        if is_ethiopic(text):
            language = "am"
        elif is_japanese(text):
            language = "ja"
        else:
            language = "zh" if reads_as_chinese(text) else "en"
    match language:
        case "am":
            text = unicodedata.normalize("NFC", _TAG_OR_AMHARIC_TAG.sub("", text.strip()))
            return put_marks(re.sub(r"\s+", " ", text), _AMHARIC).strip()
        case "ja":
            text = unicodedata.normalize("NFKC", _TAG.sub("", text.strip()))
            return put_marks(re.sub(r"\s+", " ", text), _MARKS).strip()
        case "zh":
            return _chinese(text, engine)
        case "en":
            text = _CONTRACTION.sub(r"\1 is", text)
            spoken = engine.read(text, "en")
            return _basic(text) if spoken is None else put_marks(spoken, _MARKS)
        case _:
            return _basic(text)


def _basic(text: str) -> str:
    return put_marks(re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip(), _MARKS)


def _chinese(text: str, engine: Engine) -> str:
    text = _CONTRACTION.sub(r"\1 is", text).rstrip()
    syllables = _in_order(PINYIN.findall(text))
    for place, syllable in enumerate(syllables):
        text = text.replace(syllable, _placeholder("pinyin", place))
    names = _in_order(NAME.findall(text))
    for place, name in enumerate(names):
        text = text.replace(name, _placeholder("n", place))
    spoken = engine.read(text, "zh")
    text = text if spoken is None else spoken
    for place, name in enumerate(names):
        text = text.replace(_placeholder("n", place), name)
    for place, syllable in enumerate(syllables):
        text = text.replace(_placeholder("pinyin", place), settled_pinyin(syllable))
    return put_marks(text, _CHINESE)


def _in_order(found: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(found))


def _placeholder(kind: str, place: int) -> str:
    return f"<{kind}_{chr(ord('a') + place)}>"


def join_cjk(text: str, *, lower: bool = False) -> str:
    """The original's inverse of `split_cjk`: only the first Latin phrase of a word without blanks comes back.

    >>> join_cjk("INDEXTTS 正 式 发 布"), join_cjk("速 度 是 10KM/H")
    ('INDEXTTS正式发布', '速度是10KM/<sent_1>')
    """
    phrases = _WORDS.findall(text)
    for place, phrase in enumerate(phrases):
        text = text.replace(phrase, f"<sent_{place}>")
    words = text.split()
    for index, word in enumerate(words):
        if found := re.search(r"<sent_(\d+)>", word):
            words[index] = word.replace(found.group(), phrases[int(found.group(1))])
            if lower:
                words[index] = words[index].lower()
    return "".join(words)
