"""Which language a text is in, and who reads its numbers.

Rules, in this order:

1. The record's own language counts; without one, the run's default. Codes of ISO 639-1 and 639-3 with any region or
   script (`EN-us`, `zh-Hant`, `cmn`, `amh`), the older `jp` and `cn`, and the English names of the four languages with
   rules of their own are understood.
2. Only when neither is known the script decides: Ethiopic letters are Amharic, kana is Japanese, Chinese characters
   without kana and without Hangul are Chinese. Everything else is *unknown* and keeps its numbers: a line in Latin
   letters may be any of hundreds of languages, and reading its numbers in English is worse than leaving them.
3. Numbers are read aloud (by the engine) in Chinese and English only, and only where the text has a letter which that
   language is written with: a Russian line in a folder called English keeps its "25%".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias

Reading: TypeAlias = Literal["zh", "en", "ja", "am", "plain"]
"""A set of rules: those of four languages, and `plain` for all others, which changes no number."""

CODES: Mapping[str, str] = {
    "eng": "en",
    "english": "en",
    "zho": "zh",
    "chi": "zh",
    "cmn": "zh",
    "cn": "zh",
    "chinese": "zh",
    "mandarin": "zh",
    "jpn": "ja",
    "jp": "ja",
    "japanese": "ja",
    "amh": "am",
    "amharic": "am",
}
UNKNOWN_CODES = frozenset({"", "und", "mul", "mis", "zxx", "auto", "multi", "multilingual", "none", "null", "unknown"})

ORIGINAL_HINTS: Mapping[str, str] = {
    "en": "en",
    "fr": "en",
    "de": "en",
    "zh": "zh",
    "cn": "zh",
    "ja": "ja",
    "jp": "ja",
    "am": "am",
    "amh": "am",
}

_ETHIOPIC = re.compile(r"[\u1200-\u135a\u1380-\u138f\u2d80-\u2ddf\uab00-\uab2f]")
_KANA = re.compile(r"[\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fd-\u30ff\u31f0-\u31ff\uff66-\uff6f\uff71-\uff9d]")
_HAN = re.compile(r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_HANGUL = re.compile(r"[\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb\uffa1-\uffdc]")
_LATIN = re.compile(r"[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1effＡ-Ｚａ-ｚ]")
_LETTER = re.compile(r"[^\W\d_]")


def base_language(code: str | None) -> str | None:
    """The language of a code, without region or script, in its two-letter form where we have rules for it.

    Returns:
        None where the code says nothing (`None`, `""`, `und`, `auto`, ...).

    >>> [base_language(code) for code in ("EN-us", "zh-Hant", "cmn", "jp", "amh", "Amharic", "pt_BR", "yue", "", "und")]
    ['en', 'zh', 'zh', 'ja', 'am', 'am', 'pt', 'yue', None, None]
    """
    first = re.split(r"[-_.@\s]", (code or "").strip().lower(), maxsplit=1)[0]
    return None if first in UNKNOWN_CODES else CODES.get(first, first)


def language_of(text: str) -> str | None:
    """The language that the script of a text shows beyond doubt, or None.

    >>> [language_of(text) for text in ("ሰላም 5", "5 円です", "共465篇")]
    ['am', 'ja', 'zh']
    >>> [language_of(text) for text in ("25% скидка", "25% rabatt", "한국 大學 5", "12345")]
    [None, None, None, None]
    """
    if _ETHIOPIC.search(text):
        return "am"
    if _KANA.search(text):
        return "ja"
    return "zh" if _HAN.search(text) and not _HANGUL.search(text) else None


def reading_of(text: str, language: str | None) -> Reading:
    """The rules that a text gets.

    Args:
        language: code of the record or the run, as it stands there; None or empty lets the script decide.

    >>> reading_of("25% off", "en-GB"), reading_of("25% off", None), reading_of("25% скидка", "en")
    ('en', 'plain', 'plain')
    >>> reading_of("25% Rabatt", "de"), reading_of("共465篇", ""), reading_of("5", "zh")
    ('plain', 'zh', 'zh')
    """
    match base_language(language) or language_of(text):
        case "en":
            return "en" if _LATIN.search(text) or not _LETTER.search(text) else "plain"
        case "zh":
            return "zh" if _HAN.search(text) or _LATIN.search(text) or not _LETTER.search(text) else "plain"
        case "ja":
            return "ja"
        case "am":
            return "am"
        case _:
            return "plain"


def language_hint(code: str, default: str | None = None) -> str | None:
    """What the original preprocessor makes of a dataset's language code.

    Args:
        default: taken for codes that the original does not know: the value of `--language` in a run over one manifest,
            None in a run over `--dataset` entries.

    >>> language_hint("FR"), language_hint("ko"), language_hint("ko", "ko")
    ('en', None, 'ko')
    """
    return ORIGINAL_HINTS.get(code.lower(), default)
