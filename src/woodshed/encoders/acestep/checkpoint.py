"""ACE-Step 1.5 checkpoints: each part loaded alone and strictly, from diffusers' folders or upstream's.

Diffusers' classes do the arithmetic; of what a checkpoint brings along, only numbers are read, never code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from woodshed.contracts import Variant
from woodshed.encoders.acestep.folders import CLASSES, SAMPLING_FACTS, SILENCE, VARIANT_FOLDER, Folder, open_folder
from woodshed.encoders.acestep.names import NULL_CONDITION, Part
from woodshed.encoders.checkpoints import read_config
from woodshed.encoders.library_models import TRANSFORMERS_STEM, build_unfilled, fill_strictly, open_weights
from woodshed.encoders.speech.file_digests import file_digest
from woodshed.encoders.weights import TensorFile, digest_of
from woodshed.errors import ModelError, UsageError

KINDS = ("turbo", "sft", "base")
TURBO_IS_FRAGILE = (
    "turbo is distilled to eight steps without guidance, and training can undo that (the loss spikes, the output turns"
    " to noise): base is the recommended variant"
)
Digested: TypeAlias = Literal["transformer", "condition_encoder", "text_encoder", "tokenizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AceStepCheckpoint:
    """One checkpoint; opening it reads its configs, each method loads what it names."""

    source: str
    """As it was asked for."""
    folder: Folder
    variant: Variant
    rate_hz: int
    hop_samples: int
    """Samples per latent frame at `rate_hz`."""
    timestep_mu: float
    timestep_sigma: float
    """Of the logit-normal that training draws timesteps from."""
    trust_remote_code: bool = False
    """Whether a tokenizer may run code of its own; no other part is asked for any."""

    @property
    def vae_path(self) -> Path:
        """The autoencoder's folder, for `woodshed.encoders.pretrained.load_pretrained`."""
        return self.folder.shared("vae")

    def tokenizer(self) -> Any:
        """The text encoder's tokenizer, as transformers has it."""
        from transformers import AutoTokenizer

        folder = self.folder.shared("tokenizer")
        try:
            return AutoTokenizer.from_pretrained(
                folder, trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{folder} holds no tokenizer that can be loaded: {(str(error).splitlines() or ['?'])[0]}",
                hint="is tokenizer.json there?",
            ) from error

    def text_encoder(self, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        """Transformers' `Qwen3Model`, in evaluation mode and without gradients.

        Raises:
            ModelError: it is another model, or keys are missing, extra or misshapen; lists them.
        """
        from transformers import Qwen3Config, Qwen3Model

        folder = self.folder.shared("text_encoder")
        config = read_config(folder / "config.json")
        if config.get("model_type") != "qwen3":
            raise ModelError(
                f"{folder} is a {config.get('model_type')!r} model, qwen3 was expected",
                hint="ACE-Step 1.5 reads its texts with Qwen3-Embedding-0.6B",
            )
        with torch.device("meta"):
            model: Any = Qwen3Model(Qwen3Config.from_dict(config))
        with torch.device(device):
            # Its rotations follow from the config and lie in no checkpoint.
            model.rotary_emb = type(model.rotary_emb)(model.config)
        fill_strictly(model, _text_tensors(folder), dtype=dtype, device=device)
        return cast("nn.Module", model)

    def condition_encoder(self, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        """Diffusers' `AceStepConditionEncoder`, with `null_condition_emb` (1, 1, width) and `silence_latent`
        (1, frame, latent).

        Raises:
            ModelError: keys are missing, extra or misshapen; lists them. The silence latent is nothing but zeros.
        """
        module = self._build("condition_encoder", dtype, device)
        self._check_silence(module.get_buffer(SILENCE))
        return module

    def silence_latent(self) -> Float[Tensor, "1 frame latent"]:
        """What silence encodes to, as it is stored; nothing else is read.

        Raises:
            ModelError: it is missing, of another shape, or nothing but zeros.
        """
        silence = self._constant(SILENCE)
        self._check_silence(silence)
        return silence

    def null_condition(self) -> Float[Tensor, "1 1 width"]:
        """What stands in for every token of a condition that is dropped, as it is stored; nothing else is read.

        Raises:
            ModelError: the checkpoint has none.
        """
        return self._constant(NULL_CONDITION)

    def _constant(self, name: str) -> Tensor:
        tensors = self.folder.tensors("condition_encoder")
        if name not in tensors.shapes:
            raise ModelError(f"{tensors.path} has no {name}", hint="is it a whole checkpoint of ACE-Step 1.5?")
        return tensors.read(name)

    def _check_silence(self, silence: Tensor) -> None:
        if not bool(silence.any()):
            raise ModelError(
                f"the silence latent of {self.folder.where} is all zeros, which is not what silence encodes to:"
                " the model was never trained on such a condition",
                hint="a converter that found no silence_latent.pt leaves zeros; convert again with that file",
            )

    def transformer(self, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        """Diffusers' `AceStepTransformer1DModel`, in evaluation mode and without gradients.

        Raises:
            ModelError: keys are missing, extra or misshapen; lists them.
        """
        return self._build("transformer", dtype, device)

    def _build(self, part: Part, dtype: torch.dtype | None, device: torch.device | str) -> nn.Module:
        tensors = self.folder.tensors(part)
        module = unfilled(part, self.folder.settings(part), tensors, self.folder.where)
        fill_strictly(module, tensors, dtype=dtype, device=device)
        return module

    def digest(self, part: Digested) -> str:
        """A digest of a part's weights by name, type and value, the same in both layouts; reads all of them.

        That of the tokenizer is of its files.
        """
        if part == "tokenizer":
            folder = self.folder.shared("tokenizer")
            names = ("tokenizer.json",) if (folder / "tokenizer.json").is_file() else ("vocab.json", "merges.txt")
            return "+".join(file_digest(folder / name) for name in names)
        tensors = (
            _text_tensors(self.folder.shared("text_encoder")) if part == "text_encoder" else self.folder.tensors(part)
        )
        return digest_of(tensors, tensors.shapes)


def open_checkpoint(
    name: str | Path, *, variant: str | None = None, trust_remote_code: bool = False
) -> AceStepCheckpoint:
    """Open a checkpoint: its configs are read, its weights are not.

    Args:
        name: a folder in diffusers' or upstream's layout, the folder of one upstream variant, or a hub name.
        variant: `base`, `sft`, `turbo`, `xl-base`, `xl-sft`, `xl-turbo`, or the name of an upstream variant's folder;
            needed only where a folder holds several.
        trust_remote_code: whether a tokenizer may run code that the checkpoint brings along.

    Raises:
        UsageError: several variants are there and none is named, or the named one is not there.
        ModelError: this is no ACE-Step checkpoint, or it cannot be had.
    """
    folder = open_folder(name, variant)
    facts = folder.facts
    folder_name = str(facts.get("folder", Path(folder.where).name))
    found = variant_of(facts, folder_name=folder_name)
    own_names = (found.name, f"{VARIANT_FOLDER}{found.name}", folder_name, folder_name.removeprefix(VARIANT_FOLDER))
    if variant is not None and variant not in own_names:
        raise UsageError(f"{name} is the variant {found.name!r}, not {variant!r}", hint="leave the variant out")
    vae = folder.shared("vae") / "config.json"
    config = read_config(vae)
    ratios, rate_hz = config.get("downsampling_ratios"), config.get("sampling_rate")
    if not isinstance(ratios, list) or not isinstance(rate_hz, int):
        raise ModelError(f"{vae} has no downsampling_ratios or sampling_rate", hint="is it the config of the VAE?")
    return AceStepCheckpoint(
        source=str(name),
        folder=folder,
        variant=found,
        rate_hz=rate_hz,
        hop_samples=math.prod(ratios),
        timestep_mu=float(facts.get("timestep_mu", SAMPLING_FACTS["timestep_mu"])),
        timestep_sigma=float(facts.get("timestep_sigma", SAMPLING_FACTS["timestep_sigma"])),
        trust_remote_code=trust_remote_code,
    )


def variant_of(facts: Mapping[str, Any], *, folder_name: str) -> Variant:
    """Which variant a DiT is, by its config, and where that is silent by the name of its folder.

    `model_version` is believed last where it says turbo: that is what upstream's config class takes by default.

    >>> variant_of({"is_turbo": True, "hidden_size": 2560, "encoder_hidden_size": 2048}, folder_name="x").name
    'xl-turbo'
    >>> variant_of({"is_turbo": False, "model_version": "turbo"}, folder_name="acestep-v15-base").name
    'base'
    """
    version, folder = (_kinds_in(text) for text in (str(facts.get("model_version")), folder_name))
    believed = ["turbo"] if facts.get("is_turbo") else [*(k for k in version if k != "turbo"), *folder, *version]
    kind = next(iter(believed), None)
    if kind is None:
        return Variant(name=folder_name)
    is_xl = facts.get("encoder_hidden_size") not in (None, facts.get("hidden_size"))
    return Variant(name=f"xl-{kind}" if is_xl else kind, fragile=TURBO_IS_FRAGILE if kind == "turbo" else None)


def _kinds_in(text: str) -> list[str]:
    words = re.split(r"[^a-z0-9]+", text.lower())
    return [kind for kind in KINDS if kind in words]


def unfilled(part: Part, settings: dict[str, Any], tensors: TensorFile, where: str) -> nn.Module:
    """A part on the meta device. Its silence latent is as long as the checkpoint's; every other shape is the config's.

    Raises:
        ModelError: the installed diffusers cannot build it.
    """
    from diffusers import AceStepTransformer1DModel
    from diffusers.pipelines.ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )

    classes: dict[str, Any] = {
        kind.__name__: kind
        for kind in (
            AceStepTransformer1DModel,
            AceStepConditionEncoder,
            AceStepAudioTokenizer,
            AceStepAudioTokenDetokenizer,
        )
    }
    module = build_unfilled(classes[CLASSES[part]], settings, where)
    if part == "condition_encoder":
        channels = settings["timbre_hidden_dim"]
        frames = tensors.shapes.get(SILENCE, (1, 1, channels))[1]
        module.register_buffer(SILENCE, torch.empty(1, frames, channels, device="meta"), persistent=True)
    return module


def _text_tensors(folder: Path) -> TensorFile:
    """The text encoder's tensors, whether it was saved alone or within a language model."""
    file = open_weights(folder, TRANSFORMERS_STEM)
    return file.select({key: key.removeprefix("model.") for key in file.shapes if key != "lm_head.weight"})
