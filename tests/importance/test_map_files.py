"""Maps on disk: nothing is lost, damage is named, the published schema is the present one."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.importance.example_map import example_map, layer_names
from tests.store.bad_disks import CountingDisk, Killed
from woodshed.errors import StoreError
from woodshed.importance.belief import Scored
from woodshed.importance.fisher_map import FisherMap
from woodshed.importance.layers import LayerShape
from woodshed.importance.map_files import (
    map_to_json,
    notes_on,
    read_map,
    schema,
    schema2_fields,
    side_step_hash,
    write_map,
)
from woodshed.importance.sidestep_rule import sidestep_ranks

ROOT = Path(__file__).parents[2]
GENUINE = ROOT / "tests" / "golden" / "sidestep" / "fisher_map_tiny_balanced.json"
THEIRS: dict[str, Any] = json.loads(GENUINE.read_text())


def written(content: Any, folder: Path) -> Path:
    path = folder / "fisher_map.json"
    path.write_text(json.dumps(content))
    return path


def through(content: Any, folder: Path) -> str:
    """Read and written again, as text, so that order of keys and kinds of numbers count."""
    return json.dumps(json.loads(map_to_json(read_map(written(content, folder)))))


def test_a_map_of_side_step_loses_nothing(tmp_path: Path) -> None:
    assert through(THEIRS, tmp_path) == json.dumps(THEIRS)
    assert read_map(GENUINE).woodshed is None


def test_unknown_keys_any_order_and_whole_numbers_are_kept(tmp_path: Path) -> None:
    content: dict[str, Any] = {"later": {"b": 1, "a": [1.0, 2, None]}}
    for key, value in reversed(THEIRS.items()):
        content |= {key: value, f"before_{key}": {"z": 1, "a": 2}}
    content["rank_budget"] = {"max": 128, "step": None, "min": 16}
    content["timestep_range"] = [0, 1]
    content["modules"] = [{"since": 3, **module, "fisher_score": 1} for module in THEIRS["modules"]]
    assert through(content, tmp_path) == json.dumps(content)


@pytest.mark.parametrize(
    "key", ["timestep_params", "excluded_modules", "sample_coverage", "num_hidden_layers", "version"]
)
def test_what_is_absent_stays_absent(key: str, tmp_path: Path) -> None:
    content = {name: value for name, value in THEIRS.items() if name != key}
    assert through(content, tmp_path) == json.dumps(content)


def test_a_map_of_ours_is_read_as_it_was_and_written_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "fisher_map.json"
    whole = example_map()
    write_map(path, whole)
    assert read_map(path) == whole
    assert map_to_json(read_map(path)) == path.read_bytes() == map_to_json(whole)
    assert path.read_bytes().endswith(b"}\n")
    assert json.loads(path.read_bytes())["modules"][0]["fisher_score"] == whole.modules[0].fisher_score


def test_what_is_not_known_is_null_in_the_file_and_infinite_in_memory(tmp_path: Path) -> None:
    content = example_map().model_dump()
    signal = content["woodshed"]["layers"][0]["profiles"]["balanced"]["signal"]
    signal |= {"low": -math.inf, "high": math.inf, "relative_se": math.inf}
    content["woodshed"]["convergence"]["relative_se"][0] = math.inf
    path, whole = tmp_path / "fisher_map.json", FisherMap.model_validate(content)
    write_map(path, whole)
    assert json.loads(path.read_bytes())["woodshed"]["convergence"]["relative_se"][0] is None
    assert read_map(path) == whole


def test_a_number_that_json_cannot_hold_is_named(tmp_path: Path) -> None:
    content = example_map().model_dump()
    content["woodshed"]["layers"][3]["spectrum"][1] = math.nan
    with pytest.raises(StoreError, match=r"no number for woodshed.layers\[3\].spectrum\[1\] \(try: measure again"):
        write_map(tmp_path / "fisher_map.json", FisherMap.model_validate(content))
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    content = THEIRS | {"sample_coverage": [{"selected_files": ["\udcff.pt", "läut.pt"]}]}
    assert through(content, tmp_path) == json.dumps(content)


def test_a_crash_leaves_the_old_map_or_the_new_one(tmp_path: Path) -> None:
    path, new = tmp_path / "fisher_map.json", example_map(seed=1)
    for survived in range(4):
        write_map(path, example_map())
        old = path.read_bytes()
        with pytest.raises(Killed):
            write_map(path, new, disk=CountingDisk(survived))
        assert path.read_bytes() in (old, map_to_json(new))
    write_map(path, new)
    assert path.read_bytes() == map_to_json(new)


def test_a_link_keeps_leading_to_the_map(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("real.json")
    write_map(tmp_path / "link.json", example_map())
    assert (tmp_path / "link.json").is_symlink()
    assert read_map(tmp_path / "real.json") == example_map()


def refused(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        read_map(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint is not None
    return str(caught.value).replace(str(path), "MAP")


def test_a_missing_map_a_folder_and_what_is_no_json_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fisher_map.json"
    assert refused(path) == "there is no map MAP (try: make it anew with `woodshed analyze`)"
    assert "cannot read the map MAP: Is a directory" in refused(tmp_path)
    for content, said in (
        (b'{"version": 2,', "the map MAP is damaged: Expecting property name"),
        (b"", "the map MAP is damaged: Expecting value"),
        (b"\xff\xfe", "cannot read the map MAP: it is not UTF-8 text"),
        (b"[1, 2]", "the map MAP holds a list, a JSON object was expected"),
        (b"3", "the map MAP holds a number"),
        (b"null", "the map MAP holds null"),
        (b'{"version": NaN}', "the map MAP is damaged: it holds NaN, which is no finite number"),
        (b'{"version": 1e999}', "it holds 1e999, which is no finite number"),
        (b"[" * 100_000, "the map MAP is damaged"),
    ):
        path.write_bytes(content)
        assert said in refused(path)


@pytest.mark.parametrize("key", ["target_modules", "rank_pattern", "alpha_pattern", "modules", "rank_budget"])
def test_a_missing_field_is_named(key: str, tmp_path: Path) -> None:
    path = written({name: value for name, value in THEIRS.items() if name != key}, tmp_path)
    assert f"the map MAP is damaged: {key} is missing" in refused(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank_pattern": {"a": "64"}}, "rank_pattern.a: Input should be a valid integer"),
        ({"rank_pattern": {"a": True}}, "rank_pattern.a: Input should be a valid integer"),
        ({"rank_pattern": [["a", 64]]}, "rank_pattern: Input should be a valid dictionary"),
        ({"modules": [{"name": "a"}]}, "modules.0.fisher_score is missing"),
        ({"target_modules": "q_proj"}, "target_modules: Input should be a valid list"),
        ({"rank_budget": {"min": 16}}, "rank_budget.max is missing"),
        ({"version": "2"}, "version: Input should be a valid integer"),
        ({"woodshed": 5}, "woodshed: Input should be"),
        ({"woodshed": {}}, "and "),
    ],
)
def test_a_wrong_type_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refused(written(THEIRS | change, tmp_path))


def test_a_newer_map_is_refused_and_an_older_one_is_read_with_a_note(tmp_path: Path) -> None:
    newer = refused(written(THEIRS | {"version": 3}, tmp_path))
    assert "the map MAP says version 3, and this Woodshed knows 2 at most (try: update Woodshed" in newer
    ours = json.loads(map_to_json(example_map()))
    ours["woodshed"]["format"] = 2
    assert "says woodshed.format 2, and this Woodshed knows 1" in refused(written(ours, tmp_path))
    older = read_map(written(THEIRS | {"version": 1}, tmp_path))
    assert notes_on(older) == (
        "the map is of version 1, 2 is the present one: better make it anew with `woodshed analyze`",
    )
    assert notes_on(read_map(GENUINE)) == ()


def test_whatever_is_wrong_with_a_map_it_is_read_or_refused(tmp_path: Path) -> None:
    @settings(deadline=None)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        content = damaged(data)
        path = written(content, tmp_path)
        try:
            found = read_map(path)
        except StoreError:
            return
        kept = json.loads(map_to_json(found))
        assert kept | {"woodshed": None} == content | {"woodshed": None}

    holds()


def damaged(data: st.DataObject) -> Any:
    content = json.loads(map_to_json(example_map(num_blocks=1, num_songs=2)))
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = content
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
                junk = [None, True, -1, 1.5, "", "x", [], {}, [None], {"a": 1}, 10**30]
                place[key] = copy.deepcopy(data.draw(st.sampled_from(junk)))
                break
            place = place[key]
    return content


def test_the_published_schema_is_the_present_one() -> None:
    assert json.loads((ROOT / "docs" / "fisher_map.schema.json").read_text()) == schema()


def test_maps_of_both_tools_are_valid_and_broken_ones_are_not() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    ours = json.loads(map_to_json(example_map()))
    ours["woodshed"]["layers"][0]["profiles"]["balanced"]["signal"]["relative_se"] = None
    validator.validate(ours)
    validator.validate(THEIRS)
    for broken in (
        {name: value for name, value in ours.items() if name != "rank_pattern"},
        ours | {"rank_pattern": {"a": "64"}},
        ours | {"woodshed": ours["woodshed"] | {"layers": [{"name": "a"}]}},
    ):
        assert list(validator.iter_errors(broken))


def shapes(names: list[str]) -> list[LayerShape]:
    return [
        LayerShape(name=name, category="x", d_out=64, d_in=64, num_weights=4096, adaptable="norm" not in name)
        for name in names
    ]


def test_schema_2_says_who_gets_what_in_the_order_of_scores() -> None:
    names = [*layer_names(2), "layers.0.mlp.norm"]
    ranks = {name: 16 + 8 * index for index, name in enumerate(names[:22])}
    scores = {name: Scored((index * 7 % 22 + 1) / 3e8, 0.25) for index, name in enumerate(names)}
    fields = schema2_fields(
        shapes(names), ranks, {name: 1.5 * rank for name, rank in ranks.items()}, scores, effective_ranks={names[0]: 9}
    )
    whole = FisherMap.model_validate(THEIRS | fields)
    falling = sorted(ranks, key=lambda name: -scores[name].value)
    assert list(whole.rank_pattern) == list(whole.alpha_pattern) == falling
    assert [module.name for module in whole.modules] == [f"decoder.{name}" for name in falling]
    assert whole.rank_pattern == ranks
    assert json.dumps(whole.alpha_pattern[names[0]]) == "24"
    assert json.dumps(schema2_fields(shapes(names[:1]), {names[0]: 1}, {names[0]: 0.5}, {})["alpha_pattern"]) == (
        '{"layers.0.self_attn.q_proj": 0.5}'
    )
    first = next(module for module in whole.modules if module.name == f"decoder.{names[0]}")
    assert (first.fisher_score, first.fisher_cross_run_std) == (1 / 3e8, 0.25 / 3e8)
    assert (first.effective_rank, first.assigned_rank, whole.num_hidden_layers) == (9, 16, 2)
    assert whole.excluded_modules == []
    assert whole.target_modules == sorted({name.split(".", 2)[2] for name in names[:22]})


def test_an_ending_of_an_excluded_layer_gives_way_to_full_names() -> None:
    names = layer_names(2)
    ranks = {name: 16 for name in names if name != "layers.1.mlp.up_proj"}
    alphas = dict.fromkeys(ranks, 32.0)
    fields = schema2_fields(shapes(names), ranks, alphas, {})
    assert fields["excluded_modules"] == ["decoder.layers.1.mlp.up_proj"]
    assert "layers.0.mlp.up_proj" in fields["target_modules"]
    assert "mlp.up_proj" not in fields["target_modules"]
    assert "mlp.down_proj" in fields["target_modules"]
    theirs = schema2_fields(shapes(names), ranks, alphas, {}, as_side_step=True)
    assert theirs["target_modules"] == sidestep_ranks(dict.fromkeys(ranks, 1.0), {}, coverage=1.0).target_modules


def test_other_models_keep_their_names() -> None:
    names = ["encoder.layers.0.fc1", "decoder.layers.0.fc1"]
    fields = schema2_fields(shapes(names), {names[0]: 8}, {names[0]: 16.0}, {})
    assert fields["rank_pattern"] == {"encoder.layers.0.fc1": 8}
    assert fields["target_modules"] == ["encoder.layers.0.fc1"]
    assert fields["excluded_modules"] == ["decoder.layers.0.fc1"]
    assert "num_hidden_layers" not in fields


def test_the_hash_of_the_data_is_side_steps(tmp_path: Path) -> None:
    # The known answers are Side-Step's own, of these files and of an empty folder.
    assert side_step_hash(tmp_path) == "d41d8cd98f00"
    for name, size in (("b.pt", 3), ("a.tmp.pt", 0), ("a b.pt", 12), ("note.txt", 5)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "folder.pt").mkdir()
    assert side_step_hash(tmp_path) == "d922399e7cd1"
