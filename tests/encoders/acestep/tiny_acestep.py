"""A tiny ACE-Step of the true classes with random weights, and the two folder layouts that people have.

    parts = build_acestep()                          # diffusers' and transformers' own classes, a tenth of a second
    folder = save_diffusers(parts, tmp_path)         # model_index.json, transformer/, condition_encoder/, vae/, ...
    folder = save_upstream(parts, tmp_path)          # acestep-v15-base/, vae/, Qwen3-Embedding-0.6B/
    pipeline = parts.pipeline()                      # what inference runs, to compare with

Widths are tiny (16 latents, unless 64 are asked for), everything else is as in the published model: 48 kHz stereo,
1,920 samples per frame, patches of 2 frames, sliding and full attention in turn, a silence latent of 15,000 frames, a
tokenizer that ends every text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AutoencoderOobleck,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.ace_step import (
    AceStepAudioTokenDetokenizer,
    AceStepAudioTokenizer,
    AceStepConditionEncoder,
)
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

HOP_SAMPLES = 1920
TEXT_ENCODER_FOLDER = "Qwen3-Embedding-0.6B"
# What prompts are made of, so that the merges below are those of real prompts.
_CORPUS = (
    "# Instruction\nFill the audio semantic mask based on the given conditions:\n\n# Caption\n",
    "# Metas\n- bpm: 120\n- timesignature: 4\n- keyscale: C major\n- duration: 30 seconds\n",
    "# Languages\nen\n\n# Lyric\n[Verse 1]\nThe rain in Spain stays mainly in the plain\n[Chorus]\n[Instrumental]\n",
    "a warm lo-fi piano with soft drums and bass, upbeat rock with electric guitar, female vocals, techno, N/A",
)


@dataclass(frozen=True, kw_only=True)
class TinyAceStep:
    """The parts of one checkpoint; `config` is the upstream model's own `config.json`."""

    config: dict[str, Any]
    vae: AutoencoderOobleck
    text_encoder: Qwen3Model
    tokenizer: PreTrainedTokenizerFast
    condition_encoder: AceStepConditionEncoder
    transformer: AceStepTransformer1DModel
    audio_tokenizer: AceStepAudioTokenizer
    audio_token_detokenizer: AceStepAudioTokenDetokenizer

    def pipeline(self) -> AceStepPipeline:
        """Diffusers' own inference over these parts."""
        return AceStepPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
            condition_encoder=self.condition_encoder,
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
            audio_tokenizer=self.audio_tokenizer,
            audio_token_detokenizer=self.audio_token_detokenizer,
        )


