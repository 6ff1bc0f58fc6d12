"""Revisions: many words, files and the run's identity in one commit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.store.small_store import LAYOUTS, SPEC, QuickDisk, first_plan, run
from woodshed.errors import StoreError
from woodshed.store.entries import SourceFacts, entry_of
from woodshed.store.folder import OtherRunError
from woodshed.store.log import CommitLog
from woodshed.store.reader import open_reader
from woodshed.store.store import Store


def opened(folder: Path, fingerprint: dict[str, int] | None = None) -> Store:
    return Store.open(
        folder, layout=LAYOUTS["stable_audio"], fingerprint=fingerprint or {"seed": 1}, spec=SPEC, disk=QuickDisk()
    )


def test_more_words_than_are_parsed_or_synced_at_once(tmp_path: Path) -> None:
    count = 40_000
    with opened(tmp_path / "out") as store, store.revision() as revision:
        for number in range(count):
            source = SourceFacts(id=f"item {number}", position=number)
            revision.say(entry_of(source, "failed", [], audio_s=1.0, kind="empty", reason=f"reason {number}"), [])
        for number in range(5000):
            revision.file(f"notes/{number}.txt", b"%d" % number)
        revision.foresee()
        assert revision.log.totals.num_failed == count
        # Read from the segment before it has appeared.
        assert revision.log.records("item 39999") == ()
    log = CommitLog.read(tmp_path / "out")
    assert (len(log), log.totals.num_failed) == (count, count)
    entry = log.entry("item 20001")
    assert entry is not None
    assert (entry.position, entry.reason) == (20001, "reason 20001")
    assert (tmp_path / "out/notes/4999.txt").read_bytes() == b"4999"
    assert len(list((tmp_path / "out/.woodshed/commits").iterdir())) == 1


def test_nothing_new_is_no_commit(tmp_path: Path) -> None:
    with opened(tmp_path / "out") as store:
        with store.revision() as revision:
            revision.render("a.txt", b"a")
            revision.rename_run({"seed": 1})
        segments = list((tmp_path / "out/.woodshed/commits").iterdir())
        with store.revision() as revision:
            revision.render("a.txt", b"a")
            with revision.draft("a.txt") as write:
                write(b"a")
            assert revision.is_empty
    assert list((tmp_path / "out/.woodshed/commits").iterdir()) == segments
    assert list((tmp_path / "out/.woodshed/tmp").iterdir()) == []


def test_a_run_with_another_name(tmp_path: Path) -> None:
    run(tmp_path / "out", "stable_audio", first_plan())
    before = open_reader(tmp_path / "out")
    store = Store.open(tmp_path / "out", layout=LAYOUTS["stable_audio"], fingerprint=None, spec=SPEC)
    with store, store.revision() as revision:
        revision.rename_run({"seed": 2})
        revision.note("settings.json", b"{}")
    after = open_reader(tmp_path / "out")
    assert after.fingerprint == {"seed": 2} != before.fingerprint
    assert list(after.entries()) == list(before.entries())
    assert json.loads((tmp_path / "out/.woodshed/settings.json").read_bytes()) == {}
    with pytest.raises(OtherRunError) as refusal:
        run(tmp_path / "out", "stable_audio", first_plan())
    assert "fingerprint.seed" in refusal.value.fields
    opened(tmp_path / "out", {"seed": 2}).close()


def stop_halfway(store: Store) -> None:
    with store.revision() as revision:
        revision.file("a.txt", b"a")
        revision.rename_run({"seed": 2})
        raise ZeroDivisionError


def test_an_error_leaves_everything_as_it_was(tmp_path: Path) -> None:
    with opened(tmp_path / "out") as store:
        with pytest.raises(ZeroDivisionError):
            stop_halfway(store)
        with pytest.raises(StoreError, match="takes no more"):
            store.render("b.txt", b"b")
    opened(tmp_path / "out").close()
    assert not (tmp_path / "out/a.txt").exists()
    assert list((tmp_path / "out/.woodshed/tmp").iterdir()) == []
