"""Token codecs of the transformers library, each with what its class leaves unsaid: axes, frames, chunks and reach.

`encodec` and `mimi` (and any other class whose `encode` gives `audio_codes` of (batch, codebook, frame)) must see a
whole clip, or a whole chunk where their config cuts audio into chunks: a `ClipNetwork`. `dac` is made of convolutions
only and sees a finite stretch: a `DacNetwork`, which `woodshed.encoders.autoencoder.FrameEncoder` drives in windows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from woodshed.contracts import Json
from woodshed.encoders.codec_loading import load_pretrained, weights_digest
from woodshed.encoders.reach import OobleckReach
from woodshed.errors import ModelError, UsageError

NOT_NUMBERS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Keys of a config that change no number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """How a class cuts audio: chunk k starts at sample `k * stride_samples`; the last one is what is left."""

    num_samples: int
    stride_samples: int

    def spans(self, num_samples: int) -> list[tuple[int, int]]:
        """Chunks of a clip.

        >>> Chunks(num_samples=100, stride_samples=99).spans(230)
        [(0, 100), (99, 199), (198, 230)]
        """
        starts = range(0, num_samples, self.stride_samples)
        return [(start, min(start + self.num_samples, num_samples)) for start in starts]


@dataclass(frozen=True, kw_only=True)
class ClipNetwork:
    """A codec that must see a whole clip, or a whole chunk: nothing shorter gives the same tokens."""

    rate_hz: int
    channels: int
    hop_samples: int
    codebook_sizes: tuple[int, ...]
    fills_frames: bool
    """True: clips are filled up with zeros to whole frames first, as the class's feature extractor does."""
    chunks: Chunks | None
    has_scales: bool
    """True: each clip (or chunk) is divided by its loudness first; decoding needs that number again."""
    fingerprint: Mapping[str, Json]
    device: torch.device
    dtype: torch.dtype
    run: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    """Audio of (batch, channel, time) to codes of (batch, codebook, frame) and scales of (batch,)."""
    run_back: Callable[[Tensor, list[Tensor | None], int], Tensor]
    """Codes of (chunk, 1, codebook, frame), scales, and frames that are missing at the end, to (1, channel, time)."""

    def num_frames(self, num_samples: int) -> int:
        """Frames of one clip, or of one chunk where audio is cut into chunks."""
        return -(-num_samples // self.hop_samples)

    @torch.inference_mode()
    def encode(
        self, audio: Float[Tensor, "batch channel time"]
    ) -> tuple[Int[Tensor, "batch codebook frame"], Float[Tensor, " batch"] | None]:
        """Tokens of clips of one length, and their scales. Raises `ModelError` if the frame law does not hold."""
        codes, scales = self.run(audio.to(self.device, self.dtype))
        expected = (len(audio), len(self.codebook_sizes), self.num_frames(audio.shape[-1]))
        if tuple(codes.shape) != expected:
            raise ModelError(f"the codec gave tokens of shape {tuple(codes.shape)}, {expected} were expected")
        return codes, scales

    @torch.inference_mode()
    def decode(
        self, arrays: Mapping[str, Shaped[np.ndarray, ...]], *, num_samples: int | None = None
    ) -> Float[np.ndarray, "channel time"]:
        """Audio of one clip.

        Args:
            arrays: `tokens` of (codebook, frame), and `scales` of (chunk,) where the network has them.
            num_samples: length of the clip; None keeps the filled-up last frame.
        """
        tokens = torch.from_numpy(arrays["tokens"].astype(np.int64)).to(self.device)
        total = tokens.shape[-1]
        per_chunk = self.num_frames(self.chunks.num_samples) if self.chunks else total
        parts = torch.split(tokens, per_chunk, dim=-1)
        missing = per_chunk - parts[-1].shape[-1]
        filled = [torch.nn.functional.pad(part, (0, per_chunk - part.shape[-1])) for part in parts]
        scales: list[Tensor | None] = [None] * len(parts)
        if self.has_scales:
            scales = [
                torch.tensor([[float(scale)]], device=self.device, dtype=self.dtype) for scale in arrays["scales"]
            ]
        audio = self.run_back(torch.stack(filled)[:, None], scales, missing)[0].float().cpu().numpy()
        return audio if num_samples is None else audio[:, :num_samples]


class DacNetwork:
    """A `FrameModel` around transformers' DacModel; clips are filled up with zeros to whole frames, as DAC does."""

    kind: Literal["latents", "tokens"] = "tokens"

    def __init__(self, model: Any, *, num_codebooks: int, fingerprint: Mapping[str, Json]) -> None:
        config = model.config
        strides = [int(stride) for stride in config.downsampling_ratios]
        self.rate_hz, self.channels, self.hop_samples = int(config.sampling_rate), 1, math.prod(strides)
        self.codebook_sizes = (int(config.codebook_size),) * num_codebooks
        self.reach_frames = OobleckReach.of_encoder(strides).frames
        self.decode_reach_frames = OobleckReach.of_decoder(strides).frames
        self.fingerprint = fingerprint
        self._model = model

    @torch.inference_mode()
    def analyse(self, audio: Float[Tensor, "batch 1 time"]) -> dict[str, Shaped[Tensor, "batch _ frame"]]:
        codes = self._model.encode(
            audio.to(self._model.device, self._model.dtype), n_quantizers=len(self.codebook_sizes)
        ).audio_codes
        return {"tokens": codes}

    @torch.inference_mode()
    def synthesise(self, frames: Mapping[str, Shaped[Tensor, "batch _ frame"]]) -> Float[Tensor, "batch 1 time"]:
        """Audio; with an odd stride it ends a few samples before the last frame does."""
        audio: Tensor = self._model.decode(audio_codes=frames["tokens"].to(self._model.device).long()).audio_values
        return audio.float()[:, None]


def load_codec(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    num_codebooks: int | None = None,
    bandwidth_kbps: float | None = None,
) -> ClipNetwork | DacNetwork:
    """Load a codec of the transformers library, strictly.

    Args:
        name: a local folder with `config.json` and weights, or a name on the Hugging Face hub.
        num_codebooks: how many codebooks to keep, from the first; None keeps all.
        bandwidth_kbps: EnCodec's name for the same choice; one of its `target_bandwidths`.

    Raises:
        UsageError: transformers is not installed, the folder does not exist, or the choice of codebooks cannot be.
        ModelError: not a codec, or its weights lack keys, have keys too many, or have other shapes.
    """
    model, kind = load_pretrained(name)
    digest = weights_digest(model.state_dict())
    model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)
    if bandwidth_kbps is not None:
        num_codebooks = _codebooks_for_bandwidth(model, kind, bandwidth_kbps, num_codebooks)
    config = json.loads(model.config.to_json_string(use_diff=False))
    fingerprint: dict[str, Json] = {
        "architecture": kind,
        "weights": digest,
        "config": {key: value for key, value in config.items() if key not in NOT_NUMBERS},
        "precision": str(dtype).removeprefix("torch."),
    }
    if kind == "dac":
        return _dac(model, num_codebooks, fingerprint)
    build = {"encodec": _encodec, "mimi": _mimi}.get(kind, _any_codec)
    return build(model, num_codebooks, fingerprint)


