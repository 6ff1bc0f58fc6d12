"""Dataset configs of stable-audio-tools, and the metadata functions that they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.contracts import BadRow, Item
from woodshed.errors import ItemError, UsageError
from woodshed.sources.custom_metadata import EXTRA_AUDIO_NOTE, Reject, json_safe
from woodshed.sources.dataset_config import labels_of
from woodshed.sources.open import open_source
from woodshed.sources.source import Source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one/a.wav", "one/deep/a.wav", "two/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def config(folder: Path, *datasets: dict[str, Any], trust: bool = False, **keys: Any) -> Source:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": list(datasets), **keys}))
    return open_source(None, str(path), trust_remote_code=trust)


def test_one_folder_gives_plain_ids(folder: Path) -> None:
    source = config(folder, {"id": "x", "path": str(folder / "one")}, random_crop=True, drop_last=False)
    assert [row.id for row in source.rows()] == ["a.wav", "deep/a.wav"]
    assert source.describe() == {
        "kind": "audio_dir",
        "dataset_config": {
            "dataset_type": "audio_dir",
            "datasets": [{"id": "x", "folder": "one"}],
            "random_crop": True,
            "drop_last": False,
        },
    }
    assert source.notes == ()


def test_several_folders_give_ids_that_differ(folder: Path) -> None:
    datasets = [
        {"id": "x", "path": "one"},
        {"id": "x", "path": "two"},
        {"id": "x/deep", "path": str(folder / "one/deep")},
    ]
    source = config(folder, *datasets)
    found = list(source.rows())
    assert [(row.id, row.relpath) for row in found if isinstance(row, Item)] == [
        ("x/a.wav", "a.wav"),
        ("x/deep/a.wav", "deep/a.wav"),
        ("x#2/a.wav", "a.wav"),
    ]
    assert [(row.id, row.kind, row.skipped) for row in found if isinstance(row, BadRow)] == [
        ("x%2Fdeep/a.wav", "duplicate", True)
    ]


@given(st.lists(st.text("a/%#2", max_size=4), min_size=2, max_size=6))
def test_labels_never_meet(ids: list[str]) -> None:
    labels = labels_of(ids)
    assert len(set(labels)) == len(ids)
    assert not any(label is None or "/" in label for label in labels)


def test_a_root_whose_name_occurs_in_another_path_is_no_trouble(folder: Path) -> None:
    (folder / "a/b/a").mkdir(parents=True)
    (folder / "a/b/a/x.wav").write_bytes(b"x")
    (item,) = config(folder, {"id": "x", "path": str(folder / "a")}).rows()
    assert isinstance(item, Item)
    assert item.relpath == "b/a/x.wav"


def test_training_keys_are_ignored_with_a_note(folder: Path) -> None:
    source = config(folder, {"id": "x", "path": "one"}, min_length_sec=1, latent_crop_length=8)
    assert source.notes == (
        "latent_crop_length, min_length_sec in the dataset config: without effect on encoding, ignored",
    )
    assert len(list(source.rows())) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"random_corp": True}, "has the unknown key 'random_corp' (try: did you mean random_crop?)"),
        ({"zzz": 1}, "has the unknown key 'zzz' (try: remove it; known are dataset_type, datasets"),
        ({"dataset_type": "s3"}, "tar shards and S3 come with the scale release (try: unpack the shards"),
        ({"dataset_type": "wds"}, "tar shards and S3 come with the scale release"),
        ({"dataset_type": "pre_encoded"}, "its files are latents already"),
        ({"dataset_type": None}, "has dataset_type None, not one that is known"),
        ({"datasets": []}, "needs `datasets`, a list with one entry or more"),
        ({"datasets": [{"id": "x"}]}, "datasets[0] of"),
        ({"datasets": [{"id": 5, "path": "one"}]}, "needs `id`, a text"),
        ({"datasets": [{"id": "x", "path": "one", "s3_path": "y"}]}, "has the unknown key 's3_path'"),
        ({"datasets": [{"id": "x", "path": "none"}]}, "datasets[0].path of"),
        ({"datasets": [{"id": "x", "path": "one", "custom_metadata_module": 3}]}, "is not the path of a Python file"),
    ],
)
def test_configs_that_cannot_work(folder: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(folder, {"id": "x", "path": "one"}, **keys)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_configs_that_are_no_json(folder: Path, content: bytes) -> None:
    (folder / "c.json").write_bytes(content)
    with pytest.raises(UsageError, match="the dataset config"):
        open_source(None, str(folder / "c.json"))


MODULE = """
import pathlib
import numpy as np
import torch

