"""The channel rule and the silence rule."""

from __future__ import annotations

import numpy as np
import pytest

from woodshed.audio.channels import fit_channels, is_silent, peak, take_needed
from woodshed.errors import AudioError


def ramp(num_channels: int) -> np.ndarray:
    return (np.arange(num_channels)[:, None] + np.zeros(3)).astype(np.float32)


@pytest.mark.parametrize(
    ("has", "wanted", "levels"),
    [
        *[(1, 1, [0]), (2, 1, [0.5]), (6, 1, [2.5])],
        *[(1, 2, [0, 0]), (2, 2, [0, 1]), (6, 2, [0, 1])],
        *[(1, 4, [0, 0, 0, 0]), (4, 4, [0, 1, 2, 3]), (8, 4, [0, 1, 2, 3])],
    ],
)
def test_channel_rule(has: int, wanted: int, levels: list[float]) -> None:
    for audio in (ramp(has), take_needed(ramp(has), wanted)):
        fitted = fit_channels(audio, wanted)
        assert fitted.dtype == np.float32
        assert fitted[:, 0].tolist() == levels


def test_too_few_channels() -> None:
    with pytest.raises(AudioError, match="the sound has 2 channels and 4 are wanted") as caught:
        fit_channels(ramp(2), 4)
    assert caught.value.kind == "too_few_channels"


def test_silence_is_a_peak_below_minus_60_db() -> None:
    quiet = np.zeros((2, 100), np.float32)
    assert peak(quiet) == 0
    assert peak(quiet[:, :0]) == 0
    quiet[1, 50] = -0.000999
    assert is_silent(peak(quiet))
    quiet[1, 50] = -0.001001
    assert not is_silent(peak(quiet))
