"""What `woodshed verify` looks at in a folder of `woodshed speech`, beside what holds for every folder.

Arrays are opened one by one: names, types, lengths, ranges, finiteness, and what the log says of them. The manifests,
`stats.json` and the other derived files are derived once more from the log and compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xxhash

from woodshed.audio.probe import probe
from woodshed.audio.resample import resampled_length
from woodshed.contracts import Arrays, AudioInfo, BadRow, Encoder, Item, Json, Observer
from woodshed.encoders.speech.encoder import SpeechEncoder
from woodshed.encoders.speech.published_values import ORIGINAL_FIRST_RATE_HZ, RATE_HZ
from woodshed.errors import ItemError, ModelError, UsageError
from woodshed.jobs.encode import compute_threads
from woodshed.jobs.findings import Findings, check_files, check_records, chosen_again, scaled_difference
from woodshed.jobs.folder import read_settings
from woodshed.jobs.report import VerifyReport
from woodshed.jobs.settings import VerifySettings
from woodshed.jobs.speech_folder import (
    Rederived,
    manifests_of_folder,
    num_values,
    release_root,
    source_account,
    source_rows,
)
from woodshed.jobs.speech_model import as_original, make_encoder
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.run.single import encode_item
from woodshed.speech.adopt_rows import ADOPTED
from woodshed.speech.manifests import FAILURES, PROGRESS, STATS, TRAIN, VAL, Manifests, done_records
from woodshed.store.describe import ROW
from woodshed.store.folder import differing
from woodshed.store.reader import Reader
from woodshed.store.store import Store

TOLERANCE = 1e-4
"""Of the stored values' standard deviation: what another batching or machine may change."""
CODES_TOLERANCE = 0.01
"""Share of a row's codes. On the machine of the run none differs; another may round a near tie to the other side."""
_BLOCK_BYTES = 1 << 20


def look(reader: Reader, settings: VerifySettings, findings: Findings, observer: Observer) -> VerifyReport:
    """Look at everything, and change nothing.

    Raises:
        StoreError: the folder's settings are missing or damaged.
    """
    made = read_settings(reader.folder, SpeechSettings)
    notes: list[str] = []
    observer.message("comparing checksums")
    num_files = check_files(reader, findings)
    observer.message("looking at every array")
    num_records = check_records(reader, findings, array_problems)
    observer.message("deriving the manifests again")
    check_derived(reader, made, findings)
    if settings.source is not None:
        made = made.model_copy(update={"manifest": settings.source})
    items: dict[str, Item] = {}
    source_s = covered_s = 0.0
    observer.message("looking at the source again")
    try:
        source_s, covered_s, items = _check_coverage(reader, made, findings)
    except UsageError as error:
        notes.append(f"the source was not compared: {error.message}; name the manifest's place by --source")
    worst, num_again = None, 0
    if settings.reencode:
        worst, num_again = _check_again(reader, made, items, settings, findings, observer, notes)
    return VerifyReport(
        folder=str(reader.folder),
        num_records=num_records,
        num_files=num_files,
        source_s=source_s,
        covered_s=covered_s,
        num_reencoded=num_again,
        max_difference=worst,
        num_problems=findings.count,
        problems=tuple(findings.first),
        notes=tuple(notes),
    )


def derive(store: Store, reader: Reader) -> None:
    """Write the manifests and all else that is derived, from the log as it is now.

    Args:
        reader: as the folder was when `store` was opened.

    Raises:
        StoreError: the disk refuses.
    """
    now = Reader(
        reader.folder, {"layout": reader.layout, "fingerprint": reader.fingerprint, "spec": reader.spec}, store.log
    )
    account = source_account(now)
    manifests = manifests_of_folder(now, read_settings(reader.folder, SpeechSettings))
    manifests.write(store, account.failures, account.skipped, num_rows=account.num_rows, num_kept=account.num_kept)


