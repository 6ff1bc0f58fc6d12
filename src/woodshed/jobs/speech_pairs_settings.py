"""What `woodshed speech pairs` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from woodshed.jobs.settings import FilePath, Settings


class SpeechPairsSettings(Settings):
    """Everything `woodshed speech pairs` can be told."""

    positional: ClassVar[str | None] = "source"
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "files": ("source", "output"),
        "pairs": (
            "pairs_per_target",
            "max_pairs",
            "max_per_speaker",
            "min_text_len",
            "min_code_len",
            "seed",
            "speaker_from_name",
            "val_prompts_from_train",
            "compat",
        ),
    }

    source: FilePath = Field(
        description="Folder with train_manifest.jsonl and val_manifest.jsonl, or one such manifest."
    )
    output: FilePath | None = Field(
        default=None,
        description="File that receives the pairs of one manifest, or folder for those of a folder; unset: "
        "gpt_pairs_train.jsonl and gpt_pairs_val.jsonl beside the manifests.",
    )
    pairs_per_target: int = Field(default=2, ge=1, description="Prompts for each target.")
    max_pairs: int = Field(
        default=0, ge=0, description="Most pairs per manifest, shared evenly by the speakers; 0: no limit."
    )
    max_per_speaker: int | None = Field(default=None, ge=1, description="Most pairs of one speaker.")
    min_text_len: int = Field(default=1, ge=1, description="Fewest text tokens of a target.")
    min_code_len: int = Field(default=1, ge=1, description="Fewest codes of a target.")
    seed: int = Field(default=2025, ge=0, lt=2**63, description="Picks the prompts.")
    speaker_from_name: bool = Field(
        default=False,
        description="Take the speaker from the file name, up to its first underscore, where a row has none.",
    )
    val_prompts_from_train: bool = Field(
        default=False, description="Let training rows of a speaker be prompts for validation, too."
    )
    compat: bool = Field(
        default=False, description="Write exactly the original's keys, and guess missing speakers from file names."
    )
