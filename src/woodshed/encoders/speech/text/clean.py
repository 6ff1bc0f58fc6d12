"""What is done to a text before it is stored in the manifest."""

from __future__ import annotations

import re

# One tag such as "Speaker 3:" or "spk12：" at the start; digits and blanks of any script.
SPEAKER_TAG = r"\s*(?:speaker|spk)\s*\d+\s*[:：]\s*"
_ONE_TAG = re.compile(rf"^{SPEAKER_TAG}", re.IGNORECASE)
_TAGS = re.compile(rf"^(?:{SPEAKER_TAG})+", re.IGNORECASE)


def clean_text(text: str, *, compat: bool = False) -> str:
    """Trim a text, make its ideographic and no-break spaces plain, and drop the speaker tags before it.

    Args:
        compat: drop one tag only, as the original does; otherwise all of them, so that a second pass changes nothing.

    >>> clean_text("  SPK12：こんにちは "), clean_text("speaker 1: speaker 2: hello"), clean_text("spk 3 - no colon")
    ('こんにちは', 'hello', 'spk 3 - no colon')
    """
    text = text.strip().replace("\u3000", " ").replace("\u00a0", " ")
    return (_ONE_TAG if compat else _TAGS).sub("", text).strip()
