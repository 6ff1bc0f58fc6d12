"""Text ids of IndexTTS 2.5: byte-level BPE in a `*.tiktoken` file, with a Whisper-style table of special tokens.

The file has one token a line: base64, a space, its rank. Special tokens are in no file; they follow the ranks in the
order of `special_tokens`. With the published vocabulary (58,836 ranks, `multilingual_zh_ja_yue_char_del`) that makes
60,509 ids. Byte-level BPE knows every byte, so no text has unknown tokens.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from woodshed.encoders.speech.text.languages import base_language
from woodshed.encoders.speech.text.marks import RUNS, SINGLE_MARKS, marks_table, put_marks
from woodshed.errors import ModelError, UsageError

_CODES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml"
    " cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am"
    " yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue minnan wuyu dialect zh/en en/zh"
    " common"
)
LANGUAGES = tuple(_CODES.split())
"""Rows of the model's language embedding, in order."""
NUM_LANGUAGE_TOKENS = 99
"""The first so many have a token of their own; `<|yue|>`, `<|common|>` and the like are ordinary text to the model."""
COMMON = "common"
MIXED_CHINESE = "zhen"
"""Chinese and English in one text: a prefix, but no row and no token of its own."""
LOWER_CASE = frozenset({"zh", "en", "ja", MIXED_CHINESE})
UPPER_CASE = frozenset({"es"})
CONTROL_IDS = 2
"""Ids 0 and 1 are the model's start and stop of text, although the vocabulary gives them to "!" and '"'."""
NUM_TIMESTAMPS = 1501

_EVENTS = "ASR AED SER Speech /Speech BGM /BGM Laughter /Laughter Applause /Applause HAPPY SAD ANGRY NEUTRAL"
_TASKS = "translate transcribe startoflm startofprev nospeech notimestamps"

# GPT-2's: English contractions, then runs of letters, of digits and of other marks with one space before, then blanks.
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_MARKS = marks_table(SINGLE_MARKS, RUNS)
_ANNOTATION = re.compile(r"<(?P<word>[^|>\n]+)\|(?P<sound>[^>\n]+)>")
_SPECIAL = re.compile(r"<\|[^|]+\|>")
_KANA = re.compile(r"[\u3040-\u309f]+|[\u30a0-\u30ff]+")
_HAN = re.compile(r"[\u4e00-\u9fff]")


def special_tokens() -> list[str]:
    """Names of the special tokens, in the order of their ids.

    >>> names = special_tokens()
    >>> len(names), names[0], names[2], names[100], names[101]
    (1673, '<|endoftext|>', '<|en|>', '<|su|>', '<|ASR|>')
    """
    names = ["endoftext", "startoftranscript", *LANGUAGES[:NUM_LANGUAGE_TOKENS], *_EVENTS.split(), *_TASKS.split()]
    names += [f"SPECIAL_TOKEN_{number}" for number in range(1, 31)]
    names += [f"TTS/{sound}" for sound in ("B", "O", "Q", "A", "CO", "CL", "H")]
    names += [f"TTS/SP{number:02d}" for number in range(1, 14)]
    names += [f"{step * 0.02:.2f}" for step in range(NUM_TIMESTAMPS)]
    return [f"<|{name}|>" for name in names]


def language_slot(language: str | None) -> str:
    """The language that the model is told for a record's language code; `common` where it has none for it.

    >>> [language_slot(code) for code in ("EN-us", "jp", "am", "yue", "en/zh", "zhen", "kmr", None)]
    ['en', 'ja', 'am', 'yue', 'en/zh', 'zhen', 'common', 'common']
    """
    given = (language or "").strip().lower()
    if given in LANGUAGES or given == MIXED_CHINESE:
        return given
    base = base_language(given)
    return base if base in LANGUAGES else COMMON


