"""`woodshed verify`: does a folder hold what it says, and does it account for every second of its source?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from woodshed.audio.probe import probe
from woodshed.audio.resample import resampled_length
from woodshed.chance import generator
from woodshed.contracts import BadRow, Encoder, Failure, Item, Observer, Record
from woodshed.errors import ItemError, StoreError, UsageError
from woodshed.jobs.encode import compute_threads
from woodshed.jobs.folder import DETAILS, DETAILS_DIGEST, own_folders, read_settings
from woodshed.jobs.model import load_encoder
from woodshed.jobs.report import VerifyReport
from woodshed.jobs.settings import EncodeSettings, VerifySettings
from woodshed.run.single import encode_item
from woodshed.sources.open import open_source
from woodshed.store.reader import FullEntry, Reader, open_reader
from woodshed.store.sealed import check_sealed
from woodshed.store.verify import verify_files

MAX_LISTED = 100
TOLERANCE = 1e-4
"""Of the stored values' standard deviation: what another batching or machine may change."""


class _Findings:
    """Problems as they are found: all are counted, the first hundred are kept."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[Failure] = []

    def add(self, name: str, kind: str, reason: str) -> None:
        self.count += 1
        if len(self.first) < MAX_LISTED:
            self.first.append(Failure(id=name, kind=kind, reason=reason))


def run(settings: VerifySettings, *, observer: Observer) -> VerifyReport:
    """Check checksums, shapes and finiteness of all that is stored, and the account of the source's rows and seconds.

    Raises:
        StoreError: the folder is not one of ours, or its log is damaged.
    """
    folder = Path(settings.folder)
    reader, made = open_reader(folder), read_settings(folder)
    findings, notes = _Findings(), []
    observer.message("comparing checksums")
    num_files = _check_files(reader, findings)
    observer.message("looking at every array")
    num_records = _check_arrays(reader, findings)
    if settings.source is not None:
        made = made.model_copy(update={"input": settings.source, "dataset_config_path": None})
    items: dict[str, Item] = {}
    source_s = covered_s = 0.0
    try:
        rows = open_source(
            None if made.input is None else str(made.input),
            None if made.dataset_config_path is None else str(made.dataset_config_path),
            captions=made.captions,
            trust_remote_code=made.trust_remote_code,
            exclude=own_folders(folder, made),
        ).rows()
        observer.message("probing the sources again")
        source_s, covered_s, items = _check_coverage(reader, made, rows, findings)
    except UsageError as error:
        notes.append(f"the source was not compared: {error.message}; name where it is now by --source")
    worst = None
    if settings.reencode:
        worst, num_reencoded = _check_again(reader, made, items, settings, findings, observer)
    else:
        num_reencoded = 0
    if findings.count:
        notes.append("damaged or missing records: restore them from a backup, or encode into a new folder")
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


def _check_files(reader: Reader, findings: _Findings) -> int:
    for problem in verify_files(reader):
        findings.add(problem.item_id or problem.path, problem.kind, f"{problem.path}: {problem.detail}")
    _check_details(reader.folder, findings)
    for plan in sorted((reader.folder / ".woodshed" / "plan").glob("*.jsonl")):
        try:
            check_sealed(plan)
        except StoreError as error:
            findings.add(plan.name, "checksum", error.message)
    own = {file.path for entry in reader.entries() for record in entry.records for file in record.files}
    own |= {file.path for shard in reader.log.shards.values() for file in shard.files}
    for path in _arrays_on_disk(reader.folder):
        if path not in own:
            findings.add(path, "foreign", f"{path} was not made by a committed run, but readers would find it")
    return len(own)


def _check_details(folder: Path, findings: _Findings) -> None:
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


def _arrays_on_disk(folder: Path) -> Iterator[str]:
    """Files below the folder that a reader would take for data."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] != ".woodshed" and path.suffix in (".npy", ".safetensors"):
            yield relative.as_posix()


def _check_arrays(reader: Reader, findings: _Findings) -> int:
    num_records = 0
    for entry in _done(reader):
        for record in entry.records:
            num_records += 1
            try:
                arrays = reader.arrays(record)
            except StoreError as error:
                findings.add(entry.id, "unreadable", error.message)
                continue
            for reason in array_problems(arrays, reader, dict(record.facts)):
                findings.add(entry.id, "array", f"record {record.index}: {reason}")
    return num_records


def array_problems(arrays: dict[str, np.ndarray], reader: Reader, facts: dict[str, int]) -> Iterator[str]:
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
    reader: Reader, made: EncodeSettings, rows: Iterator[Item | BadRow], findings: _Findings
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
        if made.window != "first" and not made.drop_silence and entry.num_samples != length:
            findings.add(row.id, "coverage", f"{entry.num_samples} samples are stored of {length} in the source")
    return source_s, covered_s, items


def _check_again(
    reader: Reader,
    made: EncodeSettings,
    items: dict[str, Item],
    settings: VerifySettings,
    findings: _Findings,
    observer: Observer,
) -> tuple[float | None, int]:
    """Encode some items anew, each alone, and compare. Gives the largest difference in standard deviations."""
    import torch

    torch.set_num_threads(compute_threads(reader.folder))
    # As the run did it, which the folder remembers: the data set's config may be out of reach.
    crops = reader.fingerprint.get("preprocessing", {}).get("random_crop", True)
    model = load_encoder(made.model_copy(update={"device": settings.device}), crop_at_random=crops)
    names = sorted(items)
    order = generator(settings.seed, "verify").permutation(len(names))[: settings.reencode]
    worst: float | None = None
    for number, index in enumerate(order):
        item = items[names[index]]
        observer.message(f"encoding again {number + 1} of {len(order)}: {item.id}")
        difference = _difference(reader, model.encoder, item, findings)
        worst = difference if worst is None else max(worst, difference)
    return worst, len(order)


def _difference(reader: Reader, encoder: Encoder, item: Item, findings: _Findings) -> float:
    entry = reader.entry(item.id)
    assert entry is not None
    try:
        fresh: dict[int, Record] = {record.meta["index"]: record for record in encode_item(encoder, item)}
    except ItemError as error:
        findings.add(item.id, "reencode", error.message)
        return float("inf")
    worst = 0.0
    for record in entry.records:
        stored = reader.arrays(record)
        made = fresh[record.index].arrays if record.index in fresh else {}
        for name, array in stored.items():
            if name not in made or made[name].shape != array.shape:
                findings.add(item.id, "reencode", f"record {record.index} has another shape when encoded again")
                return float("inf")
            worst = max(worst, scaled_difference(array, made[name]))
    if worst > TOLERANCE:
        findings.add(item.id, "reencode", f"differs by {worst:.2g} standard deviations when encoded again")
    return worst


def scaled_difference(stored: np.ndarray, fresh: np.ndarray) -> float:
    """Largest difference in standard deviations of `stored`; for tokens, the share that differs.

    >>> scaled_difference(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    0.25
    """
    if stored.size == 0:
        return 0.0
    if stored.dtype.kind in "iu":
        return float((stored != fresh).mean())
    scale = float(stored.std(dtype=np.float64)) or 1.0
    return float(np.abs(stored.astype(np.float64) - fresh.astype(np.float64)).max()) / scale


def _done(reader: Reader) -> Iterator[FullEntry]:
    return (entry for entry in reader.entries() if entry.status == "done")
