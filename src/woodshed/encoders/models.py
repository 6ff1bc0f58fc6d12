"""The networks that `FrameEncoder` can drive: Oobleck autoencoders, and woodshed-tiny.

Each knows its rate, channels, hop and reach, and turns audio into frames and frames into audio. Decoding follows the
same law as encoding: in windows with exact context, so that a long file needs no more memory than a short one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from woodshed.batching.windows import plan_windows
from woodshed.contracts import Json
from woodshed.encoders.checkpoints import Autoencoder
from woodshed.encoders.tiny import TinyCodec

DECODE_WINDOW_S = 6.0


class OobleckModel:
    """A stable-audio-tools autoencoder: encoder and bottleneck, and the decoder if it was loaded."""

    def __init__(self, autoencoder: Autoencoder, *, discrete: bool = False, compiled: bool = False) -> None:
        self.autoencoder, self._compiled = autoencoder, compiled
        bottleneck = autoencoder.bottleneck
        self.rate_hz = autoencoder.rate_hz
        self.channels = autoencoder.audio_channels
        self.hop_samples = autoencoder.ratio
        self.kind: Literal["latents", "tokens"] = "tokens" if discrete else "latents"
        self.codebook_sizes: tuple[int, ...] = bottleneck.codebook_sizes if discrete else ()

    @property
    def writes_tokens_last(self) -> bool:
        """Whether stable-audio-tools writes this model's tokens as (frame, codebook)."""
        return self.autoencoder.bottleneck.original_axes == "frame codebook"

    @property
    def reach_frames(self) -> int:
        return self.autoencoder.encode_reach_frames

    @property
    def decode_reach_frames(self) -> int:
        return self.autoencoder.decode_reach_frames

    @property
    def fingerprint(self) -> Mapping[str, Json]:
        own = self.autoencoder
        return {
            "architecture": "oobleck",
            "weights": own.weights_digest,
            "config": own.config,
            "kind": self.kind,
            "precision": str(own.dtype).removeprefix("torch."),
            # compiled kernels round differently: enough to flip a token now and then
            "compiled": self._compiled,
        }

    @torch.inference_mode()
    def analyse(self, audio: Float[Tensor, "batch channel time"]) -> dict[str, Shaped[Tensor, "batch _ frame"]]:
        own = self.autoencoder
        frames = own.bottleneck.analyse(own.encode(audio.to(own.device, own.dtype)))
        if self.kind == "tokens":
            return {"tokens": frames["tokens"]}
        wide = torch.promote_types(own.dtype, torch.float32)
        return {name: value.to(wide) for name, value in frames.items() if name != "tokens"}

    @torch.inference_mode()
    def synthesise(self, frames: Mapping[str, Shaped[Tensor, "batch _ frame"]]) -> Float[Tensor, "batch channel time"]:
        own = self.autoencoder
        moved = {
            name: value.to(own.device, own.dtype if value.is_floating_point() else None)
            for name, value in frames.items()
        }
        return own.decode(own.bottleneck.synthesise(moved)).float()


class TinyModel:
    """woodshed-tiny over any number of channels: each channel is coded by itself, rows channel after channel."""

    def __init__(self, codec: TinyCodec, *, channels: int = 2, discrete: bool = False, digest: str = "") -> None:
        self.codec = codec
        self.rate_hz, self.hop_samples = codec.config.rate_hz, codec.config.hop_samples
        self.channels = channels
        self.kind: Literal["latents", "tokens"] = "tokens" if discrete else "latents"
        sizes = (codec.config.codebook_size,) * (codec.config.num_codebooks * channels)
        self.codebook_sizes: tuple[int, ...] = sizes if discrete else ()
        self._digest = digest
        parameter = next(codec.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    @property
    def reach_frames(self) -> int:
        return self.codec.encode_reach_frames

    @property
    def decode_reach_frames(self) -> int:
        return self.codec.decode_reach_frames

    @property
    def fingerprint(self) -> Mapping[str, Json]:
        return {
            "architecture": "woodshed-tiny",
            "weights": self._digest,
            "channels": self.channels,
            "kind": self.kind,
            "precision": str(self._dtype).removeprefix("torch."),
        }

    @torch.inference_mode()
    def analyse(self, audio: Float[Tensor, "batch channel time"]) -> dict[str, Shaped[Tensor, "batch _ frame"]]:
        name = "tokens" if self.kind == "tokens" else "latents"
        made: list[Tensor] = []
        for channel in range(audio.shape[1]):
            # Mono in two channels is computed once. One call per channel, always with all rows: so a row's bits do not
            # depend on whether its neighbours are mono.
            if channel and torch.equal(audio[:, channel], audio[:, 0]):
                made.append(made[0])
                continue
            wide = torch.promote_types(self._dtype, torch.float32)
            frames = self.codec.encode(audio[:, channel : channel + 1].to(self._device, wide))
            made.append(self.codec.quantize(frames) if name == "tokens" else frames.float())
        return {name: torch.cat(made, dim=1)}

    @torch.inference_mode()
    def synthesise(self, frames: Mapping[str, Shaped[Tensor, "batch _ frame"]]) -> Float[Tensor, "batch channel time"]:
        name = "tokens" if self.kind == "tokens" else "latents" if "latents" in frames else "mean"
        value = frames[name].to(self._device)
        batch, rows, num_frames = value.shape
        value = value.reshape(batch * self.channels, rows // self.channels, num_frames)
        latents = self.codec.dequantize(value.long()) if name == "tokens" else value.to(self._dtype)
        return self.codec.decode(latents).reshape(batch, self.channels, -1).float()


@runtime_checkable
class Synthesiser(Protocol):
    """What decoding needs of a model."""

    @property
    def rate_hz(self) -> int: ...
    @property
    def hop_samples(self) -> int: ...
    @property
    def decode_reach_frames(self) -> int: ...
    def synthesise(
        self, frames: Mapping[str, Shaped[Tensor, "batch _ frame"]]
    ) -> Float[Tensor, "batch channel time"]: ...


def decode_blocks(
    model: Synthesiser, frames: Mapping[str, Shaped[np.ndarray, "_ frame"]], *, window_s: float = DECODE_WINDOW_S
) -> Iterator[Float[np.ndarray, "channel time"]]:
    """Audio of one record, block by block: together equal to the unchunked decode, in constant memory."""
    total = next(iter(frames.values())).shape[-1]
    reach, hop = model.decode_reach_frames, model.hop_samples
    window = max(2 * reach + 8, round(window_s * model.rate_hz / hop))
    for part in plan_windows(total, total, reach=reach, window=window, quantum=8).windows:
        cut = {
            name: torch.from_numpy(np.array(value[None, :, part.start : part.stop])) for name, value in frames.items()
        }
        audio = model.synthesise(cut)[0].cpu().numpy()
        yield audio[:, (part.keep_start - part.start) * hop : (part.keep_stop - part.start) * hop]
