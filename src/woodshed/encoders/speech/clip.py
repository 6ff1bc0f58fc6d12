"""One utterance as the networks want it: text ids, and 16 kHz mono sound whose limits have been checked.

The one working rate is 16 kHz: IndexTTS2's own inference resamples its reference to it, and the networks hear nothing
else. `compat` goes the original preprocessing's way instead: 24 kHz first, then 16 kHz, both by torchaudio's kernel;
the two differ by 4e-4 of full scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from woodshed.audio.channels import fit_channels, is_silent, peak
from woodshed.audio.decode import blocks
from woodshed.audio.probe import probe
from woodshed.audio.resample import Resampler, ResamplerName, make_resampler
from woodshed.contracts import AudioInfo, Item, Json
from woodshed.encoders.speech.published_values import MAX_CLIP_S, MIN_FRAMES, RATE_HZ
from woodshed.encoders.speech.text.pieces import TextIds
from woodshed.errors import ItemError

ANNOUNCED = "announced"
"""Format of an `AudioInfo` that a manifest's `duration` gave, and nobody's header."""
MAX_UNKNOWN_SHOWN = 20


@runtime_checkable
class Rules(Protocol):
    """A tokenizer with the rules for what goes into it; safe to share between threads."""

    compat: bool
    """Whether the original's rules are followed, faults included."""

    @property
    def fingerprint(self) -> Mapping[str, Json]:
        """What text ids depend on, beside the text and its language."""
        ...

    @property
    def vocab_size(self) -> int: ...

    def clean(self, text: str) -> str:
        """What a manifest stores of a text, and what `ids` takes."""
        ...

    def ids(self, text: str, language: str | None) -> TextIds:
        """Token ids of a cleaned text. Raises `ItemError` where there can be none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLimits:
    """What the trainer can take. Its position tables end at these lengths: a longer row would crash the training."""

    max_text_tokens: int = 600
    max_codes: int = 1815
    max_s: float = MAX_CLIP_S
    min_frames: int = MIN_FRAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One utterance, ready for the front ends."""

    wave: Float32[np.ndarray, "sample"]
    """At `RATE_HZ`, not clamped."""
    text_ids: Int32[np.ndarray, "token"]
    row: dict[str, Json]
    """What a manifest says of it: `text` (cleaned), `audio_path`, `speaker`, `language`, `duration` (seconds or None),
    and `unknown` (tokens) with `unknown_characters`; `recording` where the source names it. Where a run has a second
    tokenizer, that one's unknown tokens are in `unknown_25` and `unknown_characters_25`."""


def read_clip(item: Item, rules: Rules, limits: ClipLimits, *, compat: bool, first_rate_hz: int) -> Clip:
    """Tokenise, decode, resample and check one row: the cheap refusals first.

    Args:
        item: its metadata are what `woodshed.sources.speech_manifest` gives.
        first_rate_hz: rate before `RATE_HZ`; the same when there is only one step.

    Raises:
        ItemError: kinds `no_tokens`, `text_too_long`, `too_short`, `too_long`, `silent`, and those of decoding.
    """
    meta = item.meta
    text = rules.clean(meta["text"])
    ids = text_ids(item.id, text, spoken_language(meta, rules), rules, limits)
    info = item.audio if item.audio is not None and item.audio.format != ANNOUNCED else probe(item.path)
    check_duration(item, info.duration_s, limits)
    wave = read_wave(item.path, info, compat=compat, first_rate_hz=first_rate_hz)
    if is_silent(peak(wave[np.newaxis])):
        raise ItemError(f"{item.relpath} is silent throughout", kind="silent", hint="leave it out, or record it again")
    duration = meta.get("duration")
    row: dict[str, Json] = {
        "text": text,
        "audio_path": meta["audio_path"],
        "speaker": meta["speaker"],
        "language": meta["language"],
        "duration": duration if compat or duration is not None else round(info.duration_s, 6),
        **unknown_tokens(ids),
    }
    if "recording" in meta.get("extra", {}):
        row["recording"] = meta["extra"]["recording"]
    return Clip(wave=wave, text_ids=ids.ids, row=row)


