"""What `woodshed songs` can be told. Flags of Side-Step's `preprocess` keep their names and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from woodshed.errors import UsageError
from woodshed.jobs.settings import FilePath, Settings, check_device


class SongsSettings(Settings):
    """Everything `woodshed songs` can be told."""

    alternatives: ClassVar[Mapping[str, str]] = {"audio_dir": "dataset_json", "dataset_json": "audio_dir"}
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "data": ("audio_dir", "dataset_json", "max_duration", "max_file_s"),
        "tags": ("custom_tag", "tag_position", "genre_ratio"),
        "model": ("checkpoint_dir", "model"),
        "features": ("normalize", "target_db", "target_lufs", "estimate", "sidestep_compat", "resampler"),
        "output": ("output", "layout", "seed"),
        "computing": ("device", "precision", "batch_size", "num_workers"),
        "run": ("dry_run", "max_songs", "retry_failed", "trust_remote_code"),
    }

    audio_dir: FilePath | None = Field(
        default=None,
        description="Folder of songs, searched with all that is below it; sidecars (.txt, .json) lie beside them.",
    )
    dataset_json: FilePath | None = Field(
        default=None,
        description="dataset.json of Side-Step or ACE-Step, or a JSONL or CSV manifest: the songs it names are taken, "
        "and a folder that is given too is where else their files may be.",
    )
    custom_tag: str = Field(
        default="", description="Trigger tag for all songs that have none of their own; unset: as dataset.json says."
    )
    tag_position: Literal["prepend", "append", "replace"] | None = Field(
        default=None,
        description="Where a tag stands beside the caption; unset: as dataset.json or the sidecar says, else prepend.",
    )
    genre_ratio: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Percentage of songs that are described by their genre; unset: as dataset.json says, else 0.",
    )
    max_duration: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that are encoded of a longer song, its beginning; 0: all of it.",
    )
    max_file_s: float = Field(
        default=12 * 3600.0,
        gt=0,
        allow_inf_nan=False,
        description="Longest file in seconds; a longer one is reported as a failure and not decoded.",
    )

    checkpoint_dir: str = Field(
        default="checkpoints",
        min_length=1,
        description="ACE-Step checkpoint: a folder in the layout of diffusers or of ACE-Step, or a hub name.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="Variant in a folder that holds several: base, sft, turbo, xl-base, xl-sft, xl-turbo, or a "
        "folder's name.",
    )

    normalize: Literal["none", "peak", "lufs"] = Field(
        default="none", description="Bring every song to one peak (dBFS) or one loudness (LUFS, EBU R128) first."
    )
    target_db: float = Field(
        default=-1.0, ge=-60, le=0, allow_inf_nan=False, description="Peak that --normalize peak aims at, in dBFS."
    )
    target_lufs: float = Field(
        default=-14.0, ge=-60, le=0, allow_inf_nan=False, description="Loudness that --normalize lufs aims at, in LUFS."
    )
    estimate: Literal["none", "missing", "all"] = Field(
        default="none",
        description="Estimate tempo and key from the sound, where a song's metadata lacks them or for all songs. They "
        "are stored and shown as estimates.",
    )
    sidestep_compat: bool = Field(
        default=False,
        description="Give what Side-Step gives: bare lyrics of 512 tokens, padded texts, no reference, prompts as "
        "it writes them. Its layout is then the default.",
    )
    resampler: Literal["soxr", "torchaudio_sinc"] = Field(
        default="soxr", description="How songs are brought to the model's rate."
    )

    output: FilePath = Field(description="Folder that receives the data; an unfinished run resumes there.")
    layout: Literal["shards", "sidestep"] = Field(
        default="shards",
        description="shards: few large files with mean and deviation, for Woodshed; sidestep: one .pt per song, which "
        "Side-Step trains from.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="All chance derives from it and the song's path.")

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        default="fp32", description="Arithmetic of the models; auto is bf16 on a GPU and fp32 on a CPU."
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Most windows of sound per batch; unset: as memory allows."
    )
    num_workers: int = Field(default=4, ge=0, description="Threads that decode ahead; 0 decodes between batches.")

    dry_run: bool = Field(default=False, description="Plan, report time and disk needed, and write nothing.")
    max_songs: int | None = Field(default=None, ge=1, description="Prepare at most so many new songs in this run.")
    retry_failed: bool = Field(default=False, description="Try the songs again that failed in an earlier run.")
    trust_remote_code: bool = Field(
        default=False, description="Allow code that a checkpoint brings along to run. Nothing here needs it."
    )

    _device_is_known = field_validator("device")(check_device)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_what_is_implied(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("sidestep_compat") is not True:
            return data
        return data if data.get("layout") is not None else data | {"layout": "sidestep"}

    @model_validator(mode="after")
    def _check_together(self) -> SongsSettings:
        if self.audio_dir is None and self.dataset_json is None:
            raise UsageError("no songs are given", hint="add --audio-dir FOLDER, or --dataset-json FILE")
        if 0 < self.max_duration < 1:
            raise UsageError(
                f"--max-duration {self.max_duration:g} is less than a second", hint="give seconds, or 0 for whole songs"
            )
        return self
