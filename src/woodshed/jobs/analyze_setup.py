"""What an analysis needs before its first pass: the model, the songs, the looks, and what is asked of the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from woodshed.backends.open import NEED_A_CHECKPOINT, open_backend
from woodshed.contracts import Observer, Predicts, Trainable
from woodshed.errors import UsageError
from woodshed.importance.allocation import RankRequest, allocate
from woodshed.importance.belief import Scored
from woodshed.importance.focus import Timesteps
from woodshed.importance.focuses import focus_named
from woodshed.importance.layers import layer_shapes
from woodshed.importance.looks import LookPlan, plan_looks
from woodshed.importance.measuring import SKETCH_RANK, Examples, Measuring
from woodshed.importance.memory import device_of
from woodshed.jobs import user_settings
from woodshed.jobs.analyze_data import FolderExamples, Partners, PermutedExamples, SilentExamples
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.model import pick_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that is decided before anything is measured."""

    model: Trainable
    examples: FolderExamples
    reference: Examples | None
    timesteps: Timesteps
    plan: LookPlan
    request: RankRequest
    options: Measuring


def set_up(settings: AnalyzeSettings, observer: Observer) -> Setup:
    """Load the model, open the data, and refuse what cannot work.

    Raises:
        UsageError: what is asked for cannot work with this model or this data.
        StoreError: the data cannot be read.
        ModelError: the model cannot be loaded.
    """
    assert settings.dataset_dir is not None
    model = _model(settings, observer)
    examples = FolderExamples(settings.dataset_dir, model, crop_s=settings.crop_s, seed=settings.seed)
    reference = _reference(settings, model, examples)
    timesteps = Timesteps(model, focus_named(settings.timestep_focus))
    _check_focus(settings, timesteps)
    plan = plan_looks(
        len(examples),
        runs=settings.runs,
        batches=settings.batches,
        antithetic=settings.antithetic,
        condition_dropout=model.condition_dropout,
        seed=settings.seed,
        is_repetitive=not (timesteps.has_timesteps or examples.is_cropped or model.condition_dropout),
    )
    request = rank_request(settings)
    # A request that no scores could fulfil is refused here, and not after the first draws.
    shapes = layer_shapes(model.layers())
    allocate(request, shapes, {shape.name: Scored(1.0) for shape in shapes})
    return Setup(
        model=model,
        examples=examples,
        reference=reference,
        timesteps=timesteps,
        plan=plan,
        request=request,
        options=_measuring(settings, model, plan),
    )


def rank_request(settings: AnalyzeSettings) -> RankRequest:
    """What the settings ask of the allocation."""
    return RankRequest(
        rule=settings.allocator,
        score=settings.score,
        base_rank=settings.rank if settings.budget is None else None,
        budget_params=settings.budget,
        rank_min=settings.rank_min,
        rank_max=settings.rank_max,
        rank_multiple=settings.rank_multiple,
        coverage=settings.coverage,
        floors={name: float(share) for name, _, share in (floor.rpartition("=") for floor in settings.floors)},
        alpha_ratio=settings.alpha_ratio,
        seed=settings.seed,
    )


def _model(settings: AnalyzeSettings, observer: Observer) -> Trainable:
    checkpoint = checkpoint_of(settings)
    if checkpoint is None and settings.backend in NEED_A_CHECKPOINT:
        raise UsageError(
            f"{settings.backend} needs a checkpoint",
            hint="--checkpoint-dir FOLDER, or once and for all: woodshed settings set checkpoint_dir FOLDER",
        )
    device = pick_device(settings.device)
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and settings.backend != "woodshed-tiny-dit" else "fp32"
    observer.message(f"loading {settings.backend}")
    model = open_backend(
        settings.backend,
        checkpoint=checkpoint,
        variant=variant_of(settings),
        device=device,
        dtype=precision,
        trust_remote_code=settings.trust_remote_code,
    )
    if model.variant.fragile and not settings.accept_turbo:
        raise UsageError(
            f"{model.variant.name}: {model.variant.fragile}", hint="take base, or go on with --accept-turbo"
        )
    return model


def checkpoint_of(settings: AnalyzeSettings) -> str | None:
    """Folder or hub name of the checkpoint: the flag's, else what is remembered."""
    if settings.checkpoint_dir is not None or settings.backend not in NEED_A_CHECKPOINT:
        return settings.checkpoint_dir
    return user_settings.load().checkpoint_dir


def variant_of(settings: AnalyzeSettings) -> str | None:
    """Variant that is asked for, else what is remembered; None: whatever the checkpoint holds."""
    if settings.model is not None or settings.backend != "acestep":
        return settings.model
    # A variant that is remembered belongs to the checkpoint that is remembered.
    return user_settings.load().model if settings.checkpoint_dir is None else None


def _measuring(settings: AnalyzeSettings, model: Trainable, plan: LookPlan) -> Measuring:
    """Options with everything decided that the settings leave open."""
    shapes = layer_shapes(model.layers())
    mean_gradients: str = settings.mean_gradients
    if mean_gradients == "auto":
        whole_bytes = 4 * sum(shape.num_weights for shape in shapes)
        mean_gradients = "memory" if whole_bytes < _memory_bytes(model) / 4 else "sketch"
    if settings.score == "spectrum" and mean_gradients == "none":
        raise UsageError("--score spectrum needs mean gradients", hint="--mean-gradients sketch, memory or auto")
    return Measuring(
        batch_size=settings.batch_size or (4 if settings.crop_s else 1),
        mean_gradients=mean_gradients,
        sensitivity=settings.sensitivity and isinstance(model, Predicts),
        sketch_rank=max(SKETCH_RANK, settings.rank_max) if settings.score == "spectrum" else SKETCH_RANK,
        seed=plan.seed,
    )


def _memory_bytes(model: Trainable) -> int:
    """Of the machine, and not what is free of it: that would be another choice on another day."""
    device = device_of(model)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return int(psutil.virtual_memory().total)


def _reference(settings: AnalyzeSettings, model: Trainable, examples: FolderExamples) -> Examples | None:
    """What the data is held against."""
    if settings.reference is None:
        return None
    if settings.reference == "silence":
        return SilentExamples(examples, model)
    if settings.reference == "permuted":
        return PermutedExamples(examples, model, seed=settings.seed)
    other = FolderExamples(Path(settings.reference), model, crop_s=settings.crop_s, seed=settings.seed)
    return Partners(other, len(examples), seed=settings.seed)


def _check_focus(settings: AnalyzeSettings, timesteps: Timesteps) -> None:
    if not timesteps.has_timesteps and settings.timestep_focus != "balanced":
        raise UsageError(
            f"--timestep-focus {settings.timestep_focus}: {settings.backend} has no timesteps", hint="leave it out"
        )
    if timesteps.has_timesteps and not timesteps.is_continuous and settings.timestep_focus != "balanced":
        raise UsageError(
            f"--timestep-focus {settings.timestep_focus}: {settings.backend} trains on a few timesteps only",
            hint="--timestep-focus balanced takes those",
        )


def deviations(settings: AnalyzeSettings, timesteps: Timesteps) -> tuple[str, ...]:
    """Where we do something else than the documents that users come from."""
    told = []
    if settings.timestep_focus == "balanced" and timesteps.has_timesteps:
        told.append(
            "balanced is the distribution of timesteps that the model itself trains with, not the whole range alike "
            "(that is --timestep-focus uniform); older tools began with texture"
        )
    if settings.allocator != "sidestep" and (settings.coverage is None or settings.coverage == 1):
        told.append("every layer gets an adapter; --coverage 0.55 leaves out as many as Side-Step does")
    return tuple(told)
