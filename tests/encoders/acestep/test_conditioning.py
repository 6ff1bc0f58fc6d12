"""A song's condition is the one that diffusers' own pipeline hands to its transformer, or Side-Step's, on demand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tests.encoders.acestep.tiny_acestep import TinyAceStep, build_acestep
from woodshed.encoders.acestep.conditioning import Condition, Conditioner
from woodshed.encoders.acestep.prompt import Prompt, inference_prompt, side_step_prompt
from woodshed.errors import ModelError

SONG = {
    "caption": "a warm lo-fi piano", "lyrics": "[Verse 1]\nThe rain in Spain\nçà et là", "bpm": 85,
    "keyscale": "C minor", "timesignature": "4/4", "language": "english", "is_instrumental": False,
}  # fmt: skip
DURATION_S = 12.6


@pytest.fixture(scope="module", params=["base", "xl-base"])
def parts(request: pytest.FixtureRequest) -> TinyAceStep:
    return build_acestep(variant=request.param)


def conditioner(parts: TinyAceStep, manner: str = "inference") -> Conditioner:
    return Conditioner(
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        condition_encoder=parts.condition_encoder,
        frame_rate_hz=25.0,
        manner=manner,  # type: ignore[arg-type]
    )


class Listener(torch.nn.Module):
    """Stands in the transformer's place and keeps what the pipeline hands to it."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.config, self.dtype, self.device = transformer.config, torch.float32, torch.device("cpu")
        self.heard: dict[str, Any] = {}

    def forward(self, **given: Any) -> tuple[torch.Tensor]:
        self.heard = given
        return (torch.zeros_like(given["hidden_states"]),)


def of_pipeline(parts: TinyAceStep, song: Mapping[str, Any], *, language: str, meter: str) -> dict[str, Any]:
    """What diffusers' `AceStepPipeline` gives its transformer in the first step of making this song."""
    pipeline = parts.pipeline()
    pipeline.transformer = Listener(parts.transformer)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        prompt=song["caption"],
        lyrics=song["lyrics"],
        audio_duration=DURATION_S,
        vocal_language=language,
        bpm=song["bpm"],
        keyscale=song["keyscale"],
        timesignature=meter,
        num_inference_steps=1,
        guidance_scale=1.0,
        output_type="latent",
    )
    return pipeline.transformer.heard


def made(parts: TinyAceStep, prompt: Prompt, manner: str = "inference") -> Condition:
    maker = conditioner(parts, manner)
    return maker.encode(maker.tokens(prompt))


@pytest.mark.parametrize(
    ("changes", "language", "meter"),
    [
        ({}, "en", "4"),
        ({"lyrics": "", "is_instrumental": True}, "unknown", "4"),
        ({"lyrics": "la " * 3000, "bpm": None, "keyscale": "", "timesignature": "6/8"}, "en", "6"),
        ({"caption": "x " * 900, "language": "yue"}, "yue", "4"),
    ],
)
def test_conditions_equal_those_of_inference(
    parts: TinyAceStep, changes: dict[str, Any], language: str, meter: str
) -> None:
    song = SONG | changes
    heard_song = song | ({"lyrics": "[Instrumental]"} if song["is_instrumental"] else {})
    heard = of_pipeline(parts, heard_song, language=language, meter=meter)
    condition = made(parts, inference_prompt(song, duration_s=DURATION_S))
    theirs = heard["encoder_hidden_states"][0].numpy()
    assert condition.states.shape == theirs.shape
    assert np.abs(condition.states - theirs).max() < 1e-5
    assert bool(condition.mask.all())


def test_lyrics_are_read_to_the_limit_of_inference_and_the_rest_is_reported(parts: TinyAceStep) -> None:
    maker = conditioner(parts)
    long = maker.tokens(inference_prompt(SONG | {"lyrics": "ab " * 3000}, duration_s=9))
    assert (len(long.lyrics), long.lyrics_cut) == (2048, True)
    short = maker.tokens(inference_prompt(SONG, duration_s=9))
    assert (len(short.lyrics) < 2048, short.lyrics_cut) == (True, False)


def test_another_language_or_lyric_line_makes_another_condition(parts: TinyAceStep) -> None:
    one = made(parts, inference_prompt(SONG, duration_s=9)).states
    for change in ({"language": "fr"}, {"lyrics": SONG["lyrics"] + "\nlast line"}, {"bpm": 86}):
        other = made(parts, inference_prompt(SONG | change, duration_s=9)).states
        assert other.shape != one.shape or np.abs(other - one).max() > 1e-4


def test_side_step_conditions_are_padded_and_hear_no_reference(parts: TinyAceStep) -> None:
    song = SONG | {"given_duration_s": 12}
    prompt = side_step_prompt(song, duration_s=99.0)
    condition = made(parts, prompt, "side-step")
    # written down apart: texts padded to their longest, masks beside them, one frame of zeros for a timbre
    text = parts.tokenizer(prompt.text, padding="max_length", max_length=256, truncation=True, return_tensors="pt")
    lyrics = parts.tokenizer(prompt.lyrics, padding="max_length", max_length=512, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = parts.condition_encoder(
            text_hidden_states=parts.text_encoder(text.input_ids).last_hidden_state,
            text_attention_mask=text.attention_mask.float(),
            lyric_hidden_states=parts.text_encoder.get_input_embeddings()(lyrics.input_ids),
            lyric_attention_mask=lyrics.attention_mask.float(),
            refer_audio_acoustic_hidden_states_packed=torch.zeros(1, 1, 16),
            refer_audio_order_mask=torch.zeros(1, dtype=torch.long),
        )
    assert condition.states.shape == (769, parts.condition_encoder.config.hidden_size)
    assert np.abs(condition.states - states[0].numpy()).max() < 1e-5
    assert np.array_equal(condition.mask, mask[0].numpy())
    num_real = int(text.attention_mask.sum() + lyrics.attention_mask.sum()) + 1
    assert int(condition.mask.sum()) == num_real < 769


@pytest.mark.parametrize("damage", ["short", "not finite"])
def test_silence_that_cannot_stand_for_a_reference_is_refused(damage: str) -> None:
    parts = build_acestep(silence_frames=20 if damage == "short" else 15_000)
    if damage == "not finite":
        parts.condition_encoder.silence_latent[0, 3] = torch.nan
    with pytest.raises(ModelError, match="silence latent"):
        conditioner(parts)


def test_parts_of_two_checkpoints_are_refused(parts: TinyAceStep) -> None:
    other = build_acestep(num_latents=16)
    other.text_encoder.config.hidden_size = 48
    with pytest.raises(ModelError, match="48 values a token"):
        Conditioner(
            tokenizer=parts.tokenizer,
            text_encoder=other.text_encoder,
            condition_encoder=parts.condition_encoder,
            frame_rate_hz=25.0,
            manner="inference",
        )
