"""From a text and its language to text ids of IndexTTS 2.5: what its inference does with a text, before the padding."""

from __future__ import annotations

from pathlib import Path

from woodshed.contracts import Json
from woodshed.encoders.speech.text.clean import clean_text
from woodshed.encoders.speech.text.engine import EngineName, open_engine
from woodshed.encoders.speech.text.normalise import RULES_VERSION, normalise
from woodshed.encoders.speech.text.pieces import TextIds
from woodshed.encoders.speech.tokens_25 import MIXED_CHINESE, TiktokenText

READ_ALOUD = {"zh": "zh", MIXED_CHINESE: "zh", "en": "en"}
"""Languages whose numbers the engine reads, and how; all others keep their digits."""


class TextRules25:
    """A tiktoken vocabulary and the rules for what goes into it. Safe to share between threads.

    Raises:
        UsageError: there is no such vocabulary, or the engine is missing or too old.
        ModelError: the file is not a vocabulary.
    """

    def __init__(self, vocabulary: Path, *, compat: bool = False, engine: EngineName = "wetext") -> None:
        self.compat = compat
        self._engine = open_engine(engine)
        self._tokens = TiktokenText(vocabulary, normalise=self._read)

    @property
    def fingerprint(self) -> dict[str, Json]:
        """What text ids depend on, beside the text and its language."""
        return {
            "tokenizer": self._tokens.digest,
            "vocab_size": self.vocab_size,
            "rules": f"woodshed {RULES_VERSION}, 2.5",
            "engine": f"{self._engine.name} {self._engine.version}",
            "compat": self.compat,
        }

    @property
    def vocab_size(self) -> int:
        return self._tokens.vocab_size

    def clean(self, text: str) -> str:
        """What the manifest stores, and what `ids` should be given."""
        return clean_text(text, compat=self.compat)

    def ids(self, text: str, language: str | None) -> TextIds:
        """Ids of a cleaned text after the prefix of its language; none for one without a visible character."""
        ids, num_unknown = self._tokens.ids(text, language)
        return TextIds(ids=ids, num_unknown=num_unknown, unknown=(), normalised=text)

    def _read(self, text: str, slot: str) -> str:
        return normalise(text, READ_ALOUD[slot], self._engine) if slot in READ_ALOUD else text
