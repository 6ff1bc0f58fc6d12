from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from woodshed.cli.commands import COMMANDS, Command
from woodshed.cli.flags import Given, build_parser, read_command_line, settings_from
from woodshed.errors import UsageError
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.settings import DecodeSettings, EncodeSettings, Settings, VerifySettings

MODEL = "--model-config configs/autoencoder.json --ckpt-path checkpoints/autoencoder.ckpt"
SPEC_COMMANDS = {
    "basic": f"{MODEL} --dataset-config d.json --output-path ./encoded_latents --batch-size 4",
    "distributed": f"{MODEL} --dataset-config s3.json --output-path ./encoded_latents --num-nodes 4 --batch-size 16",
    "half": f"{MODEL} --dataset-config d.json --output-path ./encoded_latents --model-half --batch-size 8",
    "discrete": f"{MODEL} --dataset-config d.json --output-path ./encoded_tokens --is-discrete --batch-size 2",
}


def given(line: str, model: type[Settings] = EncodeSettings) -> Given:
    command = next(command for command in COMMANDS if command.settings_model() is model)
    parser = build_parser(
        model,
        prog=f"woodshed {command.name}",
        summary=command.summary,
        examples=command.examples,
        layered=command.is_layered,
        watched=command.is_watched,
    )
    return read_command_line(parser, model, shlex.split(line))


def refusal(line: str, model: type[Settings] = EncodeSettings) -> str:
    with pytest.raises(UsageError) as caught:
        settings_from(model, given(line, model))
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("basic", {"batch_size": 4, "precision": "fp32", "is_discrete": False}),
        ("half", {"batch_size": 8, "precision": "fp16", "is_discrete": False}),
        ("discrete", {"batch_size": 2, "precision": "fp32", "is_discrete": True}),
    ],
)
def test_command_lines_of_the_spec(name: str, expected: dict[str, object]) -> None:
    made = settings_from(EncodeSettings, given(SPEC_COMMANDS[name]))
    assert (made.model_config_path, made.ckpt_path) == (
        Path("configs/autoencoder.json"),
        Path("checkpoints/autoencoder.ckpt"),
    )
    assert made.dataset_config_path == Path("d.json")
    assert {key: getattr(made, key) for key in expected} == expected


def test_the_distributed_one_waits_for_the_cluster_release() -> None:
    assert "--num-nodes 4: encoding on several machines is not in this release" in refusal(SPEC_COMMANDS["distributed"])


def test_only_what_is_given_is_there() -> None:
    assert given("--output-path o").flags == {"output_path": "o"}
    assert given("--no-shuffle --num-workers 4").flags == {"shuffle": False, "num_workers": 4}
    assert given("").flags == {}


def test_every_flag_of_the_spec_is_there() -> None:
    line = (
        "--model-config m --ckpt-path c --pretrained-name p --dataset-config d --output-path o --batch-size 1 "
        "--sample-size 2 --num-workers 3 --shuffle --model-half --is-discrete --num-nodes 4 --strategy s "
        "--limit-batches 5"
    )
    assert given(line).flags == {
        "model_config_path": "m",
        "ckpt_path": "c",
        "pretrained_name": "p",
        "dataset_config_path": "d",
        "output_path": "o",
        "batch_size": 1,
        "sample_size": 2,
        "num_workers": 3,
        "shuffle": True,
        "model_half": True,
        "is_discrete": True,
        "num_nodes": 4,
        "strategy": "s",
        "limit_batches": 5,
    }


@pytest.mark.parametrize(
    "line",
    ["--model-config m", "--model_config m", "--model_config=m", "--model-config-path m", "--model_config_path=m"],
)
def test_underscores_and_field_names_are_understood(line: str) -> None:
    assert given(line).flags == {"model_config_path": "m"}


def test_values_keep_their_underscores() -> None:
    assert given("--output-path=my_out --input a_b=c_d").flags == {"output_path": "my_out", "input": "a_b=c_d"}


def test_flags_and_overrides_may_mix() -> None:
    found = given("model=vae --output-path o dataset=local --config run.yaml --config-dir a seed=1 --config-dir b")
    assert found.overrides == ("model=vae", "dataset=local", "seed=1")
    assert (found.config, found.config_dirs) == (Path("run.yaml"), (Path("a"), Path("b")))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--shufle", "unknown argument --shufle (try: did you mean --shuffle?)"),
        ("--out x", "unknown argument --out (try: did you mean --output-path?)"),
        ("--model-conf x", "unknown argument --model-conf (try: did you mean --model-config?)"),
        ("--xyzzy", "unknown argument --xyzzy (try: woodshed encode --help lists every flag)"),
        ("--batch-size x", "--batch-size: invalid int value: 'x'"),
        ("--window tiles", "--window: invalid choice: 'tiles' (choose from"),
        ("--output-path", "--output-path: expected one argument"),
        ("sounds", "argument 'sounds' is neither a flag nor key=value"),
    ],
)
def test_wrong_usage(line: str, said: str) -> None:
    assert said in refusal(line)


def test_folder_commands_take_their_folder_without_a_flag() -> None:
    found = given("out --ids a b --limit 2", DecodeSettings)
    assert settings_from(DecodeSettings, found) == DecodeSettings(folder=Path("out"), ids=("a", "b"), limit=2)
    assert settings_from(VerifySettings, given("--reencode 3 out", VerifySettings)).reencode == 3
    assert "the following arguments are required: FOLDER" in refusal("--limit 2", DecodeSettings)
    assert "unknown argument seed=1" in refusal("out seed=1", DecodeSettings)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_shows_every_field_and_examples_that_work(command: object) -> None:
    assert isinstance(command, Command)
    model: type[Settings] = command.settings_model()
    parser = build_parser(
        model,
        prog=f"woodshed {command.name}",
        summary=command.summary,
        examples=command.examples,
        layered=command.is_layered,
        watched=command.is_watched,
    )
    text = parser.format_help()
    for name in model.model_fields:
        is_word = name == model.positional or name in model.further_positionals
        assert (name.upper() if is_word else model.flag(name) + " ") in text.replace(",", " ")
    for example in command.examples:
        assert example in text
        words = shlex.split(example)[1 + len(command.name.split()) :]
        if "--config" not in words:
            settings_from(model, read_command_line(parser, model, words))


def test_flags_of_another_tool_are_taken_for_ours() -> None:
    ours = given("--dataset-dir d --checkpoint-dir c --model base --runs 2 --batches 9 --yes", AnalyzeSettings)
    for line in (
        "-d d -c c -M base --fisher-runs 2 --fisher_batches 9 -y",
        "--dataset_dir d --checkpoint_dir c --model_variant base --fisher-runs=2 --batches 9 --yes",
    ):
        assert given(line, AnalyzeSettings).flags == ours.flags


def test_a_misspelt_alias_is_recognised_too() -> None:
    assert "did you mean --fisher-batches?" in refusal("-d d --fisher-batchs 3", AnalyzeSettings)
