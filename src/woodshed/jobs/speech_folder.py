"""What a folder of `woodshed speech` remembers: its settings, its source, and how its manifests are derived.

None of it needs a model: what a manifest says stands in the log, and what it was made with in `stats.json`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from woodshed.contracts import BadRow, Failure, Item, Json
from woodshed.encoders.speech.text.languages import language_hint
from woodshed.encoders.speech.whisper_encoder import WhisperEncoder
from woodshed.errors import ModelError, UsageError
from woodshed.jobs.encode import versions
from woodshed.jobs.speech_model import model_files
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.run.plan import TAKEN_BACK
from woodshed.sources.speech_manifest import read_speech_manifest
from woodshed.speech.manifests import FAILURES, STATS, Manifests, Provenance
from woodshed.speech.split import Splitter
from woodshed.speech.stems import with_stems
from woodshed.store.indextts import OF_25
from woodshed.store.log import CommitLog
from woodshed.store.reader import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceAccount:
    """What the last run said of its source: what `Manifests.write` needs besides the log."""

    failures: tuple[Failure, ...]
    skipped: tuple[Failure, ...]
    num_rows: int
    num_kept: int
    """Done rows that the source has no longer."""


class Rederived:
    """Stands in for a store where manifests are written: keeps digests, and the content of small files."""

    def __init__(self, log: CommitLog) -> None:
        self.log = log
        self.digests: dict[str, str] = {}
        self.contents: dict[str, bytes] = {}

    @contextmanager
    def draft(self, path: str) -> Iterator[Callable[[bytes], object]]:
        digest = xxhash.xxh3_64()
        yield digest.update
        self.digests[path] = digest.hexdigest()

    def render(self, path: str, content: bytes) -> None:
        self.contents[path] = content


def source_rows(settings: SpeechSettings) -> Iterator[Item | BadRow]:
    """The rows of the manifest that a folder was made of, as the run read them.

    Raises:
        UsageError: at the first row, where the manifest cannot be read.
    """
    language = settings.language
    if settings.text_compat and language is not None:
        language = language_hint(language, language)
    assert settings.manifest is not None, "a folder is made of one manifest"
    return with_stems(
        read_speech_manifest(
            str(settings.manifest), language=language, one_language=settings.text_compat, compat=settings.compat
        )
    )


def manifests_of_folder(reader: Reader, settings: SpeechSettings) -> Manifests:
    """What derives the manifests and `stats.json` of a folder, without a model at hand."""
    spec = reader.spec
    is_whisper = reader.fingerprint["architecture"] == "whisper"
    return Manifests(
        arrays=tuple(spec["arrays"]),
        absent=WhisperEncoder.absent if is_whisper else (),
        rate_hz=spec["rate_hz"] / spec["hop_samples"],
        splitter=Splitter(ratio=settings.val_ratio, by=settings.split_by, seed=settings.seed),
        provenance={release: _provenance(reader, settings, release) for release in reader.fingerprint["targets"]},
        settings={"semantic": settings.semantic, "layout": settings.layout, "compat": settings.compat},
    )


def _provenance(reader: Reader, settings: SpeechSettings, release: str) -> Provenance:
    """As `stats.json` has it; where that is lost, as a run on this machine would write it."""
    stats = read_stats(reader, release)
    if stats is not None:
        return Provenance(
            tokenizer=stats["tokenizer"], gpt_checkpoint=stats["gpt_checkpoint"], details=stats["made_with"]
        )
    tokenizer, gpt_checkpoint = " ".join(map(str, settings.tokenizer)), ""
    if settings.semantic == "w2v-bert":
        try:
            files = model_files(settings)
            tokenizer = str(files.path("tokenizer_2.0" if release == "2.0" else "tokenizer_2.5"))
            gpt_checkpoint = str(files.path("gpt_2.0" if release == "2.0" else "gpt_2.5"))
        except (ModelError, UsageError):
            pass  # the next run, which has the models, fills it in
    details = {"fingerprint": dict(reader.fingerprint), "versions": versions()}
    return Provenance(tokenizer=tokenizer, gpt_checkpoint=gpt_checkpoint, details=details)


def release_root(reader: Reader, release: str) -> str:
    """Folder of a release's manifests below the output folder: empty, or ending in a slash."""
    return "" if len(reader.fingerprint["targets"]) == 1 else f"{release}/"


def read_stats(reader: Reader, release: str) -> dict[str, Json] | None:
    """A release's `stats.json`; None where it is missing or no such file."""
    try:
        stats = json.loads((reader.folder / release_root(reader, release) / STATS).read_bytes())
    except (OSError, ValueError):
        return None
    texts = isinstance(stats, dict) and all(isinstance(stats.get(key), str) for key in ("tokenizer", "gpt_checkpoint"))
    return stats if texts and isinstance(stats.get("made_with"), dict) else None


def source_account(reader: Reader) -> SourceAccount:
    """The rows that gave nothing: as `failures.jsonl` lists them, and what was taken back since.

    Only the file knows lines of the manifest, and which failures of earlier runs are no rows of the source any more.
    Where it is not what `stats.json` counted, all failures of the log count.
    """
    told_before = read_failures(reader.folder)
    stats = read_stats(reader, reader.fingerprint["targets"][0])
    is_whole = stats is not None and Counter(failure.kind for failure in told_before) == counted_failures(stats)
    failures: list[Failure] = []
    skipped: list[Failure] = []
    for told in told_before:
        entry = reader.log.entry(told.id)
        if entry is not None:
            # What is done can be told of, too: its source broke since, and the last run could not read the row.
            (skipped if entry.status == "skipped" else failures).append(told)
    known = {failure.id for failure in told_before}
    for item_id in reader.log.in_order():
        entry = reader.log.entry(item_id)
        assert entry is not None
        if entry.status != "done" and item_id not in known and (not is_whole or entry.kind == TAKEN_BACK):
            own = Failure(id=item_id, kind=entry.kind, reason=entry.reason)
            (skipped if entry.status == "skipped" else failures).append(own)
    num_rows = stats["rows_in_source"] if stats is not None and isinstance(stats.get("rows_in_source"), int) else None
    num_kept = None if stats is None else stats.get("no_longer_in_source")
    return SourceAccount(
        failures=tuple(failures),
        skipped=tuple(skipped),
        num_rows=len(reader.log) if num_rows is None else num_rows,
        num_kept=num_kept if isinstance(num_kept, int) else 0,
    )


def read_failures(folder: Path) -> list[Failure]:
    """The lines of `failures.jsonl` that are as we write them."""
    failures = []
    try:
        lines = (folder / FAILURES).read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            failures.append(Failure(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return failures


def counted_failures(stats: Mapping[str, Json]) -> Counter[str]:
    """How many rows `stats.json` says gave nothing, by kind."""
    counted = Counter[str]()
    for key in ("failed", "skipped"):
        kinds = stats.get(key)
        counted.update(kinds if isinstance(kinds, dict) else {})
    return counted


def num_values(array: str, reader: Reader) -> int:
    """How many values the integers of an array can take: the tokenizer's vocabulary, the codec's codebook."""
    is_25 = array.endswith(OF_25)
    if array.startswith("text_ids"):
        size: int = reader.fingerprint["text"]["2.5" if is_25 else "2.0"]["vocab_size"]
        return size
    sizes = reader.spec["codebook_sizes"]
    return int(sizes[-1] if is_25 else sizes[0])
