"""The two folder layouts that ACE-Step 1.5 comes in, each giving every part under diffusers' names.

*Diffusers*: `model_index.json` and one folder per part. *Upstream*: `acestep-v15-<variant>/`, which holds all networks
in one checkpoint, with `vae/` and `Qwen3-Embedding-0.6B/` beside it. The upstream checkpoint is translated while it is
read: nothing is copied on disk, and its own modelling code is never looked at.

Source of the facts: the upstream config class and diffusers' conversion script.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from woodshed.encoders.acestep.names import Part, split_upstream
from woodshed.encoders.checkpoints import read_config
from woodshed.encoders.hub import ModelFolder
from woodshed.encoders.library_models import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    has_weights,
    open_weights,
    read_settings,
)
from woodshed.encoders.weights import SHOWN_KEYS, TensorFile, unpickled
from woodshed.errors import ModelError, UsageError

SharedPart = Literal["vae", "text_encoder", "tokenizer"]

CLASSES: dict[Part, str] = {
    "transformer": "AceStepTransformer1DModel",
    "condition_encoder": "AceStepConditionEncoder",
    "audio_tokenizer": "AceStepAudioTokenizer",
    "audio_token_detokenizer": "AceStepAudioTokenDetokenizer",
}
SILENCE = "silence_latent"
TEXT_ENCODER = "Qwen3-Embedding-0.6B"
VARIANT_FOLDER = "acestep-v15-"
_SMALL_FILES = ("*.json", "*.txt", "*/*.json", "*/*.txt")
_WEIGHTS = "*.safetensors*"


@runtime_checkable
class Folder(Protocol):
    """Where the parts of one checkpoint are found."""

    where: str
    """The folder of the networks, for messages."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the DiT's config says beyond its sizes: `is_turbo`, `model_version`, `timestep_mu`, ..."""
        ...

    def settings(self, part: Part) -> dict[str, Any]:
        """Arguments of the part's diffusers class."""
        ...

    def tensors(self, part: Part) -> TensorFile:
        """The part's tensors under diffusers' names; empty for a part that the checkpoint comes without."""
        ...

    def shared(self, part: SharedPart) -> Path:
        """The folder of a part that all variants share."""
        ...


def open_folder(name: str | Path, variant: str | None) -> Folder:
    """Find out which layout a checkpoint has.

    Args:
        name: a checkpoint folder, the folder of one upstream variant, or a hub name.
        variant: for several upstream variants in one folder: `base`, `xl-turbo`, ..., or a folder's name.

    Raises:
        UsageError: several variants are there and none is named, or the named one is not there.
        ModelError: this is no ACE-Step checkpoint, or it cannot be had.
    """
    source = ModelFolder(name)
    root = source.bring(_SMALL_FILES)
    if (root / "model_index.json").is_file():
        return DiffusersFolder(source, root)
    if _is_variant(root):
        return UpstreamFolder(source, root, root)
    homes = {home.name: home for home in sorted(root.iterdir()) if _is_variant(home)}
    if not homes:
        raise ModelError(
            f"{name} holds no ACE-Step 1.5: neither model_index.json nor a folder such as {VARIANT_FOLDER}base",
            hint="give the folder that holds acestep-v15-base/ and vae/, or that of a diffusers pipeline",
        )
    return UpstreamFolder(source, root, _chosen(homes, variant, source.name))


