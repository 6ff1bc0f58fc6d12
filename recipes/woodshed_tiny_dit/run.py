"""Everything from package sources to measured weights, in one command; finished steps are not repeated.

python recipes/woodshed_tiny_dit/run.py --work /somewhere/big
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads, latents and checkpoints")
    parser.add_argument("--minutes", type=float, default=63.0, help="length of the training run")
    args = parser.parse_args()
    work = ["--work", str(args.work)]
    models = ROOT / "docs/models"
    steps = (
        ("latents.py", *work),
        ("train.py", *work, "--minutes", str(args.minutes)),
        ("export.py", *work, "--to", str(ROOT / "src/woodshed/assets/woodshed-tiny-dit.safetensors")),
        ("golden.py", *work, "--to", str(ROOT / "tests/golden/tiny_dit/held_out.safetensors")),
        ("evaluate.py", *work, "--to", str(args.work / "losses.json")),
        ("samples.py", *work, "--to", str(args.work / "samples.json"), "--sounds", str(models)),
        ("curve.py", *work, "--to", str(models / "woodshed-tiny-dit-curve.png")),
    )
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    for script, *options in steps:
        print(f"== {script}", flush=True)
        subprocess.run(
            [sys.executable, str(HERE / script), *options], check=True, env=os.environ | {"PYTHONPATH": path}
        )


if __name__ == "__main__":
    main()
