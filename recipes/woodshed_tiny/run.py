"""Everything from package sources to measured weights, in one command; finished steps are not repeated.

python recipes/woodshed_tiny/run.py --work /somewhere/big
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
ASSETS = SOURCE / "woodshed/assets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads, arrays and checkpoints")
    parser.add_argument("--minutes", type=float, default=93.0, help="length of the training run")
    args = parser.parse_args()
    work = ["--work", str(args.work)]
    steps = (
        ("data.py", *work),
        ("train.py", *work, "--minutes", str(args.minutes)),
        ("export.py", *work, "--to", str(ASSETS / "woodshed-tiny.safetensors")),
        ("demo.py", *work, "--to", str(ASSETS / "demo")),
        ("evaluate.py", *work, "--to", str(args.work / "results.json")),
        ("word_error.py", *work, "--to", str(args.work / "word_error.json")),
        ("curve.py", *work, "--to", str(args.work / "curve.png")),
    )
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    for script, *options in steps:
        print(f"== {script}", flush=True)
        subprocess.run(
            [sys.executable, str(HERE / script), *options], check=True, env=os.environ | {"PYTHONPATH": path}
        )


if __name__ == "__main__":
    main()
