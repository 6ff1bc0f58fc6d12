"""Cut the demo sounds that ship with Woodshed; all of them were kept out of the training of woodshed-tiny.

python recipes/woodshed_tiny/demo.py --work /somewhere/big --to src/woodshed/assets/demo
"""

from __future__ import annotations

import argparse
import gzip
import re
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from data import PACKAGES, download, read_channels
from numpy.typing import NDArray

PROMPTS = (
    "agent-incorrect",
    "conf-getconfno",
    "conf-onlyperson",
    "dictate/record_help",
    "demo-thanks",
    "followme/sorry",
    "pm-invalid-option",
    "queue-youarenext",
)
LIBRIVOX = ("0870", "0890", "0930")
SPEECH_KBITS, MUSIC_KBITS = 40, 112
MUSIC = (
    ("feelings-band", "Feelings", ("song",), 60.0, "Rock song 'Feelings': the band without the lead guitar."),
    ("feelings-guitar", "Feelings", ("guitar",), 60.0, "Rock song 'Feelings': the guitar alone, same place."),
    ("feelings-full", "Feelings", ("song", "guitar"), 200.0, "Rock song 'Feelings': full band with guitar."),
    ("war-of-freedom-full", "War of freedom", ("song", "guitar"), 60.0, "Rock song 'War of freedom': full band."),
)  # fmt: skip
MUSIC_S = 10.0


def write_opus(samples: NDArray[np.float32], path: Path, *, rate_hz: int, kbits: int) -> None:
    """`[channel, time]` to an Opus file at 48 kHz."""
    wide = np.stack([soxr.resample(channel, rate_hz, 48_000, quality="VHQ") for channel in samples])
    wide = np.ascontiguousarray(wide.clip(-1, 1), dtype=np.float32)
    with av.open(str(path), "w", format="opus", options={"fflags": "+bitexact"}) as container:
        layout = "mono" if len(wide) == 1 else "stereo"
        stream = container.add_stream("libopus", rate=48_000, layout=layout)
        stream.bit_rate = kbits * 1000
        for start in range(0, wide.shape[1], 960):
            block = np.ascontiguousarray(wide[:, start : start + 960].T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
            frame.sample_rate, frame.pts = 48_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def speech(raw: Path, target: Path) -> None:
    """Prompts and read sentences, each with its text beside it."""
    (listing,) = raw.rglob("core-sounds-en.txt.gz")
    lines = gzip.decompress(listing.read_bytes()).decode().splitlines()
    texts = {name: text.strip() for name, _, text in (line.partition(":") for line in lines if line[:1] != ";")}
    for name in PROMPTS:
        (path,) = (raw / "asterisk-core-sounds-en-g722").rglob(f"{name}.g722")
        samples, rate_hz = read_channels(path)
        save(target / f"prompt-{name.replace('/', '-')}", samples, texts[name], rate_hz=rate_hz, kbits=SPEECH_KBITS)
    folder = next((raw / "pocketsphinx-testdata").rglob("librivox"))
    sentences = {
        m[2]: m[1] for m in re.finditer(r"<s> (.*?) </s> \(.*-(\d+)\)", (folder / "transcription").read_text())
    }
    for number in LIBRIVOX:
        (path,) = folder.glob(f"*-{number}.wav")
        samples, rate_hz = read_channels(path)
        save(target / f"austen-{number}", samples, sentences[number], rate_hz=rate_hz, kbits=SPEECH_KBITS)


def music(raw: Path, target: Path) -> None:
    """Ten seconds each, stereo, with short fades."""
    for name, song, stems, start_s, caption in MUSIC:
        parts = []
        for stem in stems:
            (path,) = (raw / "fretsonfire-songs-sectoid").rglob(f"{song}/{stem}.ogg")
            with soundfile.SoundFile(path) as file:
                rate_hz = file.samplerate
                file.seek(int(start_s * rate_hz))
                parts.append(file.read(int(MUSIC_S * rate_hz), dtype="float32", always_2d=True).T)
        mixed = np.sum(parts, axis=0)
        fade = np.minimum(np.arange(mixed.shape[1]), np.arange(mixed.shape[1])[::-1]) / (0.02 * rate_hz)
        mixed *= np.minimum(fade, 1) / max(1.0, float(np.abs(mixed).max()) / 0.98)
        save(target / name, mixed, caption, rate_hz=rate_hz, kbits=MUSIC_KBITS)


def save(stem: Path, samples: NDArray[np.float32], caption: str, *, rate_hz: int, kbits: int) -> None:
    write_opus(samples, stem.with_suffix(".opus"), rate_hz=rate_hz, kbits=kbits)
    stem.with_suffix(".txt").write_text(caption + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if package.name in (
            "asterisk-core-sounds-en",
            "asterisk-core-sounds-en-g722",
            "pocketsphinx-testdata",
            "fretsonfire-songs-sectoid",
        ):
            download(package, args.work / "deb", args.work / "raw")
    speech(args.work / "raw", args.to)
    music(args.work / "raw", args.to)


if __name__ == "__main__":
    main()
