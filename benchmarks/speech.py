"""`woodshed speech` beside a plain loop: clips per CPU-second, memory, planning, and distance of the results.

    python -m benchmarks.speech
    python -m benchmarks.speech --only speed

Both sides make the features of the same manifest with the same random weights, one compute thread each, in fresh
processes that take turns. CPU time, user and system, counts from the moment when all is imported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import numpy as np  # noqa: E402

from benchmarks.clips import wave, write  # noqa: E402
from benchmarks.measuring import describe_machine, save_table  # noqa: E402
from benchmarks.speech_plan import environment, measure_plan, measure_probe  # noqa: E402

PARTS = ("speed", "memory", "plan")
LAYERS, LAYER = 4, 3
"""17 of 24 layers are 2.83 of 4: three are computed, to our disadvantage."""
SIZES = {"tiny": 64, "real width": 4096}
"""Width of the feed-forward parts; all else is 1024 wide with 16 heads, as published."""
REPETITIONS = 2
NUM_CLIPS, RATE_HZ = 32, 24_000
LONG_S = 60.0
BATCH_SIZE = 16
DERIVED_ROWS = 100_000
SPEED_BAR, SPEED_AIM, MEMORY_BAR = 2.0, 3.0, 5.0


def side(*words: object, script: str = "speech_side.py") -> dict[str, Any]:
    """Run one side in a process of its own."""
    arguments = [sys.executable, str(Path(__file__).with_name(script)), *map(str, words)]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words} ended with code {done.returncode}:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def make_clips(folder: Path) -> tuple[Path, float]:
    """Clips of 1 to 15 s in no order of length, and their manifest; gives their seconds in all."""
    lengths_s = np.random.default_rng(7).uniform(1, 15, NUM_CLIPS)
    (folder / "wavs").mkdir()
    manifest = folder / "manifest.jsonl"
    with manifest.open("w") as file:
        for number, length_s in enumerate(lengths_s):
            write(folder / "wavs" / f"{number:03d}.wav", wave(length_s, RATE_HZ, 1, seed=number), RATE_HZ)
            row: dict[str, Any] = {
                "id": f"utt_{number:03d}",
                "text": f"Sentence {number} of them, read aloud.",
                "speaker": "one",
            }
            row |= {"audio": f"wavs/{number:03d}.wav", "language": "en", "duration": round(float(length_s), 3)}
            file.write(json.dumps(row) + "\n")
    return manifest, float(lengths_s.sum())


def measure_speed(folder: Path, models: dict[str, Path]) -> Iterator[str]:
    manifest, total_s = make_clips(folder)
    yield f"## Speed: {NUM_CLIPS} clips of 1 to 15 s, {total_s:.0f} s in all"
    yield ""
    columns = ("w2v-bert", "side", "clips per CPU-second (all runs)", "times better", "peak memory")
    yield "| " + " | ".join([*columns, "other codes", "condition", "emotion"]) + " |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, own in models.items():
        yield from _speed_of(folder, name, own, manifest)
    yield ""
    yield (
        f"Bar: {SPEED_BAR:g} times, aim: {SPEED_AIM:g} times. *Plain loop*: file order, batch {BATCH_SIZE}, stock "
        f"networks, all {LAYERS} layers, hidden state {LAYER} taken (`speech_reference.py`). *woodshed*: "
        f"`woodshed speech --compat --num-processes 1`, automatic batches, stopping after layer {LAYER}: the share of "
        "the real model, 17 of 24, would be 2.83. The median of the runs, which took turns, counts. Loading, planning "
        "and committing are within; imports are not. Differences are those from the plain loop at a batch size of 1, "
        "on the same clips; that of its batches is what the original would store instead (lengths: clips whose codes "
        "have the padded length; codes: compared over the true length; condition and emotion: ours, see there). Codec "
        "(32 codes) and conditioning are small on both sides."
    )
    yield ""


def _speed_of(folder: Path, name: str, models: Path, manifest: Path) -> Iterator[str]:
    from benchmarks.speech_side import distance

    outputs = {key: folder / name / key for key in ("plain", "ours", "alone")}
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
    for _ in range(REPETITIONS):
        for key in runs:
            shutil.rmtree(outputs[key], ignore_errors=True)
        runs["plain"].append(side("plain", models, manifest, outputs["plain"], LAYER, BATCH_SIZE))
        runs["ours"].append(side("ours", models, manifest, outputs["ours"], LAYER))
    side("plain", models, manifest, outputs["alone"], LAYER, 1)
    rates = {key: [NUM_CLIPS / run["cpu_s"] for run in own] for key, own in runs.items()}
    middle = {key: statistics.median(own) for key, own in rates.items()}
    for key, shown in (("plain", "plain loop"), ("ours", "woodshed")):
        all_runs = ", ".join(f"{rate:.2f}" for rate in sorted(rates[key]))
        apart = distance(outputs["alone"], outputs[key])
        peak = max(run["peak_mib"] for run in runs[key])
        yield (
            f"| {name} | {shown} | {middle[key]:.2f} ({all_runs}) | {middle[key] / middle['plain']:.2f} "
            f"| {peak:.0f} MiB | {apart['codes']} of {apart['num_codes']} codes, {apart['lengths']} lengths, "
            f"{apart['texts']} texts | {apart['condition']:.1e} | {apart['emo_vec']:.1e} |"
        )


def measure_memory(models: dict[str, Path]) -> Iterator[str]:
    yield f"## Memory of w2v-bert's pass over a clip of {LONG_S:.0f} s, weights left out"
    yield ""
    yield "| side | peak above the state before | times less |"
    yield "| --- | --- | --- |"
    own = models["real width"]
    stock = side("memory-stock", own, LAYER, LONG_S)["activation_mib"]
    ours = side("memory-ours", own, LAYER, LONG_S)["activation_mib"]
    yield f"| transformers | {stock:.0f} MiB | 1.0 |"
    yield f"| woodshed | {ours:.0f} MiB | {stock / ours:.1f} |"
    yield ""
    yield (
        f"Bar: {MEMORY_BAR:g} times less. Resident memory of a process of its own: its peak while the pass lasts (the "
        "kernel's counter, set back before it) less what is resident after loading and a first pass over one second. "
        f"Real width, {LAYERS} layers; how many there are hardly matters, layers follow one another. transformers "
        "keeps every layer's hidden state, as the plain loop asks it to: 12 MiB each."
    )
    yield ""


def measure_planning(folder: Path, models: dict[str, Path], num_rows: int) -> Iterator[str]:
    yield f"## Planning: {num_rows:,} rows"
    yield ""
    yield from measure_plan(folder, models["tiny"], LAYER, num_rows, with_resume=True)
    yield ""
    yield "Rows over eight files, each with a text and an id of its own, durations given. Python's start is within."
    yield ""
    yield from measure_probe(folder, models["tiny"], LAYER)
    yield ""
    yield "From memory: a cold disk adds one access per file, by eight threads at a time. The least of three runs each."
    yield ""
    derived = side(folder / "derived", DERIVED_ROWS, script="speech_plan.py")
    factor = 1_000_000 / DERIVED_ROWS
    grown_mib = derived["peak_mib"] - derived["opened_mib"]
    yield "| manifests, `stats.json`, progress file | rows | wall | CPU | memory above the open folder |"
    yield "| --- | --- | --- | --- | --- |"
    times = f"{derived['wall_s']:.1f} s | {derived['cpu_s']:.1f} s"
    yield f"| measured | {DERIVED_ROWS:,} | {times} | {grown_mib:.0f} MiB |"
    yield (
        f"| extrapolated in proportion | 1,000,000 | {factor * derived['wall_s']:.0f} s "
        f"| {factor * derived['cpu_s']:.0f} s | {factor * grown_mib:.0f} MiB |"
    )
    yield ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the manifest that is planned")
    parser.add_argument("--note", help="what else the machine was doing; stands in the result")
    parser.add_argument("--save", type=Path, help="default: results/speech-cpu.md, or speech-PART-cpu.md with --only")
    arguments = parser.parse_args(argv)
    lines = [describe_machine("cpu") + (f"; {arguments.note}" if arguments.note else ""), ""]
    print(*lines, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = {}
        for name, width in SIZES.items():
            if name == "tiny" or set(arguments.only) & {"speed", "memory"}:
                models[name] = folder / f"models {name}"
                side("models", models[name], LAYERS, width)
        parts: dict[str, Callable[[], Iterator[str]]] = {
            "speed": lambda: measure_speed(folder, models),
            "memory": lambda: measure_memory(models),
            "plan": lambda: measure_planning(folder, models, arguments.rows),
        }
        for name in PARTS:
            for line in parts[name]() if name in arguments.only else ():
                print(line, flush=True)
                lines.append(line)
    whole = len(arguments.only) == len(PARTS)
    part = "" if whole else "-".join(["", *arguments.only])
    given = [] if whole else ["--only", *arguments.only]
    target = arguments.save or Path(__file__).with_name("results") / f"speech{part}-cpu.md"
    save_table(target, "speech.py", given, lines)


if __name__ == "__main__":
    main()
