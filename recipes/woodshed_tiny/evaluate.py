"""Measure woodshed-tiny on sounds it was not trained on, per package, through the latents and through the codebooks.

python recipes/woodshed_tiny/evaluate.py --work /somewhere/big --to results.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from data import RATE_HZ, Clip, load_clips
from numpy.typing import NDArray

from woodshed.audio.distance import log_mel_distance_db, si_sdr_db
from woodshed.encoders.tiny import TinyCodec, load_tiny_codec, load_woodshed_tiny

EXCERPT_S = 6.0
MAX_PER_FILE = 5
MAX_PER_PACKAGE = 40


def excerpts(clips: list[tuple[Clip, NDArray[np.int16]]]) -> dict[tuple[str, str, str], list[NDArray[np.float32]]]:
    """Up to 40 excerpts of at most 6 s per package, evenly spread; without near-silent ones and files under 1 s."""
    found: dict[tuple[str, str, str], list[NDArray[np.float32]]] = {}
    for clip, samples in clips:
        if clip.split == "train":
            continue
        length = min(int(EXCERPT_S * RATE_HZ), len(samples)) // 480 * 480
        if length < RATE_HZ:
            continue
        count = max(1, min(MAX_PER_FILE, len(samples) // (2 * length)))
        for start in np.linspace(0, len(samples) - length, count + 2)[1:-1].astype(int):
            piece = samples[start : start + length].astype(np.float32) / 32768
            if np.sqrt(np.mean(piece**2)) > 10 ** (-50 / 20):
                found.setdefault((clip.kind, clip.split, set_name(clip)), []).append(piece)
    return {
        key: [
            pieces[i] for i in np.unique(np.linspace(0, len(pieces) - 1, min(len(pieces), MAX_PER_PACKAGE)).astype(int))
        ]
        for key, pieces in sorted(found.items())
    }


def set_name(clip: Clip) -> str:
    """The package; its read sentences and its noisy headset recordings are told apart in one case."""
    if clip.package == "pocketsphinx-testdata":
        return f"{clip.package}, {'LibriVox' if 'librivox' in clip.file else 'commands and digits'}"
    return clip.package


@torch.no_grad()
def measure(codec: TinyCodec, pieces: list[NDArray[np.float32]], codes_seen: list[torch.Tensor]) -> dict[str, float]:
    """Mean SI-SDR and log-mel error of the latents, of all codebooks and of half of them."""
    columns: dict[str, list[float]] = {}
    for piece in pieces:
        latents = codec.encode(torch.from_numpy(piece)[None, None])
        codes = codec.quantize(latents)
        codes_seen.append(codes[0])
        ways = {
            "latents": latents,
            "codes": codec.dequantize(codes),
            "half": codec.dequantize(codes[:, : codes.shape[1] // 2]),
        }
        for way, z in ways.items():
            got = codec.decode(z)[0, 0].numpy()
            columns.setdefault(f"{way}_si_sdr_db", []).append(si_sdr_db(piece, got))
            columns.setdefault(f"{way}_log_mel_db", []).append(log_mel_distance_db(piece, got, rate_hz=RATE_HZ))
    return {"excerpts": len(pieces)} | {name: round(float(np.mean(values)), 2) for name, values in columns.items()}


def usage(codes: torch.Tensor, *, size: int) -> list[dict[str, float]]:
    """Per codebook: share of entries used at least once, and bits of entropy."""
    rows = []
    for row in codes:
        counts = torch.bincount(row, minlength=size).double()
        shares = counts[counts > 0] / counts.sum()
        bits = float(-(shares * shares.log2()).sum())
        rows.append({"used": round(float((counts > 0).double().mean()), 3), "bits": round(bits, 2)})
    return rows


@torch.no_grad()
def speed(codec: TinyCodec, *, seconds: int = 30, repeats: int = 5) -> dict[str, float]:
    """Times real time of encode and decode on one core (processor time of one thread), best of three."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    audio = torch.randn(1, 1, seconds * RATE_HZ) * 0.1
    latents = codec.encode(audio)
    best = {"encode": math.inf, "decode": math.inf}
    for _ in range(repeats):
        for name, call in (("encode", lambda: codec.encode(audio)), ("decode", lambda: codec.decode(latents))):
            start = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - start)
    torch.set_num_threads(threads)
    return {name: round(seconds / value) for name, value in best.items()}


def table(rows: dict[tuple[str, str, str], dict[str, float]]) -> str:
    """Markdown."""
    lines = [
        "| kind | split | package | excerpts | latents SI-SDR / log-mel | 12 codebooks | 6 codebooks |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (kind, split, package), row in rows.items():
        cells = [
            f"{row[f'{way}_si_sdr_db']:.1f} / {row[f'{way}_log_mel_db']:.2f}" for way in ("latents", "codes", "half")
        ]
        lines.append(
            f"| {kind} | {split.replace('_', ' ')} | {package} | {row['excerpts']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="a safetensors file; default: the one in the package")
    parser.add_argument("--to", type=Path, help="where to write all numbers as JSON")
    args = parser.parse_args()
    codec = load_tiny_codec(args.weights) if args.weights else load_woodshed_tiny()
    codes_seen: list[torch.Tensor] = []
    groups = excerpts(load_clips(args.work))
    rows = {key: measure(codec, pieces, codes_seen) for key, pieces in groups.items()}
    print(table(rows))
    numbers = {
        "packages": {"/".join(key): row for key, row in rows.items()},
        "codebooks": usage(torch.cat(codes_seen, dim=1), size=codec.config.codebook_size),
        "times_real_time_one_thread": speed(codec),
        "parameters": sum(p.numel() for p in codec.parameters()),
    }
    print(json.dumps({key: numbers[key] for key in ("codebooks", "times_real_time_one_thread", "parameters")}))
    if args.to:
        args.to.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
