"""Names of feature files: `<stem>.npy`, as close to the id as is safe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from woodshed.contracts import BadRow, Item
from woodshed.store.names import safe_name

LONGEST_PLAIN_BYTES = 150
_PLAIN = re.compile(r"(?!\.)[A-Za-z0-9._-]+(?<!\.)", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.ASCII | re.IGNORECASE)
"""Names that Windows keeps for devices."""


class Stems:
    """Gives each id of a manifest its stem; no two are alike, also where case is ignored or Unicode is normalised.

    An id of ASCII letters, digits, `-`, `_` and inner dots is its own stem, as in the original's folders. Any other
    id, and one that differs from an earlier one only in case, is written with `~` before capitals and `%xx` for bytes
    (`woodshed.store.names.safe_name`).

    Why no two can collide: a plain stem holds neither `~` nor `%`. A written stem holds one of them (or is longer than
    any plain one), is all lower case, and tells its id when it is read back. Among plain stems the lower-case forms
    differ, since the later one is written instead.

    >>> stems = Stems()
    >>> [stems.stem(row_id) for row_id in ("utt_0001", "Utt_0001", "UTT_0002", "utt_0002", "../x", "con")]
    ['utt_0001', '~utt_0001', 'UTT_0002', '%75tt_0002', '%2e.%2fx', '%63on']
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        """Lower-case forms of the plain stems."""

    def stem(self, row_id: str) -> str:
        """The stem of the next id. All ids differ."""
        if not is_plain(row_id):
            return safe_name(row_id)
        folded = row_id.lower()
        if folded not in self._taken:
            # Most ids are lower case: the set then holds the id itself and no copy of it.
            self._taken.add(row_id if folded == row_id else folded)
            return row_id
        written = safe_name(row_id)
        return f"%{ord(row_id[0]):02x}{row_id[1:]}" if written == row_id else written


def is_plain(row_id: str) -> bool:
    """Whether an id may be a file name as it is, on any system.

    >>> [is_plain(row_id) for row_id in ("A-1_b.c", ".a", "a.", "a/b", "é", "Nul.1", "nulls", "a" * 151, "")]
    [True, False, False, False, False, False, True, False, False]
    """
    return len(row_id) <= LONGEST_PLAIN_BYTES and bool(_PLAIN.fullmatch(row_id)) and not _RESERVED.fullmatch(row_id)


def with_stems(rows: Iterable[Item | BadRow]) -> Iterator[Item | BadRow]:
    """The same rows; an item whose stem is not its id has it in `meta`, under `stem`.

    A bad row takes its stem too: the names of the others stay as they are when its sound turns up later.
    """
    stems = Stems()
    for row in rows:
        stem = stems.stem(row.id)
        yield row if isinstance(row, BadRow) or stem == row.id else replace(row, meta={**row.meta, "stem": stem})
