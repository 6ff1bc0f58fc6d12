"""The metadata function that a stable-audio dataset config may name: `get_custom_metadata(info, audio) -> dict`.

The function sees what the original's sees (the metadata so far, and the window of audio as a tensor), and its result is
merged into the metadata. `__reject__: True` leaves the window out, under its own reason: no other file takes its place.
`__audio__` (extra waveforms) is dropped with a note.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from woodshed.contracts import Item, Json
from woodshed.errors import ItemError, UsageError

FUNCTION = "get_custom_metadata"
EXTRA_AUDIO_NOTE = (
    "custom metadata gave extra waveforms (`__audio__`): they were left out, only the main sound is encoded"
)


@dataclass(frozen=True, slots=True)
class Reject:
    """The data set's own function wants this window left out; it counts as skipped."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataModule:
    """A data set's Python file, loaded."""

    name: str
    """File name, without folders."""
    sha256: str
    """Digest of its source."""
    function: Callable[[dict[str, Any], Any], object]


class CustomMetadata:
    """The functions of all data sets of one source.

    Args:
        modules: by the label that stands before the ids of a data set, or under None when there is one data set only.
    """

    def __init__(self, modules: Mapping[str | None, MetadataModule]) -> None:
        self.modules = modules
        self._notes: set[str] = set()

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(sorted(self._notes))

    def __call__(
        self, item: Item, audio: Float[np.ndarray, "channel time"], info: Mapping[str, Json]
    ) -> dict[str, Json] | Reject:
        """What the data set says about one window of an item.

        Args:
            item: whose window it is.
            audio: the window, as the encoder sees it.
            info: the metadata so far, such as `path`, `relpath`, `seconds_start`, `seconds_total` and `prompt`.

        Raises:
            ItemError: when the function fails, or gives something that JSON cannot hold.
        """
        module = self.modules.get(item.id.split("/", 1)[0]) or self.modules.get(None)
        if module is None:
            return {}
        given = _call(module, dict(info), audio)
        if not isinstance(given, Mapping):
            raise _bad(f"{FUNCTION} of {module.name} gave {type(given).__name__}, not a dict")
        if given.get("__reject__"):
            return Reject(f"rejected by custom metadata ({module.name})")
        if "__audio__" in given:
            self._notes.add(EXTRA_AUDIO_NOTE)
        return {
            _key(key, module.name): json_safe(value, where=f"{FUNCTION} of {module.name}: key {key!r}")
            for key, value in given.items()
            if key not in ("__reject__", "__audio__")
        }


def load_module(path: str) -> MetadataModule:
    """Run a data set's Python file and take its function. Only for files that the user trusts.

    Raises:
        UsageError: when the file is missing, fails, or has no `get_custom_metadata`.
    """
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        raise UsageError(f"custom_metadata_module {path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(source).hexdigest()
    spec = importlib.util.spec_from_file_location(f"woodshed_custom_metadata_{digest[:16]}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"custom_metadata_module {path} is not a Python file", hint="its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"custom_metadata_module {path} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        raise UsageError(f"custom_metadata_module {path} has no function {FUNCTION}(info, audio)")
    return MetadataModule(name=Path(path).name, sha256=digest, function=function)


def json_safe(value: object, *, where: str) -> Json:
    """The same value as JSON holds it: tensors and arrays as lists, paths and text as plain text.

    >>> json_safe({"pitch": np.arange(3), "ok": np.bool_(True)}, where="key 'x'")
    {'pitch': [0, 1, 2], 'ok': True}
    >>> json_safe(float("nan"), where="key 'x'")
    Traceback (most recent call last):
    woodshed.errors.ItemError: key 'x' is nan, which JSON cannot hold

    Raises:
        ItemError: of kind `custom_metadata`, naming the place.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _bad(f"{where} is {float(value)}, which JSON cannot hold")
        return float(value)
    if isinstance(value, Mapping):
        return {
            _key(key, where): json_safe(inner, where=f"{where}, key {key!r}" if where else "")
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [json_safe(inner, where=where) for inner in value]
    if isinstance(value, set | frozenset) and all(isinstance(inner, str) for inner in value):
        return sorted(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufU":
        return json_safe(value.tolist(), where=where)
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
        return json_safe(value.detach().cpu().tolist(), where=where)
    raise _bad(f"{where} is of type {type(value).__name__}, which JSON cannot hold")


def _call(module: MetadataModule, info: dict[str, Any], audio: Float[np.ndarray, "channel time"]) -> object:
    import torch

    # A copy: the function may write into its tensor, and the engine encodes the original.
    window = torch.from_numpy(np.array(audio))
    try:
        return module.function(info, window)
    except Exception as error:
        raise _bad(f"{FUNCTION} of {module.name} failed: {type(error).__name__}: {error}") from error


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise _bad(f"{where}: the key {key!r} is of type {type(key).__name__}, not text")
    return key


def _bad(message: str) -> ItemError:
    return ItemError(message, kind="custom_metadata")
