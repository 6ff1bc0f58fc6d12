"""What `woodshed inspect` tells of a folder of `woodshed speech`: enough to train from it, whoever made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from woodshed.contracts import Json
from woodshed.encoders.speech.published_values import RATE_HZ
from woodshed.errors import StoreError
from woodshed.jobs.folder import made_by, read_settings
from woodshed.jobs.report import ColumnFacts, ReleaseFacts, SpeechInspectReport, UtteranceFacts
from woodshed.jobs.speech_folder import (
    Rederived,
    manifests_of_folder,
    num_values,
    read_stats,
    release_root,
    source_account,
)
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.speech.manifests import TRAIN, VAL, Manifests, done_records
from woodshed.store.describe import ROW
from woodshed.store.entries import RecordEntry
from woodshed.store.indextts import OF_25, array_folder
from woodshed.store.reader import Reader

SHOWN_DIGITS = 12
_SEMANTIC = {
    "indextts": "w2v-bert and the semantic codec, as IndexTTS2 has them",
    "whisper": "Whisper tiny.en and a codebook of ours: these are not IndexTTS2's own codes",
}


def look(reader: Reader, limit: int) -> SpeechInspectReport:
    """All that the folder knows of itself.

    Args:
        limit: rows to list one by one.

    Raises:
        StoreError: the folder's settings are missing or damaged.
    """
    made = read_settings(reader.folder, SpeechSettings)
    manifests, account = manifests_of_folder(reader, made), source_account(reader)
    # From the log and not from the files: those may be older, and are for `woodshed verify` to judge.
    stats = manifests.write(
        Rederived(reader.log),
        account.failures,
        account.skipped,
        num_rows=account.num_rows,
        num_kept=account.num_kept,
    )
    main, rows = stats[manifests.releases[0]], _Rows.of(reader, manifests, limit)
    notes = []
    if _is_behind(reader, manifests, stats):
        notes.append("the manifests are not those of the log: run the command again, or `woodshed verify --repair`")
    if account.num_kept > 0:
        notes.append(
            f"{account.num_kept} rows of the manifests are of earlier runs: the source has them no longer, or they "
            "fail there now"
        )
    if sum(main["failed"].values()):
        notes.append("failures.jsonl names each failed row and why; --retry-failed tries them again")
    return SpeechInspectReport(
        folder=str(reader.folder),
        command=f"woodshed {made_by(reader)}",
        semantic=_SEMANTIC[reader.fingerprint["architecture"]],
        layout=reader.layout,
        releases=tuple(_release(reader, manifests, release, own) for release, own in stats.items()),
        num_rows=account.num_rows,
        num_train=main["train"],
        num_val=main["val"],
        num_adopted=main["adopted"],
        hours=main["hours"],
        size_bytes=reader.totals.num_bytes,
        split=main["split"],
        speakers=main["speakers"],
        languages=main["languages"],
        unknown_tokens=main["unknown_tokens"],
        failed=main["failed"],
        skipped=main["skipped"],
        columns=tuple(
            _column(reader, manifests, name, rows)
            for release in manifests.releases
            for name in manifests.arrays_of(release)
            if name in manifests.arrays
        ),
        absent=tuple(manifests.absent),
        models={role: _short(digest) for role, digest in reader.fingerprint["models"].items()},
        records=tuple(rows.first),
        notes=tuple(notes),
    )


@dataclass(slots=True)
class _Rows:
    """What one look at every row tells."""

    lengths: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Shortest and longest first axis, by array."""
    example: RecordEntry | None = None
    first: list[UtteranceFacts] = field(default_factory=list)

    @classmethod
    def of(cls, reader: Reader, manifests: Manifests, limit: int) -> _Rows:
        rows = cls()
        for record in done_records(reader.log):
            rows.example = rows.example or record
            for name, length in record.facts["lengths"].items():
                low, high = rows.lengths.get(name, (length, length))
                rows.lengths[name] = (min(low, length), max(high, length))
            if len(rows.first) < limit:
                rows.first.append(_utterance(record, manifests))
        return rows