class TiktokenText:
    """A 2.5 vocabulary and the order in which 2.5 prepares a text for it. Safe to share between threads.

    Args:
        path: the `*.tiktoken` file.
        normalise: reads numbers and the like aloud: (text, slot) -> text. None: texts are read already.
        split_japanese: puts spaces between the words of a Japanese text, as the published inference does with MeCab
            (the packages `fugashi` and `unidic-lite`). None: they stay together, and ids of Japanese texts differ from
            what it would make of them.
        marks_first: unify punctuation before `normalise`, as the published inference does; ":" is a comma by then, and
            no time is read as one. False: afterwards.
        keep_control_ids: keep ids 0 and 1 that come from text ("!"). The model drops them at inference, and a trainer
            would take them for start and stop.

    Raises:
        UsageError: no such file.
        ModelError: the file is not such a vocabulary.
    """

    def __init__(
        self,
        path: Path,
        *,
        normalise: Callable[[str, str], str] | None = None,
        split_japanese: Callable[[str], str] | None = None,
        marks_first: bool = True,
        keep_control_ids: bool = False,
    ) -> None:
        if not path.is_file():
            raise UsageError(
                f"there is no vocabulary at {path}",
                hint="name IndexTTS 2.5's multilingual_zh_ja_yue_char_del.tiktoken",
            )
        # Here, as commands that only look at folders import this module: the package comes with an extra.
        import tiktoken

        content = path.read_bytes()
        ranks = _ranks(content, path)
        self.digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        specials = {name: len(ranks) + place for place, name in enumerate(special_tokens())}
        self.vocab_size = len(ranks) + len(specials)
        self._encoding = tiktoken.Encoding(
            path.name,
            pat_str=_WORDS,
            mergeable_ranks=ranks,
            special_tokens=specials,
            explicit_n_vocab=self.vocab_size,
        )
        self._normalise = normalise
        self._split_japanese = split_japanese
        self._marks_first = marks_first
        self._keep_control_ids = keep_control_ids

    @staticmethod
    def lang_code(language: str | None) -> int:
        """The row of the model's language embedding.

        >>> [TiktokenText.lang_code(code) for code in ("en", "zh", "ja", "es", "ar", "zhen", None)]
        [0, 1, 7, 3, 13, 105, 105]
        """
        slot = language_slot(language)
        return LANGUAGES.index(slot if slot in LANGUAGES else COMMON)

    def prepared(self, text: str, language: str | None) -> str:
        """A cleaned text as it is tokenized, without the prefix of its language.

        In this order: punctuation, `normalise`, case by language, annotated pronunciations (`<word|SOUND>`), words of
        Japanese, and what is left of special tokens in capitals, so that no text can name a language or an end.
        """
        slot = language_slot(language)
        if self._marks_first:
            text = put_marks(text, _MARKS)
        if self._normalise is not None:
            text = self._normalise(text, slot)
        if not self._marks_first:
            text = put_marks(text, _MARKS)
        if slot in LOWER_CASE:
            text = text.lower()
        elif slot in UPPER_CASE:
            text = text.upper()
        text = _ANNOTATION.sub(_pronounced, text)
        if slot == "ja" and self._split_japanese is not None:
            text = self._split_japanese(text)
        return _SPECIAL.sub(lambda found: found.group().upper(), text)

    def ids(self, text: str, language: str | None) -> tuple[Int32[np.ndarray, "token"], int]:
        """Ids of a cleaned text after the prefix of its language (`<|en|>`), without stop and padding.

        Returns:
            Ids, none for a text without a visible character; and how many of them are unknown, which is always 0.
        """
        prepared = self.prepared(text, language)
        if not prepared.strip():
            return np.empty(0, dtype=np.int32), 0
        found = self._encoding.encode(f"<|{language_slot(language)}|> {prepared}", allowed_special="all")
        ids = np.array(found, dtype=np.int32)
        return (ids if self._keep_control_ids else ids[ids >= CONTROL_IDS]), 0


def _pronounced(found: re.Match[str]) -> str:
    """What stands for `<word|SOUND>`: kana as they are, other sounds between tokens that tell Chinese from the rest."""
    sound = found["sound"].upper()
    if _KANA.fullmatch(sound):
        return f" {sound} "
    token = f"<|SPECIAL_TOKEN_{2 if _HAN.search(found['word']) else 1}|>"
    return f"{token}{sound}{token}"


def _ranks(content: bytes, path: Path) -> dict[bytes, int]:
    """Tokens and their ranks: each rank from 0 once, and every byte among the tokens.

    Raises:
        ModelError: the content is something else; names the line.
    """
    hint = "was the download cut short, or is it a pointer file of Git LFS?"
    ranks: dict[bytes, int] = {}
    lines = content.splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            coded, rank = line.split()
            # The published file spells the empty token "=".
            token = base64.b64decode(coded, validate=True) if coded.strip(b"=") else b""
            known = ranks.setdefault(token, int(rank)) == int(rank)
        except (ValueError, binascii.Error):
            raise ModelError(f"{path} is no tiktoken vocabulary: line {number} is {line[:60]!r}", hint=hint) from None
        if not known:
            raise ModelError(f"{path} has the token of line {number} under two ranks", hint=hint)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ModelError(f"{path} lacks ranks, or has one twice: {len(ranks)} tokens, up to {_top(ranks)}", hint=hint)
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        raise ModelError(f"{path} has no token for {len(absent)} of the 256 bytes, such as {absent[0]:#04x}", hint=hint)
    return ranks


def _top(ranks: dict[bytes, int]) -> str:
    return f"rank {max(ranks.values())}" if ranks else "none"
