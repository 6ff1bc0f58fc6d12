"""Planning of `speech.py`: a manifest of a million rows, a header that is probed, and the files that are derived.

Starting is measured on the command itself, from outside: it is stopped once its plan is on the disk.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import numpy as np  # noqa: E402

from benchmarks.clips import wave, write  # noqa: E402
from benchmarks.measuring import cpu_s, peak_mib  # noqa: E402

LENGTHS_S = (1.3, 2.2, 3.1, 4.7, 6.0, 8.8, 11.0, 14.6)
PLANNED_MESSAGE = b"making features of"
PROBED = (("wav", 24_000), ("flac", 24_000), ("ogg", 24_000))
PROBED_ROWS = 4000
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Start:
    """What a start took until something was there."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def write_manifest(folder: Path, num_rows: int, *, with_durations: bool, suffixes: Sequence[str] = ("wav",)) -> Path:
    """Rows with texts and ids of their own over a few files of real sound."""
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    for suffix in suffixes:
        for number, length_s in enumerate(LENGTHS_S):
            path = folder / "wavs" / f"{number}.{suffix}"
            if not path.exists():
                write(path, wave(length_s, 24_000, 1, seed=number), 24_000)
    chance = random.Random(0)
    path = folder / f"{suffixes[0]}-{num_rows}.jsonl"
    with path.open("w") as file:
        for row in range(num_rows):
            number, speaker = chance.randrange(len(LENGTHS_S)), f"speaker_{row % 977:04d}"
            columns: dict[str, Any] = {
                "id": f"{speaker}_utt_{row:07d}",
                "text": f"This is sentence number {row} of a long book, read aloud on a day in {row % 89 + 1930}.",
                "audio": f"wavs/{number}.{suffixes[row % len(suffixes)]}",
                "speaker": speaker,
                "language": "en",
            }
            if with_durations:
                columns["duration"] = LENGTHS_S[number]
            file.write(json.dumps(columns) + "\n")
    return path


def command(manifest: Path, output: Path, models: Path, layer: int) -> list[str]:
    places = ["--manifest", str(manifest), "--output-dir", str(output), "--config", str(models / "config.yaml")]
    how = ["--semantic-layer", str(layer), "--device", "cpu", "--num-processes", "1"]
    return [sys.executable, "-m", "woodshed", "speech", *places, *how]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


def dry_run(words: Sequence[str]) -> Start:
    """The whole command with `--dry-run`."""
    started = time.perf_counter()
    with subprocess.Popen([*words, "--dry-run"], env=environment(), stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words} ended with code {process.returncode}")
    return Start(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def until_planned(words: Sequence[str], output: Path, log: Path) -> Start:
    """The command until its plan is on the disk (for one that finds a plan there: until it has read it), and no
    further."""
    started = time.perf_counter()
    with (
        log.open("wb") as errors,
        subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=errors) as process,
    ):
        while process.poll() is None:
            time.sleep(0.02)
            if PLANNED_MESSAGE in log.read_bytes() and any((output / ".woodshed" / "plan").glob("*.jsonl")):
                found = _so_far(process.pid, time.perf_counter() - started)
                process.send_signal(signal.SIGTERM)
                process.wait()
                return found
    raise SystemExit(f"{words} ended with code {process.returncode}:\n{log.read_text()}")


def _so_far(pid: int, wall_s: float) -> Start:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert peak is not None, "/proc has no VmHWM"
    return Start(wall_s, used_s, int(peak[1]) / 1024)


def measure_plan(folder: Path, models: Path, layer: int, num_rows: int, *, with_resume: bool) -> Iterator[str]:
    """Lines of a table: planning a manifest that gives durations."""
    manifest, output = write_manifest(folder, num_rows, with_durations=True), folder / "out"
    words = command(manifest, output, models, layer)
    yield "| planning | rows | start to end | of it CPU | bar | peak memory | bar |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    yield _plan_row("`--dry-run`, to its end", num_rows, dry_run(words))
    log = folder / "errors.txt"
    yield _plan_row("first start, until the plan is on the disk", num_rows, until_planned(words, output, log))
    if with_resume:
        yield _plan_row(
            "second start, until the plan is taken up (nothing done yet)", num_rows, until_planned(words, output, log)
        )


def _plan_row(name: str, num_rows: int, start: Start) -> str:
    numbers = f"{start.wall_s:.1f} s | {start.cpu_s:.1f} s | 60 s | {start.peak_mib:.0f} MiB | 2048 MiB"
    return f"| {name} | {num_rows:,} | {numbers} |"


def measure_probe(folder: Path, models: Path, layer: int) -> Iterator[str]:
    """Lines of a table: what a row costs whose length has to be read from its file."""
    yield "| rows without durations | rows | CPU per row | of it the probe |"
    yield "| --- | --- | --- | --- |"
    for suffix, _ in PROBED:
        known, unknown = (
            _planning_cpu_s(folder / kind, models, layer, suffix, with_durations=kind == "known")
            for kind in ("known", "unknown")
        )
        each_us, probe_us = (1e6 * used_s / PROBED_ROWS for used_s in (unknown, unknown - known))
        yield f"| {suffix.upper()} | {PROBED_ROWS:,} | {each_us:.0f} us | {probe_us:.0f} us |"


