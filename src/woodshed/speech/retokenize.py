"""New text ids for the rows of a folder, from the texts in its log: no model, no sound, one commit for all of them.

A row that gives no text ids the trainer could take fails, as it would in a new run. Nothing that was made of it is
lost: its other arrays move to `.woodshed/kept`, where no reader finds them, and come back as soon as a later tokenizer,
or the old one, can do with its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import xxhash

from woodshed.contracts import Failure, Json
from woodshed.encoders.speech.clip import ClipLimits, Rules, spoken_language, text_ids, unknown_tokens
from woodshed.encoders.speech.encoder import Target, named
from woodshed.errors import ItemError
from woodshed.store.describe import ROW
from woodshed.store.entries import Entry, FileEntry, RecordEntry, SourceFacts, entry_of
from woodshed.store.indextts import array_folder
from woodshed.store.log import CommitLog
from woodshed.store.npy import npy_bytes
from woodshed.store.revision import Revision

TEXT_KINDS = frozenset({"no_tokens", "text_too_long", "bad_text"})
"""What a row fails of because of its text."""
_TOLD_EVERY_ROWS = 256
_NO_DIGESTS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Retokenizer:
    """How the texts of a folder become text ids.

    Args:
        rules: by release, in the order of the folder's targets.
        language: the run's, for rows that do not name theirs, as `rules` take it.
        arrays: names of all arrays of the folder.
    """

    rules: Mapping[Target, Rules]
    limits: ClipLimits
    language: str | None
    arrays: Sequence[str]

    @property
    def names(self) -> dict[Target, str]:
        """The arrays that are made anew, by release."""
        return {target: named("text_ids", target) for target in self.rules}

    def remake(self, record: RecordEntry) -> Remade:
        """The text ids of a row, and its facts with them.

        Raises:
            ItemError: kinds `TEXT_KINDS`.
        """
        row = dict(record.facts[ROW])
        meta = {"language": row["language"], "hint": self.language}
        contents, lengths = {}, dict(record.facts["lengths"])
        told: dict[str, Json] = {}
        for number, (target, rules) in enumerate(self.rules.items()):
            text = rules.clean(row["text"])
            ids = text_ids(record.id, text, spoken_language(meta, rules), rules, self.limits)
            name = self.names[target]
            contents[name], lengths[name] = npy_bytes(ids.ids), len(ids.ids)
            told |= unknown_tokens(ids, suffix="" if number == 0 else named("", target))
            if number == 0:
                told["text"] = text
        return Remade(facts={**record.facts, ROW: row | told, "lengths": lengths}, contents=contents)

    def file_name(self, array: str, record: RecordEntry) -> str:
        """Where an array of this record lies."""
        return f"{array_folder(array, self.arrays)}/{record.files[0].path.rpartition('/')[2]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remade:
    """What becomes of a row."""

    facts: Mapping[str, Json]
    contents: Mapping[str, bytes]
    """By array, the content of its file."""


@dataclass(slots=True)
class Tally:
    """What came of all rows."""

    num_rows: int = 0
    """Rows with features, those that were put away included."""
    num_changed: int = 0
    """Rows that were done and get other ids, or none."""
    num_back: int = 0
    """Rows that had failed of their text and are done again."""
    num_done: int = 0
    """Rows that are done in the end."""
    num_words: int = 0
    """Rows of which the log says something new."""
    before: TokenCount = field(default_factory=lambda: TokenCount())
    after: TokenCount = field(default_factory=lambda: TokenCount())
    failures: list[Failure] = field(default_factory=list)
    back: set[str] = field(default_factory=set)
    """Ids of the rows that are done again."""


@dataclass(slots=True)
class TokenCount:
    """Text ids of all rows that are done, of all releases, and how many of them are unknown to their tokenizer."""

    num_tokens: int = 0
    num_unknown: int = 0

    @property
    def unknown_rate(self) -> float:
        return self.num_unknown / max(1, self.num_tokens)

    def add(self, facts: Mapping[str, Json], arrays: Iterable[str]) -> None:
        self.num_tokens += sum(facts["lengths"][name] for name in arrays)
        self.num_unknown += sum(
            count for key, count in facts[ROW].items() if key in ("unknown", f"unknown{named('', '2.5')}")
        )


def retokenize(
    log: CommitLog,
    how: Retokenizer,
    revision: Revision | None,
    *,
    meta_digests: Mapping[str, str] = _NO_DIGESTS,
    tell: Callable[[Tally], None],
) -> Tally:
    """Make the text ids of every row anew, and say what has changed.

    Args:
        revision: takes the new files and words; without it nothing is written.
        meta_digests: by id, the digest under which a row will be known to a run with the new settings, where it
            differs from the old one.
        tell: called now and then.

    Raises:
        StoreError: the log cannot be read, or the disk refuses.
    """
    tally = Tally()
    for number, (entry, record) in enumerate(_rows_with_features(log), start=1):
        new_entry = replace(entry, meta_digest=meta_digests.get(entry.id, entry.meta_digest))
        _settle(entry, new_entry, record, _remade_or_failed(how, record), how, revision, tally)
        if number % _TOLD_EVERY_ROWS == 0:
            tell(tally)
    tell(tally)
    return tally


def _rows_with_features(log: CommitLog) -> Iterator[tuple[Entry, RecordEntry]]:
    """Rows that are done, and those that failed of their text after they had been done."""
    for item_id in log.in_order():
        entry = log.entry(item_id)
        assert entry is not None
        if entry.status == "done":
            records = log.records(item_id)
        else:
            records = log.kept(item_id) if entry.kind in TEXT_KINDS else ()
        yield from ((entry, record) for record in records)


def _remade_or_failed(how: Retokenizer, record: RecordEntry) -> Remade | ItemError:
    try:
        return how.remake(record)
    except ItemError as error:
        return error


def _settle(
    entry: Entry,
    new_entry: Entry,
    record: RecordEntry,
    remade: Remade | ItemError,
    how: Retokenizer,
    revision: Revision | None,
    tally: Tally,
) -> None:
    """Account for one row, and hand what is new of it to the revision."""
    tally.num_rows += 1
    was_done = entry.status == "done"
    if was_done:
        tally.before.add(record.facts, how.names.values())
    if isinstance(remade, ItemError):
        tally.failures.append(Failure(id=entry.id, kind=remade.kind, reason=str(remade)))
        tally.num_changed += was_done
        if (entry.kind, entry.reason, entry.meta_digest) != (remade.kind, str(remade), new_entry.meta_digest):
            tally.num_words += 1
            if revision is not None:
                _put_away(new_entry, record, remade, how, revision)
        return
    tally.num_done += 1
    tally.after.add(remade.facts, how.names.values())
    old_files = {file.path: file for file in record.files}
    changed = {
        name: content
        for name, content in remade.contents.items()
        if not _is_content(old_files.get(how.file_name(name, record)), content)
    }
    if was_done:
        tally.num_changed += bool(changed)
    else:
        tally.num_back += 1
        tally.back.add(entry.id)
    if not was_done or changed or remade.facts != record.facts or new_entry != entry:
        tally.num_words += 1
        if revision is not None:
            _write(new_entry, record, remade.facts, changed, how, revision)


def _is_content(file: FileEntry | None, content: bytes) -> bool:
    return file is not None and file.num_bytes == len(content) and file.xxh3_64 == xxhash.xxh3_64_hexdigest(content)


def _write(
    entry: Entry,
    record: RecordEntry,
    facts: Mapping[str, Json],
    changed: Mapping[str, bytes],
    how: Retokenizer,
    revision: Revision,
) -> None:
    fresh = [revision.file(how.file_name(name, record), content) for name, content in changed.items()]
    paths = {file.path for file in fresh}
    others = [file for file in record.files if file.path not in paths]
    if entry.status != "done":
        others = [revision.bring_back(file) for file in others]
    new = replace(record, facts=facts, files=(*fresh, *others))
    revision.say(entry_of(_source(entry), "done", [new], audio_s=entry.audio_s), [new])


def _put_away(entry: Entry, record: RecordEntry, error: ItemError, how: Retokenizer, revision: Revision) -> None:
    kept = record
    if entry.status == "done":
        stale = {how.file_name(name, record) for name in how.names.values()}
        for path in stale:
            revision.remove(path)
        kept = replace(record, files=tuple(revision.put_away(file) for file in record.files if file.path not in stale))
    failed = entry_of(_source(entry), "failed", [], audio_s=entry.audio_s, kind=error.kind, reason=str(error))
    revision.say(failed, [], kept=[kept])


def _source(entry: Entry) -> SourceFacts:
    return SourceFacts(**{name: getattr(entry, name) for name in SourceFacts.__dataclass_fields__})


COLUMNS: Mapping[str, tuple[str, ...]] = {
    "text": ("text_ids",),
    "models.w2v_bert": ("codes", "condition", "emo_vec"),
    "models.w2v_stats": ("codes", "condition", "emo_vec"),
    "models.layer": ("codes", "condition", "emo_vec"),
    "models.codec_50hz": ("codes",),
    "models.codec_25hz": ("codes",),
    "models.gpt_2.0": ("condition", "emo_vec"),
    "models.gpt_2.5": ("emo_vec",),
    "models.campplus": ("speaker_vec",),
    "preprocessing.reference_s": ("condition", "speaker_vec", "emo_vec"),
    "preprocessing.strict_trim": ("codes",),
    "preprocessing.condition_dtype": ("condition",),
    "preprocessing": ("codes", "condition", "speaker_vec", "emo_vec"),
    "models": ("codes", "condition", "speaker_vec", "emo_vec"),
}
"""By the beginning of a fingerprint's field, the features that it changes; the first one that fits counts."""


def columns_touched(fields: Iterable[str], arrays: Iterable[str]) -> tuple[str, ...] | None:
    """The features of a folder that a change of these fields of its fingerprint touches; None where it is another kind
    of folder altogether.

    >>> columns_touched(
    ...     ["fingerprint.models.codec_50hz", "fingerprint.text.2.0.tokenizer"], ["text_ids", "codes", "emo_vec"]
    ... )
    ('text_ids', 'codes')
    >>> columns_touched(["architecture"], ["text_ids", "codes"]) is None
    True
    """
    touched: set[str] = set()
    for field_name in fields:
        # Shapes follow from the models, which are named beside them.
        if field_name.startswith("spec."):
            continue
        path = field_name.removeprefix("fingerprint.")
        fitting = (columns for start, columns in COLUMNS.items() if path == start or path.startswith(f"{start}."))
        columns = next(fitting, None)
        if columns is None:
            return None
        touched.update(columns)
    found = {name: name.removesuffix(named("", "2.5")) for name in arrays}
    return tuple(name for name, kind in found.items() if kind in touched) or None
