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
            for what, value in _remarkable(record.facts.get(ROW, {})):
                counts[what] += 1
                example.setdefault(what, f"{item_id} ({value})" if value else item_id)
    for what, count in counts.items():
        yield what.format(songs=f"{count} songs, such as {example[what]}," if count > 1 else example[what])


def _remarkable(row: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    """What is to be said, and the value that it is about."""
    estimated = row.get("estimated") or {}
    if "bpm" in estimated:
        yield "the tempo that is stored of {songs} is an estimate", f"{estimated['bpm']}"
    if "keyscale" in estimated:
        yield "the key that is stored of {songs} is an estimate", estimated["keyscale"]
    if row.get("lyrics_cut"):
        yield "the lyrics of {songs} are longer than what the model reads, and were cut off", ""
    if "lufs_before" in row and row["lufs_before"] is None:
        yield "the loudness of {songs} cannot be measured (silent, or shorter than 0.4 s): it is as it was", ""
    elif (row.get("peak_db") or 0.0) > 0:
        shown = f"peak {row['peak_db']:+.1f} dBFS"
        yield "{songs} was made so loud that peaks lie above full scale: a lower target keeps them below", shown
