"""What `woodshed speech demo` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from woodshed.jobs.settings import FilePath, Settings


class SpeechDemoSettings(Settings):
    """Everything `woodshed speech demo` can be told."""

    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {"demo": ("output", "keep")}

    output: FilePath = Field(
        default=Path("woodshed-speech-demo"), description="Folder that receives the demo's manifest and features."
    )
    keep: bool = Field(default=False, description="Go on from what an earlier demo left there instead of anew.")
