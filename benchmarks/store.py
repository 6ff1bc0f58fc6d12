"""How long an output folder takes to open when a million items are committed, and how fast items are committed.

    python benchmarks/store.py --items 1000000

The folder is made by the public functions of the store; opening is measured in a fresh process.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from woodshed.contracts import ArraySpec, AudioInfo, Item, Place, Record, RecordSpec
from woodshed.store.reader import open_reader
from woodshed.store.shards import Shards
from woodshed.store.stable_audio import StableAudio
from woodshed.store.store import SourceFacts, Store

SPEC = RecordSpec(
    kind="latents",
    main="latents",
    arrays={"latents": ArraySpec(axes=("latent", "frame"), dtype="float32", bytes_per_frame=32)},
    rate_hz=44_100,
    hop_samples=2048,
    audio_channels=2,
)
LAYOUTS = {"stable_audio": StableAudio(spec=SPEC, window_samples=2048), "shards": Shards(spec=SPEC)}
SHARD_ITEMS = 10_000


def facts(number: int) -> SourceFacts:
    name = f"artist {number // 1000:04d}/album {number // 20:06d}/track {number:08d}.flac"
    digest = f"xxh3_128:{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"
    return SourceFacts(
        id=name, size_bytes=31_000_000 + number, mtime_ns=1_700_000_000_000_000_000 + number, digest=digest,
        meta_digest=digest, position=number, shard=number // SHARD_ITEMS,
    )  # fmt: skip


def fill(folder: Path, layout: str, num_items: int, group_items: int) -> None:
    with open_store(folder, layout) as store:
        shards = range(-(-num_items // SHARD_ITEMS))
        store.expect_shards({shard: min(SHARD_ITEMS, num_items - shard * SHARD_ITEMS) for shard in shards})
        latents = np.zeros((8, 1), np.float32)
        for number in range(num_items):
            source = facts(number)
            if number % 100 == 99:
                store.fail(source, kind="truncated", reason="the file ends 3.2 s before its header says")
            else:
                with store.item(source) as writer:
                    writer.write(*record(source, latents))
                    writer.done(audio_s=1.0)
            if number % group_items == group_items - 1:
                store.commit()


def record(source: SourceFacts, latents: np.ndarray) -> tuple[Record, Place]:
    audio = AudioInfo(rate_hz=44_100, num_channels=2, num_samples=2048, format="FLAC", decoder="none")
    item = Item(id=source.id, path=source.id, relpath=source.id, size_bytes=1, mtime_ns=1, audio=audio)
    assert source.position is not None
    place = Place(item=item, digest=source.digest, rank=0, position=source.position, index=0, num_records=1)
    return Record(arrays={"latents": latents}, meta={"start_sample": 0, "num_samples": 2048}), place


def open_store(folder: Path, layout: str) -> Store:
    return Store.open(folder, layout=LAYOUTS[layout], fingerprint={}, spec=SPEC, group_s=1e9)


def peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        # Linux hands `ru_maxrss` of the starting process on to the one that it starts.
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_open(folder: Path, layout: str) -> Iterator[str]:
    base_mib = peak_mib()
    started = time.perf_counter()
    with open_store(folder, layout) as store:
        opened_s = time.perf_counter() - started
        totals = store.totals
        num_items = totals.num_done + totals.num_failed
        yield f"| open for writing | {num_items:,} | {opened_s:.1f} s | {peak_mib():.0f} MiB (imports {base_mib:.0f}) |"
        started = time.perf_counter()
        found = sum(store.entry(facts(number).id) is not None for number in range(num_items))
        yield f"| look every item up | {found:,} | {time.perf_counter() - started:.1f} s | {peak_mib():.0f} MiB |"


def measure_read(folder: Path) -> Iterator[str]:
    started = time.perf_counter()
    num_records = sum(len(entry.records) for entry in open_reader(folder).entries())
    yield f"| read all entries | {num_records:,} | {time.perf_counter() - started:.1f} s | {peak_mib():.0f} MiB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--group-items", type=int, default=200, help="items per commit: sets the number of segments")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="shards")
    parser.add_argument("--folder", type=Path, help="keep the folder here, or measure the one that is here")
    parser.add_argument("--only", choices=["open", "read"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only == "open":
        print(*measure_open(arguments.folder, arguments.layout), sep="\n")
        return
    if arguments.only == "read":
        print(*measure_read(arguments.folder), sep="\n")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "out"
        print(f"layout {arguments.layout}, {arguments.group_items} items per commit\n")
        print("| step | items | time | peak memory |\n| --- | --- | --- | --- |", flush=True)
        if not folder.exists():
            started = time.perf_counter()
            fill(folder, arguments.layout, arguments.items, arguments.group_items)
            print(f"| commit | {arguments.items:,} | {time.perf_counter() - started:.1f} s | {peak_mib():.0f} MiB |")
        for only in ("open", "read"):
            command = [sys.executable, __file__, "--only", only, "--folder", str(folder), "--layout", arguments.layout]
            sys.stdout.flush()
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
