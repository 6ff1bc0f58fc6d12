"""`woodshed songs`: songs and what is known of them in, what ACE-Step trains on out; resumable and exact."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import torch

from woodshed.batching.pack import BatchLimits
from woodshed.contracts import Failure, Json, Observer, Summary
from woodshed.jobs.complaints import checked
from woodshed.jobs.encode import Silent, compute_threads, versions, write_down_threads
from woodshed.jobs.folder import decoded_folder, settings_to_json, write_down
from woodshed.jobs.model import WAITING_BYTES, pick_device
from woodshed.jobs.planning import known_log, measured_speed, plan_report
from woodshed.jobs.report import PlanReport
from woodshed.jobs.songs_inspect import song_notes
from woodshed.jobs.songs_model import SongModel, load_song_model
from woodshed.jobs.songs_settings import SongsSettings
from woodshed.run.engine import EngineOptions
from woodshed.run.memory import freed_memory_kept
from woodshed.run.plan import Account, PlanOptions
from woodshed.run.session import plan_folder, run_plan
from woodshed.run.stopping import StopSignals
from woodshed.sources.songs import TAGS, TagRules, open_songs
from woodshed.sources.source import Row, Source
from woodshed.store.sidestep import PREPROCESS_META, SideStep, preprocess_meta
from woodshed.store.store import Store

COMMAND: Final = "songs"
NEXT_STEPS = ("woodshed inspect {folder}", "woodshed decode {folder} --limit 3")
_VOLATILE = ("output", "num_workers", "batch_size", "dry_run", "max_songs", "retry_failed", "device")
"""Settings that change no number: they stay out of `details.json`."""


def prepare_songs(
    audio_dir: str | Path | None = None,
    output: str | Path | None = None,
    /,
    *,
    observer: Observer | None = None,
    **settings: Any,
) -> Summary:
    """Prepare songs for ACE-Step; the same as `woodshed songs` with these settings.

    Args:
        audio_dir: folder of songs with sidecars.
        output: folder that receives the data.
        settings: fields of `woodshed.jobs.songs_settings.SongsSettings`, by name.

    Raises:
        UsageError: the settings cannot work.
        WoodshedError: the run cannot go on. Songs that give nothing do not raise: they are in the summary.
    """
    given = {"audio_dir": audio_dir, "output": output} | settings
    made = checked(SongsSettings, {name: value for name, value in given.items() if value is not None})
    result = run(made, observer=observer or Silent())
    if isinstance(result, PlanReport):
        raise TypeError("dry_run=True gives a plan: call woodshed.jobs.songs.run")
    return result


def run(settings: SongsSettings, *, observer: Observer) -> Summary | PlanReport:
    """Prepare songs, or plan only under `dry_run`."""
    output, notes = Path(settings.output), list[str]()
    source = song_source(settings, notes)
    # The first song is asked for before the models are loaded, and before anything is written.
    rows = source.rows()
    rows = chain([next(rows)], rows)
    torch.set_num_threads(compute_threads(output))
    model = load_song_model(settings)
    for note in model.notes:
        observer.message(note)
    options = _plan_options(settings, model)
    if settings.dry_run:
        return _dry_run(settings, model, rows, options, notes)
    with StopSignals() as stopped, _open_store(settings, model) as store, freed_memory_kept():
        write_down_threads(store)
        observer.message(f"planning {settings.dataset_json or settings.audio_dir}")
        work = plan_folder(
            rows,
            model.encoder,
            options,
            log=store.log,
            planned_before=store.plan.lines(),
            next_position=store.next_position,
            stopped=stopped,
        )
        write_down(
            store,
            details=_details(settings, source, model),
            settings=settings_to_json(settings, command=COMMAND),
        )
        left = f"{len(work.pending)} of {work.account.num_rows} songs, {work.audio_s / 60:.1f} minutes"
        observer.message(f"preparing {left}" if work.pending else "nothing to prepare")
        summary = run_plan(
            work,
            model.encoder,
            store,
            options=EngineOptions(
                num_threads=settings.num_workers, max_waiting_bytes=WAITING_BYTES[pick_device(settings.device).type]
            ),
            observer=observer,
            stopped=stopped,
            derive=_deriving(settings, source, model, store),
        )
        told = [*notes, *summary.notes, *song_notes(store.log)]
    return replace(summary, notes=tuple(told), next_steps=NEXT_STEPS)


def song_source(settings: SongsSettings, notes: list[str]) -> Source:
    """The songs that the settings name; `notes` grows while they are read.

    Raises:
        UsageError: what they name does not exist or cannot be used.
    """
    output = Path(settings.output)
    return open_songs(
        None if settings.audio_dir is None else str(settings.audio_dir),
        None if settings.dataset_json is None else str(settings.dataset_json),
        tags=TagRules(
            custom_tag=settings.custom_tag,
            tag_position=settings.tag_position,
            genre_ratio=settings.genre_ratio,
            seed=settings.seed,
        ),
        exclude=[str(output), str(decoded_folder(output))],
        compat=settings.sidestep_compat,
        notes=notes,
    )


def song_fingerprint(settings: SongsSettings, model: SongModel) -> dict[str, Json]:
    """What changes numbers for all songs."""
    own: dict[str, Json] = {**model.encoder.fingerprint}
    if settings.layout == SideStep.name:
        own["stored"] = str(model.dtype).removeprefix("torch.")
    return own


def _plan_options(settings: SongsSettings, model: SongModel) -> PlanOptions:
    return PlanOptions(
        limits=BatchLimits(max_cost_s=model.batch_s, max_pieces=settings.batch_size),
        limit_items=settings.max_songs,
        retry_failed=settings.retry_failed,
    )


def _open_store(settings: SongsSettings, model: SongModel) -> Store:
    return Store.open(
        Path(settings.output),
        layout=model.layout(settings.layout),
        fingerprint=song_fingerprint(settings, model),
        spec=model.encoder.spec,
    )


def _dry_run(
    settings: SongsSettings, model: SongModel, rows: Iterator[Row], options: PlanOptions, notes: Sequence[str]
) -> PlanReport:
    output = Path(settings.output)
    log = known_log(output, layout=settings.layout, fingerprint=song_fingerprint(settings, model))
    work = plan_folder(rows, model.encoder, options, log=log, planned_before=(), next_position=log.next_position)
    speed = measured_speed(model.encoder, work)
    return plan_report(output, work, model.encoder.spec, computed_s_per_s=speed, notes=notes)


def _deriving(
    settings: SongsSettings, source: Source, model: SongModel, store: Store
) -> Callable[[Account, Sequence[Failure], int], None] | None:
    """What writes `preprocess_meta.json` from the log; None for a layout that has none."""
    if settings.layout != SideStep.name:
        return None
    facts = {
        "created_at": "",
        "audio_dir": _base_name(settings.audio_dir),
        "source_audio_dir": _base_name(settings.audio_dir),
        "dataset_json": _base_name(settings.dataset_json),
        "model_variant": model.variant,
        "normalize": settings.normalize,
        "target_db": settings.target_db,
        "target_lufs": settings.target_lufs,
        **source.about[TAGS],
    }

    def derive(account: Account, failures: Sequence[Failure], num_new: int) -> None:  # noqa: ARG001
        records = chain.from_iterable(store.log.records(item_id) for item_id in store.log.in_order())
        content = preprocess_meta(
            records, facts=facts, num_rows=account.num_rows, num_failed=len(account.failures) + len(failures)
        )
        store.render(PREPROCESS_META, content)

    return derive


def _details(settings: SongsSettings, source: Source, model: SongModel) -> bytes:
    """`details.json`: what made this folder. No times, so that equal runs give equal files."""
    arguments = {name: value for name, value in settings.to_json().items() if name not in _VOLATILE}
    for name in ("audio_dir", "dataset_json"):
        arguments[name] = _base_name(getattr(settings, name)) or None
    if Path(settings.checkpoint_dir).is_dir():
        arguments["checkpoint_dir"] = Path(settings.checkpoint_dir).absolute().name
    details = {
        "task": COMMAND,
        "variant": model.variant,
        "source": source.describe(),
        "spec": asdict(model.encoder.spec),
        "fingerprint": song_fingerprint(settings, model),
        "args": arguments,
        "versions": versions(),
    }
    return json.dumps(details, indent=1, ensure_ascii=True, sort_keys=True).encode() + b"\n"


def _base_name(path: Path | None) -> str:
    """The last part of a path: a folder that travels names no place on one machine."""
    return "" if path is None else Path(path).absolute().name
