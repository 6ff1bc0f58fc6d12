"""Take over a folder that the original preprocessing made: what is sound is kept, the rest is made anew.

Why a row's length tells so much: the original pads a batch to its longest clip and stores the padding. So a row has its
true length only if it was the longest of its batch, or alone. Such a row was not padded in any network, and then its
codes, condition and emotion are those of a single run too, whatever else was in the batch.

    prepare    nothing is written: some rows of each program run are computed with this run's models and compared
    take_over  ledgers are copied to `.woodshed/adopted`, sound rows are committed like any other, in the order of the
               source; what the plan finds done is adopted, and all else it computes
    clear_up   files under the original's names go once their rows are done, then leftover workers

`.woodshed/adopted/adopting.json` stands from before the folder is claimed until the last row has been looked at: an
interrupted adoption goes on at the next start.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from woodshed.audio.clip import file_digest
from woodshed.contracts import BadRow, Item, Json, Observer, Place
from woodshed.encoders.speech.encoder import SpeechEncoder
from woodshed.errors import ItemError, StoreError
from woodshed.run.patience import STALL_S, BoundedMap, patience_s
from woodshed.run.plan import meta_digest
from woodshed.speech.adopt_files import (
    ARRAYS,
    KEPT,
    Found,
    OriginalFolder,
    is_followed,
    is_originals,
    make_folders,
    put,
)
from woodshed.speech.adopt_rows import Examiner, Sound
from woodshed.speech.adopt_survey import Survey
from woodshed.store.disk import Disk
from woodshed.store.entries import SourceFacts
from woodshed.store.folder import HOME
from woodshed.store.indextts import STEM
from woodshed.store.store import Store

MARKER = f"{KEPT}/adopting.json"
LEFTOVERS = f"{KEPT}/leftovers.jsonl"
"""Ids of rows that were not adopted and have files under names that are not ours."""
CHUNK_ROWS = 128
REMOVED_AT_ONCE = 256
THREADS = 4
TELL_EVERY_S = 10.0
NAMED_FILES = 3

_REASONS: Mapping[str, str] = {
    "duplicate_id": "have an id that stands twice in the source",
    "longer_than_reference": "are longer than --reference-seconds, and have the whole clip as reference",
    "missing": "lack a file",
    "not_finite": "hold NaN or infinity",
    "other_length": "are shorter than their sound",
    "other_shape": "have another type or shape",
    "other_text": "have other text ids than this run gives",
    "out_of_range": "hold codes that the codec does not have",
    "padded_codes": "have the padding of their batch among their codes",
    "too_slow": "have a sound whose file does not answer",
    "unchecked": "come from a program run none of whose rows could be compared",
    "unlisted": "are named by no manifest of the folder (--skip-existing looks at such rows too)",
    "unreadable": "have a torn file",
}


def is_adoptable(folder: Path) -> bool:
    """Whether the original made this folder, or its adoption was interrupted."""
    return is_originals(folder) or (folder / MARKER).exists()


def demand_same_features(folder: Path, *, targets: Sequence[str], semantic: str, layout: str) -> None:
    """Refuse to adopt for a run that makes something else than the original does.

    Raises:
        StoreError: it names the setting.
    """
    others = {"--semantic": (semantic, "w2v-bert"), "--target": (" and ".join(targets), "2.0")}
    for flag, (asked, made) in (others | {"--layout": (layout, "indextts")}).items():
        if asked != made:
            raise StoreError(
                f"{folder} was made by IndexTTS2's own preprocessing, which knows {flag} {made} only; "
                f"this run makes {asked}",
                hint="choose another output folder",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """One folder of the original and the run that takes it over.

    Args:
        rows: the source's rows, each item with its stem; asked for once or twice.
        original: the run's models with the original's numbers.
        any_files: look at every row whose files are there, not only at those that manifests or progress files name.
    """

    folder: Path
    rows: Callable[[], Iterable[Item | BadRow]]
    encoder: SpeechEncoder
    original: SpeechEncoder
    any_files: bool
    observer: Observer
    stopped: Callable[[], bool]
    disk: Disk = field(default_factory=Disk)

    def prepare(self) -> None:
        """Look before anything is touched, then leave the mark. Nothing to do where an earlier start came this far.

        Raises:
            StoreError: the folder was made of another source, by other models or with another tokenizer; nothing was
                changed. Or the disk refuses.
        """
        if not is_originals(self.folder):
            return
        self.observer.message(f"{self.folder} was made by IndexTTS2's own preprocessing: looking at its rows")
        there = OriginalFolder.at(self.folder)
        survey = Survey()
        listed = there.listed_ids()
        for row in self.rows():
            self._go_on()
            survey.add(row, there, is_candidate=lambda row_id: self.any_files or _is_listed(row_id, listed))
        if listed and not survey.num_candidates and not survey.known_ids & listed:
            raise StoreError(
                f"{self.folder} holds {len(listed)} rows of IndexTTS2's own preprocessing, and none of them is in this "
                "manifest",
                hint="check the manifest, or choose another output folder",
            )
        trusted = survey.trusted(self.folder, self.encoder, self.original, go_on=self._go_on)
        num_strays, shown = 0, list[str]()
        for path, row_id in there.files():
            if row_id not in survey.known_ids or not is_followed(row_id):
                num_strays += 1
                shown += [path] * (len(shown) < NAMED_FILES)
        self._mark({
            "trusted": trusted, "duplicates": sorted(survey.duplicates), "num_strays": num_strays, "strays": shown,
        })  # fmt: skip

    def _go_on(self) -> None:
        if self.stopped():
            raise StoreError(
                f"stopped before anything was changed in {self.folder}",
                hint="the same command looks at the folder again",
            )

    def _mark(self, content: Json) -> None:
        make_folders(self.folder / KEPT, self.disk)
        make_folders(self.folder / HOME / "tmp", self.disk)
        temporary = self.folder / HOME / "tmp" / "adopting"
        self.disk.write(temporary, [json.dumps(content, ensure_ascii=True).encode()])
        put(temporary, self.folder / MARKER, self.disk)

    def take_over(self, store: Store) -> list[str]:
        """Commit every row that is sound; gives what the user should know. Ended early when stopped, to go on later.

        Raises:
            StoreError: the disk refuses.
        """
        if not (self.folder / MARKER).exists():
            return []
        marker = json.loads((self.folder / MARKER).read_bytes())
        there = OriginalFolder.at(self.folder)
        there.keep_ledgers(self.disk)
        listed = OriginalFolder.at(self.folder / KEPT).listed_ids()
        taking = _Taking(self, store, there, listed, marker)
        temporary = self.folder / HOME / "tmp" / "leftovers"
        with self.disk.writing(temporary) as write:
            taking.work_through(write)
        if self.stopped():
            return []
        put(temporary, self.folder / LEFTOVERS, self.disk)
        self.disk.remove(self.folder / MARKER)
        self.disk.sync([self.folder / KEPT])
        return list(taking.notes())


def clear_up(store: Store, disk: Disk | None = None) -> None:
    """Remove the original's files of rows that are done under our names by now, and leftover workers without files.

    Raises:
        StoreError: the disk refuses.
    """
    disk, leftovers = disk or Disk(), store.folder / LEFTOVERS
    if not leftovers.exists() or (store.folder / MARKER).exists():
        return
    there = OriginalFolder.at(store.folder)
    is_left = False
    with leftovers.open("rb") as file:
        for line in file:
            row_id = json.loads(line)
            if _is_done(store, row_id):
                there.remove(_not_ours(store, row_id, there.find(row_id)), disk)
            else:
                is_left = True
    there.remove_empty_workers(disk)
    if not is_left:
        disk.remove(leftovers)
        disk.sync([leftovers.parent])


@dataclass(slots=True)
class _Taking:
    """The rows of one folder on their way into the store."""

    adoption: Adoption
    store: Store
    there: OriginalFolder
    listed: set[str]
    marker: Mapping[str, Json]
    num_adopted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    num_without_source: int = 0
    _removable: list[str] = field(default_factory=list)
    _duplicates: frozenset[str] = field(init=False)
    _position: int = field(init=False)

    def __post_init__(self) -> None:
        self._duplicates, self._position = frozenset(self.marker["duplicates"]), self.store.next_position

    def work_through(self, write: Callable[[bytes], object]) -> None:
        """Look at all rows, commit those that are sound; `write` takes the ids of others that leave files behind."""
        adoption, told = self.adoption, time.monotonic()
        judge = BoundedMap(
            partial(_judged, Examiner(adoption.folder, adoption.encoder)),
            num_threads=THREADS,
            limit_s=lambda row: patience_s(row[0], STALL_S),
        )
        rows, num_seen = iter(adoption.rows()), 0
        while (chunk := list(islice(rows, CHUNK_ROWS))) and not adoption.stopped():
            fresh = list(self._fresh(chunk))
            tried = [(item, self._candidate(item, found)) for item, found in fresh]
            for (item, found), verdict in zip(fresh, judge(tried, stopped=adoption.stopped), strict=True):
                self._settle(item, found, verdict, write)
            num_seen += len(chunk)
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                adoption.observer.message(f"{num_seen} rows looked at, {self.num_adopted} adopted")
            if len(self._removable) >= REMOVED_AT_ONCE:
                self._remove()
        self._remove()

    def _fresh(self, rows: Iterable[Item | BadRow]) -> Iterator[tuple[Item, Found]]:
        """Rows that have files and are not done."""
        for row in rows:
            found = self.there.find(row.id)
            if isinstance(row, BadRow):
                self.num_without_source += bool(found.paths)
            elif _is_done(self.store, row.id):
                self.num_adopted += 1
                self._removable += _not_ours(self.store, row.id, found)
            elif found.paths:
                yield row, found

    def _candidate(self, item: Item, found: Found) -> Found | ItemError:
        """What is to be looked at of a row, or why nothing is."""
        if not (self.adoption.any_files or _is_listed(item.id, self.listed)):
            return ItemError(f"no manifest of the folder names {item.id!r}", kind="unlisted")
        if item.id in self._duplicates:
            return ItemError(f"{item.id!r} stands twice in the source", kind="duplicate_id")
        sets = tuple(files for files in found.sets if files.group in self.marker["trusted"])
        return replace(found, sets=sets)

    def _settle(
        self, item: Item, found: Found, verdict: Sound | ItemError | None, write: Callable[[bytes], object]
    ) -> None:
        if isinstance(verdict, Sound):
            self._commit(item, verdict)
            self._removable += [path for path in found.paths if path not in _own_names(item)]
            return
        if self.adoption.stopped():
            return
        self.reasons["too_slow" if verdict is None else verdict.kind] += 1
        if not _own_names(item).issuperset(found.paths):
            write(json.dumps(item.id).encode() + b"\n")

    def _commit(self, item: Item, sound: Sound) -> None:
        facts = SourceFacts(
            id=item.id,
            size_bytes=item.size_bytes,
            mtime_ns=item.mtime_ns,
            digest=sound.digest,
            meta_digest=meta_digest(item.meta),
            position=self._position,
        )
        place = Place(item=item, digest=sound.digest, rank=0, position=self._position, index=0, num_records=1)
        with self.store.item(facts) as writer:
            writer.write(sound.record, place)
            writer.done(audio_s=sound.audio_s)
        self._position += 1
        self.num_adopted += 1

    def _remove(self) -> None:
        """Remove the original's files of adopted rows: what took their place must be durable before."""
        self.store.commit()
        if self._removable:
            self.there.remove(self._removable, self.adoption.disk)
            self._removable.clear()

    def notes(self) -> Iterator[str]:
        """What the user should know, one sentence each."""
        options = self.adoption.encoder.options
        if self.num_adopted:
            way = "" if options.compat else "; their sound went by way of 24 kHz, as the original resamples it"
            yield f"{self.num_adopted} rows that IndexTTS2's own preprocessing had made are kept{way}"
        for kind, count in sorted(self.reasons.items()):
            reason = _REASONS.get(kind, "cannot be used as they are")
            yield f"{count} of the folder's old rows are not kept but made anew: they {reason} ({kind})"
        if self.num_without_source:
            yield (
                f"{self.num_without_source} of the folder's old rows cannot be checked, as the source has no sound or "
                "text for them: their files stay, and no manifest names them"
            )
        if num_strays := self.marker["num_strays"]:
            shown = ", ".join(self.marker["strays"])
            yield (
                f"{num_strays} of the folder's old files belong to no row of the source, or have `%` or `~` in their "
                f"names, as only ours may have, and stay where they are, such as {shown}"
            )
        yield f"the old manifests, statistics and progress files are kept in {KEPT}"


def _judged(examiner: Examiner, row: tuple[Item, Found | ItemError]) -> Sound | ItemError:
    item, found = row
    if isinstance(found, ItemError):
        return found
    if not found.sets:
        return ItemError(f"nothing of the kind of {item.id!r} could be compared", kind="unchecked")
    verdict = examiner.judge(item, found.sets)
    if isinstance(verdict, ItemError):
        return verdict
    try:
        return replace(verdict, digest=file_digest(item.path))
    except ItemError as error:
        return error


def _is_listed(row_id: str, listed: set[str]) -> bool:
    return row_id in listed or row_id.strip() in listed


def _is_done(store: Store, row_id: str) -> bool:
    entry = store.entry(row_id)
    return entry is not None and entry.status == "done"


def _own_names(item: Item) -> set[str]:
    stem = item.meta.get(STEM, item.id)
    return {f"{array}/{stem}.npy" for array in ARRAYS}


def _not_ours(store: Store, row_id: str, found: Found) -> list[str]:
    own = {file.path for record in store.log.records(row_id) for file in record.files}
    return [path for path in found.paths if path not in own]
