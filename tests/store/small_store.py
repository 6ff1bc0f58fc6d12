"""A small job on a store, which can be stopped and run again: what the crash tests disturb."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from woodshed.contracts import ArraySpec, AudioInfo, Item, Layout, Place, Record, RecordSpec
from woodshed.store.disk import Disk
from woodshed.store.reader import open_reader
from woodshed.store.shards import Shards
from woodshed.store.stable_audio import StableAudio
from woodshed.store.store import SourceFacts, Store
from woodshed.store.verify import verify_files

_AXES = ("latent", "frame")
SPEC = RecordSpec(
    kind="latents",
    main="mean",
    arrays={name: ArraySpec(axes=_AXES, dtype="float32", bytes_per_frame=8) for name in ("mean", "std")},
    rate_hz=1000,
    hop_samples=10,
    audio_channels=2,
)
LAYOUTS: dict[str, Layout] = {
    "stable_audio": StableAudio(spec=SPEC, window_samples=100),
    "shards": Shards(spec=SPEC),
}


class QuickDisk(Disk):
    """The real disk without waiting for it."""

    def sync(self, paths: Sequence[Path]) -> None:
        pass


@dataclass(frozen=True)
class Job:
    """One row: which version of its source, and how many records it gives (None: it fails)."""

    id: str
    version: int
    num_records: int | None
    position: int
    shard: int


def first_plan() -> list[Job]:
    counts = [2, 1, None, 3, 1, 1]
    starts = [0, 2, 3, 3, 6, 7]
    return [
        Job(f"clip {index}.wav", 0, count, start, index // 3)
        for index, (count, start) in enumerate(zip(counts, starts, strict=True))
    ]


def second_plan() -> list[Job]:
    """Some sources changed: two give less, one fails now, one works now and one moved, both to a new shard; one is
    new. The second shard keeps one record as it is."""
    old = first_plan()
    return [
        Job(old[3].id, 1, 2, 3, 1),
        Job(old[0].id, 1, 1, 0, 0),
        Job(old[1].id, 1, None, 2, 0),
        Job(old[2].id, 1, 2, 8, 2),
        Job(old[4].id, 1, 1, 11, 2),
        old[5],
        Job("clip 6.wav", 0, 1, 10, 2),
    ]


def item_of(job: Job) -> Item:
    return Item(
        id=job.id, path=f"/sounds/{job.id}", relpath=job.id, size_bytes=9, mtime_ns=job.version,
        meta={"prompt": f"version {job.version}"},
        audio=AudioInfo(rate_hz=1000, num_channels=1, num_samples=100, format="WAV", decoder="none"),
    )  # fmt: skip


def record_of(job: Job, index: int) -> Record:
    rng = np.random.default_rng([job.position, job.version, index])
    arrays = {name: rng.normal(size=(2, 5 + index)).astype(np.float32) for name in ("mean", "std")}
    return Record(arrays=arrays, meta={"start_sample": 50 * index, "num_samples": 40 + 10 * index})


def facts_of(job: Job) -> SourceFacts:
    return SourceFacts(
        id=job.id, size_bytes=9, mtime_ns=job.version, digest="xxh3_128:" + "0" * 32, position=job.position,
        shard=job.shard,
    )  # fmt: skip


def place_of(job: Job, index: int) -> Place:
    return Place(
        item=item_of(job), digest="xxh3_128:" + "0" * 32, rank=0, position=job.position + index, index=index,
        num_records=job.num_records or 0,
    )  # fmt: skip


def do(store: Store, job: Job) -> None:
    if job.num_records is None:
        store.fail(facts_of(job), kind="truncated", reason=f"{job.id} ends early")
        return
    with store.item(facts_of(job)) as writer:
        for index in range(job.num_records):
            writer.write(record_of(job, index), place_of(job, index))
        writer.done(audio_s=0.1)


def run(
    folder: Path,
    layout: str,
    plan: Iterable[Job],
    *,
    disk: Disk | None = None,
    group_bytes: int = 1500,
    committed: Callable[[str], None] = lambda _: None,
) -> None:
    """Do what is not done yet; tell `committed` of every item that is known to be durable."""
    plan = list(plan)
    sizes = {shard: sum(job.shard == shard for job in plan) for shard in {job.shard for job in plan}}
    with Store.open(
        folder, layout=LAYOUTS[layout], fingerprint={"model": {"digest": "a"}}, spec=SPEC, disk=disk or QuickDisk(),
        group_s=1e9, group_bytes=group_bytes,
    ) as store:  # fmt: skip
        if not store.plan:
            store.plan.append([{"items": len(plan)}], next_position=12)
        store.expect_shards(sizes)
        for job in plan:
            entry = store.entry(job.id)
            if entry is None or entry.mtime_ns != job.version:
                do(store, job)
                if group_bytes == 1500 and job.position == 3:
                    store.commit()
                    for known in plan:
                        word = store.entry(known.id)
                        if word is not None and word.mtime_ns == known.version:
                            committed(known.id)
        store.render("details.json", b'{"model": "a"}\n')


def tree(folder: Path) -> dict[str, bytes]:
    """Everything outside `.woodshed`."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if path.relative_to(folder).parts[0] != ".woodshed"
    }


def check(folder: Path, plans: Sequence[Sequence[Job]]) -> set[tuple[str, int]]:
    """Every committed item is one of the plans' versions, whole and with the right content; (id, version) of all."""
    reader = open_reader(folder)
    assert list(verify_files(reader)) == []
    jobs = {(job.id, job.version): job for plan in plans for job in plan}
    found = set()
    for entry in reader.entries():
        job = jobs[entry.id, entry.mtime_ns]
        assert entry.status == ("failed" if job.num_records is None else "done")
        assert [record.position for record in entry.records] == [
            job.position + index for index in range(job.num_records or 0)
        ]
        for index, record in enumerate(entry.records):
            arrays = reader.arrays(record)
            for name, array in record_of(job, index).arrays.items():
                np.testing.assert_array_equal(arrays[name], array)
            assert reader.meta(record)["prompt"] == f"version {job.version}"
        found.add((entry.id, entry.mtime_ns))
    assert reader.totals.num_done + reader.totals.num_failed == len(found)
    return found
