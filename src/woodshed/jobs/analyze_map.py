"""The map file of an analysis: schema 2 of Side-Step on the outside, everything else under `woodshed`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

import woodshed
from woodshed.contracts import Json, Trainable
from woodshed.importance.analysis import Analysis
from woodshed.importance.belief import Scored
from woodshed.importance.fisher_map import FisherMap, WoodshedPart
from woodshed.importance.focus import UNIFORM_SHARE
from woodshed.importance.focuses import focus_named
from woodshed.importance.layers import LayerShape
from woodshed.importance.map_files import schema2_fields
from woodshed.importance.map_making import Findings
from woodshed.importance.measuring import ENTRIES, SENSITIVITY_EVERY, Measuring
from woodshed.jobs.analyze_data import data_digest, schema2_hash
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.encode import versions

_MEASURED = ("timestep_focus", "crop_s", "antithetic", "seed", "backend", "reference")
"""Settings that change what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFacts:
    """What is known before anything is measured."""

    settings: AnalyzeSettings
    data_digest: str
    dataset_hash: str
    reference_digest: str | None
    variant: str
    weights_digest: str
    timestep_params: dict[str, Json]
    device: str
    precision: str
    threads: int
    condition_dropout: float
    options: Measuring

    @classmethod
    def of(cls, settings: AnalyzeSettings, *, folder: Path, model: Trainable, options: Measuring) -> MapFacts:
        """Look at data and model."""
        weight = next(iter(model.layers().values())).weight
        assert isinstance(weight, Tensor)
        is_folder = settings.reference not in (None, "silence", "permuted")
        return cls(
            settings=settings,
            data_digest=data_digest(folder),
            dataset_hash=schema2_hash(folder),
            reference_digest=data_digest(Path(str(settings.reference))) if is_folder else None,
            variant=settings.model or model.variant.name,
            weights_digest=weights_digest(model),
            timestep_params=_timestep_params(model),
            device=weight.device.type,
            precision=str(weight.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            condition_dropout=model.condition_dropout,
            options=options,
        )


def fingerprint_of(facts: MapFacts) -> str:
    """Digest of all that changes what is measured: an analysis goes on only from draws of an equal one."""
    settings = facts.settings.to_json()
    said = {name: settings[name] for name in _MEASURED} | {
        "woodshed": woodshed.__version__,
        "torch": torch.__version__,
        "data": facts.data_digest,
        "reference": facts.reference_digest,
        "weights": facts.weights_digest,
        "batches": facts.settings.batches,
        "device": facts.device,
        "precision": facts.precision,
        "threads": facts.threads,
        "options": [str(getattr(facts.options, name)) for name in Measuring.__slots__],
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(said, sort_keys=True).encode())


def weights_digest(model: Trainable) -> str:
    """Digest of the names and weights of all layers that may be adapted."""
    digest = xxhash.xxh3_128()
    for name, module in model.layers().items():
        assert isinstance(module.weight, Tensor)
        weight = module.weight.detach().cpu().contiguous()
        digest.update(f"{name}\0{list(weight.shape)}\0{weight.dtype}\0".encode())
        digest.update(weight.view(torch.uint8).numpy().data)
    return f"xxh3_128:{digest.hexdigest()}"


def made_map(facts: MapFacts, found: Findings, analysis: Analysis) -> FisherMap:
    """The whole map. Holds no time and no path, so that equal analyses give equal files."""
    settings, plan = facts.settings, analysis.plan
    focus = focus_named(settings.timestep_focus)
    scores = {
        shape.name: Scored(float(value), float(deviation / value) if value else 0.0)
        for shape, value, deviation in zip(analysis.shapes, found.density, found.density_std, strict=True)
    }
    table, examples = analysis.measurer.table, analysis.measurer.examples
    used = sorted({examples.name(item) for item in table.items})
    rounds = -(-table.num_looks // plan.looks_per_round)
    return FisherMap.model_validate(
        {
            "version": 2,
            "model_variant": facts.variant,
            "timestep_focus": settings.timestep_focus,
            "timestep_range": [focus.low, focus.high],
            "timestep_params": facts.timestep_params,
            "num_runs": rounds,
            "batches_per_run": plan.songs_per_round,
            "total_batches": len(table),
            "base_rank": settings.rank,
            "rank_budget": {"min": settings.rank_min, "max": settings.rank_max},
            "dataset_hash": facts.dataset_hash,
            **schema2_fields(
                analysis.shapes,
                found.allocation.ranks,
                found.allocation.alphas,
                scores,
                effective_ranks=analysis.effective_ranks,
                as_side_step=settings.allocator == "sidestep",
            ),
            "sample_coverage": [
                {
                    "run": 1,
                    "selected_count": len(used),
                    "total_count": len(examples),
                    "coverage_ratio": round(len(used) / len(examples), 4),
                    "selected_files": used,
                }
            ],
            "woodshed": _own_part(facts, found, analysis, used),
        }
    )


def _own_part(facts: MapFacts, found: Findings, analysis: Analysis, used: list[str]) -> WoodshedPart:
    settings = facts.settings
    reference = found.reference
    if reference is not None:
        reference = reference.model_copy(update={"digest": facts.reference_digest})
    return WoodshedPart(
        versions=versions(),
        backend=_portable(settings.backend),
        seed=settings.seed,
        precision=facts.precision,
        device=facts.device,
        weights_digest=facts.weights_digest,
        hidden_sizes=_hidden_sizes(analysis.shapes),
        data_digest=facts.data_digest,
        num_items=len(analysis.measurer.examples),
        items_used=used,
        loss="the training loss of the model, with its share of dropped conditions",
        draws={
            "timestep_focus": settings.timestep_focus,
            "crop_s": settings.crop_s,
            "antithetic": settings.antithetic,
            "condition_dropout": facts.condition_dropout,
            "uniform_share": UNIFORM_SHARE if analysis.timesteps.is_continuous else 0.0,
            "entries_per_layer": ENTRIES,
            "sensitivity_every": SENSITIVITY_EVERY if facts.options.sensitivity else 0,
            "batch_size": facts.options.batch_size,
            "mean_gradients": facts.options.mean_gradients,
            "songs_per_round": analysis.plan.songs_per_round,
            "compute_threads": facts.threads,
        },
        effective_draws=found.effective_draws,
        convergence=found.convergence,
        allocation=found.allocation_record,
        layers=found.layers,
        leverage=found.leverage,
        halves_correlation=found.halves_correlation,
        trace=found.trace,
        reference=reference,
    )


def _portable(backend: str) -> str:
    """The name of a model's file, and not where it lies on this machine."""
    place, colon, name = backend.rpartition(":")
    return f"{Path(place).name}{colon}{name}" if place.endswith(".py") else backend


def _hidden_sizes(shapes: tuple[LayerShape, ...]) -> dict[str, list[int]]:
    sizes: dict[str, set[tuple[int, int]]] = {}
    for shape in shapes:
        sizes.setdefault(shape.category, set()).add((shape.d_out, shape.d_in))
    return {category: [size for pair in sorted(found) for size in pair] for category, found in sizes.items()}


def _timestep_params(model: Trainable) -> dict[str, Json]:
    """What Side-Step writes of ACE-Step's distribution."""
    mu, sigma = getattr(model, "_mu", None), getattr(model, "_sigma", None)
    return {} if mu is None or sigma is None else {"mu": mu, "sigma": sigma}
