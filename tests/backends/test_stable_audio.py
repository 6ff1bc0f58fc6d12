"""Stable Audio's loss against its formula and its own pipeline, and what a `Trainable` promises, on a tiny model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderOobleck,
    EDMDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)

from woodshed.backends.noise import noise
from woodshed.backends.stable_audio import StableAudio, load_stable_audio
from woodshed.contracts import Draw, LossOfMany, Predicts, Trainable
from woodshed.errors import ItemError, ModelError, UsageError

LATENTS, WIDTH, HOP, RATE_HZ = 6, 16, 2048, 44_100


@pytest.fixture(scope="module")
def pipeline() -> StableAudioPipeline:
    """The true classes with random weights; the pipeline runs on embeddings, so that it needs no text encoder."""
    torch.manual_seed(0)
    transformer = StableAudioDiTModel(
        sample_size=12, in_channels=LATENTS, out_channels=LATENTS, num_layers=2, attention_head_dim=16,
        num_attention_heads=4, num_key_value_attention_heads=2, cross_attention_dim=32, time_proj_dim=8,
        global_states_input_dim=2 * WIDTH, cross_attention_input_dim=WIDTH,
    )  # fmt: skip
    vae = AutoencoderOobleck(
        encoder_hidden_size=2 * LATENTS, downsampling_ratios=[2, 4, 4, 8, 8], channel_multiples=[1, 1, 1, 1, 1],
        decoder_channels=4, decoder_input_channels=LATENTS, sampling_rate=RATE_HZ,
    )  # fmt: skip
    return StableAudioPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
        projection_model=StableAudioProjectionModel(WIDTH, WIDTH, min_value=0, max_value=512),
        # Of the family that the published one is of, which needs one more package.
        scheduler=EDMDPMSolverMultistepScheduler(
            prediction_type="v_prediction", sigma_data=1.0, sigma_min=0.3, sigma_max=500.0
        ),
    )


@pytest.fixture(scope="module")
def folder(pipeline: StableAudioPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "stable-audio-tiny"
    for part in ("transformer", "projection_model", "vae"):
        getattr(pipeline, part).save_pretrained(folder / part)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableAudioPipeline"}))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> StableAudio:
    return load_stable_audio(folder)


def item(num_frames: int = 12, num_tokens: int | None = 3, *, seed: int = 0, **info: Any) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    made = {"latents": torch.randn(LATENTS, num_frames, generator=draw), "info": {"relpath": "rain.wav", **info}}
    if num_tokens is not None:
        made["condition"] = torch.randn(num_tokens, WIDTH, generator=draw)
    return made


def test_it_is_what_analysis_and_training_ask_for(model: StableAudio) -> None:
    assert isinstance(model, Trainable)
    assert isinstance(model, Predicts)
    assert isinstance(model, LossOfMany)
    assert (model.variant.name, model.condition_dropout, model.timestep(0.3)) == ("stable-audio-tiny", 0.1, 0.3)


def test_the_network_sees_what_its_pipeline_shows_it(model: StableAudio, pipeline: StableAudioPipeline) -> None:
    seen: dict[str, dict[str, Any]] = {}

    def spy(name: str) -> Any:
        return lambda module, args, kwargs: seen.__setitem__(name, kwargs)

    clip = item(seconds_start=3, seconds_total=3.5)
    hooks = [
        network.register_forward_pre_hook(spy(name), with_kwargs=True)
        for name, network in (("ours", model.transformer), ("theirs", pipeline.transformer))
    ]
    model.loss(model.example(clip), Draw(seed=0, timestep=0.5))
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        prompt_embeds=clip["condition"][None], audio_start_in_s=3.0, audio_end_in_s=3.5, num_inference_steps=1,
        guidance_scale=1.0, output_type="latent",
    )  # fmt: skip
    for hook in hooks:
        hook.remove()
    for name in ("encoder_hidden_states", "global_hidden_states"):
        assert torch.allclose(seen["ours"][name], seen["theirs"][name], atol=1e-6), name
    for ours, theirs in zip(seen["ours"]["rotary_embedding"], seen["theirs"]["rotary_embedding"], strict=True):
        assert torch.equal(ours, theirs)


def test_the_target_is_what_the_pipelines_scheduler_takes_for_the_truth(pipeline: StableAudioPipeline) -> None:
    """From the noised data and the true v, its scheduler finds the data; its sigma is the noise to one part of data."""
    scheduler, t = pipeline.scheduler, 0.4
    x0, x1 = torch.randn(1, LATENTS, 9), torch.randn(1, LATENTS, 9)
    a, s = math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)
    sigma = torch.tensor(s / a)
    at_sigma = x0 + sigma * x1
    assert torch.allclose(scheduler.precondition_inputs(at_sigma, sigma), a * x0 + s * x1, atol=1e-5)
    assert torch.allclose(scheduler.precondition_outputs(at_sigma, a * x1 - s * x0, sigma), x0, atol=1e-5)


@pytest.mark.parametrize("drop_condition", [False, True])
def test_the_loss_is_the_formula_written_out(
    drop_condition: bool, model: StableAudio, pipeline: StableAudioPipeline
) -> None:
    clip, draw = item(), Draw(seed=3, timestep=0.3, mirrored=True, drop_condition=drop_condition)
    example = model.example(clip)
    x0, x1 = clip["latents"][None], -noise(Draw(seed=3), (LATENTS, 12), device="cpu", dtype=torch.float32)[None]
    a, s = math.cos(0.3 * math.pi / 2), math.sin(0.3 * math.pi / 2)
    with torch.no_grad():
        told = pipeline.transformer(
            a * x0 + s * x1, torch.tensor([0.3]), return_dict=False,
            encoder_hidden_states=example.condition[None] * (0 if drop_condition else 1),
            global_hidden_states=example.timing[None], rotary_embedding=model._rotations(13),
        )[0]  # fmt: skip
    expected = (told - (a * x1 - s * x0)).square().mean().item()
    assert model.loss(example, draw).item() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(model.predict(example, draw), told[0], atol=1e-5)


def test_a_clip_without_a_text_is_looked_at_as_without_its_condition(model: StableAudio) -> None:
    draw = Draw(seed=1, timestep=0.5)
    without = model.loss(model.example(item(num_tokens=None)), draw)
    dropped = model.loss(model.example(item()), replace(draw, drop_condition=True))
    assert without.item() == pytest.approx(dropped.item(), rel=1e-6)
    assert without.item() != pytest.approx(model.loss(model.example(item()), draw).item(), rel=1e-4)


def test_timing_counts_and_is_the_whole_file_where_nothing_is_known(model: StableAudio) -> None:
    known = model.example(item(seconds_start=0, seconds_total=12 * HOP / RATE_HZ))
    assert torch.equal(model.example(item()).timing, known.timing)
    assert not torch.equal(model.example(item(seconds_start=30, seconds_total=99)).timing, known.timing)


def test_gradients_reach_every_layer_and_nothing_else(model: StableAudio) -> None:
    model.loss(model.example(item()), Draw(seed=1, timestep=0.5)).backward()
    layers = model.layers()
    names = [f"{kind}.to_{part}" for kind in ("attn1", "attn2") for part in ("k", "out.0", "q", "v")]
    names += ["ff.net.0.proj", "ff.net.2"]
    assert list(layers) == [f"transformer_blocks.{block}.{name}" for block in range(2) for name in names]
    assert all(float(layer.weight.grad.abs().sum()) > 0 for layer in layers.values())
    reached = {id(p) for p in model.transformer.parameters() if p.grad is not None}
    assert reached == {id(p) for layer in layers.values() for p in layer.parameters()}
    model.transformer.zero_grad()


def test_losses_of_many_are_those_of_each_alone(model: StableAudio) -> None:
    shapes: list[tuple[int, int | None]] = [(8, 5), (12, 5), (8, 5), (8, None), (8, 5), (12, 5)]
    examples = [model.example(item(*shape, seed=i)) for i, shape in enumerate(shapes)]
    draws = [Draw(seed=i, timestep=(i + 0.5) / 6, mirrored=i % 2 == 1, drop_condition=i in (2, 5)) for i in range(6)]
    single = torch.stack([model.loss(example, draw) for example, draw in zip(examples, draws, strict=True)])
    assert torch.equal(model.loss(examples[0], draws[0]), single[0])
    assert torch.allclose(model.losses(examples, draws), single, rtol=1e-5)


def test_what_cannot_be_looked_at_is_told(model: StableAudio) -> None:
    with pytest.raises(UsageError, match="the item has 5 latents, this model takes 6"):
        model.example({"latents": torch.zeros(5, 3)})
    with pytest.raises(UsageError, match="condition has the width 7, this model takes 16"):
        model.example({**item(), "condition": torch.zeros(3, 7)})
    with pytest.raises(ItemError, match=r"rain\.wav has no frame"):
        model.example({**item(), "latents": torch.zeros(LATENTS, 0)})
    with pytest.raises(ItemError, match=r"rain\.wav holds values that are not finite"):
        model.example({**item(), "latents": torch.full((LATENTS, 2), torch.inf)})
    with pytest.raises(UsageError, match="not between 0"):
        model.loss(model.example(item()), Draw(seed=0))


def test_another_pipeline_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AceStepPipeline"}))
    with pytest.raises(ModelError, match="is a AceStepPipeline, a StableAudioPipeline was expected"):
        load_stable_audio(tmp_path)
