"""A map as PEFT takes it: exactly its layers, each with its own rank and alpha, and nothing else.

PEFT takes a list of target modules as endings of names, and keys of `rank_pattern` and `alpha_pattern` as regular
expressions behind any prefix: `layers.1.q` would also be `encoder.layers.1.q`, and a dot any character. So targets are
one expression that must match a whole name, and every key is escaped and tied to the start of the name. Names are those
that modules have in the network which is handed to PEFT; canonical names of `Trainable.layers` may differ, so that
modules are found by identity.

Holds for LoRA, DoRA, LoKr and LoHa alike.

Source: PEFT 0.21, `check_target_module_exists` and `get_pattern_key`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from woodshed.contracts import Json
from woodshed.errors import ModelError

_MOST_NAMES = 5
_OTHER_MODEL = "analyse the model that is trained: its variant, layer names and sizes make the map"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftPatterns:
    """What PEFT's configurations take."""

    target_modules: str
    """Matches the whole name of each adapted module, and no other."""
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    fallback_rank: int
    """Least rank of all; used nowhere, as every target has its own."""

    @property
    def keywords(self) -> dict[str, Json]:
        """For `LoraConfig`, `LoKrConfig` or `LoHaConfig`. The fallback of alpha has another name in each, and is not
        used either."""
        return {
            "target_modules": self.target_modules,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "r": self.fallback_rank,
        }


def peft_patterns(
    network: nn.Module,
    layers: Mapping[str, nn.Module],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
) -> PeftPatterns:
    """Say a map in PEFT's words.

    Args:
        network: what is handed to PEFT, before it has adapters.
        layers: canonical name -> module of the network, as `Trainable.layers` gives them.
        ranks: of layers that get an adapter, by canonical name.
        alphas: of the same.

    Raises:
        ModelError: the map does not fit the model: it names no layer, or layers that are not there, or modules that
            stand in the network under two names, of which PEFT would adapt one.
    """
    paths = _paths(network, layers, ranks)
    keys = {name: f"^{re.escape(path)}" for name, path in paths.items()}
    return PeftPatterns(
        target_modules="|".join(re.escape(path) for path in paths.values()),
        rank_pattern={keys[name]: rank for name, rank in ranks.items()},
        alpha_pattern={keys[name]: alphas[name] for name in ranks},
        fallback_rank=min(ranks.values()),
    )


def verify_injection(
    network: nn.Module,
    layers: Mapping[str, nn.Module],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    *,
    adapter: str = "default",
) -> None:
    """Check that the network is adapted where the map says, as it says, and nowhere else.

    Args:
        network: with its adapters, wrapped by PEFT or not.
        layers: as they were before injection: PEFT keeps the modules themselves inside of its own.
        adapter: PEFT's name for it.

    Raises:
        ModelError: it is not; lists what differs.
    """
    names = {id(module): name for name, module in layers.items()}
    found = {names.get(base, path): settings for path, base, settings in _adapters(network, adapter)}
    faults = [f"{name} has no adapter" for name in ranks if name not in found]
    faults += [f"{name} has an adapter that the map does not know" for name in found if name not in ranks]
    for name, (rank, alpha) in found.items():
        if name in ranks and rank != ranks[name]:
            faults.append(f"{name} has rank {rank}, the map says {ranks[name]}")
        if name in ranks and not math.isclose(alpha, alphas[name], rel_tol=1e-6):
            faults.append(f"{name} has alpha {alpha:g}, the map says {alphas[name]:g}")
    if faults:
        raise ModelError(
            f"the adapters are not those of the map: {_some(faults, '; ')}",
            hint="give PEFT exactly what `peft_patterns` says of this network",
        )


def _paths(network: nn.Module, layers: Mapping[str, nn.Module], ranks: Mapping[str, int]) -> dict[str, str]:
    """Where the layers of a map stand in the network, by canonical name."""
    if not ranks:
        raise ModelError("the map gives no layer an adapter", hint="allocate anew with a larger --coverage")
    unknown = [name for name in ranks if name not in layers]
    if unknown:
        raise ModelError(f"the model has no layers {_some(unknown)}, which the map names", hint=_OTHER_MODEL)
    places: dict[int, list[str]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(path)
    absent = [name for name in ranks if id(layers[name]) not in places]
    if absent:
        raise ModelError(
            f"the network that is to be adapted does not hold {_some(absent)}",
            hint="hand PEFT the network that the layers are of",
        )
    shared = [name for name in ranks if len(places[id(layers[name])]) > 1]
    if shared:
        raise ModelError(
            f"modules stand under several names in the network: {_some(shared)}", hint="PEFT adapts one of them only"
        )
    paths = {name: places[id(layers[name])][0] for name in ranks}
    adapted = [name for name, path in paths.items() if path.endswith(".base_layer")]
    if adapted:
        raise ModelError(f"layers have adapters already: {_some(adapted)}", hint="start from the base model")
    return paths


def _adapters(network: nn.Module, adapter: str) -> Iterator[tuple[str, int, tuple[int, float]]]:
    """Path, identity of the adapted module, and rank and alpha."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in network.named_modules():
        ranks = getattr(module, "r", {})
        if isinstance(module, BaseTunerLayer) and adapter in ranks:
            alphas = getattr(module, "lora_alpha", None) or getattr(module, "alpha", {})
            yield path, id(module.get_base_layer()), (ranks[adapter], alphas[adapter])


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = len(names) - _MOST_NAMES
    return between.join([*names[:_MOST_NAMES], *([f"and {more} more"] if more > 0 else [])])
