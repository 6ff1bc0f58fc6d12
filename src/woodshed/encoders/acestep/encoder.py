"""The `Encoder` of songs: latents by the autoencoder, in exact windows, and beside them the condition of each song.

A song's last piece is its condition; it never shares a batch. Loudness is measured in a pass of its own before the
first window is cut, and tempo and key are estimated from the middle of a song, so that memory does not grow with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from woodshed.audio.clip import stream
from woodshed.audio.decode import DecodeLimits
from woodshed.audio.loudness import Loudness, Normalize, gain_for, measure
from woodshed.audio.tempo_key import estimate
from woodshed.contracts import Arrays, ArraySpec, Example, Item, Json, Outline, Piece, Record, RecordSpec
from woodshed.encoders.acestep.conditioning import Conditioner, Manner, Tokens
from woodshed.encoders.acestep.prompt import inference_prompt, side_step_prompt
from woodshed.encoders.autoencoder import PEAK, FrameEncoder
from woodshed.store.describe import ROW

CONDITIONING_VERSION = 1
"""Raised whenever the same song would be given another condition."""
CONDITION_COST_S = 2.0
"""What a condition counts in the plan, in seconds of audio."""
CONDITION_KEY = "condition"
CONDITION = "condition"
MASK = "condition_mask"
FACTS = "facts"
"""Array that travels beside a condition: JSON, as bytes, of what was found out about the song."""

Estimate = Literal["none", "missing", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SongOptions:
    """What of a song is measured, made louder or guessed."""

    manner: Manner = "inference"
    normalize: Normalize = "none"
    target_db: float = -1.0
    """Peak that `peak` brings a song to, in dB below full scale."""
    target_lufs: float = -14.0
    """Loudness that `lufs` brings a song to."""
    estimate: Estimate = "none"
    """Whether tempo and key are estimated where the song's metadata lacks them, for all songs, or never."""


