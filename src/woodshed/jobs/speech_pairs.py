"""`woodshed speech pairs`: from the manifests of a folder to the files of pairs that the GPT trainer reads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from woodshed.contracts import Failure, Json
from woodshed.errors import UsageError
from woodshed.jobs.report import to_json
from woodshed.jobs.speech_pairs_settings import SpeechPairsSettings
from woodshed.speech.pairs import (
    MAX_FAILURES_TOLD,
    FeatureTable,
    PairPlan,
    PairRules,
    holds_pairs,
    pair_records,
    plan_pairs,
    write_pairs,
)
from woodshed.store.disk import Disk

TRAIN_MANIFEST, VAL_MANIFEST = "train_manifest.jsonl", "val_manifest.jsonl"
OUTPUT_NAMES = {TRAIN_MANIFEST: "gpt_pairs_train.jsonl", VAL_MANIFEST: "gpt_pairs_val.jsonl"}
LARGEST_SHARE = 0.3
"""Share of the pairs above which one speaker is worth a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsFile:
    """The pairs of one manifest: `num_rows == num_targets + sum(left_out.values())`."""

    manifest: str
    output: str | None
    """None where there are no pairs, and so no file."""
    num_rows: int
    num_targets: int
    num_pairs: int
    num_speakers: int
    left_out: Mapping[str, int]
    """Rows that are no target, by reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsReport:
    """What `woodshed speech pairs` wrote."""

    files: tuple[PairsFile, ...]
    num_failed: int
    """Lines of the manifests that are no rows."""
    elapsed_s: float
    failures: tuple[Failure, ...] = ()
    """The first hundred."""
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 3 some lines could not be read."""
        return 3 if self.num_failed else 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One manifest and its pairs."""

    manifest: Path
    output: Path
    train: Path | None
    """Manifest whose rows may be prompts too."""
    is_optional: bool
    """Whether having no pairs is no error."""


def run(settings: SpeechPairsSettings) -> PairsReport:
    """Plan the pairs of every manifest, then write each file whole.

    Raises:
        UsageError: there is no manifest, it has no pairs, or the output is a file of another kind.
        StoreError: the disk refuses.
    """
    started = time.monotonic()
    notes: list[str] = []
    tasks = _tasks(settings, notes)
    _check_outputs(tasks)
    rules = PairRules(
        pairs_per_target=settings.pairs_per_target,
        max_per_speaker=settings.max_per_speaker,
        max_pairs=settings.max_pairs or None,
        min_text_len=settings.min_text_len,
        min_code_len=settings.min_code_len,
        seed=settings.seed,
        speaker_from_name=settings.speaker_from_name or settings.compat,
        with_language=not settings.compat,
    )
    with ExitStack() as opened:
        tables = {
            path: opened.enter_context(FeatureTable(path, rules))
            for path in dict.fromkeys(
                path for task in tasks for path in (task.manifest, task.train) if path is not None
            )
        }
        plans = [
            plan_pairs(tables[task.manifest], rules, more_prompts=tables[task.train] if task.train else None)
            for task in tasks
        ]
        for task, plan in zip(tasks, plans, strict=True):
            if not plan.pairs and not task.is_optional:
                raise UsageError(
                    f"{task.manifest} gives no pairs: of its {plan.num_rows} rows, {_in_words(plan.left_out)}",
                    hint=_cure(plan, settings),
                )
        for task, plan in zip(tasks, plans, strict=True):
            notes += _notes(task, plan, settings)
            if plan.pairs:
                write_pairs(task.output, pair_records(plan, rules, folder=task.output.parent))
            else:
                # What lies there is of an earlier run, and its rows may be for training now.
                Disk().remove(task.output)
        failures = [failure for task in tasks for failure in tables[task.manifest].failures]
    return PairsReport(
        files=tuple(_facts(task, plan) for task, plan in zip(tasks, plans, strict=True)),
        num_failed=sum(plan.left_out.get("bad_row", 0) for plan in plans),
        elapsed_s=time.monotonic() - started,
        failures=tuple(failures[:MAX_FAILURES_TOLD]),
        notes=tuple(notes),
    )


def _tasks(settings: SpeechPairsSettings, notes: list[str]) -> list[_Task]:
    source, output = settings.source, settings.output
    if not source.is_dir():
        train = source.with_name(TRAIN_MANIFEST) if settings.val_prompts_from_train else None
        if train is not None and (train == source or not train.is_file()):
            raise UsageError(
                f"--val-prompts-from-train: there is no training manifest beside {source}",
                hint=f"give {VAL_MANIFEST} where {TRAIN_MANIFEST} lies beside it, or their folder",
            )
        if output is not None and output.is_dir():
            output = output / OUTPUT_NAMES.get(source.name, f"{source.stem}_pairs.jsonl")
        name = OUTPUT_NAMES.get(source.name, f"{source.stem}_pairs.jsonl")
        return [_Task(manifest=source, output=output or source.with_name(name), train=train, is_optional=False)]
    if not (source / TRAIN_MANIFEST).is_file():
        raise UsageError(
            f"{source} holds no {TRAIN_MANIFEST}", hint="give the output folder of `woodshed speech`, or a manifest"
        )
    if output is not None and (output.is_file() or output.suffix == ".jsonl"):
        raise UsageError(
            f"--output {output} names one file, but {source} gives two: {' and '.join(OUTPUT_NAMES.values())}",
            hint=f"name a folder, or give one manifest: {source / TRAIN_MANIFEST}",
        )
    folder = output or source
    tasks = []
    for name in (TRAIN_MANIFEST, VAL_MANIFEST):
        if not (source / name).is_file():
            notes.append(f"{source} holds no {name}: there are no pairs for validation")
            continue
        train = source / TRAIN_MANIFEST if settings.val_prompts_from_train and name == VAL_MANIFEST else None
        manifest, pairs = source / name, folder / OUTPUT_NAMES[name]
        tasks.append(_Task(manifest=manifest, output=pairs, train=train, is_optional=name == VAL_MANIFEST))
    return tasks


def _check_outputs(tasks: Sequence[_Task]) -> None:
    """Refuse to write over anything but pairs."""
    for task in tasks:
        if not task.output.exists():
            continue
        if not task.output.is_file() or not holds_pairs(task.output):
            raise UsageError(
                f"{task.output} exists and is no file of pairs", hint="choose another --output, or move it away"
            )


def _facts(task: _Task, plan: PairPlan) -> PairsFile:
    return PairsFile(
        manifest=str(task.manifest),
        output=str(task.output) if plan.pairs else None,
        num_rows=plan.num_rows,
        num_targets=plan.num_targets,
        num_pairs=len(plan.pairs),
        num_speakers=len(plan.speakers),
        left_out=plan.left_out,
    )


def _in_words(left_out: Mapping[str, int]) -> str:
    meanings = {
        "alone": "are alone with their speaker",
        "no_condition": "have no speaker row with condition and emo_vec to be prompted by (2.5 and Whisper make none)",
        "bad_row": "cannot be read",
        "duplicate": "have the id of an earlier one",
        "no_features": "name no text ids or no codes",
        "no_speaker": "have no speaker",
        "over_limit": "are over the limit",
        "too_short": "are too short",
    }
    return ", ".join(f"{count} {meanings[reason]}" for reason, count in left_out.items()) or "there is none"


def _cure(plan: PairPlan, settings: SpeechPairsSettings) -> str:
    if "no_speaker" in plan.left_out and not settings.speaker_from_name:
        return "name the speakers in the input manifest; --speaker-from-name guesses them from file names"
    return "a pair needs two rows of one speaker, with text ids, codes, condition and emotion"


def _notes(task: _Task, plan: PairPlan, settings: SpeechPairsSettings) -> Iterator[str]:
    name = task.manifest.name
    if not plan.pairs:
        yield f"{name} gives no pairs ({_in_words(plan.left_out)}), so {task.output.name} is not written"
        if "alone" in plan.left_out and not settings.val_prompts_from_train:
            yield "--val-prompts-from-train lets training rows of the same speaker be the prompts for validation"
    elif plan.left_out.get("no_speaker") and not (settings.speaker_from_name or settings.compat):
        count = plan.left_out["no_speaker"]
        yield f"{count} rows of {name} have no speaker and are left out: --speaker-from-name guesses from file names"
    if len(plan.speakers) > 1:
        most = max(plan.speakers, key=lambda speaker: (plan.speakers[speaker], speaker))
        share = plan.speakers[most] / len(plan.pairs)
        fair = 2 / len(plan.speakers)
        if share > max(LARGEST_SHARE, fair):
            yield f"speaker {most!r} has {share:.0%} of the pairs of {name}: --max-per-speaker limits that"
