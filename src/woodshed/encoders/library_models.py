"""Models of the diffusers and transformers libraries: built from their config without memory, filled strictly.

The libraries' own loaders warn where a tensor is missing or left over, and start it at random; here that is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from woodshed.encoders.checkpoints import read_config
from woodshed.encoders.weights import SHOWN_KEYS, TensorFile, open_safetensors, refuse_keys
from woodshed.errors import ModelError

DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"


def has_weights(folder: Path, stem: str) -> bool:
    """Whether a folder holds safetensors of this stem, in one file or in shards."""
    return any((folder / f"{stem}.safetensors{suffix}").is_file() for suffix in ("", ".index.json"))


def open_weights(folder: Path, stem: str) -> TensorFile:
    """The tensors of `<stem>.safetensors`, or of the shards that `<stem>.safetensors.index.json` names.

    Raises:
        ModelError: neither is there, a shard is missing or damaged, or the index names tensors that no shard has.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return open_safetensors(single)
    if not index.is_file():
        raise ModelError(
            f"{folder} holds neither {single.name} nor {index.name}",
            hint="give the folder of a checkpoint that is saved as safetensors; other formats are never loaded",
        )
    weight_map = read_config(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{index} has no weight_map from tensors to files", hint="download it again")
    shards = {name: _open_shard(folder, name, index) for name in sorted(set(weight_map.values()))}
    homeless = [key for key, name in weight_map.items() if key not in shards[name].shapes]
    if homeless:
        raise ModelError(
            f"{index} names tensors that are not in their shard: {', '.join(homeless[:SHOWN_KEYS])}",
            hint="download the shards again, all of one version",
        )
    return TensorFile(
        path=index,
        shapes={key: shards[name].shapes[key] for key, name in weight_map.items()},
        read=lambda key: shards[weight_map[key]].read(key),
    )


def _open_shard(folder: Path, name: str, index: Path) -> TensorFile:
    # An index comes with the checkpoint: it may name files beside it and no others.
    if Path(name).name != name or not (folder / name).is_file():
        raise ModelError(f"{index} names {name!r}, which is not in its folder", hint="download the missing shard")
    return open_safetensors(folder / name)


def read_settings(folder: Path, class_name: str) -> dict[str, Any]:
    """What a diffusers `config.json` says of the class that is expected, without the library's own marks.

    Raises:
        ModelError: it cannot be read, or is of another class.
    """
    config = read_config(folder / "config.json")
    if config.get("_class_name") != class_name:
        raise ModelError(
            f"{folder / 'config.json'} is of the class {config.get('_class_name')!r}, {class_name} was expected",
            hint="give the folder of the model's diffusers version",
        )
    return {key: value for key, value in config.items() if not key.startswith("_")}


def build_unfilled(build: Callable[..., nn.Module], settings: Mapping[str, Any], where: object) -> nn.Module:
    """A diffusers model of these settings on the meta device.

    Raises:
        ModelError: the installed library does not know a setting, or cannot build what they describe.
    """
    known = inspect.signature(build).parameters
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ModelError(
            f"the config of {where} has settings that the installed diffusers does not know: {', '.join(unknown)}",
            hint="pip install --upgrade diffusers",
        )
    try:
        with torch.device("meta"):
            return build(**settings)
    except (ValueError, TypeError, RuntimeError, LookupError, ZeroDivisionError) as error:
        raise ModelError(
            f"the config of {where} describes no model: {error}", hint="is config.json the one that came with it?"
        ) from error


def fill_strictly(
    module: nn.Module, tensors: TensorFile, *, dtype: torch.dtype | None, device: torch.device | str
) -> None:
    """Give a module that was built on the meta device its tensors, in evaluation mode and without gradients.

    Args:
        dtype: type that floating-point tensors are brought to, one at a time; None leaves them as they are stored.

    Raises:
        ModelError: keys are missing, extra or misshapen; lists them.
    """
    expected = module.state_dict()
    check_keys({name: tuple(value.shape) for name, value in expected.items()}, tensors)
    state = {}
    for name in expected:
        value = tensors.read(name)
        state[name] = value.to(device, dtype if value.is_floating_point() else None)
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()
    unfilled = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    assert not unfilled, f"buffers that no checkpoint holds: {unfilled}"


def check_keys(expected: Mapping[str, tuple[int, ...]], tensors: TensorFile) -> None:
    """Compare the tensors that a model needs with those that there are.

    Raises:
        ModelError: lists the keys that are missing, extra or misshapen.
    """
    shapes = tensors.shapes
    refuse_keys(
        tensors.path,
        missing=[key for key in expected if key not in shapes],
        extra=[key for key in shapes if key not in expected],
        misshapen=[
            f"{key} is {list(shapes[key])} instead of {list(shape)}"
            for key, shape in expected.items()
            if key in shapes and shapes[key] != shape
        ],
    )
