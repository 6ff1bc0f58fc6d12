"""The front end of w2v-bert: equal to the original bit for bit, in any thread, in bounded memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from woodshed.encoders.speech.frontend import num_fbank_frames, num_frames, num_valid, seamless_features
from woodshed.errors import ItemError

GOLDEN = Path(__file__).parents[2] / "golden" / "indextts2"
RATE_HZ = 16_000


@lru_cache(maxsize=1)
def original() -> Any:
    from transformers import SeamlessM4TFeatureExtractor

    return SeamlessM4TFeatureExtractor(
        feature_size=80, num_mel_bins=80, sampling_rate=RATE_HZ, stride=2, padding_value=1.0
    )


def originally(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    result = original()(wave, sampling_rate=RATE_HZ, return_tensors="np")
    return result["input_features"][0], result["attention_mask"][0]


def noise(num_samples: int, *, peak: float = 0.3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-peak, peak, num_samples).astype(np.float32)


def test_equals_the_golden() -> None:
    golden = load_file(GOLDEN / "audio_features_io.safetensors")
    sizes = [name.removeprefix("wav_") for name in golden if name.startswith("wav_")]
    assert len(sizes) == 8
    for size in sizes:
        if size == "400":
            continue
        features = seamless_features(golden[f"wav_{size}"])
        assert features.dtype == np.float32
        assert np.abs(features - golden[f"feat_{size}"][0]).max() < 1e-5
        assert num_valid(int(size)) == golden[f"mask_{size}"].sum()


def test_counts_equal_the_golden() -> None:
    for case in json.loads((GOLDEN / "audio_features.json").read_text())["cases"]:
        samples = case["samples"]
        counts = (num_fbank_frames(samples), num_frames(samples), num_valid(samples))
        assert counts == (case["fbank_frames"], case["model_frames"], case["mask_sum"])


@settings(max_examples=25, deadline=None)
@given(
    num_samples=st.integers(560, 45_000),
    peak=st.sampled_from((1.0, 0.1, 1e-4)),
    silent=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@example(num_samples=20_000, peak=1.0, silent=1.0, seed=0)
@example(num_samples=400 + 127 * 160, peak=1.0, silent=0.0, seed=0)
@example(num_samples=400 + 128 * 160, peak=1.0, silent=0.0, seed=0)
def test_equals_the_original(num_samples: int, peak: float, silent: float, seed: int) -> None:
    wave = noise(num_samples, peak=peak, seed=seed)
    wave[: round(num_samples * silent)] = 0
    wanted, mask = originally(wave)
    features = seamless_features(wave)
    assert features.shape == wanted.shape == (num_frames(num_samples), 160)
    assert np.abs(features - wanted).max() < 1e-5
    assert num_valid(num_samples) == mask.sum()


def test_equals_the_original_where_bands_hardly_vary() -> None:
    time_s = np.arange(3 * RATE_HZ) / RATE_HZ
    quiet = np.random.default_rng(0).integers(-1, 2, 3 * RATE_HZ) / 2**15
    for wave in (np.full(RATE_HZ, 0.25), 0.5 * np.sin(2 * np.pi * 440 * time_s), quiet):
        single = wave.astype(np.float32)
        assert np.abs(seamless_features(single) - originally(single)[0]).max() < 1e-5


def test_any_memory_layout_will_do() -> None:
    stereo = noise(2 * RATE_HZ).reshape(-1, 2)
    stereo.flags.writeable = False
    assert np.array_equal(seamless_features(stereo[:, 1]), seamless_features(stereo[:, 1].copy()))


@pytest.mark.parametrize("num_samples", [0, 399, 400, 559])
def test_a_clip_without_two_frames_is_refused(num_samples: int) -> None:
    with pytest.raises(ItemError, match=r"lasts 0\.0\d+ s, and a speech feature needs 0\.035 s") as caught:
        seamless_features(noise(num_samples))
    assert caught.value.kind == "too_short"
    assert np.isfinite(seamless_features(noise(560))).all()


def test_threads_do_not_disturb_each_other() -> None:
    waves = [noise(8_000 + 777 * index, seed=index) for index in range(24)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(seamless_features, waves))
    assert all(np.array_equal(found, seamless_features(wave)) for found, wave in zip(together, waves, strict=True))


def test_a_long_clip_needs_little_more_than_its_features() -> None:
    wave = noise(200 * RATE_HZ)
    seamless_features(wave[:RATE_HZ])
    tracemalloc.start()
    features = seamless_features(wave)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 3.5 * features.nbytes + (8 << 20)


@pytest.mark.slow
def test_is_several_times_faster_than_the_original() -> None:
    wave = noise(10 * RATE_HZ)

    def best_s(compute: Any) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            compute(wave)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best_s(seamless_features) < best_s(originally) / 3
