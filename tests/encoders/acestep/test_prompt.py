"""Prompts: Side-Step's known answers, the pipeline's own text, and what is said of a song that lacks something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import AceStepPipeline
from hypothesis import given
from hypothesis import strategies as st

from woodshed.encoders.acestep.prompt import described, inference_prompt, side_step_prompt

KNOWN = json.loads((Path(__file__).parents[2] / "golden" / "sidestep" / "prompts.json").read_text())


def as_song(known: dict[str, Any]) -> dict[str, Any]:
    """A known answer's metadata as our sources give it."""
    meta = dict(known["meta"])
    duration = meta.pop("duration")
    return {
        **meta,
        "given_duration_s": duration,
        "tag_position": known["tag_position"],
        "use_genre": known["use_genre"],
    }


@pytest.mark.parametrize("known", KNOWN, ids=range(len(KNOWN)))
def test_prompts_of_side_step_are_reproduced(known: dict[str, Any]) -> None:
    assert side_step_prompt(as_song(known), duration_s=99.0).text == known["prompt"]


def pipeline_texts(song: dict[str, Any], *, language: str, duration_s: float) -> tuple[str, str]:
    """What the diffusers pipeline writes; its formatting needs no model."""
    pipeline = AceStepPipeline.__new__(AceStepPipeline)
    texts: tuple[str, str] = pipeline._format_prompt(
        prompt=song["caption"],
        lyrics=song["lyrics"],
        vocal_language=language,
        audio_duration=duration_s,
        bpm=song["bpm"],
        keyscale=song["keyscale"],
        timesignature=song["timesignature"],
    )
    return texts


TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)


@given(
    caption=TEXTS,
    lyrics=TEXTS.filter(lambda text: text.strip() != ""),
    bpm=st.none() | st.integers(1, 400),
    keyscale=st.sampled_from(["", "C major", "F# minor"]),
    meter=st.sampled_from(["", "2", "3", "4", "6"]),
    duration_s=st.floats(1, 600),
)
def test_texts_equal_those_of_inference(
    caption: str, lyrics: str, bpm: int | None, keyscale: str, meter: str, duration_s: float
) -> None:
    song = {
        "caption": caption,
        "lyrics": lyrics,
        "bpm": bpm,
        "keyscale": keyscale,
        "timesignature": meter,
        "language": "fr",
        "is_instrumental": False,
    }
    prompt = inference_prompt(song, duration_s=duration_s)
    assert (prompt.text, prompt.lyrics) == pipeline_texts(song, language="fr", duration_s=duration_s)


def test_a_song_that_says_nothing_is_described_truthfully() -> None:
    prompt = inference_prompt({"caption": "", "is_instrumental": True}, duration_s=0.5)
    assert "- bpm: N/A\n- timesignature: N/A\n- keyscale: N/A\n- duration: 0 seconds\n" in prompt.text
    assert "[Instrumental]" in prompt.lyrics


def test_an_instrumental_song_is_not_given_lyrics_that_nobody_sings() -> None:
    song = {"caption": "x", "lyrics": "left over from another take", "language": "en", "is_instrumental": True}
    assert inference_prompt(song, duration_s=9).lyrics == "# Languages\nunknown\n\n# Lyric\n[Instrumental]<|endoftext|>"


def test_a_song_whose_singing_nobody_wrote_down_has_empty_lyrics() -> None:
    song = {"caption": "x", "lyrics": "", "language": "english", "is_instrumental": False}
    assert inference_prompt(song, duration_s=9).lyrics == "# Languages\nen\n\n# Lyric\n<|endoftext|>"


def test_an_override_goes_before_the_genre_ratio() -> None:
    song = {"caption": "pads", "genre": "ambient", "use_genre": True, "prompt_override": "caption"}
    assert described(song) == "pads"
    assert described({**song, "genre": "", "prompt_override": "genre"}) == ""
    assert described({**song, "genre": "", "prompt_override": None}) == "pads"


@pytest.mark.parametrize(("position", "said"), [("prepend", "zed, pads"), ("append", "pads, zed"), ("replace", "zed")])
def test_tag_positions(position: str, said: str) -> None:
    assert described({"caption": "pads", "custom_tag": "zed", "tag_position": position}) == said
    assert described({"caption": "", "custom_tag": "zed", "tag_position": position}) == "zed"
