"""From a text and its language to text ids, by our rules or by the original's."""

from __future__ import annotations

from pathlib import Path

from woodshed.contracts import Json
from woodshed.encoders.speech.text.clean import clean_text
from woodshed.encoders.speech.text.engine import EngineName, open_engine
from woodshed.encoders.speech.text.normalise import RULES_VERSION, normalise
from woodshed.encoders.speech.text.original import original_normalise
from woodshed.encoders.speech.text.pieces import Pieces, TextIds, split_cjk
from woodshed.errors import ItemError

MAX_CHARACTERS = 10_000
"""A longer text cannot fit the models: 600 tokens of at most 16 characters each. The engine takes about 1 ms for a
character, so such a text is refused before it is read."""


class TextRules:
    """A tokenizer and the rules for what goes into it. Safe to share between threads.

    The engine for Chinese and English numbers is loaded with the first text that needs it (about half a second).

    Args:
        tokenizer: a SentencePiece model.
        compat: the original's rules, faults included, instead of ours.
        engine: `wetext` on every platform; `tn` is what the original takes on Linux.

    Raises:
        UsageError: there is no such tokenizer, or the engine is missing or too old.
        ModelError: the tokenizer is not a SentencePiece model.
    """

    def __init__(self, tokenizer: Path, *, compat: bool = False, engine: EngineName = "wetext") -> None:
        self.compat = compat
        self._pieces = Pieces(tokenizer)
        self._engine = open_engine(engine)

    @property
    def vocab_size(self) -> int:
        return self._pieces.vocab_size

    @property
    def unk_id(self) -> int:
        return self._pieces.unk_id

    @property
    def fingerprint(self) -> dict[str, Json]:
        """What text ids depend on, beside the text and its language: equal fingerprints, equal ids."""
        return {
            "tokenizer": self._pieces.digest,
            "vocab_size": self.vocab_size,
            "rules": "original" if self.compat else f"woodshed {RULES_VERSION}",
            "engine": f"{self._engine.name} {self._engine.version}",
            "compat": self.compat,
        }

    def clean(self, text: str) -> str:
        """What the manifest stores, and what `ids` should be given."""
        return clean_text(text, compat=self.compat)

    def normalise(self, text: str, language: str | None) -> str:
        """A cleaned text as it is read; for the meaning of `language` see `ids`."""
        rules = original_normalise if self.compat else normalise
        return rules(text, language, self._engine)

    def ids(self, text: str, language: str | None) -> TextIds:
        """Token ids of a cleaned text; none for an empty one.

        A text of one character is not normalised, as in the original; unlike there, it is made a capital.

        Args:
            language: by our rules the record's own code, or the run's; None lets the script decide. By the original's
                rules what `language_hint` gives for the dataset's code; None is its detection.

        Raises:
            ItemError: the text is not Unicode (kind `bad_text`), or too long for any model (`text_too_long`).
        """
        _check(text)
        if len(text.strip()) == 1:
            return self._pieces.encode(text if self.compat else split_cjk(text), normalised=text)
        normalised = self.normalise(text, language)
        return self._pieces.encode(split_cjk(normalised), normalised=normalised)


def _check(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ItemError(
            f"the text holds half a surrogate pair at character {error.start}: {text[error.start]!a}",
            kind="bad_text",
            hint=r"repair the escape: characters above U+FFFF are two \u escapes in JSON",
        ) from error
    if len(text) > MAX_CHARACTERS:
        raise ItemError(
            f"the text has {len(text)} characters, more than any model takes ({MAX_CHARACTERS})",
            kind="text_too_long",
            hint="split the recording and its text into sentences",
        )
