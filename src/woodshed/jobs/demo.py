"""`woodshed demo`: the embedded model on embedded speech and music, from sound to latents and back."""

from __future__ import annotations

import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from woodshed.audio.clip import read
from woodshed.audio.distance import log_mel_distance_db, si_sdr_db
from woodshed.audio.probe import probe
from woodshed.contracts import Observer, Summary
from woodshed.errors import UsageError
from woodshed.jobs import decode, encode, verify
from woodshed.jobs.report import DemoClip, DemoReport
from woodshed.jobs.settings import DecodeSettings, DemoSettings, EncodeSettings, VerifySettings

MARK = ".woodshed-demo"
"""Stands in every demo folder: only such a folder is ever emptied."""
RATE_HZ = 24_000


def run(settings: DemoSettings, *, observer: Observer) -> DemoReport:
    """Encode, verify, decode, and compare by ear and number.

    Raises:
        UsageError: the output folder holds something else than an earlier demo.
    """
    started = time.monotonic()
    output = demo_folder(Path(settings.output), keep=settings.keep)
    sounds, latents, decoded = output / "sounds", output / "latents", output / "decoded"
    with as_file(files("woodshed.assets") / "demo") as embedded:
        shutil.copytree(embedded, sounds, dirs_exist_ok=True)
    observer.message(f"1/3 encoding {sounds}")
    summary = encode.run(
        EncodeSettings(input=sounds, output_path=latents, window="whole", layout="shards"), observer=observer
    )
    assert isinstance(summary, Summary)
    observer.message("2/3 verifying")
    verified = verify.run(VerifySettings(folder=latents, reencode=2), observer=observer)
    observer.message(f"3/3 decoding into {decoded}")
    made = decode.run(DecodeSettings(folder=latents, output=decoded), observer=observer)
    clips = tuple(_compare(sounds, decoded, name) for name in sorted(made.files))
    return DemoReport(
        output=str(output), encoded=summary, verified=verified, clips=clips, elapsed_s=time.monotonic() - started
    )


def demo_folder(output: Path, *, keep: bool) -> Path:
    """A folder for a demo, emptied of an earlier one unless that is kept.

    Raises:
        UsageError: it holds something else.
    """
    if output.exists() and any(output.iterdir()):
        if not (output / MARK).exists():
            raise UsageError(
                f"{output} is not empty and not a folder of an earlier demo", hint="name another one by --output"
            )
        if not keep:
            shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARK).write_text("made by `woodshed demo`, which may empty this folder\n")
    return output


def _compare(sounds: Path, decoded: Path, name: str) -> DemoClip:
    original = name.removesuffix(".wav")
    before, after = _load(sounds / original), _load(decoded / name)
    length = min(before.shape[1], after.shape[1])
    pairs = list(zip(before[:, :length], after[:, :length], strict=True))
    return DemoClip(
        name=original,
        original=str(sounds / original),
        decoded=str(decoded / name),
        duration_s=length / RATE_HZ,
        log_mel_error_db=float(np.mean([log_mel_distance_db(a, b, rate_hz=RATE_HZ) for a, b in pairs])),
        si_sdr_db=float(np.mean([si_sdr_db(a, b) for a, b in pairs])),
    )


def _load(path: Path) -> np.ndarray:
    return read(str(path), probe(str(path)), rate_hz=RATE_HZ, num_channels=2)
