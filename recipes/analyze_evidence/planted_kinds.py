"""How much of what `planted.py` finds is the kind of a layer, whoever was changed? Works on what that recipe kept.

A planted layer is compared with the layers of its own kind that were not planted, and the kinds' standing without a
planted layer is shown beside it. Then each layer's contrast is divided by the median of its kind: does that find more?

    python recipes/analyze_evidence/planted_kinds.py --work /somewhere/big
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from planted import KINDS, SIZES, auc, perturbed

from woodshed.backends.tiny_dit import woodshed_tiny_dit
from woodshed.importance.layers import layer_shapes
from woodshed.importance.measuring import ENTRIES

SWAPS = 999
SUFFIX = "-without-qk"


def excess(data: np.ndarray, reference: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Of each layer: squared distance of the means beyond chance, over the reference's own. Labels are swapped in pairs
    of songs."""
    chance = np.random.default_rng(0)
    signs = np.concatenate([np.ones((1, len(data))), chance.choice([-1.0, 1.0], (SWAPS, len(data)))])
    made = []
    for ours, other in zip(parts(data, sizes), parts(reference, sizes), strict=True):
        kernel = (ours - other) @ (ours - other).T
        squares = ((signs @ kernel) * signs).sum(1)
        made.append((squares[0] - squares[1:].mean()) / np.square(other).sum())
    return np.array(made)


def parts(songs: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(songs, np.cumsum(sizes)[:-1], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what planted.py was given")
    folder = parser.parse_args().work / "songs"
    shapes = layer_shapes(woodshed_tiny_dit().layers())
    names, sizes = [shape.name for shape in shapes], [min(ENTRIES, shape.num_weights) for shape in shapes]
    kinds = {kind: [layer for layer, name in enumerate(names) if is_kind(name)] for kind, is_kind in KINDS.items()}
    reference = np.load(folder / "reference.npy")
    rows: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*-[0-9]*.npy")):
        size, seed = path.stem.removesuffix(SUFFIX).split("-")
        with_qk = not path.stem.endswith(SUFFIX)
        _, planted = perturbed(float(size), seed=int(seed), with_qk=with_qk)
        values = excess(np.load(path), reference, sizes)
        levelled = values.copy()
        for kind, members in kinds.items():
            free = [layer for layer in members if layer not in planted]
            for layer in planted:
                if layer in members:
                    rows[f"{kind}, planted, among its kind"][float(size)].append(
                        float((values[layer] > values[free]).mean())
                    )
            others = [layer for layer in range(len(names)) if layer not in planted]
            rows[f"{kind}, not planted, among all"][float(size)] += [
                float((values[x] > values[others]).mean()) for x in free
            ]
            levelled[members] /= max(float(np.median(np.abs(values[members]))), 1e-30)
        group = "any layers" if with_qk else "neither q nor k"
        rows[f"{group}: AUC of the three"][float(size)].append(auc(values.tolist(), planted))
        rows[f"{group}: AUC, over the median of the kind"][float(size)].append(auc(levelled.tolist(), planted))
    print(f"| | {' | '.join(f'size {size:g}' for size in SIZES)} |")
    print("| --- |" + " --- |" * len(SIZES))
    for title in sorted(rows):
        cells = [f"{statistics.mean(rows[title][size]):.2f}" if size in rows[title] else "" for size in SIZES]
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