def get_custom_metadata(info, audio):
    assert isinstance(audio, torch.Tensor) and audio.shape == (2, 4)
    audio += 1
    case = info["relpath"]
    if case == "reject":
        return {"__reject__": True}
    if case == "extra":
        return {"prompt": "kept", "__audio__": {"stem": audio}}
    if case == "bad":
        return {"deep": {"thing": [object()]}}
    if case == "fail":
        raise KeyError("genre")
    if case == "none":
        return None
    prompt = "p " + str(info["seconds_total"])
    return {"prompt": prompt, "t": torch.ones(2), "n": np.arange(2), "p": pathlib.Path("x/y")}
"""


def trusted(folder: Path, module: str = MODULE) -> Source:
    (folder / "meta.py").write_text(module)
    return config(folder, {"id": "x", "path": "one", "custom_metadata_module": "meta.py"}, trust=True)


def ask(source: Source, relpath: str) -> dict[str, Any] | Reject:
    item = Item(id=relpath, path="/x", relpath=relpath, size_bytes=1, mtime_ns=1)
    audio = np.zeros((2, 4), np.float32)
    assert source.annotate is not None
    given = source.annotate(item, audio, {"relpath": relpath, "seconds_total": 3})
    assert not audio.any(), "the engine's audio was written to"
    return given


def test_code_runs_only_when_trusted(folder: Path) -> None:
    mark = folder / "ran"
    (folder / "meta.py").write_text(f"open({str(mark)!r}, 'w').close()")
    with pytest.raises(UsageError) as caught:
        config(folder, {"id": "x", "path": "one", "custom_metadata_module": "meta.py"})
    message = str(caught.value)
    assert "names code to run: datasets[0].custom_metadata_module is 'meta.py'" in message
    assert "(try: read that file, and if you trust it, add --trust-remote-code)" in message
    assert not mark.exists()


def test_results_become_json(folder: Path) -> None:
    source = trusted(folder)
    assert ask(source, "fine") == {"prompt": "p 3", "t": [1.0, 1.0], "n": [0, 1], "p": "x/y"}
    described = source.describe()["dataset_config"]["datasets"][0]
    assert described["custom_metadata_module"] == "meta.py"
    assert len(described["sha256"]) == 64


def test_rejected_windows_are_not_replaced(folder: Path) -> None:
    assert ask(trusted(folder), "reject") == Reject("rejected by custom metadata (meta.py)")


def test_extra_waveforms_are_left_out_with_a_note(folder: Path) -> None:
    source = trusted(folder)
    assert source.notes == ()
    assert ask(source, "extra") == {"prompt": "kept"}
    assert source.notes == (EXTRA_AUDIO_NOTE,)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("bad", "get_custom_metadata of meta.py: key 'deep', key 'thing' is of type object, which JSON cannot hold"),
        ("fail", "get_custom_metadata of meta.py failed: KeyError: 'genre'"),
        ("none", "get_custom_metadata of meta.py gave NoneType, not a dict"),
    ],
)
def test_what_goes_wrong_is_the_items_failure(folder: Path, case: str, message: str) -> None:
    with pytest.raises(ItemError) as caught:
        ask(trusted(folder), case)
    assert (str(caught.value), caught.value.kind) == (message, "custom_metadata")


@pytest.mark.parametrize(
    ("module", "message"),
    [("1 / 0", "failed: ZeroDivisionError"), ("x = 1", "has no function get_custom_metadata(info, audio)")],
)
def test_modules_that_cannot_work(folder: Path, module: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        trusted(folder, module)
    assert message in str(caught.value)


def test_each_data_set_has_its_own_function(folder: Path) -> None:
    for name in ("p", "q"):
        (folder / f"{name}.py").write_text(f"def get_custom_metadata(info, audio):\n    return {{'from': '{name}'}}\n")
    source = config(
        folder,
        {"id": "one", "path": "one", "custom_metadata_module": "p.py"},
        {"id": "two", "path": "two", "custom_metadata_module": "q.py"},
        {"id": "deep", "path": "one/deep"},
        trust=True,
    )
    assert source.annotate is not None
    audio = np.zeros((2, 4), np.float32)
    given = {row.id: source.annotate(row, audio, {}) for row in source.rows() if isinstance(row, Item)}
    assert given == {"one/a.wav": {"from": "p"}, "one/deep/a.wav": {"from": "p"}, "two/a.wav": {"from": "q"}}
    free = Item(id="deep/b.wav", path="/x", relpath="b.wav", size_bytes=1, mtime_ns=1)
    assert source.annotate(free, audio, {}) == {}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(values)
def test_what_is_json_already_stays_the_same(value: object) -> None:
    assert json_safe(value, where="x") == value == json.loads(json.dumps(json_safe(value, where="x")))


@pytest.mark.parametrize("value", [{1: 2}, b"x", {1, 2}, np.array([np.nan]), torch.tensor(float("inf")), 1j])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(ItemError, match="key 'k'"):
        json_safe(value, where="key 'k'")
