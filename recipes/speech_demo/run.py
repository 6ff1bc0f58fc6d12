"""Both assets of `woodshed speech demo`, and their measure, in one command.

python recipes/speech_demo/run.py --work /somewhere/big
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"
ASSETS = SOURCE / "woodshed/assets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads; that of woodshed_tiny will do")
    work = ["--work", str(parser.parse_args().work)]
    steps = (
        ("codebook.py", *work, "--to", str(ASSETS / "whisper-tiny-en-codebook.safetensors")),
        ("tokenizer.py", *work, "--to", str(ASSETS / "speech-demo-bpe.model")),
        ("measure.py", *work),
    )
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    # One thread: sums come in one order, so the same machine writes the same bytes again.
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    for script, *options in steps:
        print(f"== {script}", flush=True)
        subprocess.run([sys.executable, str(HERE / script), *options], check=True, env=environment)


if __name__ == "__main__":
    main()
