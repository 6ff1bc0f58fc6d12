"""Windows give what the unchunked network gives, for any length, reach and window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from woodshed.batching.windows import cut, fill_silence, num_frames, plan_windows, silence_frames

HOP = 4
REACH = 3


def network() -> torch.nn.Module:
    """Three convolutions with biases; a frame sees less than three frames to each side."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv1d(1, 4, 7, padding=3),
        torch.nn.ELU(),
        torch.nn.Conv1d(4, 4, 8, stride=HOP, padding=2),
        torch.nn.ELU(),
        torch.nn.Conv1d(4, 5, 3, padding=1),
    ]
    return torch.nn.Sequential(*layers).double()


NETWORK = network()


def run(audio: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return NETWORK(torch.from_numpy(audio)[None])[0].numpy()


@settings(deadline=None, max_examples=200)
@given(
    num_samples=st.integers(1, 600),
    padding_frames=st.one_of(st.just(0), st.integers(0, 60)),
    spare=st.integers(1, 30),
    quantum=st.integers(1, 12),
)
def test_windows_equal_the_unchunked_encode(num_samples: int, padding_frames: int, spare: int, quantum: int) -> None:
    real = num_frames(num_samples, HOP)
    total = real + padding_frames
    window = 2 * REACH + max(spare, quantum)
    audio = np.random.default_rng(num_samples).standard_normal((1, num_samples))
    plan = plan_windows(real, total, reach=REACH, window=window, quantum=quantum)
    parts, position = [], 0
    for part in plan.windows:
        assert part.num_frames <= window
        assert part.keep_start == position
        position = part.keep_stop
        frames = run(cut(audio, part.start * HOP, part.stop * HOP))
        parts.append(frames[:, part.keep_start - part.start : part.keep_stop - part.start])
    silence = run(np.zeros((1, silence_frames(REACH) * HOP)))
    made = fill_silence(np.concatenate(parts, axis=1), plan, silence)
    expected = run(np.pad(audio, ((0, 0), (0, total * HOP - num_samples))))
    np.testing.assert_allclose(made, expected, atol=1e-12)


@given(real=st.integers(1, 10_000), reach=st.integers(0, 20), spare=st.integers(8, 100))
def test_starts_only_grow_and_overlap_is_bounded(real: int, reach: int, spare: int) -> None:
    window = 2 * reach + spare
    windows = plan_windows(real, real, reach=reach, window=window, quantum=8).windows
    starts = [part.start for part in windows]
    assert starts == sorted(set(starts))
    inner = real / (window - 2 * reach)
    assert len(windows) <= inner + 2


def test_a_short_clip_in_a_long_window_costs_only_itself() -> None:
    plan = plan_windows(43, 645, reach=8, window=80, quantum=8)
    assert sum(part.num_frames for part in plan.windows) == 64
    assert plan.total == 645


def test_a_window_without_room_for_context_is_refused() -> None:
    with pytest.raises(ValueError, match="need window > 16"):
        plan_windows(100, 100, reach=8, window=16, quantum=1)
