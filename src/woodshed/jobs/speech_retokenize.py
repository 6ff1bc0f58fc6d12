"""`woodshed speech retokenize`: another tokenizer, or other text rules, for a folder whose other features stay.

The texts come from the folder's log. Everything that follows from them changes in one commit: text ids, what the log
says of each row, the run's identity and settings, manifests and `stats.json`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from woodshed.contracts import BadRow, Failure, Json, Observer, Progress
from woodshed.encoders.speech.clip import ClipLimits
from woodshed.encoders.speech.encoder import Target
from woodshed.encoders.speech.model_files import ModelFiles
from woodshed.encoders.speech.text.languages import language_hint
from woodshed.errors import StoreError, UsageError
from woodshed.jobs.complaints import checked
from woodshed.jobs.encode import Silent, versions
from woodshed.jobs.folder import SETTINGS, made_by, read_settings
from woodshed.jobs.repair import open_store
from woodshed.jobs.report import to_json
from woodshed.jobs.speech_folder import manifests_of_folder, source_account, source_rows
from woodshed.jobs.speech_model import TOKENIZERS, clip_limits, model_files, targets_of, text_rules
from woodshed.jobs.speech_retokenize_settings import SpeechRetokenizeSettings
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.run.plan import meta_digest
from woodshed.speech.manifests import Manifests
from woodshed.speech.retokenize import TEXT_KINDS, Retokenizer, Tally, retokenize
from woodshed.store.folder import HOME, read_run
from woodshed.store.indextts import IndexTTS
from woodshed.store.log import CommitLog
from woodshed.store.reader import Reader, open_reader
from woodshed.store.revision import Revision
from woodshed.store.store import Store

MAX_FAILURES_LISTED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RetokenizeReport:
    """What `woodshed speech retokenize` did, or under `dry_run` would do."""

    folder: str
    tokenizers: tuple[str, ...]
    num_rows: int
    """Rows with features."""
    num_changed: int
    """Rows whose text ids are others than before, or none."""
    num_back: int
    """Rows that an earlier tokenizer could not do with, and this one can."""
    num_done: int
    """Rows that the manifests list."""
    num_tokens_before: int
    num_tokens: int
    """Text ids of all rows."""
    unknown_rate_before: float
    unknown_rate: float
    """Share of the text ids that stand for characters which the tokenizer does not know."""
    num_failed: int
    """Rows that give no text ids which the trainer could take."""
    failure_kinds: Mapping[str, int]
    failures: tuple[Failure, ...]
    """The first hundred."""
    is_written: bool
    """Whether anything in the folder has changed."""
    dry_run: bool
    elapsed_s: float
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 3 some rows have a text that cannot be used."""
        return 3 if self.num_failed else 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


def speech_retokenize(folder: str | Path, /, *, observer: Observer | None = None, **settings: Any) -> RetokenizeReport:
    """Make the text ids of a folder anew; the same as `woodshed speech retokenize` with these settings.

    Args:
        folder: output folder of `woodshed speech`.
        settings: fields of `woodshed.jobs.speech_retokenize_settings.SpeechRetokenizeSettings`, by name.

    Raises:
        UsageError: the settings cannot work.
        WoodshedError: the folder or a tokenizer cannot be used. Rows whose text cannot be used do not raise.
    """
    given = {"folder": folder} | settings
    return run(checked(SpeechRetokenizeSettings, given), observer=observer or Silent())


def run(settings: SpeechRetokenizeSettings, *, observer: Observer) -> RetokenizeReport:
    """Count what changes, and unless `dry_run` is set, change it in one commit.

    Raises:
        UsageError: the folder is of another kind, or no row would be left.
        ModelError: a tokenizer is missing or none.
        StoreError: a run is writing to the folder, its log is damaged, or the disk refuses.
    """
    started = time.monotonic()
    if settings.dry_run:
        reader = open_reader(settings.folder)
        task = _Task.of(reader, settings)
        tally, is_written = task.look(reader.log, None, observer), False
    else:
        reader = _reader(settings.folder, None)
        _check_kind(reader)
        with open_store(reader) as store:
            task = _Task.of(_reader(settings.folder, store.log), settings)
            tally, is_written = task.change(store, observer)
    return RetokenizeReport(
        folder=str(settings.folder),
        tokenizers=tuple(str(path) for path in task.tokenizers.values()),
        num_rows=tally.num_rows,
        num_changed=tally.num_changed,
        num_back=tally.num_back,
        num_done=tally.num_done,
        num_tokens_before=tally.before.num_tokens,
        num_tokens=tally.after.num_tokens,
        unknown_rate_before=tally.before.unknown_rate,
        unknown_rate=tally.after.unknown_rate,
        num_failed=len(tally.failures),
        failure_kinds=dict(Counter(failure.kind for failure in tally.failures)),
        failures=tuple(tally.failures[:MAX_FAILURES_LISTED]),
        is_written=is_written,
        dry_run=settings.dry_run,
        elapsed_s=time.monotonic() - started,
        notes=(*task.notes(tally), *(_stale_pairs(settings.folder) if is_written else ())),
    )


