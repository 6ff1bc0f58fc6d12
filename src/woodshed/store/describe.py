"""What is stored beside a record's arrays: one dictionary with the names that trainers look for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from woodshed.contracts import Json, Place, Record, RecordSpec
from woodshed.errors import ItemError

ROW = "row"
"""In a record's metadata and in the log's facts: what a manifest says of it."""
OURS = frozenset({
    "id", "path", "relpath", "timestamps", "seconds_start", "seconds_total", "padding_mask", "sample_rate",
    "audio_channels", "duration", "start_time", "end_time", "sample_offset", "num_samples", "total_samples",
    "num_frames", "valid_frames", "silent", "source_digest", "record_index", "num_records", "columns",
})  # fmt: skip
"""Keys that a source's columns cannot take; a column of such a name is kept under `columns`."""


def clashing_columns(meta: Mapping[str, Json]) -> tuple[str, ...]:
    """Columns of a source row that have a name of ours and are therefore stored under `columns`.

    >>> clashing_columns({"prompt": "a drum", "duration": 3.2})
    ('duration',)
    """
    return tuple(name for name in meta if name in OURS)


def describe(record: Record, place: Place, spec: RecordSpec, *, absolute_path: bool = False) -> dict[str, Json]:
    """All facts about a record, in a fixed order and without anything that differs between runs.

    Times are in seconds of the source. `seconds_start` is floored and `seconds_total` (of the whole file) rounded up
    to whole seconds, as stable-audio-tools does; `start_time`, `end_time` and `duration` are exact and count valid
    samples only. `sample_offset` and `num_samples` are at `sample_rate`. Whatever else the encoder noted
    comes next, then the columns of the source row.
    """
    item, facts = place.item, record_facts(record, place, spec)
    start, num_samples, total = facts["start_sample"], facts["num_samples"], facts["total_samples"]
    described: dict[str, Json] = {
        "id": item.id,
        "path": item.path if absolute_path else item.relpath,
        "relpath": item.relpath,
        "seconds_start": start // spec.rate_hz,
        "seconds_total": math.ceil(total / spec.rate_hz),
        "sample_rate": spec.rate_hz,
        "audio_channels": spec.audio_channels,
        "duration": num_samples / spec.rate_hz,
        "start_time": start / spec.rate_hz,
        "end_time": (start + num_samples) / spec.rate_hz,
        "sample_offset": start,
        **{key: value for key, value in facts.items() if key != "start_sample"},
        "source_digest": place.digest,
        "record_index": place.index,
        "num_records": place.num_records,
    }
    described |= {key: value for key, value in record.meta.items() if key not in OURS and key != "start_sample"}
    clashing = clashing_columns(item.meta)
    described |= {key: value for key, value in item.meta.items() if key not in described and key not in OURS}
    if clashing:
        described["columns"] = {key: item.meta[key] for key in clashing}
    return described


def record_facts(record: Record, place: Place, spec: RecordSpec) -> dict[str, Json]:
    """Where a record lies in its source and how much of it is sound, in samples at the model's rate and in frames.

    What the encoder noted holds; the rest is worked out: a frame is valid if any of its samples is.
    """
    meta, audio = record.meta, place.item.audio
    start = int(meta.get("start_sample", 0))
    if "total_samples" in meta:
        total = int(meta["total_samples"])
    elif audio is not None:
        total = -(-audio.num_samples * spec.rate_hz // audio.rate_hz)
    else:
        total = start + int(meta.get("num_samples", 0))
    num_samples = int(meta.get("num_samples", max(0, total - start)))
    num_frames = int(record.arrays[spec.main].shape[spec.arrays[spec.main].axes.index("frame")])
    return {
        "start_sample": start,
        "num_samples": num_samples,
        "total_samples": total,
        "num_frames": num_frames,
        "valid_frames": int(meta.get("valid_frames", min(num_frames, -(-num_samples // spec.hop_samples)))),
        "silent": bool(meta.get("silent", False)),
    }


def log_facts(record: Record, place: Place, spec: RecordSpec) -> dict[str, Json]:
    """What the log keeps of a record: where it lies in its source and, if the encoder has something to say of it as a
    row of a manifest (`ROW`), that and the length of each array's first axis (`lengths`)."""
    facts = record_facts(record, place, spec)
    if ROW in record.meta:
        facts[ROW] = record.meta[ROW]
        facts["lengths"] = {name: int(array.shape[0]) for name, array in record.arrays.items()}
    return facts


def to_json(value: Mapping[str, Any], place: Place) -> bytes:
    """JSON in ASCII, so that names which are not UTF-8 survive.

    Raises:
        ItemError: the source row holds something that JSON cannot.
    """
    try:
        return json.dumps(value, ensure_ascii=True, allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise ItemError(
            f"the metadata of {place.item.id!r} cannot be written as JSON: {error}",
            kind="metadata",
            hint="use texts, finite numbers, lists and dictionaries only",
        ) from error
