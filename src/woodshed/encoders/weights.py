"""Tensors by name from a checkpoint file, read one at a time, and loaded strictly.

Files are `.safetensors`, or `.ckpt`/`.pt` read with `weights_only=True` and never otherwise. A tensor is read when it
is asked for: what a part does not need is not brought into memory.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from woodshed.encoders.oobleck import canonical_name, fold, folded_name
from woodshed.encoders.quantisers import TRAINING_STATE
from woodshed.errors import ModelError

SHOWN_KEYS = 10
"""Keys of each kind that an error lists."""
# torch's own unpickler does not check what it reads: on noise it ends in whatever its next step raises.
_UNREADABLE = (
    RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError, MemoryError,
    struct.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """The tensors of one checkpoint: their shapes, and a way to read each."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]

    def select(self, names: Mapping[str, str]) -> TensorFile:
        """The tensors whose keys `names` maps to new ones."""
        back = {new: key for key, new in names.items()}
        shapes = {new: self.shapes[key] for key, new in names.items()}
        return TensorFile(path=self.path, shapes=shapes, read=lambda name: self.read(back[name]))


def open_tensors(path: Path) -> TensorFile:
    """Open a checkpoint of any supported format.

    Raises:
        ModelError: the file is missing, not a checkpoint, or would run code when loaded.
    """
    if not path.is_file():
        raise ModelError(f"there is no checkpoint {path}", hint="check the path that was given")
    return open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)


def open_safetensors(path: Path) -> TensorFile:
    """Open a safetensors file: its header is read, its tensors are mapped when asked for.

    Raises:
        ModelError: it is no safetensors file, or not the whole of one.
    """
    try:
        handle: Any = safe_open(path, framework="pt", device="cpu")
        shapes = {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no whole safetensors file: {error}", hint="download or export it again") from error
    return TensorFile(path=path, shapes=shapes, read=handle.get_tensor)


def unpickled(path: Path) -> Any:
    """What `torch.save` wrote: read with `weights_only=True` and never otherwise, its tensors mapped and not read.

    Raises:
        ModelError: it is not such a file, is cut short, or would run code when loaded.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, or is no checkpoint: {_what_is_refused(error)}",
            hint="save its state_dict alone, best as .safetensors; woodshed never runs code from a checkpoint",
        ) from error
    except _UNREADABLE as error:
        raise ModelError(f"{path} cannot be read: {_first_line(error)}", hint="download or export it again") from error


def _open_pickle(path: Path) -> TensorFile:
    content = unpickled(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        found = f"the keys {list(content)[:SHOWN_KEYS]}" if isinstance(content, Mapping) else type(content).__name__
        raise ModelError(
            f"{path} holds no tensors: it has {found}", hint="a checkpoint is a state_dict, alone or under 'state_dict'"
        )
    return TensorFile(path=path, shapes={k: tuple(v.shape) for k, v in tensors.items()}, read=tensors.__getitem__)


def _what_is_refused(error: pickle.UnpicklingError) -> str:
    """Why torch will not read a file; its own words advise to read it unsafely, so they are not passed on."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f"it refers to {named[1]}" if named else "it is not what torch.save writes"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def fill(
    modules: Mapping[str, nn.Module], tensors: TensorFile, *, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Load a checkpoint's tensors into modules that were built on the meta device.

    Args:
        modules: by the first part of their keys, such as `encoder`.
        tensors: keys as stable-audio-tools names them, from `encoder.` or whichever part on.

    Raises:
        ModelError: keys are missing, extra or misshapen; lists them.
    """
    sources = _sources(tensors.shapes)
    expected = {f"{part}.{name}": value for part, m in modules.items() for name, value in m.state_dict().items()}
    _check_keys(expected, sources, tensors)
    for part, module in modules.items():
        state = {}
        for name in module.state_dict():
            parts = {leaf: tensors.read(key) for leaf, key in sources[f"{part}.{name}"].items()}
            state[name] = fold(parts, dtype=dtype).to(device)
        module.load_state_dict(state, strict=True, assign=True)
        module.requires_grad_(False).eval()


def _sources(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each tensor of ours: the checkpoint's keys that make it, by their leaf."""
    sources: dict[str, dict[str, str]] = {}
    for key in keys:
        leaf = canonical_name(key).rpartition(".")[2]
        if leaf not in TRAINING_STATE:
            sources.setdefault(folded_name(key), {})[leaf] = key
    return sources


def _check_keys(expected: Mapping[str, Tensor], sources: Mapping[str, Mapping[str, str]], tensors: TensorFile) -> None:
    shapes = tensors.shapes
    missing, misshapen = [], []
    for name, target in expected.items():
        parts = sources.get(name, {})
        wanted = _wanted_shapes(name, tuple(target.shape), parts)
        missing += [_sibling(name, leaf) for leaf in wanted if leaf not in parts]
        misshapen += [
            f"{parts[leaf]} is {list(shapes[parts[leaf]])} instead of {list(shape)}"
            for leaf, shape in wanted.items()
            if leaf in parts and shapes[parts[leaf]] != shape
        ]
    extra = [key for name, parts in sources.items() if name not in expected for key in parts.values()]
    refuse_keys(tensors.path, missing=missing, extra=extra, misshapen=misshapen)


def refuse_keys(path: Path, *, missing: Sequence[str], extra: Sequence[str], misshapen: Sequence[str]) -> None:
    """Refuse a checkpoint whose keys are not those of its model; nothing happens where there is none to list.

    Raises:
        ModelError: lists the keys.
    """
    lists = (("missing", missing), ("not of this model", extra), ("of another shape", misshapen))
    told = "; ".join(
        f"{len(keys)} {what} ({', '.join(keys[:SHOWN_KEYS])}{', ...' if len(keys) > SHOWN_KEYS else ''})"
        for what, keys in lists
        if keys
    )
    if told:
        raise ModelError(
            f"{path} does not fit the model config: keys {told}",
            hint="is this the checkpoint that belongs to the config?",
        )


def _wanted_shapes(name: str, shape: tuple[int, ...], parts: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Leaves that must be there to make a tensor of ours, with their shapes."""
    leaf = name.rpartition(".")[2]
    if leaf in ("rate", "gain"):
        return {"alpha" if leaf == "rate" else "beta": (shape[0],)}
    if leaf == "weight" and len(shape) == 3 and "weight" not in parts:
        return {"weight_g": (shape[0], 1, 1), "weight_v": shape}
    return {leaf: shape}


def _sibling(name: str, leaf: str) -> str:
    return f"{name.rpartition('.')[0]}.{leaf}"


def digest_of(tensors: TensorFile, keys: Iterable[str]) -> str:
    """A digest of tensors by name, type, shape and content: the same for every file format, wrapper and spelling."""
    digest = xxhash.xxh3_128()
    for name, key in sorted((canonical_name(key), key) for key in keys):
        tensor = tensors.read(key).detach().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return f"xxh3_128:{digest.hexdigest()}"


def used_keys(tensors: TensorFile, parts: Iterable[str]) -> list[str]:
    """Keys of some parts, without statistics of training."""
    prefixes = tuple(f"{part}." for part in parts)
    return [key for key in tensors.shapes if key.startswith(prefixes) and key.rpartition(".")[2] not in TRAINING_STATE]


def unready_codebook(tensors: TensorFile) -> str | None:
    """The key of a codebook that training never filled, if there is one."""
    for key in tensors.shapes:
        if key.endswith("._codebook.initted") and not bool(tensors.read(key).bool().all()):
            return key
    return None
