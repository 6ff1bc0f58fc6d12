"""What `woodshed songs dataset` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from woodshed.jobs.settings import FilePath, Settings


class SongsDatasetSettings(Settings):
    """Everything `woodshed songs dataset` can be told. Flags of Side-Step's `dataset` keep their names and meaning."""

    positional: ClassVar[str | None] = "folder"
    flag_names: ClassVar[Mapping[str, str]] = {"custom_tag": "tag"}
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "files": ("folder", "output", "overwrite", "dry_run"),
        "data set": ("name", "custom_tag", "tag_position", "genre_ratio"),
    }

    folder: FilePath = Field(description="Folder of songs with sidecars, searched with all below it.")
    output: FilePath | None = Field(default=None, description="File to write; unset: dataset.json in the folder.")
    overwrite: bool = Field(default=False, description="Write over a data set that is there and says something else.")
    dry_run: bool = Field(default=False, description="Tell what would be written, and write nothing.")
    name: str = Field(default="local_dataset", description="Name of the data set.")
    custom_tag: str = Field(default="", description="Trigger tag of all songs that have none of their own.")
    tag_position: Literal["prepend", "append", "replace"] = Field(
        default="prepend", description="Where tags go in prompts: before the caption, after it, or instead of it."
    )
    genre_ratio: int = Field(
        default=0, ge=0, le=100, description="Per cent of the songs that are prompted by genre instead of caption."
    )
