"""Write the averaged weights of a training run to a file small enough to ship.

python recipes/woodshed_tiny_dit/export.py --work /somewhere/big --to src/woodshed/assets/woodshed-tiny-dit.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from woodshed.backends.tiny_dit_network import TinyDit, TinyDitConfig, save_tiny_dit


def export(checkpoint: Path, target: Path) -> None:
    """Write `target` whole or not at all."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    network = TinyDit(TinyDitConfig())
    network.load_state_dict(state["average"])
    part = target.with_suffix(".part")
    save_tiny_dit(network, part)
    part.chmod(0o644)
    part.replace(target)
    count = sum(p.numel() for p in network.parameters())
    print(
        f"{count / 1e6:.3f} M parameters, {target.stat().st_size / 1e6:.2f} MB after {state['steps']} steps, "
        f"{state['elapsed_s'] / 60:.0f} minutes"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", default="run")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    export(args.work / args.run / "checkpoint.pt", args.to)


if __name__ == "__main__":
    main()
