"""Whether an hour takes more memory than a minute: peak of `woodshed encode` on one FLAC file of each length.

    python benchmarks/memory.py
    python benchmarks/memory.py --models songs songs-lufs --minutes 2 20

`songs` is `woodshed songs` with a tiny ACE-Step of the true classes; `songs-lufs` measures loudness first.

44.1 kHz stereo, each run in a process of its own. The joints are those of the product: decode and resample in blocks,
encode in windows, hand each record on as soon as it is complete.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import soundfile  # noqa: E402

from benchmarks.clips import wave  # noqa: E402
from benchmarks.measuring import cpu_s, describe_machine, peak_mib, save_table  # noqa: E402

RATE_HZ = 44_100
GOLDEN = ROOT / "tests" / "golden" / "stable_audio" / "models" / "tiny_tanh"
MODELS = {
    "woodshed-tiny": {"pretrained_name": "woodshed-tiny"},
    "tiny_tanh": {"model_config_path": f"{GOLDEN}.json", "ckpt_path": f"{GOLDEN}.ckpt"},
}
SONGS = {"songs": {}, "songs-lufs": {"normalize": "lufs", "estimate": "all"}}


def make_file(path: Path, minutes: int) -> None:
    """The same ten seconds over and over, at other gains."""
    block = wave(10.0, RATE_HZ, 2, seed=0)
    with soundfile.SoundFile(path, "w", RATE_HZ, 2) as file:
        for number in range(minutes * 6):
            file.write(block * (0.5 + 0.5 * (number % 7) / 6))


def encode_here(model: str, source: Path, output: Path) -> dict[str, float]:
    import woodshed

    imported_mib, started_s = peak_mib(), cpu_s()
    if model in SONGS:
        checkpoint = str(source.parent / "checkpoint")
        summary = woodshed.prepare_songs(source, output, checkpoint_dir=checkpoint, device="cpu", **SONGS[model])
    else:
        summary = woodshed.encode(source, output, device="cpu", **MODELS[model])
    return {
        "imported_mib": imported_mib,
        "peak_mib": peak_mib(),
        "cpu_s": cpu_s() - started_s,
        "records": summary.num_records,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 60])
    parser.add_argument("--models", nargs="+", choices=sorted({**MODELS, **SONGS}), default=sorted(MODELS))
    parser.add_argument("--save", type=Path, help="write the table into this file as well")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "SOURCE", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        model, source, output = arguments.one
        print(json.dumps(encode_here(model, Path(source), Path(output))))
        return
    lines = [describe_machine("cpu"), "", "| model | file | records | peak memory | after imports | CPU s |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        if SONGS.keys() & set(arguments.models):
            from tests.encoders.acestep.tiny_acestep import build_acestep, save_diffusers

            save_diffusers(build_acestep(num_latents=8), Path(temporary) / "checkpoint")
        for minutes in arguments.minutes:
            source = Path(temporary) / f"{minutes}"
            source.mkdir()
            make_file(source / "long.flac", minutes)
            for model in arguments.models:
                output = Path(temporary) / f"out-{model}-{minutes}"
                command = [sys.executable, __file__, "--one", model, str(source), str(output)]
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                lines.append(
                    f"| {model} | {minutes} min | {found['records']} | {found['peak_mib']:.0f} MiB "
                    f"| {found['imported_mib']:.0f} MiB | {found['cpu_s']:.1f} |"
                )
    print(*lines, sep="\n")
    if arguments.save:
        save_table(arguments.save, "memory.py", argv or sys.argv[1:], lines)


if __name__ == "__main__":
    main()