def _planning_cpu_s(folder: Path, models: Path, layer: int, suffix: str, *, with_durations: bool) -> float:
    """CPU time of planning in this process, the models' loading left out."""
    from woodshed.jobs.speech import speech

    manifest = write_manifest(folder, PROBED_ROWS, with_durations=with_durations, suffixes=[suffix])
    few = write_manifest(folder, 1, with_durations=with_durations, suffixes=[suffix])
    used: dict[str, list[float]] = {"all": [], "few": []}
    for _ in range(3):
        for name, path in (("all", manifest), ("few", few)):
            started_s = cpu_s()
            speech(
                path, folder / "out", config=models / "config.yaml", semantic_layer=layer, device="cpu",
                num_processes=1, dry_run=True,
            )  # fmt: skip
            used[name].append(cpu_s() - started_s)
    return min(used["all"]) - min(used["few"])


def measure_derived(folder: Path, num_rows: int) -> dict[str, float]:
    """Deriving the manifests of a folder with so many rows done. To be called in a process of its own."""
    from woodshed.speech.manifests import Manifests, Provenance
    from woodshed.speech.split import Splitter
    from woodshed.store.indextts import IndexTTS
    from woodshed.store.store import Store

    spec = _spec()
    with Store.open(folder, layout=IndexTTS(spec=spec), fingerprint={}, spec=spec):
        pass
    _write_log(folder, num_rows)
    made = Manifests(
        arrays=tuple(spec.arrays),
        absent=(),
        rate_hz=50.0,
        splitter=Splitter(ratio=0.01, by="id", seed=17),
        provenance={"2.0": Provenance(tokenizer="bpe.model", gpt_checkpoint="gpt.pth")},
        settings={},
    )
    with Store.open(folder, layout=IndexTTS(spec=spec), fingerprint={}, spec=spec) as store:
        opened_mib, started, started_s = peak_mib(), time.perf_counter(), cpu_s()
        stats = made.write(store, [], [], num_rows=num_rows)
        assert stats["2.0"]["total"] == num_rows, stats
        return {
            "wall_s": time.perf_counter() - started,
            "cpu_s": cpu_s() - started_s,
            "opened_mib": opened_mib,
            "peak_mib": peak_mib(),
        }


def _spec() -> Any:
    from woodshed.contracts import ArraySpec, RecordSpec

    axes = {"text_ids": ("token",), "codes": ("frame",), "condition": ("latent", "channel"), "emo_vec": ("channel",)}
    arrays = {
        name: ArraySpec(
            axes=own, dtype="int32" if len(own) == 1 and name != "emo_vec" else "float32", bytes_per_frame=0
        )
        for name, own in axes.items()
    }
    return RecordSpec(
        kind="speech", main="codes", arrays=arrays, rate_hz=16_000, hop_samples=320, audio_channels=1,
        codebook_sizes=(8192,),
    )  # fmt: skip


def _write_log(folder: Path, num_rows: int) -> None:
    """Commit rows as a run does, by segments of 2,000; their arrays are not written, and nobody asks for them."""
    from woodshed.store.entries import FileEntry, RecordEntry, SourceFacts, entry_of, item_line, record_json
    from woodshed.store.sealed import seal

    rng = np.random.default_rng(0)
    seconds = rng.uniform(1, 15, num_rows)
    for number, first in enumerate(range(0, num_rows, 2000)):
        lines = []
        for row in range(first, min(first + 2000, num_rows)):
            speaker, num_samples = f"speaker_{row % 977:04d}", round(float(seconds[row]) * 16_000)
            name = f"{speaker}_utt_{row:07d}"
            facts = {
                "start_sample": 0, "num_samples": num_samples, "total_samples": num_samples,
                "num_frames": num_samples // 320, "valid_frames": num_samples // 320, "silent": False,
                "row": {
                    "text": f"This is sentence number {row} of a long book, read aloud on a rainy day.",
                    "audio_path": f"wavs/{name}.wav", "speaker": speaker, "language": "en", "duration": seconds[row],
                    "unknown": 0, "unknown_characters": "",
                },
                "lengths": {"text_ids": 30, "codes": num_samples // 320, "condition": 32, "emo_vec": 1280},
            }  # fmt: skip
            files = tuple(
                FileEntry(f"{array}/{name}.npy", 1000, f"{row:016x}")
                for array in ("text_ids", "codes", "condition", "emo_vec")
            )
            record = RecordEntry(id=name, index=0, position=row, facts=facts, files=files)
            source = SourceFacts(
                id=name, size_bytes=1000 + row, mtime_ns=row, digest=f"xxh3_128:{row:032x}",
                meta_digest=f"xxh3_64:{row:016x}", position=row, shard=0,
            )  # fmt: skip
            entry = entry_of(source, "done", [record], audio_s=float(seconds[row]))
            lines.append(item_line(entry, [record_json(record)]))
        footer = {"lines": len(lines), "moves": [], "removes": [], "shards": []}
        (folder / ".woodshed" / "commits" / f"0-{number:08d}.jsonl").write_bytes(seal(lines, footer))


if __name__ == "__main__":
    print(json.dumps(measure_derived(Path(sys.argv[1]), int(sys.argv[2]))))
