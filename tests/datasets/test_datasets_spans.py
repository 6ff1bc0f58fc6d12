"""Crops, masks and seconds: pure functions against plain statements of what they must give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from woodshed.datasets.crops import Crop, handed_out_frames, plan_crop
from woodshed.datasets.noise import normal_frames
from woodshed.datasets.spans import Clock, cropped_times, cropped_timestamps, read_span

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(
    stored=st.integers(1, 60),
    valid=st.integers(0, 60),
    crop_frames=st.integers(1, 70),
    pad=st.booleans(),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_a_random_crop_holds_as_much_sound_as_there_is(
    stored: int, valid: int, crop_frames: int, pad: bool, draw: float
) -> None:
    valid = min(valid, stored)
    crop = plan_crop(
        stored_frames=stored,
        valid_frames=valid,
        crop_frames=crop_frames,
        pad=pad,
        draw_below=lambda count: int(draw * count),
    )
    assert 0 <= crop.start <= crop.stop <= stored
    assert min(crop.stop, valid) - crop.start == min(crop_frames, valid)
    assert crop.num_frames == (crop_frames if pad else min(crop_frames, valid))
    assert crop.num_frames == handed_out_frames(
        stored_frames=stored, valid_frames=valid, crop_frames=crop_frames, pad=pad
    )


def test_every_start_can_be_drawn_the_last_one_included() -> None:
    counts = []

    def note(count: int) -> int:
        counts.append(count)
        return count - 1

    crop = plan_crop(stored_frames=128, valid_frames=78, crop_frames=38, pad=True, draw_below=note)
    assert counts == [41]  # starts 0 to 40; stable-audio-tools never draws 40
    assert crop == Crop(40, 78, 38)


@QUICK
@given(
    rate_hz=st.sampled_from([16_000, 44_100, 48_000]),
    window_frames=st.integers(1, 700),
    hop=st.sampled_from([320, 512, 2048]),
    extra=st.integers(0, 200_000_000),
    place=st.floats(0, 1),
)
def test_the_originals_fractions_give_the_exact_sample_of_the_start(
    metadata: Callable[..., dict[str, Any]], rate_hz: int, window_frames: int, hop: int, extra: int, place: float
) -> None:
    window = window_frames * hop
    offset = round(place * extra)
    meta = metadata(
        num_samples=window + extra,
        offset=offset,
        window_samples=window,
        rate_hz=rate_hz,
        valid_frames=window_frames,
        num_frames=window_frames,
    )
    span = read_span(meta, rows=8, stored_frames=window_frames, clock=Clock(hop_samples=hop))
    assert span.start_samples == offset
    assert span.valid_samples == window
    cut = Crop(window_frames // 2, window_frames, window_frames)
    times = cropped_times(span, cut)
    assert times["start_s"] == (offset + cut.start * hop) / rate_hz
    assert times["seconds_start"] == (offset + cut.start * hop) // rate_hz
    fractions = cropped_timestamps(meta["timestamps"], span, cut)
    assert fractions is not None
    assert fractions[0] == pytest.approx((offset + cut.start * hop) / (window + extra), abs=1e-12)
    assert fractions[1] == pytest.approx(meta["timestamps"][1], abs=1e-12)


@QUICK
@given(num_samples=st.integers(1, 2000), start=st.integers(0, 10_000), crop_frames=st.integers(1, 30), cut=st.data())
def test_our_metadata_gives_seconds_to_the_sample(
    num_samples: int, start: int, crop_frames: int, cut: st.DataObject
) -> None:
    stored = 20
    num_samples = min(num_samples, 200)
    meta = {"sample_offset": start, "num_samples": num_samples, "valid_frames": math.ceil(num_samples / 10)}
    span = read_span(meta, rows=2, stored_frames=stored, clock=Clock(rate_hz=100, hop_samples=10))
    assert span.valid_s == num_samples / 100
    assert span.mask.tolist() == [10 * frame < num_samples for frame in range(stored)]
    first = cut.draw(st.integers(0, stored - 1))
    crop = Crop(first, min(stored, first + crop_frames), crop_frames)
    times = cropped_times(span, crop)
    sound = [sample for sample in range(num_samples) if 10 * first <= sample < 10 * (first + crop_frames)]
    assert times["start_s"] == (start + 10 * first) / 100
    assert times["seconds_start"] == math.floor(times["start_s"] + 1e-9)
    assert times["duration_s"] == len(sound) / 100


def test_our_timestamps_are_fractions_of_the_file_though_the_last_window_is_padded() -> None:
    meta = {"sample_offset": 200, "num_samples": 50, "total_samples": 250, "valid_frames": 5, "timestamps": [0.8, 1.0]}
    span = read_span(meta, rows=2, stored_frames=20, clock=Clock(rate_hz=100, hop_samples=10))
    assert cropped_timestamps(meta["timestamps"], span, Crop(0, 20, 20)) == [0.8, 1.0]
    assert cropped_timestamps(meta["timestamps"], span, Crop(1, 4, 3)) == pytest.approx([210 / 250, 240 / 250])
    assert cropped_timestamps(None, span, Crop(1, 4, 3)) is None


def test_sound_of_a_short_file_is_bounded_by_its_whole_seconds(metadata: Callable[..., dict[str, Any]]) -> None:
    meta = metadata(num_samples=95, offset=0, window_samples=200, rate_hz=100, valid_frames=12, num_frames=20)
    span = read_span(meta, rows=2, stored_frames=20, clock=Clock(hop_samples=10))
    assert span.valid_samples == 100


@pytest.mark.parametrize("num_samples", [1, 49, 50, 51, 100, 170, 199])
def test_a_mask_that_was_resized_to_the_codebooks_loses_no_frame_of_sound(
    metadata: Callable[..., dict[str, Any]], num_samples: int
) -> None:
    rows, stored, window = 4, 20, 200
    meta = metadata(num_samples=num_samples, offset=0, window_samples=window, rate_hz=100, valid_frames=0, num_frames=0)
    meta["padding_mask"] = [int(row * window // rows < num_samples) for row in range(rows)]
    span = read_span(meta, rows=rows, stored_frames=stored, clock=Clock(hop_samples=10, window_samples=window))
    true_frames = math.ceil(num_samples / 10)
    assert true_frames <= span.valid_frames <= true_frames + stored // rows
    assert span.mask[: span.valid_frames].all()


def test_without_a_hop_times_stay_what_is_stored() -> None:
    meta = {"seconds_start": 3, "seconds_total": 9, "padding_mask": [1, 1, 0], "sample_rate": 44_100}
    span = read_span(meta, rows=2, stored_frames=3, clock=Clock())
    assert cropped_times(span, Crop(0, 3, 3)) == {"start_s": 3.0, "seconds_start": 3}
    assert span.valid_s is None


def test_a_mask_of_zeros_or_none_at_all() -> None:
    empty = read_span({"padding_mask": [0, 0]}, rows=2, stored_frames=2, clock=Clock())
    assert empty.valid_frames == 0
    assert read_span({}, rows=2, stored_frames=2, clock=Clock()).mask.tolist() == [True, True]


def test_noise_is_standard_normal_white_and_addressed_by_frame() -> None:
    field = normal_frames(6, 0, 20_000, seed=3, key=("clip", "moments"))
    assert np.abs(field.mean(axis=1)).max() < 0.03
    assert np.abs(field.std(axis=1) - 1).max() < 0.03
    assert np.abs(np.corrcoef(field) - np.eye(6)).max() < 0.04
    assert np.abs((field[:, 1:] * field[:, :-1]).mean(axis=1)).max() < 0.04
    assert (normal_frames(6, 777, 801, seed=3, key=("clip", "moments")) == field[:, 777:801]).all()
    assert not (normal_frames(6, 0, 9, seed=4, key=("clip", "moments")) == field[:, :9]).any()
