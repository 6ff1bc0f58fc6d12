"""`fisher_map.json`: what an analysis found and which rank it gave each layer.

The top level is schema 2 of Side-Step, so that its trainer reads our maps; all that it has no room for stands under the
key `woodshed`. A map of Side-Step's own has no such key. Nothing of a map that was read is lost when it is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from woodshed.contracts import Json

SCHEMA_VERSION = 2
"""Of the top level, Side-Step's count."""
FORMAT = 1
"""Of what stands under `woodshed`, our own count."""

Number = int | float
"""One of Side-Step's: a whole number stays one."""


def _null_if_infinite(number: float) -> float | None:
    return number if math.isfinite(number) else None


RelativeError = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    PlainSerializer(_null_if_infinite),
    Field(ge=0),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]}),
]
"""Infinite where nothing is known, which JSON has no number for: null."""
Upper = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    PlainSerializer(_null_if_infinite),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]
Lower = Annotated[
    float,
    BeforeValidator(lambda value: -math.inf if value is None else value),
    PlainSerializer(_null_if_infinite),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]
"""Ends of an interval, null where they are infinite."""


KEEP_ORDER = "keep the order of keys"
"""Context for `model_validate`."""


class _Part(BaseModel):
    """Frozen; what a newer version added is kept, and what was read from a file keeps its order of keys."""

    model_config = ConfigDict(frozen=True, extra="allow")

    _order: tuple[str, ...] = PrivateAttr(default=())

    def __eq__(self, other: object) -> bool:
        # Unlike pydantic's own, blind to the order of keys.
        return type(self) is type(other) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    @model_validator(mode="wrap")
    @classmethod
    def _remember_order(cls, data: Any, make: Callable[[Any], Any], info: Any) -> Any:
        part = make(data)
        if info.context == KEEP_ORDER and isinstance(data, dict):
            part._order = tuple(data)
        return part

    @model_serializer(mode="wrap")
    def _in_order(self, dump: Callable[[Any], Any]) -> dict[str, Any]:
        dumped: dict[str, Any] = dump(self)
        return {key: dumped[key] for key in self._order if key in dumped} | dumped


class Estimate(_Part):
    """A number with its 90 % interval, by a bootstrap over songs."""

    value: float
    low: Lower = Field(description="Null: no bound is known, as songs are too few.")
    high: Upper
    relative_se: RelativeError = Field(
        description="Standard error of the logarithm less its mean over layers: what layers differ by; null: nothing "
        "is known."
    )


class Profile(_Part):
    """What one focus says of one layer."""

    energy: Estimate = Field(description="Mean squared norm of the gradient of one draw: signal and noise.")
    signal: Estimate = Field(description="Squared norm of the mean gradient, unbiased: it can be negative.")
    noise: float = Field(description="Energy less signal.")
    wg: Estimate = Field(description="Mean over weights of |weight x mean gradient|.")
    density: Estimate = Field(description="Energy per weight: the trace of the empirical Fisher information.")
    sensitivity: Estimate | None = Field(
        default=None, description="Mean squared norm of the output's gradient along random directions, per weight."
    )
    contrast: float | None = Field(
        default=None,
        description="Squared distance between the mean gradients of the data and the reference beyond what chance "
        "gives, over the energy: 0 where they do not differ.",
    )


class LayerRecord(_Part):
    """All that is known of one layer."""

    name: str
    category: str
    d_out: int
    d_in: int
    num_weights: int
    adaptable: bool
    profiles: dict[str, Profile] = Field(description="By focus: balanced, texture, structure, uniform, and the asked.")
    spectrum: list[float] = Field(description="Largest singular values of the mean gradient, falling.")
    spectrum_rest: float = Field(description="Squared singular values behind them, summed.")
    rank: int = Field(ge=0, description="0: no adapter.")
    alpha: float = Field(ge=0)
    effective_rank: int = Field(
        default=-1, description="Singular values of the weight with 95 % of its energy; -1: not asked for."
    )
    rank_probability: dict[str, float] = Field(
        default_factory=dict, description="Rank -> share of bootstrap resamples that give it."
    )
    inclusion_probability: float = 1.0
    group: int = Field(default=0, description="Layers of one number cannot be told apart by the chosen score.")


