"""The front: what counts as which source, and what is said about what does not exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from woodshed.contracts import Item
from woodshed.errors import UsageError
from woodshed.sources.open import open_source


def test_one_sound_is_a_source_of_one(tmp_path: Path) -> None:
    (tmp_path / "a.Ogg").write_bytes(b"xy")
    (tmp_path / "a.txt").write_text("a bell")
    source = open_source(str(tmp_path / "a.Ogg"), None)
    (item,) = source.rows()
    assert isinstance(item, Item)
    assert (item.id, item.relpath, item.size_bytes, item.meta) == ("a.Ogg", "a.Ogg", 2, {"prompt": "a bell"})
    assert source.describe() == {"kind": "file", "name": "a.Ogg"}


def test_descriptions_hold_no_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.wav").write_bytes(b"x")
    (tmp_path / "m.csv").write_text("path\nin/a.wav\n")
    for name in ("in", "m.csv", "in/a.wav"):
        source = open_source(str(tmp_path / name), None)
        assert str(tmp_path) not in json.dumps(source.describe())
        assert source.annotate is None
        assert source.notes == ()
        assert source.roots[0].startswith(str(tmp_path))
        assert [Path(row.path).name for row in source.rows() if isinstance(row, Item)] == ["a.wav"]


def test_rows_can_be_read_twice(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    source = open_source(str(tmp_path), None)
    assert list(source.rows()) == list(source.rows())


@pytest.mark.parametrize(
    ("given", "config", "message"),
    [
        (None, None, "neither --input nor --dataset-config is given (try: give one"),
        ("x", "y", "both --input and --dataset-config are given"),
    ],
)
def test_exactly_one_input(given: str | None, config: str | None, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_source(given, config)
    assert message in str(caught.value)


def test_a_missing_path_names_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    with pytest.raises(UsageError) as caught:
        open_source(str(tmp_path / "sonds"), None)
    assert (
        str(caught.value) == f"--input {tmp_path / 'sonds'} does not exist (try: did you mean {tmp_path / 'sounds'}?)"
    )
    with pytest.raises(UsageError) as caught:
        open_source(str(tmp_path / "sounds/qqq/rrr"), None)
    assert f"the nearest folder that exists is {tmp_path / 'sounds'}" in str(caught.value)
    with pytest.raises(UsageError, match="--dataset-config"):
        open_source(None, str(tmp_path / "config.json"))


@pytest.mark.parametrize(("name", "hint"), [("a.json", "goes to --dataset-config"), ("a.xyz", "give the folder")])
def test_other_files_are_refused(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError) as caught:
        open_source(str(tmp_path / name), None)
    assert "is neither a folder, nor a manifest (.jsonl, .ndjson, .csv, .tsv), nor a sound" in str(caught.value)
    assert hint in str(caught.value)
