"""From songs to a map of ACE-Step, on a tiny model of the true classes; and what songs are held against."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from tests.encoders.acestep.tiny_acestep import build_acestep, save_upstream
from tests.jobs.analyze_fixtures import analyze, scores
from tests.jobs.songs_fixtures import SIDECAR, prepare, write_song
from woodshed.backends.acestep import load_acestep
from woodshed.errors import UsageError
from woodshed.importance.fisher_map import FisherMap
from woodshed.importance.map_files import read_map

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/fisher_map.schema.json").read_text())
LAYOUTS = ("shards", "sidestep")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_upstream(build_acestep(), tmp_path_factory.mktemp("acestep"))
    return save_upstream_variant(folder, "turbo")


def save_upstream_variant(folder: Path, variant: str) -> Path:
    """A second model beside the first, as ACE-Step's own folders have it."""
    save_upstream(build_acestep(variant=variant), folder / "apart", variant=variant)
    (folder / "apart" / f"acestep-v15-{variant}").rename(folder / f"acestep-v15-{variant}")
    return folder


@pytest.fixture(scope="module")
def prepared(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same four songs, in both layouts."""
    songs = tmp_path_factory.mktemp("songs")
    for number, instrument in enumerate(("piano", "organ", "harp", "tuba")):
        path = write_song(songs / f"{instrument}.wav", 1.0 + 0.3 * number, seed=number)
        path.with_suffix(".txt").write_text(SIDECAR.replace("piano", instrument))
    made = {layout: songs.with_name(f"{songs.name}-{layout}") for layout in LAYOUTS}
    for layout, folder in made.items():
        prepare(songs, folder, checkpoint, layout=layout, model="base")
    return made


def analysed(folder: Path, checkpoint: Path, output: Path, **more: Any) -> FisherMap:
    given = {"backend": "acestep", "checkpoint_dir": str(checkpoint), "model": "base", "runs": 4, "rank_max": 16}
    report = analyze(folder, output=output, **given | more)
    assert report.exit_code == 0
    return report.map


@pytest.mark.parametrize("layout", LAYOUTS)
def test_songs_become_a_map_that_side_step_reads(
    layout: str, prepared: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    made = analysed(prepared[layout], checkpoint, tmp_path / "map.json")
    content = json.loads((tmp_path / "map.json").read_text())
    jsonschema.validate(content, SCHEMA)
    layers = list(load_acestep(str(checkpoint), variant="base", device="cpu").layers())
    assert len(layers) == 2 * 11
    assert "layers.0.self_attn.q_proj" in layers
    assert set(content["rank_pattern"]) == set(layers)
    # What Side-Step's reader asks for and compares.
    assert (content["version"], content["model_variant"], content["num_hidden_layers"]) == (2, "base", 2)
    assert content["timestep_params"]["mu"] == pytest.approx(-0.4)
    assert set(content["target_modules"]) == {name.split(".", 2)[2] for name in layers}
    assert {row["name"] for row in content["modules"]} == {f"decoder.{name}" for name in layers}
    assert all(row["assigned_rank"] == content["rank_pattern"][row["name"][8:]] for row in content["modules"])
    assert made.woodshed is not None
    assert made.woodshed.num_items == 4


def test_the_hash_of_a_pt_folder_is_side_steps_own(prepared: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    folder = prepared["sidestep"]
    made = analysed(folder, checkpoint, tmp_path / "map.json", runs=1)
    told = "|".join(sorted(f"{path.name}:{path.stat().st_size}" for path in folder.glob("*.pt")))
    assert made.dataset_hash == hashlib.md5(told.encode()).hexdigest()[:12]
    assert analysed(prepared["shards"], checkpoint, tmp_path / "b.json", runs=1).dataset_hash != made.dataset_hash


def test_the_digest_of_data_follows_its_content(prepared: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    """Side-Step's hash sees names and sizes only: here a song is changed without either."""
    folder = tmp_path / "songs"
    folder.mkdir()
    for path in prepared["sidestep"].glob("*.pt"):
        (folder / path.name).write_bytes(path.read_bytes())
    before = analysed(folder, checkpoint, tmp_path / "a.json", runs=1)
    changed = sorted(folder.glob("*.pt"))[0]
    song = torch.load(changed, weights_only=True)
    song["target_latents"] = song["target_latents"].flip(0).contiguous()
    torch.save(song, changed)
    after = analysed(folder, checkpoint, tmp_path / "b.json", runs=1)
    assert before.woodshed is not None
    assert after.woodshed is not None
    assert before.woodshed.data_digest != after.woodshed.data_digest


def test_turbo_goes_on_when_it_is_accepted(prepared: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--accept-turbo"):
        analysed(prepared["shards"], checkpoint, tmp_path / "map.json", model="turbo")
    made = analysed(prepared["shards"], checkpoint, tmp_path / "map.json", model="turbo", accept_turbo=True, runs=1)
    assert made.model_variant == "turbo"


@pytest.mark.parametrize("reference", ["silence", "permuted", "folder"])
def test_what_the_data_is_held_against(
    reference: str, prepared: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    given = str(prepared["sidestep"]) if reference == "folder" else reference
    made = analysed(prepared["shards"], checkpoint, tmp_path / "map.json", reference=given).woodshed
    assert made is not None
    assert made.reference is not None
    assert made.reference.kind == (prepared["sidestep"].name if reference == "folder" else reference)
    assert made.reference.num_items == 4
    assert (made.reference.digest is not None) == (reference == "folder")
    assert 0 < made.reference.p_value <= 1
    assert all(layer.profiles["balanced"].contrast is not None for layer in made.layers)
    assert all(layer.profiles["uniform"].contrast is None for layer in made.layers)
    if reference == "folder":
        assert not made.reference.is_specific, "the reference is the same songs"
    plain = analysed(prepared["shards"], checkpoint, tmp_path / "plain.json")
    assert scores(plain) == scores(read_map(tmp_path / "map.json")), "a reference changes no score"


def test_songs_with_equal_words_cannot_be_permuted(checkpoint: Path, tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    for number in range(2):
        path = write_song(songs / f"take {number}.wav", 1.0, seed=number)
        path.with_suffix(".txt").write_text(SIDECAR)
    prepare(songs, tmp_path / "out", checkpoint, model="base")
    with pytest.raises(UsageError, match="all songs have the same words"):
        analysed(tmp_path / "out", checkpoint, tmp_path / "map.json", reference="permuted")
    (songs / "take 1.wav").unlink()
    prepare(songs, tmp_path / "one", checkpoint, model="base")
    with pytest.raises(UsageError, match="needs at least two songs"):
        analysed(tmp_path / "one", checkpoint, tmp_path / "map.json", reference="permuted")


def test_a_map_says_which_weights_it_is_of(prepared: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    other = save_upstream(build_acestep(seed=5), tmp_path / "other")
    maps = [
        analysed(prepared["shards"], each, tmp_path / f"{number}.json", runs=1).woodshed
        for number, each in enumerate((checkpoint, other))
    ]
    assert maps[0] is not None
    assert maps[1] is not None
    assert maps[0].weights_digest != maps[1].weights_digest
    assert maps[0].data_digest == maps[1].data_digest
