"""Computed reach against the support of gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from woodshed.encoders.oobleck import OobleckEncoder, OobleckShape
from woodshed.encoders.reach import OobleckReach, Step, length_after, probe_reach, span_of, verify_reach
from woodshed.errors import ModelError


@st.composite
def steps(draw: st.DrawFn) -> Step:
    kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, dilation * (kernel - 1) // 2))
    return Step(
        kernel=kernel, stride=draw(st.integers(1, 3)), dilation=dilation,
        padding_left=padding, padding_right=padding, transposed=draw(st.booleans()),
    )  # fmt: skip


def as_network(stack: list[Step]) -> nn.Sequential:
    kinds = {False: nn.Conv1d, True: nn.ConvTranspose1d}
    return nn.Sequential(
        *(
            kinds[s.transposed](1, 1, s.kernel, stride=s.stride, dilation=s.dilation, padding=s.padding_left)
            for s in stack
        )
    ).double()


@settings(max_examples=30, deadline=None)
@given(stack=st.lists(steps(), min_size=1, max_size=4), num_samples=st.integers(30, 60), where=st.floats(0, 1))
def test_length_and_span_are_those_of_the_network(stack: list[Step], num_samples: int, where: float) -> None:
    num_out = length_after(stack, num_samples)
    if num_out == 0:
        return
    wave = torch.randn(1, 1, num_samples, dtype=torch.float64, requires_grad=True)
    out = as_network(stack)(wave)
    assert out.shape[-1] == num_out
    index = min(num_out - 1, int(where * num_out))
    (gradient,) = torch.autograd.grad(out[0, 0, index], wave, allow_unused=True)
    support = gradient[0, 0].nonzero().flatten()
    first, last = span_of(stack, index, index + 1)
    assert all(first <= i < last for i in support.tolist())
    if first >= 0 and last <= num_samples and not any(s.transposed or s.stride > s.kernel for s in stack):
        assert (int(support[0]), int(support[-1]) + 1) == (first, last)


@pytest.mark.parametrize("strides", [(2, 4, 4, 8, 8), (2, 4, 8, 8), (4, 8, 16), (2,), (3, 5), (5, 3, 2), (7,)])
def test_the_probe_measures_exactly_what_is_computed(strides: tuple[int, ...]) -> None:
    blocks = (1,) * len(strides)
    encoder = OobleckEncoder(OobleckShape(audio_channels=1, channels=2, c_mults=blocks, strides=strides, latent_dim=2))
    reach = encoder.reach
    measured = probe_reach(
        encoder.double(), hop_samples=reach.hop_samples, channels=1, frames=2 * reach.frames + 5, num_probes=1
    )
    assert measured == (reach.left_frames, reach.right_frames)


def test_the_stable_audio_open_geometry_needs_eight_frames() -> None:
    reach = OobleckReach.of_encoder([2, 4, 4, 8, 8])
    assert (reach.left_frames, reach.right_frames, reach.hop_samples) == (8, 8, 2048)


@settings(max_examples=5, deadline=None)
@given(strides=st.lists(st.sampled_from([2, 3, 4, 5]), min_size=1, max_size=3), use_snake=st.booleans())
def test_random_encoders_pass_their_own_verification(strides: list[int], use_snake: bool) -> None:
    shape = OobleckShape(c_mults=(1,) * len(strides), strides=tuple(strides), use_snake=use_snake, channels=2)
    OobleckEncoder(shape).verify_reach()


def test_a_network_that_looks_further_than_computed_is_refused() -> None:
    wide = nn.Conv1d(1, 1, 4 * 3 + 1, stride=4, padding=6).double()
    with pytest.raises(ModelError, match=r"looks 2 frames to the left .* further than the computed 1"):
        verify_reach(wide, left_frames=1, right_frames=1, hop_samples=4, channels=1)
    verify_reach(wide, left_frames=2, right_frames=1, hop_samples=4, channels=1)


class Normalised(nn.Module):
    """A statistic of the whole signal behind a local convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.group_norm(self.conv(x), 1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(1, 2, 4, stride=4), nn.LSTM(2, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(self.conv(x).transpose(1, 2))[0]
        return out.transpose(1, 2)


@pytest.mark.parametrize("network", [Normalised(), Recurrent()])
def test_unbounded_support_is_recognised(network: nn.Module) -> None:
    assert probe_reach(network.double(), hop_samples=4, channels=1, frames=40) is None
    with pytest.raises(ModelError, match="depends on the whole of a signal"):
        verify_reach(network, left_frames=3, right_frames=3, hop_samples=4, channels=1)


def test_a_causal_network_looks_only_back() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 8, stride=4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(nn.functional.pad(x, (4, 0)))
            return out

    causal = Causal().double()
    with torch.inference_mode():
        assert probe_reach(causal, hop_samples=4, channels=1, frames=11) == (1, 0)


def test_a_wrong_hop_is_told() -> None:
    with pytest.raises(ModelError, match="gives 20 frames for 40 samples, 10 were expected"):
        probe_reach(nn.Conv1d(1, 1, 2, stride=2).double(), hop_samples=4, channels=1, frames=10)


def test_impossible_geometry_is_refused() -> None:
    with pytest.raises(ModelError, match="no convolution has the geometry"):
        Step(kernel=0)
