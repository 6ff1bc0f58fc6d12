"""What the trainers read beside the arrays, derived from the commit log: manifests, `stats.json`, and accounts.

    train_manifest.jsonl, val_manifest.jsonl   one row per utterance, with the keys of the original preprocessing
    stats.json                                 counts, lengths, speakers, languages, unknown tokens, leaks, provenance
    failures.jsonl                             every row that gave nothing, and why
    .preprocessing_progress.txt                ids that are done, for tools that look there

They are written whole and atomically, again and again while a run lasts, and can be written again at any time without a
model. Rows stand in the order in which they were planned: that of the source, and what came later behind it. A folder
for both releases of IndexTTS2 has manifests below `2.0/` and `2.5/`, so that each is a data set of its own for its
trainer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from woodshed.contracts import Failure, Json
from woodshed.encoders.speech.published_values import RATE_HZ
from woodshed.speech.split import Splitter
from woodshed.speech.statistics import Statistics
from woodshed.store.describe import ROW
from woodshed.store.entries import RecordEntry
from woodshed.store.indextts import OF_25, array_folder
from woodshed.store.log import CommitLog

TRAIN, VAL, STATS = "train_manifest.jsonl", "val_manifest.jsonl", "stats.json"
FAILURES, PROGRESS = "failures.jsonl", ".preprocessing_progress.txt"
_KEYS: Mapping[str, tuple[str, str]] = {
    "text_ids": ("text_ids_path", "text_len"),
    "codes": ("codes_path", "code_len"),
    "condition": ("condition_path", "condition_len"),
    "speaker_vec": ("speaker_vec_path", ""),
    "emo_vec": ("emo_vec_path", ""),
}
"""The manifest's names of an array's file and of its length, in its order; a vector has no length."""
_OF_TOKENIZER = ("unknown", "unknown_characters")
"""Facts of a row that differ between the releases where it is made for both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What one release's rows were made with, as `stats.json` names it."""

    tokenizer: str
    gpt_checkpoint: str
    """Paths, as the original writes them."""
    details: Mapping[str, Json] = field(default_factory=dict)
    """Digests and versions."""


