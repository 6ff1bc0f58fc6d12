"""The condition of a song: what ACE-Step's diffusion transformer attends to besides the music itself.

The text encoder reads the prompt; of the lyrics only its token embeddings are taken. A condition encoder turns both,
and the timbre of a reference, into one sequence: lyrics, timbre, text. As in inference, nothing is padded, a missing
reference is the encoded silence, and lyrics are read up to 2,048 tokens. One song at a time, so that no neighbour can
change it.

`side-step` gives what Side-Step 1.1.2 stores: texts padded to their longest, 512 lyric tokens, and one frame of zeros
in place of a reference.

Source: `diffusers.AceStepPipeline.encode_prompt` and its condition encoder; Side-Step's file format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from woodshed.encoders.acestep.prompt import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS, SIDE_STEP_LYRIC_TOKENS, Prompt
from woodshed.errors import ModelError

TIMBRE_S = 30.0
"""Seconds of reference that the timbre encoder hears."""

Manner: TypeAlias = Literal["inference", "side-step"]
"""Whose conditioning is made."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A song's texts as token ids."""

    text: Int64[np.ndarray, "text"]
    lyrics: Int64[np.ndarray, "lyric"]
    text_mask: Bool[np.ndarray, "text"]
    lyric_mask: Bool[np.ndarray, "lyric"]
    lyrics_cut: bool
    """Whether the lyrics were longer than what is read."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What the transformer attends to."""

    states: Float32[np.ndarray, "token width"]
    mask: Bool[np.ndarray, "token"]
    """False where a token is padding: nowhere, but in the manner of Side-Step."""


class Conditioner:
    """Text encoder and condition encoder of one checkpoint. `tokens` may be called by several threads at once."""

    def __init__(
        self, *, tokenizer: Any, text_encoder: Any, condition_encoder: Any, frame_rate_hz: float, manner: Manner
    ) -> None:
        self.manner = manner
        self._tokenizer, self._text_encoder, self._condition_encoder = tokenizer, text_encoder, condition_encoder
        # A tokenizer keeps its truncation as a state: two calls with different ones must not overlap.
        self._lock = Lock()
        self._max_lyrics = MAX_LYRIC_TOKENS if manner == "inference" else SIDE_STEP_LYRIC_TOKENS
        parameter = next(condition_encoder.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        if manner == "inference":
            num_frames = math.ceil(TIMBRE_S * frame_rate_hz)
            reference = condition_encoder.silence_latent[:, :num_frames]
            if reference.shape[1] < num_frames or not bool(torch.isfinite(reference).all()):
                raise ModelError(
                    f"the checkpoint's silence latent has {reference.shape[1]} of the {num_frames} frames that stand "
                    "for a reference, or values that are not finite",
                    hint="fetch the checkpoint again: inference needs it too",
                )
        else:
            reference = torch.zeros(1, 1, condition_encoder.silence_latent.shape[-1])
        self._reference = reference.to(self._device, self._dtype)
        if text_encoder.config.hidden_size != condition_encoder.config.text_hidden_dim:
            raise ModelError(
                f"the text encoder gives {text_encoder.config.hidden_size} values a token, the condition encoder reads "
                f"{condition_encoder.config.text_hidden_dim}",
                hint="both have to come from one checkpoint",
            )

    @property
    def width(self) -> int:
        """Values of one token of a condition."""
        return int(self._condition_encoder.config.hidden_size)

    def tokens(self, prompt: Prompt) -> Tokens:
        """Token ids of both texts, cut to what is read."""
        text, text_mask, _ = self._ids(prompt.text, MAX_TEXT_TOKENS)
        lyrics, lyric_mask, lyrics_cut = self._ids(prompt.lyrics, self._max_lyrics)
        return Tokens(text, lyrics, text_mask, lyric_mask, lyrics_cut)

    @torch.inference_mode()
    def encode(self, tokens: Tokens) -> Condition:
        """The condition of one song, in float32."""
        text = self._on_device(tokens.text)
        lyrics = self._on_device(tokens.lyrics)
        states, mask = self._condition_encoder(
            text_hidden_states=self._text_encoder(input_ids=text).last_hidden_state.to(self._dtype),
            text_attention_mask=self._on_device(tokens.text_mask),
            lyric_hidden_states=self._text_encoder.get_input_embeddings()(lyrics).to(self._dtype),
            lyric_attention_mask=self._on_device(tokens.lyric_mask),
            refer_audio_acoustic_hidden_states_packed=self._reference,
            refer_audio_order_mask=torch.zeros(1, dtype=torch.long, device=self._device),
        )
        return Condition(states[0].float().cpu().numpy(), mask[0].cpu().numpy().astype(bool))

    def _ids(self, text: str, longest: int) -> tuple[np.ndarray, np.ndarray, bool]:
        padding = "max_length" if self.manner == "side-step" else False
        with self._lock:
            read = self._tokenizer(text, truncation=True, max_length=longest, padding=padding)
            ids, mask = (np.asarray(read[name], np.int64) for name in ("input_ids", "attention_mask"))
            # Only what fills its room can have been cut: then one more place tells.
            is_cut = False
            if int(mask.sum()) == longest:
                is_cut = len(self._tokenizer(text, truncation=True, max_length=longest + 1)["input_ids"]) > longest
        return ids, mask.astype(bool), is_cut

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array)[None].to(self._device)
