"""What every source is: a lazy run of rows, a description for the record, and perhaps a function that annotates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from woodshed.contracts import BadRow, Item, Json
from woodshed.sources.custom_metadata import CustomMetadata

Row: TypeAlias = Item | BadRow


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows to encode. Made by `woodshed.sources.open.open_source`; reading it twice lists twice."""

    roots: tuple[str, ...]
    """Absolute folders (or the one file) that the rows lie in."""
    read: Callable[[], Iterator[Row]]
    about: Mapping[str, Json]
    annotate: CustomMetadata | None = None
    """`annotate(item, audio, info)` gives the extra metadata of one window, or a `Reject`; None when the data set
    brings no function of its own."""
    remarks: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row]:
        """All rows in a fixed order, lazily; the ids of all rows differ.

        Nothing is decoded and no header is read: `Item.audio` stays None.

        Raises:
            UsageError: while reading, when there is nothing to read.
        """
        return self.read()

    def describe(self) -> dict[str, Json]:
        """What to write down about the source: JSON-safe, without absolute paths."""
        return dict(self.about)

    @property
    def crops_at_random(self) -> bool:
        """Whether stable-audio-tools would crop this data set at random: it does unless the config says otherwise."""
        config: Mapping[str, Json] = self.about.get("dataset_config", {})
        return bool(config.get("random_crop", True))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, one sentence each; may grow while `annotate` is used."""
        return self.remarks + (self.annotate.notes if self.annotate is not None else ())
