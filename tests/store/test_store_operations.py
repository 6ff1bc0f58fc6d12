"""Any sequence of operations leaves what a plain dictionary says."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.small_store import (
    LAYOUTS,
    SPEC,
    Job,
    QuickDisk,
    check,
    facts_of,
    item_of,
    place_of,
    record_of,
    run,
    tree,
)
from woodshed.contracts import Place, Record
from woodshed.errors import ItemError, StoreError
from woodshed.store.reader import open_reader
from woodshed.store.store import ItemWriter, Store

NUM_ITEMS, MOST_RECORDS = 6, 3


def open_store(folder: Path, layout: str) -> Store:
    store = Store.open(
        folder, layout=LAYOUTS[layout], fingerprint={"model": {"digest": "a"}}, spec=SPEC, disk=QuickDisk(),
        group_s=1e9, group_bytes=3000,
    )  # fmt: skip
    store.expect_shards({0: NUM_ITEMS // 2, 1: NUM_ITEMS // 2})
    return store


def write(writer: ItemWriter, job: Job, index: int) -> None:
    writer.write(record_of(job, index), place_of(job, index))


operations = st.one_of(
    st.tuples(st.just("item"), st.integers(0, NUM_ITEMS - 1), st.none() | st.integers(0, MOST_RECORDS)),
    st.tuples(st.just("abandon"), st.integers(0, NUM_ITEMS - 1), st.integers(1, MOST_RECORDS)),
    st.tuples(st.sampled_from(["commit", "reopen"]), st.just(0), st.just(0)),
)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=20, deadline=None)
@given(script=st.lists(operations, min_size=3, max_size=20))
def test_any_history(layout: str, script: list[tuple[str, int, int | None]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, jobs, last = Path(name) / "out", list[Job](), dict[str, Job]()
        store = open_store(folder, layout)
        for version, (word, number, count) in enumerate(script):
            job = Job(f"clip {number}", version, count, number * MOST_RECORDS, number % 2)
            if word == "commit":
                store.commit()
            elif word == "reopen":
                store.close()
                store = open_store(folder, layout)
            elif word == "abandon":
                with store.item(facts_of(job)) as writer:
                    write(writer, job, 0)
            elif count is None:
                store.fail(facts_of(job), kind="empty", reason="nothing")
            else:
                with store.item(facts_of(job)) as writer:
                    for index in range(count):
                        write(writer, job, index)
                    writer.done(audio_s=1.5)
            if word == "item":
                jobs.append(job)
                last[job.id] = job
        store.close()
        assert check(folder, [jobs]) == {(job.id, job.version) for job in last.values()}
        reader = open_reader(folder)
        assert reader.totals.num_records == sum(job.num_records or 0 for job in last.values())
        assert reader.totals.audio_s == 1.5 * sum(job.num_records is not None for job in last.values())
        assert reader.totals.failure_kinds.total() == sum(job.num_records is None for job in last.values())
        if layout == "stable_audio" or len(last) == NUM_ITEMS:
            run(Path(name) / "fresh", layout, last.values())
            store = open_store(folder, layout)
            store.render("details.json", tree(Path(name) / "fresh")["details.json"])
            store.close()
            assert tree(folder) == tree(Path(name) / "fresh")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_items_may_be_open_at_once_and_span_commits(tmp_path: Path, layout: str) -> None:
    long = Job("long", 0, 3, 0, 0)
    short = [Job(f"short {n}", 0, 1, 3 + n, 1) for n in range(4)]
    with open_store(tmp_path / "a", layout) as store, store.item(facts_of(long)) as writer:
        for index in range(3):
            write(writer, long, index)
            with store.item(facts_of(short[index])) as other:
                write(other, short[index], 0)
                other.done(audio_s=0.1)
            store.commit()
            assert store.entry("long") is None
        writer.done(audio_s=0.3)
    assert check(tmp_path / "a", [[long, *short]]) == {("long", 0), *((f"short {n}", 0) for n in range(3))}


def test_an_item_that_moves_to_an_earlier_shard_leaves_the_later_one(tmp_path: Path) -> None:
    moving, staying = Job("moving", 0, 1, 0, 1), Job("staying", 0, 1, 1, 1)
    run(tmp_path, "shards", [moving, staying])
    run(tmp_path, "shards", [replace(moving, version=1, position=2, shard=0), staying])
    positions = {
        shard: [record["position"] for record in json.loads((tmp_path / f"shards/{shard}").read_bytes())["records"]]
        for shard in ("00000.index.json", "00001.index.json")
    }
    assert positions == {"00000.index.json": [2], "00001.index.json": [1]}


def test_what_the_store_knows_survives_reopening(tmp_path: Path) -> None:
    with open_store(tmp_path, "stable_audio") as store:
        assert store.next_position == 0
        store.plan.append([{"unit": 0}, {"unit": 1}], next_position=4)
        store.plan.append([{"unit": 2}], next_position=7)
        job = Job("caf\udce9.wav", 3, 2, 5, 0)
        with store.item(replace(facts_of(job), meta_digest="other form")) as writer:
            write(writer, job, 0)
            write(writer, job, 1)
            writer.done(audio_s=0.25)
        store.fail(facts_of(Job("bad", 0, None, 7, 0)), kind="empty", reason='no "samples",\nreally')
        store.skip(facts_of(Job("twin", 0, None, 8, 0)), kind="duplicate", reason="as bad")
        assert store.entry(job.id) is None, "not committed yet"
    with open_store(tmp_path, "stable_audio") as store:
        assert [unit["unit"] for unit in store.plan] == [0, 1, 2]
        assert len(store.plan) == 3
        assert store.next_position == 8
        entry = store.entry(job.id)
        assert entry is not None
        assert (entry.status, entry.size_bytes, entry.mtime_ns, entry.position, entry.shard) == ("done", 9, 3, 5, 0)
        assert (entry.digest, entry.meta_digest) == ("xxh3_128:" + "0" * 32, "other form")
        assert (entry.num_records, entry.num_samples, entry.audio_s) == (2, 90, 0.25)
        assert [(f.id, f.kind, f.reason) for f in store.failures()] == [("bad", "empty", 'no "samples",\nreally')]
        skipped = store.entry("twin")
        assert skipped is not None
        assert (skipped.status, skipped.kind, skipped.reason) == ("skipped", "duplicate", "as bad")
        assert store.totals.failure_kinds == {"empty": 1}
        assert (store.totals.num_done, store.totals.num_failed, store.totals.num_skipped) == (1, 1, 1)


def test_groups_commit_by_size_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    store = Store.open(
        tmp_path, layout=LAYOUTS["stable_audio"], fingerprint={}, spec=SPEC, group_s=2.0, group_bytes=10**6
    )
    with store:
        for second, is_committed in ((0.0, False), (1.9, False), (2.1, True)):
            clock[0] = second
            store.fail(facts_of(Job(f"at {second}", 0, None, 0, 0)), kind="empty", reason="none")
            assert (store.entry("at 0.0") is not None) == is_committed


def test_metadata_that_json_cannot_hold_is_the_items_failure_and_leaves_nothing(tmp_path: Path) -> None:
    job = Job("odd", 0, 1, 0, 0)
    item = replace(item_of(job), meta={"score": float("nan")})
    with open_store(tmp_path, "stable_audio") as store:
        with store.item(facts_of(job)) as writer, pytest.raises(ItemError, match="'odd' cannot be written as JSON"):
            writer.write(record_of(job, 0), Place(item=item, digest="", rank=0, position=0, index=0, num_records=1))
        assert list((tmp_path / ".woodshed/tmp").iterdir()) == []
    assert tree(tmp_path) == {}


def test_a_layout_cannot_write_outside_the_folder(tmp_path: Path) -> None:
    class Escaping:
        name = "stable_audio"

        def files(self, record: Record, place: Place) -> list[tuple[str, bytes]]:
            return [("../stolen", b"x")]

        def facts(self, record: Record, place: Place) -> dict[str, Any]:
            return {}

    store = Store.open(tmp_path / "out", layout=Escaping(), fingerprint={}, spec=SPEC)
    job = Job("a", 0, 1, 0, 0)
    with store, store.item(facts_of(job)) as writer, pytest.raises(StoreError, match="no file name inside"):
        write(writer, job, 0)
    assert not (tmp_path / "stolen").exists()


def test_two_items_cannot_claim_one_file(tmp_path: Path) -> None:
    with open_store(tmp_path, "stable_audio") as store:
        for name in ("a", "b"):
            job = Job(name, 0, 1, 0, 0)
            with store.item(facts_of(job)) as writer:
                write(writer, job, 0)
                if name == "a":
                    writer.done(audio_s=0.1)
                else:
                    with pytest.raises(StoreError, match=r"two items claim the file .*; the second is 'b'"):
                        writer.done(audio_s=0.1)
    assert {entry.id for entry in open_reader(tmp_path).entries()} == {"a"}