def unknown_tokens(ids: TextIds, *, suffix: str = "") -> dict[str, Json]:
    """What a row's facts say of the ids that its tokenizer does not know; `suffix` ends the keys."""
    shown = "".join(ids.unknown[:MAX_UNKNOWN_SHOWN])
    return {f"unknown{suffix}": ids.num_unknown, f"unknown_characters{suffix}": shown}


def text_ids(row_id: str, text: str, language: str | None, rules: Rules, limits: ClipLimits) -> TextIds:
    """Token ids of a cleaned text, as many as the model can take.

    Raises:
        ItemError: kinds `no_tokens`, `text_too_long`, `bad_text`.
    """
    ids = rules.ids(text, language)
    if not len(ids.ids):
        raise ItemError(f"the text of {row_id!r} gives no tokens", kind="no_tokens", hint="give it words")
    if len(ids.ids) > limits.max_text_tokens:
        raise ItemError(
            f"the text of {row_id!r} has {len(ids.ids)} tokens; the model has positions for {limits.max_text_tokens}",
            kind="text_too_long",
            hint="split the utterance",
        )
    return ids


def spoken_language(meta: Mapping[str, Json], rules: Rules) -> str | None:
    """The language that a row is read in: its own `language`, else the run's (`hint`). The original goes by the run's
    alone."""
    run: str | None = meta.get("hint")
    own: str = meta["language"]
    return run if rules.compat else own.strip() or run


def check_duration(item: Item, duration_s: float, limits: ClipLimits) -> None:
    """Refuse a clip that is too long for the networks, from its announced or true length.

    Raises:
        ItemError: kind `too_long`.
    """
    if duration_s > limits.max_s:
        raise ItemError(
            f"{item.relpath} lasts {duration_s:.1f} s; the limit is {limits.max_s:g} s",
            kind="too_long",
            hint="split it into utterances",
        )


def check_frames(item: Item, num_frames: int, num_codes: int, limits: ClipLimits) -> None:
    """Refuse a clip of too few or too many model frames.

    Raises:
        ItemError: kinds `too_short`, `too_long`.
    """
    if num_frames < limits.min_frames:
        raise ItemError(
            f"{item.relpath} gives {num_frames} frames of 20 ms; the model needs {limits.min_frames}",
            kind="too_short",
            hint="leave it out",
        )
    if num_codes > limits.max_codes:
        raise ItemError(
            f"{item.relpath} gives {num_codes} codes; the model has positions for {limits.max_codes}",
            kind="too_long",
            hint="split it into utterances",
        )


def read_wave(path: str, info: AudioInfo, *, compat: bool, first_rate_hz: int) -> Float32[np.ndarray, "sample"]:
    """Decode a file, average its channels, bring it to `RATE_HZ`. Not clamped: front ends take what the resampler gave.

    Raises:
        AudioError: as `woodshed.audio.decode.blocks`.
    """
    kernel: ResamplerName = "torchaudio_functional" if compat else "soxr"
    sound: Iterator[Float32[np.ndarray, "1 time"]] = (fit_channels(block, 1) for block in blocks(path, info))
    rates = [info.rate_hz, first_rate_hz, RATE_HZ] if first_rate_hz != RATE_HZ else [info.rate_hz, RATE_HZ]
    for before, after in pairwise(rates):
        sound = _changed(sound, make_resampler(kernel, before, after, 1))
    return np.ascontiguousarray(np.concatenate(list(sound), axis=1)[0])


def _changed(
    source: Iterator[Float32[np.ndarray, "1 time"]], resampler: Resampler
) -> Iterator[Float32[np.ndarray, "1 time"]]:
    for block in source:
        yield resampler.push(block)
    yield resampler.flush()
