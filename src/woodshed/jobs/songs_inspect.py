"""What the user should know of the songs in a folder, from its log alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from woodshed.contracts import Json
from woodshed.store.describe import ROW
from woodshed.store.log import CommitLog


def song_notes(log: CommitLog) -> Iterator[str]:
    """One sentence for all songs of which the same can be said: estimates, lyrics that were cut off, clipping."""
    counts = Counter[str]()
    example: dict[str, str] = {}
    for item_id in log.in_order():
        for record in log.records(item_id):
            for what in _remarkable(record.facts.get(ROW, {})):
                counts[what] += 1
                example.setdefault(what, item_id)
    for what, count in counts.items():
        yield what.format(songs=f"{count} songs, such as {example[what]}," if count > 1 else example[what])


def _remarkable(row: Mapping[str, Json]) -> Iterator[str]:
    estimated = row.get("estimated") or {}
    if "bpm" in estimated:
        yield "the tempo that is stored of {songs} is an estimate"
    if "keyscale" in estimated:
        yield "the key that is stored of {songs} is an estimate"
    if row.get("lyrics_cut"):
        yield "the lyrics of {songs} are longer than what the model reads, and were cut off"
    if (row.get("peak_db") or 0.0) > 0:
        yield "{songs} was made so loud that its peaks lie above full scale: a lower --target-lufs keeps them"
