"""How long `woodshed encode` takes to find that a million committed items leave nothing to do, and its peak memory.

    python benchmarks/resume.py --items 1000000 --source folder

The source is real: a folder of sounds (hard links to a few short files), or a manifest that names each of them. The
output folder is made by the functions of the plan and the store, as a run makes it, with a record of silence for every
item. What is measured is the command itself, from the start of Python to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "tests" / "golden" / "stable_audio" / "models"
LIMIT_S, LIMIT_MIB = 20.0, 1024.0
LINKS_PER_FILE = 50_000
"""ext4 allows 65,000."""
FOLDER_ITEMS = 1000


def make_sounds(folder: Path, num_items: int) -> None:
    """`num_items` names in folders of a thousand."""
    import numpy as np
    import soundfile

    for number in range(num_items):
        path = folder / f"artist {number // 50_000:03d}" / f"album {number // FOLDER_ITEMS:05d}" / f"{number:08d}.wav"
        if number % FOLDER_ITEMS == 0:
            path.parent.mkdir(parents=True)
        if number % LINKS_PER_FILE == 0:
            original = path
            soundfile.write(original, np.zeros((900, 2)), 44_100)
        else:
            os.link(original, path)


def make_manifest(folder: Path) -> Path:
    path = folder.with_suffix(".jsonl")
    with path.open("w") as file:
        for sound in sorted(folder.rglob("*.wav")):
            name = f"{folder.name}/{sound.relative_to(folder).as_posix()}"
            file.write(json.dumps({"path": name, "prompt": f"take {sound.stem}, dry, close"}) + "\n")
    return path


def arguments_of(source: Path, output: Path, layout: str) -> list[str]:
    model = ["--model-config", str(MODELS / "tiny_tanh.json"), "--ckpt-path", str(MODELS / "tiny_tanh.ckpt")]
    place = ["--input", str(source), "--output-path", str(output), "--layout", layout]
    return [*model, *place, "--sample-size", "2048", "--device", "cpu"]


def commit_all(source: Path, output: Path, layout: str) -> None:
    """Plan the source and commit a record for every item, without decoding."""
    from dataclasses import replace

    import numpy as np

    from woodshed.audio.probe import probe
    from woodshed.batching.pack import BatchLimits
    from woodshed.contracts import Item, Place, Record
    from woodshed.jobs.encode import open_store
    from woodshed.jobs.model import load_encoder
    from woodshed.jobs.settings import EncodeSettings
    from woodshed.run.plan import PlannedItem, PlanOptions, make_units, meta_digest
    from woodshed.run.plan_lines import unit_json
    from woodshed.sources.open import open_source
    from woodshed.store.store import SourceFacts

    model_config, ckpt = MODELS / "tiny_tanh.json", MODELS / "tiny_tanh.ckpt"
    settings = EncodeSettings.model_validate(
        {"model_config_path": model_config, "ckpt_path": ckpt, "input": source, "output_path": output,
         "layout": layout, "sample_size": 2048, "device": "cpu"}
    )  # fmt: skip
    model = load_encoder(settings)
    rows = [row for row in open_source(str(source), None).rows() if isinstance(row, Item)]
    audio = probe(rows[0].path)
    outline = model.encoder.outline(replace(rows[0], audio=audio))
    planned = [
        PlannedItem(
            item=replace(row, audio=audio),
            meta_digest=meta_digest(row.meta),
            position=-1,
            num_records=outline.num_records,
            pieces=outline.pieces,
        )
        for row in rows
    ]
    units = make_units(
        planned, PlanOptions(limits=BatchLimits(max_cost_s=model.batch_s)), model.encoder.spec,
        unit=0, position=0, shard=0,
    )  # fmt: skip
    (array,) = model.encoder.spec.arrays.values()
    latents = {model.encoder.spec.main: np.zeros((array.bytes_per_frame // 4, 4), np.float32)}
    meta = {"start_sample": 0, "num_samples": 900, "window_samples": 2048, "num_frames": 4, "valid_frames": 2}
    with open_store(settings, model) as store:
        store.plan.append((unit_json(unit) for unit in units), next_position=len(planned))
        shard_items = dict.fromkeys((unit.shard for unit in units), 0)
        for unit in units:
            shard_items[unit.shard] += len(unit.items)
        store.expect_shards(shard_items)
        for unit in units:
            for seat in unit.items:
                digest = f"xxh3_128:{seat.position:032x}"
                facts = SourceFacts(
                    id=seat.item.id, size_bytes=seat.item.size_bytes, mtime_ns=seat.item.mtime_ns, digest=digest,
                    meta_digest=seat.meta_digest, position=seat.position, shard=unit.shard,
                )  # fmt: skip
                place = Place(
                    item=seat.item, digest=digest, rank=unit.rank, position=seat.position, index=0, num_records=1
                )
                with store.item(facts) as writer:
                    writer.write(Record(arrays=dict(latents), meta={**meta, "silent": True}), place)
                    writer.done(audio_s=audio.duration_s)


def measure(arguments: Sequence[str]) -> tuple[dict[str, object], float, float, float]:
    """What a command line reports as JSON, its seconds, its CPU-seconds, and its peak memory in MiB."""
    command = [sys.executable, "-m", "woodshed", "encode", *arguments, "--json"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=_environment()) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    elapsed_s = time.perf_counter() - started
    if process.returncode != 0:
        raise SystemExit(f"woodshed encode ended with code {process.returncode}")
    return json.loads(text), elapsed_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT / "src")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--source", choices=["folder", "manifest"], default="folder")
    parser.add_argument("--layout", choices=["shards", "stable_audio"], default="shards")
    parser.add_argument("--folder", type=Path, help="keep the folders here, or measure those that are here")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", choices=["make"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        sounds, output = given.folder / "sounds", given.folder / "out"
        make_sounds(sounds, given.items)
        commit_all(make_manifest(sounds) if given.source == "manifest" else sounds, output, given.layout)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "resume"
        if not folder.exists():
            # In a process of its own: Linux counts the memory of whoever starts a process as that process's peak.
            started = time.perf_counter()
            again = [sys.executable, *sys.argv, "--only", "make", "--folder", str(folder)]
            subprocess.run(again, check=True, env=_environment())
            print(f"made in {time.perf_counter() - started:.0f} s\n", flush=True)
        source = folder / ("sounds.jsonl" if given.source == "manifest" else "sounds")
        print("| source | layout | items | start to end | of it CPU | bar | peak memory | bar |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for _ in range(given.runs):
            report, elapsed_s, cpu_s, peak_mib = measure(arguments_of(source, folder / "out", given.layout))
            assert report["num_done"] == given.items, report
            assert report["num_new"] == 0, report
            numbers = f"{elapsed_s:.1f} s | {cpu_s:.1f} s | {LIMIT_S:.0f} s | {peak_mib:.0f} MiB | {LIMIT_MIB:.0f} MiB"
            print(f"| {given.source} | {given.layout} | {given.items:,} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
