"""Write a few held-out latents, small enough to ship with the tests.

python recipes/woodshed_tiny_dit/golden.py --work /somewhere/big --to tests/golden/tiny_dit/held_out.safetensors
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from grid import looks
from safetensors.torch import save_file

PER_TAG = 2
NUM_FRAMES = 88
"""1.76 s; a sound that is shorter is stored whole."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    found = [look for look in looks(args.work, per_tag=PER_TAG + 2) if look.tag is not None]
    tensors, facts = {}, {}
    for tag in dict.fromkeys(look.tag for look in found):
        # Neither the first nor the last: songs begin and end quietly.
        for index, look in enumerate([look for look in found if look.tag == tag][1 : 1 + PER_TAG]):
            name = f"{tag}/{index}"
            tensors[name] = look.latents[:NUM_FRAMES].half().contiguous()
            facts[name] = "/".join(Path(look.file).parts[-2:])
    args.to.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.to, metadata={"files": json.dumps(facts)})
    print(json.dumps(facts, indent=1), f"{args.to.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
