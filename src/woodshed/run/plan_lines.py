"""Units as the plan log has them: written down, read back whole or by their heads, and filled from the source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache

from woodshed.contracts import AudioInfo, Item, Json, Piece
from woodshed.run.plan import PlannedItem, Unit, altered

MAX_REMEMBERED = 20_000
"""Items of a plan that are equally long share what is said of it."""


def unit_json(unit: Unit) -> dict[str, Json]:
    """A unit to be written down."""
    return {
        "unit": unit.number,
        "rank": unit.rank,
        "shard": unit.shard,
        "ids": [planned.item.id for planned in unit.items],
        "positions": [planned.position for planned in unit.items],
        "items": [
            {
                "size": planned.item.size_bytes,
                "mtime_ns": planned.item.mtime_ns,
                "meta_digest": planned.meta_digest,
                "audio": _audio_json(planned.item.audio),
                "records": planned.num_records,
                "pieces": [[piece.key, piece.cost_s] for piece in planned.pieces],
            }
            for planned in unit.items
        ],
        "batches": unit.batches,
    }


def _audio_json(audio: AudioInfo | None) -> Json:
    # `asdict` takes ten times as long
    return audio and {field.name: getattr(audio, field.name) for field in fields(audio)}


def unit_head(line: bytes) -> dict[str, Json]:
    """What a unit's line says before its items: `unit`, `rank`, `shard`, and the items' `ids` and `positions`.

    A plan of a million items is read at every start, and most of it is done.

    >>> unit_head(b'{"unit":0,"rank":0,"shard":0,"ids":["a"],"positions":[0],"items":[{"size":1}],"batches":[]}')
    {'unit': 0, 'rank': 0, 'shard': 0, 'ids': ['a'], 'positions': [0]}
    """
    # Inside a JSON string the quotes would be escaped.
    head: dict[str, Json] = json.loads(line[: line.index(b',"items":')] + b"}")
    return head


def unit_from_json(line: Mapping[str, Json]) -> Unit:
    """A unit as it was written down; its items have neither paths nor metadata."""
    planned = []
    for name, position, row in zip(line["ids"], line["positions"], line["items"], strict=True):
        audio = _known_audio(**row["audio"]) if row["audio"] else None
        planned.append(
            PlannedItem(
                item=Item(
                    id=name, path="", relpath=name, size_bytes=row["size"], mtime_ns=row["mtime_ns"], audio=audio
                ),
                meta_digest=row["meta_digest"],
                position=position,
                num_records=row["records"],
                pieces=tuple(_known_piece(key, cost_s) for key, cost_s in row["pieces"]),
            )
        )
    batches = tuple(tuple((item, piece) for item, piece in batch) for batch in line["batches"])
    return Unit(number=line["unit"], rank=line["rank"], shard=line["shard"], items=tuple(planned), batches=batches)


@lru_cache(MAX_REMEMBERED)
def _known_audio(**facts: Json) -> AudioInfo:
    return AudioInfo(**facts)


@lru_cache(MAX_REMEMBERED)
def _known_piece(key: str, cost_s: float) -> Piece:
    return Piece(key=key, cost_s=cost_s)


def filled(unit: Unit, items: Mapping[str, Item]) -> Unit:
    """A unit that was written down, with the paths and metadata of those of its items that are still to be done.

    Items that are not in `items` (done, or gone from the source) keep their seat, so that batches keep their shape.
    """
    planned = []
    for seat in unit.items:
        item, audio = items.get(seat.item.id), seat.item.audio
        if item is None:
            planned.append(seat)
        else:
            known = item if item.audio == audio else replace(item, audio=audio)
            planned.append(altered(seat, item=known, position=seat.position))
    return replace(unit, items=tuple(planned))
