"""The Oobleck networks against a plain version of them, and cut against whole."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.encoders.plain_oobleck import PlainAutoencoder, model_config
from woodshed.encoders import oobleck
from woodshed.encoders.oobleck import (
    OobleckDecoder,
    OobleckEncoder,
    OobleckShape,
    canonical_name,
    fold,
    folded_name,
)
from woodshed.encoders.snake import compile_snake, sine_squared
from woodshed.errors import ModelError


def filled(network: nn.Module, plain: nn.Module, dtype: torch.dtype) -> nn.Module:
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in plain.state_dict().items():
        groups.setdefault(folded_name(key), {})[canonical_name(key).rpartition(".")[2]] = value
    network.load_state_dict({key: fold(parts, dtype=dtype) for key, parts in groups.items()}, assign=True)
    return network.requires_grad_(False).eval()


def networks(
    config: dict[str, Any], *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[PlainAutoencoder, OobleckEncoder, OobleckDecoder]:
    plain = PlainAutoencoder(config["model"], seed=seed).to(dtype)
    shapes = {
        side: OobleckShape.from_config(config["model"][side]["config"], side=side, where="config")
        for side in ("encoder", "decoder")
    }
    encoder = filled(OobleckEncoder(shapes["encoder"]), plain.encoder, dtype)
    decoder = filled(OobleckDecoder(shapes["decoder"]), plain.decoder, dtype)
    assert isinstance(encoder, OobleckEncoder)
    assert isinstance(decoder, OobleckDecoder)
    return plain, encoder, decoder


strides = st.lists(st.sampled_from([2, 3, 4, 5, 8]), min_size=1, max_size=3).map(tuple)


@settings(max_examples=8, deadline=None)
@given(
    strides=strides,
    audio_channels=st.sampled_from([1, 2, 6]),
    use_snake=st.booleans(),
    final_tanh=st.booleans(),
    nearest=st.booleans(),
    frames=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_networks_equal_the_plain_version(
    strides: tuple[int, ...],
    audio_channels: int,
    use_snake: bool,
    final_tanh: bool,
    nearest: bool,
    frames: int,
    seed: int,
) -> None:
    config = model_config(
        strides=strides, c_mults=(1, 2, 3)[: len(strides)], audio_channels=audio_channels, use_snake=use_snake,
        final_tanh=final_tanh, use_nearest_upsample=nearest,
    )  # fmt: skip
    plain, encoder, decoder = networks(config, dtype=torch.float64, seed=seed)
    audio = torch.randn(2, audio_channels, frames * encoder.shape.ratio, dtype=torch.float64)
    latents = torch.randn(2, 6, frames, dtype=torch.float64)
    with torch.inference_mode():
        features = encoder(audio)
        assert features.shape[-1] == frames == encoder.num_frames(audio.shape[-1])
        torch.testing.assert_close(features, plain.encoder(audio), rtol=0, atol=1e-11)
        sound = decoder(latents)
        assert sound.shape[-1] == decoder.num_samples(frames)
        torch.testing.assert_close(sound, plain.decoder(latents), rtol=0, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(strides=st.lists(st.integers(1, 9), min_size=1, max_size=3), num_samples=st.integers(1, 400))
def test_the_number_of_frames_is_what_the_convolutions_make(strides: list[int], num_samples: int) -> None:
    with torch.device("meta"):
        shape = OobleckShape(channels=1, c_mults=(1,) * len(strides), strides=tuple(strides), latent_dim=1)
        encoder = OobleckEncoder(shape)
        expected = encoder.num_frames(num_samples)
        if expected:
            assert encoder.layers(torch.empty(1, 2, num_samples)).shape[-1] == expected
        else:
            with pytest.raises(RuntimeError):
                encoder.layers(torch.empty(1, 2, num_samples))
    if min(strides) > 1:
        frames = 1 + num_samples % 20
        assert encoder.num_frames(frames * shape.ratio) == frames


@settings(max_examples=6, deadline=None)
@given(strides=strides, tile=st.integers(40, 400), frames=st.integers(3, 60), seed=st.integers(0, 99))
def test_tiles_give_what_the_whole_gives(strides: tuple[int, ...], tile: int, frames: int, seed: int) -> None:
    config = model_config(strides=strides, c_mults=(1, 2, 3)[: len(strides)])
    _, encoder, _ = networks(config, dtype=torch.float64, seed=seed)
    audio = torch.randn(1, 2, frames * encoder.shape.ratio, dtype=torch.float64)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(oobleck, "MIN_TILE_SAMPLES", 1)
        patch.setattr(oobleck, "TILE_ELEMENTS", tile)
        torch.testing.assert_close(encoder(audio), encoder.layers(audio), rtol=0, atol=1e-11)


@settings(max_examples=6, deadline=None)
@given(strides=strides, kept=st.integers(1, 6), frames=st.integers(20, 40), use_snake=st.booleans())
def test_chunks_with_the_computed_reach_equal_the_whole(
    strides: tuple[int, ...], kept: int, frames: int, use_snake: bool
) -> None:
    config = model_config(strides=strides, c_mults=(1, 2, 3)[: len(strides)], use_snake=use_snake)
    _, encoder, _ = networks(config, dtype=torch.float64)
    reach, hop = encoder.reach, encoder.shape.ratio
    audio = torch.randn(1, 2, frames * hop, dtype=torch.float64)
    with torch.inference_mode():
        whole = encoder(audio)
        for start in range(0, frames, kept):
            stop = min(start + kept, frames)
            first, last = max(0, start - reach.left_frames), min(frames, stop + reach.right_frames)
            part = encoder(audio[..., first * hop : last * hop])[..., start - first : stop - first]
            torch.testing.assert_close(part, whole[..., start:stop], rtol=0, atol=1e-10)


@settings(max_examples=6, deadline=None)
@given(strides=strides, nearest=st.booleans(), kept=st.integers(1, 6), frames=st.integers(24, 40))
def test_decoded_chunks_with_the_computed_reach_equal_the_whole(
    strides: tuple[int, ...], nearest: bool, kept: int, frames: int
) -> None:
    config = model_config(strides=strides, c_mults=(1, 2, 3)[: len(strides)], use_nearest_upsample=nearest)
    _, _, decoder = networks(config, dtype=torch.float64)
    reach, hop = decoder.reach, decoder.shape.ratio
    latents = torch.randn(1, 6, frames, dtype=torch.float64)
    with torch.inference_mode():
        whole = decoder(latents)
        for start in range(0, frames, kept):
            stop = min(start + kept, frames)
            first, last = max(0, start - reach.left_frames), min(frames, stop + reach.right_frames)
            part = decoder(latents[..., first:last])[..., (start - first) * hop : (stop - first) * hop]
            torch.testing.assert_close(part, whole[..., start * hop : stop * hop], rtol=0, atol=1e-10)


def test_a_clip_in_a_batch_is_the_clip_alone_to_the_bit() -> None:
    _, encoder, _ = networks(model_config(strides=(4, 8)))
    audio = torch.randn(5, 2, 3200)
    with torch.inference_mode():
        batch = encoder(audio)
        assert all(torch.equal(batch[i : i + 1], encoder(audio[i : i + 1])) for i in range(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype: torch.dtype) -> None:
    plain, encoder, decoder = networks(model_config())
    audio, latents = torch.randn(1, 2, 400), torch.randn(1, 6, 20)
    with torch.inference_mode():
        near = encoder.to(dtype)(audio.to(dtype)).float()
        assert (near - plain.encoder(audio)).abs().max() < 0.1
        assert (decoder.to(dtype)(latents.to(dtype)).float() - plain.decoder(latents)).abs().max() < 0.1


def test_gradients_flow_and_agree_with_the_plain_version() -> None:
    plain, encoder, _ = networks(model_config(), dtype=torch.float64)
    audio = torch.randn(1, 2, 160, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(encoder(audio).square().sum(), audio)
    (theirs,) = torch.autograd.grad(plain.encoder(audio).square().sum(), audio)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_the_polynomial_sine_is_off_by_rounding_only() -> None:
    angle = torch.cat([torch.linspace(-20, 20, 100_001), torch.linspace(-20_000, 20_000, 100_001)])
    exact = angle.double().sin().square()
    error = (sine_squared(angle) - exact).abs()
    assert (error <= 4e-7 + 1.2e-7 * angle.abs()).all()
    assert error[:100_001].max() < 4e-7
    assert sine_squared(torch.tensor([math.nan, math.inf])).isnan().all()


@pytest.mark.slow
def test_the_compiled_snake_stays_within_rounding() -> None:
    _, encoder, _ = networks(model_config(channels=8))
    audio = torch.randn(1, 2, 8000)
    with torch.inference_mode():
        before = encoder(audio)
        compile_snake(encoder)
        assert (encoder(audio) - before).abs().max() < 2e-6 * before.abs().max()
        assert (encoder(audio[..., :4000]) - encoder.layers(audio[..., :4000])).abs().max() < 2e-6 * before.abs().max()
        pair = torch.cat([audio, -audio])
        assert (encoder.layers(pair)[:1] - before).abs().max() < 2e-6 * before.abs().max()


COUNT_KERNELS = """
import torch
from woodshed.encoders.oobleck import OobleckEncoder, OobleckShape
from woodshed.encoders.snake import compile_snake
shape = OobleckShape(channels=4, c_mults=(1, 2, 4, 8), strides=(2, 2, 2, 2), latent_dim=4, use_snake=True)
encoder = OobleckEncoder(shape)
compile_snake(encoder)
with torch.inference_mode():
    for batch, length in ((1, 8000), (1, 4000), (3, 20000)):
        encoder(torch.randn(batch, 2, length))
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
def test_the_compiler_makes_few_kernels_for_all_shapes() -> None:
    # in a process of its own: the shape checks that the tests turn on would be compiled as well
    done = subprocess.run([sys.executable, "-c", COUNT_KERNELS], check=True, capture_output=True, text=True)
    assert int(done.stdout) <= 2  # for contiguous input, and for slices


