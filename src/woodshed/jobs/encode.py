"""`woodshed encode`: a folder of sound in, verified latents or tokens out; resumable and exact."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

import woodshed
from woodshed.audio.clip import stream
from woodshed.audio.decode import DecodeLimits
from woodshed.audio.resample import resampled_length
from woodshed.batching.pack import BatchLimits
from woodshed.contracts import Encoder, Item, Json, Layout, Observer, Record, RecordSpec, Summary
from woodshed.errors import StoreError
from woodshed.jobs.complaints import checked
from woodshed.jobs.folder import own_folders, settings_to_json, write_down
from woodshed.jobs.model import WAITING_BYTES, LoadedModel, load_encoder, pick_device
from woodshed.jobs.planning import measured_speed, plan_report
from woodshed.jobs.report import PlanReport
from woodshed.jobs.settings import EncodeSettings
from woodshed.run.engine import Annotate, EngineOptions
from woodshed.run.memory import freed_memory_kept
from woodshed.run.plan import PlanOptions
from woodshed.run.session import Work, plan_folder, run_plan
from woodshed.run.stopping import StopSignals
from woodshed.sources.custom_metadata import Reject
from woodshed.sources.open import open_source
from woodshed.sources.source import Row, Source
from woodshed.store.folder import refuse_other_run
from woodshed.store.log import CommitLog
from woodshed.store.reader import open_reader
from woodshed.store.shards import Shards
from woodshed.store.stable_audio import StableAudio
from woodshed.store.store import Store

COMPUTE_THREADS_KEY = "compute_threads"


class Silent:
    """An observer that shows nothing."""

    def message(self, text: str) -> None: ...

    def progress(self, progress: object) -> None: ...


def encode(
    input: str | Path | None = None,
    output: str | Path | None = None,
    /,
    *,
    observer: Observer | None = None,
    **settings: Any,
) -> Summary:
    """Encode a folder or manifest; the same as `woodshed encode` with these settings.

    Args:
        input: folder of sound files, or a JSONL or CSV manifest.
        output: folder that receives the encoded data.
        settings: fields of `woodshed.jobs.settings.EncodeSettings`, by name.

    Raises:
        UsageError: the settings cannot work.
        WoodshedError: the run cannot go on. Items that cannot be encoded do not raise: they are in the summary.
    """
    given = {"input": input, "output_path": output} | settings
    made = checked(EncodeSettings, {name: value for name, value in given.items() if value is not None})
    result = run(made, observer=observer or Silent())
    if isinstance(result, PlanReport):
        raise TypeError("dry_run=True gives a plan: call woodshed.jobs.encode.run")
    return result


def run(settings: EncodeSettings, *, observer: Observer) -> Summary | PlanReport:
    """Encode, or plan only under `dry_run`."""
    output = Path(settings.output_path)
    source = open_source(
        None if settings.input is None else str(settings.input),
        None if settings.dataset_config_path is None else str(settings.dataset_config_path),
        captions=settings.captions,
        trust_remote_code=settings.trust_remote_code,
        exclude=own_folders(output, settings),
    )
    notes = list(source.notes)
    if settings.window == "whole" and settings.layout == "stable_audio":
        notes.append("--window whole gives records of many lengths, which stable-audio-tools cannot batch without a "
                     "latent_crop_length; --layout shards suits them better")  # fmt: skip
    for note in notes:
        observer.message(note)
    torch.set_num_threads(compute_threads(output))
    model = load_encoder(settings, crop_at_random=source.crops_at_random)
    for note in model.notes:
        observer.message(note)
    options = PlanOptions(
        limits=BatchLimits(max_cost_s=model.batch_s, max_pieces=settings.batch_size),
        ranks=settings.ranks,
        shuffle_seed=settings.seed if settings.shuffle else None,
        limit_items=None if settings.limit_batches is None else settings.limit_batches * (settings.batch_size or 1),
        retry_failed=settings.retry_failed,
    )
    if settings.dry_run:
        return _dry_run(settings, source, model, options)
    # The first row is asked for before anything is written: a source without rows raises here.
    rows = source.rows()
    rows = chain([next(rows)], rows)
    with StopSignals() as stopped, open_store(settings, model) as store, freed_memory_kept():
        write_down_threads(store)
        observer.message(f"planning {settings.input or settings.dataset_config_path}")
        work = _plan(rows, model.encoder, options, store, stopped)
        write_down(
            store,
            details=_details(settings, source, model),
            settings=settings_to_json(settings),
        )
        left = f"{len(work.pending)} of {work.account.num_rows} items, {work.audio_s / 60:.1f} minutes"
        observer.message(f"encoding {left}, in {work.num_batches} batches" if work.pending else "nothing to encode")
        return run_plan(
            work,
            model.encoder,
            store,
            options=EngineOptions(
                num_threads=settings.num_workers, max_waiting_bytes=WAITING_BYTES[pick_device(settings.device).type]
            ),
            observer=observer,
            stopped=stopped,
            annotate=_annotator(source, model.encoder, settings),
        )


def compute_threads(output: Path) -> int:
    """Threads that torch computes with: those of the folder's first run, else one per core of this machine.

    Another number of threads may change the last bit of a result.
    """
    path = output / ".woodshed" / "machine.json"
    try:
        return int(json.loads(path.read_text())[COMPUTE_THREADS_KEY])
    except (FileNotFoundError, NotADirectoryError):
        return torch.get_num_threads()
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} cannot be read: {error}", hint="delete it if nothing else is wrong") from error


def write_down_threads(store: Store) -> None:
    """Let later runs over this folder compute with as many threads as this one."""
    content = {COMPUTE_THREADS_KEY: torch.get_num_threads()}
    store.note("machine.json", json.dumps(content).encode())


def open_store(settings: EncodeSettings, model: LoadedModel) -> Store:
    """The output folder, open for a run with these settings and this model.

    Raises:
        StoreError: as `Store.open` does.
    """
    spec = model.encoder.spec
    layout: Layout = Shards(spec=spec)
    if settings.layout == "stable_audio":
        layout = StableAudio(spec=spec, window_samples=model.window_samples, absolute_paths=settings.compat)
    return Store.open(Path(settings.output_path), layout=layout, fingerprint=_fingerprint(model), spec=spec)


def _fingerprint(model: LoadedModel) -> dict[str, Json]:
    """What changes numbers for all items."""
    return {**model.encoder.fingerprint, "window_samples": model.window_samples}


def _plan(rows: Iterator[Row], encoder: Encoder, options: PlanOptions, store: Store, stopped: StopSignals) -> Work:
    return plan_folder(
        rows,
        encoder,
        options,
        log=store.log,
        planned_before=store.plan.lines(),
        next_position=store.next_position,
        stopped=stopped,
    )


def _dry_run(settings: EncodeSettings, source: Source, model: LoadedModel, options: PlanOptions) -> PlanReport:
    output, encoder = Path(settings.output_path), model.encoder
    if (output / ".woodshed" / "run.json").exists():
        reader = open_reader(output)
        refuse_other_run(output, dict(reader.fingerprint), _fingerprint(model))
        log = reader.log
        work = plan_folder(source.rows(), encoder, options, log=log, planned_before=(), next_position=log.next_position)
    else:
        work = plan_folder(source.rows(), encoder, options, log=CommitLog(output), planned_before=(), next_position=0)
    duplicates = [skip for skip in work.account.skipped if skip.kind == "duplicate"]
    return plan_report(
        output,
        work,
        encoder.spec,
        window_samples=model.window_samples,
        padded_samples=_padded(settings, model),
        computed_s_per_s=measured_speed(encoder, work),
        notes=[f"{failure.id}: {failure.reason}" for failure in duplicates[:10]],
    )


def _padded(settings: EncodeSettings, model: LoadedModel) -> int | None:
    """Samples that each record stands for where records are filled up, as the stable_audio layout has them."""
    return model.window_samples if settings.layout == "stable_audio" else None


def _annotator(source: Source, encoder: Encoder, settings: EncodeSettings) -> Annotate | None:
    """The data set's own metadata function, called with the sound of each record's window."""
    function = source.annotate
    if function is None:
        return None
    spec = encoder.spec

    def annotate(item: Item, record: Record) -> Mapping[str, Json] | None:
        assert item.audio is not None
        meta = record.meta
        start, window = meta["start_sample"], meta["window_samples"]
        total = resampled_length(item.audio.num_samples, item.audio.rate_hz, spec.rate_hz)
        longest = max(total, window)
        info = {
            **item.meta,
            "path": item.path,
            "relpath": item.relpath,
            "timestamps": [start / longest, min(1.0, (start + window) / longest)],
            "seconds_start": start // spec.rate_hz,
            "seconds_total": math.ceil(total / spec.rate_hz),
            "sample_rate": spec.rate_hz,
        }
        sound = np.zeros((spec.audio_channels, window), np.float32)
        sound[:, : meta["num_samples"]] = _span(item, spec, settings, start, start + meta["num_samples"])
        result = function(item, sound, info)
        return None if isinstance(result, Reject) else result

    return annotate


def _span(
    item: Item, spec: RecordSpec, settings: EncodeSettings, start: int, stop: int
) -> Float[np.ndarray, "channel time"]:
    """Samples `[start, stop)` at the model's rate; of a long file no more than a block beyond them is held."""
    assert item.audio is not None
    parts, position = [], 0
    for block in stream(
        item.path,
        item.audio,
        rate_hz=spec.rate_hz,
        num_channels=spec.audio_channels,
        resampler=settings.resampler,
        limits=DecodeLimits(max_duration_s=settings.max_file_s),
    ):
        parts.append(block[:, max(0, start - position) : max(0, stop - position)])
        position += block.shape[1]
        if position >= stop:
            break
    return np.concatenate(parts, axis=1)


def _details(settings: EncodeSettings, source: Source, model: LoadedModel) -> bytes:
    """`details.json`: what made this folder. No times, so that equal runs give equal files."""
    arguments = settings.to_json()
    for volatile in ("output_path", "num_workers", "dry_run", "limit_batches", "retry_failed", "device"):
        arguments.pop(volatile, None)
    for name, value in arguments.items():
        # Where things lay on one machine is for `.woodshed/settings.json`: this file travels.
        if isinstance(getattr(settings, name), Path) or (name == "pretrained_name" and value and Path(value).is_dir()):
            arguments[name] = Path(value).absolute().name
    details = {
        "model_config": dict(model.model_config),
        "dataset_config": source.describe(),
        "sample_size": model.window_samples,
        "spec": asdict(model.encoder.spec),
        "fingerprint": dict(model.encoder.fingerprint),
        "args": arguments,
        "versions": versions(),
    }
    return json.dumps(details, indent=1, ensure_ascii=True, sort_keys=True).encode() + b"\n"


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "woodshed": woodshed.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
