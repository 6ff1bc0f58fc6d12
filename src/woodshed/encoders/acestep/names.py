"""One table of ACE-Step's names in the two dialects, for modules, whole checkpoints and LoRA files. Pure.

*Upstream* is what ACE-Step's own code, Side-Step and ComfyUI say (`layers.0.self_attn.q_proj`), *diffusers* what
diffusers' classes say (`layers.0.self_attn.to_q`). The canonical name of a layer is the upstream one within the DiT.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from woodshed.errors import ModelError

Part: TypeAlias = Literal["transformer", "condition_encoder", "audio_tokenizer", "audio_token_detokenizer"]
"""A network of its own, named as diffusers names its folder; upstream keeps all four in one file."""

_UPSTREAM_PREFIX: dict[Part, str] = {
    "transformer": "decoder.",
    "condition_encoder": "encoder.",
    "audio_tokenizer": "tokenizer.",
    "audio_token_detokenizer": "detokenizer.",
}
NULL_CONDITION = "null_condition_emb"
"""Stands alone in the upstream model, and in diffusers' condition encoder."""

_ATTENTION = {
    "q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0", "q_norm": "norm_q", "k_norm": "norm_k",
}  # fmt: skip
_CONVOLUTIONS = {"proj_in.1": "proj_in_conv", "proj_out.1": "proj_out_conv"}


def _renamer(attention: dict[str, str], convolutions: dict[str, str]) -> tuple[re.Pattern[str], dict[str, str]]:
    inner, outer = ("|".join(map(re.escape, names)) for names in (attention, convolutions))
    pattern = rf"(?:(?<=\.self_attn\.)|(?<=\.cross_attn\.))(?:{inner})(?=\.|$)|^(?:{outer})(?=\.|$)"
    return re.compile(pattern), attention | convolutions


_TO_DIFFUSERS = _renamer(_ATTENTION, _CONVOLUTIONS)
_TO_UPSTREAM = _renamer(*({new: old for old, new in names.items()} for names in (_ATTENTION, _CONVOLUTIONS)))


def to_diffusers(name: str) -> str:
    """The diffusers name of a module or tensor within its part; one that is diffusers' already stays.

    >>> to_diffusers("layers.0.self_attn.o_proj.weight")
    'layers.0.self_attn.to_out.0.weight'
    """
    return _renamed(name, *_TO_DIFFUSERS)


def to_upstream(name: str) -> str:
    """The upstream name of a module or tensor within its part: `to_diffusers` the other way round.

    >>> to_upstream("layers.0.self_attn.to_out.0.weight")
    'layers.0.self_attn.o_proj.weight'
    """
    return _renamed(name, *_TO_UPSTREAM)


def _renamed(name: str, pattern: re.Pattern[str], names: dict[str, str]) -> str:
    return pattern.sub(lambda match: names[match[0]], name)


def split_upstream(key: str) -> tuple[Part, str] | None:
    """The part of a tensor of the whole upstream model, and its diffusers name there; None if it is of no part.

    >>> split_upstream("decoder.layers.0.cross_attn.q_norm.weight")
    ('transformer', 'layers.0.cross_attn.norm_q.weight')
    """
    if key == NULL_CONDITION:
        return "condition_encoder", key
    for part, prefix in _UPSTREAM_PREFIX.items():
        if key.startswith(prefix):
            return part, to_diffusers(key.removeprefix(prefix))
    return None


def join_upstream(part: Part, name: str) -> str:
    """The key in the whole upstream model of a part's tensor: `split_upstream` the other way round.

    >>> join_upstream("transformer", "layers.0.cross_attn.norm_q.weight")
    'decoder.layers.0.cross_attn.q_norm.weight'
    """
    if (part, name) == ("condition_encoder", NULL_CONDITION):
        return name
    return _UPSTREAM_PREFIX[part] + to_upstream(name)


_LAYER = re.compile(
    r"layers\.(\d+)\.((?:self|cross)_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)", flags=re.ASCII
)


