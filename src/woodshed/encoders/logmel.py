"""Log-mel spectra, with every parameter in the open; equal to librosa's for the same parameters.

One record per clip: `mel`, a matrix of (mel, frame). Frames see their own window of samples and nothing else, so clips
are computed in chunks that stream past, and a long file needs no more memory than a short one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from woodshed.audio.channels import is_silent
from woodshed.audio.clip import stream
from woodshed.audio.decode import DecodeLimits
from woodshed.audio.resample import ResamplerName, resampled_length
from woodshed.contracts import Arrays, ArraySpec, AudioInfo, Example, Item, Json, Outline, Piece, Record, RecordSpec
from woodshed.encoders.spans import cut_spans
from woodshed.errors import AudioError, ItemError, UsageError

PREPROCESSING_VERSION = 1
"""Raised whenever the same source would give other numbers."""
CHUNK_S = 20.0
"""Audio per piece: large enough to keep a device busy, small enough for any memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogMelConfig:
    """What a log-mel spectrum is. Audio is mixed down to one channel first."""

    rate_hz: int = 24_000
    """Sample rate the audio is brought to first."""
    n_fft: int = 1024
    """Length of the Fourier transform, in samples."""
    hop_samples: int = 256
    """Distance between frames: 256 at 24 kHz is 10.7 ms."""
    win_samples: int | None = None
    """Length of the periodic Hann window, centred in the transform. None: `n_fft`."""
    num_mels: int = 80
    """Bands."""
    fmin_hz: float = 0.0
    """Where the lowest band starts."""
    fmax_hz: float | None = None
    """Where the highest band ends. None: half the rate."""
    scale: Literal["slaney", "htk"] = "slaney"
    """Mel scale: slaney is linear below 1 kHz, htk is 2595 log10(1 + f / 700) throughout."""
    norm: Literal["slaney"] | None = "slaney"
    """slaney: each triangle has unit area. None: each has height 1."""
    center: bool = True
    """True: frame t is centred on sample t * hop, and the clip is padded by n_fft // 2 on both sides. False: frames lie
    inside the clip, and samples behind the last whole frame are not seen."""
    pad_mode: Literal["constant", "reflect", "edge"] = "constant"
    """What centred frames see past the ends of the clip: zeros, its mirror image, or its last sample."""
    power: float = 2.0
    """Exponent of the magnitude before the bands are summed: 2 for power, 1 for amplitude."""
    log: Literal["log", "log10", "log1p", "db", "none"] = "log"
    """log and log10 of max(x, floor); log1p of x; db: decibels over `ref`, of max(x, floor); none: x as it is. There is
    no top_db: a floor that depends on the loudest frame would make every frame depend on all others."""
    floor: float = 1e-10
    """Smallest value before the logarithm."""
    ref: float = 1.0
    """The value that is 0 dB."""

    def __post_init__(self) -> None:
        if min(self.rate_hz, self.n_fft, self.hop_samples, self.num_mels) < 1:
            raise UsageError("rate_hz, n_fft, hop_samples and num_mels of a log-mel spectrum must be 1 or more")
        if self.win_samples is not None and not 1 <= self.win_samples <= self.n_fft:
            raise UsageError(
                f"win_samples={self.win_samples} does not fit into n_fft={self.n_fft}",
                hint=f"lower win_samples or raise n_fft to {self.win_samples}",
            )
        if not 0 <= self.fmin_hz < self.top_hz <= self.rate_hz / 2:
            raise UsageError(
                f"fmin_hz={self.fmin_hz:g}, fmax_hz={self.top_hz:g} is no range within 0 to {self.rate_hz / 2:g} Hz",
                hint=f"at {self.rate_hz} Hz, fmax_hz is at most {self.rate_hz / 2:g}",
            )
        if min(self.power, self.floor, self.ref) <= 0:
            raise UsageError("power, floor and ref of a log-mel spectrum must be greater than 0")

    @property
    def top_hz(self) -> float:
        return self.rate_hz / 2 if self.fmax_hz is None else self.fmax_hz

    @property
    def margin_samples(self) -> int:
        """Padding on each side."""
        return self.n_fft // 2 if self.center else 0

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip; 0 when it is shorter than one frame that may not reach past its ends.

        >>> LogMelConfig().num_frames(24_000), LogMelConfig(center=False).num_frames(1000)
        (94, 0)
        """
        return max(0, (num_samples + 2 * self.margin_samples - self.n_fft) // self.hop_samples + 1)


class LogMel:
    """`woodshed.contracts.Encoder` for log-mel spectra; computes in float64 where the device can.

    Args:
        device: torch device.
        chunk_s: audio per piece; changes memory and speed, not the result.
    """

    def __init__(
        self,
        config: LogMelConfig | None = None,
        *,
        device: str = "cpu",
        resampler: ResamplerName = "soxr",
        limits: DecodeLimits | None = None,
        chunk_s: float = CHUNK_S,
    ) -> None:
        self.config = config or LogMelConfig()
        self._device = torch.device(device)
        # In float32 the rounding of a loud bin hides bins 80 dB below it; Apple GPUs know nothing else.
        self._dtype = torch.float32 if self._device.type == "mps" else torch.float64
        self._window = hann_window(self.config).to(self._device, self._dtype)
        self._bands = mel_bands(self.config).to(self._device, self._dtype)
        self._resampler: ResamplerName = resampler
        self._limits = limits or DecodeLimits()
        self._chunk_frames = max(1, round(chunk_s * self.config.rate_hz / self.config.hop_samples))

    @property
    def spec(self) -> RecordSpec:
        mel = ArraySpec(axes=("mel", "frame"), dtype="float32", bytes_per_frame=4 * self.config.num_mels)
        return RecordSpec(
            kind="features",
            main="mel",
            arrays={"mel": mel},
            rate_hz=self.config.rate_hz,
            hop_samples=self.config.hop_samples,
            audio_channels=1,
        )

    @property
    def fingerprint(self) -> Mapping[str, Json]:
        precision = str(self._dtype).removeprefix("torch.")
        return {
            "model": {"architecture": "logmel", "config": asdict(self.config), "precision": precision},
            "preprocessing": {"version": PREPROCESSING_VERSION, "resampler": self._resampler},
        }

    def outline(self, item: Item) -> Outline:
        pieces = tuple(
            Piece(key=f"{frames} frames", cost_s=frames * self.config.hop_samples / self.config.rate_hz)
            for _, frames in self._chunks(item)
        )
        return Outline(pieces=pieces, num_records=1)

    def prepare(self, item: Item) -> Iterator[Example]:
        config, audio = self.config, _audio(item)
        blocks = stream(
            item.path,
            audio,
            rate_hz=config.rate_hz,
            num_channels=1,
            resampler=self._resampler,
            limits=self._limits,
        )
        spans = [
            (first * config.hop_samples, (first + frames - 1) * config.hop_samples + config.n_fft)
            for first, frames in self._chunks(item)
        ]
        padded = pad_stream(blocks, margin=config.margin_samples, mode=config.pad_mode)
        for index, samples in enumerate(cut_spans(padded, spans, num_channels=1)):
            peak = np.abs(samples).max(keepdims=True)
            yield Example(item_id=item.id, index=index, arrays={"audio": samples[0], "peak": peak})

    def encode(self, batch: Sequence[Example]) -> list[Arrays]:
        audio = torch.from_numpy(np.stack([example.arrays["audio"] for example in batch]))
        mels = self.compute(audio.to(self._device)).float().cpu().numpy()
        return [{"mel": mel, "peak": example.arrays["peak"]} for mel, example in zip(mels, batch, strict=True)]

    def joiner(self, item: Item) -> _Joiner:
        num_samples = self._num_samples(item)
        return _Joiner(len(self._chunks(item)), num_samples=num_samples, num_frames=self.config.num_frames(num_samples))

    @torch.inference_mode()
    def compute(self, audio: Float[Tensor, "batch time"]) -> Float[Tensor, "batch mel frame"]:
        """Spectra of samples that are padded already: one frame for each `hop_samples` where `n_fft` fit."""
        config = self.config
        frames = audio.to(self._dtype).unfold(-1, config.n_fft, config.hop_samples) * self._window
        energy = torch.fft.rfft(frames).abs().pow(config.power) @ self._bands.T
        return compress(energy, config).transpose(1, 2)

    def _num_samples(self, item: Item) -> int:
        audio = _audio(item)
        return resampled_length(audio.num_samples, audio.rate_hz, self.config.rate_hz)

    def _chunks(self, item: Item) -> list[tuple[int, int]]:
        """First frame and number of frames of each piece; the last is filled up, so that few shapes occur."""
        num_samples = self._num_samples(item)
        total = self.config.num_frames(num_samples)
        if num_samples < 1:
            raise AudioError(f"{item.relpath} holds no samples", kind="empty")
        if total < 1:
            raise ItemError(
                f"{item.relpath} has {num_samples} samples, fewer than one frame of {self.config.n_fft}",
                kind="too_short",
                hint="center=True pads short clips",
            )
        starts = range(0, total, self._chunk_frames)
        return [(start, min(self._chunk_frames, _bucket(total - start))) for start in starts]


class _Joiner:
    """The frames of the chunks of one clip, put together."""

    def __init__(self, num_parts: int, *, num_samples: int, num_frames: int) -> None:
        self._missing, self._num_samples, self._num_frames = num_parts, num_samples, num_frames
        self._mels: list[np.ndarray] = []
        self._peak = 0.0

    def add(self, part: Arrays) -> list[Record]:
        self._missing -= 1
        self._mels.append(part["mel"])
        self._peak = max(self._peak, float(part["peak"].max()))
        if self._missing:
            return []
        mel = np.ascontiguousarray(np.concatenate(self._mels, axis=1)[:, : self._num_frames])
        meta = {
            "index": 0,
            "start_sample": 0,
            "num_samples": self._num_samples,
            "num_frames": self._num_frames,
            "valid_frames": self._num_frames,
            "silent": is_silent(self._peak),
        }
        return [Record(arrays={"mel": mel}, meta=meta)]


def hann_window(config: LogMelConfig) -> Float[Tensor, " n_fft"]:
    """Periodic Hann window of `win_samples`, with zeros around it up to `n_fft`."""
    length = config.win_samples or config.n_fft
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(length, dtype=torch.float64) / length)
    left = (config.n_fft - length) // 2
    return torch.nn.functional.pad(window, (left, config.n_fft - length - left))


def mel_bands(config: LogMelConfig) -> Float[Tensor, "mel bin"]:
    """Triangles over the bins, equally wide in mels.

    A band narrower than a bin may hold none: it stays at the floor, as in librosa.
    """
    bins = torch.arange(config.n_fft // 2 + 1, dtype=torch.float64) * config.rate_hz / config.n_fft
    low, high = (float(hz_to_mel(np.float64(hz), config.scale)) for hz in (config.fmin_hz, config.top_hz))
    edges = torch.from_numpy(mel_to_hz(np.linspace(low, high, config.num_mels + 2), config.scale))
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    bands = torch.minimum(rising, falling).clamp_min(0)
    return bands if config.norm is None else bands * 2 / (right - left)


SLANEY_HZ_PER_MEL = 200 / 3
SLANEY_BREAK_HZ = 1000.0
SLANEY_LOG_STEP = math.log(6.4) / 27
"""Above 1 kHz, 27 mels are a factor of 6.4."""


def hz_to_mel(hz: Float[np.ndarray, ...] | np.float64, scale: str) -> Float[np.ndarray, ...]:
    """Mels of frequencies.

    >>> round(float(hz_to_mel(np.float64(1000), "slaney")), 6), round(float(hz_to_mel(np.float64(1000), "htk")), 2)
    (15.0, 999.99)
    """
    if scale == "htk":
        return np.asarray(2595 * np.log10(1 + hz / 700))
    above = SLANEY_BREAK_HZ / SLANEY_HZ_PER_MEL + np.log(np.maximum(hz, 1e-9) / SLANEY_BREAK_HZ) / SLANEY_LOG_STEP
    return np.where(hz < SLANEY_BREAK_HZ, hz / SLANEY_HZ_PER_MEL, above)


def mel_to_hz(mel: Float[np.ndarray, ...], scale: str) -> Float[np.ndarray, ...]:
    """Frequencies of mels.

    >>> round(float(mel_to_hz(np.array(15.0), "slaney")), 6)
    1000.0
    """
    if scale == "htk":
        return np.asarray(700 * (10 ** (mel / 2595) - 1))
    knee = SLANEY_BREAK_HZ / SLANEY_HZ_PER_MEL
    above = SLANEY_BREAK_HZ * np.exp(SLANEY_LOG_STEP * (mel - knee))
    return np.where(mel < knee, mel * SLANEY_HZ_PER_MEL, above)


def compress(energy: Float[Tensor, "*axes"], config: LogMelConfig) -> Float[Tensor, "*axes"]:
    """The logarithm that the config asks for."""
    floored = energy.clamp_min(config.floor)
    match config.log:
        case "log":
            return floored.log()
        case "log10":
            return floored.log10()
        case "log1p":
            return energy.log1p()
        case "db":
            # Decibels are ten times the logarithm of a power: the exponent tells how far `energy` is from one.
            return 20 / config.power * (floored / config.ref).log10()
        case "none":
            return energy


def pad_stream(
    blocks: Iterator[Float[np.ndarray, "1 _"]], *, margin: int, mode: Literal["constant", "reflect", "edge"]
) -> Iterator[Float[np.ndarray, "1 _"]]:
    """The same samples with `margin` more on each side, as `np.pad` gives them, in constant memory."""
    tail = np.zeros((1, 0), np.float32)
    started = False
    for block in blocks:
        tail = np.concatenate([tail, block], axis=1)
        if started:
            yield block
        elif tail.shape[1] > margin:
            yield np.pad(tail, ((0, 0), (margin, 0)), mode=mode)
            started = True
        else:
            continue
        tail = tail[:, -(margin + 1) :].copy()
    if not started and tail.shape[1]:
        yield np.pad(tail, ((0, 0), (margin, margin)), mode=mode)
    elif started and margin:
        yield np.pad(tail, ((0, 0), (0, margin)), mode=mode)[:, -margin:]


def _bucket(frames: int) -> int:
    """Rounded up to three leading bits: at most a quarter more, and few different values.

    >>> [_bucket(frames) for frames in (1, 5, 9, 100, 1000)]
    [1, 5, 10, 112, 1024]
    """
    step = 1 << max(0, frames.bit_length() - 3)
    return -(-frames // step) * step


def _audio(item: Item) -> AudioInfo:
    if item.audio is None:
        raise ValueError(f"item {item.id!r} was not probed")
    return item.audio
