from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.config.compose import compose
from woodshed.config.dump import as_yaml, literal
from woodshed.errors import UsageError
from woodshed.jobs.settings import EncodeSettings

SPEC_BASE = """\
# config/pre_encode/base.yaml
defaults:
  - _self_
  - model: ???
  - dataset: ???

# Model configuration
model_config_path: null
ckpt_path: null

# Dataset configuration
dataset_config_path: ???
output_path: ???

# Processing parameters
batch_size: 1
sample_size: 1320960
num_workers: 4
shuffle: false

# Model options
model_half: false
is_discrete: false

# Distributed processing
num_nodes: 1
strategy: "auto"
limit_batches: null
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The spec's base tree, with groups of the user's own, in a folder whose name needs care."""
    root = tmp_path / "my conf (1)"
    for group in ("model", "dataset"):
        (root / group).mkdir(parents=True)
    (root / "base.yaml").write_text(SPEC_BASE)
    (root / "model" / "vae.yaml").write_text("model_config_path: m.json\nckpt_path: m.ckpt\nbatch_size: 3\n")
    (root / "dataset" / "local.yaml").write_text("dataset_config_path: d.json\n")
    return root


def composed(*overrides: str, config: Path | None = None, dirs: tuple[Path, ...] = (), **flags: Any) -> EncodeSettings:
    return compose(EncodeSettings, flags=flags, config=config, config_dirs=dirs, overrides=overrides)


def refusal(*overrides: str, config: Path | None = None, dirs: tuple[Path, ...] = (), **flags: Any) -> str:
    with pytest.raises(UsageError) as caught:
        composed(*overrides, config=config, dirs=dirs, **flags)
    return str(caught.value)


def test_the_specs_base_tree_works_as_written(tree: Path) -> None:
    made = composed("model=vae", "dataset=local", config=tree / "base.yaml", output_path="out")
    assert (made.model_config_path, made.ckpt_path) == (Path("m.json"), Path("m.ckpt"))
    assert (made.dataset_config_path, made.output_path) == (Path("d.json"), Path("out"))
    assert made.sample_size == 1_320_960


def test_a_group_wins_over_the_file_that_lists_it_and_an_override_over_both(tree: Path) -> None:
    groups = ("model=vae", "dataset=local")
    base = tree / "base.yaml"
    assert composed(*groups, config=base, output_path="o").batch_size == 3
    assert composed(*groups, "batch_size=7", config=base, output_path="o").batch_size == 7
    assert composed(*groups, "batch_size=7", config=base, output_path="o", batch_size=9).batch_size == 9


def test_a_file_that_lists_itself_last_wins_over_its_groups(tree: Path) -> None:
    (tree / "last.yaml").write_text("defaults:\n  - model: vae\n  - _self_\ninput: x\nbatch_size: 1\n")
    assert composed(config=tree / "last.yaml", output_path="o").batch_size == 1
    (tree / "silent.yaml").write_text("defaults:\n  - model: vae\ninput: x\nbatch_size: 1\n")
    assert composed(config=tree / "silent.yaml", output_path="o").batch_size == 1


def test_defaults_then_yaml_then_flags(tmp_path: Path) -> None:
    plain = tmp_path / "run.yaml"
    plain.write_text("input: x\nnum_workers: 2\nseed: 5\n")
    assert composed(input="x", output_path="o").num_workers == 4
    assert composed(config=plain, output_path="o").num_workers == 2
    made = composed(config=plain, output_path="o", num_workers=0)
    assert (made.num_workers, made.seed) == (0, 5)


def test_a_flag_may_set_back_what_yaml_says(tmp_path: Path) -> None:
    plain = tmp_path / "run.yaml"
    plain.write_text("input: x\nshuffle: true\n")
    assert composed(config=plain, output_path="o").shuffle
    assert not composed(config=plain, output_path="o", shuffle=False).shuffle


