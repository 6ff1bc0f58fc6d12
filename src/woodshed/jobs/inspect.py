"""`woodshed inspect`: what is in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from woodshed.datasets.folder import open as open_dataset
from woodshed.datasets.side_step import is_side_step_folder
from woodshed.jobs import speech_inspect
from woodshed.jobs.folder import made_by
from woodshed.jobs.report import ArrayFacts, InspectReport, RecordFacts, SpeechInspectReport
from woodshed.jobs.settings import InspectSettings
from woodshed.jobs.songs_inspect import song_notes
from woodshed.store.reader import Reader, open_reader


def run(settings: InspectSettings) -> InspectReport | SpeechInspectReport:
    """Look at a folder of ours, or at one of stable-audio-tools, stable-audio-3 or Side-Step.

    Raises:
        StoreError: there is nothing that can be read.
    """
    folder = Path(settings.folder)
    if (folder / ".woodshed" / "run.json").exists():
        reader = open_reader(folder)
        if made_by(reader) == "speech":
            return speech_inspect.look(reader, settings.limit)
        return _inspect_own(reader, settings.limit)
    return _inspect_foreign(folder, settings.limit)


def _inspect_own(reader: Reader, limit: int) -> InspectReport:
    spec, totals = reader.spec, reader.totals
    command = made_by(reader)
    axis = spec["arrays"][spec["main"]]["axes"].index("frame")
    frames: list[int] = []
    tokens: dict[str, list[int]] = {}
    records: list[RecordFacts] = []
    notes: list[str] = []
    for entry in reader.entries():
        for record in entry.records if entry.status == "done" else ():
            frames.append(int(record.facts.get("num_frames", 0)))
            for name, length in record.facts.get("lengths", {}).items():
                tokens.setdefault(name, []).append(length)
            if len(records) < limit:
                meta = reader.meta(record)
                records.append(
                    RecordFacts(
                        id=entry.id,
                        source=str(meta.get("relpath", "")),
                        shape=tuple(reader.arrays(record)[spec["main"]].shape),
                        start_s=float(meta["start_time"]),
                        duration_s=float(meta["duration"]),
                        prompt=meta.get("prompt"),
                    )
                )
    if totals.num_failed:
        notes.append(f"`woodshed {command} --retry-failed` tries the failed items again")
    if command == "songs":
        notes += song_notes(reader.log)
    rows = records[0].shape[1 - axis] if records else 0
    return InspectReport(
        folder=str(reader.folder),
        layout=reader.layout,
        model="acestep" if command == "songs" else reader.fingerprint.get("model", {}).get("architecture", "unknown"),
        rate_hz=spec["rate_hz"],
        hop_samples=spec["hop_samples"],
        num_items=totals.num_done,
        num_records=totals.num_records,
        num_failed=totals.num_failed,
        num_silent=totals.num_silent,
        audio_s=totals.audio_s,
        size_bytes=totals.num_bytes,
        arrays=tuple(
            ArrayFacts(
                name=name,
                axes=tuple(own["axes"]),
                dtype=own["dtype"],
                shapes=_spread(tokens.get(name, ())) if own["axes"][0] == "token" else _shapes(rows, frames),
            )
            for name, own in spec["arrays"].items()
        ),
        records=tuple(records),
        failure_kinds=tuple(sorted(totals.failure_kinds.items())),
        notes=tuple(notes),
    )


def _inspect_foreign(folder: Path, limit: int) -> InspectReport:
    dataset = open_dataset(folder)
    clock = dataset.clock
    records: list[RecordFacts] = []
    frames: list[int] = []
    audio_s, silent, size = 0.0, 0, 0
    for index in range(len(dataset)):
        item = dataset[index]
        info, main = item["info"], item[dataset.kind]
        frames.append(main.shape[1])
        audio_s += float(info.get("duration_s") or 0.0)
        silent += bool(info.get("silent", False))
        size += main.numel() * main.element_size()
        if len(records) < limit:
            records.append(
                RecordFacts(
                    id=str(info.get("latent_filename", index)),
                    source=str(info.get("relpath", "")),
                    shape=tuple(main.shape),
                    start_s=float(info.get("start_s") or 0.0),
                    duration_s=float(info.get("duration_s") or 0.0),
                    prompt=info.get("prompt"),
                )
            )
    rows = records[0].shape[0] if records else 0
    array = ArrayFacts(name=dataset.kind, axes=("row", "frame"), dtype="as stored", shapes=_shapes(rows, frames))
    return InspectReport(
        folder=str(folder),
        layout="Side-Step's .pt files" if is_side_step_folder(folder) else "foreign .npy tree",
        model="unknown",
        rate_hz=clock.rate_hz or 0,
        hop_samples=clock.hop_samples or 0,
        num_items=len(dataset),
        num_records=len(dataset),
        num_failed=0,
        num_silent=silent,
        audio_s=audio_s,
        size_bytes=size,
        arrays=(array,),
        records=tuple(records),
        notes=("this folder has no log of ours: failures and provenance are unknown",),
    )


def _shapes(rows: int, frames: Sequence[int]) -> str:
    """Smallest to largest shape.

    >>> _shapes(64, [120, 645]), _shapes(64, [645, 645])
    ('64 x 120..645', '64 x 645')
    """
    return f"{rows} x {_spread(frames)}" if frames else "none"


def _spread(lengths: Sequence[int]) -> str:
    """Smallest to largest length.

    >>> _spread([120, 645]), _spread([7]), _spread([])
    ('120..645', '7', 'none')
    """
    if not lengths:
        return "none"
    low, high = min(lengths), max(lengths)
    return f"{low}" if low == high else f"{low}..{high}"
