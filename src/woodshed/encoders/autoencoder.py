"""The `Encoder` of every network with a finite receptive field: autoencoder latents and codec tokens.

Three windows: `whole` gives one record per clip, the encode of the clip filled up with zeros to a whole frame. `first`
gives one record: the first `record_frames` frames' worth of the clip, followed by zeros, as stable-audio-tools'
`pre_encode.py` encodes it. `tile` gives as many records as the clip needs: consecutive slices of one encode of the
clip, followed by zeros up to the end of the last slice. All are computed in windows with exact context, and without
computing padding (`woodshed.batching.windows`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from woodshed.audio.channels import is_silent
from woodshed.audio.clip import stream
from woodshed.audio.decode import DecodeLimits
from woodshed.audio.resample import ResamplerName, resampled_length
from woodshed.batching.windows import WindowPlan, cut, fill_silence, num_frames, plan_windows, silence_frames
from woodshed.chance import generator
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
from woodshed.errors import AudioError

PREPROCESSING_VERSION = 1
"""Raised whenever the same source would give other numbers."""

PEAK = "peak"
"""Array that travels beside the network's own: peak of the samples of each frame, for the silence rule."""


@runtime_checkable
class FrameModel(Protocol):
    """A network that turns each `hop_samples` samples into one frame, with a finite reach."""

    @property
    def rate_hz(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def hop_samples(self) -> int: ...
    @property
    def reach_frames(self) -> int:
        """Frames of context that a frame needs on each side when encoding."""
        ...

    @property
    def kind(self) -> Literal["latents", "tokens"]: ...
    @property
    def codebook_sizes(self) -> tuple[int, ...]: ...
    @property
    def fingerprint(self) -> Mapping[str, Json]: ...
    def analyse(self, audio: Float[Tensor, "batch channel time"]) -> dict[str, Shaped[Tensor, "batch _ frame"]]:
        """`latents`, or `mean` and `std`, or `tokens`; the device and precision are the model's own affair."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameOptions:
    """How clips are cut, and what is kept of what the network says."""

    window: Literal["first", "tile", "whole"] = "tile"
    record_frames: int | None = None
    """Frames of a record for `first` and `tile`."""
    latents: Literal["sample", "mean", "moments"] = "sample"
    seed: int = 0
    resampler: ResamplerName = "soxr"
    pad_last: bool = True
    """Whether the last tile is filled up to `record_frames` with what follows the clip: silence."""
    drop_silence: bool = False
    dtype: Literal["float16", "float32", "float64"] = "float32"
    random_crop: bool = False
    polarity_flip: bool = False
    clamp: bool = True
    """Whether samples beyond full scale are cut off, as stable-audio-tools cuts them."""
    longest_s: float | None = None
    """For `whole`: what is encoded of a longer clip, its beginning; None encodes all of it."""
    tokens_last: bool = False
    """Token records as (frame, codebook), as the original writes them for some bottlenecks."""
    window_frames: int = 80
    quantum_frames: int = 8


@dataclass(frozen=True, slots=True)
class _Span:
    """What of a clip is encoded: samples at the model's rate, and frames."""

    start: int
    num_samples: int
    total_frames: int
    num_records: int
    flip: bool


class FrameEncoder:
    """`woodshed.contracts.Encoder` around a `FrameModel`."""

    def __init__(self, model: FrameModel, options: FrameOptions, *, limits: DecodeLimits | None = None) -> None:
        if options.window != "whole" and not options.record_frames:
            raise ValueError(f"window={options.window!r} needs record_frames")
        self.model, self.options = model, options
        self._limits = limits or DecodeLimits()
        self._window = max(options.window_frames, 2 * model.reach_frames + options.quantum_frames)
        frames = silence_frames(model.reach_frames)
        quiet = model.analyse(torch.zeros(1, model.channels, frames * model.hop_samples))
        self._silence = {name: value[0].cpu().numpy() for name, value in quiet.items()}
        self._silence[PEAK] = np.zeros((1, frames), np.float32)
        self.spec = self._make_spec()

    @property
    def fingerprint(self) -> Mapping[str, Json]:
        own = asdict(self.options)
        for name in ("window_frames", "quantum_frames"):  # exact for any window: not part of the identity
            del own[name]
        for name, value in (("longest_s", None), ("clamp", True)):
            if own[name] == value:  # as in folders from before there was such an option
                del own[name]
        return {"model": dict(self.model.fingerprint), "preprocessing": {"version": PREPROCESSING_VERSION, **own}}

    def outline(self, item: Item) -> Outline:
        span, plan = self._plan(item)
        seconds = self.model.hop_samples / self.model.rate_hz
        pieces = tuple(
            Piece(key=str(window.num_frames), cost_s=round(window.num_frames * seconds, 6)) for window in plan.windows
        )
        return Outline(pieces=pieces, num_records=span.num_records)

    def prepare(self, item: Item) -> Iterator[Example]:
        span, plan = self._plan(item)
        hop = self.model.hop_samples
        held, offset = np.zeros((self.model.channels, 0), np.float32), span.start
        blocks = self._blocks(item)
        position = 0
        for index, window in enumerate(plan.windows):
            start, stop = span.start + window.start * hop, span.start + window.stop * hop
            wanted = min(stop, span.start + span.num_samples)
            parts = [held[:, max(0, start - offset) :]]
            offset = max(offset, start)
            have = offset + parts[0].shape[1]
            while have < wanted:
                block = next(blocks)
                position += block.shape[1]
                if position > have:
                    parts.append(block[:, max(0, block.shape[1] - (position - have)) :])
                    have = position
            held = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            audio = cut(held[:, : max(0, span.start + span.num_samples - offset)], start, stop, offset=offset)
            audio = np.ascontiguousarray(-audio if span.flip else audio, dtype=np.float32)
            peak = np.abs(audio).max(axis=0).reshape(-1, hop).max(axis=1)[None]
            yield Example(item_id=item.id, index=index, arrays={"audio": audio, PEAK: peak})
        if span.start + span.num_samples >= self._length(_audio(item)):
            for _ in blocks:  # the rest of the stream compares the decoded with the announced length
                continue

    def encode(self, batch: Sequence[Example]) -> list[Arrays]:
        audio = torch.from_numpy(np.stack([example.arrays["audio"] for example in batch]))
        made = {name: value.cpu().numpy() for name, value in self.model.analyse(audio).items()}
        return [
            {**{name: value[row] for name, value in made.items()}, PEAK: example.arrays[PEAK]}
            for row, example in enumerate(batch)
        ]

    def joiner(self, item: Item) -> _FrameJoiner:
        span, plan = self._plan(item)
        return _FrameJoiner(self, item, span, plan)

    def _length(self, audio: AudioInfo) -> int:
        return resampled_length(audio.num_samples, audio.rate_hz, self.model.rate_hz)

    def _blocks(self, item: Item) -> Iterator[Float[np.ndarray, "channel time"]]:
        return stream(
            item.path,
            _audio(item),
            rate_hz=self.model.rate_hz,
            num_channels=self.model.channels,
            resampler=self.options.resampler,
            clamp=self.options.clamp,
            limits=self._limits,
        )

    def _plan(self, item: Item) -> tuple[_Span, WindowPlan]:
        options, hop = self.options, self.model.hop_samples
        length = self._length(_audio(item))
        if length < 1:
            raise AudioError(f"{item.relpath} holds no samples", kind="empty")
        start, flip = 0, False
        if options.window == "whole":
            if options.longest_s is not None:
                length = min(length, max(1, round(options.longest_s * self.model.rate_hz)))
            total = num_frames(length, hop)
            records = 1
        else:
            assert options.record_frames is not None
            if options.window == "first":
                window = options.record_frames * hop
                if options.random_crop and length > window:
                    start = int(generator(options.seed, item.id, "crop").integers(length - window + 1))
                length, records = min(length - start, window), 1
            else:
                records = num_frames(length, options.record_frames * hop)
            total = records * options.record_frames
        if options.polarity_flip:
            flip = bool(generator(options.seed, item.id, "polarity").random() < 0.5)
        plan = plan_windows(
            num_frames(length, hop),
            total,
            reach=self.model.reach_frames,
            window=self._window,
            quantum=options.quantum_frames,
        )
        return _Span(start, length, total, records, flip), plan

    def _make_spec(self) -> RecordSpec:
        model, options = self.model, self.options
        arrays: dict[str, ArraySpec] = {}
        if model.kind == "tokens":
            main = "tokens"
            dtype = smallest_integer(max(model.codebook_sizes))
            axes = ("frame", "codebook") if options.tokens_last else ("codebook", "frame")
            books = len(model.codebook_sizes)
            arrays[main] = ArraySpec(axes=axes, dtype=dtype, bytes_per_frame=books * np.dtype(dtype).itemsize)
        else:
            moments = "mean" in self._silence and options.latents == "moments"
            main = "mean" if moments else "latents"
            rows = self._silence["mean" if "mean" in self._silence else "latents"].shape[0]
            for name in ("mean", "std") if moments else ("latents",):
                size = rows * np.dtype(options.dtype).itemsize
                arrays[name] = ArraySpec(axes=("latent", "frame"), dtype=options.dtype, bytes_per_frame=size)
        return RecordSpec(
            kind=model.kind,
            main=main,
            arrays=arrays,
            rate_hz=model.rate_hz,
            hop_samples=model.hop_samples,
            audio_channels=model.channels,
            codebook_sizes=model.codebook_sizes if model.kind == "tokens" else (),
        )


class _FrameJoiner:
    """Frames of the windows of one clip, put together and cut into records."""

    def __init__(self, encoder: FrameEncoder, item: Item, span: _Span, plan: WindowPlan) -> None:
        self._encoder, self._item, self._span, self._plan = encoder, item, span, plan
        self._parts: dict[str, list[np.ndarray]] = {}
        self._added = self._first_frame = self._num_frames = self._emitted = 0

    def add(self, part: Arrays) -> list[Record]:
        window = self._plan.windows[self._added]
        self._added += 1
        keep = slice(window.keep_start - window.start, window.keep_stop - window.start)
        for name, value in part.items():
            # a copy: a view would keep the whole batch alive
            self._parts.setdefault(name, []).append(value[..., keep].copy())
        self._num_frames += window.keep_stop - window.keep_start
        last = self._added == len(self._plan.windows)
        if last and self._plan.total > self._plan.computed:
            silence = self._encoder._silence
            self._parts = {
                name: [fill_silence(np.concatenate(values, axis=-1), self._plan, silence[name])]
                for name, values in self._parts.items()
            }
            self._num_frames += self._plan.total - self._plan.computed
        return self._complete_records()

    def _complete_records(self) -> list[Record]:
        per_record = self._plan.total // self._span.num_records
        records = []
        while self._emitted < self._span.num_records and self._num_frames >= per_record:
            whole = {name: np.concatenate(values, axis=-1) for name, values in self._parts.items()}
            records.append(self._record({name: value[..., :per_record] for name, value in whole.items()}, per_record))
            self._parts = {name: [value[..., per_record:]] for name, value in whole.items()}
            self._num_frames -= per_record
            self._emitted += 1
        options = self._encoder.options
        return [record for record in records if not (options.drop_silence and record.meta["silent"])]

    def _record(self, frames: dict[str, np.ndarray], per_record: int) -> Record:
        encoder, index = self._encoder, self._emitted
        options, hop = encoder.options, encoder.model.hop_samples
        offset = index * per_record * hop
        valid_samples = min(self._span.num_samples - offset, per_record * hop)
        valid_frames = num_frames(valid_samples, hop)
        size = per_record if options.pad_last or options.window != "tile" else valid_frames
        peak = float(frames.pop(PEAK).max())
        arrays = self._kept({name: value[..., :size] for name, value in frames.items()}, index)
        meta = {
            "index": index,
            "start_sample": self._span.start + offset,
            "num_samples": valid_samples,
            "window_samples": per_record * hop,
            "num_frames": size,
            "valid_frames": valid_frames,
            "silent": is_silent(peak),
        }
        return Record(arrays=arrays, meta=meta)

    def _kept(self, frames: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
        encoder = self._encoder
        options, spec = encoder.options, encoder.spec
        if spec.kind == "tokens":
            tokens = frames["tokens"].astype(spec.arrays["tokens"].dtype)
            return {"tokens": np.ascontiguousarray(tokens.T) if options.tokens_last else tokens}
        if "mean" in frames and options.latents == "sample":
            noise = generator(options.seed, self._item.id, "latents", index)
            drawn = noise.standard_normal(frames["mean"].shape, dtype=np.float32)
            frames = {"latents": frames["mean"] + frames["std"] * drawn}
        elif "mean" in frames and options.latents == "mean":
            frames = {"latents": frames["mean"]}
        return {name: frames[name].astype(options.dtype) for name in spec.arrays}


def _audio(item: Item) -> AudioInfo:
    if item.audio is None:
        raise ValueError(f"item {item.id!r} was not probed")
    return item.audio