def test_groups_of_the_package_need_no_file(tmp_path: Path) -> None:
    made = composed("model=woodshed_tiny", "dataset=folder", "input=sounds", f"output_path={tmp_path}")
    assert (made.pretrained_name, made.input) == ("woodshed-tiny", Path("sounds"))


def test_a_plain_file_takes_groups(tmp_path: Path) -> None:
    plain = tmp_path / "run.yaml"
    plain.write_text("input: x\nbatch_size: 2\n")
    made = composed("model=checkpoint", config=plain, output_path="o", ckpt_path="c", model_config_path="m")
    assert (made.ckpt_path, made.batch_size) == (Path("c"), 2)


def test_config_dir_comes_before_the_files_own_folder(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "model").mkdir(parents=True)
    (other / "model" / "vae.yaml").write_text("pretrained_name: elsewhere\n")
    groups = ("model=vae", "dataset=local")
    assert composed(*groups, config=tree / "base.yaml", dirs=(other,), output_path="o").pretrained_name == "elsewhere"


def test_a_package_header_of_hydra_is_understood(tree: Path) -> None:
    (tree / "model" / "headed.yaml").write_text("# @package _global_\npretrained_name: mimi\n")
    made = composed("model=headed", "dataset=local", config=tree / "base.yaml", output_path="o")
    assert made.pretrained_name == "mimi"


def test_one_file_may_build_on_another(tree: Path) -> None:
    (tree / "mine.yaml").write_text(
        "defaults:\n  - base\n  - override model: vae\n  - override dataset: local\n  - _self_\nseed: 9\n"
    )
    made = composed(config=tree / "mine.yaml", output_path="o")
    assert (made.seed, made.ckpt_path) == (9, Path("m.ckpt"))


def test_interpolations_see_overrides_and_flags(tmp_path: Path) -> None:
    plain = tmp_path / "run.yaml"
    plain.write_text("input: ${output_path}/in\noutput_path: a\n")
    assert composed(config=plain).input == Path("a/in")
    assert composed("output_path=b", config=plain).input == Path("b/in")
    assert composed(config=plain, output_path="c").input == Path("c/in")


def test_text_of_a_flag_is_meant_as_it_stands(tmp_path: Path) -> None:
    made = composed("seed=1", input="${HOME}/???", output_path=r"a\${b}")
    assert (made.input, made.output_path) == (Path("${HOME}/???"), Path(r"a\${b}"))


def test_a_data_folder_called_like_a_setting_is_no_group(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "notes.yaml").write_text("a: 1\n")
    plain = tmp_path / "run.yaml"
    plain.write_text("output_path: o\n")
    assert composed("input=sounds", config=plain).input == Path("sounds")


def test_values_that_need_quotes(tmp_path: Path) -> None:
    said = refusal("input=/a/b (c)", output_path="o")
    assert said == "input=/a/b (c): not understood (try: put quotes around the value: 'input=\"/a/b (c)\"')"
    assert composed('input="/a/b (c)"', output_path="o").input == Path("/a/b (c)")


def test_flag_names_work_as_keys_of_overrides() -> None:
    made = composed("model_config=m", "ckpt_path=c", "dataset_config=d", "output_path=o")
    assert (made.model_config_path, made.dataset_config_path) == (Path("m"), Path("d"))


def test_a_choice_that_is_not_made(tree: Path) -> None:
    said = refusal("dataset=local", config=tree / "base.yaml", output_path="o")
    assert f"{tree / 'base.yaml'}: no choice is made for group 'model'" in said
    assert "(try: model=NAME with one of: checkpoint, vae, woodshed_tiny)" in said


def test_a_choice_that_is_not_there(tree: Path) -> None:
    said = refusal("model=vea", "dataset=local", config=tree / "base.yaml", output_path="o")
    assert "group 'model' has no 'vea' (try: model=NAME with one of: checkpoint, vae, woodshed_tiny)" in said


def test_an_unknown_override() -> None:
    assert "no setting or group is called 'bach_size' (try: did you mean batch_size?)" in refusal("bach_size=3")
    assert "no setting or group is called 'modle' (try: did you mean model?)" in refusal("modle=vae")
    assert "'loose' is neither a flag nor key=value" in refusal("loose")


