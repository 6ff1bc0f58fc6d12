"""Layers as a table of block x projection, from their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NO_BLOCK = ""
"""Block of a layer that is in none, such as `proj_in`."""

_PARTS = ("self", "cross", "attn", "mlp", "ff", "fc")
_LEAVES = ("qkv", "q", "kv", "k", "v", "o", "out", "gate", "up", "fc1", "down", "fc2")


@dataclass(frozen=True, slots=True)
class LayerGrid:
    """Rows, columns, and which layer stands where; a model need not have every projection in every block."""

    blocks: tuple[str, ...]
    projections: tuple[str, ...]
    cells: Mapping[tuple[str, str], str]
    """(block, projection) -> name of the layer."""


def layer_grid(names: Iterable[str]) -> LayerGrid:
    """Arrange layers: blocks by number, projections as the signal meets them.

    >>> grid = layer_grid(["layers.10.mlp.up_proj", "layers.2.mlp.up_proj", "layers.2.self_attn.q_proj"])
    >>> grid.blocks, grid.projections
    (('layers.2', 'layers.10'), ('self_attn.q_proj', 'mlp.up_proj'))
    >>> grid.cells["layers.10", "mlp.up_proj"]
    'layers.10.mlp.up_proj'
    """
    cells = {split_name(name): name for name in names}
    blocks = sorted({block for block, _ in cells}, key=_by_number)
    projections = sorted({projection for _, projection in cells}, key=_by_flow)
    return LayerGrid(tuple(blocks), tuple(projections), cells)


def split_name(name: str) -> tuple[str, str]:
    """Block, which ends in the name's first number, and projection.

    >>> [split_name(name) for name in ("encoder.layers.3.self_attn.q_proj", "proj_in", "blocks.7")]
    [('encoder.layers.3', 'self_attn.q_proj'), ('', 'proj_in'), ('blocks.7', 'weight')]
    """
    parts = name.split(".")
    at = next((position for position, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        return NO_BLOCK, name
    return ".".join(parts[: at + 1]), ".".join(parts[at + 1 :]) or "weight"


def common_stem(blocks: Iterable[str]) -> str | None:
    """What all blocks are called before their number; None where they are not called the same.

    >>> common_stem(["layers.0", "layers.11"]), common_stem(["encoder.layers.0", "decoder.layers.0"])
    ('layers', None)
    """
    stems = {block.rpartition(".")[0] for block in blocks}
    return stems.pop() if len(stems) == 1 else None


def _by_number(name: str) -> list[tuple[int, int, str]]:
    parts = name.split(".")
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _by_flow(projection: str) -> tuple[int, int, str]:
    *path, leaf = projection.split(".")
    words = re.split(r"[._]", ".".join(path))
    part = next((place for place, known in enumerate(_PARTS) if known in words), len(_PARTS))
    leaf_words = re.split(r"[._]", leaf.removeprefix("to_"))
    place = next((place for place, known in enumerate(_LEAVES) if known == leaf_words[0]), len(_LEAVES))
    return part, place, projection
