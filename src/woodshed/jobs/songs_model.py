"""From the settings of a songs run to its encoder, its decoder and its layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from woodshed.audio.decode import DecodeLimits
from woodshed.contracts import Layout
from woodshed.encoders.acestep.checkpoint import AceStepCheckpoint, Digested, open_checkpoint
from woodshed.encoders.acestep.conditioning import Conditioner
from woodshed.encoders.acestep.encoder import SongEncoder, SongOptions
from woodshed.encoders.autoencoder import FrameEncoder, FrameOptions
from woodshed.encoders.hub import HUB_NAME
from woodshed.encoders.models import OobleckModel, Synthesiser
from woodshed.encoders.pretrained import load_pretrained
from woodshed.errors import UsageError
from woodshed.jobs.model import BATCH_S, DTYPES, QUANTUM_FRAMES, SLOW_HALF, fit_window, pick_device
from woodshed.jobs.songs_settings import SongsSettings
from woodshed.store.shards import Shards
from woodshed.store.sidestep import SideStep

if TYPE_CHECKING:
    from collections.abc import Mapping

STORED = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
"""Types of the floats in a `.pt` of Side-Step, which keeps the type that the models computed in."""
_CONDITIONING: tuple[Digested, ...] = ("tokenizer", "text_encoder", "condition_encoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class SongModel:
    """A checkpoint that prepares songs."""

    encoder: SongEncoder
    variant: str
    silence: np.ndarray
    """Encoded silence, (frame, latent)."""
    dtype: torch.dtype
    batch_s: float
    notes: tuple[str, ...] = ()

    def layout(self, name: str) -> Layout:
        """The layout of that name, ready for writing."""
        if name == SideStep.name:
            return SideStep(spec=self.encoder.spec, silence=self.silence, dtype=STORED[self.dtype])
        return Shards(spec=self.encoder.spec)


def load_song_model(settings: SongsSettings) -> SongModel:
    """The checkpoint's parts that a run needs; the diffusion transformer is not among them.

    Raises:
        UsageError: there is no such checkpoint, or several variants to choose from.
        ModelError: a part is missing or unfit.
    """
    device = pick_device(settings.device)
    dtype = precision_of(settings.precision, device)
    checkpoint = _checkpoint(settings)
    vae = OobleckModel(load_pretrained(checkpoint.vae_path, parts="encoder", dtype=dtype, device=device))
    limits = DecodeLimits(max_duration_s=settings.max_file_s)
    frames = FrameEncoder(vae, fit_window(_frame_options(settings, dtype), vae), limits=limits)
    condition_encoder = checkpoint.condition_encoder(device=device, dtype=dtype)
    conditioner = Conditioner(
        tokenizer=checkpoint.tokenizer(),
        text_encoder=checkpoint.text_encoder(device=device, dtype=dtype),
        condition_encoder=condition_encoder,
        frame_rate_hz=vae.rate_hz / vae.hop_samples,
        manner="side-step" if settings.sidestep_compat else "inference",
    )
    encoder = SongEncoder(
        frames, conditioner, _song_options(settings), conditioner_digests=_digests(checkpoint, dtype), limits=limits
    )
    silence = condition_encoder.silence_latent
    assert isinstance(silence, torch.Tensor)
    window_s = frames.options.window_frames * vae.hop_samples / vae.rate_hz
    return SongModel(
        encoder=encoder,
        variant=checkpoint.variant.name,
        silence=silence[0].float().cpu().numpy(),
        dtype=dtype,
        batch_s=max(BATCH_S[device.type], window_s),
        notes=tuple(_notes(checkpoint, device, dtype)),
    )


def load_song_decoder(settings: SongsSettings, device: torch.device) -> Synthesiser:
    """What turns stored latents back into sound.

    Raises:
        UsageError, ModelError: as `load_song_model` does.
    """
    autoencoder = load_pretrained(_checkpoint(settings).vae_path, parts="both", dtype=torch.float32, device=device)
    return OobleckModel(autoencoder)


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic that `--precision` stands for.

    >>> precision_of("auto", torch.device("cpu")), precision_of("bf16", torch.device("cpu"))
    (torch.float32, torch.bfloat16)
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[name]


def _checkpoint(settings: SongsSettings) -> AceStepCheckpoint:
    name = settings.checkpoint_dir
    if not Path(name).is_dir() and not HUB_NAME.fullmatch(name):
        raise UsageError(
            f"--checkpoint-dir {name} does not exist",
            hint="give the folder that holds acestep-v15-base, vae and Qwen3-Embedding-0.6B, a folder of diffusers' "
            "pipeline, or OWNER/NAME on the hub",
        )
    return open_checkpoint(
        settings.checkpoint_dir, variant=settings.model, trust_remote_code=settings.trust_remote_code
    )


def _frame_options(settings: SongsSettings, dtype: torch.dtype) -> FrameOptions:
    return FrameOptions(
        window="whole",
        # Side-Step reads latents, and no moments.
        latents="sample" if settings.layout == "sidestep" else "moments",
        seed=settings.seed,
        resampler=settings.resampler,
        dtype="float16" if dtype == torch.float16 and settings.layout == "shards" else "float32",
        # Loud masters decode to more than full scale, and what is cut off cannot be turned down again.
        clamp=False,
        longest_s=settings.max_duration or None,
        quantum_frames=QUANTUM_FRAMES,
    )


def _song_options(settings: SongsSettings) -> SongOptions:
    return SongOptions(
        manner="side-step" if settings.sidestep_compat else "inference",
        normalize=settings.normalize,
        target_db=settings.target_db,
        target_lufs=settings.target_lufs,
        estimate=settings.estimate,
    )


def _digests(checkpoint: AceStepCheckpoint, dtype: torch.dtype) -> Mapping[str, str]:
    return {**{part: checkpoint.digest(part) for part in _CONDITIONING}, "precision": str(dtype).removeprefix("torch.")}


def _notes(checkpoint: AceStepCheckpoint, device: torch.device, dtype: torch.dtype) -> list[str]:
    notes = []
    if device.type == "cpu" and dtype != torch.float32:
        notes.append(f"half precision on a CPU: {SLOW_HALF}; --precision fp32 is exact and not slower")
    if checkpoint.variant.fragile:
        notes.append(f"the checkpoint is {checkpoint.variant.name}: {checkpoint.variant.fragile}")
    return notes
