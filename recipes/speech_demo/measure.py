"""How good are the codes? On clips that neither the codebook nor the tokenizer has seen.

- used: share of the codes that occur; perplexity: 2 to the entropy of the codes, as if so many were used equally;
- explained: share of the states' variance (each value scaled alike) that the codes keep;
- phone information: how much of the entropy of the spoken phones a code tells, 0 to 1. The chance of each phone given a
  code is learnt on English training clips and judged on held-out ones, so it is a lower bound and rewards no
  memorising; phones come from PocketSphinx's forced alignment, pauses left out;
- phones right: share of held-out frames where the likeliest phone of the code is the one that is spoken.

    python recipes/speech_demo/measure.py --work /somewhere/big [--compare]

`--compare` fits codebooks for other layers, sizes and scalings instead, on the English clips alone and a few rounds
each: why it is layer 2.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import sentencepiece
import torch
from codebook import SEED, Space, assign, fit, space_of, states_of
from phones import SILENCE, Aligner
from torch import Tensor

from sources import ASTERISK, RECIPES, Clip, clips
from woodshed.encoders.speech.whisper import load_layers
from woodshed.encoders.speech.whisper_weights import encoder_tensors, find_weights, load_codebook

ASSETS = RECIPES.parent / "src/woodshed/assets"
SMOOTHING = 5.0
"""Frames of the general mix of phones that are added to what was seen under each code."""
COMPARED = (
    [(layer, 100, True) for layer in (1, 2, 3, 4)] + [(layer, 1024, True) for layer in (1, 2, 3, 4)]
    + [(2, 512, True), (2, 100, False), (2, 1024, False)]
)  # fmt: skip
COMPARED_ROUNDS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """How a set of clips uses a codebook."""

    frames: int
    used: float
    perplexity: float
    explained: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Phones:
    """What codes tell about phones."""

    frames_learnt: int
    frames_judged: int
    information: float
    right: float


def usage(points: Tensor, entries: Tensor) -> Usage:
    near, distance = assign(points, entries)
    share = torch.bincount(near, minlength=len(entries)) / len(near)
    entropy = -(share[share > 0] * share[share > 0].log2()).sum()
    spread = (points - points.mean(dim=0)).square().sum(dim=1).mean()
    return Usage(
        frames=len(near),
        used=float((share > 0).float().mean()),
        perplexity=float(2**entropy),
        explained=float(1 - distance.mean() / spread),
    )


def phone_information(learnt: Sequence[tuple[Tensor, list[str]]], judged: Sequence[tuple[Tensor, list[str]]],
                      size: int) -> Phones:  # fmt: skip
    """Codes and phones of clips, frame by frame, to what codes tell."""
    names = sorted({name for _, labels in [*learnt, *judged] for name in labels} - {SILENCE})
    index = {name: number for number, name in enumerate(names)}

    def spoken(pairs: Sequence[tuple[Tensor, list[str]]]) -> tuple[Tensor, Tensor]:
        both = [
            (int(c), index[n]) for codes, labels in pairs for c, n in zip(codes, labels, strict=False) if n in index
        ]
        codes, phones = torch.tensor(both).T
        return codes, phones

    codes, phones = spoken(learnt)
    counts = torch.zeros(size, len(names)).index_put_((codes, phones), torch.ones(len(codes)), accumulate=True)
    prior = (counts.sum(dim=0) + 1) / (counts.sum() + len(names))
    chances = (counts + SMOOTHING * prior) / (counts.sum(dim=1, keepdim=True) + SMOOTHING)
    new_codes, new_phones = spoken(judged)
    told, untold = chances[new_codes, new_phones].log2().mean(), prior[new_phones].log2().mean()
    right = (chances[new_codes].argmax(dim=1) == new_phones).float().mean()
    return Phones(
        frames_learnt=len(codes),
        frames_judged=len(new_codes),
        information=float(1 - told / untold),
        right=float(right),
    )


class Speech:
    """All clips with the phones of the English ones; states are computed layer by layer."""

    def __init__(self, work: Path, *, languages: Collection[str]) -> None:
        self.clips = [clip for clip in clips(work) if clip.language in languages]
        aligner = Aligner()
        self.labels = [aligner.phones(clip) if clip.language == "en" else None for clip in self.clips]

    def states(self, layer: int) -> list[Tensor]:
        return states_of(load_layers(encoder_tensors(find_weights(None), num_layers=layer)), self.clips)

    def of(self, split: str, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part for part, clip in zip(parts, self.clips, strict=True) if clip.split == split])

    def phones(self, parts: Sequence[Tensor], entries: Tensor) -> Phones:
        pairs: dict[bool, list[tuple[Tensor, list[str]]]] = defaultdict(list)
        for part, clip, labels in zip(parts, self.clips, self.labels, strict=True):
            if labels is not None:
                pairs[clip.split == "train"].append((assign(part, entries)[0], labels))
        return phone_information(pairs[True], pairs[False], len(entries))


def measure(speech: Speech) -> dict[str, object]:
    """The codebook that ships."""
    book = load_codebook(ASSETS / "whisper-tiny-en-codebook.safetensors")
    space = Space(mean=book.mean, scale=book.scale)
    parts = [space.of(part) for part in speech.states(book.layer)]
    splits = {split: asdict(usage(speech.of(split, parts), book.entries)) for split in ("train", "held_out", "demo")}
    return {**splits, "phones": asdict(speech.phones(parts, book.entries))}


def compare(speech: Speech) -> dict[str, object]:
    """Other layers, sizes and scalings."""
    results: dict[str, object] = {}
    states: dict[int, list[Tensor]] = {}
    for layer, size, is_scaled in COMPARED:
        if layer not in states:
            states = {layer: speech.states(layer)}
        train = speech.of("train", states[layer])
        width = train.shape[1]
        space = space_of(train) if is_scaled else Space(mean=train.mean(dim=0), scale=torch.ones(width))
        parts = [space.of(part) for part in states[layer]]
        entries = fit(speech.of("train", parts), size=size, seed=SEED, rounds=COMPARED_ROUNDS)
        name = f"layer {layer}, {size} codes, {'scaled' if is_scaled else 'as they are'}"
        results[name] = asdict(speech.phones(parts, entries)) | asdict(usage(speech.of("held_out", parts), entries))
        print(f"{name}: {results[name]}", flush=True)
    return results


def tokens(held_out: Sequence[Clip]) -> dict[str, object]:
    """The tokenizer on texts that it has not seen."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(ASSETS / "speech-demo-bpe.model"))
    texts = [clip.text.upper() for clip in held_out if clip.text]
    ids = [model.encode(text) for text in texts]
    num_tokens, num_words = sum(map(len, ids)), sum(len(text.split()) for text in texts)
    return {
        "texts": len(texts),
        "words": num_words,
        "tokens per word": num_tokens / num_words,
        "unknown share": sum(i == model.unk_id() for row in ids for i in row) / num_tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--to", type=Path, help="also write the numbers here, as JSON")
    args = parser.parse_args()
    speech = Speech(args.work, languages=["en"] if args.compare else [*ASTERISK])
    if args.compare:
        results = compare(speech)
    else:
        demo = [clip for clip in speech.clips if clip.split == "demo"]
        results = measure(speech) | {"tokenizer on the demo's texts": tokens(demo)}
    print(json.dumps(results, indent=1))
    if args.to:
        args.to.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