@pytest.mark.parametrize("where", ["run.yaml", "model/odd.yaml"])
def test_an_unknown_key_names_its_file_and_the_closest_key(tree: Path, where: str) -> None:
    (tree / "run.yaml").write_text("input: x\n")
    file = tree / where
    file.write_text("nun_workers: 3\n")
    overrides = ("model=odd",) if "/" in where else ()
    said = refusal(*overrides, config=tree / "run.yaml", output_path="o")
    assert said == f"{file}: unknown setting 'nun_workers' (try: did you mean num_workers?)"


def test_what_must_be_given_is_asked_for(tree: Path) -> None:
    said = refusal("model=vae", "dataset=local", config=tree / "base.yaml")
    assert f"output_path in {tree / 'base.yaml'} is ???: it must be given (try: add --output-path" in said


def test_a_chosen_checkpoint_never_falls_back_to_the_default_model(tree: Path) -> None:
    """Merged onto the base file's null, `???` leaves null: it must still be asked for."""
    said = refusal("model=checkpoint", "dataset=local", config=tree / "base.yaml", output_path="o")
    assert "model_config_path in " in said
    assert "is ???: it must be given (try: add --model-config" in said


def test_a_folder_takes_the_place_of_a_dataset_config(tree: Path) -> None:
    made = composed("model=vae", "dataset=folder", config=tree / "base.yaml", output_path="o", input="x")
    assert (made.input, made.dataset_config_path) == (Path("x"), None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("batch_size: '4'", "batch_size in {file} is '4', but must be a whole number"),
        ("shuffle: 'yes'", "shuffle in {file} is 'yes', but must be true or false"),
        ("output_path: 3", "output_path in {file} is 3, but must be a path"),
        ("seed: [1]", "seed in {file} is [1], but must be a whole number"),
    ],
)
def test_yaml_coerces_nothing_but_paths(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"input: x\n{line}\n")
    flags: dict[str, Any] = {} if line.startswith("output_path") else {"output_path": "o"}
    assert said.format(file=file) in refusal(config=file, **flags)


def test_the_layer_at_fault_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("input: x\noutput_path: o\nbatch_size: 0\n")
    assert refusal(config=file) == f"batch_size in {file} is 0, but must be at least 1"
    assert refusal("batch_size=-1", config=file) == "batch_size is -1, but must be at least 1"
    assert refusal(config=file, batch_size=-2) == "--batch-size is -2, but must be at least 1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "holds no `key: value` lines"),
        ("input: [x\n", "is not YAML"),
        ("input: ${nowhere}\n", "nowhere"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    told = refusal(config=file, output_path="o")
    assert str(file) in told
    assert said in told


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(config=tmp_path / "none.yaml")
    assert "--config-dir" in refusal(dirs=(tmp_path / "none",))


def test_composing_leaves_hydra_as_it_was(tree: Path) -> None:
    from hydra.core.global_hydra import GlobalHydra

    composed("model=vae", "dataset=local", config=tree / "base.yaml", output_path="o")
    refusal("model=none", "dataset=local", config=tree / "base.yaml", output_path="o")
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("flags", [{"input": "x"}, {"input": "${y} ünï: #1", "compat": True, "max_file_s": 1e-3}])
def test_printed_settings_give_the_same_settings(tmp_path: Path, flags: dict[str, Any]) -> None:
    made = composed(output_path="o", **flags)
    file = tmp_path / "again.yaml"
    file.write_text(as_yaml(made), encoding="utf-8")
    assert composed(config=file) == made


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="\\${}ab:?'\"", max_size=9).filter(lambda text: text != "???"))
def test_literal_text_survives_interpolation(text: str) -> None:
    from omegaconf import OmegaConf

    assert OmegaConf.to_container(OmegaConf.create({"key": literal(text)}), resolve=True) == {"key": text}
