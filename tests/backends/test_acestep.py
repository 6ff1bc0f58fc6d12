"""ACE-Step's loss against its formula written out, and what every `Trainable` promises, on tiny models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.encoders.acestep.tiny_acestep import TinyAceStep, build_acestep, save_upstream
from woodshed.backends.acestep import AceStep, load_acestep, timestep_quantile
from woodshed.backends.noise import noise
from woodshed.contracts import Draw, LossOfMany, Predicts, Trainable
from woodshed.encoders.acestep.names import layer_order
from woodshed.errors import ItemError, UsageError

GOLDEN = Path(__file__).parents[1] / "golden" / "sidestep"
LATENTS, WIDTH = 16, 24


@pytest.fixture(scope="module")
def parts() -> TinyAceStep:
    return build_acestep(silence_frames=10)


@pytest.fixture(scope="module")
def model(parts: TinyAceStep, tmp_path_factory: pytest.TempPathFactory) -> AceStep:
    return load_acestep(save_upstream(parts, tmp_path_factory.mktemp("checkpoint")))


def item(num_frames: int, num_tokens: int, *, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(LATENTS, num_frames, generator=draw),
        "mask": torch.ones(num_frames, dtype=torch.bool),
        "condition": torch.randn(num_tokens, WIDTH, generator=draw),
        "info": {"relpath": "song.wav"},
    }


def test_it_is_what_analysis_and_training_ask_for(model: AceStep) -> None:
    assert isinstance(model, Trainable)
    assert isinstance(model, Predicts)
    assert isinstance(model, LossOfMany)
    assert (model.variant.name, model.condition_dropout) == ("base", 0.15)


@pytest.mark.parametrize("drop_condition", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_loss_is_the_formula_written_out(
    mirrored: bool, drop_condition: bool, model: AceStep, parts: TinyAceStep
) -> None:
    song, draw = item(7, 5), Draw(seed=3, timestep=0.3, mirrored=mirrored, drop_condition=drop_condition)
    x0 = song["latents"].T[None]
    x1 = noise(Draw(seed=3), (LATENTS, 7), device="cpu", dtype=torch.float32).T[None] * (-1 if mirrored else 1)
    condition = song["condition"][None]
    if drop_condition:
        condition = parts.condition_encoder.null_condition_emb.repeat(1, 5, 1)
    context = torch.cat([parts.condition_encoder.silence_latent[:, :7], torch.ones(1, 7, LATENTS)], dim=-1)
    t = torch.tensor([0.3])
    with torch.no_grad():
        told = parts.transformer(
            hidden_states=0.3 * x1 + 0.7 * x0, timestep=t, timestep_r=t, encoder_hidden_states=condition,
            context_latents=context,
        ).sample  # fmt: skip
    example = model.example(song)
    assert model.loss(example, draw).item() == pytest.approx(float(((told - (x1 - x0)) ** 2).mean()), rel=1e-5)
    assert torch.allclose(model.predict(example, draw), told[0].T, atol=1e-5)


def test_silence_is_repeated_under_a_longer_song_as_inference_does(model: AceStep, parts: TinyAceStep) -> None:
    theirs, _ = parts.pipeline().prepare_src_latents("cpu", torch.float32, 1, latent_length=23)
    context = model._context(23)
    assert torch.equal(context[..., :LATENTS], theirs)
    assert bool((context[..., LATENTS:] == 1).all())


def test_gradients_reach_every_layer_and_nothing_else(model: AceStep) -> None:
    model.loss(model.example(item(9, 4)), Draw(seed=1, timestep=0.5)).backward()
    layers = model.layers()
    orders = [layer_order(name) for name in layers]
    assert list(orders) == sorted(orders)
    assert len(layers) == 2 * 11
    grads = {name: layer.weight.grad for name, layer in layers.items()}
    assert all(grad is not None and float(grad.abs().sum()) > 0 for grad in grads.values())
    reached = {id(p) for p in model.transformer.parameters() if p.grad is not None}
    assert reached == {id(layer.weight) for layer in layers.values()}
    model.transformer.zero_grad()


def test_equal_draws_give_equal_losses_bit_for_bit(model: AceStep) -> None:
    example, draw = model.example(item(8, 3)), Draw(seed=5, timestep=0.6)
    first = model.loss(example, draw)
    assert torch.equal(first, model.loss(model.example(item(8, 3)), Draw(seed=5, timestep=0.6)))
    others = [replace(draw, seed=6), replace(draw, timestep=0.61), replace(draw, mirrored=True)]
    assert all(model.loss(example, other).item() != first.item() for other in others)


def test_losses_of_many_are_those_of_each_alone(model: AceStep) -> None:
    shapes = [(8, 5), (5, 5), (8, 5), (8, 3), (8, 5), (5, 5)]
    examples = [model.example(item(*shape, seed=i)) for i, shape in enumerate(shapes)]
    draws = [
        Draw(seed=i, timestep=(i + 0.5) / 6, mirrored=i % 2 == 1, drop_condition=i in (2, 5))
        for i in range(len(shapes))
    ]
    single = torch.stack([model.loss(example, draw) for example, draw in zip(examples, draws, strict=True)])
    assert torch.allclose(model.losses(examples, draws), single, rtol=1e-5)


def test_padding_is_cut_off_before_the_network_can_hear_it(model: AceStep) -> None:
    song = item(9, 4)
    padded = dict(song)
    padded["latents"] = torch.cat([song["latents"], torch.full((LATENTS, 4), 9.0)], dim=1)
    padded["mask"] = torch.arange(13) < 9
    draw = Draw(seed=1, timestep=0.5)
    assert torch.equal(model.loss(model.example(song), draw), model.loss(model.example(padded), draw))


def test_half_precision_stays_near_the_exact_loss(parts: TinyAceStep, model: AceStep) -> None:
    half = AceStep(
        build_acestep(silence_frames=10).transformer.to(torch.bfloat16),
        silence=parts.condition_encoder.silence_latent, null_condition=parts.condition_encoder.null_condition_emb,
        variant=model.variant, mu=-0.4, sigma=1.0,
    )  # fmt: skip
    draw = Draw(seed=1, timestep=0.375)
    loss = half.loss(half.example(item(8, 3)), draw)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(model.loss(model.example(item(8, 3)), draw).item(), rel=0.02)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_losses(parts: TinyAceStep, model: AceStep) -> None:
    on_gpu = AceStep(
        build_acestep(silence_frames=10).transformer.to("cuda"),
        silence=parts.condition_encoder.silence_latent, null_condition=parts.condition_encoder.null_condition_emb,
        variant=model.variant, mu=-0.4, sigma=1.0,
    )  # fmt: skip
    draws = [Draw(seed=i, timestep=0.4, drop_condition=i == 1) for i in range(3)]
    losses = [m.losses([m.example(item(8, 3))] * 3, draws).detach().cpu() for m in (on_gpu, model)]
    assert torch.allclose(*losses, rtol=1e-4)


# Timesteps ---------------------------------------------------------------------------------------------------------

KNOWN = json.loads((GOLDEN / "timestep_samplers.json").read_text())


@pytest.mark.parametrize("known", [row for row in KNOWN["samplers"] if row["focus"] == "balanced"], ids=str)
def test_timestep_quantiles_are_side_steps(known: dict[str, Any]) -> None:
    """Measured there on a million draws, so to three digits."""
    ours = [timestep_quantile(level, mu=known["mu"], sigma=known["sigma"]) for level in KNOWN["quantile_levels"]]
    assert np.allclose(ours, known["quantiles"], atol=1.5e-3)


def test_evenly_spread_quantiles_have_the_distribution_of_the_training(model: AceStep) -> None:
    spread = np.array([model.timestep((i + 0.5) / 4096) for i in range(4096)])
    draws = 1 / (1 + np.exp(-(np.random.default_rng(0).normal(-0.4, 1.0, (2, 200_000)))))
    assert np.abs(np.quantile(draws.max(axis=0), np.linspace(0.02, 0.98, 25)) - np.quantile(
        spread, np.linspace(0.02, 0.98, 25)
    )).max() < 3e-3  # fmt: skip


@given(st.floats(0, 1), st.floats(0, 1))
def test_timesteps_rise_with_the_quantile_within_their_bounds(a: float, b: float) -> None:
    low, high = (timestep_quantile(q, mu=-0.4, sigma=1.0) for q in sorted((a, b)))
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("quantile", [-0.1, 1.1, float("nan")])
def test_quantiles_outside_are_refused(quantile: float) -> None:
    with pytest.raises(UsageError, match="not within 0 and 1"):
        timestep_quantile(quantile, mu=0.0, sigma=1.0)


# What cannot be looked at ------------------------------------------------------------------------------------------


def test_items_of_other_folders_are_refused(model: AceStep) -> None:
    song = item(4, 3)
    with pytest.raises(UsageError, match=r"this item has latents, mask, info.*woodshed songs"):
        model.example({key: value for key, value in song.items() if key != "condition"})
    with pytest.raises(UsageError, match="17 latents and a condition of width 24, this checkpoint takes 16 and 24"):
        model.example({**song, "latents": torch.zeros(17, 4)})


def test_songs_without_sound_and_songs_that_are_not_finite_are_named(model: AceStep) -> None:
    song = item(4, 3)
    with pytest.raises(ItemError, match=r"song\.wav has no frame") as caught:
        model.example({**song, "mask": torch.zeros(4, dtype=torch.bool)})
    assert caught.value.kind == "empty"
    with pytest.raises(ItemError, match=r"song\.wav holds values that are not finite"):
        model.example({**song, "condition": torch.full((3, WIDTH), torch.nan)})


@pytest.mark.parametrize("timestep", [None, 1.5])
def test_a_draw_needs_a_timestep(timestep: float | None, model: AceStep) -> None:
    with pytest.raises(UsageError, match=r"not between 0 .* and 1"):
        model.loss(model.example(item(4, 3)), Draw(seed=0, timestep=timestep))
