"""What an analysis will take, measured on its first batch: time, memory, and the bytes of what it keeps."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from woodshed.contracts import Trainable
from woodshed.errors import ItemError, UsageError
from woodshed.importance.convergence import CHECK_DRAWS
from woodshed.importance.focus import Timesteps
from woodshed.importance.looks import Look, LookPlan, looks
from woodshed.importance.measuring import SENSITIVITY_EVERY, Measuring, measurer_in, num_values
from woodshed.importance.memory import PeakMemory, device_of
from woodshed.jobs.analyze_data import FolderExamples
from woodshed.jobs.analyze_report import AnalyzePlan
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.analyze_setup import Setup

HEAP_GROWTH = 1.08
"""Of a process over a run: 1.07 to 1.15 in batches of 1 and 4, 1.01 in batches of 16 (woodshed-tiny-dit, glibc)."""
FORECAST_LOOKS = 64
"""Of which the largest is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What one batch on this machine foretells."""

    s_per_draw: float
    model_bytes: int
    extra_bytes: int
    """That the passes took beside the model, sums of gradients included."""
    sum_bytes: int
    """Of what mean gradients are summed in."""
    disk_bytes: int
    mean_gradients: str
    notes: tuple[str, ...]

    def header(self, plan: AnalyzePlan) -> str:
        """One line, before anything is measured in earnest."""
        gradients = {
            "memory": f"mean gradients take {_mb(self.sum_bytes)}",
            "sketch": f"sketches of mean gradients take {_mb(self.sum_bytes)}",
            "none": "no mean gradients are kept",
        }[self.mean_gradients]
        return (
            f"{plan.num_items} songs, {plan.num_layers} layers, at most {plan.most_draws} draws of "
            f"{self.s_per_draw:.2g} s; memory beside the model {_mb(plan.extra_bytes)} ({gradients}), "
            f"disk {_mb(self.disk_bytes)} while it runs"
        )


def forecast(
    model: Trainable, examples: FolderExamples, timesteps: Timesteps, plan: LookPlan, options: Measuring
) -> Forecast:
    """Make one batch's passes three times, and keep nothing of them. No other batch is larger.

    Raises:
        UsageError: not one song can be looked at.
    """
    first = _first_looks(examples, plan, timesteps, options.batch_size)
    with TemporaryDirectory() as scratch, PeakMemory(device_of(model)) as peak:
        measurer = measurer_in(Path(scratch), model, examples, timesteps, options)
        with measurer.probe.attached():
            measurer.measure(first)
            # The heap of a process grows for a while until what is freed is used again.
            measurer.measure(first)
            started = time.perf_counter()
            measurer.measure(first)
            elapsed_s = time.perf_counter() - started
        sum_bytes = measurer.sum_bytes
        is_batched = measurer.is_batched
        row_bytes = 4 * (measurer.table.num_entries + measurer.table.num_layers)
    notes = (
        ()
        if is_batched or options.batch_size == 1
        else ("examples are looked at one by one: this model, or songs of different lengths, cannot share passes",)
    )
    return Forecast(
        s_per_draw=elapsed_s / len(first),
        model_bytes=_bytes_of(model),
        extra_bytes=_over_a_run(peak.num_bytes, sum_bytes, device_of(model)),
        sum_bytes=sum_bytes,
        # While a newer state is written the older one is there, too.
        disk_bytes=row_bytes * plan.num_looks + 2 * sum_bytes,
        mean_gradients=options.mean_gradients,
        notes=notes,
    )


def plan_of(
    settings: AnalyzeSettings,
    output: Path,
    *,
    setup: Setup,
    ahead: Forecast,
) -> AnalyzePlan:
    """The plan of an analysis, for `--dry-run` and the wizard."""
    per_draw = 2 if settings.reference is not None else 1
    return AnalyzePlan(
        dataset=str(setup.examples.folder),
        output=str(output),
        backend=settings.backend,
        variant=setup.model.variant.name,
        num_items=len(setup.examples),
        audio_s=setup.examples.audio_s,
        num_layers=len(setup.model.layers()),
        timestep_focus=settings.timestep_focus,
        rank=settings.rank if settings.budget is None else None,
        rank_min=settings.rank_min,
        rank_max=settings.rank_max,
        budget_params=settings.budget,
        most_draws=setup.plan.num_looks,
        fewest_draws=min(setup.plan.num_looks, CHECK_DRAWS * (settings.convergence_patience + 1)),
        s_per_draw=ahead.s_per_draw * per_draw,
        model_bytes=ahead.model_bytes,
        extra_bytes=ahead.extra_bytes,
        disk_bytes=ahead.disk_bytes,
        mean_gradients=ahead.mean_gradients,
        fragile=setup.model.variant.fragile,
        notes=ahead.notes,
    )


def _first_looks(examples: FolderExamples, plan: LookPlan, timesteps: Timesteps, batch_size: int) -> list[Look]:
    """A full batch of looks like the largest of the first ones: hardly a batch of the analysis takes more.

    Raises:
        UsageError: there is none that can be made.
    """
    largest, size, reason = None, -1, ""
    for look in islice(looks(plan, timesteps), max(FORECAST_LOOKS, plan.num_items)):
        try:
            found = num_values(examples.example(look.item, look.visit))
        except ItemError as error:
            reason = reason or str(error)
            continue
        if found > size:
            largest, size = look, found
        if look.number >= FORECAST_LOOKS:
            break
    if largest is None:
        raise UsageError(f"not one song can be looked at: {reason}", hint="prepare the data again")
    # As many as hold the usual share of those that are looked at for sensitivity.
    return [dataclasses.replace(largest, number=number) for number in range(max(batch_size, SENSITIVITY_EVERY))]


def _over_a_run(peak_bytes: int, sum_bytes: int, device: torch.device) -> int:
    """What a few passes took, and on a CPU what a run adds to it: a copy of the sums while they are written, and the
    gaps that freed tensors leave in the heap."""
    return peak_bytes if device.type == "cuda" else int(peak_bytes * HEAP_GROWTH) + sum_bytes


def _bytes_of(model: Trainable) -> int:
    """Of the whole network where it is found, else of the layers."""
    for name in ("transformer", "network"):
        network = getattr(model, name, None)
        if isinstance(network, nn.Module):
            return sum(parameter.nbytes for parameter in network.parameters())
    return sum(parameter.nbytes for layer in model.layers().values() for parameter in layer.parameters())


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