def test_soft_clip_is_a_tanh_behind_the_decoder() -> None:
    _, _, decoder = networks(model_config(final_tanh=False))
    options = {"out_channels": 2, "channels": 4, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 6}
    shape = OobleckShape.from_config(
        {**options, "use_snake": True, "final_tanh": False, "soft_clip": True}, side="decoder", where="config"
    )
    clipped = OobleckDecoder(shape)
    clipped.load_state_dict(decoder.state_dict())
    latents = torch.randn(1, 6, 5)
    with torch.inference_mode():
        assert torch.equal(clipped(latents), torch.tanh(decoder(latents)))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"antialias_activation": True}, "antialias_activation=true is not supported"),
        ({"final_tanh": True}, "option 'final_tanh' of an oobleck encoder is not supported"),
        ({"strides": [2, 4, 8]}, "c_mults has 2 entries and strides 3"),
        ({"strides": [2, 0]}, "strides is \\[2, 0\\]"),
        ({"use_snake": "yes"}, "use_snake is 'yes', a value of type bool was expected"),
        ({"channels": 0}, "channel counts and latent_dim are 1 or more"),
    ],
)
def test_options_that_we_do_not_have_are_named(option: dict[str, Any], message: str) -> None:
    options = {"in_channels": 2, "channels": 4, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 6, **option}
    with pytest.raises(ModelError, match=message):
        OobleckShape.from_config(options, side="encoder", where="config")
