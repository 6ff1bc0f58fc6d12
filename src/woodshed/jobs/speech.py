"""`woodshed speech`: audio and text in, everything that the IndexTTS2 trainers read out; resumable and exact."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from woodshed.batching.pack import BatchLimits
from woodshed.contracts import BadRow, Failure, Item, Json, Layout, Observer, Summary
from woodshed.encoders.speech.encoder import SpeechEncoder
from woodshed.encoders.speech.text.languages import language_hint
from woodshed.encoders.speech.whisper_encoder import WhisperEncoder
from woodshed.errors import UsageError
from woodshed.jobs.complaints import checked
from woodshed.jobs.encode import COMPUTE_THREADS_KEY, Silent, versions
from woodshed.jobs.folder import SETTINGS
from woodshed.jobs.planning import known_log, plan_report
from woodshed.jobs.report import PlanReport, SpeechReport
from woodshed.jobs.speech_model import (
    as_original,
    batch_limits,
    devices_of,
    encoder_maker,
    make_encoder,
    model_files,
    num_processes,
    targets_of,
)
from woodshed.jobs.speech_refusal import refusal_explained
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.run.engine import EngineOptions
from woodshed.run.memory import freed_memory_kept
from woodshed.run.patience import STALL_S
from woodshed.run.plan import Account, PlanOptions
from woodshed.run.pool import Pool
from woodshed.run.session import Work, plan_folder, run_plan
from woodshed.run.stopping import StopSignals
from woodshed.sources.speech_manifest import read_speech_manifest
from woodshed.speech.adopt import Adoption, clear_up, demand_same_features, is_adoptable
from woodshed.speech.dataset_spec import DatasetSpec, parse_dataset_specs
from woodshed.speech.manifests import Manifests, Provenance
from woodshed.speech.split import Splitter, share_notes
from woodshed.speech.stems import with_stems
from woodshed.store.folder import refuse_foreign
from woodshed.store.indextts import IndexTTS
from woodshed.store.log import CommitLog
from woodshed.store.shards import Shards
from woodshed.store.store import Store

COMMAND = "speech"
UNIT_AUDIO_S = 300.0
"""Small units share well among processes; clips are sorted over many of them, so batches lose nothing by it."""
SORT_ITEMS = 4096
WAITING_BYTES = 256 * 2**20
BAD_ROWS_TOLD = 20
"""Rows of a manifest that cannot be used and are told at once; all are in `failures.jsonl`."""

Encoder = SpeechEncoder | WhisperEncoder


def speech(
    manifest: str | Path | None = None,
    output_dir: str | Path | None = None,
    /,
    *,
    observer: Observer | None = None,
    **settings: Any,
) -> SpeechReport:
    """Make TTS training features; the same as `woodshed speech` with these settings.

    Args:
        manifest: JSONL, one utterance a line.
        output_dir: folder that receives the features.
        settings: fields of `woodshed.jobs.speech_settings.SpeechSettings`, by name.

    Raises:
        UsageError: the settings cannot work.
        WoodshedError: the run cannot go on. Rows that give nothing do not raise: they are in the report.
    """
    given = {"manifest": manifest, "output_dir": output_dir} | settings
    made = checked(SpeechSettings, {name: value for name, value in given.items() if value is not None})
    return run(made, observer=observer or Silent())


def run(settings: SpeechSettings, *, observer: Observer) -> SpeechReport:
    """Make features for one or several data sets, or plan only under `dry_run`. The models are loaded once."""
    datasets = _datasets(settings)
    devices = devices_of(settings.device)
    processes = num_processes(settings)
    # Where worker processes have the devices to themselves, this one only plans and commits.
    here = torch.device("cpu") if processes > 1 else devices[0]
    if here.type == "cpu":
        # One thread each: the number of processes is then the only thing that differs between machines, and it changes
        # no result.
        torch.set_num_threads(1)
    encoder = make_encoder(settings, 0, device=here)
    results: list[Summary | PlanReport] = []
    with StopSignals() as stopped, ExitStack() as stack:
        pool: Pool | None = None
        if processes > 1 and not settings.dry_run:
            pool = stack.enter_context(_pool(settings, processes))
        for dataset in datasets:
            own = _Dataset(settings, dataset, encoder, observer, stopped)
            if settings.dry_run:
                results.append(own.plan_only(batch_limits(settings.batch_size, devices[0])))
            else:
                results.append(own.make(batch_limits(settings.batch_size, devices[0]), pool, devices[0]))
            if stopped():
                break
    names = tuple(f"{dataset.language or ''}={dataset.manifest}" for dataset in datasets[: len(results)])
    return SpeechReport(datasets=names, results=tuple(results))


def _datasets(settings: SpeechSettings) -> tuple[DatasetSpec, ...]:
    if settings.dataset:
        datasets = parse_dataset_specs(settings.dataset, settings.output_root)
    else:
        assert settings.manifest is not None
        own = DatasetSpec(language=settings.language or "", manifest=settings.manifest, output=settings.output_dir)
        datasets = (own,)
    for dataset in datasets:
        # Before the models are loaded, which takes longer than to mend a name.
        if not dataset.manifest.is_file():
            if dataset.manifest.exists():
                raise UsageError(
                    f"the manifest {dataset.manifest} is no plain file",
                    hint="it is read more than once: write it to a file",
                )
            raise UsageError(f"there is no manifest {dataset.manifest}", hint="JSONL, one utterance a line")
    return datasets


def _pool(settings: SpeechSettings, processes: int) -> Pool:
    return Pool(
        encoder_maker(settings),
        num_workers=processes,
        compute_threads=1,
        decode_threads=_decode_threads(settings, processes),
        max_waiting_bytes=WAITING_BYTES // 2,
        stall_s=STALL_S,
    )


def _decode_threads(settings: SpeechSettings, processes: int) -> int:
    return settings.workers or max(1, min(4, 8 // processes))


@dataclass(frozen=True, slots=True)
class _Dataset:
    """One manifest and its folder."""

    settings: SpeechSettings
    spec: DatasetSpec
    encoder: Encoder
    observer: Observer
    stopped: StopSignals

    def make(self, limits: BatchLimits, pool: Pool | None, device: torch.device) -> Summary:
        """Plan, compute what is new, commit, and derive the manifests."""
        notes: list[str] = []
        rows = self._rows(notes)
        adoption = self._adoption()
        if adoption is not None:
            adoption.prepare()
        with self._open_store() as store, freed_memory_kept():
            store.note("machine.json", json.dumps({COMPUTE_THREADS_KEY: 1}).encode())
            store.note(SETTINGS, self._settings_json())
            if adoption is not None:
                notes += adoption.take_over(store)
            self.observer.message(f"planning {self.spec.manifest}")
            work = plan_folder(
                rows,
                self.encoder,
                self._options(limits),
                log=store.log,
                planned_before=store.plan.lines(),
                next_position=store.next_position,
                stopped=self.stopped,
            )
            left = f"{len(work.pending)} of {work.account.num_rows} rows, {work.audio_s / 60:.1f} minutes"
            self.observer.message(f"making features of {left}" if work.pending else "nothing left to make")
            told: dict[str, Mapping[str, Json]] = {}
            derive = self._deriving(store, told)
            if work.account.is_complete and not len(store.log):
                # So that a new folder tells the size of its source, should the run end before its first manifests.
                derive(work.account, (), 0)
            summary = run_plan(
                work,
                self.encoder,
                store,
                options=EngineOptions(
                    num_threads=_decode_threads(self.settings, 1), max_waiting_bytes=WAITING_BYTES, stall_s=STALL_S
                ),
                observer=self.observer,
                stopped=self.stopped,
                derive=derive,
                pool=pool if _is_worth_it(work, device) else None,
            )
            clear_up(store)
        steps = ["woodshed inspect {folder}"]
        if "condition" in self.encoder.spec.arrays and self.settings.layout == "indextts":  # what pairs are made of
            steps.append(f"woodshed speech pairs {{folder}}{'/2.0' if self.settings.target == 'both' else ''}")
        return replace(summary, notes=(*notes, *summary.notes, *self._notes(told)), next_steps=tuple(steps))

    def plan_only(self, limits: BatchLimits) -> PlanReport:
        """What `make` would do; nothing is written."""
        output, notes = self.spec.output, list[str]()
        rows = self._rows(notes)
        log = CommitLog(output)
        if (output / ".woodshed" / "run.json").exists():
            with refusal_explained(output, self.settings):
                log = known_log(output, layout=self.settings.layout, fingerprint=self.encoder.fingerprint)
        elif self._adoption() is not None:
            notes.append(
                f"{output} was made by IndexTTS2's own preprocessing: a run keeps those of its rows that are sound; "
                "here all of them count as new"
            )
        else:
            refuse_foreign(output)
        work = plan_folder(
            rows, self.encoder, self._options(limits), log=log, planned_before=(), next_position=log.next_position
        )
        return plan_report(output, work, self.encoder.spec, notes=notes)

    def _rows(self, notes: list[str]) -> Iterator[Item | BadRow]:
        """The manifest's rows. The first one is asked for at once: a manifest without rows raises before anything is
        written."""
        rows = _telling(self._source(notes), self.observer)
        return chain([next(rows)], rows)

    def _source(self, notes: list[str]) -> Iterator[Item | BadRow]:
        settings = self.settings
        language: str | None = self.spec.language or None
        if settings.text_compat and language is not None:
            language = language_hint(language, None if settings.dataset else language)
        return with_stems(
            read_speech_manifest(
                str(self.spec.manifest),
                language=language,
                one_language=settings.text_compat,
                compat=settings.compat,
                notes=notes,
            )
        )

    def _adoption(self) -> Adoption | None:
        """What is to be done first in a folder that the original made.

        Raises:
            StoreError: this run makes something else than the original does.
        """
        settings, folder = self.settings, self.spec.output
        if not is_adoptable(folder):
            return None
        demand_same_features(folder, targets=targets_of(settings), semantic=settings.semantic, layout=settings.layout)
        assert isinstance(self.encoder, SpeechEncoder)
        return Adoption(
            folder=folder,
            rows=lambda: self._source([]),
            encoder=self.encoder,
            original=as_original(self.encoder),
            any_files=settings.skip_existing,
            observer=self.observer,
            stopped=self.stopped,
        )

    def _options(self, limits: BatchLimits) -> PlanOptions:
        return PlanOptions(
            limits=limits,
            unit_audio_s=UNIT_AUDIO_S,
            sort_items=SORT_ITEMS,
            limit_items=self.settings.max_samples or None,
            retry_failed=self.settings.retry_failed,
        )

    def _open_store(self) -> Store:
        spec = self.encoder.spec
        layout: Layout = IndexTTS(spec=spec) if self.settings.layout == "indextts" else Shards(spec=spec)
        with refusal_explained(self.spec.output, self.settings):
            return Store.open(self.spec.output, layout=layout, fingerprint=self.encoder.fingerprint, spec=spec)

    def _settings_json(self) -> bytes:
        plain = {"command": COMMAND, **settings_for_folder(self.settings, self.spec)}
        return json.dumps(plain, indent=1, ensure_ascii=True).encode() + b"\n"

    def _deriving(
        self, store: Store, told: dict[str, Mapping[str, Json]]
    ) -> Callable[[Account, Sequence[Failure], int], None]:
        manifests = manifests_of(self.settings, self.encoder)

        def derive(account: Account, failures: Sequence[Failure], num_new: int) -> None:
            all_failed = [*account.failures, *failures]
            num_kept = store.totals.num_done - account.num_done - num_new
            stats = manifests.write(store, all_failed, account.skipped, num_rows=account.num_rows, num_kept=num_kept)
            told.update(stats)

        return derive

    def _notes(self, told: Mapping[str, Mapping[str, Json]]) -> Iterator[str]:
        """What the user should know of the data set as a whole."""
        for stats in told.values():
            unknown = stats["unknown_tokens"]
            if unknown["rate"] > self.settings.unknown_threshold:
                shown = " ".join(list(unknown["characters"])[:10])
                yield (
                    f"{unknown['rate']:.1%} of the text ids ({unknown['count']}, in {unknown['rows']} rows) are "
                    f"unknown to the tokenizer: {shown}; a model cannot learn to say them"
                )
            splitter = _splitter(self.settings)
            if stats["total"]:
                yield from share_notes(num_train=stats["train"], num_val=stats["val"], splitter=splitter)
            for kind, leak in stats["leaks"].items():
                if leak["on_both_sides"]:
                    yield (
                        f"{leak['val_rows']} validation rows share their {kind} with training rows; "
                        f"--split-by {kind} keeps them apart"
                    )
            return


def manifests_of(settings: SpeechSettings, encoder: Encoder) -> Manifests:
    """What derives the manifests and `stats.json` of a folder with these settings."""
    spec = encoder.spec
    return Manifests(
        arrays=tuple(spec.arrays),
        absent=encoder.absent,
        rate_hz=spec.rate_hz / spec.hop_samples,
        splitter=_splitter(settings),
        provenance=_provenance(settings, encoder),
        settings={"semantic": settings.semantic, "layout": settings.layout, "compat": settings.compat},
    )


def _splitter(settings: SpeechSettings) -> Splitter:
    return Splitter(ratio=settings.val_ratio, by=settings.split_by, seed=settings.seed)


def _provenance(settings: SpeechSettings, encoder: Encoder) -> dict[str, Provenance]:
    details = {"fingerprint": dict(encoder.fingerprint), "versions": versions()}
    if isinstance(encoder, WhisperEncoder):
        return {"2.0": Provenance(tokenizer=str(settings.tokenizer[0]), gpt_checkpoint="", details=details)}
    files = model_files(settings)
    return {
        target: Provenance(
            tokenizer=str(files.path("tokenizer_2.0" if target == "2.0" else "tokenizer_2.5")),
            gpt_checkpoint=str(files.path("gpt_2.0" if target == "2.0" else "gpt_2.5")),
            details=details,
        )
        for target in targets_of(settings)
    }


def settings_for_folder(settings: SpeechSettings, dataset: DatasetSpec) -> dict[str, Json]:
    """The settings that made one folder, with absolute paths: enough to verify it and to go on with it."""
    plain: dict[str, Json] = settings.to_json()
    own = {"manifest": dataset.manifest, "output_dir": dataset.output, "dataset": [], "output_root": None}
    own["language"] = dataset.language or None
    for name, value in (plain | own).items():
        given = own.get(name, getattr(settings, name))
        if isinstance(given, Path):
            plain[name] = str(given.absolute())
        elif isinstance(given, tuple):
            plain[name] = [str(part.absolute()) if isinstance(part, Path) else part for part in given]
        else:
            plain[name] = value
    return plain


def _telling(rows: Iterator[Item | BadRow], observer: Observer) -> Iterator[Item | BadRow]:
    """Pass rows on; tell of those that cannot be used, as they come."""
    num_told = 0
    for row in rows:
        if isinstance(row, BadRow):
            num_told += 1
            if num_told <= BAD_ROWS_TOLD:
                observer.message(f"left out: {row.reason}")
        yield row
    if num_told > BAD_ROWS_TOLD:
        observer.message(f"left out: {num_told - BAD_ROWS_TOLD} rows more; failures.jsonl has all of them")


def _is_worth_it(work: Work, device: torch.device) -> bool:
    """Whether worker processes are to be started: on a GPU always, as the models are not in this process."""
    return device.type != "cpu" or sum(any(map(work.is_pending, unit.items)) for unit in work.units) > 1
