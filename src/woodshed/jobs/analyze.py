"""`woodshed analyze` (alias `fisher`): which parts of a model a data set needs, and the adapter rank of each.

Measures gradients over the data, gives ranks by them and writes `fisher_map.json`; or gives ranks anew from a map that
is there; or compares two maps. What is measured lies in a hidden folder beside the map until that is written, and an
analysis that was cut short goes on from it.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from safetensors import SafetensorError

from woodshed.backends.open import open_backend
from woodshed.contracts import Observer, Predicts, Progress, Trainable
from woodshed.errors import StoreError, UsageError
from woodshed.importance.allocation import RankRequest, allocate
from woodshed.importance.analysis import Analysis
from woodshed.importance.belief import Scored
from woodshed.importance.draw_table import DrawTable
from woodshed.importance.fisher_map import FisherMap
from woodshed.importance.focus import Timesteps, focus_named
from woodshed.importance.kept_draws import draws_path, save_draws
from woodshed.importance.layers import layer_shapes
from woodshed.importance.looks import LookPlan, plan_looks
from woodshed.importance.map_files import write_map
from woodshed.importance.map_making import findings
from woodshed.importance.measuring import SKETCH_RANK, Examples, Measurer, Measuring, entry_places
from woodshed.importance.memory import PeakMemory, device_of
from woodshed.jobs import user_settings
from woodshed.jobs.analyze_data import (
    Cycled,
    FolderExamples,
    PermutedExamples,
    SilentExamples,
)
from woodshed.jobs.analyze_from_map import ranks_from_map
from woodshed.jobs.analyze_map import MapFacts, fingerprint_of, made_map
from woodshed.jobs.analyze_plan import forecast, plan_of
from woodshed.jobs.analyze_report import AnalyzePlan, AnalyzeReport, AnalyzeStopped, CompareReport
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.model import pick_device
from woodshed.run.stopping import StopSignals
from woodshed.store.folder import HOME, Lock

MAP_NAME = "fisher_map.json"
NEEDS_CHECKPOINT = ("acestep", "stable-audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the job would stop at, and the question that opens it."""

    kind: Literal["turbo", "overwrite", "checkpoint"]
    question: str


def gates(settings: AnalyzeSettings) -> tuple[Gate, ...]:
    """What has to be answered before the job runs; nothing is loaded for that."""
    found = []
    if settings.compare:
        return ()
    if settings.from_map is None:
        checkpoint = _checkpoint(settings)
        if checkpoint is None and settings.backend in NEEDS_CHECKPOINT:
            found.append(Gate(kind="checkpoint", question=f"Folder or hub name of the {settings.backend} checkpoint?"))
        if "turbo" in (_variant(settings) or "").lower() and not settings.accept_turbo:
            found.append(Gate(kind="turbo", question=f"{TURBO} Go on?"))
    if not settings.dry_run and not settings.yes and map_path(settings).exists():
        found.append(Gate(kind="overwrite", question=f"{map_path(settings)} exists. Write over it?"))
    return tuple(found)


TURBO = "Turbo models are distilled to a few steps and fragile: adapters can make them collapse; Base is recommended."


def map_path(settings: AnalyzeSettings) -> Path:
    """Where the map goes."""
    if settings.output is not None:
        return settings.output / MAP_NAME if settings.output.is_dir() else settings.output
    if settings.from_map is not None:
        return settings.from_map
    assert settings.dataset_dir is not None
    return settings.dataset_dir / MAP_NAME


def run(
    settings: AnalyzeSettings, *, observer: Observer
) -> AnalyzeReport | AnalyzePlan | AnalyzeStopped | CompareReport:
    """Measure, or allocate from a map, or compare two.

    Raises:
        UsageError: what is asked for cannot work, or needs a consent that was not given.
        StoreError: the data or the map cannot be read or written.
        ModelError: the model cannot be loaded, or its gradients are not finite.
    """
    if settings.compare:
        from woodshed.jobs.analyze_compare import compare_report

        return compare_report(*settings.compare)
    output = map_path(settings)
    if output.exists() and not settings.yes and not settings.dry_run:
        raise UsageError(f"{output} exists", hint="--yes writes over it, --output puts the map elsewhere")
    if settings.from_map is not None:
        report = ranks_from_map(settings, rank_request(settings), output)
        return report if settings.dry_run else dataclasses.replace(report, plots=_plots(settings, report.map))
    with ExitStack() as held:
        return _measured(settings, output, observer, held)


