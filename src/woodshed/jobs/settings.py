"""What each command can be told. The description of a field is its only documentation: help and docs read it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from woodshed.errors import UsageError

DEFAULT_MODEL = "woodshed-tiny"
LOGMEL = "logmel"
MIN_WINDOW_S = 0.02
MAX_WINDOW_S = 20 * 60.0
DEFAULT_WINDOW_S = 30.0
STABLE_AUDIO_WINDOW_SAMPLES = 1_320_960
"""645 frames of 2048 samples, 29.95 s at 44.1 kHz: what stable-audio-tools pads or cuts every clip to."""
STABLE_AUDIO_RATE_HZ = 44_100

_COMPAT_DEFAULTS: Mapping[str, object] = {"batch_size": 1, "window": "first", "resampler": "torchaudio_sinc"}
_COMPAT_NEEDS: Mapping[str, object] = {"window": "first", "latents": "sample", "layout": "stable_audio"}


def _text_to_path(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value:
        raise UsageError("a path is empty", hint="give the name of a file or folder, or . for this folder")
    # A shell expands this in flags; nothing does in a YAML file, where it would make a folder called "~".
    return Path(value).expanduser() if value == "~" or value.startswith("~/") else Path(value)


FilePath = Annotated[Path, BeforeValidator(_text_to_path)]


class Settings(BaseModel):
    """Base of all settings: frozen, strict (text becomes a path, a list a tuple, nothing else), no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sections: ClassVar[Mapping[str, tuple[str, ...]]]
    """How help groups the fields: every field stands in exactly one section."""
    flag_names: ClassVar[Mapping[str, str]] = {}
    """Flags that are not called as their field."""
    flag_aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Further flags of a field, as another tool calls them."""
    positional: ClassVar[str | None] = None
    """The field that the command line takes without a flag."""
    further_positionals: ClassVar[tuple[str, ...]] = ()
    """Fields that may follow it, without flags too."""
    alternatives: ClassVar[Mapping[str, str]] = {}
    """Fields that need no value when the other one has it."""

    @classmethod
    def flag(cls, field: str) -> str:
        """The flag of a field.

        >>> EncodeSettings.flag("model_config_path"), EncodeSettings.flag("batch_size")
        ('--model-config', '--batch-size')
        """
        return "--" + cls.flag_names.get(field, field.replace("_", "-"))

    def to_json(self) -> dict[str, Any]:
        """What is saved with a run: plain values, and itself a valid settings file."""
        return {name: _plain(getattr(self, name)) for name in type(self).model_fields}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def check_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise UsageError(f"--device {device} is not a device", hint="auto, cpu, cuda, cuda:0, cuda:1, ... or mps")
    return device


class EncodeSettings(Settings):
    """Everything `woodshed encode` can be told."""

    flag_names = {"model_config_path": "model-config", "dataset_config_path": "dataset-config"}
    alternatives = {"dataset_config_path": "input", "input": "dataset_config_path"}
    sections = {
        "model": (
            "pretrained_name",
            "model_config_path",
            "ckpt_path",
            "is_discrete",
            "latents",
            "channels",
            "model_options",
        ),
        "data": ("input", "dataset_config_path", "captions", "max_file_s", "drop_silence", "resampler", "shuffle"),
        "output": ("output_path", "window", "sample_size", "layout", "ranks", "compat", "seed"),
        "computing": ("device", "precision", "model_half", "compile", "batch_size", "num_workers"),
        "run": ("dry_run", "limit_batches", "retry_failed", "trust_remote_code", "num_nodes", "strategy"),
    }

    pretrained_name: str | None = Field(
        default=None,
        min_length=1,
        description=f"Model by name: {DEFAULT_MODEL} (embedded), logmel, a hub name, or a local folder. "
        f"Without any model setting it is {DEFAULT_MODEL}.",
    )
    model_config_path: FilePath | None = Field(
        default=None, description="JSON model config of a stable-audio-tools autoencoder; goes with the checkpoint."
    )
    ckpt_path: FilePath | None = Field(
        default=None, description="Checkpoint (.ckpt or .safetensors) that belongs to the model config."
    )
    is_discrete: bool = Field(default=False, description="Store the model's tokens instead of its latents.")
    latents: Literal["sample", "mean", "moments"] = Field(
        default="sample",
        description="What to store of a variational model: one sample (seeded per item), the mean, "
        "or mean and scale, to be sampled when read.",
    )
    channels: int | None = Field(
        default=None,
        ge=1,
        description="Channels to encode with a model that takes any number of them; unset: as the model prefers.",
    )

    model_options: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="Parameters of a model that has some, as NAME=VALUE: n_fft=2048 num_mels=128 of logmel, "
        "num_codebooks=8 or bandwidth_kbps=6 of a codec.",
    )

    input: FilePath | None = Field(
        default=None,
        description="What to encode: a folder of sound files, or a JSONL or CSV manifest. "
        "Takes the place of a dataset config.",
    )
    dataset_config_path: FilePath | None = Field(default=None, description="JSON dataset config of stable-audio-tools.")
    captions: bool = Field(
        default=True, description="Read the .txt or .json file beside each sound file as its caption and metadata."
    )
    max_file_s: float = Field(
        default=12 * 3600.0,
        gt=0,
        allow_inf_nan=False,
        description="Longest file in seconds; a longer one is reported as a failure and not decoded.",
    )
    drop_silence: bool = Field(
        default=False, description="Leave silent clips out; otherwise they are kept and flagged."
    )
    resampler: Literal["soxr", "torchaudio_sinc"] = Field(
        default="soxr",
        description="How audio is brought to the model's rate; torchaudio_sinc gives the samples that "
        "stable-audio-tools gets, and is the default under --compat.",
    )
    shuffle: bool = Field(default=False, description="Put the plan in a seeded random order instead of by path.")

    output_path: FilePath = Field(description="Folder that receives the encoded data; an unfinished run resumes there.")
    window: Literal["first", "tile", "whole"] = Field(
        default="tile",
        description="first: one window per file; tile: consecutive windows, nothing lost; whole: one record of "
        "variable length per file. Under --compat: first.",
    )
    sample_size: int | None = Field(
        default=None,
        ge=1,
        description="Window length in samples at the model's rate, a multiple of its ratio; unset: about 30 s "
        f"({STABLE_AUDIO_WINDOW_SAMPLES} at 44.1 kHz and ratio 2048).",
    )
    layout: Literal["stable_audio", "shards"] = Field(
        default="stable_audio",
        description="stable_audio: one .npy and .json per window, as stable-audio-tools trains from; "
        "shards: few large files.",
    )
    ranks: int = Field(default=1, ge=1, le=1000, description="Rank folders that the stable_audio layout spreads over.")
    compat: bool = Field(
        default=False,
        description="Do as stable-audio-tools: its window, random crop, polarity flip, channel rule and token axes, "
        "but seeded.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="All chance derives from it and the item's id.")

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["fp32", "fp16", "bf16"] = Field(default="fp32", description="Arithmetic of the model.")
    model_half: bool = Field(default=False, description="The same as --precision fp16.")
    compile: bool = Field(default=False, description="Compile the model first: slower to start, faster to run.")
    batch_size: int | None = Field(
        default=None, ge=1, description="Most clips per batch; unset: as memory allows, and 1 under --compat."
    )
    num_workers: int = Field(default=4, ge=0, description="Threads that decode ahead; 0 decodes between batches.")

    dry_run: bool = Field(default=False, description="Plan, report time and disk needed, and write nothing.")
    limit_batches: int | None = Field(
        default=None,
        ge=1,
        description="Encode only so many batches of --batch-size files (of one file where that is unset).",
    )
    retry_failed: bool = Field(default=False, description="Try the items again that failed in an earlier run.")
    trust_remote_code: bool = Field(
        default=False, description="Allow the Python code that a dataset config names to run."
    )
    num_nodes: int = Field(default=1, ge=1, description="Machines to encode on; only 1 in this release.")
    strategy: str = Field(default="auto", description="How work is spread over devices; only auto in this release.")

    _device_is_known = field_validator("device")(check_device)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_what_is_implied(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        implied: dict[str, object] = {}
        if data.get("compat") is True:
            implied.update(_COMPAT_DEFAULTS)
        if data.get("model_half") is True:
            implied["precision"] = "fp16"
        if all(data.get(name) is None for name in ("pretrained_name", "model_config_path", "ckpt_path")):
            implied["pretrained_name"] = DEFAULT_MODEL
        return data | {name: value for name, value in implied.items() if data.get(name) is None}

    @model_validator(mode="after")
    def _check_together(self) -> EncodeSettings:
        self._check_model_source()
        if (self.input is None) == (self.dataset_config_path is None):
            both = self.input is not None
            raise UsageError(
                "--input and --dataset-config are both given" if both else "nothing to encode is given",
                hint="keep one of the two" if both else "add --input FOLDER_OR_MANIFEST, or --dataset-config FILE",
            )
        if self.model_half and self.precision != "fp16":
            raise UsageError(
                f"--model-half means fp16, but --precision is {self.precision}", hint="leave one of the two out"
            )
        if self.is_discrete and self.latents != "sample":
            raise UsageError(
                f"--is-discrete stores tokens, but --latents {self.latents} asks for latents",
                hint="leave one of the two out",
            )
        if self.compat:
            for name, needed in _COMPAT_NEEDS.items():
                if getattr(self, name) != needed:
                    raise UsageError(
                        f"--compat works with {self.flag(name)} {needed}, not {getattr(self, name)}",
                        hint=f"leave {self.flag(name)} out, or do without --compat",
                    )
        self._check_release()
        return self

    def _check_model_source(self) -> None:
        if (self.model_config_path is None) != (self.ckpt_path is None):
            there, missing = ("model_config_path", "ckpt_path")[:: 1 if self.ckpt_path is None else -1]
            raise UsageError(
                f"{self.flag(there)} is given without {self.flag(missing)}: a model config and its checkpoint "
                "belong together",
                hint=f"add {self.flag(missing)} FILE, or name a model by --pretrained-name instead of both",
            )
        if self.pretrained_name is not None and self.ckpt_path is not None:
            raise UsageError(
                f"--pretrained-name {self.pretrained_name} and --ckpt-path {self.ckpt_path} name two models",
                hint="keep one of the two; pretrained_name=null takes back what a settings file says",
            )

    def _check_release(self) -> None:
        if self.num_nodes > 1:
            raise UsageError(
                f"--num-nodes {self.num_nodes}: encoding on several machines is not in this release",
                hint="leave it out and run on one machine; it comes with the cluster release",
            )
        if self.strategy != "auto":
            raise UsageError(
                f"--strategy {self.strategy}: only auto is in this release",
                hint="leave it out; other strategies come with the cluster release",
            )

    def window_samples(self, *, rate_hz: int, ratio: int) -> int:
        """Window length for a model of this rate (Hz) and ratio (samples per frame), checked or worked out.

        Raises:
            UsageError: the given length is out of bounds at this rate or not a multiple of the ratio.
        """
        if self.sample_size is not None:
            check_window(self.sample_size, rate_hz=rate_hz, ratio=ratio)
            return self.sample_size
        if STABLE_AUDIO_WINDOW_SAMPLES % ratio == 0 and (self.compat or rate_hz == STABLE_AUDIO_RATE_HZ):
            return STABLE_AUDIO_WINDOW_SAMPLES
        return max(1, int(DEFAULT_WINDOW_S * rate_hz) // ratio) * ratio

    def validate_for_model(
        self,
        *,
        rate_hz: int,
        ratio: int,
        audio_channels: int,
        is_discrete_capable: bool,
        has_moments: bool,
        takes_any_channels: bool = False,
    ) -> None:
        """Check what can only be checked once the model is known.

        Raises:
            UsageError: the window does not suit the model, or it cannot give what is asked for.
        """
        if self.window != "whole":
            self.window_samples(rate_hz=rate_hz, ratio=ratio)
        if self.is_discrete and not is_discrete_capable:
            raise UsageError(
                "--is-discrete: this model has no codebooks, so it makes no tokens",
                hint="leave it out to store the model's latents",
            )
        if self.latents == "moments" and not has_moments:
            raise UsageError(
                "--latents moments: this model is not variational, so it has no mean and scale to store",
                hint="--latents sample stores its latents as they are",
            )
        if self.channels is not None and not takes_any_channels and self.channels != audio_channels:
            raise UsageError(
                f"--channels {self.channels}: this model takes exactly {audio_channels}",
                hint="leave it out; the channel rule fits every file to the model",
            )


def check_window(samples: int, *, rate_hz: int, ratio: int) -> None:
    """Refuse a window that a model of this rate (Hz) and ratio (samples per frame) cannot use.

    Raises:
        UsageError: out of bounds, or not a multiple of the ratio; names the nearest lengths that work.
    """
    shortest = math.ceil(MIN_WINDOW_S * rate_hz / ratio) * ratio
    longest = int(MAX_WINDOW_S * rate_hz) // ratio * ratio
    length_s = samples / rate_hz
    if length_s < MIN_WINDOW_S:
        raise UsageError(
            f"--sample-size {samples} is {length_s:.4f} s at the model's {rate_hz} Hz, less than {MIN_WINDOW_S} s",
            hint=f"the shortest that works is {shortest}",
        )
    if length_s > MAX_WINDOW_S:
        raise UsageError(
            f"--sample-size {samples} is {length_s:.0f} s at the model's {rate_hz} Hz, more than {MAX_WINDOW_S:.0f} s",
            hint=f"the longest that works is {longest}; --window whole stores files of any length in one piece",
        )
    if samples % ratio:
        below, above = samples // ratio * ratio, (samples // ratio + 1) * ratio
        nearest = [str(n) for n in (below, above) if shortest <= n <= longest]
        raise UsageError(
            f"--sample-size {samples} is not a multiple of the model's ratio {ratio} ({samples / ratio:.2f} frames)",
            hint=f"the nearest that work: {' or '.join(nearest)}",
        )


class DecodeSettings(Settings):
    """Everything `woodshed decode` can be told."""

    positional = "folder"
    sections = {"decode": ("folder", "output", "ids", "limit", "format", "device")}

    folder: FilePath = Field(description="Output folder of an encode run.")
    output: FilePath | None = Field(
        default=None, description="Folder that receives the sound files; unset: the input's name with -decoded."
    )
    ids: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="Decode only the items of these ids."
    )
    limit: int | None = Field(default=None, ge=1, description="Decode only this many items.")
    format: Literal["wav", "flac"] = Field(default="wav", description="Format of the sound files.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps.")

    _device_is_known = field_validator("device")(check_device)

    @property
    def output_folder(self) -> Path:
        """Where the sound files go."""
        if self.output is not None:
            return self.output
        named = self.folder if self.folder.name not in ("", "..") else self.folder.resolve()
        return named.with_name(named.name + "-decoded")


class InspectSettings(Settings):
    """Everything `woodshed inspect` can be told."""

    positional = "folder"
    sections = {"inspect": ("folder", "limit")}

    folder: FilePath = Field(
        description="Folder of encoded data, songs or speech features: ours, or of stable-audio-tools, stable-audio-3 "
        "or Side-Step."
    )
    limit: int = Field(default=10, ge=0, description="Records to list one by one.")


class VerifySettings(Settings):
    """Everything `woodshed verify` can be told."""

    positional = "folder"
    sections = {"verify": ("folder", "source", "reencode", "repair", "seed", "device")}

    folder: FilePath = Field(description="Output folder of `woodshed encode`, `songs` or `speech`.")
    source: FilePath | None = Field(
        default=None, description="Where the source files (of speech: the manifest) are, if they have moved."
    )
    reencode: int = Field(default=0, ge=0, description="Make this many random items again and compare.")
    repair: bool = Field(
        default=False,
        description="Take back what is damaged, so that the next run makes it again, and write manifests anew. "
        "Needs no model.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Picks the items to encode again.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps.")

    _device_is_known = field_validator("device")(check_device)


class DemoSettings(Settings):
    """Everything `woodshed demo` can be told."""

    sections = {"demo": ("output", "keep")}

    output: FilePath = Field(default=Path("woodshed-demo"), description="Folder that receives the demo's files.")
    keep: bool = Field(default=False, description="Go on from what an earlier demo left there instead of anew.")
