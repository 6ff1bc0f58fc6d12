"""Tables that the original's rules and ours share: punctuation, contractions, pinyin with tones, dotted names.

The tokenizers of the IndexTTS2 family were trained on text in this form, so these are facts of the models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

ELLIPSIS = "…"
SINGLE_MARKS: Mapping[str, str] = {
    **dict.fromkeys("：；;，、:", ","),
    "。": ".",
    "！": "!",
    "？": "?",
    "\n": " ",
    **dict.fromkeys('“”"‘’（）()《》【】[]「」', "'"),
    **dict.fromkeys("·—～~", "-"),
}
"""Marks of one character, in every language."""
RUNS: Mapping[str, str] = dict.fromkeys(("...", ",,,", "……"), ELLIPSIS)
"""Marks of several characters. None starts with a mark of one character, so the order of trying does not matter."""
ETHIOPIC_MARKS: Mapping[str, str] = {"።": ".", "፣": ",", "፤": ";", "፥": ":", "፦": ":", "፡": " ", "፧": "?", "፨": "!"}
CHINESE_MARKS: Mapping[str, str] = {"$": "."}

CONTRACTION = r"(what|where|who|which|how|t?here|it|s?he|that|this)'s"

_INITIAL = r"(?:[zcs]h|[bpmfdtnlgkhjqxzcsryw])"
_FINALS = (
    *("a", "e", "i", "o", "u", "ü", "v"),
    *("ai", "ei", "ao", "ou", "ia", "ie", "iu", "ua", "ui", "uo", "ue", "üe", "ve", "uai", "iao"),
    *("an", "en", "in", "un", "vn", "ian", "uan", "üan", "van"),
    *("ang", "eng", "ing", "ong", "iang", "iong", "uang", "üang", "vang"),
)
PINYIN = re.compile(rf"(?<![a-z])(?:{_INITIAL}?(?:{'|'.join(_FINALS)})|ng|er)[1-5]", re.IGNORECASE)
"""One syllable with its tone, such as `xuan4`, but not the end of a word such as `beta1`."""
NAME = re.compile(r"[\u4e00-\u9fff]+(?:[-·—][\u4e00-\u9fff]+){1,2}")
"""A foreign name in Chinese characters, its parts joined by dots or dashes."""


def marks_table(*tables: Mapping[str, str]) -> tuple[re.Pattern[str], Mapping[str, str]]:
    """A pattern of all marks, and what each becomes; a later table wins."""
    table = {mark: to for one in tables for mark, to in one.items()}
    return re.compile("|".join(map(re.escape, table))), table


def put_marks(text: str, table: tuple[re.Pattern[str], Mapping[str, str]]) -> str:
    """Replace every mark once, from left to right."""
    pattern, becomes = table
    return pattern.sub(lambda found: becomes[found.group()], text)


def settled_pinyin(syllable: str) -> str:
    """A syllable of j, q, x in capitals with its u or ü written V, as the tokenizer knows it; others as they are.

    >>> settled_pinyin("ju4"), settled_pinyin("xün1"), settled_pinyin("liao3")
    ('JV4', 'XVN1', 'liao3')
    """
    if syllable[0] not in "jqxJQX":
        return syllable
    return re.sub(r"([jqx])[uü](n|e|an)*(\d)", r"\1v\2\3", syllable, flags=re.IGNORECASE).upper()
