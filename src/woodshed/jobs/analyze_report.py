"""What `woodshed analyze` has to say when it is done."""

from __future__ import annotations

from dataclasses import dataclass

from woodshed.contracts import Json
from woodshed.importance.fisher_map import FisherMap
from woodshed.jobs.report import to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzePlan:
    """What an analysis would take, measured on its first batch on this machine."""

    dataset: str
    output: str
    backend: str
    variant: str
    num_items: int
    audio_s: float | None
    """Seconds of sound in all items; None where the folder does not tell."""
    num_layers: int
    timestep_focus: str
    rank: int | None
    """Median; None under a budget."""
    rank_min: int
    rank_max: int
    budget_params: int | None
    most_draws: int
    fewest_draws: int
    """That can be enough: patience is what they are for."""
    s_per_draw: float
    model_bytes: int
    extra_bytes: int
    """Beside the model, while gradients are measured."""
    disk_bytes: int
    mean_gradients: str
    """`memory`, `sketch` or `none`."""
    fragile: str | None = None
    """Why adapters can spoil this variant."""
    notes: tuple[str, ...] = ()

    @property
    def longest_s(self) -> float:
        return self.most_draws * self.s_per_draw

    @property
    def shortest_s(self) -> float:
        return self.fewest_draws * self.s_per_draw

    exit_code = 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self) | {"longest_s": self.longest_s, "shortest_s": self.shortest_s}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeReport:
    """A map, and how it came about."""

    output: str
    map: FisherMap
    num_failed: int
    """Items that could not be looked at."""
    failures: tuple[tuple[str, str], ...]
    """Item and reason, the first hundred."""
    elapsed_s: float
    announced_bytes: int
    """Memory beside the model that the analysis said it would take."""
    peak_extra_bytes: int
    """What it took."""
    plots: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 3 some items failed."""
        return 3 if self.num_failed else 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeStopped:
    """An analysis that was ended early; what it measured waits for the same command."""

    output: str
    num_draws: int
    most_draws: int
    stopped_by: str
    """Name of the signal."""

    @property
    def exit_code(self) -> int:
        return {"SIGINT": 130, "SIGTERM": 143}.get(self.stopped_by, 1)

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDifference:
    """One layer in two maps. Scores are relative to the geometric mean over the layers that both maps have."""

    name: str
    rank_a: int
    rank_b: int
    relative_a: float
    relative_b: float
    z: float
    """Difference of the logarithms over its standard error; 0 where a map has no standard errors."""
    is_distinct: bool
    """Beyond chance, with all layers of the comparison taken into account (Holm, 5 %)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareReport:
    """Two maps side by side."""

    map_a: str
    map_b: str
    score: str
    num_common: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    rank_correlation: float
    """Spearman's, between the scores of the common layers."""
    moved_share: float
    """Share of the ranks' parameters that lie elsewhere in B than in A."""
    layers: tuple[LayerDifference, ...]
    """All common layers, the most different first."""
    verdict: str
    """One sentence: whether the maps differ beyond their intervals."""
    notes: tuple[str, ...] = ()

    exit_code = 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)
