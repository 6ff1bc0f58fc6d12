"""What the demo's codebook and tokenizer are made of: Asterisk prompts in five languages, LibriVox sentences.

Packages, downloads and the split by file are those of `recipes/woodshed_tiny/data.py`, so whatever was kept out there
is kept out here: the sounds of `woodshed demo` belong to no training set of either recipe.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from numpy.typing import NDArray
from wetext import Normalizer

RECIPES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(RECIPES / "woodshed_tiny"))
from data import PACKAGES, Package, download, read_channels, split_of  # noqa: E402 (found by the line above)

RATE_HZ = 16_000
LONGEST_S = 30
"""Whisper hears no more at once: longer clips are cut."""
SHORTEST_S = 0.1
ASTERISK = {
    "en": "asterisk-core-sounds-en-g722",
    "es": "asterisk-core-sounds-es-g722",
    "fr": "asterisk-core-sounds-fr-g722",
    "it": "asterisk-core-sounds-it-g722",
    "ru": "asterisk-core-sounds-ru-g722",
}
NOT_SPOKEN = re.compile(r"\[.*?\]|<.*?>|\(.*?\)")
Split = Literal["train", "held_out", "demo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One recording at 16 kHz, mono."""

    name: str
    language: str
    split: Split
    text: str | None
    """What is said, as it is spoken, where a transcript is at hand."""
    wave: NDArray[np.float32]


def package(name: str) -> Package:
    (found,) = (package for package in PACKAGES if package.name == name)
    return found


def folder_of(name: str, work: Path) -> Path:
    """Where a package lies unpacked."""
    return download(package(name), work / "deb", work / "raw")


def demo_names() -> set[str]:
    """Names of the demo's prompts, as in the file names of `woodshed demo`."""
    sounds = RECIPES.parent / "src/woodshed/assets/demo"
    return {path.stem.split("-", 1)[1] for path in sounds.glob("*.opus") if path.stem.startswith(("prompt-", "austen"))}


def clips(work: Path) -> Iterator[Clip]:
    """All recordings, in a fixed order."""
    texts, demo = transcripts(work), demo_names()
    for language, name in ASTERISK.items():
        folder = folder_of(name, work)
        (voice,) = (folder / "usr/share/asterisk/sounds").iterdir()
        for path in sorted(voice.rglob("*.g722")):
            prompt = str(path.relative_to(voice)).removesuffix(".g722")
            if prompt.startswith("silence/"):
                continue
            samples, _ = read_channels(path)
            split: Split = "train" if split_of(package(name), str(path.relative_to(folder))) == "train" else "held_out"
            if language == "en" and prompt.replace("/", "-") in demo:
                split = "demo"
            text = texts.get(prompt) if language == "en" else None
            yield from pieces(Clip(name=prompt, language=language, split=split, text=text, wave=samples[0]))
    folder = next(folder_of("pocketsphinx-testdata", work).rglob("librivox"))
    for path in sorted(folder.glob("*.wav")):
        samples, _ = soundfile.read(path, dtype="float32")
        number = path.stem.rsplit("-", 1)[1]
        yield Clip(name=number, language="en", split="demo" if number in demo else "held_out",
                   text=texts[number], wave=samples)  # fmt: skip


def pieces(clip: Clip) -> Iterator[Clip]:
    """A clip in parts that Whisper hears whole; only an uncut one keeps its text."""
    size = LONGEST_S * RATE_HZ
    for start in range(0, len(clip.wave), size):
        wave = clip.wave[start : start + size]
        if len(wave) >= SHORTEST_S * RATE_HZ:
            text = clip.text if len(clip.wave) <= size else None
            yield Clip(name=clip.name, language=clip.language, split=clip.split, text=text, wave=wave)


def transcripts(work: Path) -> dict[str, str]:
    """English texts as they are spoken, by the name of the prompt or the number of the LibriVox sentence."""
    (listing,) = folder_of("asterisk-core-sounds-en", work).rglob("core-sounds-en.txt.gz")
    lines = [line for line in gzip.decompress(listing.read_bytes()).decode().splitlines() if line[:1] != ";"]
    written = {name.strip(): text for name, colon, text in (line.partition(":") for line in lines) if colon}
    found = next(folder_of("pocketsphinx-testdata", work).rglob("librivox/transcription"))
    written |= {m[2]: m[1] for m in re.finditer(r"<s> (.*?) </s> \(.*-(\d+)\)", found.read_text())}
    reader = Normalizer(lang="en", operator="tn")
    bare = {name: " ".join(NOT_SPOKEN.sub(" ", text).split()) for name, text in written.items()}
    return {name: reader.normalize(text) for name, text in bare.items() if text}
