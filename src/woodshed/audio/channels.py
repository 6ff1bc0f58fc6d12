"""How many channels a model gets, whatever the file has; how loud counts as silence.

The rule is the one that stable-audio-tools trains with:

- one channel wanted: the mean of all channels;
- two wanted: mono is doubled, of more than two the first two are taken (no downmix);
- any other number: mono is repeated, of more the first ones are taken, and fewer (but not one) is an error.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from woodshed.errors import AudioError

SILENCE_DB = -60.0
"""A clip whose peak lies below this, relative to full scale, is silent."""


def take_needed(audio: Float32[np.ndarray, "channel time"], num_channels: int) -> Float32[np.ndarray, "needed time"]:
    """The channels of the file that the rule will look at; a view. Leaves the work of the others undone."""
    return audio if num_channels == 1 else audio[:num_channels]


def fit_channels(audio: Float32[np.ndarray, "channel time"], num_channels: int) -> Float32[np.ndarray, "wanted time"]:
    """Apply the channel rule.

    Raises:
        AudioError: kind `too_few_channels`.

    >>> fit_channels(np.array([[1, 1], [0, 0.5]], np.float32), 1)
    array([[0.5 , 0.75]], dtype=float32)
    """
    if len(audio) == num_channels:
        return audio
    if num_channels == 1:
        mean: np.ndarray = audio.mean(axis=0, keepdims=True, dtype=np.float32)
        return mean
    if len(audio) == 1:
        return np.repeat(audio, num_channels, axis=0)
    if len(audio) < num_channels:
        raise AudioError(
            f"the sound has {len(audio)} channels and {num_channels} are wanted",
            kind="too_few_channels",
            hint="use a model with fewer channels, or leave such files out",
        )
    return audio[:num_channels]


def peak(audio: Float32[np.ndarray, "channel time"]) -> float:
    """Largest magnitude; 0 of nothing."""
    return max(float(audio.max()), -float(audio.min())) if audio.size else 0.0


def is_silent(peak: float) -> bool:
    """Whether a clip with this peak (1 is full scale) counts as silent: below -60 dBFS.

    >>> is_silent(0.0009), is_silent(0.001)
    (True, False)
    """
    return peak < 10 ** (SILENCE_DB / 20)
