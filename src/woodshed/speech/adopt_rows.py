"""Whether a row that the original preprocessing made is what its batch of one gives, and whether by the same models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from woodshed.audio.probe import probe
from woodshed.audio.resample import resampled_length
from woodshed.contracts import AudioInfo, Item, Json, Record
from woodshed.encoders.speech.clip import Clip, read_clip
from woodshed.encoders.speech.encoder import SpeechEncoder
from woodshed.encoders.speech.frontend import num_frames, num_valid
from woodshed.encoders.speech.published_values import ORIGINAL_FIRST_RATE_HZ, RATE_HZ
from woodshed.errors import ItemError, StoreError
from woodshed.run.single import encode_item
from woodshed.speech.adopt_files import ARRAYS, FileSet, load
from woodshed.store.describe import ROW

ADOPTED = "adopted"
"""True in the facts of a row that the original made."""
SAME_CODES_SHARE = 0.9
"""The original's convolutions run with ten bits of precision on newer GPUs (TF32), which changes some codes where two
entries are about equally near; another checkpoint changes nearly all."""
FLOAT_TOLERANCE = 1e-2
"""Of condition and emotion, for the same reason; for values above 1, relative to the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """A row that can be kept."""

    item: Item
    """Probed."""
    record: Record
    files: FileSet
    audio_s: float
    digest: str = ""
    """Of the source's content."""


@dataclass(frozen=True, slots=True)
class Examiner:
    """Looks at rows for a run whose encoder is `encoder`. Safe to share between threads."""

    folder: Path
    encoder: SpeechEncoder

    def judge(self, item: Item, sets: Sequence[FileSet]) -> Sound | ItemError:
        """The first of the sets that is sound, or what is wrong with the first one.

        The cheap refusals come first: the lengths need the sound's header, the text its normal form, and only then is
        the sound decoded, since a silent or broken one would be refused if it came anew.
        """
        first: ItemError | None = None
        try:
            probed = replace(item, audio=probe(item.path))
            self.encoder.outline(probed)
            num_samples = self._num_samples(probed)
            clip: Clip | None = None
            for files in sets:
                try:
                    arrays = self._arrays(files, num_samples)
                except ItemError as error:
                    first = first or error
                    continue
                clip = clip or self._clip(probed)
                if np.array_equal(arrays["text_ids"], clip.text_ids):
                    return self._sound(probed, files, arrays, clip)
                first = first or _other_text(files, arrays["text_ids"], clip)
        except ItemError as error:
            return error
        assert first is not None, "a row without files is not looked at"
        return first

    def _num_samples(self, item: Item) -> int:
        """Samples at 16 kHz of the original's detour. Raises `ItemError` where its reference would not be ours."""
        audio, options = item.audio, self.encoder.options
        assert audio is not None
        num_samples = _detour_length(audio)
        if not options.compat and num_samples > round(options.reference_s * RATE_HZ):
            raise ItemError(
                f"{item.id!r} is longer than its reference may be ({options.reference_s:g} s)",
                kind="longer_than_reference",
            )
        return num_samples

    def _arrays(self, files: FileSet, num_samples: int) -> dict[str, np.ndarray]:
        """The arrays of a set, checked against all but the text, in the types that we store."""
        codec, conditioning = self.encoder.networks.of("2.0")
        visible = num_valid(num_samples) if self.encoder.options.strict_trim else num_frames(num_samples)
        paths = dict(zip(ARRAYS, files.paths, strict=True))
        arrays = {name: load(self.folder, path) for name, path in paths.items()}
        shapes: dict[str, tuple[int, ...]] = {
            "condition": (conditioning.num_latents, conditioning.model_dim),
            "emo_vec": (conditioning.model_dim,),
        }
        for name, array in arrays.items():
            wanted = shapes.get(name, (array.size,))
            kinds = ("f4",) if name in shapes else ("i4", "i8")
            if array.shape != wanted or array.dtype.str[1:] not in kinds:
                raise ItemError(
                    f"{paths[name]} holds {array.dtype} {list(array.shape)}, not {kinds[0]} {list(wanted)}",
                    kind="other_shape",
                )
        codes, num_codes = arrays["codes"], codec.num_codes(visible)
        if len(codes) != num_codes:
            raise ItemError(
                f"{paths['codes']} has {len(codes)} codes, and its sound gives {num_codes}",
                kind="padded_codes" if len(codes) > num_codes else "other_length",
            )
        if codes.min() < 0 or codes.max() >= codec.codebook_size:
            raise ItemError(f"{paths['codes']} holds codes from {codes.min()} to {codes.max()}", kind="out_of_range")
        made = {}
        for name, spec in self.encoder.spec.arrays.items():
            with np.errstate(over="ignore"):
                made[name] = arrays[name].astype(spec.dtype)
            if not np.isfinite(made[name]).all():
                raise ItemError(f"{paths[name]} holds NaN or infinity", kind="not_finite")
        return made

    def _clip(self, item: Item) -> Clip:
        """Text ids and row facts by this run's rules, and proof that the sound can be used."""
        encoder = self.encoder
        return read_clip(
            item,
            encoder.rules["2.0"],
            encoder.options.limits,
            compat=encoder.options.compat,
            first_rate_hz=ORIGINAL_FIRST_RATE_HZ,
        )

    def _sound(self, item: Item, files: FileSet, arrays: dict[str, np.ndarray], clip: Clip) -> Sound:
        num_codes, num_samples = len(arrays["codes"]), len(clip.wave)
        meta: dict[str, Json] = {
            ROW: {**clip.row, ADOPTED: True},
            "num_samples": num_samples,
            "total_samples": num_samples,
            "num_frames": num_codes,
            "valid_frames": num_codes,
        }
        assert item.audio is not None
        record = Record(arrays=arrays, meta=meta)
        return Sound(item=item, record=record, files=files, audio_s=item.audio.duration_s)


