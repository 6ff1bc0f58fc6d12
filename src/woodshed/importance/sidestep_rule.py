"""Side-Step's rule of ranks, number for number, so that its maps can be made again and compared with ours.

Of M candidates the best 55 % by Fisher score get an adapter, and of every category at least a tenth. An included layer
gets

    base * sqrt(score / median score * effective rank / median effective rank),

rounded to a multiple of eight, halves to the even one, and only then held within the bounds; alpha is twice the rank.
Effective ranks are of the pretrained weights: they know nothing of the data.

Sums, quotients and roots are taken in the order that gives the same float64 as theirs: a rank on the edge between two
multiples would tell the difference.

Source: Side-Step 1.1.2, its Fisher analysis; known answers in `tests/golden/sidestep`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from woodshed.errors import UsageError

COVERAGE = 0.55
CATEGORY_FLOOR = 0.1
MULTIPLE = 8
ENERGY = 0.95
UNKNOWN_RANK = -1
PREFIX = "decoder."
"""What Side-Step puts before the name of a layer of ACE-Step's transformer, except in patterns."""
_BLOCK_PARTS = ("self_attn", "cross_attn", "mlp")
_MEASURE_AGAIN = "scores are means of squares: measure again, or choose another allocator"


@dataclass(frozen=True, slots=True, kw_only=True)
class SideStepRanks:
    """What the rule gives. Names are those it was given; orders are Side-Step's."""

    ranks: Mapping[str, int]
    """Of included layers, by falling score."""

    @property
    def alphas(self) -> dict[str, int]:
        return {name: 2 * rank for name, rank in self.ranks.items()}

    @property
    def rank_pattern(self) -> dict[str, int]:
        return {pattern_key(name): rank for name, rank in self.ranks.items()}

    @property
    def alpha_pattern(self) -> dict[str, int]:
        return {pattern_key(name): alpha for name, alpha in self.alphas.items()}

    @property
    def target_modules(self) -> list[str]:
        return target_suffixes(self.ranks)


def sidestep_ranks(
    scores: Mapping[str, float],
    effective_ranks: Mapping[str, int],
    *,
    base_rank: int = 64,
    rank_min: int = 16,
    rank_max: int = 128,
    coverage: float = COVERAGE,
) -> SideStepRanks:
    """Choose layers and give them ranks.

    Args:
        scores: Fisher score of every candidate; of equal scores, the one that comes first is the better one.
        effective_ranks: of the weights; a layer that is missing, or has no positive one, counts as average.
        coverage: share of the layers that is kept.

    Raises:
        UsageError: a score is not finite, or not of the sign that all others have.

    >>> sidestep_ranks({"a": 4.0, "b": 1.0, "c": 1.0}, {}, coverage=1.0).ranks
    {'a': 128, 'b': 64, 'c': 64}
    """
    for name, score in scores.items():
        if not math.isfinite(score):
            raise UsageError(f"the Fisher score of {name} is {score}", hint=_MEASURE_AGAIN)
    included = _selected(scores, coverage)
    if not included:
        return SideStepRanks(ranks={})
    middle_score = median([scores[name] for name in included]) or 1e-12
    known = [rank for name in included if (rank := effective_ranks.get(name, UNKNOWN_RANK)) > 0]
    middle_rank = median(known) if known else 1.0

    def rank_of(name: str) -> int:
        effective = effective_ranks.get(name, UNKNOWN_RANK)
        factor = scores[name] / middle_score * (effective / middle_rank if effective > 0 else 1.0)
        if factor < 0:
            raise UsageError(
                f"the Fisher score of {name} is {scores[name]}, and the sidestep rule takes a root", hint=_MEASURE_AGAIN
            )
        rounded = round(base_rank * math.sqrt(factor) / MULTIPLE) * MULTIPLE
        return max(rank_min, min(rank_max, rounded))

    return SideStepRanks(ranks={name: rank_of(name) for name in included})


def effective_rank(weight: Tensor) -> int:
    """How many of the largest singular values of a weight hold 95 % of the sum of their squares, in float32.

    Returns:
        1 for zeros, -1 for a weight that has no finite singular values. The kernel of a convolution counts as inputs.

    >>> effective_rank(torch.eye(20)), effective_rank(torch.zeros(3, 3))
    (19, 1)
    """
    try:
        energy = torch.linalg.svdvals(weight.detach().flatten(1).float()).pow(2)
    except RuntimeError:  # torch.linalg.LinAlgError, which torch does not export by its name
        return UNKNOWN_RANK
    total = energy.sum()
    if not bool(total.isfinite()):
        return UNKNOWN_RANK
    if float(total) < 1e-12:
        return 1
    return int((energy.cumsum(0) / total < ENERGY).sum()) + 1


def pattern_key(name: str) -> str:
    """What Side-Step calls a layer in `rank_pattern` and `alpha_pattern`.

    >>> pattern_key("decoder.layers.0.mlp.up_proj")
    'layers.0.mlp.up_proj'
    """
    return name.removeprefix(PREFIX)


def target_suffixes(names: Iterable[str]) -> list[str]:
    """What Side-Step tells PEFT to adapt: the endings of names from the part of the block on, sorted.

    PEFT takes an ending in every block, so that excluded layers of the same ending are adapted as well.

    >>> target_suffixes(["decoder.layers.1.mlp.up_proj", "decoder.layers.0.mlp.up_proj", "decoder.proj_in"])
    ['mlp.up_proj']
    """
    return sorted({suffix for name in names if (suffix := block_suffix(name)) is not None})


def block_suffix(name: str) -> str | None:
    """The ending of one name from the part of the block on; None where it is in no such part.

    >>> block_suffix("layers.3.cross_attn.q_proj")
    'cross_attn.q_proj'
    """
    parts = name.split(".")
    start = next((index for index, part in enumerate(parts) if part in _BLOCK_PARTS), None)
    return None if start is None else ".".join(parts[start:])


def _selected(scores: Mapping[str, float], coverage: float) -> list[str]:
    ranked = sorted(scores, key=lambda name: scores[name], reverse=True)
    if not ranked:
        return []
    chosen = set(ranked[: max(1, int(len(ranked) * coverage))])
    for category in {_category(name): None for name in ranked}:
        chosen |= _promoted([name for name in ranked if _category(name) == category], chosen)
    return [name for name in ranked if name in chosen]


def _promoted(members: Sequence[str], chosen: set[str]) -> set[str]:
    """The best of those left out, as many as the category lacks of its tenth."""
    floor = max(1, int(len(members) * CATEGORY_FLOOR))
    left_out = [name for name in members if name not in chosen]
    lacking = floor - (len(members) - len(left_out))
    return set(left_out[: max(0, lacking)])


def _category(name: str) -> str:
    return next((part for part in ("cross_attn", "mlp") if f".{part}." in name), "self_attn")
