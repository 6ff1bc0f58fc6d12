"""Audio to tokens with the codecs of the transformers library: EncodecModel, DacModel, MimiModel and their like.

Tokens are (codebook, frame) in the smallest integer type. DAC is computed in windows with exact context, like an
autoencoder. EnCodec and Mimi remember what went before, so they see each clip as a whole, batched only with clips of
the very same length: padding would reach the last frame. EnCodec models that cut audio into chunks (48 kHz) see chunks,
and their records hold a `scales` array beside the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float

from woodshed.audio.channels import is_silent
from woodshed.audio.clip import stream
from woodshed.audio.decode import DecodeLimits
from woodshed.audio.resample import resampled_length
from woodshed.contracts import (
    Arrays,
    ArraySpec,
    AudioInfo,
    Example,
    Item,
    Json,
    Outline,
    Piece,
    Record,
    RecordSpec,
    smallest_integer,
)
from woodshed.encoders.autoencoder import PEAK, FrameEncoder, FrameOptions
from woodshed.encoders.codec_networks import ClipNetwork, load_codec
from woodshed.encoders.spans import cut_spans
from woodshed.errors import AudioError, ItemError, UsageError

PREPROCESSING_VERSION = 1
"""Raised whenever the same source would give other numbers."""
MAX_CLIP_S = 300.0
MAX_EXACT_SAMPLES = 2**24 - 1
"""The classes work out their padding in float32, which counts no further."""


def open_codec(
    name: str,
    options: FrameOptions | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    num_codebooks: int | None = None,
    bandwidth_kbps: float | None = None,
    max_clip_s: float = MAX_CLIP_S,
    limits: DecodeLimits | None = None,
) -> ClipEncoder | FrameEncoder:
    """The encoder for a codec, by folder or hub name. Options default to one record per clip.

    Raises:
        UsageError, ModelError: as `load_codec`, and for options that the codec cannot serve.
    """
    network = load_codec(name, device=device, dtype=dtype, num_codebooks=num_codebooks, bandwidth_kbps=bandwidth_kbps)
    options = options or FrameOptions(window="whole")
    if isinstance(network, ClipNetwork):
        return ClipEncoder(network, options, max_clip_s=max_clip_s, limits=limits)
    return FrameEncoder(network, options, limits=limits)


class ClipEncoder:
    """`woodshed.contracts.Encoder` around a network that must see whole clips, or whole chunks.

    Args:
        options: `whole` gives one record per clip; `tile` cuts the clip's tokens into records of `record_frames`;
            `first` encodes only the first `record_frames` frames' worth. Missing frames are filled with token 0.
        max_clip_s: longest clip that is taken; memory grows with it. Clips that are cut into chunks have no limit.
    """

    def __init__(
        self,
        network: ClipNetwork,
        options: FrameOptions,
        *,
        max_clip_s: float = MAX_CLIP_S,
        limits: DecodeLimits | None = None,
    ) -> None:
        _check_options(network, options)
        self.network, self.options = network, options
        self._limits = limits or DecodeLimits()
        self._max_samples = min(round(max_clip_s * network.rate_hz), MAX_EXACT_SAMPLES)

    @property
    def spec(self) -> RecordSpec:
        network = self.network
        dtype = smallest_integer(max(network.codebook_sizes))
        axes = ("frame", "codebook") if self.options.tokens_last else ("codebook", "frame")
        size = len(network.codebook_sizes) * np.dtype(dtype).itemsize
        arrays = {"tokens": ArraySpec(axes=axes, dtype=dtype, bytes_per_frame=size)}
        if network.has_scales:
            arrays["scales"] = ArraySpec(axes=("chunk",), dtype="float32", bytes_per_frame=0)
        return RecordSpec(
            kind="tokens",
            main="tokens",
            arrays=arrays,
            rate_hz=network.rate_hz,
            hop_samples=network.hop_samples,
            audio_channels=network.channels,
            codebook_sizes=network.codebook_sizes,
        )

    @property
    def fingerprint(self) -> Mapping[str, Json]:
        names = ("window", "record_frames", "resampler", "pad_last", "drop_silence", "tokens_last")
        own = {name: getattr(self.options, name) for name in names}
        return {"model": dict(self.network.fingerprint), "preprocessing": {"version": PREPROCESSING_VERSION, **own}}

    def outline(self, item: Item) -> Outline:
        spans = self._spans(item)
        rate = self.network.rate_hz
        pieces = tuple(Piece(key=f"{b - a} samples", cost_s=round((b - a) / rate, 6)) for a, b in spans)
        return Outline(pieces=pieces, num_records=len(self._records(self._length(item))))

    def prepare(self, item: Item) -> Iterator[Example]:
        network = self.network
        spans = self._spans(item)
        blocks = stream(
            item.path,
            _audio(item),
            rate_hz=network.rate_hz,
            num_channels=network.channels,
            resampler=self.options.resampler,
            limits=self._limits,
        )
        for index, samples in enumerate(cut_spans(blocks, spans, num_channels=network.channels)):
            peak = _frame_peaks(samples, hop=network.hop_samples)
            yield Example(item_id=item.id, index=index, arrays={"audio": samples, PEAK: peak})

    def encode(self, batch: Sequence[Example]) -> list[Arrays]:
        audio = torch.from_numpy(np.stack([example.arrays["audio"] for example in batch]))
        tokens, scales = self.network.encode(audio)
        codes = tokens.cpu().numpy()
        made: list[Arrays] = []
        for row, example in enumerate(batch):
            arrays = {"tokens": codes[row], PEAK: example.arrays[PEAK]}
            if scales is not None:
                arrays["scales"] = scales[row : row + 1].float().cpu().numpy()
            made.append(arrays)
        return made

    def joiner(self, item: Item) -> _ClipJoiner:
        return _ClipJoiner(self, num_samples=self._length(item), num_parts=len(self._spans(item)))

    def _length(self, item: Item) -> int:
        """Samples of the clip that are encoded."""
        audio, options = _audio(item), self.options
        length = resampled_length(audio.num_samples, audio.rate_hz, self.network.rate_hz)
        if options.window == "first" and options.record_frames:
            length = min(length, options.record_frames * self.network.hop_samples)
        return length

    def _spans(self, item: Item) -> list[tuple[int, int]]:
        network, length = self.network, self._length(item)
        if length < 1:
            raise AudioError(f"{item.relpath} holds no samples", kind="empty")
        if network.chunks is not None:
            return network.chunks.spans(length)
        if length > self._max_samples:
            raise ItemError(
                f"{item.relpath} is {length / network.rate_hz:.0f} s long; this codec sees clips as a whole, up to"
                f" {self._max_samples / network.rate_hz:.0f} s",
                kind="too_long",
                hint="split the file, raise the limit if memory allows, or use a codec without memory, such as DAC",
            )
        if network.fills_frames:
            length = network.num_frames(length) * network.hop_samples
        return [(0, length)]

    def _records(self, num_samples: int) -> list[tuple[int, int]]:
        """First and last valid frame of each record."""
        network, size = self.network, self.options.record_frames
        spans = network.chunks.spans(num_samples) if network.chunks else [(0, num_samples)]
        total = sum(network.num_frames(stop - start) for start, stop in spans)
        if self.options.window != "tile" or size is None:
            return [(0, total)]
        return [(start, min(start + size, total)) for start in range(0, total, size)]


class _ClipJoiner:
    """Tokens of one clip, put together and cut into records."""

    def __init__(self, encoder: ClipEncoder, *, num_samples: int, num_parts: int) -> None:
        self._encoder, self._num_samples, self._missing = encoder, num_samples, num_parts
        self._parts: list[Arrays] = []

    def add(self, part: Arrays) -> list[Record]:
        # copies: views would keep the whole batch alive
        self._parts.append({name: value.copy() for name, value in part.items()})
        self._missing -= 1
        if self._missing:
            return []
        whole = {name: np.concatenate([made[name] for made in self._parts], axis=-1) for name in part}
        spans = self._encoder._records(self._num_samples)
        records = [self._record(whole, index, start, stop) for index, (start, stop) in enumerate(spans)]
        return [record for record in records if not (self._encoder.options.drop_silence and record.meta["silent"])]

    def _record(self, whole: Arrays, index: int, start: int, stop: int) -> Record:
        network, options = self._encoder.network, self._encoder.options
        size = stop - start
        if options.window == "first" or (options.window == "tile" and options.pad_last):
            size = options.record_frames or size
        tokens = whole["tokens"][:, start:stop].astype(self._encoder.spec.arrays["tokens"].dtype)
        tokens = np.pad(tokens, ((0, 0), (0, size - (stop - start))))
        arrays = {"tokens": np.ascontiguousarray(tokens.T if options.tokens_last else tokens)}
        if "scales" in whole:
            arrays["scales"] = whole["scales"]
        first = start * network.hop_samples
        window = (options.record_frames or size) * network.hop_samples
        meta: dict[str, Json] = {
            "index": index,
            "start_sample": first,
            "num_samples": self._num_samples if options.window == "whole" else min(window, self._num_samples - first),
            "num_frames": size,
            "valid_frames": stop - start,
            "silent": is_silent(float(whole[PEAK][:, start:stop].max())),
        }
        if options.window != "whole":
            meta["window_samples"] = window
        if network.chunks is not None:
            meta["chunk_samples"] = network.chunks.num_samples
            meta["chunk_stride_samples"] = network.chunks.stride_samples
        return Record(arrays=arrays, meta=meta)


def _check_options(network: ClipNetwork, options: FrameOptions) -> None:
    if options.random_crop or options.polarity_flip:
        raise UsageError("random crops and polarity flips are for autoencoders; codecs encode what they are given")
    if options.window == "whole":
        return
    if not options.record_frames:
        raise UsageError(f"window {options.window!r} needs the number of frames of a record")
    if network.chunks is not None:
        raise UsageError(
            f"window {options.window!r}: this codec cuts audio into overlapping chunks of"
            f" {network.chunks.num_samples / network.rate_hz:g} s, and its frames cannot be cut otherwise",
            hint="use window 'whole'",
        )


def _frame_peaks(samples: Float[np.ndarray, "channel time"], *, hop: int) -> Float[np.ndarray, "1 frame"]:
    """Largest magnitude of each frame's samples, (1, frame): for the silence rule."""
    loudest = np.abs(samples).max(axis=0)
    filled = np.pad(loudest, (0, -len(loudest) % hop))
    peaks: np.ndarray = filled.reshape(-1, hop).max(axis=1)
    return peaks[None]


def _audio(item: Item) -> AudioInfo:
    if item.audio is None:
        raise ValueError(f"item {item.id!r} was not probed")
    return item.audio
