"""Checkpoints of speech models, whoever saved them: opened safely, unwrapped, and recognised by their keys.

The layouts of IndexTTS2 (2.0 and 2.5), MaskGCT's semantic codec, CAMPPlus and w2v-bert-2.0 are told apart by key names
alone: nothing is read but the index of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from woodshed.encoders.weights import SHOWN_KEYS, TensorFile, open_safetensors, unpickled
from woodshed.errors import ModelError

Family = Literal["gpt_2.0", "gpt_2.5", "repcodec_50hz", "enhanced_25hz", "campplus", "w2v_bert", "w2v_stats", "unknown"]

WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Keys under which training tools put the tensors, beside optimiser state and step counts; taken in this order."""
NEVER_USED = (
    "gpt.", "inference_model.", "text_embedding.", "mel_embedding.", "lang_embedding.", "spk_emb_proj.",
    "text_pos_embedding.", "mel_pos_embedding.", "text_head.", "mel_head.", "final_norm.",
)  # fmt: skip
"""Parts of a GPT checkpoint that write text and codes: features are made without them."""

_PARALLEL_OR_PEFT = re.compile(r"^(?:module\.|base_model\.model\.)+")
_COMPILED = "_orig_mod."
_ADAPTER = re.compile(r"\.(?:lora_|modules_to_save\.|original_module\.)")
_PROJECTION, _DISTANCES = "feature_projection.projection", "encoder.layers.0.self_attn.distance_embedding"
_KEYS_OF: tuple[tuple[Family, tuple[str, ...]], ...] = (
    ("gpt_2.5", ("spk_emb_proj.weight", "emo_perceiver_encoder.latents")),
    ("gpt_2.0", ("conditioning_encoder.embed.conv.0.weight", "emo_perceiver_encoder.latents")),
    ("enhanced_25hz", ("down.weight", "encoder.0.embed.weight", "quantizer.quantizers.0.codebook.weight")),
    ("repcodec_50hz", ("encoder.0.embed.weight", "quantizer.quantizers.0.codebook.weight")),
    ("campplus", ("head.conv1.weight", "xvector.tdnn.linear.weight")),
    ("w2v_bert", (f"{_PROJECTION}.weight", f"{_DISTANCES}.weight")),
    ("w2v_bert", (f"wav2vec2_bert.{_PROJECTION}.weight", f"wav2vec2_bert.{_DISTANCES}.weight")),
)
"""Keys that make a family; the first whose keys are all there wins, so the richer of two comes first."""


def open_checkpoint(path: Path) -> TensorFile:
    """Open a checkpoint under the names its network gave its tensors; no tensor is read.

    Files are `.safetensors`, or whatever `torch.save` wrote (`.pth`, `.pt`, `.bin`): those are read with
    `weights_only=True`, mapped into memory, and never otherwise. Removed are wrappers (`{"model": ...}`,
    `{"state_dict": ...}`, nested or not), the marks of parallel and compiled modules (`module.`, `_orig_mod.`) and of
    adapters: `X.base_layer.weight` is `X.weight`. LoRA tensors of parts that features are made without (`NEVER_USED`)
    are left out; elsewhere they would have to be merged with a scale that no checkpoint states, so they are refused.

    Raises:
        ModelError: the file is missing, cut short, holds no tensors, would run code, gives one name twice, or holds a
            LoRA of a part that is needed.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder, a checkpoint file was expected", hint="name the file inside it")
    if not path.is_file():
        raise ModelError(f"there is no checkpoint {path}", hint="woodshed speech models shows what is needed and where")
    if path.suffix == ".safetensors":
        file = open_safetensors(path)
    else:
        tensors = _tensors_in(unpickled(path), path)
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        file = TensorFile(path=path, shapes=shapes, read=tensors.__getitem__)
    if not file.shapes:
        raise ModelError(f"{path} holds no tensors", hint="download or export it again")
    return file.select(_plain_names(file))


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict below any wrappers."""
    state = content
    while isinstance(state, Mapping):
        inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping):
        raise ModelError(
            f"{path} holds a {type(state).__name__}, not tensors by name",
            hint="save the model's state_dict, best as .safetensors",
        )
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(
            f"{path} holds no tensors: it has the keys {list(state)[:SHOWN_KEYS]}",
            hint=f"a checkpoint is a state_dict, alone or under one of {', '.join(WRAPPERS)}",
        )
    return tensors


def _plain_names(file: TensorFile) -> dict[str, str]:
    """For each key of a file that stays: the name its network gave the tensor.

    Raises:
        ModelError: as `open_checkpoint` says of adapters and of doubled names.
    """
    names: dict[str, str] = {}
    adapters: list[str] = []
    for key in file.shapes:
        name = _PARALLEL_OR_PEFT.sub("", key.replace(_COMPILED, ""))
        if not _ADAPTER.search(name):
            names[key] = name.replace(".base_layer.", ".")
        elif not name.startswith(NEVER_USED):
            adapters.append(key)
    if not names:
        raise ModelError(
            f"{file.path} is a LoRA adapter alone ({_shown(adapters)}), without the model it adapts",
            hint="merge it into its base model and save the result (PEFT: merge_and_unload)",
        )
    if adapters:
        raise ModelError(
            f"{file.path} holds LoRA tensors of parts that make features: {_shown(adapters)}; how strongly they count "
            "is not in the file",
            hint="merge them into the model and save the result (PEFT: merge_and_unload)",
        )
    if len(set(names.values())) < len(names):
        seen: dict[str, str] = {}
        doubled = [f"{seen[name]} and {key}" for key, name in names.items() if seen.setdefault(name, key) != key]
        raise ModelError(
            f"{file.path} gives one tensor twice: {_shown(doubled)}", hint="save the model's own state_dict alone"
        )
    return names


def _shown(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN_KEYS]) + (f", and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "")


def family_of(tensors: TensorFile) -> Family:
    """What a checkpoint is, told by its keys; either spelling of weight norm, any sizes.

    A GPT with `spk_emb_proj` is 2.5, one with `conditioning_encoder` 2.0; a codec with `down` makes 25 codes a second.
    """
    keys = tensors.shapes.keys()
    if set(keys) == {"mean", "var"}:
        return "w2v_stats"
    return next((family for family, wanted in _KEYS_OF if all(key in keys for key in wanted)), "unknown")
