"""The reader of `model.bin`: what was written comes back, and no damage passes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.encoders.speech.whisper_files import name_bytes, write_ctranslate2
from woodshed.encoders.speech.ctranslate2 import read_ctranslate2
from woodshed.errors import ModelError

ARRAYS = {
    "encoder/conv1/weight": np.arange(24, dtype=np.float16).reshape(2, 3, 4),
    "encoder/bytes": np.array([-1, 7], np.int8),
    "encoder/num_heads": np.array(6, np.int16),
    "encoder/ids": np.array([[1, -2]], np.int32),
    "decoder/empty": np.zeros((0, 3), np.float32),
    "decoder/scale": np.array([0.5, -0.25], np.float32),
}


def written(tmp_path: Path) -> Path:
    return write_ctranslate2(tmp_path / "model.bin", ARRAYS, aliases={"decoder/again": "decoder/scale"})


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as refused:
        read_ctranslate2(path)
    return str(refused.value)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    model = read_ctranslate2(written(tmp_path))
    assert (model.spec, model.revision) == ("WhisperSpec", 3)
    assert model.variables.keys() == {*ARRAYS, "decoder/again"}
    for name, array in ARRAYS.items():
        read = model.variables[name]
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read, array)
    np.testing.assert_array_equal(model.variables["decoder/again"], ARRAYS["decoder/scale"])


def test_arrays_are_views_of_the_file_that_cannot_change_it(tmp_path: Path) -> None:
    array = read_ctranslate2(written(tmp_path)).variables["decoder/scale"]
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, share: float) -> None:
    whole = written(tmp_path).read_bytes()
    cut = tmp_path / "cut.bin"
    cut.write_bytes(whole[: int(share * len(whole))])
    assert str(cut) in refusal(cut)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda b: b + b"\0\0", "2 bytes more than it lists"),
        (lambda b: b"PK\3\4" + b[4:], "no CTranslate2 file of binary version 6: it begins with 67324752"),
        (lambda b: b.replace(name_bytes("encoder/ids"), name_bytes("encoder/ids")[:-1] + b"x"), "no name but"),
        (lambda b: b.replace(b"encoder/ids", b"encoder/\xffds"), "no name but"),
        (lambda b: b.replace(b"decoder/scale", b"decoder/other", 1), "an alias decoder/again of decoder/scale"),
        (lambda b: b.replace(b"decoder/again", b"decoder/scale", 1), "the name decoder/scale twice"),
        (
            lambda b: b.replace(
                name_bytes("encoder/bytes") + struct.pack("<BIB", 1, 2, 1),
                name_bytes("encoder/bytes") + struct.pack("<BIB", 1, 2, 5),
            ),
            "encoder/bytes of the unknown type 5",
        ),
        (
            lambda b: b.replace(
                name_bytes("encoder/bytes") + struct.pack("<BI", 1, 2),
                name_bytes("encoder/bytes") + struct.pack("<BI", 1, 4_000_000_000),
            ),
            "encoder/bytes of shape [4000000000] in 2 bytes instead of 4000000000",
        ),
        (
            lambda b: b.replace(
                name_bytes("encoder/bytes") + struct.pack("<B", 1),
                name_bytes("encoder/bytes") + struct.pack("<B", 200),
            ),
            "encoder/bytes with 200 dimensions",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, change, told: str) -> None:  # type: ignore[no-untyped-def]
    path = written(tmp_path)
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    assert told in refusal(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    assert "check the path" in refusal(tmp_path / "none.bin")
    (tmp_path / "empty.bin").touch()
    assert "cannot be read" in refusal(tmp_path / "empty.bin")
