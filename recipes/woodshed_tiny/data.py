"""Fetch the source packages of woodshed-tiny and turn them into 24 kHz mono int16 arrays with a fixed split.

Every package stands in `PACKAGES` with its licence; those marked `never_train` are used for measuring only.
The split is decided by file, not by clip, from a digest of the file's name, so it is the same on every machine.

    python recipes/woodshed_tiny/data.py --work /somewhere/big
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr

RATE_HZ = 24_000
HELD_OUT_SECTOID = ("Feelings", "War of freedom")
"""Two whole songs (all their stems) of the most permissively licensed music stay out: the demo clips come from them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """One source package."""

    name: str
    kind: Literal["speech", "music", "hits", "text"]
    licence: str
    source: Literal["apt", "pip"] = "apt"
    held_out_share: float = 0.1
    """Share of the files that is kept out of training."""
    never_train: bool = False


PACKAGES = (
    Package(name="asterisk-core-sounds-en-g722", kind="speech", licence="CC BY-SA 3.0", held_out_share=0.25),
    Package(name="asterisk-core-sounds-en", kind="text", licence="CC BY-SA 3.0"),
    Package(name="asterisk-core-sounds-es-g722", kind="speech", licence="CC BY-SA 3.0"),
    Package(name="asterisk-core-sounds-fr-g722", kind="speech", licence="CC BY-SA 3.0"),
    Package(name="asterisk-core-sounds-it-g722", kind="speech", licence="CC BY 3.0"),
    Package(name="asterisk-core-sounds-ru-g722", kind="speech", licence="CC BY 3.0"),
    Package(name="fretsonfire-songs-sectoid", kind="music", licence="MIT-style"),
    Package(name="fretsonfire-songs-muldjord", kind="music", licence="CC BY-SA 3.0", held_out_share=0.0),
    Package(name="singularity-music", kind="music", licence="CC BY-SA 3.0", held_out_share=0.12),
    Package(name="asterisk-moh-opsound-g722", kind="music", licence="CC BY-SA 3.0", held_out_share=0.2),
    Package(name="sonic-pi-samples", kind="hits", licence="CC0 / MIT"),
    Package(name="pocketsphinx-testdata", kind="speech", licence="BSD", never_train=True),
    Package(name="immich-memories-music", kind="music", licence="MIT", source="pip", never_train=True),
    # Copyleft sources: measured on, never trained on, never shipped.
    Package(name="wesnoth-1.16-music", kind="music", licence="GPL-2+ (measuring only)", never_train=True),
)
SUFFIXES = {".g722", ".ogg", ".opus", ".wav", ".flac", ".raw"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """Where one decoded file (one channel of it) lies in its package's array."""

    package: str
    kind: str
    file: str
    split: Literal["train", "held_out", "never_trained"]
    start: int
    num_samples: int


def download(package: Package, downloads: Path, raw: Path) -> Path:
    """Bring one package here and unpack it; a package that is already unpacked costs nothing."""
    target = raw / package.name
    if target.exists():
        return target
    downloads.mkdir(parents=True, exist_ok=True)
    pattern = f"{package.name.replace('-', '_')}-*.whl" if package.source == "pip" else f"{package.name}_*.deb"
    if not list(downloads.glob(pattern)):
        if package.source == "pip":
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", package.name]
        else:
            command = ["apt-get", "download", package.name]
        subprocess.run(command, cwd=downloads, check=True)
    (archive,) = downloads.glob(pattern)
    if package.source == "pip":
        zipfile.ZipFile(archive).extractall(target)
    else:
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    return target


def read_channels(path: Path) -> tuple[np.ndarray, int]:
    """Samples `[channel, time]` in float32 and their rate."""
    if path.suffix == ".g722":
        import av  # soundfile cannot read G.722

        with av.open(str(path), format="g722") as container:
            frames = [frame.to_ndarray().reshape(1, -1) for frame in container.decode(audio=0)]
        empty = np.zeros((1, 0), np.int16)  # one prompt is an empty file
        return np.concatenate([empty, *frames], axis=1).astype(np.float32) / 32768, 16_000
    if path.suffix == ".raw":
        return np.fromfile(path, dtype="<i2").astype(np.float32)[None] / 32768, 16_000
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.T, rate_hz


def to_rate(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Resample `[channel, time]` to 24 kHz, leaving headroom untouched."""
    if rate_hz == RATE_HZ:
        return samples
    return np.stack([soxr.resample(channel, rate_hz, RATE_HZ, quality="HQ") for channel in samples])


def split_of(package: Package, file: str) -> Literal["train", "held_out", "never_trained"]:
    """Which side of the split a file is on."""
    if package.never_train:
        return "never_trained"
    if package.name == "fretsonfire-songs-sectoid":
        return "held_out" if any(song in file for song in HELD_OUT_SECTOID) else "train"
    # Channels and stems of one recording stay together: the folder decides where there is one file per stem.
    name = str(Path(file).parent) if "fretsonfire" in package.name else file
    digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) / 2**32
    return "held_out" if digest < package.held_out_share else "train"


def song_mixes(files: list[Path]) -> dict[Path, list[Path]]:
    """Folders that hold the stems of one song, with the stems."""
    stems = defaultdict(list)
    for file in files:
        if file.name in ("song.ogg", "guitar.ogg"):
            stems[file.parent].append(file)
    return {folder: sorted(parts) for folder, parts in stems.items() if len(parts) == 2}


def prepare(package: Package, folder: Path, arrays: Path) -> list[Clip]:
    """Decode all files of a package into one int16 array and list where each lies."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink() and "/buffers/" not in str(path)
    )
    jobs = [(str(path.relative_to(folder)), [path]) for path in files]
    jobs += [(f"{parent.relative_to(folder)}/mix", parts) for parent, parts in song_mixes(files).items()]
    clips, pieces, position = [], [], 0
    for name, parts in jobs:
        decoded = [read_channels(path) for path in parts]
        rate_hz = decoded[0][1]
        samples = sum((d[0] for d in decoded[1:]), start=decoded[0][0])
        if samples.shape[1] < rate_hz // 20:
            continue
        split = split_of(package, name)
        channels = samples if split == "train" else samples.mean(0, keepdims=True)
        for index, channel in enumerate(to_rate(channels, rate_hz)):
            peak = float(np.abs(channel).max())
            if peak < 1e-3:
                continue
            piece = np.round(channel / max(peak, 1.0) * 32767).astype(np.int16)
            clips.append(
                Clip(package=package.name, kind=package.kind, file=f"{name}#{index}", split=split,
                     start=position, num_samples=len(piece))
            )  # fmt: skip
            pieces.append(piece)
            position += len(piece)
    np.save(arrays / f"{package.name}.npy", np.concatenate(pieces))
    return clips


def prepare_all(work: Path) -> None:
    """Fetch and decode every package; write `arrays/index.json` last."""
    arrays = work / "arrays"
    arrays.mkdir(parents=True, exist_ok=True)
    if (arrays / "index.json").exists():
        return
    clips: list[Clip] = []
    for package in PACKAGES:
        folder = download(package, work / "deb", work / "raw")
        if package.kind == "text":
            continue
        part = arrays / f"{package.name}.json"
        if not part.exists():
            found = prepare(package, folder, arrays)
            part.write_text(json.dumps([asdict(clip) for clip in found]))
        clips += [Clip(**fields) for fields in json.loads(part.read_text())]
        print(describe([clip for clip in clips if clip.package == package.name]), flush=True)
    (arrays / "index.json").write_text(json.dumps([asdict(clip) for clip in clips]))


def describe(clips: list[Clip]) -> str:
    """One line: minutes per split."""
    minutes: dict[str, float] = defaultdict(float)
    for clip in clips:
        minutes[clip.split] += clip.num_samples / RATE_HZ / 60
    return f"{clips[0].package}: " + ", ".join(f"{split} {value:.1f} min" for split, value in sorted(minutes.items()))


def load_clips(work: Path) -> list[tuple[Clip, np.ndarray]]:
    """All clips with their samples (memory-mapped int16)."""
    index = [Clip(**fields) for fields in json.loads((work / "arrays/index.json").read_text())]
    arrays = {name: np.load(work / f"arrays/{name}.npy", mmap_mode="r") for name in {clip.package for clip in index}}
    return [(clip, arrays[clip.package][clip.start : clip.start + clip.num_samples]) for clip in index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and arrays, about 3 GB")
    prepare_all(parser.parse_args().work)


if __name__ == "__main__":
    main()