def _measured(
    settings: AnalyzeSettings, output: Path, observer: Observer, held: ExitStack
) -> AnalyzeReport | AnalyzePlan | AnalyzeStopped:
    started = time.monotonic()
    folder = settings.dataset_dir
    assert folder is not None
    model = _model(settings, observer)
    examples = FolderExamples(folder, model, crop_s=settings.crop_s, seed=settings.seed)
    reference = _reference(settings, model, examples)
    timesteps = Timesteps(model, focus_named(settings.timestep_focus))
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
    options = _measuring(settings, model, plan)
    # Of the reference no mean gradients are kept.
    plain = dataclasses.replace(options, mean_gradients="none", sensitivity=False)
    facts = MapFacts.of(settings, folder=folder, model=model, options=options)
    for note in _header(settings, timesteps):
        observer.message(note)
    ahead = forecast(model, examples, timesteps, plan, options)
    planned = plan_of(settings, output, model=model, examples=examples, plan=plan, ahead=ahead, notes=ahead.notes)
    observer.message(ahead.header(planned))
    if settings.dry_run:
        return planned
    work = output.parent / f".{output.name}-{fingerprint_of(facts)[:12]}"
    held.enter_context(_alone_in(work, output))
    analysis = Analysis(
        _measurer(model, examples, work / "data", timesteps, options),
        None if reference is None else _measurer(model, reference, work / "reference", timesteps, plain),
        plan=plan,
        timesteps=timesteps,
        request=request,
        patience=settings.convergence_patience,
        max_relative_error=settings.max_relative_error,
    )
    if analysis.measurer.table.num_looks:
        observer.message(f"going on after {analysis.measurer.table.num_looks} looks of an earlier run")
    with _disk_told(output), StopSignals() as stopped, PeakMemory(device_of(model)) as peak:
        is_done = analysis.run(
            progress=lambda done: observer.progress(_progress(plan, done, settings.crop_s, started)),
            is_stopped=stopped,
        )
    table = analysis.measurer.table
    if not is_done:
        assert stopped.name is not None
        return AnalyzeStopped(
            output=str(output), num_draws=len(table), most_draws=plan.num_looks, stopped_by=stopped.name
        )
    if not len(table):
        first = next(iter(analysis.measurer.failures.values()))
        raise UsageError(f"no song of {folder} can be looked at: {first}", hint="prepare the songs again")
    observer.message("working out intervals, ranks and what drives them")
    found = findings(analysis, reference_kind=_reference_name(settings), is_paired=_is_paired(settings))
    made = made_map(facts, found, analysis)
    # The draws first: a map without its draws has lost something, draws without a map are written over.
    with _disk_told(output):
        save_draws(draws_path(output), analysis)
    write_map(output, made)
    shutil.rmtree(work, ignore_errors=True)
    return AnalyzeReport(
        output=str(output),
        map=made,
        num_failed=len(analysis.measurer.failures),
        failures=tuple((examples.name(item), why) for item, why in list(analysis.measurer.failures.items())[:100]),
        elapsed_s=time.monotonic() - started,
        announced_bytes=planned.extra_bytes,
        peak_extra_bytes=peak.num_bytes,
        plots=_plots(settings, made),
        notes=(*ahead.notes, *found.allocation.notes),
        next_steps=(f"woodshed analyze --from-map {shlex.quote(str(output))} --rank 32 --output other_map.json",),
    )