class SongEncoder:
    """`woodshed.contracts.Encoder` for songs.

    Its records hold the arrays of `frames` (one record per song) and `condition` (token, width), float32; in the manner
    of Side-Step also `condition_mask` (token), bool.

    Args:
        frames: what makes the latents, with `window="whole"`.
        conditioner: what makes the conditions.
        conditioner_digests: digest of the weights by part of the conditioner, for the fingerprint.
    """

    def __init__(
        self,
        frames: FrameEncoder,
        conditioner: Conditioner,
        options: SongOptions,
        *,
        conditioner_digests: Mapping[str, str],
        limits: DecodeLimits | None = None,
    ) -> None:
        self.frames, self.options = frames, options
        self._conditioner, self._digests = conditioner, dict(conditioner_digests)
        self._limits = limits or DecodeLimits()
        self.spec = self._make_spec()

    @property
    def fingerprint(self) -> Mapping[str, Json]:
        own = {"version": CONDITIONING_VERSION, "weights": self._digests, **asdict(self.options)}
        return {**self.frames.fingerprint, "songs": own}

    def outline(self, item: Item) -> Outline:
        inner = self.frames.outline(item)
        # A key of its own: the condition of a song is computed alone.
        condition = Piece(key=f"{CONDITION_KEY}:{item.id}", cost_s=CONDITION_COST_S)
        return replace(inner, pieces=(*inner.pieces, condition))

    def prepare(self, item: Item) -> Iterator[Example]:
        loudness = self._loudness(item)
        gain = gain_for(
            self.options.normalize,
            loudness,
            target_db=self.options.target_db,
            target_lufs=self.options.target_lufs,
        )
        last = -1
        for example in self.frames.prepare(item):
            last = example.index
            if gain != 1.0:
                # Not in place: neighbouring windows may share the samples of their overlap.
                for name in ("audio", PEAK):
                    example.arrays[name] = example.arrays[name] * np.float32(gain)
            yield example
        song, estimated = self._completed(item)
        facts: dict[str, Json] = {"estimated": estimated}
        if loudness is not None:
            facts |= _loudness_facts(loudness, gain)
        yield Example(item_id=item.id, index=last + 1, arrays=self._prompted(item, song, facts))

    def encode(self, batch: Sequence[Example]) -> list[Arrays]:
        if FACTS not in batch[0].arrays:
            return self.frames.encode(batch)
        return [self._conditioned(example.arrays) for example in batch]

    def joiner(self, item: Item) -> _SongJoiner:
        return _SongJoiner(self, item)

    def encoded_s(self, item: Item) -> float:
        """Seconds of the song that are encoded."""
        assert item.audio is not None
        longest = self.frames.options.longest_s
        return item.audio.duration_s if longest is None else min(longest, item.audio.duration_s)

    def in_manner(self, record: Record) -> Record:
        """The latents as they are stored: Side-Step's have no frame for what does not fill one."""
        num_frames = record.meta["num_samples"] // self.frames.model.hop_samples
        if self.options.manner != "side-step" or not 0 < num_frames < record.meta["num_frames"]:
            return record
        arrays = {name: array[:, :num_frames] for name, array in record.arrays.items()}
        return Record(arrays=arrays, meta={**record.meta, "num_frames": num_frames, "valid_frames": num_frames})

    def _loudness(self, item: Item) -> Loudness | None:
        if self.options.normalize == "none":
            return None
        assert item.audio is not None
        model = self.frames.model
        blocks = stream(
            item.path,
            item.audio,
            rate_hz=model.rate_hz,
            num_channels=model.channels,
            resampler=self.frames.options.resampler,
            clamp=self.frames.options.clamp,
            limits=self._limits,
        )
        cut = _first(blocks, math.ceil(self.encoded_s(item) * model.rate_hz))
        return measure(cut, rate_hz=model.rate_hz, lufs=self.options.normalize == "lufs")

    def _completed(self, item: Item) -> tuple[Mapping[str, Json], dict[str, Json]]:
        """The song's metadata with estimates where they are wanted, and those estimates."""
        song = item.meta
        wanted = [name for name in ("bpm", "keyscale") if self.options.estimate == "all" or not song.get(name)]
        if self.options.estimate == "none" or not wanted:
            return song, {}
        assert item.audio is not None
        found = estimate(item.path, item.audio, limits=self._limits)
        estimated = {name: getattr(found, name) for name in wanted if getattr(found, name)}
        return {**song, **estimated}, estimated

    def _prompted(self, item: Item, song: Mapping[str, Json], facts: dict[str, Json]) -> dict[str, np.ndarray]:
        if self.options.manner == "side-step":
            assert item.audio is not None
            prompt = side_step_prompt(song, duration_s=item.audio.duration_s)
        else:
            prompt = inference_prompt(song, duration_s=self.encoded_s(item))
        tokens = self._conditioner.tokens(prompt)
        facts |= {
            "text_prompt": prompt.text,
            "text_tokens": int(tokens.text_mask.sum()),
            "lyric_tokens": int(tokens.lyric_mask.sum()),
            "lyrics_cut": tokens.lyrics_cut,
        }
        return {
            "text": tokens.text,
            "lyrics": tokens.lyrics,
            "text_mask": tokens.text_mask,
            "lyric_mask": tokens.lyric_mask,
            FACTS: np.frombuffer(json.dumps(facts).encode(), np.uint8),
        }

    def _conditioned(self, arrays: Arrays) -> Arrays:
        tokens = Tokens(arrays["text"], arrays["lyrics"], arrays["text_mask"], arrays["lyric_mask"], lyrics_cut=False)
        condition = self._conditioner.encode(tokens)
        return {CONDITION: condition.states, MASK: condition.mask, FACTS: arrays[FACTS]}

    def _make_spec(self) -> RecordSpec:
        inner = self.frames.spec
        width = self._conditioner.width
        # Sizes as they are for a song with a page of lyrics: what is estimated from them is disk use.
        arrays = {
            **inner.arrays,
            CONDITION: ArraySpec(
                axes=("token", "width"), dtype="float32", bytes_per_frame=0, bytes_per_record=512 * 4 * width
            ),
        }
        if self.options.manner == "side-step":
            arrays[MASK] = ArraySpec(axes=("token",), dtype="bool", bytes_per_frame=0, bytes_per_record=1024)
        return replace(inner, arrays=arrays)


class _SongJoiner:
    """Puts latents and condition of one song together."""

    def __init__(self, encoder: SongEncoder, item: Item) -> None:
        self._encoder, self._frames = encoder, encoder.frames.joiner(item)
        self._record: Record | None = None

    def add(self, part: Arrays) -> list[Record]:
        if FACTS not in part:
            made = self._frames.add(part)
            if made:
                (self._record,) = made
            return []
        assert self._record is not None, "a condition is an item's last piece"
        record = self._encoder.in_manner(self._record)
        arrays = {name: part[name] for name in (CONDITION, MASK) if name in self._encoder.spec.arrays}
        facts = json.loads(part[FACTS].tobytes())
        prompt = facts.pop("text_prompt")
        return [Record(arrays={**record.arrays, **arrays}, meta={**record.meta, "text_prompt": prompt, ROW: facts})]


def _loudness_facts(loudness: Loudness, gain: float) -> dict[str, Json]:
    decibels = {"gain_db": 20 * math.log10(gain), "peak_db": loudness.peak_db + 20 * math.log10(gain)}
    if loudness.lufs is not None:
        decibels["lufs_before"] = loudness.lufs  # None, as JSON, where nothing could be measured
    return {name: round(value, 2) if math.isfinite(value) else None for name, value in decibels.items()}


def _first(blocks: Iterator[np.ndarray], num_samples: int) -> Iterator[np.ndarray]:
    left = num_samples
    for block in blocks:
        yield block[:, :left]
        left -= block.shape[1]
        if left <= 0:
            return
