"""`woodshed verify`: does a folder hold what it says, and does it account for every second of its source?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from woodshed.audio.probe import probe
from woodshed.audio.resample import resampled_length
from woodshed.contracts import Arrays, BadRow, Encoder, Item, Json, Observer, Record
from woodshed.errors import ItemError, UsageError
from woodshed.jobs import repair, speech_verify
from woodshed.jobs.encode import compute_threads
from woodshed.jobs.findings import Findings, check_files, check_records, chosen_again, scaled_difference
from woodshed.jobs.folder import DETAILS, DETAILS_DIGEST, made_by, own_folders, read_settings
from woodshed.jobs.model import load_encoder
from woodshed.jobs.report import VerifyReport
from woodshed.jobs.settings import EncodeSettings, VerifySettings
from woodshed.jobs.songs import song_source
from woodshed.jobs.songs_model import load_song_model
from woodshed.jobs.songs_settings import SongsSettings
from woodshed.run.single import encode_item
from woodshed.sources.open import open_source
from woodshed.store.reader import Reader, open_reader

TOLERANCE = 1e-4
"""Of the stored values' standard deviation: what another batching or machine may change."""
HALF_TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2}
"""The same where values are rounded to half precision when they are stored: a few steps of it."""


def run(settings: VerifySettings, *, observer: Observer) -> VerifyReport:
    """Check checksums, shapes, values and manifests of all that is stored, and the account of the source's rows.

    Under `repair`, what is damaged is taken back (`woodshed.jobs.repair`).

    Raises:
        StoreError: the folder is not one of ours, its log is damaged, or a run is writing to it that is to be repaired.
    """
    findings = Findings()
    reader = open_reader(Path(settings.folder))
    if not settings.repair:
        report = _look(reader, settings, findings, observer)
        todo = [repair.advice(reader)] if findings.num_mendable else repair.waiting_notes(reader, reader.totals)
        return replace(report, notes=(*report.notes, *todo))
    with repair.open_store(reader) as store:
        # Again, now that nobody else writes and what a crash left is put right.
        reader = open_reader(reader.folder)
        report = _look(reader, settings, findings, observer)
        return repair.mend(store, reader, findings, report, observer)


def _look(reader: Reader, settings: VerifySettings, findings: Findings, observer: Observer) -> VerifyReport:
    if made_by(reader) == "speech":
        return speech_verify.look(reader, settings, findings, observer)
    return _look_at_encoded(reader, settings, findings, observer)


@dataclass(frozen=True)
class _Maker:
    """How what a folder holds was made, and can be made again."""

    rows: Callable[[], Iterator[Item | BadRow]]
    """The rows of its source. Raises `UsageError` where that is out of reach."""
    encoder: Callable[[], Encoder]
    stored_of: Callable[[int], int | None]
    """How many samples, at the model's rate, are stored of a source of so many; None where that is not fixed."""


def _encode_maker(reader: Reader, settings: VerifySettings) -> _Maker:
    made = read_settings(reader.folder, EncodeSettings)
    if settings.source is not None:
        made = made.model_copy(update={"input": settings.source, "dataset_config_path": None})
    # As the run did it, which the folder remembers: the data set's config may be out of reach.
    crops = reader.fingerprint.get("preprocessing", {}).get("random_crop", True)
    on_device = made.model_copy(update={"device": settings.device})

    def rows() -> Iterator[Item | BadRow]:
        return open_source(
            None if made.input is None else str(made.input),
            None if made.dataset_config_path is None else str(made.dataset_config_path),
            captions=made.captions,
            trust_remote_code=made.trust_remote_code,
            exclude=own_folders(reader.folder, made),
        ).rows()

    return _Maker(
        rows=rows,
        encoder=lambda: load_encoder(on_device, crop_at_random=crops).encoder,
        stored_of=lambda length: None if made.window == "first" or made.drop_silence else length,
    )


def _song_maker(reader: Reader, settings: VerifySettings) -> _Maker:
    made = read_settings(reader.folder, SongsSettings).model_copy(update={"output": reader.folder})
    if settings.source is not None:
        is_folder = settings.source.is_dir()
        moved = {
            "audio_dir": settings.source if is_folder else None,
            "dataset_json": None if is_folder else settings.source,
        }
        made = made.model_copy(update=moved)
    on_device = made.model_copy(update={"device": settings.device})
    longest = round(made.max_duration * reader.spec["rate_hz"]) or None
    return _Maker(
        rows=lambda: song_source(made, []).rows(),
        encoder=lambda: load_song_model(on_device).encoder,
        stored_of=lambda length: length if longest is None else min(length, longest),
    )


