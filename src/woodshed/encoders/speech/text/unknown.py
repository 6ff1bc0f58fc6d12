"""How much of the texts a tokenizer does not know: the number that tells whether a tokenizer fits a language."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from woodshed.encoders.speech.text.pieces import TextIds


@dataclass
class UnknownCounter:
    """Totals over texts. Counters of several workers merge; the order of texts and merges does not matter."""

    num_texts: int = 0
    num_texts_with_unknown: int = 0
    num_ids: int = 0
    num_unknown: int = 0
    characters: Counter[str] = field(default_factory=Counter)
    """How often each unknown character occurs."""

    def add(self, text: TextIds) -> None:
        self.num_texts += 1
        self.num_texts_with_unknown += text.num_unknown > 0
        self.num_ids += len(text.ids)
        self.num_unknown += text.num_unknown
        self.characters.update(text.unknown)

    def merge(self, other: UnknownCounter) -> None:
        self.num_texts += other.num_texts
        self.num_texts_with_unknown += other.num_texts_with_unknown
        self.num_ids += other.num_ids
        self.num_unknown += other.num_unknown
        self.characters.update(other.characters)

    @property
    def rate(self) -> float:
        """Share of the ids that are unknown, 0 to 1; 0 without ids."""
        return self.num_unknown / self.num_ids if self.num_ids else 0.0

    def most_common(self, count: int = 10) -> list[tuple[str, int]]:
        """The most frequent unknown characters; those of equal count by code point."""
        return sorted(self.characters.items(), key=lambda pair: (-pair[1], pair[0]))[:count]

    def warning(self, *, threshold: float) -> str | None:
        """A sentence for the report when the rate is above a threshold, else None.

        >>> counter = UnknownCounter(num_texts=2, num_ids=50, num_unknown=3, characters=Counter("ጸጸñ"))
        >>> counter.warning(threshold=0.05)
        '3 of 50 text ids (6.00 %) are unknown to the tokenizer, above 5 %: ጸ (U+1338) 2x, ñ (U+00F1) 1x'
        >>> counter.warning(threshold=0.06) is None
        True
        """
        if self.rate <= threshold:
            return None
        shown = ", ".join(f"{sign} (U+{ord(sign):04X}) {count}x" for sign, count in self.most_common())
        return (
            f"{self.num_unknown} of {self.num_ids} text ids ({100 * self.rate:.2f} %) "
            f"are unknown to the tokenizer, above {100 * threshold:g} %: {shown}"
        )
