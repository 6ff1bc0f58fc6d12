"""Filter-bank energies for CAMPPlus: the original's, up to what rounding does from machine to machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from woodshed.encoders.speech.fbank import campplus_fbank, kaldi_mels, num_fbank_frames
from woodshed.errors import ItemError

GOLDEN = Path(__file__).parents[2] / "golden" / "indextts2"
RATE_HZ = 16_000


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, num_samples).astype(np.float32)


def plainly(wave: np.ndarray) -> np.ndarray:
    """The definition, frame by frame and band by band, in double precision."""
    edges = np.linspace(kaldi_mels(20), kaldi_mels(8000), 82)
    mels = np.array([kaldi_mels(index * 31.25) for index in range(257)])
    rows = []
    for index in range(num_fbank_frames(len(wave))):
        frame = wave[160 * index : 160 * index + 400].astype(float)
        frame -= frame.mean()
        frame -= 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * np.hanning(400) ** 0.85, 512)) ** 2
        heights = [np.interp(mels, edges[band : band + 3], [0, 1, 0]) for band in range(80)]
        rows.append([np.log(max(power @ height, 2.0**-23)) for height in heights])
    return np.array(rows) - np.mean(rows, axis=0)


def test_equals_the_golden() -> None:
    waves = load_file(GOLDEN / "audio_features_io.safetensors")
    golden = load_file(GOLDEN / "campplus_tiny_io.safetensors")
    for size in (16_000, 24_007):
        error = np.abs(campplus_fbank(waves[f"wav_{size}"]) - golden[f"fbank_{size}"])
        # Below 1e-5 on the kind of processor that made the goldens.
        assert error.max() < 1e-4
        assert np.quantile(error, 0.97) < 1e-5


def test_equals_the_definition() -> None:
    wave = noise(RATE_HZ)
    error = np.abs(campplus_fbank(wave) - plainly(wave))
    assert error.max() < 2e-3
    assert np.median(error) < 5e-6


def test_bands_have_mean_zero_and_silence_is_zero() -> None:
    assert np.abs(campplus_fbank(noise(3 * RATE_HZ)).mean(axis=0)).max() < 1e-5
    assert np.abs(campplus_fbank(np.zeros(RATE_HZ, np.float32))).max() < 1e-5


def test_only_the_first_fifteen_seconds_are_heard() -> None:
    wave = noise(20 * RATE_HZ)
    heard = campplus_fbank(wave)
    assert heard.shape == (num_fbank_frames(15 * RATE_HZ), 80)
    assert np.array_equal(heard, campplus_fbank(wave[: 15 * RATE_HZ]))


def test_the_wave_is_left_alone() -> None:
    wave = noise(RATE_HZ)
    wave.flags.writeable = False
    assert campplus_fbank(wave[::-1]).shape == (98, 80)


@pytest.mark.parametrize("num_samples", [0, 400, 719])
def test_a_clip_without_three_frames_is_refused(num_samples: int) -> None:
    with pytest.raises(ItemError, match=r"lasts 0\.0\d+ s, and a speaker embedding needs 0\.045 s") as caught:
        campplus_fbank(noise(num_samples))
    assert caught.value.kind == "too_short"
    assert campplus_fbank(noise(720)).shape == (3, 80)