@contextmanager
def _alone_in(work: Path, output: Path) -> Iterator[None]:
    """Keeps a second analysis of the same from writing between our draws.

    Raises:
        StoreError: somebody is at it, or the folder cannot be made.
    """
    with _disk_told(output):
        (work / HOME).mkdir(parents=True, exist_ok=True)
    lock = Lock(work)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_told(output: Path) -> Iterator[None]:
    """Says where the disk refused, which neither a file that is appended to nor safetensors does.

    Raises:
        StoreError: it did.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise StoreError(
            f"cannot write the draws of {output}: {reason}",
            hint="free some space and run the same command again: what is measured is kept; or --output puts map and "
            "draws elsewhere",
        ) from error


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
    checkpoint = _checkpoint(settings)
    if checkpoint is None and settings.backend in NEEDS_CHECKPOINT:
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
        variant=_variant(settings),
        device=device,
        dtype=precision,
        trust_remote_code=settings.trust_remote_code,
    )
    if model.variant.fragile and not settings.accept_turbo:
        raise UsageError(
            f"{model.variant.name}: {model.variant.fragile}", hint="take base, or go on with --accept-turbo"
        )
    return model


def _checkpoint(settings: AnalyzeSettings) -> str | None:
    if settings.checkpoint_dir is not None or settings.backend not in NEEDS_CHECKPOINT:
        return settings.checkpoint_dir
    return user_settings.load().checkpoint_dir


def _variant(settings: AnalyzeSettings) -> str | None:
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
        mean_gradients = "memory" if whole_bytes < _free_bytes(model) / 3 else "sketch"
    if settings.score == "spectrum" and mean_gradients == "none":
        raise UsageError("--score spectrum needs mean gradients", hint="--mean-gradients sketch, memory or auto")
    return Measuring(
        batch_size=settings.batch_size or (4 if settings.crop_s else 1),
        mean_gradients=mean_gradients,
        sensitivity=settings.sensitivity and isinstance(model, Predicts),
        sketch_rank=max(SKETCH_RANK, settings.rank_max) if settings.score == "spectrum" else SKETCH_RANK,
        seed=plan.seed,
    )


def _free_bytes(model: Trainable) -> int:
    device = device_of(model)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _measurer(model: Trainable, examples: Examples, folder: Path, timesteps: Timesteps, options: Measuring) -> Measurer:
    shapes = layer_shapes(model.layers())
    num_entries = sum(len(places) for places in entry_places(shapes, seed=options.seed))
    table = DrawTable(folder, num_layers=len(shapes), num_entries=num_entries)
    return Measurer(model, examples, table, timesteps, options)


def _reference(settings: AnalyzeSettings, model: Trainable, examples: FolderExamples) -> Examples | None:
    """What the data is held against."""
    if settings.reference is None:
        return None
    if settings.reference == "silence":
        return SilentExamples(examples, model)
    if settings.reference == "permuted":
        return PermutedExamples(examples, model, seed=settings.seed)
    other = FolderExamples(Path(settings.reference), model, crop_s=settings.crop_s, seed=settings.seed)
    return Cycled(other, len(examples))


def _is_paired(settings: AnalyzeSettings) -> bool:
    return settings.reference in ("silence", "permuted")


def _reference_name(settings: AnalyzeSettings) -> str | None:
    if settings.reference is None or _is_paired(settings):
        return settings.reference
    return Path(settings.reference).absolute().name


def _header(settings: AnalyzeSettings, timesteps: Timesteps) -> tuple[str, ...]:
    """Where we do something else than the documents that users come from."""
    told = []
    if settings.timestep_focus == "balanced" and timesteps.has_timesteps:
        told.append(
            "balanced is the distribution of timesteps that the model itself trains with, not the whole range alike "
            "(that is --timestep-focus uniform); older tools began with texture"
        )
    if not timesteps.has_timesteps and settings.timestep_focus != "balanced":
        raise UsageError(
            f"--timestep-focus {settings.timestep_focus}: {settings.backend} has no timesteps", hint="leave it out"
        )
    if timesteps.has_timesteps and not timesteps.is_continuous and settings.timestep_focus != "balanced":
        raise UsageError(
            f"--timestep-focus {settings.timestep_focus}: {settings.backend} trains on a few timesteps only",
            hint="--timestep-focus balanced takes those",
        )
    if settings.allocator != "sidestep" and (settings.coverage is None or settings.coverage == 1):
        told.append("every layer gets an adapter; --coverage 0.55 leaves out as many as Side-Step does")
    return tuple(told)


def _progress(plan: LookPlan, done: int, crop_s: float, started: float) -> Progress:
    return Progress(
        items_total=plan.num_looks,
        items_done=done,
        items_failed=0,
        items_skipped=0,
        audio_total_s=plan.num_looks * (crop_s or 1.0),
        audio_done_s=done * (crop_s or 1.0),
        audio_now_s=done * (crop_s or 1.0),
        elapsed_s=time.monotonic() - started,
    )


def _plots(settings: AnalyzeSettings, made: FisherMap) -> tuple[str, ...]:
    if settings.plots is None:
        return ()
    from woodshed.jobs.analyze_plots import draw_plots

    return tuple(str(path) for path in draw_plots(made, settings.plots))