def build_acestep(
    *,
    variant: str = "base",
    seed: int = 0,
    num_layers: int = 2,
    num_latents: int = 16,
    silence_frames: int = 15_000,
) -> TinyAceStep:
    """Build every part with random weights; the same seed gives the same weights.

    Args:
        variant: `base`, `sft`, `turbo`, or one of these after `xl-`: then the condition is narrower than the DiT.
        num_latents: 64 in the published model. The VAE's cost grows with its square: one second of sound takes 1.3 s
            of a core with 64, and 0.08 s with 16.
        silence_frames: frames of the silence latent; diffusers' own loader takes 15,000 only.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(variant, num_layers, num_latents, silence_frames)


def _build(variant: str, num_layers: int, num_latents: int, silence_frames: int) -> TinyAceStep:
    tokenizer = small_tokenizer()
    config = upstream_config(variant, num_layers=num_layers, num_latents=num_latents)
    attention = {key: config[key] for key in _ATTENTION}
    width = config.get("encoder_hidden_size", config["hidden_size"])
    encoder = attention | {
        "hidden_size": width,
        "intermediate_size": config.get("encoder_intermediate_size", config["intermediate_size"]),
        "num_attention_heads": config.get("encoder_num_attention_heads", config["num_attention_heads"]),
        "num_key_value_heads": config.get("encoder_num_key_value_heads", config["num_key_value_heads"]),
    }
    conditions = ("text_hidden_dim", "timbre_hidden_dim", "num_lyric_encoder_hidden_layers",
                  "num_timbre_encoder_hidden_layers")  # fmt: skip
    codes = ("audio_acoustic_hidden_dim", "pool_window_size", "num_attention_pooler_hidden_layers")
    condition_encoder = AceStepConditionEncoder(**encoder, **{key: config[key] for key in conditions})
    silence = torch.randn(1, 1, num_latents) + 0.2 * torch.randn(1, silence_frames, num_latents)
    condition_encoder.register_buffer("silence_latent", silence, persistent=True)
    transformer = AceStepTransformer1DModel(
        **attention,
        **{key: config[key] for key in _DIT},
        encoder_hidden_size=width,
        is_turbo=config["is_turbo"],
        model_version=config["model_version"],
    )
    audio_tokenizer = AceStepAudioTokenizer(
        **encoder,
        **{key: config[key] for key in codes},
        fsq_dim=config["fsq_dim"],
        fsq_input_levels=config["fsq_input_levels"],
        fsq_input_num_quantizers=config["fsq_input_num_quantizers"],
    )
    detokenizer = AceStepAudioTokenDetokenizer(**encoder, **{key: config[key] for key in codes})
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=config["text_hidden_dim"], intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=4096,
        )
    )  # fmt: skip
    vae = AutoencoderOobleck(
        encoder_hidden_size=2 * num_latents, downsampling_ratios=[10, 12, 16], channel_multiples=[1, 1, 1],
        decoder_channels=16, decoder_input_channels=num_latents, audio_channels=2, sampling_rate=48_000,
    )  # fmt: skip
    parts = (vae, text_encoder, condition_encoder, transformer, audio_tokenizer, detokenizer)
    for part in parts:
        _shake(part)
    return TinyAceStep(
        config=config,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        condition_encoder=condition_encoder,
        transformer=transformer,
        audio_tokenizer=audio_tokenizer,
        audio_token_detokenizer=detokenizer,
    )


_ATTENTION = ("head_dim", "rope_theta", "attention_bias", "attention_dropout", "rms_norm_eps", "sliding_window")
_DIT = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "in_channels", "audio_acoustic_hidden_dim", "patch_size", "layer_types",
)  # fmt: skip


def upstream_config(variant: str, *, num_layers: int = 2, num_latents: int = 16) -> dict[str, Any]:
    """The upstream `config.json` of a tiny model: every key that the published ones have and that shapes weights."""
    is_xl, kind = variant.startswith("xl-"), variant.removeprefix("xl-")
    config: dict[str, Any] = {
        "architectures": ["AceStepConditionGenerationModel"],
        "auto_map": {"AutoModel": f"modeling_acestep_v15_{kind}.AceStepConditionGenerationModel"},
        "model_type": "acestep",
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "in_channels": 3 * num_latents,
        "audio_acoustic_hidden_dim": num_latents,
        "patch_size": 2,
        "rope_theta": 1000000,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(num_layers)],
        "text_hidden_dim": 16,
        "timbre_hidden_dim": num_latents,
        "timbre_fix_frame": 750,
        "num_lyric_encoder_hidden_layers": 2,
        "num_timbre_encoder_hidden_layers": 2,
        "num_attention_pooler_hidden_layers": 1,
        "pool_window_size": 5,
        "fsq_dim": 24,
        "fsq_input_levels": [8, 8, 8, 5, 5, 5],
        "fsq_input_num_quantizers": 1,
        "data_proportion": 0.5,
        "timestep_mu": -0.4,
        "timestep_sigma": 1.0,
        "is_turbo": kind == "turbo",
        "model_version": kind,
        "dtype": "float32",
    }
    if is_xl:
        config |= {
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_attention_heads": 8,
            "encoder_hidden_size": 24,
            "encoder_intermediate_size": 40,
            "encoder_num_attention_heads": 4,
            "encoder_num_key_value_heads": 2,
        }
    return config


def _shake(module: nn.Module) -> None:
    """Move what starts as ones or zeros (norms, Snake): a mix-up of two of them must show."""
    module.requires_grad_(False).eval()
    for parameter in module.parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(0.1 * torch.randn_like(parameter))


def small_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE as Qwen's, trained on a few prompts: any text goes in, and an end token comes after it."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    backend.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    end = (_SPECIAL[0], backend.token_to_id(_SPECIAL[0]))
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {_SPECIAL[0]}", pair=f"$A {_SPECIAL[0]} $B {_SPECIAL[0]}", special_tokens=[end]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=_SPECIAL[0], eos_token=_SPECIAL[2], padding_side="left"
    )


_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def save_diffusers(parts: TinyAceStep, folder: Path) -> Path:
    """Write the layout that `AceStepPipeline.from_pretrained` reads."""
    parts.pipeline().save_pretrained(folder)
    return folder


def save_upstream(parts: TinyAceStep, folder: Path, *, variant: str = "base", num_shards: int = 1) -> Path:
    """Write one variant into a checkpoint folder as ACE-Step publishes it, the parts they share beside it."""
    home = folder / f"acestep-v15-{variant}"
    home.mkdir(parents=True)
    (home / "config.json").write_text(json.dumps(parts.config, indent=2))
    torch.save(parts.condition_encoder.silence_latent.transpose(1, 2).contiguous(), home / "silence_latent.pt")
    tensors = upstream_tensors(parts)
    if num_shards == 1:
        save_file(tensors, home / "model.safetensors", metadata={"format": "pt"})
    else:
        _save_shards(tensors, home, num_shards)
    parts.vae.save_pretrained(folder / "vae")
    parts.text_encoder.save_pretrained(folder / TEXT_ENCODER_FOLDER)
    parts.tokenizer.save_pretrained(folder / TEXT_ENCODER_FOLDER)
    return folder


def _save_shards(tensors: dict[str, Tensor], home: Path, num_shards: int) -> None:
    names = [f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors" for i in range(num_shards)]
    weight_map = {key: names[i * num_shards // len(tensors)] for i, key in enumerate(sorted(tensors))}
    for name in names:
        save_file({key: tensors[key] for key, shard in weight_map.items() if shard == name}, home / name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (home / "model.safetensors.index.json").write_text(json.dumps(index))


def upstream_tensors(parts: TinyAceStep) -> dict[str, Tensor]:
    """All weights of the upstream model under its names, written down here apart from the code under test."""
    tensors = {}
    roles: tuple[tuple[str, nn.Module], ...] = (
        ("decoder.", parts.transformer), ("encoder.", parts.condition_encoder), ("tokenizer.", parts.audio_tokenizer),
        ("detokenizer.", parts.audio_token_detokenizer),
    )  # fmt: skip
    for prefix, module in roles:
        for key, tensor in module.state_dict().items():
            if key == "silence_latent":
                continue
            name = key
            for ours, theirs in _RENAMED:
                name = name.replace(ours, theirs)
            tensors["null_condition_emb" if key == "null_condition_emb" else prefix + name] = tensor
    return tensors


_RENAMED = (
    (".to_q.", ".q_proj."), (".to_k.", ".k_proj."), (".to_v.", ".v_proj."), (".to_out.0.", ".o_proj."),
    (".norm_q.", ".q_norm."), (".norm_k.", ".k_norm."), ("proj_in_conv.", "proj_in.1."),
    ("proj_out_conv.", "proj_out.1."),
)  # fmt: skip