def _utterance(record: RecordEntry, manifests: Manifests) -> UtteranceFacts:
    known = record.facts[ROW]
    row = manifests.row(record, manifests.releases[0])
    is_val = manifests.splitter.is_validation({**known, "id": record.id})
    return UtteranceFacts(
        id=record.id,
        side="val" if is_val else "train",
        speaker=known["speaker"],
        language=known["language"],
        duration_s=record.facts["num_samples"] / RATE_HZ,
        text_len=row["text_len"],
        code_len=row["code_len"],
        text=known["text"],
    )


def _release(reader: Reader, manifests: Manifests, release: str, stats: Mapping[str, Json]) -> ReleaseFacts:
    suffix = OF_25 if release == "2.5" else ""
    return ReleaseFacts(
        release=release,
        manifests=", ".join(f"{release_root(reader, release)}{name}" for name in (TRAIN, VAL)),
        tokenizer=manifests.provenance[release].tokenizer,
        vocab_size=num_values(f"text_ids{suffix}", reader),
        gpt_checkpoint=manifests.provenance[release].gpt_checkpoint,
        codes_per_second=stats["codes_per_second"],
        num_codes=num_values(f"codes{suffix}", reader),
        lengths=stats["lengths"],
    )


def _column(reader: Reader, manifests: Manifests, name: str, rows: _Rows) -> ColumnFacts:
    is_packed = reader.layout != "indextts"
    return ColumnFacts(
        name=name if is_packed else f"{array_folder(name, reader.spec['arrays'])}/<id>.npy",
        dtype=reader.spec["arrays"][name]["dtype"],
        shapes=_shapes(reader, name, rows),
        meaning=_meaning(reader, manifests, name),
    )


def _meaning(reader: Reader, manifests: Manifests, name: str) -> str:
    kind, release = name.removesuffix(OF_25), "2.5" if name.endswith(OF_25) else "2.0"
    heard = "the whole clip"
    preprocessing = reader.fingerprint["preprocessing"]
    if "reference_s" in preprocessing and not preprocessing["compat"]:
        heard = f"the first {preprocessing['reference_s']:g} s"
    if kind == "text_ids":
        return f"{release}: token ids of the text, 0..{num_values(name, reader) - 1}"
    if kind == "codes":
        is_half = release == "2.5" and len(manifests.releases) > 1
        per_second = manifests.rate_hz / (2 if is_half else 1)
        return f"{release}: semantic codes, {per_second:g} per second, 0..{num_values(name, reader) - 1}"
    what = {
        "condition": "conditioning latents (who speaks)",
        "speaker_vec": "speaker embedding (CAMPPlus)",
        "emo_vec": "emotion vector",
    }
    return f"{release}: {what[kind]} of {heard}"


def _shapes(reader: Reader, name: str, rows: _Rows) -> str:
    """Range of the first axis, and the others of one row."""
    if rows.example is None or name not in rows.lengths:
        return "none"
    low, high = rows.lengths[name]
    first = f"{low}" if low == high else f"{low}..{high}"
    if len(reader.spec["arrays"][name]["axes"]) == 1:
        return first
    try:
        others = reader.arrays(rows.example)[name].shape[1:]
    except (StoreError, KeyError):
        return f"{first} x ?"
    return " x ".join([first, *map(str, others)])


def _is_behind(reader: Reader, manifests: Manifests, stats: Mapping[str, Json]) -> bool:
    """Whether what the folder's own `stats.json` counts is not what the log holds."""
    for release in manifests.releases:
        written = read_stats(reader, release)
        if written is None or any(written.get(key) != stats[release][key] for key in ("train", "val", "failed")):
            return True
    return False


def _short(digest: Json) -> str:
    """The beginning of a digest; anything else as it is.

    >>> _short("xxh3_128:7a988f7b4a511aa263cab30330ec5ac0"), _short(17)
    ('7a988f7b4a51', '17')
    """
    text = str(digest)
    return text.rpartition(":")[2][:SHOWN_DIGITS] if ":" in text else text
