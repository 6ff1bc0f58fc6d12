"""What is known of a song as JSON: the columns of a `.json` sidecar, and a sample of `dataset.json`."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from woodshed.contracts import Item, Json
from woodshed.sources.song_fields import FIELDS, INSTRUMENTAL, Known, caption_of_name, finished_meta

BUILDERS_COLUMNS: Final = ("id", "labeled", "raw_lyrics", "formatted_lyrics")
"""Columns by which dataset builders keep their own books; made anew in every `dataset.json`."""
DEFAULT_NAME: Final = "local_dataset"
MAX_NAMES_TOLD: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetHead:
    """What the `metadata` of a `dataset.json` says of all songs."""

    name: str = DEFAULT_NAME
    custom_tag: str = ""
    tag_position: str = "prepend"
    genre_ratio: int = 0
    created_at: str | None = None
    """Left out where it is None, so that equal songs give equal files."""


def json_of(known: Known) -> bytes:
    """A `.json` sidecar that holds everything known of a song, `extra` included.

    >>> print(json_of({"caption": "rain", "extra": {"mood": "calm"}}).decode(), end="")
    {
      "caption": "rain",
      "mood": "calm"
    }
    """
    columns = {field: known[field] for field in FIELDS if field in known} | known.get("extra", {})
    return json.dumps(columns, indent=2, ensure_ascii=False).encode() + b"\n"


def dataset_of(songs: Sequence[tuple[Item, float]], head: DatasetHead, *, folder: Path) -> bytes:
    """A `dataset.json` as Side-Step and ACE-Step read it.

    Sounds below the file's folder are named by the path below it. A sample's `id` follows from that path.

    Args:
        songs: each with what is known of it in `Item.meta`, and its length in seconds.
        folder: the one that the file will lie in.
    """
    samples = [_sample(item, duration_s, head, folder) for item, duration_s in songs]
    metadata: dict[str, Json] = {
        "name": head.name,
        "custom_tag": head.custom_tag,
        "tag_position": head.tag_position,
        **({} if head.created_at is None else {"created_at": head.created_at}),
        "num_samples": len(samples),
        "all_instrumental": all(sample["is_instrumental"] for sample in samples),
        "genre_ratio": head.genre_ratio,
    }
    return json.dumps({"metadata": metadata, "samples": samples}, indent=2, ensure_ascii=True).encode() + b"\n"


def notes_on_names(songs: Sequence[Item]) -> list[str]:
    """A warning where files are called alike: Side-Step looks captions up by file name alone."""
    counts = Counter(os.path.basename(item.path) for item in songs)  # noqa: PTH119 - of ten thousands of songs
    alike = sorted(name for name, count in counts.items() if count > 1)
    if not alike:
        return []
    names = ", ".join(map(repr, alike[:MAX_NAMES_TOLD])) + (", ..." if len(alike) > MAX_NAMES_TOLD else "")
    return [f"songs of one name in different folders: {names}. Side-Step gives all of one name the same caption"]


def _sample(item: Item, duration_s: float, head: DatasetHead, folder: Path) -> dict[str, Json]:
    known: Mapping[str, Json] = item.meta
    meta = finished_meta(
        known,
        caption=caption_of_name(item.path),
        custom_tag=head.custom_tag,
        tag_position=head.tag_position,
        use_genre=False,
    )
    path = Path(item.path)
    written = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    extra = {name: value for name, value in known.get("extra", {}).items() if name not in BUILDERS_COLUMNS}
    return {
        "id": hashlib.blake2b(os.fsencode(written), digest_size=6).hexdigest(),
        "audio_path": written,
        "filename": path.name,
        "caption": meta["caption"],
        "genre": meta["genre"],
        "lyrics": meta["lyrics"] or INSTRUMENTAL,
        "raw_lyrics": meta["lyrics"],
        "formatted_lyrics": "",
        "bpm": meta["bpm"],
        "keyscale": meta["keyscale"],
        "timesignature": meta["timesignature"],
        "duration": int(duration_s),
        "language": meta["language"] or "unknown",
        "is_instrumental": meta["is_instrumental"],
        "custom_tag": meta["custom_tag"],
        "labeled": "caption" in known,
        "prompt_override": meta["prompt_override"],
        "repeat": meta["repeat"],
        # ours: Side-Step has one position for all songs
        **({"tag_position": known["tag_position"]} if "tag_position" in known else {}),
        **extra,
    }