def _num_codebooks(wanted: int | None, *, least: int = 1, most: int) -> int:
    if wanted is None:
        return most
    if not least <= wanted <= most:
        raise UsageError(f"num_codebooks={wanted}: this codec has {least} to {most}")
    return wanted


def _codebooks_for_bandwidth(model: Any, kind: str, bandwidth_kbps: float, num_codebooks: int | None) -> int:
    if kind != "encodec":
        raise UsageError(f"bandwidth_kbps is EnCodec's; this codec is {kind!r}", hint="choose num_codebooks instead")
    if num_codebooks is not None:
        raise UsageError("num_codebooks and bandwidth_kbps are one choice, both are given", hint="give one of them")
    known = [float(value) for value in model.config.target_bandwidths]
    if bandwidth_kbps not in known:
        raise UsageError(f"bandwidth_kbps={bandwidth_kbps:g}: this codec knows {', '.join(f'{b:g}' for b in known)}")
    return int(model.quantizer.get_num_quantizers_for_bandwidth(bandwidth_kbps))


def _dac(model: Any, num_codebooks: int | None, fingerprint: dict[str, Json]) -> DacNetwork:
    count = _num_codebooks(num_codebooks, most=int(model.config.n_codebooks))
    return DacNetwork(model, num_codebooks=count, fingerprint=fingerprint | {"num_codebooks": count})


