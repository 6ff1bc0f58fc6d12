"""Write the averaged weights of a training run to a file small enough to ship.

python recipes/woodshed_tiny/export.py --work /somewhere/big --to src/woodshed/assets/woodshed-tiny.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from woodshed.encoders.tiny import TinyCodec, TinyCodecConfig, save_tiny_codec


def export(checkpoint: Path, target: Path) -> None:
    """Write `target` whole or not at all."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    codec = TinyCodec(TinyCodecConfig())
    codec.load_state_dict(state["average"])
    part = target.with_suffix(".part")
    save_tiny_codec(codec, part)
    part.chmod(0o644)
    part.replace(target)
    print(f"{target.stat().st_size / 1e6:.2f} MB after {state['steps']} steps, {state['elapsed_s'] / 60:.0f} minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", default="run")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    export(args.work / args.run / "checkpoint.pt", args.to)


if __name__ == "__main__":
    main()