def _look_at_encoded(reader: Reader, settings: VerifySettings, findings: Findings, observer: Observer) -> VerifyReport:
    folder = reader.folder
    maker = _song_maker(reader, settings) if made_by(reader) == "songs" else _encode_maker(reader, settings)
    notes: list[str] = []
    observer.message("comparing checksums")
    num_files = check_files(reader, findings)
    _check_details(folder, findings)
    observer.message("looking at every array")
    num_records = check_records(reader, findings, array_problems)
    items: dict[str, Item] = {}
    source_s = covered_s = 0.0
    try:
        rows = maker.rows()
        observer.message("probing the sources again")
        source_s, covered_s, items = _check_coverage(reader, maker, rows, findings)
    except UsageError as error:
        notes.append(f"the source was not compared: {error.message}; name where it is now by --source")
    worst = None
    if settings.reencode:
        worst, num_reencoded = _check_again(reader, maker, items, settings, findings, observer)
    else:
        num_reencoded = 0
    return VerifyReport(
        folder=str(folder),
        num_records=num_records,
        num_files=num_files,
        source_s=source_s,
        covered_s=covered_s,
        num_reencoded=num_reencoded,
        max_difference=worst,
        num_problems=findings.count,
        problems=tuple(findings.first),
        notes=tuple(notes),
    )


def _check_details(folder: Path, findings: Findings) -> None:
    noted = folder / ".woodshed" / DETAILS_DIGEST
    if not noted.exists():
        return
    try:
        found = xxhash.xxh3_64_hexdigest((folder / DETAILS).read_bytes())
    except OSError as error:
        findings.add(DETAILS, "missing", f"{DETAILS}: {error.strerror}; any further run of encode writes it again")
        return
    if found != noted.read_text():
        findings.add(DETAILS, "checksum", f"{DETAILS} was changed; delete it, and any further run writes it again")


def array_problems(arrays: Arrays, reader: Reader, facts: Mapping[str, Json]) -> Iterator[str]:
    """What is wrong with one record's arrays: names, axes, types, lengths, values."""
    spec = reader.spec
    for name, own in spec["arrays"].items():
        if name not in arrays:
            yield f"array {name} is missing"
            continue
        array, axes = arrays[name], own["axes"]
        if array.ndim != len(axes) or str(array.dtype) != own["dtype"]:
            yield f"{name} is {array.dtype} {array.shape}, expected {own['dtype']} with axes {' '.join(axes)}"
            continue
        if "frame" in axes and "num_frames" in facts and array.shape[axes.index("frame")] != facts["num_frames"]:
            yield f"{name} has shape {array.shape}, expected {facts['num_frames']} frames"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"{name} holds NaN or infinity"
    books = spec["codebook_sizes"]
    if spec["kind"] == "tokens" and spec["main"] in arrays and books:
        tokens = arrays[spec["main"]]
        if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) >= max(books)):
            yield f"tokens reach from {tokens.min()} to {tokens.max()}, the codebooks have {max(books)} entries"


def _check_coverage(
    reader: Reader, maker: _Maker, rows: Iterator[Item | BadRow], findings: Findings
) -> tuple[float, float, dict[str, Item]]:
    """Compare every row of the source with what is stored of it."""
    rate_hz = reader.spec["rate_hz"]
    source_s = covered_s = 0.0
    items: dict[str, Item] = {}
    for row in rows:
        entry = reader.entry(row.id)
        if entry is None:
            findings.add(row.id, "missing", "this row of the source is neither done, failed nor skipped")
            continue
        if isinstance(row, BadRow) or entry.status != "done":
            continue
        try:
            info = probe(row.path)
        except ItemError as error:
            findings.add(row.id, "source", f"was encoded, but cannot be read now: {error.message}")
            continue
        items[row.id] = replace(row, audio=info)
        length = resampled_length(info.num_samples, info.rate_hz, rate_hz)
        source_s += length / rate_hz
        covered_s += entry.num_samples / rate_hz
        if maker.stored_of(length) not in (None, entry.num_samples):
            findings.add(row.id, "coverage", f"{entry.num_samples} samples are stored of {length} in the source")
    return source_s, covered_s, items


def _check_again(
    reader: Reader,
    maker: _Maker,
    items: dict[str, Item],
    settings: VerifySettings,
    findings: Findings,
    observer: Observer,
) -> tuple[float | None, int]:
    """Encode some items anew, each alone, and compare. Gives the largest difference in standard deviations."""
    import torch

    torch.set_num_threads(compute_threads(reader.folder))
    encoder = maker.encoder()
    worst: float | None = None
    chosen = chosen_again(reader, items, findings, settings)
    for number, item in enumerate(chosen):
        observer.message(f"encoding again {number + 1} of {len(chosen)}: {item.id}")
        difference = _difference(reader, encoder, item, findings)
        worst = difference if worst is None else max(worst, difference)
    return worst, len(chosen)


def _difference(reader: Reader, encoder: Encoder, item: Item, findings: Findings) -> float:
    entry = reader.entry(item.id)
    assert entry is not None
    try:
        fresh: dict[int, Record] = {record.meta["index"]: record for record in encode_item(encoder, item)}
    except ItemError as error:
        findings.add(item.id, "reencode", error.message)
        return float("inf")
    worst, tolerance = 0.0, HALF_TOLERANCES.get(reader.fingerprint.get("stored", ""), TOLERANCE)
    for record in entry.records:
        stored = reader.arrays(record)
        made = fresh[record.index].arrays if record.index in fresh else {}
        for name, array in stored.items():
            if name not in made or made[name].shape != array.shape:
                findings.add(item.id, "reencode", f"record {record.index} has another shape when encoded again")
                return float("inf")
            worst = max(worst, scaled_difference(array, made[name]))
    if worst > tolerance:
        findings.add(item.id, "reencode", f"differs by {worst:.2g} standard deviations when encoded again")
    return worst
