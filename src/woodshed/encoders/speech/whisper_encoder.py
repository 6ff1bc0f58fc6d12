"""Utterances to text ids and semantic codes of Whisper: `woodshed speech --semantic whisper`.

These codes are not IndexTTS2's own. They come from a model that needs no download from a hub, and are real ones: phones
can be read off them (`recipes/speech_demo`). Conditioning, speaker and emotion have no such model, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from woodshed.contracts import Arrays, ArraySpec, Example, Item, Json, Outline, RecordSpec
from woodshed.encoders.speech.clip import ClipLimits, Rules, check_duration, check_frames, read_clip
from woodshed.encoders.speech.encoder import (
    HOP_SAMPLES,
    PASSED_ON,
    SpeechJoiner,
    clip_cost_s,
    row_to_array,
    whole_clip,
)
from woodshed.encoders.speech.published_values import RATE_HZ
from woodshed.encoders.speech.whisper import WhisperSemantic

PREPROCESSING_VERSION = 1
"""Raised whenever the same source would give other numbers."""


class WhisperEncoder:
    """`woodshed.contracts.Encoder` with Whisper as the semantic encoder."""

    absent = ("condition", "emo_vec")
    """Features that an IndexTTS2 trainer expects and this encoder cannot make."""

    def __init__(self, semantic: WhisperSemantic, rules: Rules, limits: ClipLimits) -> None:
        self._semantic, self.rules, self._limits = semantic, rules, limits

    @property
    def spec(self) -> RecordSpec:
        return RecordSpec(
            kind="speech",
            main="codes",
            arrays={
                "text_ids": ArraySpec(axes=("token",), dtype="int32", bytes_per_frame=0, bytes_per_record=4 * 64),
                "codes": ArraySpec(axes=("frame",), dtype="int32", bytes_per_frame=4),
            },
            rate_hz=RATE_HZ,
            hop_samples=HOP_SAMPLES,
            audio_channels=1,
            codebook_sizes=(self._semantic.codebook_size,),
        )

    @property
    def fingerprint(self) -> Mapping[str, Json]:
        return {
            "architecture": "whisper",
            "targets": ["2.0"],
            "preprocessing": {"version": PREPROCESSING_VERSION},
            "text": {"2.0": dict(self.rules.fingerprint)},
            "models": self._semantic.fingerprint,
        }

    def outline(self, item: Item) -> Outline:
        assert item.audio is not None, f"item {item.id!r} has no length yet"
        duration_s = item.audio.duration_s
        check_duration(item, duration_s, self._limits)
        self._check(item, round(duration_s * RATE_HZ))
        return whole_clip(clip_cost_s(duration_s))

    def _check(self, item: Item, num_samples: int) -> None:
        num_codes = self._semantic.num_codes(num_samples)
        check_frames(item, num_codes, num_codes, self._limits)

    def prepare(self, item: Item) -> Iterator[Example]:
        clip = read_clip(item, self.rules, self._limits, compat=False, first_rate_hz=RATE_HZ)
        self._check(item, len(clip.wave))
        arrays = {
            "text_ids": clip.text_ids,
            "num_samples": np.array(len(clip.wave)),
            "row": row_to_array(clip.row),
            "features": self._semantic.features(clip.wave),
        }
        yield Example(item_id=item.id, index=0, arrays=arrays)

    def stand_in(self, item: Item) -> Example:
        """An example as long as the item, with silence in it."""
        assert item.audio is not None, f"item {item.id!r} has no length yet"
        num_samples = round(item.audio.duration_s * RATE_HZ)
        arrays = {
            "num_samples": np.array(num_samples),
            "features": self._semantic.features(np.zeros(num_samples, np.float32)),
        }
        return Example(item_id=item.id, index=0, arrays=arrays)

    @torch.inference_mode()
    def encode(self, batch: Sequence[Example]) -> list[Arrays]:
        clips = [torch.from_numpy(example.arrays["features"]) for example in batch]
        frames = torch.tensor([len(clip) for clip in clips])
        codes = self._semantic.codes(pad_sequence(clips, batch_first=True), frames).cpu().numpy()
        made: list[Arrays] = []
        for example, values in zip(batch, codes, strict=True):
            own = {name: example.arrays[name] for name in PASSED_ON if name in example.arrays}
            num_codes = self._semantic.num_codes(int(own["num_samples"]))
            made.append({**own, "codes": values[:num_codes].astype(np.int32)})
        return made

    def joiner(self, item: Item) -> SpeechJoiner:  # noqa: ARG002 - the protocol's signature
        return SpeechJoiner(self.spec)