@runtime_checkable
class Target(Protocol):
    """Where derived files go, and the log that they are derived from: a `Store`, or whoever only compares."""

    @property
    def log(self) -> CommitLog: ...

    def draft(self, path: str) -> AbstractContextManager[Callable[[bytes], object]]:
        """Take a file piece by piece."""
        ...

    def render(self, path: str, content: bytes) -> None:
        """Take a whole file."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """Derives the files of one folder.

    Args:
        arrays: names of all arrays of the folder's records, as its `RecordSpec` has them.
        absent: arrays that a trainer expects and this run's models cannot make; their keys are null.
    """

    arrays: Sequence[str]
    absent: Sequence[str]
    rate_hz: float
    """Codes per second, of the main array."""
    splitter: Splitter
    provenance: Mapping[str, Provenance]
    """By release: `2.0`, `2.5`."""
    settings: Mapping[str, Json]
    """What else `stats.json` should say of how the folder was made."""

    def write(
        self,
        store: Target,
        failures: Sequence[Failure],
        skipped: Sequence[Failure],
        *,
        num_rows: int,
        num_kept: int,
    ) -> dict[str, Json]:
        """Write all of them into the store's folder (or hand them to `store`); gives the content of `stats.json`, by
        release.

        Args:
            failures, skipped: rows of the source that gave nothing.
            num_rows: rows of the source, done or not.
            num_kept: done rows that are not among those: their row has left the source, or has become unusable.

        Raises:
            StoreError: the disk refuses.
        """
        # By line or id: rows fail in the order of the work, which another history of the folder may have had otherwise.
        failures, skipped = sorted(failures, key=_place), sorted(skipped, key=_place)
        statistics = {release: Statistics() for release in self.releases}
        with ExitStack() as stack:
            progress = stack.enter_context(store.draft(PROGRESS))
            drafts = {
                (release, is_val): stack.enter_context(store.draft(f"{self.root(release)}{VAL if is_val else TRAIN}"))
                for release in self.releases
                for is_val in (False, True)
            }
            for record in done_records(store.log):
                self._add(record, drafts, statistics)
                if "\n" not in record.id and "\r" not in record.id:
                    progress(record.id.encode("utf-8", "replace") + b"\n")
        store.render(FAILURES, b"".join(map(_failure_line, sorted([*failures, *skipped], key=_place))))
        made = {}
        for release, own in statistics.items():
            stats = made[release] = self._stats(release, own, failures, skipped, num_rows, num_kept)
            content = json.dumps(stats, indent=2, ensure_ascii=False)
            store.render(f"{self.root(release)}{STATS}", content.encode("utf-8", "replace") + b"\n")
        return made

    @property
    def releases(self) -> list[str]:
        return [release for release in ("2.0", "2.5") if release in self.provenance]

    def root(self, release: str) -> str:
        """Folder of a release's manifests below the output folder: empty, or ending in a slash."""
        return "" if len(self.releases) == 1 else f"{release}/"

    def row(self, record: RecordEntry, release: str) -> dict[str, Json]:
        """One row of a release's manifest; its keys are in the order of the original."""
        facts, own = record.facts, record.facts[ROW]
        root = self.root(release)
        files = {file.path.rpartition("/")[0]: file.path.removeprefix(root) for file in record.files}
        row = {"id": record.id, **{name: own[name] for name in ("audio_path", "text", "speaker", "language")}}
        row["duration"] = own["duration"]
        for name in self.arrays_of(release):
            path_key, length_key = _KEYS[name.removesuffix(OF_25)]
            row[path_key] = files.get(array_folder(name, self.arrays))
            if length_key:
                row[length_key] = facts["lengths"].get(name)
        return row

    def arrays_of(self, release: str) -> list[str]:
        """Names of a release's arrays in the order of its manifest, absent ones included."""
        suffix = OF_25 if release == "2.5" else ""
        there = {*self.arrays, *self.absent}
        return [f"{name}{suffix}" for name in _KEYS if f"{name}{suffix}" in there]

    def _add(
        self,
        record: RecordEntry,
        drafts: Mapping[tuple[str, bool], Callable[[bytes], object]],
        statistics: Mapping[str, Statistics],
    ) -> None:
        known = {**record.facts[ROW], "id": record.id}
        is_val = self.splitter.is_validation(known)
        for release in self.releases:
            row = self.row(record, release)
            drafts[release, is_val](json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            own = {name: known.get(f"{name}{OF_25}", known[name]) for name in _OF_TOKENIZER if release == "2.5"}
            statistics[release].add(row, known | own, audio_s=record.facts["num_samples"] / RATE_HZ, is_val=is_val)

    def _stats(
        self,
        release: str,
        own: Statistics,
        failures: Sequence[Failure],
        skipped: Sequence[Failure],
        num_rows: int,
        num_kept: int,
    ) -> dict[str, Json]:
        total = own.num_train + own.num_val
        provenance = self.provenance[release]
        absent = [name.removesuffix(OF_25) for name in self.absent if name.endswith(OF_25) == (release == "2.5")]
        return {
            "total": total,
            "train": own.num_train,
            "val": own.num_val,
            "tokenizer": provenance.tokenizer,
            "gpt_checkpoint": provenance.gpt_checkpoint,
            "target": release,
            "codes_per_second": self.rate_hz if release == "2.0" or len(self.releases) == 1 else self.rate_hz / 2,
            "rows_in_source": num_rows,
            "pending": num_rows - (total - num_kept) - len(failures) - len(skipped),
            "no_longer_in_source": num_kept,
            "failed": _by_kind(failures),
            "skipped": _by_kind(skipped),
            **own.to_json(),
            "split": {"by": self.splitter.by, "ratio": self.splitter.ratio, "seed": self.splitter.seed},
            "absent_features": absent,
            "made_with": dict(provenance.details),
            **self.settings,
        }


def done_records(log: CommitLog) -> Iterator[RecordEntry]:
    """The record of every item that is done, in the order of the plans."""
    for item_id in log.in_order():
        entry = log.entry(item_id)
        if entry is not None and entry.status == "done":
            yield from log.records(item_id)


def _by_kind(failures: Iterable[Failure]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for failure in failures:
        kinds[failure.kind] = kinds.get(failure.kind, 0) + 1
    return dict(sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0])))


def _place(failure: Failure) -> tuple[bool, int, str]:
    return (failure.line is None, failure.line or 0, failure.id)


def _failure_line(failure: Failure) -> bytes:
    line = {"id": failure.id, "kind": failure.kind, "reason": failure.reason, "line": failure.line}
    return json.dumps(line, ensure_ascii=True).encode() + b"\n"
