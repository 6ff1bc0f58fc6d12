"""Fetch the music of woodshed-tiny-dit and turn it into latents of woodshed-tiny, with a fixed split by file and a tag.

Training files are encoded several times: each channel as it is, and their mean at other speeds and levels. Held-out
files are encoded once: their first channel as it is, which is what `TinyDiT.example` looks at.

    python recipes/woodshed_tiny_dit/latents.py --work /somewhere/big
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(1, str(Path(__file__).parents[1] / "woodshed_tiny"))
from data import PACKAGES, RATE_HZ, SUFFIXES, download, read_channels, song_mixes, to_rate

from woodshed.encoders.tiny import TinyCodec, load_woodshed_tiny

HELD_OUT = {
    "fretsonfire-songs-sectoid": ("Feelings/", "War of freedom/"),
    "fretsonfire-songs-muldjord": ("armygeddon/",),
    "singularity-music": ("Advanced Simulacra.ogg", "Deprecation.ogg"),
    "asterisk-moh-opsound-g722": ("reno_project-system.g722",),
    "immich-memories-music": (
        "calm_acoustic_s522.opus",
        "energetic_electronic_s411.opus",
        "happy_acoustic_s411.opus",
        "nostalgic_electronic_s522.opus",
        "tender_acoustic_s411.opus",
        "tender_electronic_s411.opus",
    ),
    "sonic-pi-samples": (
        "drum_cymbal_closed.flac",
        "elec_cymbal.flac",
        "elec_fuzz_tom.flac",
        "loop_perc2.flac",
        "loop_safari.flac",
        "sn_zome.flac",
        "tabla_te_m.flac",
        "ambi_glass_rub.flac",
        "bass_dnb_f.flac",
        "glitch_bass_g.flac",
        "guit_em9.flac",
        "misc_crow.flac",
        "vinyl_scratch.flac",
    ),
}
"""Whole files (all stems of a song) that training never sees; the same as for woodshed-tiny, where it held any out."""
DRUM_PREFIXES = ("bd_", "drum_", "elec_", "loop_", "perc_", "sn_", "tabla_")
SPEEDS = (0.85, 0.92, 1.0, 1.08, 1.17)
"""How fast training files are also played: pitch and tempo move together, by up to three semitones."""
LEVELS_DB = (-4.0, -2.0, 0.0, -1.0, -3.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Where one encoded file lies among the latents of its split."""

    package: str
    file: str
    variant: str
    """`left`, `right`, or the mean of both at a speed such as `0.92`."""
    tag: str | None
    start: int
    num_frames: int


def tag_of(package: str, file: str) -> str | None:
    """What a file is called; None for sounds that are neither music nor drums."""
    name = Path(file).name
    if "fretsonfire" in package:
        if name == "guitar.ogg":
            return "guitar"
        return "rock" if "sectoid" in package else "metal"
    if package == "immich-memories-music":
        return name.split("_")[1]
    if package == "sonic-pi-samples":
        return "drums" if name.startswith(DRUM_PREFIXES) else None
    return {"singularity-music": "ambient", "asterisk-moh-opsound-g722": "hold music"}[package]


def is_held_out(package: str, file: str) -> bool:
    return any(name in file for name in HELD_OUT[package])


def sounds(folder: Path) -> list[tuple[str, list[Path]]]:
    """Files below a folder by name, and the stems of each song as one more sound, `mix`."""
    files = sorted(
        path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()
    )
    files = [path for path in files if "/buffers/" not in str(path)]
    mixes = [(f"{parent.relative_to(folder)}/mix", parts) for parent, parts in song_mixes(files).items()]
    return [(str(path.relative_to(folder)), [path]) for path in files] + mixes


def variants(channels: np.ndarray, *, held_out: bool) -> dict[str, np.ndarray]:
    """What is encoded of a sound `[channel, time]` at 24 kHz: name and mono samples."""
    if held_out:
        return {"left": channels[0]}
    mean = channels.mean(0)
    found = {"left": channels[0]}
    if len(channels) > 1 and float(np.abs(channels[0] - channels[1]).max()) > 1e-3:
        found["right"] = channels[1]
    for speed, level_db in zip(SPEEDS, LEVELS_DB, strict=True):
        if speed != 1.0 or len(channels) > 1:
            played = to_rate(mean[None], round(RATE_HZ * speed))[0]
            found[f"{speed:.2f}"] = played * 10 ** (level_db / 20)
    return found


@torch.no_grad()
def encode(codec: TinyCodec, samples: np.ndarray) -> np.ndarray:
    """`[frame, 64]` in half precision; the end is filled up with zeros to a whole frame."""
    hop = codec.config.hop_samples
    padded = np.pad(samples.astype(np.float32), (0, -len(samples) % hop))
    latents = codec.encode(torch.from_numpy(padded)[None, None])
    return latents[0].T.numpy().astype(np.float16)


def encode_all(work: Path) -> None:
    """Write `latents/train.npy`, `latents/held_out.npy` and, last, `latents/index.json`."""
    target = work / "latents"
    if (target / "index.json").exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    codec = load_woodshed_tiny()
    rows: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
    index: dict[str, list[dict]] = {"train": [], "held_out": []}
    for package in (package for package in PACKAGES if package.name in HELD_OUT):
        folder = download(package, work / "deb", work / "raw")
        for name, parts in sounds(folder):
            held_out = is_held_out(package.name, name)
            split = "held_out" if held_out else "train"
            decoded = [read_channels(path) for path in parts]
            mixed = sum((samples for samples, _ in decoded[1:]), start=decoded[0][0])
            channels = to_rate(mixed / max(1.0, float(np.abs(mixed).max())), decoded[0][1])
            for variant, samples in variants(channels, held_out=held_out).items():
                if len(samples) < RATE_HZ // 20 or float(np.abs(samples).max()) < 1e-3:
                    continue
                latents = encode(codec, samples)
                piece = Piece(package=package.name, file=name, variant=variant, tag=tag_of(package.name, name),
                              start=sum(map(len, rows[split])), num_frames=len(latents))  # fmt: skip
                rows[split].append(latents)
                index[split].append(asdict(piece))
        print(package.name, {split: f"{sum(map(len, parts)) / 3000:.0f} min" for split, parts in rows.items()})
    for split, parts in rows.items():
        np.save(target / f"{split}.npy", np.concatenate(parts))
    (target / "index.json").write_text(json.dumps(index, indent=1))


def load(work: Path, split: str) -> list[tuple[Piece, np.ndarray]]:
    """The pieces of `train` or `held_out`, each with its latents `[frame, 64]`, memory-mapped."""
    index = json.loads((work / "latents/index.json").read_text())[split]
    latents = np.load(work / f"latents/{split}.npy", mmap_mode="r")
    pieces = [Piece(**fields) for fields in index]
    return [(piece, latents[piece.start : piece.start + piece.num_frames]) for piece in pieces]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and latents, about 1 GB")
    encode_all(parser.parse_args().work)


if __name__ == "__main__":
    main()
