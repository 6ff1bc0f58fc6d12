"""Any id becomes a safe name; no two share one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.errors import StoreError
from woodshed.store.names import LONGEST_NAME_BYTES, checked_relpath, safe_name

texts = st.text(st.characters(), max_size=300) | st.text("aA~%./\\ \udce9ß", max_size=6)


@settings(max_examples=300, deadline=None)
@given(one=texts, other=texts)
def test_names_are_safe_and_differ_where_case_does_not_count(one: str, other: str) -> None:
    name = safe_name(one)
    assert re.fullmatch(r"[a-z0-9_~%-][a-z0-9._~%-]*", name)
    assert not name.endswith(".")
    assert len(name) <= LONGEST_NAME_BYTES
    assert name.split(".")[0] not in {"con", "nul", "aux", "prn", "com1", "lpt9"}
    if one != other:
        assert name.lower() != safe_name(other).lower()
    if re.fullmatch(r"[a-z_-][a-z0-9_-]{3,190}", one):
        assert name == one


def test_long_ids_differ_in_their_tail() -> None:
    assert safe_name("x" * 500 + "a") != safe_name("x" * 500 + "b")
    assert len(safe_name("\N{SNOWMAN}" * 100)) == LONGEST_NAME_BYTES


@pytest.mark.parametrize("path", ["/etc/passwd", "../a", "a/../b", "a//b", "", "./a", "a\\b", "a\0", ".woodshed/x"])
def test_paths_that_leave_the_folder_are_refused(path: str) -> None:
    with pytest.raises(StoreError, match="no file name inside an output folder"):
        checked_relpath(path)
