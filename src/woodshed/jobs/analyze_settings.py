"""What `woodshed analyze` can be told. Flags of Side-Step's `analyze` and `fisher` keep their names and meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from woodshed.errors import UsageError
from woodshed.importance.focuses import focus_named
from woodshed.jobs.settings import FilePath, Settings, check_device


class AnalyzeSettings(Settings):
    """Everything `woodshed analyze` can be told."""

    alternatives: ClassVar[Mapping[str, str]] = {"dataset_dir": "from_map", "from_map": "dataset_dir"}
    flag_aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "dataset_dir": ("-d",),
        "checkpoint_dir": ("-c",),
        "model": ("--model-variant", "-M"),
        "runs": ("--fisher-runs",),
        "batches": ("--fisher-batches",),
        "yes": ("-y",),
    }
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "data": ("dataset_dir", "from_map", "compare", "reference"),
        "model": ("backend", "checkpoint_dir", "model", "accept_turbo"),
        "ranks": (
            "rank",
            "rank_min",
            "rank_max",
            "rank_multiple",
            "budget_params",
            "budget_mb",
            "score",
            "allocator",
            "coverage",
            "floors",
            "alpha_ratio",
        ),
        "measuring": (
            "timestep_focus",
            "convergence_patience",
            "max_relative_error",
            "runs",
            "batches",
            "crop_s",
            "antithetic",
            "sensitivity",
            "mean_gradients",
            "seed",
        ),
        "output": ("output", "plots", "yes"),
        "computing": ("device", "precision", "batch_size"),
        "run": ("dry_run", "trust_remote_code"),
    }

    dataset_dir: FilePath | None = Field(
        default=None,
        description="Folder that `woodshed songs`, `encode` or `speech` made, or Side-Step's folder of .pt files.",
    )
    from_map: FilePath | None = Field(
        default=None, description="Allocate anew from the scores in this map; needs neither data nor model."
    )
    compare: Annotated[tuple[FilePath, ...], Field(strict=False)] = Field(
        default=(), description="Two maps: show where they differ, and measure nothing."
    )
    reference: str | None = Field(
        default=None,
        min_length=1,
        description="What to hold the data against: silence, permuted (the same songs with each other's captions), or "
        "a folder made like the data. Says how specific to this data the map is.",
    )

    backend: str = Field(
        default="acestep",
        min_length=1,
        description="Base model: acestep, stable-audio, whisper, woodshed-tiny-dit, or module:callable.",
    )
    checkpoint_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Checkpoint: a folder or a hub name; unset: that of `woodshed settings`.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="Variant in a folder that holds several: base, sft, turbo, xl-base, ...; unset: that of `woodshed "
        "settings`.",
    )
    accept_turbo: bool = Field(default=False, description="Go on with a Turbo model, which adapters can make unstable.")

    rank: int = Field(default=64, ge=1, description="Median rank to aim at.")
    rank_min: int = Field(default=16, ge=1, description="Least rank of a layer that gets an adapter.")
    rank_max: int = Field(default=128, ge=1, description="Largest rank of a layer.")
    rank_multiple: int = Field(default=8, ge=1, description="Ranks are multiples of this, or one of the bounds.")
    budget_params: int | None = Field(
        default=None, ge=1, description="Parameters of all adapters together, in place of --rank; never more."
    )
    budget_mb: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="The same as the size of a bf16 adapter file in megabytes.",
    )
    score: Literal["wg", "density", "spectrum"] = Field(
        default="wg",
        description="What ranks follow: wg, the mean |weight x gradient|; density, the Fisher information per weight; "
        "spectrum, the singular values of the mean gradient.",
    )
    allocator: Literal["waterfill", "sidestep", "flat", "random", "inverse"] = Field(
        default="waterfill",
        description="waterfill: parameters go where the score says, less so where it is uncertain; sidestep: that "
        "tool's rule; flat, random, inverse: for experiments.",
    )
    coverage: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the layers that get an adapter; unset: all, and 0.55 for the sidestep allocator.",
    )
    floors: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="Least share of a category that keeps an adapter, as CATEGORY=SHARE, such as cross_attn=0.1.",
    )
    alpha_ratio: float = Field(default=2.0, gt=0, allow_inf_nan=False, description="Alpha of each layer over its rank.")

    timestep_focus: str = Field(
        default="balanced",
        description="Timesteps that count: balanced (as the model trains), texture (0 to 0.4), structure (0.6 to 1), "
        "uniform, or LOW,HIGH.",
    )
    convergence_patience: int = Field(
        default=5, ge=1, description="Stop when the ranks have stayed put for so many checks."
    )
    max_relative_error: float = Field(
        default=0.2,
        gt=0,
        allow_inf_nan=False,
        description="And what more draws could still change of the scores, as a relative standard error (median over "
        "layers), is at most this.",
    )
    runs: int | None = Field(
        default=None, ge=1, description="Rounds over the songs at most; unset: until about 600 draws are made."
    )
    batches: int | None = Field(
        default=None, ge=1, description="Songs in a round, drawn anew each time; unset: all, 50 at most."
    )
    crop_s: float = Field(
        default=60.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds of a song that one draw looks at, anywhere in it; 0: whole songs.",
    )
    antithetic: bool = Field(default=False, description="Draw noise in pairs of opposite sign.")
    sensitivity: bool = Field(
        default=True,
        description="Measure as well what the output reacts to: a warning of what adapting may forget. Every fourth "
        "draw costs one more pass.",
    )
    mean_gradients: Literal["auto", "memory", "sketch", "none"] = Field(
        default="auto",
        description="How the mean gradient of each layer is kept, for its spectrum and an exact wg: whole in the "
        "model's memory, as a sketch, or not at all; auto is whole where it fits, else a sketch.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="All chance derives from it: the same seed, the same map.")

    output: FilePath | None = Field(
        default=None, description="The map to write; unset: fisher_map.json in the data's folder."
    )
    plots: FilePath | None = Field(
        default=None, description="Folder that receives heat maps as PNG and SVG; unset: none."
    )
    yes: bool = Field(default=False, description="Ask nothing: write over a map that is there.")

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Arithmetic of the model; auto is bf16 on a GPU and fp32 on a CPU."
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Draws in one backward pass; unset: 4, or 1 for whole songs."
    )

    dry_run: bool = Field(
        default=False, description="Measure time and memory on a first batch, report them, and write nothing."
    )
    trust_remote_code: bool = Field(default=False, description="Allow code that a checkpoint brings along to run.")

    _device_is_known = field_validator("device")(check_device)

    @field_validator("timestep_focus")
    @classmethod
    def _focus_is_known(cls, focus: str) -> str:
        focus_named(focus)
        return focus

    @field_validator("floors")
    @classmethod
    def _floors_are_shares(cls, floors: tuple[str, ...]) -> tuple[str, ...]:
        for floor in floors:
            if not re.fullmatch(r"[^=]+=(0(\.\d+)?|1(\.0+)?)", floor):
                raise UsageError(f"--floors {floor} is no CATEGORY=SHARE", hint="for example cross_attn=0.1")
        return floors

    @model_validator(mode="after")
    def _check_together(self) -> AnalyzeSettings:
        if sum((self.dataset_dir is not None, self.from_map is not None, bool(self.compare))) != 1:
            raise UsageError(
                "analyze needs either data, or a map to allocate from, or two maps to compare",
                hint="give --dataset-dir FOLDER, or --from-map FILE, or --compare A B",
            )
        if self.compare and len(self.compare) != 2:
            raise UsageError(f"--compare takes two maps, {len(self.compare)} are given", hint="--compare A B")
        if self.reference is not None and self.dataset_dir is None:
            raise UsageError(
                "--reference is looked at with the data, and no data is given",
                hint="give --dataset-dir FOLDER, or leave --reference out",
            )
        if not self.rank_min <= self.rank_max:
            raise UsageError(f"--rank-min {self.rank_min} is more than --rank-max {self.rank_max}", hint="swap the two")
        if self.budget_params is not None and self.budget_mb is not None:
            raise UsageError("--budget-params and --budget-mb are two budgets", hint="keep one of the two")
        if self.budget is None and not self.rank_min <= self.rank <= self.rank_max:
            raise UsageError(
                f"--rank {self.rank} is not within --rank-min {self.rank_min} and --rank-max {self.rank_max}",
                hint="widen the bounds, or choose a median between them",
            )
        return self

    @property
    def budget(self) -> int | None:
        """Parameters that all adapters together may have; None: ranks go by their median.

        >>> from pathlib import Path
        >>> AnalyzeSettings(dataset_dir=Path("x"), budget_mb=1.0).budget
        500000
        """
        return self.budget_params if self.budget_mb is None else int(self.budget_mb * 1e6 / 2)