def array_problems(arrays: Arrays, reader: Reader, facts: Mapping[str, Json]) -> Iterator[str]:
    """What is wrong with one row's arrays."""
    for name, own in reader.spec["arrays"].items():
        if name not in arrays:
            yield f"array {name} is missing"
            continue
        array, axes = arrays[name], own["axes"]
        if array.ndim != len(axes) or str(array.dtype) != own["dtype"]:
            yield f"{name} is {array.dtype} {array.shape}, expected {own['dtype']} with axes {' '.join(axes)}"
            continue
        length = facts["lengths"].get(name)
        if array.shape[0] != length:
            yield f"{name} has shape {array.shape}, but the log knows of {length}"
        if array.size == 0:
            yield f"{name} is empty"
        elif array.dtype.kind == "f":
            if not np.isfinite(array).all():
                yield f"{name} holds NaN or infinity"
            if array.nbytes != own["bytes_per_record"]:
                yield f"{name} has shape {array.shape}, which is {array.nbytes} bytes, not {own['bytes_per_record']}"
        elif int(array.min()) < 0 or int(array.max()) >= num_values(name, reader):
            size = num_values(name, reader)
            yield f"{name} reach from {array.min()} to {array.max()}, but there are {size} of them"
    yield from (f"array {name} is none of this folder" for name in arrays if name not in reader.spec["arrays"])


# ---- what is derived from the log


def check_derived(reader: Reader, made: SpeechSettings, findings: Findings) -> None:
    """Derive the folder's manifests and accounts again and compare."""
    manifests, account = manifests_of_folder(reader, made), source_account(reader)
    fresh = Rederived(reader.log)
    manifests.write(fresh, account.failures, account.skipped, num_rows=account.num_rows, num_kept=account.num_kept)
    for path, digest in fresh.digests.items():
        if _digest(reader.folder / path) == digest:
            continue
        if path == PROGRESS:
            findings.add_derived(path, "manifest", f"{path} does not list the rows that are done")
    for release in manifests.releases:
        root = release_root(reader, release)
        names = (f"{root}{TRAIN}", f"{root}{VAL}")
        if any(_digest(reader.folder / name) != fresh.digests[name] for name in names):
            for path, reason in _wrong_rows(reader, manifests, release):
                findings.add_derived(path, "manifest", reason)
        found = _stats(reader.folder / root / STATS)
        for line in differing(found, json.loads(fresh.contents[f"{root}{STATS}"])) if found is not None else ():
            findings.add_derived(f"{root}{STATS}", "manifest", f"{root}{STATS} differs from what the log says: {line}")
        if found is None:
            findings.add_derived(f"{root}{STATS}", "manifest", f"{root}{STATS} is missing or is not JSON")
    if sorted(_lines(reader.folder / FAILURES)) != sorted(fresh.contents[FAILURES].splitlines()):
        findings.add_derived(FAILURES, "manifest", f"{FAILURES} does not list the rows that gave nothing")


def _wrong_rows(reader: Reader, manifests: Manifests, release: str) -> Iterator[tuple[str, str]]:
    """Path and reason of every row that is not as the log has it; one pair at least."""
    root = release_root(reader, release)
    sides = {is_val: f"{root}{VAL if is_val else TRAIN}" for is_val in (False, True)}
    rows: dict[str, tuple[bool, dict[str, Json]]] = {}
    count = 0
    for is_val, path in sides.items():
        for number, line in enumerate(_lines(reader.folder / path), start=1):
            row = _row(line)
            if row is None or row["id"] in rows:
                count += 1
                reason = "is not a row" if row is None else f"has the id {row['id']!r} again"
                yield path, f"line {number} of {path} {reason}"
            else:
                rows[row["id"]] = (is_val, row)
    for record in done_records(reader.log):
        belongs = manifests.splitter.is_validation({**record.facts[ROW], "id": record.id})
        is_val, row = rows.pop(record.id, (belongs, {}))
        reasons = list(differing(row, json.loads(json.dumps(manifests.row(record, release))))) if row else []
        if not row:
            reasons = ["is done, but stands in no manifest"]
        elif is_val != belongs:
            reasons = [f"belongs in {sides[belongs]}"]
        elif reasons:
            reasons = [f"has other values than the log: {reasons[0]}"]
        for reason in reasons:
            count += 1
            yield sides[is_val], f"row {record.id!r} {reason}"
    for row_id, (is_val, _) in rows.items():
        count += 1
        yield sides[is_val], f"row {row_id!r} stands in {sides[is_val]}, but is not done"
    if not count:
        yield sides[False], "the rows are those of the log, but in another order or spelling"


def _row(line: bytes) -> dict[str, Json] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("id"), str) else None


def _stats(path: Path) -> Json:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _lines(path: Path) -> Iterator[bytes]:
    """Lines without their ends; none of a file that cannot be read."""
    try:
        with path.open("rb") as file:
            for line in file:
                yield line.rstrip(b"\n")
    except OSError:
        return


