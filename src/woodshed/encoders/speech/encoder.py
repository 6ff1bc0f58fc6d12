"""Utterances to what the IndexTTS2 trainers read: text ids, semantic codes, conditioning, speaker and emotion vectors.

One w2v-bert pass serves IndexTTS 2.0 and 2.5. Clips share batches with clips of similar length, padded to the longest;
every network masks its padding before each layer that could see it, so that a row of a batch equals that clip alone.

Codes stand for the whole clip. The reference (condition, speaker, emotion) is what the models will be given when they
speak: at most the first 15 s. The beginning of a longer clip is therefore heard a second time, by itself: the front end
and the attention would otherwise let the rest leak into it. Under `compat` the reference is the whole clip, as the
original preprocessing has it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from woodshed.contracts import Arrays, ArraySpec, Example, Item, Json, Outline, Piece, Record, RecordSpec
from woodshed.encoders.speech.campplus import CampPlus
from woodshed.encoders.speech.clip import (
    ClipLimits,
    Rules,
    check_duration,
    check_frames,
    read_clip,
    spoken_language,
    text_ids,
    unknown_tokens,
)
from woodshed.encoders.speech.conditioning import Conditioning
from woodshed.encoders.speech.fbank import NUM_MELS, campplus_fbank
from woodshed.encoders.speech.frontend import STACK, num_fbank_frames, num_frames, num_valid, seamless_features
from woodshed.encoders.speech.published_values import RATE_HZ, REFERENCE_S
from woodshed.encoders.speech.semantic_codec import SemanticCodec
from woodshed.encoders.speech.w2vbert import SemanticStats, W2VBert, normalise_features

PREPROCESSING_VERSION = 1
"""Raised whenever the same source would give other numbers."""
HOP_SAMPLES = 320
"""Samples per model frame: 50 frames a second."""
MAX_OUTLINES_REMEMBERED = 20_000
"""More than there are lengths in frames up to 200 s."""
CLIP = "clip"
"""Key of every piece: clips of all lengths may share a batch."""
BEGINNING = "beginning_"
"""Starts the names of an example's arrays that stand for the reference of a long clip."""
PASSED_ON = ("text_ids", "text_ids_25", "num_samples", "row")

