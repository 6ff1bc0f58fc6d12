"""Two kinds of music: do their maps differ beyond their intervals, and does the tool say so?

Sorts the music that woodshed-tiny-dit was trained on into kinds, encodes each, analyses each by itself and with the
other as its reference, and compares the maps. Beside each pair of kinds stands a pair of halves of one kind, which must
not differ. All by the command line.

    python recipes/analyze_evidence/two_kinds.py --work /somewhere/big
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile

RECIPES = Path(__file__).parents[1]
sys.path[:0] = [str(RECIPES / "woodshed_tiny"), str(RECIPES / "woodshed_tiny_dit")]
from data import PACKAGES, download  # noqa: E402 (found by the line above)
from latents import DRUM_PREFIXES  # noqa: E402

PAIRS = (
    ("drums", "ambient"),
    ("metal", "ambient"),
    ("electronic", "acoustic"),
    ("ambient-even", "ambient-odd"),
    ("acoustic-even", "acoustic-odd"),
)
SHORTEST_S = 1.0
"""Of a sample that counts as a song."""
RANKS = ["--rank", "8", "--rank-min", "2", "--rank-max", "32", "--rank-multiple", "2"]


def sounds(kind: str, work: Path) -> Iterator[Path]:
    """The files of one kind, in order."""
    name, _, half = kind.partition("-")
    package = {"drums": "sonic-pi-samples", "ambient": "singularity-music", "metal": "fretsonfire-songs-muldjord"}
    (source,) = (p for p in PACKAGES if p.name == package.get(name, "immich-memories-music"))
    folder = download(source, work / "deb", work / "raw")
    files = sorted(p for suffix in ("flac", "ogg", "opus") for p in folder.rglob(f"*.{suffix}") if not p.is_symlink())
    if name == "drums":
        files = [p for p in files if p.name.startswith(DRUM_PREFIXES) and "buffers" not in p.parts]
        files = [p for p in files if soundfile.info(str(p)).duration >= SHORTEST_S]
    elif name in ("electronic", "acoustic"):
        files = [p for p in files if f"_{name}_" in p.name]
    yield from files[{"": 0, "even": 0, "odd": 1}[half] :: 2 if half else 1]


def encoded(kind: str, work: Path) -> Path:
    """The folder of a kind's latents."""
    target = work / "two_kinds" / kind
    if not (target / "latents").exists():
        collected = target / "sounds"
        shutil.rmtree(target, ignore_errors=True)
        collected.mkdir(parents=True)
        for number, path in enumerate(sounds(kind, work)):
            shutil.copy(path, collected / f"{number:03d}-{path.name}")
        woodshed("encode", "--input", str(collected), "--output-path", str(target / "latents"), "--channels", "1")
    return target / "latents"


def woodshed(*words: str) -> dict[str, Any]:
    """Run the command and give what `--json` says."""
    command = [sys.executable, "-m", "woodshed", *words, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def analysed(kind: str, reference: str, work: Path) -> tuple[Path, dict[str, Any]]:
    """The map of a kind held against another, and where it lies."""
    place = work / "two_kinds" / f"{kind}-against-{reference}.json"
    if not place.exists():
        woodshed(
            "analyze", "--dataset-dir", str(encoded(kind, work)), "--backend", "woodshed-tiny-dit", *RANKS,
            "--crop-s", "5", "--reference", str(encoded(reference, work)), "--output", str(place), "--device", "cpu",
        )  # fmt: skip
    made: dict[str, Any] = json.loads(place.read_text())
    return place, made


def rows(work: Path) -> Iterator[str]:
    yield (
        "| A, B | songs | draws of A | ended | Spearman, A and B | halves of A | distinct layers by wg | by density "
        "| parameters moved | p, A held against B |"
    )
    yield "| --- |" + " --- |" * 9
    for first, second in PAIRS:
        place_a, a = analysed(first, second, work)
        place_b, b = analysed(second, first, work)
        compared = woodshed("analyze", "--compare", str(place_a), str(place_b))
        by_density = woodshed("analyze", "--compare", *(str(scored(place)) for place in (place_a, place_b)))
        ours, other = a["woodshed"], b["woodshed"]
        num_distinct = [sum(one["is_distinct"] for one in found["layers"]) for found in (compared, by_density)]
        ended = ours["convergence"]
        yield (
            f"| {first}, {second} | {ours['num_items']}, {other['num_items']} | {ended['num_draws']} "
            f"| {ended['reason']} | {compared['rank_correlation']:.3f} | {ours['halves_correlation']:.3f} "
            f"| {num_distinct[0]} of {compared['num_common']} | {num_distinct[1]} | {compared['moved_share']:.1%} "
            f"| {ours['reference']['p_value']:.3f} |"
        )
        for score, found in (("wg", compared), ("density", by_density)):
            print(f"{first}, {second}, by {score}: {found['verdict']} {'; '.join(found['notes'])}", file=sys.stderr)
            for layer in found["layers"][:4]:
                ratio = layer["relative_b"] / layer["relative_a"]
                print(f"  {layer['name']}: B {ratio:.2f} of A, z {layer['z']:.1f}", file=sys.stderr)


def scored(place: Path) -> Path:
    """The same map with ranks by density, so that maps are compared by it."""
    other = place.with_suffix(".density.json")
    if not other.exists():
        woodshed("analyze", "--from-map", str(place), "--score", "density", *RANKS, "--output", str(other))
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the recipes' downloads; latents go there")
    for row in rows(parser.parse_args().work):
        print(row, flush=True)


if __name__ == "__main__":
    main()
