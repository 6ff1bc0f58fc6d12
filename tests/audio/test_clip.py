"""A file as a model wants it: rate, range, channels and length."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audio.conftest import GOLDEN, make_music
from woodshed.audio.clip import read, stream
from woodshed.audio.probe import probe
from woodshed.audio.resample import ResamplerName, make_resampler, resampled_length
from woodshed.errors import AudioError

INPUTS = GOLDEN / "stable_audio" / "inputs"


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("a_44100_stereo_0p9s.wav", 1e-7), ("b_48000_mono_1p2s.flac", 1e-6), ("e_16000_mono_0p5s.ogg", 1e-4)],
)
def test_equals_the_original_preprocessing(name: str, tolerance: float) -> None:
    wanted = np.load(GOLDEN / "stable_audio" / f"pre_stereo_{name}.npy")
    path = str(INPUTS / name)
    audio = read(path, probe(path), rate_hz=44_100, num_channels=2, resampler="torchaudio_sinc")
    assert audio.shape == wanted.shape
    assert np.abs(audio - wanted).max() <= tolerance


@settings(max_examples=30, deadline=None)
@given(
    num_samples=st.integers(1, 90_000),
    rates_hz=st.tuples(st.sampled_from([8_000, 22_050, 44_100]), st.sampled_from([16_000, 24_000, 44_100])),
    has=st.integers(1, 6),
    wanted=st.integers(1, 2),
    resampler=st.sampled_from(["soxr", "torchaudio_sinc"]),
)
def test_equals_the_steps_done_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory,
    num_samples: int,
    rates_hz: tuple[int, int],
    has: int,
    wanted: int,
    resampler: ResamplerName,
) -> None:
    path = str(tmp_path_factory.mktemp("clip") / "a.wav")
    audio = 3 * make_music(num_samples, has)  # beyond full scale, so that the order of clamp and mean shows
    soundfile.write(path, audio, rates_hz[0], subtype="FLOAT")
    info = probe(path)
    parts = list(stream(path, info, rate_hz=rates_hz[1], num_channels=wanted, resampler=resampler))
    result = np.concatenate(parts, axis=1)
    assert all(part.flags.c_contiguous and part.shape[1] and part.dtype == np.float32 for part in parts)

    changer = make_resampler(resampler, *rates_hz, has)
    plain = np.concatenate([changer.push(np.ascontiguousarray(audio.T)), changer.flush()], axis=1).clip(-1, 1)
    plain = plain.mean(axis=0, keepdims=True) if wanted == 1 else plain[[0, 0 if has == 1 else 1]]
    assert result.shape == (wanted, resampled_length(num_samples, *rates_hz))
    assert np.abs(result - plain).max() < 1e-6


def test_one_sample_and_a_fiftieth_of_a_second(sound_file: Callable[..., Path]) -> None:
    for num_samples in (1, 882):
        path = str(sound_file("a.wav", num_samples))
        audio = read(path, probe(path), rate_hz=16_000, num_channels=1)
        assert audio.shape == (1, resampled_length(num_samples, 44_100, 16_000))


def test_channels_that_do_not_fit_are_refused_before_decoding(sound_file: Callable[..., Path]) -> None:
    path = str(sound_file("a.wav"))
    info = probe(path)
    with pytest.raises(AudioError) as caught:
        next(stream("gone.wav", info, rate_hz=44_100, num_channels=4))
    assert caught.value.kind == "too_few_channels"


def test_huge_values_are_clamped_or_refused_but_never_nan(tmp_path: Path) -> None:
    path = str(tmp_path / "a.wav")
    soundfile.write(path, np.full(3000, 1e30, np.float32), 44_100, subtype="FLOAT")
    audio = read(path, probe(path), rate_hz=44_100, num_channels=2)
    assert np.array_equal(audio, np.ones((2, 3000)))
    # A filter sums these to infinity minus infinity.
    soundfile.write(path, np.sign(np.sin(np.arange(3000) / 9)) * np.float32(3.4e38), 44_100, subtype="FLOAT")
    for resampler in ("soxr", "torchaudio_sinc"):
        with suppress(AudioError):
            audio = read(path, probe(path), rate_hz=48_000, num_channels=1, resampler=resampler)
            assert np.abs(audio).max() <= 1
