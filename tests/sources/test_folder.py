"""Folders: order, names, links, what is left out, and what is said about what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.contracts import BadRow, Item
from woodshed.errors import UsageError
from woodshed.sources.folder import Root, read_folders
from woodshed.sources.open import open_source


def put(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def rows(folder: Path, **kwargs: object) -> list[Item | BadRow]:
    return list(open_source(str(folder), None, **kwargs).rows())  # type: ignore[arg-type]


def ids(folder: Path, **kwargs: object) -> list[str]:
    return [row.id for row in rows(folder, **kwargs)]


def test_finds_sounds_of_any_case_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path, "a.WAV", "b/c.Flac", "b/d/e.mp3", "b/x.wav", "c/x.wav", "notes.md", "b/cover.jpg", "wav", "z.g722")
    assert ids(tmp_path) == ["a.WAV", "b/c.Flac", "b/d/e.mp3", "b/x.wav", "c/x.wav", "z.g722"]


def test_rows_carry_size_time_and_paths_but_no_header(tmp_path: Path) -> None:
    put(tmp_path, "b/a.wav", content=b"12345")
    (item,) = rows(tmp_path)
    assert isinstance(item, Item)
    path = tmp_path / "b/a.wav"
    assert (item.path, item.relpath, item.size_bytes) == (str(path), "b/a.wav", 5)
    assert (item.mtime_ns, item.audio, item.meta) == (path.stat().st_mtime_ns, None, {})


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6).filter(
    lambda name: not name.startswith(".") and len(name.encode()) < 200
)


@settings(max_examples=30, deadline=None)
@given(st.sets(st.lists(names, min_size=1, max_size=3).map(lambda parts: "/".join(parts)), min_size=1, max_size=8))
def test_order_is_that_of_the_path_bytes_part_by_part(
    tmp_path_factory: pytest.TempPathFactory, stems: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("order")
    wanted = {f"{stem}.wav" for stem in stems}
    put(folder, *sorted(wanted))
    assert ids(folder) == sorted(wanted, key=lambda name: name.encode().split(b"/"))


def test_names_that_are_not_utf8_and_unnormalised_names_stay_as_they_are(tmp_path: Path) -> None:
    nfc, nfd = "caf\u00e9.wav", "cafe\u0301.wav"
    for name in (b"caf\xe9.wav", nfc.encode(), nfd.encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    found = rows(tmp_path)
    assert [os.fsencode(row.id) for row in found] == [nfd.encode(), nfc.encode(), b"caf\xe9.wav"]
    assert all(isinstance(row, Item) and Path(row.path).read_bytes() == b"x" for row in found)


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.wav", ".b.wav", "._a.wav", ".git/c.wav", "d/.e/f.wav")
    assert ids(tmp_path) == ["a.wav"]


def test_output_folders_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.wav", "out/.woodshed/run.json", "out/decoded/b.wav", "other/c.wav")
    assert ids(tmp_path) == ["a.wav", "other/c.wav"]
    assert ids(tmp_path, exclude=[str(tmp_path / "other")]) == ["a.wav"]


def test_the_input_may_not_lie_in_the_output_folder(tmp_path: Path) -> None:
    put(tmp_path, "in/a.wav")
    with pytest.raises(UsageError, match="lies in a folder that is left out, such as the output folder"):
        rows(tmp_path / "in", exclude=[str(tmp_path)])


def test_links_that_run_in_circles_end_and_are_reported(tmp_path: Path) -> None:
    put(tmp_path, "real/a.wav", "real/deep/b.wav")
    (tmp_path / "real/deep/up").symlink_to(tmp_path)
    (tmp_path / "real/me").symlink_to(tmp_path / "real")
    found = rows(tmp_path)
    assert [row.id for row in found if isinstance(row, Item)] == ["real/a.wav", "real/deep/b.wav"]
    bad = [row for row in found if isinstance(row, BadRow)]
    assert [(row.id, row.kind, row.skipped) for row in bad] == [
        ("real/deep/up/", "duplicate", True),
        ("real/me/", "duplicate", True),
    ]


def test_folders_outside_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path, "in/a.wav", "outside/b.wav", "outside/sub/c.wav", "in/.store/d.wav")
    (tmp_path / "in/one").symlink_to(tmp_path / "outside")
    (tmp_path / "in/two").symlink_to(tmp_path / "outside/sub")
    (tmp_path / "in/hidden").symlink_to(tmp_path / "in/.store")
    (tmp_path / "in/up").symlink_to(tmp_path)
    found = rows(tmp_path / "in")
    assert [row.id for row in found if isinstance(row, Item)] == ["a.wav", "hidden/d.wav", "one/b.wav", "one/sub/c.wav"]
    assert [row.id for row in found if isinstance(row, BadRow)] == ["two/", "up/"]


def test_linked_files_are_files_and_broken_links_are_failures(tmp_path: Path) -> None:
    put(tmp_path, "a.wav", content=b"abc")
    (tmp_path / "b.wav").symlink_to("a.wav")
    (tmp_path / "c.wav").symlink_to("nowhere.wav")
    os.mkfifo(tmp_path / "d.wav")
    _, link, broken, pipe = rows(tmp_path)
    assert isinstance(link, Item)
    assert link.size_bytes == 3
    assert isinstance(broken, BadRow)
    assert (broken.kind, broken.skipped) == ("missing", False)
    assert broken.reason == "'c.wav' does not exist, or is a link to nothing"
    assert isinstance(pipe, BadRow)
    assert pipe.reason == "'d.wav' is not a regular file"


def test_a_folder_that_cannot_be_read_is_a_row(tmp_path: Path) -> None:
    put(tmp_path, "a.wav", "z.wav")
    # Deeper than any path may be long: even root cannot open it by name.
    deep = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=deep)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    first, bad, last = rows(tmp_path)
    assert (first.id, last.id) == ("a.wav", "z.wav")
    assert isinstance(bad, BadRow)
    assert (bad.kind, bad.skipped) == ("unreadable_folder", False)
    assert bad.reason.endswith("cannot be read: File name too long")


def test_a_folder_without_permission_is_a_row(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    put(tmp_path, "a.wav", "shut/b.wav")
    (tmp_path / "shut").chmod(0)
    try:
        assert [row.id for row in rows(tmp_path)] == ["a.wav", "shut/"]
    finally:
        (tmp_path / "shut").chmod(0o700)


def test_no_sound_at_all_says_what_was_there(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "b.txt", "c.xyz", "d/noise")
    with pytest.raises(UsageError) as caught:
        rows(tmp_path)
    assert "saw only 2 .txt, 1 .xyz, 1 without suffix; sounds end in" in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="saw no files"):
        rows(tmp_path / "empty")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_file_that_two_roots_lead_to_is_a_row_of_the_first(tmp_path: Path, order: tuple[int, int]) -> None:
    put(tmp_path, "a.wav", "sub/b.wav")
    both = [Root(path=str(tmp_path), label="all"), Root(path=str(tmp_path / "sub"), label="part")]
    found = list(read_folders([both[i] for i in order]))
    shared = ("all/sub/b.wav", "part/b.wav")
    first, second = (shared[i] for i in order)
    assert {row.id for row in found if isinstance(row, Item)} == {"all/a.wav", first}
    (double,) = [row for row in found if isinstance(row, BadRow)]
    assert (double.id, double.kind, double.skipped) == (second, "duplicate", True)
    assert double.reason == f"is the same file as {first!r}"


def test_sidecars_become_metadata(tmp_path: Path) -> None:
    put(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav", "a.b.wav")
    put(tmp_path, "a.txt", content=b"\xef\xbb\xbfa bell\n")
    put(tmp_path, "b.json", content=b'{"caption": "rain", "bpm": 90}')
    put(tmp_path, "c.txt", content=b"from txt")
    put(tmp_path, "c.json", content=b'{"prompt": "from json", "key": "C"}')
    put(tmp_path, "a.b.TXT", content=b"two dots")
    found = {row.id: row.meta for row in rows(tmp_path) if isinstance(row, Item)}
    assert found == {
        "a.b.wav": {"prompt": "two dots"},
        "a.wav": {"prompt": "a bell"},
        "b.wav": {"caption": "rain", "bpm": 90, "prompt": "rain"},
        "c.wav": {"prompt": "from json", "key": "C"},
        "d.wav": {},
    }
    put(tmp_path, "a.txt", content=b"a gong")
    assert {row.id: row.meta for row in rows(tmp_path) if isinstance(row, Item)}["a.wav"] == {"prompt": "a gong"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b'{"x": 1', "sidecar 'a.json' is not valid JSON"),
        ("a.json", b"[1, 2]", "sidecar 'a.json' holds a JSON list, not an object"),
        ("a.json", b'{"x": NaN}', "NaN is not a JSON value"),
        ("a.json", b"[" * 100_000, "sidecar 'a.json' is not valid JSON"),
        ("a.txt", b"caf\xe9", "sidecar 'a.txt' is not UTF-8 (byte 3) (try: save it as UTF-8)"),
        ("a.txt", b"x" * (4 * 2**20 + 1), "sidecar 'a.txt' is larger than 4 MiB"),
    ],
)
def test_a_bad_sidecar_is_a_failure_with_its_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    put(tmp_path, "a.wav")
    put(tmp_path, name, content=content)
    (bad,) = rows(tmp_path)
    assert isinstance(bad, BadRow)
    assert (bad.id, bad.kind) == ("a.wav", "bad_sidecar")
    assert reason in bad.reason
