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
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from woodshed.backends.open import NEED_A_CHECKPOINT
from woodshed.contracts import Observer, Progress
from woodshed.errors import ModelError, StoreError, UsageError
from woodshed.importance.analysis import Analysis
from woodshed.importance.fisher_map import FisherMap
from woodshed.importance.kept_draws import draws_path, save_draws
from woodshed.importance.looks import LookPlan
from woodshed.importance.map_files import map_at, write_map
from woodshed.importance.map_making import findings
from woodshed.importance.measuring import measurer_in
from woodshed.importance.memory import PeakMemory, device_of
from woodshed.jobs.analyze_from_map import ranks_from_map
from woodshed.jobs.analyze_map import MapFacts, fingerprint_of, made_map
from woodshed.jobs.analyze_plan import forecast, plan_of
from woodshed.jobs.analyze_report import AnalyzePlan, AnalyzeReport, AnalyzeStopped, CompareReport
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.analyze_setup import (
    Setup,
    checkpoint_of,
    deviations,
    rank_request,
    set_up,
    variant_of,
)
from woodshed.jobs.complaints import checked
from woodshed.jobs.encode import Silent
from woodshed.run.memory import freed_memory_kept, is_out_of_memory
from woodshed.run.stopping import StopSignals
from woodshed.store.folder import HOME, Lock

MAX_FAILURES = 100
"""Listed in the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the job would stop at, and the question that opens it."""

    kind: Literal["turbo", "overwrite", "checkpoint"]
    question: str


def analyze(dataset_dir: str | Path, /, *, observer: Observer | None = None, **settings: Any) -> AnalyzeReport:
    """Measure what a model needs to learn from a folder; the same as `woodshed analyze` with these settings.

    Args:
        dataset_dir: folder that `woodshed songs`, `encode` or `speech` made.
        settings: fields of `woodshed.jobs.analyze_settings.AnalyzeSettings`, by name.

    Raises:
        UsageError: the settings cannot work.
        KeyboardInterrupt: it was stopped; the same call goes on.
        WoodshedError: the analysis cannot go on. Songs that cannot be looked at do not raise: they are in the report.
    """
    made = checked(AnalyzeSettings, {"dataset_dir": dataset_dir} | settings)
    report = run(made, observer=observer or Silent())
    if isinstance(report, AnalyzeStopped):
        raise KeyboardInterrupt
    if not isinstance(report, AnalyzeReport):
        raise TypeError("dry_run=True gives a plan: call woodshed.jobs.analyze.run")
    return report


def gates(settings: AnalyzeSettings) -> tuple[Gate, ...]:
    """What has to be answered before the job runs; nothing is loaded for that."""
    found = []
    if settings.compare:
        return ()
    if settings.from_map is None:
        checkpoint = checkpoint_of(settings)
        if checkpoint is None and settings.backend in NEED_A_CHECKPOINT:
            found.append(Gate(kind="checkpoint", question=f"Folder or hub name of the {settings.backend} checkpoint?"))
        if "turbo" in (variant_of(settings) or "").lower() and not settings.accept_turbo:
            found.append(Gate(kind="turbo", question=f"{TURBO} Go on?"))
    if not settings.dry_run and not settings.yes and map_path(settings).exists():
        found.append(Gate(kind="overwrite", question=f"{map_path(settings)} exists. Write over it?"))
    return tuple(found)


TURBO = "Turbo models are distilled to a few steps and fragile: adapters can make them collapse; Base is recommended."


def map_path(settings: AnalyzeSettings) -> Path:
    """Where the map goes."""
    if settings.output is not None:
        return map_at(settings.output)
    if settings.from_map is not None:
        return map_at(settings.from_map)
    assert settings.dataset_dir is not None
    return map_at(settings.dataset_dir)


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
        _check_plots(settings)
        report = ranks_from_map(settings, rank_request(settings), output)
        return report if settings.dry_run else dataclasses.replace(report, plots=_plots(settings, report.map))
    _check_plots(settings)
    with ExitStack() as held, _memory_told(), freed_memory_kept():
        return _measured(settings, output, observer, held)


