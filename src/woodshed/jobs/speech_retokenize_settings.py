"""What `woodshed speech retokenize` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from woodshed.jobs.settings import FilePath, Settings


class SpeechRetokenizeSettings(Settings):
    """Everything `woodshed speech retokenize` can be told. What is unset is as the folder was made."""

    positional: ClassVar[str | None] = "folder"
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "data": ("folder", "tokenizer"),
        "text": ("language", "text_compat", "text_engine", "max_text_tokens", "unknown_threshold"),
        "run": ("dry_run",),
    }

    folder: FilePath = Field(description="Output folder of `woodshed speech`.")
    tokenizer: Annotated[tuple[FilePath, ...], Field(strict=False)] = Field(
        default=(),
        description="SentencePiece model (2.0), tiktoken vocabulary (2.5); a folder for both takes one or both. Unset: "
        "those of the folder.",
    )
    language: str | None = Field(
        default=None, min_length=1, description="Language of rows that do not name theirs, such as en, zh, ja or am."
    )
    text_compat: bool | None = Field(
        default=None, description="Read texts as the original does, the run's language for all rows."
    )
    text_engine: Literal["wetext", "tn"] | None = Field(
        default=None, description="Engine that reads Chinese and English numbers."
    )
    max_text_tokens: int | None = Field(
        default=None, ge=1, description="Longest text in tokens; rows with a longer one fail."
    )
    unknown_threshold: float | None = Field(
        default=None, ge=0, le=1, allow_inf_nan=False,
        description="Warn when more than this share of the text ids is unknown to the tokenizer.",
    )  # fmt: skip
    dry_run: bool = Field(default=False, description="Count what would change, and write nothing.")
