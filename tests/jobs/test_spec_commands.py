"""The command lines of the specification of `pre_encode.py`, with `python pre_encode.py` read as `woodshed encode`.

The files stand under the very paths that the commands name. Each command is given as flags, and again as settings in
the specification's Hydra tree.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import woodshed
from tests.config.test_compose import SPEC_BASE
from tests.jobs.conftest import GOLDEN, RATIO, tree
from woodshed.cli.main import main

FILES = """
    --model-config configs/model_configs/autoencoder.json \\
    --ckpt-path checkpoints/autoencoder.ckpt \\
    --dataset-config configs/dataset_configs/local_audio.json \\
    --output-path ./encoded_latents \\
"""
BASIC = f"python pre_encode.py \\{FILES}    --batch-size 4"
DISTRIBUTED = (
    f"python pre_encode.py \\{FILES.replace('local_audio', 's3_dataset')}    --num-nodes 4 \\\n    --batch-size 16"
)
HALF = f"python pre_encode.py \\{FILES}    --model-half \\\n    --batch-size 8"
DISCRETE = """python pre_encode.py \\
    --model-config configs/model_configs/discrete_autoencoder.json \\
    --ckpt-path checkpoints/discrete_autoencoder.ckpt \\
    --dataset-config configs/dataset_configs/local_audio.json \\
    --output-path ./encoded_tokens \\
    --is-discrete \\
    --batch-size 2"""

WINDOW_FRAMES = 1_320_960 // RATIO
UNTOUCHED_FRAMES = 120
"""Of the original's 128: the last ones feel the end of its shorter window."""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the commands are given in."""
    for name, model in (("autoencoder", "tiny_tanh"), ("discrete_autoencoder", "tiny_fsq")):
        for source, target in ((f"{model}.json", f"configs/model_configs/{name}.json"),
                               (f"{model}.ckpt", f"checkpoints/{name}.ckpt")):  # fmt: skip
            (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(GOLDEN / "models" / source, tmp_path / target)
    datasets = tmp_path / "configs" / "dataset_configs"
    datasets.mkdir()
    local = {"dataset_type": "audio_dir", "datasets": [{"id": "mine", "path": "sounds"}], "random_crop": False}
    s3 = {"dataset_type": "s3", "datasets": [{"id": "mine", "s3_path": "s3://bucket/sounds"}]}
    (datasets / "local_audio.json").write_text(json.dumps(local))
    (datasets / "s3_dataset.json").write_text(json.dumps(s3))
    shutil.copytree(GOLDEN / "inputs", tmp_path / "sounds")
    root = tmp_path / "config" / "pre_encode"
    for group, name, keys in (
        ("model", "autoencoder", ("model_config_path: configs/model_configs/autoencoder.json",
                                  "ckpt_path: checkpoints/autoencoder.ckpt")),
        ("model", "discrete", ("model_config_path: configs/model_configs/discrete_autoencoder.json",
                               "ckpt_path: checkpoints/discrete_autoencoder.ckpt", "is_discrete: true")),
        ("dataset", "local_audio", ("dataset_config_path: configs/dataset_configs/local_audio.json",)),
        ("dataset", "s3_dataset", ("dataset_config_path: configs/dataset_configs/s3_dataset.json",)),
    ):  # fmt: skip
        (root / group).mkdir(parents=True, exist_ok=True)
        (root / group / f"{name}.yaml").write_text("\n".join(keys) + "\n")
    (root / "base.yaml").write_text(SPEC_BASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(command: str) -> list[str]:
    """What the shell makes of the command, without its first words."""
    split = shlex.split(command.replace("\\\n", " "))
    assert split[:2] == ["python", "pre_encode.py"]
    return ["encode", *split[2:]]


def yaml_words(*overrides: str) -> list[str]:
    return ["encode", "--config", "config/pre_encode/base.yaml", *overrides]


def stored(folder: Path) -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    found = {}
    for path in sorted(folder.glob("0/*.json")):
        meta = json.loads(path.read_text())
        found[meta["relpath"]] = (meta, np.load(path.with_suffix(".npy")))
    return found


def original(run: str, relpath: str) -> np.ndarray:
    """What `pre_encode.py` stored for a file, as far as the longer window of the commands leaves it alone."""
    folder = GOLDEN / "pre_encode_runs" / run / "0"
    path = next(path for path in folder.glob("*.json") if json.loads(path.read_text())["relpath"] == relpath)
    return np.asarray(np.load(path.with_suffix(".npy"))[:, :UNTOUCHED_FRAMES])


def test_the_basic_command_runs(project: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(woodshed.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "woodshed", *words(BASIC)],
        capture_output=True, text=True, check=False, env=environment, cwd=project,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = stored(project / "encoded_latents")
    assert sorted(made) == sorted(path.name for path in (project / "sounds").iterdir())
    for meta, latents in made.values():
        assert (latents.dtype, latents.shape) == (np.float32, (8, WINDOW_FRAMES))
        mask = meta["padding_mask"]
        assert (len(mask), sum(mask)) == (WINDOW_FRAMES, -(-meta["num_samples"] // RATIO))
        spec = {"audio_channels", "sample_rate", "padding_mask", "path", "duration", "start_time", "end_time"}
        assert spec <= set(meta)
        assert (meta["audio_channels"], meta["sample_rate"], meta["start_time"]) == (2, 44_100, 0.0)
    name = "a_44100_stereo_0p9s.wav"
    assert (made[name][0]["duration"], made[name][0]["end_time"]) == (pytest.approx(0.9), pytest.approx(0.9))
    wanted = original("tanh_bs1", name)
    np.testing.assert_allclose(made[name][1][:, :UNTOUCHED_FRAMES], wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    details = json.loads((project / "encoded_latents" / "details.json").read_text())
    assert details["sample_size"] == 1_320_960
    assert details["args"]["batch_size"] == 4


def test_the_discrete_command_runs(project: Path) -> None:
    assert main(words(DISCRETE)) == 0
    made = stored(project / "encoded_tokens")
    assert len(made) == 3
    for meta, tokens in made.values():
        assert (tokens.dtype, tokens.shape) == (np.int16, (2, WINDOW_FRAMES))
        assert len(meta["padding_mask"]) == WINDOW_FRAMES, "of the frames, not of the codebooks"
    name = "a_44100_stereo_0p9s.wav"
    np.testing.assert_array_equal(made[name][1][:, :UNTOUCHED_FRAMES], original("fsq", name))


def test_the_half_precision_command_runs_on_a_cpu_and_says_what_it_costs(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(HALF), "--device", "cpu"]) == 0
    assert "fp16 on a CPU: most CPUs have no fast arithmetic for it" in capsys.readouterr().err
    assert main([*words(BASIC), "--device", "cpu", "--output-path", "single"]) == 0
    halves, singles = stored(project / "encoded_latents"), stored(project / "single")
    assert len(halves) == 3
    for name, (_, half) in halves.items():
        single = singles[name][1]
        assert (half.dtype, half.shape) == (np.float16, single.shape)
        difference = np.abs(half - single).max()
        assert 0 < difference < 0.02 * np.abs(single).max()


@pytest.mark.parametrize("discrete", [False, True])
def test_half_precision_with_the_embedded_model(project: Path, discrete: bool) -> None:
    """Its spectrum has no half-precision form: only the network behind it is halved."""
    flags = ["encode", "--input", "sounds", "--device", "cpu", "--sample-size", "48000"]
    flags += ["--is-discrete"] if discrete else []
    assert main([*flags, "--output-path", "half", "--model-half"]) == 0
    assert main([*flags, "--output-path", "single"]) == 0
    for name, (meta, single) in stored(project / "single").items():
        half, valid = stored(project / "half")[name][1], meta["valid_frames"]
        if discrete:
            assert (half[:, :valid] == single[:, :valid]).mean() > 0.5
        else:
            assert half.dtype == np.float16
            error = (half - single)[:, :valid].astype(np.float64)
            assert np.sqrt((error**2).mean()) < 0.02 * single[:, :valid].std()


def refusal(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(list(argv)) == 2
    shown = capsys.readouterr()
    assert not shown.out
    return shown.err


def test_the_distributed_command_is_refused_with_a_clear_word(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(words(DISTRIBUTED), capsys)
    assert "--num-nodes 4: encoding on several machines is not in this release" in said
    assert "try: leave it out and run on one machine" in said
    argv = words(DISTRIBUTED)
    without_nodes = [word for word in argv if word not in ("--num-nodes", "4")]
    said = refusal(without_nodes, capsys)
    assert "configs/dataset_configs/s3_dataset.json has dataset_type 's3'" in said
    assert "try: unpack the shards into a folder" in said
    assert not (project / "encoded_latents").exists()


def test_the_distributed_command_is_refused_in_its_yaml_form_too(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("model=autoencoder", "dataset=s3_dataset", "output_path=./encoded_latents", "batch_size=16")
    assert "--num-nodes 4: encoding on several machines" in refusal(yaml_words(*chosen, "num_nodes=4"), capsys)
    assert "has dataset_type 's3'" in refusal(yaml_words(*chosen), capsys)
    assert not (project / "encoded_latents").exists()


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        (BASIC, ("model=autoencoder", "batch_size=4")),
        (HALF, ("model=autoencoder", "model_half=true", "batch_size=8")),
        (DISCRETE, ("model=discrete", "batch_size=2")),
    ],
)
def test_the_yaml_form_gives_the_bytes_of_the_flags(project: Path, command: str, overrides: tuple[str, ...]) -> None:
    assert main([*words(command), "--output-path", "by_flags"]) == 0
    assert main(yaml_words("dataset=local_audio", "output_path=by_yaml", *overrides)) == 0
    by_flags, by_yaml = tree(project / "by_flags"), tree(project / "by_yaml")
    # The tree of settings names the window that the flags leave to the model: told, and no difference otherwise.
    details = [json.loads(found.pop("details.json")) for found in (by_flags, by_yaml)]
    assert [found["args"].pop("sample_size") for found in details] == [None, 1_320_960]
    assert details[0] == details[1]
    assert by_flags == by_yaml
    assert len(by_flags) == 6
