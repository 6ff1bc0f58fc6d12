"""Draw how held-out quality grew over the training run.

python recipes/woodshed_tiny/curve.py --work /somewhere/big --to docs/models/woodshed-tiny-curve.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLUMNS = (
    "latents: SI-SDR in dB",
    "latents: log-mel error in dB",
    "12 codebooks: SI-SDR in dB",
    "12 codebooks: log-mel error in dB",
)
FLOORS = {"music": (10.0, 3.5, None, 5.0), "speech": (12.0, 3.5, None, 5.0)}
COLOURS = {"music": "tab:orange", "speech": "tab:blue"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", default="run")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    lines = [json.loads(line) for line in (args.work / args.run / "log.jsonl").read_text().splitlines()]
    tests = [line for line in lines if "test" in line]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True)
    for column, (axis, title) in enumerate(zip(axes.flat, COLUMNS, strict=True)):
        for group in tests[0]["test"]:
            split, kind = group.split("/")
            style = "-" if split == "held_out" else "--"
            values = [line["test"][group][column] for line in tests]
            axis.plot(
                [line["minutes"] for line in tests], values, style, color=COLOURS[kind], label=group.replace("_", " ")
            )
            floor = FLOORS[kind][column]
            if floor is not None:
                axis.axhline(floor, color=COLOURS[kind], linewidth=0.6, linestyle=":")
        axis.set_title(title, fontsize=10)
        if "log-mel" in title:
            axis.set_ylim(1.5, 8)
        axis.grid(alpha=0.2)
    axes[0, 0].legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("minutes of training")
    figure.tight_layout()
    figure.savefig(args.to, dpi=80)


if __name__ == "__main__":
    main()
