"""`woodshed encode` beside a plain loop: CPU time per second of sound, memory, and distance of the results.

    python benchmarks/encode.py --small --compile
    python benchmarks/encode.py --full

Both sides run in fresh processes with one compute thread, one after the other, on the same files and weights (random,
the geometry of Stable Audio Open). CPU time, user and system, counts from the moment when all is imported. On a GPU
(`--device cuda`) wall time and the device's own memory count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from benchmarks.clips import QUICK, SIX, make_clips  # noqa: E402
from benchmarks.measuring import describe_machine, save_table  # noqa: E402

RATE_HZ, RATIO, WINDOW_SAMPLES = 44_100, 2048, 1_320_960
CHANNELS = {"small": 16, "full": 128}
BARS = {"small": 5.0, "full": 2.5}
COMPILED_BAR = 6.0


def run_side(side: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("encode_side.py")), side, str(folder), arguments.device]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def distance(plain: Path, ours: Path) -> dict[str, float]:
    """Largest difference of the frames that both sides should agree on, absolute and in standard deviations.

    Of a clip longer than the window the plain side hears silence behind the cut where ours hears the clip go on: the
    frames that reach over the cut are left out.
    """
    from woodshed.encoders.reach import OobleckReach

    reach = OobleckReach.of_encoder((2, 4, 4, 8, 8)).right_frames
    largest, seen = 0.0, []
    for path in sorted(ours.rglob("*.json")):
        meta = json.loads(path.read_text())
        if "padding_mask" not in meta or meta["sample_offset"] != 0:
            continue
        stem = Path(meta["relpath"]).stem
        expected, made = np.load(plain / f"{stem}.npy"), np.load(path.with_suffix(".npy"))
        num_frames = sum(meta["padding_mask"])
        if num_frames == made.shape[1]:
            num_frames -= reach
        largest = max(largest, float(np.abs(made - expected)[:, :num_frames].max()))
        seen.append(expected[:, :num_frames])
    values = np.concatenate(seen, axis=1)
    return {"absolute": largest, "relative": largest / float(values.std()), "frames": values.shape[1]}


def compare(size: str, arguments: argparse.Namespace) -> list[str]:
    """All measurements for one geometry, as lines of Markdown."""
    numbers = QUICK if arguments.quick else SIX if size == "full" else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        total_s = make_clips(folder / "clips", numbers)
        make_clips(folder / "warm-up", (0,))
        (folder / "size.json").write_text(json.dumps({"channels": CHANNELS[size]}))
        run_side("model", folder, arguments)
        sides = {
            "plain loop": run_side("plain", folder, arguments),
            "woodshed": run_side("woodshed", folder, arguments),
        }
        if arguments.compile:
            sides["woodshed --compile"] = run_side("compiled", folder, arguments)
        for name, out in (("woodshed", "woodshed"), ("woodshed --compile", "compiled")):
            if name in sides:
                sides[name]["error"] = distance(folder / "plain", folder / out)
        parts = run_side("parts", folder, arguments)
    num_clips = len(sides["woodshed"]["useful_s"])
    title = f"## {size}: {CHANNELS[size]} channels, {parts['parameters'] / 1e6:.1f} M parameters in the encoder"
    return [
        f"{title}; {num_clips} clips, {total_s:.0f} s",
        "",
        *side_table(size, sides, arguments),
        "",
        *parts_table(parts, sides["woodshed"], total_s),
        "",
    ]


def per_second(side: Mapping[str, Any], device: str) -> float:
    return float(side["cpu_s" if device == "cpu" else "wall_s"] / sum(side["useful_s"]))


def side_table(size: str, sides: Mapping[str, Mapping[str, Any]], arguments: argparse.Namespace) -> list[str]:
    clock = "CPU" if arguments.device == "cpu" else "wall"
    lines = [
        f"| | sound kept | {clock} s | {clock} s per s of sound | times better | peak memory "
        "| max difference | start |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = per_second(sides["plain loop"], arguments.device)
    for name, side in sides.items():
        own, error = per_second(side, arguments.device), side.get("error")
        shown = "reference" if error is None else f"{error['absolute']:.1e} ({error['relative']:.1e} std)"
        total_s = side["cpu_s" if clock == "CPU" else "wall_s"]
        lines.append(
            f"| {name} | {sum(side['useful_s']):.1f} s | {total_s:.1f} | {own:.4f} | {base / own:.2f} "
            f"| {side['peak_mib']:.0f} MiB | {shown} | {side['start_s']:.1f} s |"
        )
    bars = [f"woodshed {BARS[size]:g}x"]
    if size == "small":
        bars.append(f"with --compile {COMPILED_BAR:g}x")
    lines += [
        "",
        f"Bars: {', '.join(bars)}. *Start* is the CPU time of imports and, for `--compile`, of a first run on one clip "
        "that fills the compiler's cache; neither is in the other columns.",
    ]
    return lines


def parts_table(parts: Mapping[str, Any], side: Mapping[str, Any], total_s: float) -> list[str]:
    """Where our time goes, and how far it is from pure arithmetic."""
    floor_s = parts["gflop_per_s"] / parts["peak_gflops"]
    rows = {**parts["cpu_s"]}
    rows["loading, planning, joining, committing"] = side["cpu_s"] - sum(rows.values())
    lines = ["| part | CPU s | share | CPU s per s of sound |", "| --- | --- | --- | --- |"]
    for name, cpu_s in rows.items():
        lines.append(f"| {name} | {cpu_s:.2f} | {cpu_s / side['cpu_s']:.1%} | {cpu_s / total_s:.4f} |")
    conv = parts["cpu_s"]["convolutions"] / total_s
    lines += [
        "",
        f"Arithmetic floor: {parts['gflop_per_s']:.2f} GFLOP per second of sound at {parts['peak_gflops']:.0f} GFLOP/s "
        f"(the best of a matrix product and of convolutions on this core) is {floor_s:.4f} s; the whole run takes "
        f"{side['cpu_s'] / total_s / floor_s:.2f} times that, its convolutions alone {conv / floor_s:.2f} times.",
        f"Decoding runs at {total_s / parts['cpu_s']['decode']:.0f} times real time per core, decoding and resampling "
        f"together at {total_s / (parts['cpu_s']['decode'] + parts['cpu_s']['resample and cut']):.0f} times.",
    ]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="16 channels, 24 clips (the default)")
    parser.add_argument("--full", action="store_true", help="128 channels as in Stable Audio Open, six clips")
    parser.add_argument("--compile", action="store_true", help="measure woodshed encode --compile as well")
    parser.add_argument("--quick", action="store_true", help="two clips only")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--save", type=Path, help="write the tables into this file as well")
    arguments = parser.parse_args(argv)
    lines = [describe_machine(arguments.device), ""]
    print(*lines, sep="\n", flush=True)
    for size in ("small", "full"):
        if getattr(arguments, size) or (size == "small" and not arguments.full):
            made = compare(size, arguments)
            print(*made, sep="\n", flush=True)
            lines += made
    if arguments.save:
        save_table(arguments.save, "encode.py", argv or sys.argv[1:], lines)


if __name__ == "__main__":
    main()
