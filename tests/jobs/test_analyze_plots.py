"""Claims about the pictures of a map."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.importance.example_map import SHAPES, example_map, layer_names
from woodshed.errors import StoreError
from woodshed.importance.fisher_map import FisherMap
from woodshed.jobs.analyze_plots import draw_plots

NAMES = ("ranks", "scores", "timesteps", "layers")


def texts(svg: Path) -> Counter[str]:
    """What is written in a picture: matplotlib names each text in a comment beside its outlines."""
    ElementTree.fromstring(svg.read_text())
    return Counter(re.findall(r"<!-- (.*?) -->", svg.read_text()))


def png_size(path: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width, height


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plots") / "not" / "there yet"
    files = draw_plots(example_map(), folder)
    assert files == tuple(folder / f"{name}.{kind}" for name in NAMES for kind in ("png", "svg"))
    assert sorted(folder.iterdir()) == sorted(files), "nothing temporary is left"
    return folder


def test_every_rank_stands_in_its_cell(drawn: Path) -> None:
    ranks = Counter(example_map().rank_pattern.values())
    found = texts(drawn / "ranks.svg")
    # The colour bar has numbers of its own.
    assert all(found[str(rank)] >= count for rank, count in ranks.items())
    assert all(found[projection] == 1 for projection in SHAPES)
    assert found["block (layers.N)"] == 1


def test_every_layer_stands_in_the_ranking_with_its_rank(drawn: Path) -> None:
    found = "\n".join(texts(drawn / "layers.svg"))
    for name, rank in example_map().rank_pattern.items():
        assert re.search(rf"^{re.escape(name)}\s+{rank}$", found, flags=re.MULTILINE)


def test_each_projection_has_its_timesteps(drawn: Path) -> None:
    found = texts(drawn / "timesteps.svg")
    assert all(found[projection] == 1 for projection in SHAPES)
    assert found["timestep (0 data, 1 noise)"] == min(4, len(SHAPES))
    assert any("grey: no draws" in text for text in found)


def test_the_same_map_gives_the_same_bytes_whatever_the_user_likes(drawn: Path, tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 20.0, "image.cmap": "jet", "svg.hashsalt": None}):
        liked = dict(matplotlib.rcParams)
        draw_plots(example_map(), tmp_path)
        assert dict(matplotlib.rcParams) == liked
    for name in NAMES:
        for kind in ("png", "svg"):
            assert (tmp_path / f"{name}.{kind}").read_bytes() == (drawn / f"{name}.{kind}").read_bytes()


@pytest.mark.slow
def test_the_largest_model_fits_a_picture_that_programs_open(tmp_path: Path) -> None:
    draw_plots(example_map(num_blocks=32), tmp_path)
    for name in NAMES:
        assert max(png_size(tmp_path / f"{name}.png")) < 4096
    assert sum(text.startswith("layers.") for text in texts(tmp_path / "layers.svg")) == 352


def test_a_map_of_side_step_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    theirs = example_map().model_copy(update={"woodshed": None, "excluded_modules": ["decoder.layers.4.mlp.up_proj"]})
    files = draw_plots(theirs, tmp_path)
    assert [path.stem for path in files[::2]] == ["ranks", "scores", "layers"]
    assert "90 %" not in " ".join(texts(tmp_path / "layers.svg"))
    assert texts(tmp_path / "ranks.svg")["-"] == 1


def test_a_loss_without_noise_has_no_timesteps_to_draw(tmp_path: Path) -> None:
    whole = example_map(num_blocks=1)
    assert whole.woodshed is not None
    files = draw_plots(whole.model_copy(update={"woodshed": whole.woodshed.model_copy(update={"trace": {}})}), tmp_path)
    assert [path.stem for path in files[::2]] == ["ranks", "scores", "layers"]
    assert "timesteps" not in " ".join(texts(tmp_path / "ranks.svg"))


def test_a_map_without_layers_is_no_picture(tmp_path: Path) -> None:
    assert draw_plots(example_map().model_copy(update={"woodshed": None, "modules": []}), tmp_path) == ()


@pytest.mark.parametrize("strange", ["$x_{", "a\x1b[31mb", "<svg>", "layers.0.--.x"])
def test_strange_names_are_drawn_as_they_are(strange: str, tmp_path: Path) -> None:
    whole = example_map(num_blocks=1).model_copy(update={"woodshed": None, "model_variant": strange})
    modules = [whole.modules[0].model_copy(update={"name": strange}), *whole.modules[1:]]
    draw_plots(whole.model_copy(update={"modules": modules}), tmp_path)
    assert "\x1b" not in (tmp_path / "ranks.svg").read_text()


def test_scores_far_apart_stay_on_the_page(tmp_path: Path) -> None:
    whole = example_map(num_blocks=2, planted={layer_names()[0]: 1e-9, layer_names()[1]: 1e9}, relative_se=3.0)
    draw_plots(whole, tmp_path)
    assert max(png_size(tmp_path / "layers.png")) < 4096


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("mine")
    with pytest.raises(StoreError, match=r"cannot create the folder .*plots"):
        draw_plots(example_map(num_blocks=1), tmp_path / "plots")


def test_without_matplotlib_the_name_of_what_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        draw_plots(example_map(num_blocks=1), tmp_path)
    assert (caught.value.name or "").partition(".")[0] == "matplotlib", "doctor's table of extras goes by it"


def test_matplotlib_is_loaded_by_drawing_only() -> None:
    code = "import sys, woodshed.jobs.analyze_plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_layer_is_enough(tmp_path: Path) -> None:
    one: FisherMap = example_map(num_blocks=1)
    assert one.woodshed is not None
    part = one.woodshed.model_copy(update={"layers": one.woodshed.layers[:1]})
    assert len(draw_plots(one.model_copy(update={"woodshed": part}), tmp_path)) == 8