def _stale_pairs(folder: Path) -> list[str]:
    """What is to be done about pairs that were made of the old text ids: trainers trust the lengths in them."""
    stale = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*_pairs_*.jsonl"))
    if not stale:
        return []
    return [f"{', '.join(stale)} name the lengths of the old text ids: make them again with `woodshed speech pairs`"]


def _reader(folder: Path, log: CommitLog | None) -> Reader:
    """A view of a folder through a log that is read already; without one, of what it was made by.

    Raises:
        StoreError: it is not an output folder of ours.
    """
    run = read_run(folder)
    if run is None:
        raise StoreError(
            f"{folder} is not a Woodshed output folder: there is no {folder / HOME / 'run.json'}",
            hint="name the folder that `woodshed speech` wrote to",
        )
    return Reader(folder, run, CommitLog(folder) if log is None else log)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A folder, how it was made, and how it is to be made now."""

    reader: Reader
    made: SpeechSettings
    wanted: SpeechSettings
    tokenizers: Mapping[Target, Path]
    how: Retokenizer
    troubles: list[str]
    """What the user should know of the way, one sentence each."""

    @classmethod
    def of(cls, reader: Reader, settings: SpeechRetokenizeSettings) -> _Task:
        """Raises `UsageError`, `ModelError` and `StoreError` as `run`."""
        _check_kind(reader)
        made = read_settings(reader.folder, SpeechSettings)
        tokenizers, files = _tokenizers(made, settings.tokenizer)
        wanted = _wanted(made, settings, tokenizers)
        how = Retokenizer(
            rules={target: text_rules(wanted, path, target) for target, path in tokenizers.items()},
            limits=_limits(wanted, files),
            language=_run_language(wanted),
            arrays=tuple(reader.spec["arrays"]),
        )
        return cls(reader=reader, made=made, wanted=wanted, tokenizers=tokenizers, how=how, troubles=[])

    def look(
        self,
        log: CommitLog,
        revision: Revision | None,
        observer: Observer,
        *,
        meta_digests: Mapping[str, str] | None = None,
    ) -> Tally:
        """Go through all rows.

        Raises:
            UsageError: no row would be left.
        """
        started = time.monotonic()
        total = log.totals.num_done
        observer.message(f"tokenizing the texts of {total} rows")

        def tell(tally: Tally) -> None:
            observer.progress(
                Progress(
                    items_total=total,
                    items_done=min(total, tally.num_done),
                    items_failed=len(tally.failures),
                    items_skipped=0,
                    audio_total_s=log.totals.audio_s,
                    audio_done_s=log.totals.audio_s * min(1.0, tally.num_rows / max(1, total)),
                    audio_now_s=log.totals.audio_s * min(1.0, tally.num_rows / max(1, total)),
                    elapsed_s=time.monotonic() - started,
                )
            )

        tally = retokenize(log, self.how, revision, meta_digests=meta_digests or {}, tell=tell)
        if not tally.num_done:
            first = f", such as {tally.failures[0].id!r}: {tally.failures[0].reason}" if tally.failures else ""
            raise UsageError(
                f"of the {tally.num_rows} rows of {self.reader.folder} none would be left{first}; nothing was changed",
                hint="is this the tokenizer that was meant?" if tally.failures else "make features first",
            )
        return tally

    def change(self, store: Store, observer: Observer) -> tuple[Tally, bool]:
        """Change what has to be changed, in one commit; gives also whether there was anything."""
        account = source_account(self.reader)
        digests = self._meta_digests(store.log, observer)
        with store.revision() as revision:
            tally = self.look(store.log, revision, observer, meta_digests=digests)
            revision.rename_run({**self.reader.fingerprint, "text": self._text})
            revision.note(SETTINGS, self._settings_json())
            revision.foresee()
            observer.message("writing the manifests")
            again = {failure.id for failure in tally.failures}
            failures = [one for one in account.failures if one.id not in tally.back and one.id not in again]
            self._manifests().write(
                revision,
                [*failures, *tally.failures],
                account.skipped,
                num_rows=account.num_rows,
                num_kept=account.num_kept,
            )
            is_changed = not revision.is_empty
        return tally, is_changed

    @property
    def _text(self) -> dict[str, Json]:
        """The part of the fingerprint that changes."""
        return {target: dict(rules.fingerprint) for target, rules in self.how.rules.items()}

    def _settings_json(self) -> bytes:
        plain = json.loads((self.reader.folder / HOME / SETTINGS).read_bytes())
        wanted = self.wanted.to_json()
        names = ("tokenizer", "language", "text_compat", "text_engine", "max_text_tokens", "unknown_threshold")
        plain |= {name: wanted[name] for name in names if wanted[name] != self.made.to_json()[name]}
        return json.dumps(plain, indent=1, ensure_ascii=True).encode() + b"\n"

    def _manifests(self) -> Manifests:
        manifests = manifests_of_folder(self.reader, self.wanted)
        if self._text == self.reader.fingerprint["text"] and self.wanted.tokenizer == self.made.tokenizer:
            return manifests
        provenance = {}
        for release, tokenizer in self.tokenizers.items():
            own = manifests.provenance[release]
            made_with = {**own.details.get("fingerprint", self.reader.fingerprint), "text": self._text}
            details = {**own.details, "fingerprint": made_with, "versions": versions()}
            provenance[str(release)] = replace(own, tokenizer=str(tokenizer), details=details)
        return replace(manifests, provenance=provenance)

    def _meta_digests(self, log: CommitLog, observer: Observer) -> dict[str, str]:
        """By id, what a later run with the new settings will know a row under, where its language is part of that."""
        before, now = (_digest_settings(settings) for settings in (self.made, self.wanted))
        if before == now:
            return {}
        observer.message(f"reading {self.made.manifest}: rows are read in another language now")
        digests = {}
        try:
            for old, new in zip(source_rows(self.made), source_rows(self.wanted), strict=True):
                if isinstance(old, BadRow) or isinstance(new, BadRow):
                    continue
                entry = log.entry(old.id)
                if entry is not None and entry.meta_digest == meta_digest(old.meta):
                    digests[old.id] = meta_digest(new.meta)
        except UsageError as error:
            self.troubles.append(
                f"{error.message}, so `woodshed speech` will take rows for changed whose language is another now, and "
                "make all their features again"
            )
        return digests

    def notes(self, tally: Tally) -> list[str]:
        """What the user should know, one sentence each."""
        notes = list(self.troubles)
        if tally.after.unknown_rate > self.wanted.unknown_threshold:
            notes.append(
                f"{tally.after.unknown_rate:.1%} of the text ids are unknown to the tokenizer; a model cannot learn to "
                "say them"
            )
        if tally.failures:
            notes.append(
                f"rows that failed left the manifests; their other features are kept in {HOME}/kept and come back "
                "when a tokenizer can do with their texts"
            )
        untried = sum(
            failure.kind in TEXT_KINDS and not self.reader.log.kept(failure.id)
            for failure in self.reader.log.failures()
        )
        if untried:
            notes.append(
                f"{untried} rows had failed of their text before anything was made of them; `woodshed speech` with "
                "--retry-failed tries them with this tokenizer"
            )
        return notes


def _check_kind(reader: Reader) -> None:
    if made_by(reader) != "speech":
        raise UsageError(
            f"{reader.folder} was made by `woodshed encode` and holds no text ids",
            hint="name the output folder of `woodshed speech`",
        )
    if reader.layout != IndexTTS.name:
        raise UsageError(
            f"{reader.folder} has the layout {reader.layout}, whose files hold text ids and codes together: they would "
            "all have to be written again",
            hint="make the features again into a new folder with the new tokenizer",
        )


def _tokenizers(made: SpeechSettings, given: Sequence[Path]) -> tuple[dict[Target, Path], ModelFiles | None]:
    """The tokenizer of each release: as given now, else as the folder was made with; and the folder's other files.

    Raises:
        UsageError: too many are given, or one of no use.
        ModelError: one is missing or of another kind.
    """
    if made.semantic == "whisper":
        paths = tuple(given) or made.tokenizer
        if len(paths) != 1:
            raise UsageError(f"{len(paths)} tokenizers are given; this folder takes one", hint="give one --tokenizer")
        return {"2.0": paths[0].absolute()}, None
    now, before = model_files(made.model_copy(update={"tokenizer": tuple(given)})), model_files(made)
    is_given = {file.role for file in now.files if file.source == "given"}
    tokenizers = {}
    for target in targets_of(made):
        role = TOKENIZERS[target]
        tokenizers[target] = (now if role in is_given else before).path(role).absolute()
    return tokenizers, before


def _wanted(
    made: SpeechSettings, settings: SpeechRetokenizeSettings, tokenizers: Mapping[Target, Path]
) -> SpeechSettings:
    """The settings of a run that would go on with the folder afterwards."""
    names = ("language", "text_compat", "text_engine", "max_text_tokens", "unknown_threshold")
    changes = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    if settings.tokenizer:
        changes["tokenizer"] = tuple(tokenizers.values())
    return checked(SpeechSettings, {name: getattr(made, name) for name in SpeechSettings.model_fields} | changes)


def _limits(wanted: SpeechSettings, files: ModelFiles | None) -> ClipLimits:
    """What the trainer can take.

    Raises:
        UsageError: the config that says it is gone.
    """
    if files is not None and wanted.max_text_tokens is None and wanted.config is not None:
        config = next(file for file in files.files if file.role == "config")
        if config.state != "ok":
            raise UsageError(
                f"{wanted.config}, which says how many tokens a text may have, cannot be read: "
                f"{config.problem or config.state}",
                hint="add --max-text-tokens N (the published models take 600)",
            )
    return clip_limits(wanted, files)


def _run_language(settings: SpeechSettings) -> str | None:
    """The run's language as the text rules take it."""
    if settings.text_compat and settings.language is not None:
        return language_hint(settings.language, settings.language)
    return settings.language


def _digest_settings(settings: SpeechSettings) -> tuple[str | None, bool]:
    """What a row's digest depends on besides the row."""
    language = _run_language(settings)
    return language, settings.text_compat and language is not None