def _detour_length(audio: AudioInfo) -> int:
    first = resampled_length(audio.num_samples, audio.rate_hz, ORIGINAL_FIRST_RATE_HZ)
    return resampled_length(first, ORIGINAL_FIRST_RATE_HZ, RATE_HZ)


def _other_text(files: FileSet, text_ids: np.ndarray, clip: Clip) -> ItemError:
    path = files.paths[ARRAYS.index("text_ids")]
    there, here = (f"{ids[:6].tolist()}... ({len(ids)})" for ids in (text_ids, clip.text_ids))
    return ItemError(f"{path} holds {there}, and this run makes {here}", kind="other_text")


def demand_same_models(folder: Path, rows: Sequence[Sound], original: SpeechEncoder) -> None:
    """Compute some rows as the original would, one by one, and compare.

    Args:
        original: this run's models with the original's numbers.

    Raises:
        StoreError: too many codes differ over all rows, or the condition or emotion of one.
    """
    seen: list[tuple[float, str]] = []
    at = ARRAYS.index("codes")
    num_same = num_codes = 0
    for row in rows:
        (made,) = encode_item(original, row.item)
        there, here = row.record.arrays, made.arrays
        if there["codes"].shape != here["codes"].shape:
            # A sound whose two lengths differ by a sample at the border of a frame.
            continue
        same = int((there["codes"] == here["codes"]).sum())
        num_same, num_codes = num_same + same, num_codes + len(here["codes"])
        found = {name: _difference(there[name], here[name]) for name in ("condition", "emo_vec")}
        numbers = ", ".join(f"{name} differs by {difference:.2g}" for name, difference in found.items())
        seen.append((
            same / len(here["codes"]),
            f"of row {row.item.id!r} ({row.files.paths[at]}) {same} of {len(here['codes'])} codes are those of this "
            f"run's models, {numbers}",
        ))  # fmt: skip
        if not max(found.values()) <= FLOAT_TOLERANCE:
            _refuse(folder, seen[-1][1])
    if num_codes - num_same > max(1, (1 - SAME_CODES_SHARE) * num_codes):
        _refuse(folder, min(seen)[1])


def _difference(there: np.ndarray, here: np.ndarray) -> float:
    """Largest difference; relative to the largest value where that is above 1."""
    there, here = there.astype(np.float64), here.astype(np.float64)
    return float(np.abs(there - here).max() / max(1.0, np.abs(here).max()))


def _refuse(folder: Path, numbers: str) -> None:
    raise StoreError(
        f"{folder} was made with other checkpoints: {numbers}; nothing was changed",
        hint="name the checkpoints that made it (and --precision fp32), or choose another output folder",
    )
