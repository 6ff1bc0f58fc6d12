"""`woodshed speech demo`: real speech and its text to a training set, with models that need no download."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from woodshed.contracts import Json, Observer, Summary
from woodshed.jobs import speech, verify
from woodshed.jobs.demo import demo_folder
from woodshed.jobs.report import VerifyReport, to_json
from woodshed.jobs.settings import VerifySettings
from woodshed.jobs.speech_demo_settings import SpeechDemoSettings
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.speech.demo_data import demo_manifest
from woodshed.store.describe import ROW
from woodshed.store.reader import open_reader

TOKENIZER = "speech-demo-bpe.model"
VAL_RATIO = 0.2
SHOWN_CODES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechDemoRow:
    """One utterance of the demo and what became of it."""

    id: str
    text: str
    duration_s: float
    num_text_ids: int
    num_codes: int
    first_codes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechDemoReport:
    """What the demo did."""

    manifest: str
    output: str
    made: Summary
    verified: VerifyReport
    rows: tuple[SpeechDemoRow, ...]
    elapsed_s: float

    @property
    def exit_code(self) -> int:
        """That of the first step which did not succeed, or 0."""
        return self.made.exit_code or self.verified.exit_code

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


def run(settings: SpeechDemoSettings, *, observer: Observer) -> SpeechDemoReport:
    """Write a manifest of the embedded speech, make features of it, verify them.

    Raises:
        UsageError: the output folder holds something else than an earlier demo.
        ModelError: the weights of Whisper tiny.en are not installed.
    """
    started = time.monotonic()
    output = demo_folder(Path(settings.output), keep=settings.keep)
    manifest, features = demo_manifest(output), output / "features"
    with as_file(files("woodshed.assets") / TOKENIZER) as tokenizer:
        report = speech.run(
            SpeechSettings(
                manifest=manifest,
                output_dir=features,
                tokenizer=(tokenizer,),
                semantic="whisper",
                val_ratio=VAL_RATIO,
                device="cpu",
                num_processes=1,
            ),
            observer=observer,
        )
    (made,) = report.results
    assert isinstance(made, Summary), "no dry run was asked for"
    observer.message("verifying")
    verified = verify.run(VerifySettings(folder=features), observer=observer)
    return SpeechDemoReport(
        manifest=str(manifest),
        output=str(features),
        made=made,
        verified=verified,
        rows=tuple(_rows(features)),
        elapsed_s=time.monotonic() - started,
    )


def _rows(folder: Path) -> list[SpeechDemoRow]:
    reader = open_reader(folder)
    rows = []
    for entry in reader.entries():
        for record in entry.records:
            arrays = reader.arrays(record)
            rows.append(
                SpeechDemoRow(
                    id=entry.id,
                    text=record.facts[ROW]["text"],
                    duration_s=entry.audio_s,
                    num_text_ids=len(arrays["text_ids"]),
                    num_codes=len(arrays["codes"]),
                    first_codes=tuple(map(int, arrays["codes"][:SHOWN_CODES])),
                )
            )
    return rows
