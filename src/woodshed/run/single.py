"""One item by itself, outside of any plan: to compare with what a run has stored."""

from __future__ import annotations

from woodshed.contracts import Encoder, Item, Record


def encode_item(encoder: Encoder, item: Item) -> list[Record]:
    """All records of one probed item, each piece computed alone.

    Raises:
        ItemError: the item cannot be encoded.
    """
    joiner = encoder.joiner(item)
    records: list[Record] = []
    for example in encoder.prepare(item):
        records += joiner.add(encoder.encode([example])[0])
    return records
