"""From the settings of a speech run to its encoder: which files, on which device, in batches of what size."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from woodshed.batching.pack import BatchLimits
from woodshed.encoders.speech.clip import ClipLimits, Rules
from woodshed.encoders.speech.encoder import SpeechEncoder, SpeechOptions, Target
from woodshed.encoders.speech.model_files import GivenFiles, ModelFiles, find_model_files
from woodshed.encoders.speech.models import load_networks
from woodshed.encoders.speech.published_files import Role
from woodshed.encoders.speech.published_values import ORIGINAL_FIRST_RATE_HZ, RATE_HZ
from woodshed.encoders.speech.rules_25 import TextRules25
from woodshed.encoders.speech.text.rules import TextRules
from woodshed.encoders.speech.whisper import WhisperSemantic
from woodshed.encoders.speech.whisper_encoder import WhisperEncoder
from woodshed.errors import UsageError
from woodshed.jobs.model import DTYPES, pick_device
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.run.pool import MakeEncoder

CLIPS_BY_GIB = ((40, 24), (24, 16), (16, 8), (12, 6), (8, 4), (0, 2))
"""Clips of 15 s per batch by the memory of a device: what IndexTTS2's documentation promises."""
NOMINAL_SHARE = 0.94
"""A card sold as 24 GB offers 23.6 GiB, one of 8 GB 7.6 GiB: it belongs to the row that bears its name."""
CLIP_S = 15.0
CPU_CLIPS = 4
TOKENIZERS: Mapping[Target, Role] = {"2.0": "tokenizer_2.0", "2.5": "tokenizer_2.5"}


def clips_per_batch(memory_gib: float | None) -> int:
    """How many clips of 15 s are tried at once on a device of so much memory; None is a CPU.

    >>> [clips_per_batch(gib) for gib in (7.6, 11.6, 15.6, 23.6, 39.4, 79.1, 3.9, None)]
    [4, 6, 8, 16, 24, 24, 2, 4]
    """
    if memory_gib is None:
        return CPU_CLIPS
    return next(clips for gib, clips in CLIPS_BY_GIB if memory_gib >= NOMINAL_SHARE * gib)


def batch_limits(batch_size: int, device: torch.device) -> BatchLimits:
    """Batches for a device: bounded in padded seconds by its memory, or in clips by what the user says."""
    if batch_size:
        return BatchLimits(max_cost_s=math.inf, max_pieces=batch_size, padded=True)
    return BatchLimits(max_cost_s=CLIP_S * clips_per_batch(memory_gib(device)), padded=True)


def memory_gib(device: torch.device) -> float | None:
    """Memory of the device that a run computes on; None for one without memory of its own."""
    if device.type != "cuda":
        return None
    return float(torch.cuda.get_device_properties(device).total_memory) / 2**30


def devices_of(name: str) -> tuple[torch.device, ...]:
    """All devices that `--device` stands for: every GPU, unless one is named.

    Raises:
        UsageError: there is no such device.
    """
    device = pick_device(name)
    if device == torch.device("cuda"):
        return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return (device,)


def num_processes(settings: SpeechSettings) -> int:
    """How many processes compute: as told, else one per GPU, or one per core of a CPU."""
    if settings.num_processes:
        return settings.num_processes
    devices = devices_of(settings.device)
    return len(devices) if devices[0].type != "cpu" else len(os.sched_getaffinity(0))


def make_encoder(
    settings: SpeechSettings, number: int, *, device: torch.device | None = None
) -> SpeechEncoder | WhisperEncoder:
    """The encoder of the worker with this number; workers are dealt to the devices in turn.

    Raises:
        ModelError: a file that the run needs is missing or unfit.
        UsageError: there is no such device or tokenizer.
    """
    # Full float32 on GPUs: their shortcuts change codes.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if device is None:
        devices = devices_of(settings.device)
        device = devices[number % len(devices)]
    if settings.semantic == "whisper":
        return _whisper_encoder(settings, device)
    files = model_files(settings)
    targets = targets_of(settings)
    networks = load_networks(
        files, targets, device=device, dtype=DTYPES[settings.precision], layer=settings.semantic_layer
    )
    rules = {target: text_rules(settings, files.path(TOKENIZERS[target]), target) for target in targets}
    options = SpeechOptions(
        targets=targets,
        compat=settings.compat,
        first_rate_hz=settings.audio_sr or RATE_HZ,
        reference_s=settings.reference_seconds,
        strict_trim=settings.strict_trim,
        condition_dtype=settings.condition_dtype,
        limits=clip_limits(settings, files),
    )
    return SpeechEncoder(networks, rules, options)


def encoder_maker(settings: SpeechSettings) -> MakeEncoder:
    """What worker processes make their encoders with."""
    return partial(make_encoder, settings)


def as_original(encoder: SpeechEncoder) -> SpeechEncoder:
    """The same networks with the original preprocessing's numbers."""
    options = replace(encoder.options, compat=True, first_rate_hz=ORIGINAL_FIRST_RATE_HZ)
    return SpeechEncoder(encoder.networks, encoder.rules, options)


def targets_of(settings: SpeechSettings) -> tuple[Target, ...]:
    return ("2.0", "2.5") if settings.target == "both" else (settings.target,)


def model_files(settings: SpeechSettings) -> ModelFiles:
    """The files of a run, found or not."""
    given = GivenFiles(
        config=settings.config,
        gpt_checkpoints=settings.gpt_checkpoint,
        tokenizers=settings.tokenizer,
        semantic_codecs=settings.semantic_codec,
        w2v_bert=settings.w2v_bert,
        w2v_stats=settings.w2v_stats,
        campplus=settings.campplus,
    )
    return find_model_files(settings.target, given)


def clip_limits(settings: SpeechSettings, files: ModelFiles | None) -> ClipLimits:
    """What a run takes for too long or too short."""
    usual = ClipLimits()
    gpt = None if files is None else files.config.gpt
    return ClipLimits(
        max_text_tokens=settings.max_text_tokens or (gpt.max_text_tokens if gpt else usual.max_text_tokens),
        max_codes=settings.max_codes or (gpt.max_mel_tokens if gpt else usual.max_codes),
        max_s=settings.max_seconds,
        min_frames=settings.min_frames,
    )


def text_rules(settings: SpeechSettings, tokenizer: Path, target: Target) -> Rules:
    """How the texts of a run become text ids."""
    if target == "2.5":
        return TextRules25(tokenizer, compat=settings.text_compat, engine=settings.text_engine)
    return TextRules(tokenizer, compat=settings.text_compat, engine=settings.text_engine)


def _whisper_encoder(settings: SpeechSettings, device: torch.device) -> WhisperEncoder:
    if len(settings.tokenizer) != 1:
        raise UsageError(
            "--semantic whisper needs one tokenizer", hint="add --tokenizer bpe.model (any SentencePiece model)"
        )
    semantic = WhisperSemantic.load(settings.w2v_bert, device=device)
    limits = replace(clip_limits(settings, None), max_s=min(settings.max_seconds, semantic.max_s))
    return WhisperEncoder(semantic, text_rules(settings, settings.tokenizer[0], "2.0"), limits)