def _is_variant(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_config(config).get("model_type") == "acestep"


def _chosen(homes: Mapping[str, Path], variant: str | None, where: str) -> Path:
    there = ", ".join(home.removeprefix(VARIANT_FOLDER) for home in homes)
    if variant is None:
        if len(homes) > 1:
            raise UsageError(f"{where} holds several variants: {there}", hint="name one of them")
        return next(iter(homes.values()))
    for name in (variant, f"{VARIANT_FOLDER}{variant}"):
        if name in homes:
            return homes[name]
    raise UsageError(f"{where} holds no variant {variant!r}: there is {there}", hint="name one of these")


class DiffusersFolder:
    """What `AceStepPipeline.save_pretrained` writes."""

    def __init__(self, source: ModelFolder, root: Path) -> None:
        self._source, self._root, self.where = source, root, source.name
        kind = read_config(root / "model_index.json").get("_class_name")
        if kind != "AceStepPipeline":
            raise ModelError(
                f"{self.where} is a {kind}, an AceStepPipeline was expected", hint="is it another model of diffusers?"
            )

    @property
    def facts(self) -> Mapping[str, Any]:
        return read_config(self._root / "transformer" / "config.json")

    def settings(self, part: Part) -> dict[str, Any]:
        settings = read_settings(self._root / part, CLASSES[part])
        return {key: value for key, value in settings.items() if key not in SAMPLING_FACTS}

    def tensors(self, part: Part) -> TensorFile:
        folder = self._source.bring([f"{part}/{_WEIGHTS}"]) / part
        if part in ("audio_tokenizer", "audio_token_detokenizer") and not has_weights(folder, DIFFUSERS_STEM):
            return _nothing(folder)
        return open_weights(folder, DIFFUSERS_STEM)

    def shared(self, part: SharedPart) -> Path:
        folder = self._source.bring([f"{part}/*"]) / part
        if not folder.is_dir():
            raise ModelError(f"{self.where} has no {part}/", hint="give the whole pipeline's folder")
        return folder


class UpstreamFolder:
    """A variant as ACE-Step publishes it: one checkpoint of all networks, and a file with the silence latent."""

    def __init__(self, source: ModelFolder, root: Path, home: Path) -> None:
        self._source, self._root, self._home, self.where = source, root, home, str(home)
        self._config = {**_DEFAULTS, **read_config(home / "config.json")}

    @property
    def facts(self) -> Mapping[str, Any]:
        return {**self._config, "folder": self._home.name}

    def settings(self, part: Part) -> dict[str, Any]:
        try:
            return _translated(self._config, part)
        except KeyError as error:
            raise ModelError(
                f"{self._home / 'config.json'} has no key {error}", hint="is it the config of this checkpoint?"
            ) from error

    def tensors(self, part: Part) -> TensorFile:
        inside = "" if self._home == self._root else f"{self._home.name}/"
        self._source.bring([f"{inside}{_WEIGHTS}", f"{inside}{SILENCE}.pt"])
        whole = open_weights(self._home, TRANSFORMERS_STEM)
        parts = {key: split_upstream(key) for key in whole.shapes}
        strange = [key for key, found in parts.items() if found is None]
        if strange:
            raise ModelError(
                f"{whole.path} holds {len(strange)} tensors that are not of ACE-Step 1.5:"
                f" {', '.join(strange[:SHOWN_KEYS])}",
                hint="give the model's own checkpoint",
            )
        own = whole.select({key: found[1] for key, found in parts.items() if found is not None and found[0] == part})
        return own if part != "condition_encoder" else self._with_silence(own)

    def _with_silence(self, tensors: TensorFile) -> TensorFile:
        silence = self._silence()
        return TensorFile(
            path=tensors.path,
            shapes={**tensors.shapes, SILENCE: tuple(silence.shape)},
            read=lambda name: silence if name == SILENCE else tensors.read(name),
        )

    def _silence(self) -> Tensor:
        """The silence latent with time before channels, as diffusers has it."""
        path = next((f for f in (self._home, self._home.parent) if (f / f"{SILENCE}.pt").is_file()), None)
        if path is None:
            raise ModelError(
                f"{self._home} has no {SILENCE}.pt, which stands in for a reference song",
                hint="it is published beside the checkpoint",
            )
        content, channels = unpickled(path / f"{SILENCE}.pt"), self._config["timbre_hidden_dim"]
        if not isinstance(content, Tensor) or content.ndim != 3 or content.shape[:2] != (1, channels):
            shape = list(content.shape) if isinstance(content, Tensor) else type(content).__name__
            raise ModelError(
                f"{path / SILENCE}.pt is {shape}, a tensor of [1, {channels}, frames] was expected",
                hint="download it again",
            )
        return content.transpose(1, 2).contiguous()

    def shared(self, part: SharedPart) -> Path:
        name = "vae" if part == "vae" else TEXT_ENCODER
        self._source.bring([f"{name}/*"])
        found = next((f / name for f in (self._home, self._home.parent) if (f / name).is_dir()), None)
        if found is None:
            raise ModelError(
                f"there is no {name}/ beside {self._home} or in it",
                hint=f"every variant needs {name}/, which is published with ACE-Step/Ace-Step1.5",
            )
        return found


def _nothing(folder: Path) -> TensorFile:
    def read(name: str) -> Tensor:
        raise KeyError(name)

    return TensorFile(path=folder, shapes={}, read=read)


SAMPLING_FACTS: dict[str, float] = {"timestep_mu": -0.4, "timestep_sigma": 1.0}
"""How training draws timesteps: keys of the upstream config with their published values; no sizes of a network."""

_DEFAULTS: dict[str, Any] = {
    **SAMPLING_FACTS,
    "in_channels": 192,
    "audio_acoustic_hidden_dim": 64,
    "patch_size": 2,
    "head_dim": 128,
    "rope_theta": 1_000_000,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-6,
    "sliding_window": 128,
    "layer_types": None,
    "text_hidden_dim": 1024,
    "timbre_hidden_dim": 64,
    "num_lyric_encoder_hidden_layers": 8,
    "num_timbre_encoder_hidden_layers": 4,
    "num_attention_pooler_hidden_layers": 2,
    "pool_window_size": 5,
    "fsq_input_levels": [8, 8, 8, 5, 5, 5],
    "fsq_input_num_quantizers": 1,
    "is_turbo": False,
    "model_version": None,
}
"""What the upstream config class takes for a key that config.json leaves out."""
_ATTENTION = ("head_dim", "rope_theta", "attention_bias", "attention_dropout", "rms_norm_eps", "sliding_window")
_WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
_OWN: dict[Part, tuple[str, ...]] = {
    "transformer": (
        "num_hidden_layers", "in_channels", "audio_acoustic_hidden_dim", "patch_size", "layer_types", "model_version",
    ),
    "condition_encoder": (
        "text_hidden_dim", "timbre_hidden_dim", "num_lyric_encoder_hidden_layers", "num_timbre_encoder_hidden_layers",
    ),
    "audio_tokenizer": (
        "audio_acoustic_hidden_dim", "pool_window_size", "fsq_input_levels", "fsq_input_num_quantizers",
        "num_attention_pooler_hidden_layers",
    ),
    "audio_token_detokenizer": (
        "audio_acoustic_hidden_dim", "pool_window_size", "num_attention_pooler_hidden_layers",
    ),
}  # fmt: skip


def _translated(config: Mapping[str, Any], part: Part) -> dict[str, Any]:
    """Arguments of a part's diffusers class from the upstream config.

    In XL, everything but the DiT is narrower than the DiT: its widths have keys of their own there.
    """
    narrow = {key: config[key] if config.get(f"encoder_{key}") is None else config[f"encoder_{key}"] for key in _WIDTHS}
    settings = {key: config[key] for key in (*_ATTENTION, *_OWN[part])}
    if part == "transformer":
        settings |= {key: config[key] for key in _WIDTHS}
        return settings | {"encoder_hidden_size": narrow["hidden_size"], "is_turbo": bool(config["is_turbo"])}
    if part == "audio_tokenizer":
        settings["fsq_dim"] = config.get("fsq_dim", narrow["hidden_size"])
    if part != "condition_encoder" and config["layer_types"] is not None:
        settings["layer_types"] = config["layer_types"][: config["num_attention_pooler_hidden_layers"]]
    return settings | narrow