class Convergence(_Part):
    """Why the measuring ended."""

    reason: Literal["stable", "budget of passes used", "not converged", "fixed"]
    num_passes: int = Field(description="Backward passes, all of them.")
    num_draws: int
    num_checks: int
    patience: int
    moved: list[float] = Field(description="Share of the ranks' parameters that moved, check by check.")
    relative_se: list[RelativeError] = Field(description="Of scores by their draws, songs aside, check by check.")
    max_relative_se: float


class AllocationRecord(_Part):
    """How ranks were given."""

    rule: Literal["waterfill", "sidestep", "flat", "random", "inverse"]
    score: str
    base_rank: int | None = Field(description="The median that was asked for; null under a budget.")
    budget_params: int | None
    rank_min: int
    rank_max: int
    rank_multiple: int
    alpha_ratio: float
    coverage: float
    floors: dict[str, float]
    seed: int
    num_params: int = Field(description="Of all adapters together, as LoRA.")
    median_rank: float
    shrinkage: float = Field(description="0: ranks follow the scores; 1: scores are noise and ranks are flat.")
    notes: list[str] = Field(default_factory=list)


class ReferenceRecord(_Part):
    """What the data was compared with."""

    kind: str = Field(description="silence, permuted, or the folder's name.")
    num_items: int
    digest: str | None = None
    rank_correlation: float = Field(description="Spearman's, between the scores on the data and on the reference.")
    ceiling: float = Field(description="The same between two halves of the data: what equal data would give.")
    p_value: float = Field(description="Share of relabelled song sets that differ from each other as much.")
    is_specific: bool | None = Field(description="Null: too few songs have a partner for a test to say.")


class WoodshedPart(_Part):
    """What schema 2 has no room for."""

    format: Literal[1] = 1
    versions: dict[str, str]
    backend: str
    seed: int
    precision: str
    device: str = Field(description="Type of the device: results are byte-equal on one type only.")
    weights_digest: str
    hidden_sizes: dict[str, list[int]] = Field(description="Category -> every (outputs x inputs) it has, sorted.")
    data_digest: str = Field(description="Of the contents of all items.")
    num_items: int
    items_used: list[str]
    loss: str
    draws: dict[str, Json] = Field(description="How draws were made: crops, antithetic noise, share of the focus, ...")
    effective_draws: dict[str, float] = Field(description="Focus -> draws of equal weight that would say as much.")
    convergence: Convergence
    allocation: AllocationRecord
    layers: list[LayerRecord]
    leverage: list[dict[str, Json]] = Field(description="Items that drive the map: id and share, the largest first.")
    halves_correlation: float = Field(description="Spearman's, between the scores of two halves of the songs.")
    trace: dict[str, Json] = Field(description="Heat map of timestep x layer: edges and mean energy per bin.")
    reference: ReferenceRecord | None = None


class RankBudget(_Part):
    min: int
    max: int


class ModuleRecord(_Part):
    """An included layer, as schema 2 says it."""

    name: str
    fisher_score: Number
    fisher_cross_run_std: Number
    effective_rank: int = Field(description="-1: not known.")
    assigned_rank: int


class FisherMap(_Part):
    """A whole map."""

    version: int = Field(default=1, description="2; maps without it are older.")
    model_variant: str
    timestep_focus: str
    timestep_range: list[Number]
    timestep_params: dict[str, Json] = Field(default_factory=dict)
    num_runs: int
    batches_per_run: int
    total_batches: int
    base_rank: int
    rank_budget: RankBudget
    dataset_hash: str
    target_modules: list[str]
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, int | float]
    modules: list[ModuleRecord]
    excluded_modules: list[str] = Field(default_factory=list)
    sample_coverage: list[dict[str, Json]] = Field(default_factory=list)
    num_hidden_layers: int | None = None
    woodshed: WoodshedPart | None = None