def layer_order(name: str) -> tuple[int, str] | None:
    """Where a layer that adapters are made for stands, by its canonical name; None for a layer that is none of them.

    >>> sorted(["layers.10.mlp.up_proj", "layers.9.mlp.up_proj"], key=layer_order)
    ['layers.9.mlp.up_proj', 'layers.10.mlp.up_proj']
    """
    match = _LAYER.fullmatch(name)
    return None if match is None else (int(match[1]), match[2])


LoraPart: TypeAlias = Literal["down", "up", "alpha", "magnitude"]
"""Of one layer's adapter: W + alpha/rank * up @ down; `magnitude` is DoRA's vector."""
LoraDialect: TypeAlias = Literal["peft", "comfyui", "comfyui-generic", "diffusers"]


@dataclass(frozen=True, slots=True)
class LoraKey:
    """What a tensor of a LoRA file is."""

    layer: str
    """Canonical name, such as `layers.0.self_attn.q_proj`."""
    part: LoraPart


_PEFT_PARTS: dict[LoraPart, str] = {
    "down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha", "magnitude": "lora_magnitude_vector",
}  # fmt: skip
_KOHYA_PARTS: dict[LoraPart, str] = {
    "down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha", "magnitude": "dora_scale",
}  # fmt: skip
_PREFIXES: dict[LoraDialect, str] = {
    "peft": "base_model.model.",
    # ComfyUI maps PEFT's prefix onto the DiT, and knows its own name of every tensor of a model
    "comfyui": "base_model.model.",
    "comfyui-generic": "diffusion_model.decoder.",
    "diffusers": "transformer.",
}
_LEAVES = {
    **{leaf: part for parts in (_PEFT_PARTS, _KOHYA_PARTS) for part, leaf in parts.items()},
    "lora_magnitude_vector.weight": "magnitude",
}
_LORA_KEY = re.compile(
    r"(?:base_model\.model\.|diffusion_model\.|transformer\.)?(?:decoder\.)?(?P<layer>layers\.\d+\..+?)"
    rf"\.(?P<leaf>{'|'.join(map(re.escape, sorted(_LEAVES, key=len, reverse=True)))})"
)
_ADAPTER_NAME = re.compile(r"(?<=\.lora_A)\.\w+(?=\.weight$)|(?<=\.lora_B)\.\w+(?=\.weight$)")


def parse_lora_key(key: str) -> LoraKey:
    """What a LoRA file's tensor is, in whichever dialect its key is.

    Read are the prefixes of PEFT, ComfyUI and diffusers or none, module names of both dialects, and PEFT's keys in
    memory, which name the adapter.

    Raises:
        ModelError: this is no adapter's tensor, or not of a layer that the DiT has.

    >>> parse_lora_key("transformer.layers.3.cross_attn.to_out.0.lora_B.weight")
    LoraKey(layer='layers.3.cross_attn.o_proj', part='up')
    >>> parse_lora_key("base_model.model.layers.3.cross_attn.o_proj.lora_up.weight")
    LoraKey(layer='layers.3.cross_attn.o_proj', part='up')
    """
    match = _LORA_KEY.fullmatch(_ADAPTER_NAME.sub("", key))
    if match is None:
        raise ModelError(
            f"{key!r} is no tensor of a LoRA for ACE-Step 1.5",
            hint="its keys look like base_model.model.layers.0.self_attn.q_proj.lora_A.weight",
        )
    layer = to_upstream(match["layer"])
    if layer_order(layer) is None:
        raise ModelError(
            f"{key!r} adapts {layer}, which is no attention or MLP projection of ACE-Step's DiT",
            hint="is this a LoRA of ACE-Step 1.5?",
        )
    return LoraKey(layer, _LEAVES[match["leaf"]])


def lora_key(key: LoraKey, dialect: LoraDialect) -> str:
    """The name of a LoRA tensor in a file of some dialect: `parse_lora_key` the other way round.

    >>> lora_key(LoraKey("layers.3.cross_attn.o_proj", "down"), "diffusers")
    'transformer.layers.3.cross_attn.to_out.0.lora_A.weight'
    """
    parts = _PEFT_PARTS if dialect in ("peft", "diffusers") else _KOHYA_PARTS
    layer = to_diffusers(key.layer) if dialect == "diffusers" else key.layer
    return f"{_PREFIXES[dialect]}{layer}.{parts[key.part]}"
