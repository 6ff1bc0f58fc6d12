"""Models that lie below a checkpoint folder, told by their small config files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from woodshed.errors import UsageError

_PREFIX = "acestep-v15-"
_PIPELINES = {"acestep": "AceStepPipeline", "stable-audio": "StableAudioPipeline"}
NEED_A_CHECKPOINT = tuple(_PIPELINES)
"""Backends whose weights lie in a folder of the user's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model that can be chosen."""

    label: str
    checkpoint_dir: str
    variant: str | None = None
    """Where one folder holds several."""


def models_in(backend: str, checkpoint: str) -> tuple[Model, ...]:
    """The models of a backend in a folder, and in the folders directly below it.

    A hub name stands for one model.

    Raises:
        UsageError: there is no such folder, or no such model in it.
    """
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        # Beside a folder of the owner's name it is a path with a slip in it.
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", checkpoint, flags=re.ASCII) and not folder.parent.is_dir():
            return (Model(label=checkpoint, checkpoint_dir=checkpoint),)
        raise UsageError(f"there is no folder {checkpoint}", hint="give the folder of the model, or a hub name")
    if _is_pipeline(folder, backend) or _is_variant(folder, backend):
        return (Model(label=folder.name, checkpoint_dir=checkpoint),)
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    found = [
        *(Model(label=_variant(path), checkpoint_dir=checkpoint, variant=_variant(path))
          for path in below if _is_variant(path, backend)),
        *(Model(label=path.name, checkpoint_dir=str(Path(checkpoint) / path.name))
          for path in below if _is_pipeline(path, backend)),
    ]  # fmt: skip
    if not found:
        wanted = f"{_PREFIX}base/ or a diffusers pipeline" if backend == "acestep" else "a diffusers pipeline"
        raise UsageError(
            f"{checkpoint} holds no model for {backend}: neither it nor a folder in it is {wanted}",
            hint="give the folder that the model was downloaded to",
        )
    return tuple(sorted(found, key=lambda model: (model.label != "base", model.label)))


def _variant(folder: Path) -> str:
    return folder.name.removeprefix(_PREFIX)


def _is_variant(folder: Path, backend: str) -> bool:
    return backend == "acestep" and _read(folder / "config.json").get("model_type") == "acestep"


def _is_pipeline(folder: Path, backend: str) -> bool:
    return _read(folder / "model_index.json").get("_class_name") == _PIPELINES[backend]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
