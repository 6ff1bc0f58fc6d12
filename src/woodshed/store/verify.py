"""Does the folder still hold what was committed? Every file is read and compared with its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from woodshed.errors import StoreError
from woodshed.store.entries import FileEntry
from woodshed.store.reader import Reader
from woodshed.store.shards import read_blob

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One file that is not as it was committed."""

    item_id: str | None
    """The item it belongs to; None for a shard, which holds many."""
    path: str
    kind: Literal["missing", "size", "checksum", "unreadable"]
    detail: str


def verify_files(reader: Reader) -> Iterator[Problem]:
    """Check size and checksum of every committed file, shard and staged record."""
    for entry in reader.entries():
        for record in entry.records:
            for file in record.files:
                yield from _check(reader.folder, entry.id, file)
            if record.blob is not None:
                try:
                    read_blob(reader.folder, record.blob)
                except FileNotFoundError:
                    yield Problem(entry.id, record.blob.path, "missing", "the staging file is gone")
                except StoreError as error:
                    yield Problem(entry.id, record.blob.path, "checksum", error.message)
                except OSError as error:
                    yield Problem(entry.id, record.blob.path, "unreadable", str(error.strerror))
    for shard in sorted(reader.log.shards.values(), key=lambda shard: shard.shard):
        for file in shard.files:
            yield from _check(reader.folder, None, file)


def _check(folder: Path, item_id: str | None, file: FileEntry) -> Iterator[Problem]:
    digest = xxhash.xxh3_64()
    num_bytes = 0
    try:
        with (folder / file.path).open("rb") as content:
            while chunk := content.read(_CHUNK_BYTES):
                digest.update(chunk)
                num_bytes += len(chunk)
    except FileNotFoundError:
        yield Problem(item_id, file.path, "missing", f"{file.num_bytes} bytes were committed")
    except OSError as error:
        yield Problem(item_id, file.path, "unreadable", str(error.strerror))
    else:
        if num_bytes != file.num_bytes:
            yield Problem(item_id, file.path, "size", f"{num_bytes} bytes; {file.num_bytes} were committed")
        elif digest.hexdigest() != file.xxh3_64:
            yield Problem(item_id, file.path, "checksum", f"{digest.hexdigest()}; {file.xxh3_64} was committed")
