"""Write an upstream checkpoint as a diffusers pipeline, tensor for tensor, in the types it is stored in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from safetensors.torch import save_file

from woodshed.encoders.acestep.checkpoint import AceStepCheckpoint, unfilled
from woodshed.encoders.acestep.folders import CLASSES, SAMPLING_FACTS
from woodshed.encoders.acestep.names import Part
from woodshed.encoders.checkpoints import read_config
from woodshed.encoders.library_models import DIFFUSERS_STEM, check_keys
from woodshed.errors import UsageError

_SCHEDULER = {"num_train_timesteps": 1, "shift": 1.0}
"""The pipeline makes its own timesteps, from 1 to 0: its scheduler must neither scale nor shift them."""


def write_diffusers(checkpoint: AceStepCheckpoint, folder: Path) -> Path:
    """Write a folder that `AceStepPipeline.from_pretrained` reads; needs the memory of the largest part.

    The index is written last: a folder without it was interrupted.

    Raises:
        UsageError: the folder is there already and not empty.
        ModelError: the checkpoint's keys are missing, extra or misshapen; lists them.
    """
    import diffusers

    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="give a new folder")
    mark = {"_diffusers_version": diffusers.__version__}
    index: dict[str, Any] = {"_class_name": "AceStepPipeline", **mark}
    for part in get_args(Part):
        index[part] = _write_part(checkpoint, part, folder / part, mark)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", **mark, **_SCHEDULER}
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    shared = checkpoint.folder.shared
    _copy(shared("vae"), folder / "vae", ("config.json", "*.safetensors*"))
    index["vae"] = ["diffusers", "AutoencoderOobleck"]
    _copy(shared("text_encoder"), folder / "text_encoder", ("config.json", "*.safetensors*"))
    index["text_encoder"] = ["transformers", "Qwen3Model"]
    _copy(shared("tokenizer"), folder / "tokenizer", ("*token*.json", "vocab.json", "merges.txt", "*.jinja"))
    tokenizer = read_config(folder / "tokenizer" / "tokenizer_config.json")
    index["tokenizer"] = ["transformers", tokenizer.get("tokenizer_class", "Qwen2Tokenizer")]
    _write_json(folder / "model_index.json", index)
    return folder


def _write_part(checkpoint: AceStepCheckpoint, part: Part, folder: Path, mark: dict[str, str]) -> list[str | None]:
    """Library and class of a part for the index; the two tokenizers of audio are not in every checkpoint."""
    tensors = checkpoint.folder.tensors(part)
    if not tensors.shapes and part not in ("transformer", "condition_encoder"):
        return [None, None]
    settings = checkpoint.folder.settings(part)
    module = unfilled(part, settings, tensors, checkpoint.folder.where)
    check_keys({name: tuple(value.shape) for name, value in module.state_dict().items()}, tensors)
    folder.mkdir(parents=True)
    state = {name: tensors.read(name).contiguous() for name in tensors.shapes}
    save_file(state, folder / f"{DIFFUSERS_STEM}.safetensors", metadata={"format": "pt"})
    facts = {}
    if part == "transformer":
        found = {"timestep_mu": checkpoint.timestep_mu, "timestep_sigma": checkpoint.timestep_sigma}
        facts = {key: value for key, value in found.items() if value != SAMPLING_FACTS[key]}
    _write_json(folder / "config.json", {"_class_name": CLASSES[part], **mark, **settings, **facts})
    return ["diffusers" if part == "transformer" else "ace_step", CLASSES[part]]


def _copy(source: Path, target: Path, patterns: Iterable[str]) -> None:
    target.mkdir(parents=True)
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        shutil.copyfile(path, target / path.name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