def _encodec(model: Any, num_codebooks: int | None, fingerprint: dict[str, Json]) -> ClipNetwork:
    config = model.config
    if config.chunk_length is not None and config.chunk_stride is None:
        raise ModelError("this EnCodec config has chunk_length_s but no overlap: where chunks start is not defined")
    count = _num_codebooks(num_codebooks, most=int(config.num_quantizers))
    # A residual codebook does not depend on those after it: the smallest bandwidth that has enough is cut to size.
    bandwidths = sorted(float(value) for value in config.target_bandwidths)
    enough = [b for b in bandwidths if model.quantizer.get_num_quantizers_for_bandwidth(b) >= count]

    def run(audio: Tensor) -> tuple[Tensor, Tensor | None]:
        # A full chunk is longer than the stride: the class then also encodes its overlap, as chunk 1.
        made = model.encode(audio, bandwidth=enough[0], return_dict=True)
        codes = made.audio_codes[0, :, :count, : -(-audio.shape[-1] // int(config.hop_length))]
        scale = made.audio_scales[0]
        return codes, None if scale is None else scale.reshape(-1)

    def run_back(codes: Tensor, scales: list[Tensor | None], missing: int) -> Tensor:
        audio: Tensor = model.decode(codes, scales, last_frame_pad_length=missing, return_dict=True).audio_values
        return audio

    chunks = None
    if config.chunk_length is not None:
        chunks = Chunks(num_samples=int(config.chunk_length), stride_samples=int(config.chunk_stride))
    return ClipNetwork(
        rate_hz=int(config.sampling_rate),
        channels=int(config.audio_channels),
        hop_samples=int(config.hop_length),
        codebook_sizes=(int(config.codebook_size),) * count,
        fills_frames=False,
        chunks=chunks,
        has_scales=bool(config.normalize),
        fingerprint=fingerprint | {"num_codebooks": count},
        device=model.device,
        dtype=model.dtype,
        run=run,
        run_back=run_back,
    )


def _mimi(model: Any, num_codebooks: int | None, fingerprint: dict[str, Json]) -> ClipNetwork:
    config = model.config
    semantic, most = int(config.num_semantic_quantizers), int(config.num_quantizers)
    count = _num_codebooks(num_codebooks, least=semantic, most=most)
    hop = round(config.sampling_rate / config.frame_rate)
    return ClipNetwork(
        rate_hz=int(config.sampling_rate),
        channels=int(config.audio_channels),
        hop_samples=hop,
        codebook_sizes=(int(config.codebook_size),) * count,
        fills_frames=False,
        chunks=None,
        has_scales=False,
        fingerprint=fingerprint | {"num_codebooks": count},
        device=model.device,
        dtype=model.dtype,
        run=lambda audio: (model.encode(audio, num_quantizers=count).audio_codes, None),
        run_back=lambda codes, *_: model.decode(codes[0]).audio_values,
    )


def _any_codec(model: Any, num_codebooks: int | None, fingerprint: dict[str, Json]) -> ClipNetwork:
    """A codec that is not known by name: what its class does not say is measured on a few short noises.

    Between whole frames such classes follow no common law, so clips are filled up to whole frames.
    """
    config, kind = model.config, type(model).__name__
    rate = getattr(config, "sampling_rate", getattr(config, "sample_rate", None))
    hop, size = (getattr(config, key, None) for key in ("hop_length", "codebook_size"))
    if not (isinstance(rate, int) and isinstance(hop, int) and isinstance(size, int)):
        raise ModelError(
            f"the config of {kind} lacks one of sampling_rate, hop_length and codebook_size: it cannot be driven",
            hint="EncodecModel, DacModel and MimiModel are known to work",
        )
    channels = int(getattr(config, "audio_channels", 1))

    def run(audio: Tensor) -> tuple[Tensor, Tensor | None]:
        codes: Tensor = model.encode(audio).audio_codes
        if codes.ndim != 3 or len(codes) != len(audio):
            raise ModelError(
                f"{kind} gives codes of shape {tuple(codes.shape)}, not (batch, codebook, frame): it cannot be driven"
            )
        return codes[:, :num_codebooks], None

    def run_back(codes: Tensor, *_: object) -> Tensor:
        audio: Tensor = model.decode(codes[0]).audio_values
        return audio if audio.ndim == 3 else audio[:, None]

    most = _measure(run, kind, channels=channels, hop=hop, device=model.device, dtype=model.dtype)
    count = _num_codebooks(num_codebooks, most=most)
    return ClipNetwork(
        rate_hz=rate,
        channels=channels,
        hop_samples=hop,
        codebook_sizes=(size,) * count,
        fills_frames=True,
        chunks=None,
        has_scales=False,
        fingerprint=fingerprint | {"num_codebooks": count},
        device=model.device,
        dtype=model.dtype,
        run=run,
        run_back=run_back,
    )


@torch.inference_mode()
def _measure(
    run: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    kind: str,
    *,
    channels: int,
    hop: int,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """Number of codebooks; raises `ModelError` unless whole frames of audio give as many frames of tokens."""
    noise = torch.Generator().manual_seed(0)
    for num_frames in (20, 21, 33):
        audio = 0.1 * torch.randn(1, channels, num_frames * hop, generator=noise)
        codes = run(audio.to(device, dtype))[0]
        if codes.shape[-1] != num_frames:
            raise ModelError(
                f"{kind} makes {codes.shape[-1]} frames of {num_frames * hop} samples, {num_frames} were"
                f" expected from its hop of {hop}: it cannot be driven",
                hint="EncodecModel, DacModel and MimiModel are known to work",
            )
    return int(codes.shape[1])
