"""What `woodshed songs tag` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from woodshed.errors import UsageError
from woodshed.jobs.settings import FilePath, Settings
from woodshed.songs.tagging import TagAction
from woodshed.songs.tags import tags_in


class SongsTagSettings(Settings):
    """Everything `woodshed songs tag` can be told."""

    positional: ClassVar[str | None] = "folder"
    flag_names: ClassVar[Mapping[str, str]] = {"list_tags": "list"}
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "files": ("folder",),
        "tags": ("add", "remove", "clear", "list_tags", "position", "dry_run"),
    }

    folder: FilePath = Field(description="Folder of songs with sidecars, searched with all below it.")
    add: str | None = Field(
        default=None, description="Give every song this trigger tag; one without sidecars gets a text sidecar."
    )
    remove: str | None = Field(default=None, description="Take this tag away from all songs that have it.")
    clear: bool = Field(default=False, description="Take all tags away.")
    list_tags: bool = Field(default=False, description="Show the tags and change nothing; what happens without a flag.")
    position: Literal["prepend", "append", "replace"] = Field(
        default="prepend", description="With --add: before or after the tags that a song has, or instead of them."
    )
    dry_run: bool = Field(default=False, description="Tell what would change, and change nothing.")

    @model_validator(mode="after")
    def _check_action(self) -> SongsTagSettings:
        given = [
            self.flag(name)
            for name in ("add", "remove", "clear", "list_tags")
            if getattr(self, name) not in (None, False)
        ]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} do not go together", hint="one at a time")
        for name in ("add", "remove"):
            tag = getattr(self, name)
            if tag is not None and (not tags_in(tag) or len(tag.splitlines()) != 1):
                raise UsageError(f"{self.flag(name)} {tag!r} is no tag", hint="a word or a few, in one line")
        return self

    @property
    def action(self) -> TagAction:
        """What is asked for."""
        if self.add is not None:
            return TagAction(kind="add", tag=self.add.strip(), position=self.position)
        if self.remove is not None:
            return TagAction(kind="remove", tag=self.remove.strip())
        if self.clear:
            return TagAction(kind="clear")
        return TagAction(kind="list")
