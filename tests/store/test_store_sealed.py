"""Sealed files read a little at a time, and quick questions to the log: the same answers as the slow way gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from woodshed.errors import StoreError
from woodshed.store.entries import SourceFacts, entry_of, item_line
from woodshed.store.log import CommitLog
from woodshed.store.sealed import body_lines, check_sealed, seal, to_line, unseal

MEBIBYTE = 1 << 20


@pytest.mark.parametrize("footer_bytes", [0, 1, MEBIBYTE - 40, MEBIBYTE, 5 * MEBIBYTE])
@pytest.mark.parametrize("num_lines", [0, 1, 3000])
def test_a_sealed_file_read_in_parts_is_the_one_that_was_sealed(
    tmp_path: Path, footer_bytes: int, num_lines: int
) -> None:
    lines = [to_line({"number": number, "text": "x" * (number % 700)}) for number in range(num_lines)]
    path = tmp_path / "sealed.jsonl"
    path.write_bytes(seal(lines, {"more": "y" * footer_bytes}))
    body, footer = unseal(path)
    assert check_sealed(path) == (len(body), footer)
    assert [line.rstrip(b"\n") for line in body_lines(path, len(body))] == lines


@given(where=st.integers(0, 199), change=st.sampled_from(["cut", "flip", "grow"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_found_both_ways(tmp_path: Path, where: int, change: str) -> None:
    content = seal([b'{"a":1}', b'{"b":"' + b"c" * 150 + b'"}'], {"lines": 2})
    assert len(content) > 200
    damaged = {
        "cut": content[:where],
        "flip": content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :],
        "grow": content[:where] + b"\n" + content[where:],
    }[change]
    path = tmp_path / "sealed.jsonl"
    path.write_bytes(damaged)
    for read in (unseal, check_sealed):
        with pytest.raises(StoreError, match="is damaged"):
            read(path)


@given(
    digest=st.sampled_from(["xxh3_128:" + "0f" * 16, "xxh3_128:" + "0F" * 16, "sha:1", "", "xxh3_128:" + "0f" * 15]),
    meta=st.sampled_from(["", "xxh3_64:0123456789abcdef", "other"]),
    position=st.none() | st.integers(0, 10**10),
    size=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_quick_questions_agree_with_the_entry(digest: str, meta: str, position: int | None, size: int) -> None:
    log = CommitLog(Path())
    facts = SourceFacts(
        id="a", size_bytes=size, mtime_ns=77, digest=digest, meta_digest=meta, position=position, shard=None
    )
    wrong = SourceFacts(id="b", position=position, digest=digest, meta_digest=meta)
    lines = [
        item_line(entry_of(facts, "done", [], audio_s=1.0), []),
        item_line(entry_of(wrong, "failed", [], audio_s=0.0, kind="empty", reason="0 bytes"), []),
    ]
    log.add("0-00000000", b"".join(line + b"\n" for line in lines), {"shards": [], "moves": []})
    entry = log.entry("a")
    assert entry is not None
    assert (entry.digest, entry.meta_digest, entry.position, entry.size_bytes) == (digest, meta, position, size)
    # A digest in another form takes the slow way, which gives the same answer.
    is_usual = digest == "xxh3_128:" + "0f" * 16
    assert log.is_done("a", size_bytes=size, mtime_ns=77, meta_digest=meta) == is_usual
    assert not log.is_done("a", size_bytes=size + 1, mtime_ns=77, meta_digest=meta)
    assert not log.is_done("a", size_bytes=size, mtime_ns=78, meta_digest=meta)
    assert not log.is_done("a", size_bytes=size, mtime_ns=77, meta_digest=meta + "!")
    assert not log.is_done("b", size_bytes=0, mtime_ns=0, meta_digest=meta)
    assert not log.is_done("c", size_bytes=0, mtime_ns=0, meta_digest="")
    if position is not None:
        assert log.is_at("a", position)
        assert not log.is_at("a", position + 1)
    assert not log.is_at("c", 0)
    assert (log.totals.num_done, log.totals.num_failed, log.next_position) == (1, 1, position or 0)
