"""`woodshed songs`, killed with SIGKILL at random moments, ends in the tree of an undisturbed run, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.conftest import tree
from tests.jobs.songs_fixtures import SIDECAR, checkpoint, make_songs, write_song
from tests.jobs.test_resume import killed

LAYOUTS = ("shards", "sidestep")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model"))[0]


def order(folder: Path, model: Path, songs: Path, layout: str, *, kills: int, **more: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--audio-dir", str(songs), "--checkpoint-dir", str(model), "--layout", layout, "--device", "cpu"]
    plain = {"words": ["songs"], "flags": [*flags, "--num-workers", "2"], "output_flag": "--output"}
    end = {"output": str(folder / "out"), "undisturbed": str(folder / "undisturbed"), "start": None, "codes": [3]}
    return {**plain, **end, "kills": kills, "seed": 0, "in_planning": False, **more}


def more_songs(folder: Path, count: int) -> Path:
    for number in range(count):
        path = write_song(folder / f"album {number % 3}" / f"{number:02d}.wav", 0.3 + 0.13 * (number % 7), seed=number)
        path.with_suffix(".txt").write_text(SIDECAR.replace("piano", f"piano, take {number}"))
    return folder


def test_a_few_kills(tmp_path: Path, model: Path) -> None:
    songs = more_songs(make_songs(tmp_path / "songs"), 4)
    killed(*(order(tmp_path / layout, model, songs, layout, kills=2) for layout in LAYOUTS))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_thirty_kills(tmp_path: Path, model: Path, layout: str) -> None:
    songs = more_songs(make_songs(tmp_path / "songs"), 30)
    (report,) = killed(order(tmp_path, model, songs, layout, kills=30, seed=1))
    assert len(report["phases"]) >= 3, "the kills are spread over the run's life"


@pytest.mark.parametrize("layout", ["shards", pytest.param("sidestep", marks=pytest.mark.slow)])
def test_kills_while_captions_and_songs_change(tmp_path: Path, model: Path, layout: str) -> None:
    songs = more_songs(make_songs(tmp_path / "songs"), 6)
    other = shutil.copytree(songs, tmp_path / "other" / "songs")
    (other / "album 1" / "01.txt").write_text(SIDECAR.replace("piano", "organ"))
    write_song(other / "album 2" / "02.wav", 0.9, seed=77)
    (other / "odd.txt").write_text("caption: not so odd any more\n")
    (other / "album 0" / "03.wav").unlink()
    write_song(other / "new.wav", 0.5, seed=78)
    first = order(tmp_path / "first", model, songs, layout, kills=0)
    start = Path(first["undisturbed"])
    second = order(tmp_path / "second", model, other, layout, kills=2, start=str(start), seed=2)
    killed(first, second)
    assert tree(start) != tree(Path(second["undisturbed"]))
