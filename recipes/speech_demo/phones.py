"""Which phone is spoken when: forced alignment of a known text by PocketSphinx (`pip install pocketsphinx`)."""

from __future__ import annotations

import re

import numpy as np
from pocketsphinx import Decoder

from sources import RATE_HZ, Clip

FRAMES_PER_CODE = 2
"""PocketSphinx counts in frames of 10 ms."""
SILENCE = "SIL"


class Aligner:
    """PocketSphinx with its US English model."""

    def __init__(self) -> None:
        self.decoder = Decoder(lm=None, loglevel="FATAL")

    def phones(self, clip: Clip) -> list[str] | None:
        """The phone at the middle of each code (20 ms), or None where a word is unknown or the text does not fit."""
        words = re.sub(r"[^a-z' ]", " ", (clip.text or "").lower().replace("-", " ")).split()
        if not words or any(self.decoder.lookup_word(word) is None for word in words):
            return None
        sound = (clip.wave.clip(-1, 1) * 32767).astype(np.int16).tobytes()
        self.decoder.set_align_text(" ".join(words))
        self._decode(sound)
        if self.decoder.hyp() is None:
            return None
        try:
            self.decoder.set_alignment()
            self._decode(sound)
            alignment = self.decoder.get_alignment()
        except RuntimeError:  # the second pass found no way through
            return None
        if alignment is None:
            return None
        return self._at_codes(alignment, num_codes=(len(clip.wave) * 50 + RATE_HZ - 1) // RATE_HZ)

    def _decode(self, sound: bytes) -> None:
        self.decoder.start_utt()
        self.decoder.process_raw(sound, full_utt=True)
        self.decoder.end_utt()

    def _at_codes(self, alignment: object, *, num_codes: int) -> list[str]:
        frames = [SILENCE] * (num_codes * FRAMES_PER_CODE)
        for phone in alignment.phones():  # type: ignore[attr-defined] (a C extension's)
            name = phone.name if phone.name.isalpha() else SILENCE
            for frame in range(phone.start, min(phone.start + phone.duration, len(frames))):
                frames[frame] = name
        return frames[::FRAMES_PER_CODE]
