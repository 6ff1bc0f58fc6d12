"""Draw how the held-out loss fell over the training run.

python recipes/woodshed_tiny_dit/curve.py --work /somewhere/big --to docs/models/woodshed-tiny-dit-curve.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", default="run")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    lines = [json.loads(line) for line in (args.work / args.run / "log.jsonl").read_text().splitlines()]
    tests = [line for line in lines if "test" in line]
    steps = [line for line in lines if "loss" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharex=True, sharey=True)
    left.plot(
        [line["minutes"] for line in steps],
        [line["loss"] for line in steps],
        color="0.7",
        label="steps (with dropped tags)",
    )
    minutes = [line["minutes"] for line in tests]
    for split, colour in (("train", "tab:blue"), ("held_out", "tab:orange")):
        values = [line["test"][split]["all"] for line in tests]
        left.plot(minutes, values, "o-", markersize=3, color=colour, label=f"{split.replace('_', ' ')}, fixed grid")
    for tag in (tag for tag in tests[0]["test"]["held_out"] if tag != "all"):
        right.plot(minutes, [line["test"]["held_out"][tag] for line in tests], label=tag)
    left.set_title("mean of the tags", fontsize=10)
    right.set_title("held out, by tag", fontsize=10)
    left.set_ylabel("squared error of the velocity")
    for axis in (left, right):
        axis.set_xlabel("minutes of training")
        axis.grid(alpha=0.2)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(args.to, dpi=80)


if __name__ == "__main__":
    main()