def _digest(path: Path) -> str | None:
    digest = xxhash.xxh3_64()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


# ---- the source


def _check_coverage(reader: Reader, made: SpeechSettings, findings: Findings) -> tuple[float, float, dict[str, Item]]:
    """Compare every row of the manifest with what is stored of it: seconds there, seconds here, rows with a sound."""
    source_s = covered_s = 0.0
    items: dict[str, Item] = {}
    for row in source_rows(made):
        entry = reader.log.entry(row.id)
        if entry is None:
            findings.add(row.id, "missing", "this row of the manifest is neither done, failed nor skipped")
            continue
        if isinstance(row, BadRow) or entry.status != "done":
            continue
        try:
            info = probe(row.path)
        except ItemError as error:
            findings.add(row.id, "source", f"is done, but its sound cannot be read now: {error.message}")
            continue
        items[row.id] = replace(row, audio=info)
        # What the original had made was heard by way of its own rate, whatever the settings of the run that adopted it.
        length, detour = (
            _heard_samples(info, rate_hz) for rate_hz in (made.audio_sr or RATE_HZ, ORIGINAL_FIRST_RATE_HZ)
        )
        source_s += length / RATE_HZ
        covered_s += entry.num_samples / RATE_HZ
        if entry.num_samples not in (length, detour):
            findings.add(row.id, "coverage", f"{entry.num_samples} samples were heard of {length} in the source")
    return source_s, covered_s, items


def _heard_samples(info: AudioInfo, first_rate_hz: int) -> int:
    """Samples of a sound once it is at the rate that the networks hear, by way of another."""
    return resampled_length(resampled_length(info.num_samples, info.rate_hz, first_rate_hz), first_rate_hz, RATE_HZ)


def _check_again(
    reader: Reader,
    made: SpeechSettings,
    items: Mapping[str, Item],
    settings: VerifySettings,
    findings: Findings,
    observer: Observer,
    notes: list[str],
) -> tuple[float | None, int]:
    """Make some rows anew, each alone, and compare. Gives the largest difference of a float, in standard deviations."""
    torch.set_num_threads(compute_threads(reader.folder))
    try:
        encoder = make_encoder(made.model_copy(update={"device": settings.device}), 0)
    except (ModelError, UsageError) as error:
        notes.append(f"nothing was made again: {error.message}")
        return None, 0
    others = list(differing(reader.fingerprint, json.loads(json.dumps(encoder.fingerprint))))
    if others:
        notes.append(f"nothing was made again, as the models here are not those of the folder: {others[0]}")
        return None, 0
    chosen = chosen_again(reader, items, findings, settings)
    worst: dict[str, float] = {"f": 0.0, "i": 0.0}
    for number, item in enumerate(chosen):
        observer.message(f"making again {number + 1} of {len(chosen)}: {item.id}")
        for kind, difference in _differences(reader, encoder, item, findings).items():
            worst[kind] = max(worst[kind], difference)
    if chosen:
        notes.append(f"of a row made again, at most {worst['i']:.2%} of the text ids or codes differ")
    return (worst["f"] if chosen else None), len(chosen)


def _differences(reader: Reader, encoder: Encoder, item: Item, findings: Findings) -> dict[str, float]:
    """By kind of number, `f` and `i`: the largest difference of an array's."""
    (record,) = reader.log.records(item.id)
    if record.facts[ROW].get(ADOPTED) and isinstance(encoder, SpeechEncoder):
        encoder = as_original(encoder)
    try:
        (fresh,) = encode_item(encoder, item)
    except ItemError as error:
        findings.add(item.id, "reencode", f"fails when made again: {error.message}")
        return {}
    worst: dict[str, float] = {}
    for name, stored in reader.arrays(record).items():
        again = fresh.arrays[name]
        if again.shape != stored.shape:
            findings.add(item.id, "reencode", f"{name} has shape {stored.shape}, made again {again.shape}")
            continue
        difference = scaled_difference(stored, again)
        worst[stored.dtype.kind] = max(worst.get(stored.dtype.kind, 0.0), difference)
        if stored.dtype.kind == "f" and difference > TOLERANCE:
            findings.add(item.id, "reencode", f"{name} differs by {difference:.2g} standard deviations when made again")
        elif stored.dtype.kind == "i" and difference > (0.0 if name.startswith("text_ids") else CODES_TOLERANCE):
            findings.add(item.id, "reencode", f"{difference:.1%} of {name} differ when made again")
    return worst