def _measured(
    settings: AnalyzeSettings, output: Path, observer: Observer, held: ExitStack
) -> AnalyzeReport | AnalyzePlan | AnalyzeStopped:
    started = time.monotonic()
    setup = set_up(settings, observer)
    facts = MapFacts.of(settings, folder=setup.examples.folder, model=setup.model, options=setup.options)
    for note in deviations(settings, setup.timesteps):
        observer.message(note)
    with PeakMemory(device_of(setup.model)) as peak:
        ahead = forecast(setup.model, setup.examples, setup.timesteps, setup.plan, setup.options)
        planned = plan_of(settings, output, setup=setup, ahead=ahead)
        observer.message(ahead.header(planned))
        if settings.dry_run:
            return planned
        work = output.parent / f".{output.name}-{fingerprint_of(facts)[:12]}"
        held.enter_context(_alone_in(work, output))
        analysis = _analysis(settings, setup, work)
        if analysis.measurer.table.num_looks:
            observer.message(f"going on after {analysis.measurer.table.num_looks} looks of an earlier run")
        with _disk_told(output), StopSignals() as stopped:
            is_done = analysis.run(
                progress=lambda done: observer.progress(_progress(setup.plan, done, settings.crop_s, started)),
                is_stopped=stopped,
            )
    table = analysis.measurer.table
    if not is_done:
        assert stopped.name is not None
        return AnalyzeStopped(
            output=str(output), num_draws=len(table), most_draws=setup.plan.num_looks, stopped_by=stopped.name
        )
    if not len(table):
        first = next(iter(analysis.measurer.failures.values()))
        raise UsageError(f"no song of {setup.examples.folder} can be looked at: {first}", hint="prepare them again")
    observer.message("working out intervals, ranks and what drives them")
    found = findings(analysis, reference_kind=_reference_name(settings))
    made = made_map(facts, found, analysis)
    # The draws first: a map without its draws has lost something, draws without a map are written over.
    with _disk_told(output):
        save_draws(draws_path(output), analysis)
    write_map(output, made)
    shutil.rmtree(work, ignore_errors=True)
    failures = [(setup.examples.name(song), why) for song, why in analysis.measurer.failures.items()]
    if analysis.reference is not None:
        other = analysis.reference
        failures += [(f"{other.examples.name(song)} (reference)", why) for song, why in other.failures.items()]
    return AnalyzeReport(
        output=str(output),
        map=made,
        num_failed=len(failures),
        failures=tuple(failures[:MAX_FAILURES]),
        elapsed_s=time.monotonic() - started,
        announced_bytes=planned.extra_bytes,
        peak_extra_bytes=peak.num_bytes,
        plots=_plots(settings, made),
        notes=(*ahead.notes, *found.allocation.notes),
        next_steps=(f"woodshed analyze --from-map {shlex.quote(str(output))} --rank 32 --output other_map.json",),
    )


def _analysis(settings: AnalyzeSettings, setup: Setup, work: Path) -> Analysis:
    """As far as an earlier run came with it."""
    # Of the reference no mean gradients are kept.
    plain = dataclasses.replace(setup.options, mean_gradients="none", sensitivity=False)
    return Analysis(
        measurer_in(work / "data", setup.model, setup.examples, setup.timesteps, setup.options),
        None
        if setup.reference is None
        else measurer_in(work / "reference", setup.model, setup.reference, setup.timesteps, plain),
        plan=setup.plan,
        timesteps=setup.timesteps,
        request=setup.request,
        patience=settings.convergence_patience,
        max_relative_error=settings.max_relative_error,
    )


@contextmanager
def _memory_told() -> Iterator[None]:
    """Says what to try where memory does not do.

    Raises:
        ModelError: it did not.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"the model's memory does not do: {str(error).splitlines()[0]}",
            hint="--batch-size 1, a shorter --crop-s, --mean-gradients sketch; what is measured is kept",
        ) from error


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


def _reference_name(settings: AnalyzeSettings) -> str | None:
    if settings.reference in (None, "silence", "permuted"):
        return settings.reference
    return Path(settings.reference).absolute().name


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


def _check_plots(settings: AnalyzeSettings) -> None:
    """Before hours of measuring: whether plots can be drawn in the end, and written."""
    if settings.plots is None or settings.dry_run:
        return
    import_module("matplotlib")
    try:
        settings.plots.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--plots {settings.plots} cannot be made: {error.strerror}", hint="name another") from error


def _plots(settings: AnalyzeSettings, made: FisherMap) -> tuple[str, ...]:
    if settings.plots is None:
        return ()
    from woodshed.jobs.analyze_plots import draw_plots

    return tuple(str(path) for path in draw_plots(made, settings.plots))
