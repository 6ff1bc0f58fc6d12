"""What the original preprocessing computes, one clip at a time, written down plainly and apart from our networks.

Its resampler, front end, w2v-bert and codec are formulas of this file or transformers' own classes; nothing is batched,
masked or shared. Texts are those whose answers by the original are stored (`tests/golden/indextts2`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import sentencepiece
import soundfile
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.encoders.speech.test_conditioning import plain_condition, plain_emotion

ANSWERS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "indextts2" / "pure_functions.json").read_text(encoding="utf-8")
)
ZEROS, ROLLOFF = 6, 0.99
"""Of torchaudio's default resampler: zero crossings of the kernel on each side, and its cutoff."""
MANIFEST_KEYS = (
    "id", "audio_path", "text", "speaker", "language", "duration", "text_ids_path", "text_len",
    "codes_path", "code_len", "condition_path", "condition_len", "emo_vec_path",
)  # fmt: skip


@dataclass(frozen=True)
class PlainFeatures:
    """What is stored of one utterance."""

    text_ids: np.ndarray
    codes: np.ndarray
    condition: np.ndarray
    emo_vec: np.ndarray


@dataclass(frozen=True)
class PlainIndexTTS:
    """The models of a folder as `tests.jobs.tiny_indextts.write_models` makes it."""

    models: Path
    layer: int
    tensors: dict[str, Tensor] = field(init=False, repr=False)
    """Of the GPT."""

    def __post_init__(self) -> None:
        gpt = torch.load(self.models / "gpt.pth", weights_only=True)["model"]
        object.__setattr__(self, "tensors", gpt)

    @cached_property
    def _bert(self) -> Any:
        from transformers import Wav2Vec2BertModel

        return Wav2Vec2BertModel.from_pretrained(self.models / "hf_cache" / "w2v-bert-2.0").eval()

    @cached_property
    def _front_end(self) -> Any:
        from transformers import SeamlessM4TFeatureExtractor

        return SeamlessM4TFeatureExtractor(
            feature_size=80, num_mel_bins=80, sampling_rate=16_000, padding_value=1, stride=2
        )

    @cached_property
    def _pieces(self) -> Any:
        return sentencepiece.SentencePieceProcessor(model_file=str(self.models / "bpe.model"))

    def features(self, audio: Path, text: str, language: str, *, first_rate_hz: int = 24_000) -> PlainFeatures:
        """One run of the original at a batch size of 1."""
        wave = plain_wave(audio, first_rate_hz)
        heard, valid = self.hear(wave)
        return PlainFeatures(
            text_ids=self.text_ids(text, language),
            codes=self.codes(heard),
            condition=plain_condition(self.tensors, heard, valid).numpy(),
            emo_vec=plain_emotion(self.tensors, heard, valid).numpy(),
        )

    @torch.inference_mode()
    def hear(self, wave: np.ndarray) -> tuple[Tensor, int]:
        """Normalised semantic features [frame, 1024] of a wave at 16 kHz, and how many frames the mask shows."""
        inputs = self._front_end(wave, sampling_rate=16_000, return_tensors="pt")
        outputs = self._bert(**inputs, output_hidden_states=True)
        stats = torch.load(self.models / "wav2vec2bert_stats.pt", weights_only=True)
        features = (outputs.hidden_states[self.layer][0] - stats["mean"]) / stats["var"].sqrt()
        return features, int(inputs["attention_mask"].sum())

    @torch.inference_mode()
    def codes(self, features: Tensor, *, file: str = "hf_cache/semantic_codec_model.safetensors") -> np.ndarray:
        """RepCodec; with `codec.pth`, whose keys hold `down.*`, the codec of 2.5."""
        path = self.models / file
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["model"]
        x = features.T
        if "down.weight" in state:
            x = F.gelu(F.conv1d(x, state["down.weight"], state["down.bias"], stride=2, padding=1))
        x = plain_vocos(state, x)
        stem = "quantizer.quantizers.0"
        direction = state[f"{stem}.in_project.weight_v"]
        weight = state[f"{stem}.in_project.weight_g"] * direction / direction.norm(dim=(1, 2), keepdim=True)
        latents = F.normalize(F.conv1d(x, weight, state[f"{stem}.in_project.bias"]).T, dim=1)
        rows = F.normalize(state[f"{stem}.codebook.weight"], dim=1)
        distances = latents.square().sum(1, keepdim=True) - 2 * latents @ rows.T + rows.square().sum(1)
        found: np.ndarray = (-distances).max(dim=1).indices.numpy().astype(np.int32)
        return found

    def text_ids(self, text: str, language: str) -> np.ndarray:
        """Ids of a text whose normal form by the original is stored."""
        (row,) = (row for row in ANSWERS["normalize"]["rows"] if row["in"] == text)
        spaced = plain_cjk(row[language])
        pieces = self._pieces.encode(spaced, out_type=str)
        return np.array([self._pieces.piece_to_id(piece) for piece in pieces], np.int32)


