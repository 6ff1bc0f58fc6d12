"""What `woodshed songs convert` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from woodshed.errors import UsageError
from woodshed.jobs.settings import FilePath, Settings


class SongsConvertSettings(Settings):
    """Everything `woodshed songs convert` can be told."""

    positional: ClassVar[str | None] = "source"
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "files": ("source", "audio_dir", "output"),
        "conversion": ("to", "overwrite", "dry_run"),
    }

    source: FilePath = Field(description="Folder of songs with sidecars, a dataset.json, or a JSONL or CSV manifest.")
    audio_dir: FilePath | None = Field(
        default=None, description="Folder in which the sounds of a dataset.json are looked for, besides its own."
    )
    output: FilePath | None = Field(
        default=None, description="With --to dataset: the file to write; unset: dataset.json in the source folder."
    )
    to: Literal["txt", "json", "dataset"] = Field(
        default="txt",
        description="Text or JSON sidecars beside the sounds, or one dataset.json. All that is known of a song is "
        "written; what it is taken from stays.",
    )
    overwrite: bool = Field(
        default=False, description="Write over sidecars that say something else; without it they are left alone."
    )
    dry_run: bool = Field(default=False, description="Tell what would be written, and write nothing.")

    @model_validator(mode="after")
    def _check_output(self) -> SongsConvertSettings:
        if self.output is not None and self.to != "dataset":
            raise UsageError(
                f"--output goes with --to dataset: a {self.to} sidecar lies beside its sound",
                hint="leave --output out, or add --to dataset",
            )
        return self
