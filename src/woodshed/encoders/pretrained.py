"""Autoencoders by name: a local folder in either layout, or a model of the Hugging Face hub.

A folder is stable-audio-tools' (`model_config.json` and a checkpoint) or diffusers' (`config.json` and
`diffusion_pytorch_model.safetensors`, perhaps below `vae/`). Diffusers itself is not needed: its tensors are renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from woodshed.encoders.checkpoints import Autoencoder, Parts, build, load_autoencoder, plan_autoencoder, read_config
from woodshed.encoders.hub import check_hub_name, snapshot
from woodshed.encoders.weights import TensorFile, open_tensors
from woodshed.errors import ModelError

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
CHECKPOINTS = ("model.safetensors", "model.ckpt")
"""Names of a checkpoint beside `model_config.json`, by preference; any other is taken when it is the only one."""


def load_pretrained(
    name: str | Path,
    *,
    parts: Parts = "both",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """Load an autoencoder from a local folder or, when there is none of that name, from the hub.

    Raises:
        ModelError: nothing of that name can be found, or it is not an autoencoder that we have.
    """
    folder = Path(name) if Path(name).is_dir() else _hub_folder(str(name))
    config = folder / "model_config.json"
    if config.is_file():
        return load_autoencoder(config, _checkpoint_in(folder), parts=parts, dtype=dtype, device=device)
    return load_diffusers_oobleck(folder, parts=parts, dtype=dtype, device=device)


def load_diffusers_oobleck(
    name: str | Path,
    *,
    parts: Parts = "both",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """Load a diffusers `AutoencoderOobleck`: a local folder, a pipeline's folder that holds it as `vae`, or a hub name.

    Raises:
        ModelError: there is no such model, or it is of another class.
    """
    folder = Path(name) if Path(name).is_dir() else _hub_folder(str(name))
    home = next((f for f in (folder, folder / "vae") if (f / DIFFUSERS_WEIGHTS).is_file()), None)
    if home is None or not (home / "config.json").is_file():
        raise ModelError(
            f"{folder} holds neither model_config.json nor config.json with {DIFFUSERS_WEIGHTS} (here or in vae/)",
            hint="give the folder of a stable-audio-tools or a diffusers model",
        )
    config = read_config(home / "config.json")
    if config.get("_class_name") != "AutoencoderOobleck":
        raise ModelError(
            f"{home / 'config.json'} is of the class {config.get('_class_name')!r}, AutoencoderOobleck was expected"
        )
    ours = _our_config(config)
    num_blocks = len(ours["model"]["encoder"]["config"]["strides"])
    tensors = _renamed(open_tensors(home / DIFFUSERS_WEIGHTS), num_blocks)
    return build(plan_autoencoder(ours, str(home / "config.json")), tensors, parts, dtype, device)


def _our_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The stable-audio-tools config of the same network; defaults are the diffusers class's."""
    strides = config.get("downsampling_ratios", [2, 4, 4, 8, 8])
    channels, hidden = config.get("audio_channels", 2), config.get("encoder_hidden_size", 128)
    shared = {"c_mults": config.get("channel_multiples", [1, 2, 4, 8, 16]), "strides": strides, "use_snake": True}
    latent_dim = config.get("decoder_input_channels", 64)
    encoder = {"in_channels": channels, "channels": hidden, "latent_dim": hidden, **shared}
    decoder = {
        "out_channels": channels, "channels": config.get("decoder_channels", 128), "latent_dim": latent_dim,
        "final_tanh": False, **shared,
    }  # fmt: skip
    model = {
        "encoder": {"type": "oobleck", "config": encoder},
        "decoder": {"type": "oobleck", "config": decoder},
        "bottleneck": {"type": "vae"},
        "latent_dim": latent_dim,
    }
    return {"model_type": "autoencoder", "sample_rate": config.get("sampling_rate", 44_100), "model": model}


def _renamed(file: TensorFile, num_blocks: int) -> TensorFile:
    """The tensors under stable-audio-tools' names, Snake's without their extra axes."""
    names = {key: our_name(key, num_blocks=num_blocks) for key in file.shapes}
    tensors = file.select(names)
    shapes = {n: (s[1],) if _is_snake(n) and len(s) == 3 else s for n, s in tensors.shapes.items()}
    return TensorFile(
        path=file.path,
        shapes=shapes,
        read=lambda name: tensors.read(name).flatten() if _is_snake(name) else tensors.read(name),
    )


def _is_snake(name: str) -> bool:
    return name.endswith((".alpha", ".beta"))


_DIFFUSERS_KEY = re.compile(
    r"(encoder|decoder)\.(?:block\.(\d+)\.(\w+)\.)?(?:(\w+)\.)?(bias|alpha|beta|weight\w*|parametrizations.*)"
)
_BLOCK = {
    "encoder": {"res_unit1": 0, "res_unit2": 1, "res_unit3": 2, "snake1": 3, "conv1": 4},
    "decoder": {"snake1": 0, "conv_t1": 1, "res_unit1": 2, "res_unit2": 3, "res_unit3": 4},
}
_UNIT = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}


def our_name(key: str, *, num_blocks: int) -> str:
    """The stable-audio-tools name of a tensor of diffusers' `AutoencoderOobleck`.

    >>> our_name("encoder.block.0.res_unit2.conv1.weight_v", num_blocks=5)
    'encoder.layers.1.layers.1.layers.1.weight_v'
    >>> our_name("decoder.snake1.alpha", num_blocks=5)
    'decoder.layers.6.alpha'
    """
    match = _DIFFUSERS_KEY.fullmatch(key)
    if match is None:
        return key
    side, block, member, inner, leaf = match.groups()
    if block is None:
        top = {"conv1": 0, "snake1": num_blocks + 1, "conv2": num_blocks + 2}
        return f"{side}.layers.{top[inner]}.{leaf}" if inner in top else key
    if member not in _BLOCK[side] or (inner is not None and inner not in _UNIT):
        return key
    unit = "" if inner is None else f"layers.{_UNIT[inner]}."
    return f"{side}.layers.{int(block) + 1}.layers.{_BLOCK[side][member]}.{unit}{leaf}"


def _checkpoint_in(folder: Path) -> Path:
    for name in CHECKPOINTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".ckpt", ".pt"))
    if len(found) != 1:
        raise ModelError(
            f"{folder} holds {len(found)} checkpoints beside model_config.json, one was expected",
            hint=f"name it {CHECKPOINTS[0]} or {CHECKPOINTS[1]}, or give --model-config and --ckpt-path",
        )
    return found[0]


def _hub_folder(name: str) -> Path:
    """A hub model's autoencoder files on this machine, downloaded if need be."""
    check_hub_name(name)
    return snapshot(name, lambda: _wanted_files(_files_of(name)), extra="codecs")


def _files_of(name: str) -> list[str]:
    from huggingface_hub import HfApi

    return list(HfApi().list_repo_files(name))


def _wanted_files(files: list[str]) -> list[str]:
    """The fewest files that hold the autoencoder: diffusers' `vae/` first, because the rest may be a large model."""
    for folder in ("vae/", ""):
        pair = [f"{folder}config.json", f"{folder}{DIFFUSERS_WEIGHTS}"]
        if set(pair) <= set(files):
            return pair
    return ["model_config.json", *[name for name in CHECKPOINTS if name in files][:1]]