def plain_cjk(text: str) -> str:
    """Blanks around each character of Chinese, Japanese or Korean, and capitals; by characters, without a pattern."""
    ranges = ((0x1100, 0x11FF), (0x2E80, 0xA4CF), (0xA840, 0xD7AF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F))
    ranges += ((0xFF65, 0xFFDC), (0x20000, 0x2FFFF))
    words = [""]
    for letter in text:
        if any(first <= ord(letter) <= last for first, last in ranges):
            words += [letter, ""]
        else:
            words[-1] += letter
    return " ".join(word.strip() for word in words if word.strip()).upper()


def plain_wave(audio: Path, first_rate_hz: int) -> np.ndarray:
    """A file at 16 kHz: channels averaged, brought to the first rate and then to 16 kHz."""
    samples, rate_hz = soundfile.read(audio, dtype="float32", always_2d=True)
    wave = torch.from_numpy(samples).mean(dim=1)
    return plain_resampled(plain_resampled(wave, rate_hz, first_rate_hz), first_rate_hz, 16_000).numpy()


def plain_resampled(wave: Tensor, source_hz: int, target_hz: int) -> Tensor:
    """torchaudio's default: a Hann-windowed sinc for each of the output's phases, in single precision."""
    if source_hz == target_hz:
        return wave
    divisor = math.gcd(source_hz, target_hz)
    source, target = source_hz // divisor, target_hz // divisor
    cutoff = min(source, target) * ROLLOFF
    reach = math.ceil(ZEROS * source / cutoff)
    taps = torch.arange(-reach, reach + source, dtype=torch.float32) / source
    phases = torch.arange(target, dtype=torch.float32)[:, None] / target
    place = ((taps - phases) * cutoff).clamp(-ZEROS, ZEROS)
    kernels = torch.sinc(place) * torch.cos(place * math.pi / ZEROS / 2) ** 2 * (cutoff / source)
    padded = F.pad(wave, (reach, reach + source))
    made = F.conv1d(padded[None, None], kernels[:, None], stride=source)[0]
    return made.T.reshape(-1)[: math.ceil(target * len(wave) / source)]


def plain_vocos(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The codec's encoder on one clip, [channel, frame]."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x.T, x.shape[:1], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6).T

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x.T, state[f"{name}.weight"], state[f"{name}.bias"]).T

    x = F.conv1d(x, state["encoder.0.embed.weight"], state["encoder.0.embed.bias"], padding=3)
    x = norm("encoder.0.norm", x)
    for block in range(len({key.split(".")[3] for key in state if key.startswith("encoder.0.convnext.")})):
        at = f"encoder.0.convnext.{block}"
        y = F.conv1d(x, state[f"{at}.dwconv.weight"], state[f"{at}.dwconv.bias"], padding=3, groups=len(x))
        y = linear(f"{at}.pwconv2", F.gelu(linear(f"{at}.pwconv1", norm(f"{at}.norm", y))))
        x = x + state[f"{at}.gamma"][:, None] * y
    return linear("encoder.1", norm("encoder.0.final_layer_norm", x))


def plain_is_validation(row_id: str, ratio: float) -> bool:
    """The original's split."""
    share = int(hashlib.sha1(row_id.encode()).hexdigest(), 16) % 1_000_000 / 1_000_000
    return ratio >= 1 or (ratio > 0 and share < ratio)


def plain_row(given: Mapping[str, Any], features: PlainFeatures) -> dict[str, Any]:
    """A row of the original's manifest, for an id that may be a file name."""
    name = str(given["id"])
    values = (
        name, PurePath(given["audio"]).as_posix().lstrip("./"), given["text"], given.get("speaker", ""),
        given.get("language", ""), given.get("duration"), f"text_ids/{name}.npy", len(features.text_ids),
        f"codes/{name}.npy", len(features.codes), f"condition/{name}.npy", len(features.condition),
        f"emo_vec/{name}.npy",
    )  # fmt: skip
    return dict(zip(MANIFEST_KEYS, values, strict=True))
