"""A SentencePiece model as the IndexTTS2 family uses it: one character of Chinese a word, capitals only."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from woodshed.errors import ModelError, UsageError

# Hangul jamo; CJK radicals to Yi; Phags-pa to Hangul syllables; compatibility ideographs and forms; half-width kana and
# Hangul; the supplementary ideographic planes.
_CJK = re.compile(
    r"([\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc\U00020000-\U0002ffff])"
)
_SPACE = "\u2581"


def split_cjk(text: str, *, upper: bool = True) -> str:
    """Put spaces around every CJK character, and make all letters capitals.

    >>> split_cjk("IndexTTS 正式发布1.0版"), split_cjk("Größe", upper=False), split_cjk("Größe")
    ('INDEXTTS 正 式 发 布 1.0 版', 'Größe', 'GRÖSSE')
    """
    parts = (part.strip() for part in _CJK.split(text))
    spaced = " ".join(part for part in parts if part)
    return spaced.upper() if upper else spaced


@dataclass(frozen=True, slots=True, eq=False)
class TextIds:
    """A tokenized text."""

    ids: Int32[np.ndarray, "token"]
    """Without start and stop tokens."""
    num_unknown: int
    """How many of the ids stand for characters that the tokenizer does not know."""
    unknown: tuple[str, ...]
    """Those characters, as often as they occur."""
    normalised: str
    """The text as it is read, before the capitals and the spaces between Chinese characters."""


class Pieces:
    """A SentencePiece model file. Safe to share between threads.

    Raises:
        UsageError: no such file.
        ModelError: the file is not a SentencePiece model.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UsageError(f"there is no tokenizer at {path}", hint="name a SentencePiece file, such as bpe.model")
        # Here, as commands that only look at folders import this module: the package comes with an extra.
        import sentencepiece

        content = path.read_bytes()
        self.digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(content)
            self.vocab_size = int(self._model.GetPieceSize())
        except (RuntimeError, OSError) as error:
            raise ModelError(
                f"{path} ({len(content)} bytes) is not a SentencePiece model: {error}",
                hint="was the download cut short, or is it a pointer file of Git LFS?",
            ) from error
        if not self.vocab_size:
            raise ModelError(f"{path} is a SentencePiece model without pieces", hint="was the download cut short?")
        self.unk_id = int(self._model.unk_id())

    def encode(self, text: str, *, normalised: str) -> TextIds:
        """Token ids of a text as it stands; `normalised` is only handed on."""
        ids = np.array(self._model.EncodeAsIds(text), dtype=np.int32)
        strange = np.flatnonzero(ids == self.unk_id)
        pieces = self._model.EncodeAsPieces(text) if strange.size else []
        unknown = "".join(pieces[place] for place in strange).replace(_SPACE, "")
        return TextIds(ids=ids, num_unknown=strange.size, unknown=tuple(unknown), normalised=normalised)
