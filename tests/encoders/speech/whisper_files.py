"""Small Whisper checkpoints in both formats, for tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
WIDTH, HIDDEN, NUM_POSITIONS = 128, 192, 60


def name_bytes(name: str) -> bytes:
    return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"


def write_ctranslate2(
    path: Path, arrays: Mapping[str, np.ndarray], *, aliases: Mapping[str, str] | None = None, spec: str = "WhisperSpec"
) -> Path:
    aliases = aliases or {}
    content = [struct.pack("<I", 6), name_bytes(spec), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        content += [name_bytes(name), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)]
        content += [struct.pack("<BI", TYPES[array.dtype.name], array.nbytes), array.tobytes()]
    content.append(struct.pack("<I", len(aliases)))
    content += [name_bytes(alias) + name_bytes(name) for alias, name in aliases.items()]
    path.write_bytes(b"".join(content))
    return path


def small_whisper(*, num_layers: int = 3) -> dict[str, Tensor]:
    """Random weights under transformers' names without prefix, exact in float16."""
    draw = torch.Generator().manual_seed(7)

    def random(*shape: int, around: float = 0.0) -> Tensor:
        return (around + 0.08 * torch.randn(shape, generator=draw)).half().float()

    state = {"embed_positions.weight": random(NUM_POSITIONS, WIDTH)}
    for name, inputs in (("conv1", 80), ("conv2", WIDTH)):
        state |= {f"{name}.weight": random(WIDTH, inputs, 3), f"{name}.bias": random(WIDTH)}
    for layer in (f"layers.{index}" for index in range(num_layers)):
        for part in "qkvo":
            name = f"{layer}.self_attn.{'out' if part == 'o' else part}_proj"
            state[f"{name}.weight"] = random(WIDTH, WIDTH)
            if part != "k":
                state[f"{name}.bias"] = random(WIDTH)
        for name, rows, columns in (("fc1", HIDDEN, WIDTH), ("fc2", WIDTH, HIDDEN)):
            state |= {f"{layer}.{name}.weight": random(rows, columns), f"{layer}.{name}.bias": random(rows)}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            state |= {f"{layer}.{name}.weight": random(WIDTH, around=1.0), f"{layer}.{name}.bias": random(WIDTH)}
    norms = {"layer_norm.weight": random(WIDTH, around=1.0), "layer_norm.bias": random(WIDTH)}
    return state | norms


def as_ctranslate2(state: Mapping[str, Tensor], dtype: str = "float16") -> dict[str, np.ndarray]:
    """The same weights as CTranslate2 names and joins them."""
    arrays = {"encoder/num_heads": np.array(WIDTH // 64, np.int16), "decoder/layer_norm/gamma": np.ones(WIDTH, dtype)}
    plain = {"embed_positions.weight": "position_encodings/encodings"}
    plain |= {f"conv{i}.{leaf}": f"conv{i}/{leaf}" for i in (1, 2) for leaf in ("weight", "bias")}
    arrays |= {f"encoder/{theirs}": state[ours].numpy().astype(dtype) for ours, theirs in plain.items()}
    for index in sorted({key.split(".")[1] for key in state if key.startswith("layers.")}):
        ours, theirs = f"layers.{index}", f"encoder/layer_{index}"
        joined = {leaf: [f"{ours}.self_attn.{p}_proj.{leaf}" for p in "qkv"] for leaf in ("weight", "bias")}
        for leaf, keys in joined.items():
            parts = [state.get(key, torch.zeros(WIDTH)) for key in keys]
            arrays[f"{theirs}/self_attention/linear_0/{leaf}"] = torch.cat(parts).numpy().astype(dtype)
        blocks = {"self_attn.out_proj": "self_attention/linear_1", "fc1": "ffn/linear_0", "fc2": "ffn/linear_1"}
        norms = {"self_attn_layer_norm": "self_attention/layer_norm", "final_layer_norm": "ffn/layer_norm"}
        for names, leaves in ((blocks, ("weight", "bias")), (norms, ("gamma", "beta"))):
            for block, theirs_block in names.items():
                for leaf, theirs_leaf in zip(("weight", "bias"), leaves, strict=True):
                    value = state[f"{ours}.{block}.{leaf}"].numpy().astype(dtype)
                    arrays[f"{theirs}/{theirs_block}/{theirs_leaf}"] = value
    return arrays


def write_transformers(path: Path, state: Mapping[str, Tensor], *, prefix: str = "model.encoder.") -> Path:
    decoder = {"model.decoder.layer_norm.weight": torch.ones(WIDTH)}
    save_file({prefix + key: value.contiguous() for key, value in state.items()} | decoder, path)
    return path


def write_codebook(path: Path, *, layer: int = 2, size: int = 40, width: int = WIDTH, weights: str = "none") -> Path:
    draw = torch.Generator().manual_seed(11)
    tensors = {
        "entries": torch.randn(size, width, generator=draw).half(),
        "mean": torch.zeros(width).half(),
        "scale": torch.ones(width).half(),
    }
    facts = {"layer": layer, "weights": weights, "made_for": "a small random Whisper"}
    save_file(tensors, path, metadata={"codebook": json.dumps(facts)})
    return path