Target: TypeAlias = Literal["2.0", "2.5"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechOptions:
    """What is made of a clip, apart from the models."""

    targets: tuple[Target, ...] = ("2.0",)
    compat: bool = False
    """As the original preprocessing: resampled by way of `first_rate_hz`, reference from the whole clip."""
    first_rate_hz: int = RATE_HZ
    reference_s: float = REFERENCE_S
    strict_trim: bool = False
    """Leave out the last frame when half of it is padding."""
    condition_dtype: Literal["float32", "float16"] = "float32"
    limits: ClipLimits = field(default_factory=ClipLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """The networks of a run, on one device. Those that the targets do not need are None."""

    w2v_bert: W2VBert
    stats: SemanticStats
    codec: SemanticCodec | None = None
    """50 codes a second, for 2.0."""
    codec_25: SemanticCodec | None = None
    """25 codes a second, for 2.5."""
    conditioning: Conditioning | None = None
    conditioning_25: Conditioning | None = None
    campplus: CampPlus | None = None
    digests: Mapping[str, Json]
    """What the weights are, by column."""
    device: torch.device

    def of(self, target: Target) -> tuple[SemanticCodec, Conditioning]:
        """The codec and the conditioning networks of one release."""
        codec, own = (self.codec, self.conditioning) if target == "2.0" else (self.codec_25, self.conditioning_25)
        assert codec is not None, f"the codec of {target} was not loaded"
        assert own is not None, f"the conditioning of {target} was not loaded"
        return codec, own


class SpeechEncoder:
    """`woodshed.contracts.Encoder` for IndexTTS 2.0 and 2.5.

    Args:
        rules: text rules per target.
    """

    absent: tuple[str, ...] = ()
    """Features that a trainer expects and this encoder cannot make."""

    def __init__(self, networks: Networks, rules: Mapping[Target, Rules], options: SpeechOptions) -> None:
        self.networks, self.rules, self.options = networks, dict(rules), options

    @property
    def spec(self) -> RecordSpec:
        arrays: dict[str, ArraySpec] = {}
        for target in self.options.targets:
            arrays |= _array_specs(target, self.options.condition_dtype, self.networks.of(target)[1])
        main = "codes" if "2.0" in self.options.targets else "codes_25"
        downsample = 1 if main == "codes" else 2
        sizes = (self.networks.of(target)[0].codebook_size for target in self.options.targets)
        return RecordSpec(
            kind="speech",
            main=main,
            arrays=arrays,
            rate_hz=RATE_HZ,
            hop_samples=HOP_SAMPLES * downsample,
            audio_channels=1,
            codebook_sizes=tuple(sizes),
        )

    @property
    def fingerprint(self) -> Mapping[str, Json]:
        options = self.options
        names = ("compat", "first_rate_hz", "reference_s", "strict_trim", "condition_dtype")
        own = {name: getattr(options, name) for name in names}
        return {
            "architecture": "indextts",
            "targets": list(options.targets),
            "preprocessing": {"version": PREPROCESSING_VERSION, **own},
            "text": {target: dict(self.rules[target].fingerprint) for target in options.targets},
            "models": dict(self.networks.digests),
        }

    def outline(self, item: Item) -> Outline:
        assert item.audio is not None, f"item {item.id!r} has no length yet"
        duration_s = item.audio.duration_s
        check_duration(item, duration_s, self.options.limits)
        num_samples = round(duration_s * RATE_HZ)
        self._check(item, num_samples)
        seconds = duration_s + (self.options.reference_s if self._is_long(num_samples) else 0.0)
        return whole_clip(clip_cost_s(seconds))

    def _is_long(self, num_samples: int) -> bool:
        return not self.options.compat and num_samples > round(self.options.reference_s * RATE_HZ)

    def _check(self, item: Item, num_samples: int) -> None:
        frames = num_frames(num_samples)
        codes = max(self.networks.of(target)[0].num_codes(frames) for target in self.options.targets)
        check_frames(item, frames, codes, self.options.limits)

    def prepare(self, item: Item) -> Iterator[Example]:
        options = self.options
        first, *others = options.targets
        clip = read_clip(
            item, self.rules[first], options.limits, compat=options.compat, first_rate_hz=options.first_rate_hz
        )
        self._check(item, len(clip.wave))
        arrays = {named("text_ids", first): clip.text_ids}
        for target in others:
            rules = self.rules[target]
            text = rules.clean(item.meta["text"])
            ids = text_ids(item.id, text, spoken_language(item.meta, rules), rules, options.limits)
            arrays[named("text_ids", target)] = ids.ids
            clip.row.update(unknown_tokens(ids, suffix=named("", target)))
        facts = {"num_samples": np.array(len(clip.wave)), "row": row_to_array(clip.row)}
        reference = clip.wave
        arrays = {**arrays, **facts, **_heard(clip.wave)}
        if self._is_long(len(clip.wave)):
            reference = clip.wave[: round(options.reference_s * RATE_HZ)]
            arrays |= {BEGINNING + name: values for name, values in _heard(reference).items()}
        if self.networks.campplus is not None:
            arrays["fbank"] = campplus_fbank(reference)
        yield Example(item_id=item.id, index=0, arrays=arrays)

    def stand_in(self, item: Item) -> Example:
        """An example as long as the item and of its kind, with nothing in it."""
        assert item.audio is not None, f"item {item.id!r} has no length yet"
        num_samples = reference_samples = round(item.audio.duration_s * RATE_HZ)
        arrays = _unheard(num_samples)
        if self._is_long(num_samples):
            reference_samples = round(self.options.reference_s * RATE_HZ)
            arrays |= {BEGINNING + name: values for name, values in _unheard(reference_samples).items()}
        if self.networks.campplus is not None:
            arrays["fbank"] = np.zeros((num_fbank_frames(reference_samples), NUM_MELS), np.float32)
        return Example(item_id=item.id, index=0, arrays=arrays)

    @torch.inference_mode()
    def encode(self, batch: Sequence[Example]) -> list[Arrays]:
        made: list[dict[str, np.ndarray]] = [
            {name: example.arrays[name] for name in PASSED_ON if name in example.arrays} for example in batch
        ]
        everyone = list(range(len(batch)))
        long = [row for row in everyone if f"{BEGINNING}features" in batch[row].arrays]
        short = [row for row in everyone if row not in long]
        whole = self._hear(batch, everyone, "")
        for target in self.options.targets:
            self._add_codes(target, whole, made)
        if short:
            self._add_reference(whole.of(short), short, made)
        if long:
            self._add_reference(self._hear(batch, long, BEGINNING), long, made)
        if self.networks.campplus is not None:
            self._add_speaker(self.networks.campplus, batch, made)
        return [*made]

    def _hear(self, batch: Sequence[Example], rows: Sequence[int], prefix: str) -> _Heard:
        """The normalised semantic features of some rows, one w2v-bert pass."""
        networks, device = self.networks, self.networks.device
        clips = [torch.from_numpy(batch[row].arrays[f"{prefix}features"]) for row in rows]
        frames = torch.tensor([len(clip) for clip in clips])
        valid = torch.tensor([int(batch[row].arrays[f"{prefix}valid"]) for row in rows])
        hidden = networks.w2v_bert(pad_sequence(clips, batch_first=True).to(device), valid.to(device))
        return _Heard(normalise_features(hidden, networks.stats), frames, valid)

    def _add_codes(self, target: Target, heard: _Heard, made: list[dict[str, np.ndarray]]) -> None:
        codec, _ = self.networks.of(target)
        lengths = heard.valid if self.options.strict_trim else heard.frames
        codes = codec.codes(heard.features, lengths.to(heard.features.device)).cpu().numpy()
        for own, values, length in zip(made, codes, lengths.tolist(), strict=True):
            own[named("codes", target)] = values[: codec.num_codes(length)].astype(np.int32)

    def _add_reference(self, heard: _Heard, rows: Sequence[int], made: list[dict[str, np.ndarray]]) -> None:
        device = heard.features.device
        frames = heard.frames.to(device)
        # Inference hands over every frame as valid; the original preprocessing takes the front end's mask.
        visible = heard.valid.to(device) if self.options.compat else frames
        for target in self.options.targets:
            _, conditioning = self.networks.of(target)
            if target == "2.0":
                latents = conditioning.condition(heard.features, frames, visible).float().cpu().numpy()
                for row, values in zip(rows, latents, strict=True):
                    made[row]["condition"] = values.astype(self.options.condition_dtype)
            vectors = conditioning.emotion(heard.features, frames, visible).float().cpu().numpy()
            for row, values in zip(rows, vectors, strict=True):
                made[row][named("emo_vec", target)] = values

    def _add_speaker(self, campplus: CampPlus, batch: Sequence[Example], made: list[dict[str, np.ndarray]]) -> None:
        banks = [torch.from_numpy(example.arrays["fbank"]) for example in batch]
        lengths = torch.tensor([len(bank) for bank in banks])
        device = self.networks.device
        vectors = campplus.embed(pad_sequence(banks, batch_first=True).to(device), lengths.to(device))
        for own, values in zip(made, vectors.float().cpu().numpy(), strict=True):
            own["speaker_vec_25"] = values

    def joiner(self, item: Item) -> SpeechJoiner:  # noqa: ARG002 - the protocol's signature
        return SpeechJoiner(self.spec)


class SpeechJoiner:
    """Makes the record of a clip, which is one piece."""

    def __init__(self, spec: RecordSpec) -> None:
        self._spec = spec

    def add(self, part: Arrays) -> list[Record]:
        # copies: views would keep the whole batch alive
        arrays = {name: np.array(part[name], order="C") for name in self._spec.arrays}
        num_samples, num_codes = int(part["num_samples"]), len(arrays[self._spec.main])
        meta: dict[str, Json] = {
            "row": row_from_array(part["row"]),
            "num_samples": num_samples,
            "total_samples": num_samples,
            "num_frames": num_codes,
            "valid_frames": num_codes,
        }
        return [Record(arrays=arrays, meta=meta)]


@dataclass(frozen=True, slots=True)
class _Heard:
    """Semantic features of some clips, padded; their true frames, and those that are no padding at all."""

    features: Float[Tensor, "batch frame hidden"]
    frames: Int[Tensor, "batch"]
    valid: Int[Tensor, "batch"]

    def of(self, rows: Sequence[int]) -> _Heard:
        """Some of the clips, without frames that only others have."""
        chosen = torch.tensor(rows)
        frames = self.frames[chosen]
        features = self.features[chosen.to(self.features.device), : int(frames.max())]
        return _Heard(features, frames, self.valid[chosen])


def _heard(wave: Float32[np.ndarray, "sample"]) -> dict[str, np.ndarray]:
    return {"features": seamless_features(wave), "valid": np.array(num_valid(len(wave)))}


def _unheard(num_samples: int) -> dict[str, np.ndarray]:
    """What `_heard` gives of a clip of this length, but for the content."""
    features = np.zeros((num_frames(num_samples), STACK * NUM_MELS), np.float32)
    return {"features": features, "valid": np.array(num_valid(num_samples))}


def _array_specs(target: Target, condition_dtype: str, conditioning: Conditioning) -> dict[str, ArraySpec]:
    """Arrays of one release, in the order of the original's folders."""
    size = conditioning.model_dim
    emotion = ArraySpec(axes=("channel",), dtype="float32", bytes_per_frame=0, bytes_per_record=4 * size)
    specs = {
        "text_ids": ArraySpec(axes=("token",), dtype="int32", bytes_per_frame=0, bytes_per_record=4 * 64),
        "codes": ArraySpec(axes=("frame",), dtype="int32", bytes_per_frame=4),
    }
    if target == "2.0":
        item_bytes = np.dtype(condition_dtype).itemsize
        specs["condition"] = ArraySpec(
            axes=("latent", "channel"),
            dtype=condition_dtype,
            bytes_per_frame=0,
            bytes_per_record=item_bytes * conditioning.num_latents * size,
        )
    else:
        specs["speaker_vec"] = ArraySpec(
            axes=("channel",), dtype="float32", bytes_per_frame=0, bytes_per_record=4 * 192
        )
    return {named(name, target): spec for name, spec in (specs | {"emo_vec": emotion}).items()}


def named(array: str, target: Target) -> str:
    """The name of a release's array."""
    return array if target == "2.0" else f"{array}_25"


@lru_cache(MAX_OUTLINES_REMEMBERED)
def whole_clip(cost_s: float) -> Outline:
    """One piece, one record; the same object for clips of one cost, which are many."""
    return Outline(pieces=(Piece(key=CLIP, cost_s=cost_s),), num_records=1)


def clip_cost_s(duration_s: float) -> float:
    """Length in whole frames: rows of a manifest that gives durations and rows that were probed share batches."""
    return math.ceil(duration_s * 50 - 1e-6) / 50


def row_to_array(row: Mapping[str, Json]) -> np.ndarray:
    """A row's facts as bytes: examples hold arrays only."""
    return np.frombuffer(json.dumps(row).encode(), np.uint8)


def row_from_array(values: np.ndarray) -> dict[str, Json]:
    row: dict[str, Json] = json.loads(values.tobytes())
    return row
