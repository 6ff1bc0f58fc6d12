"""What `woodshed speech models` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from woodshed.encoders.speech.published_files import Target
from woodshed.jobs.settings import FilePath, Settings


class SpeechModelsSettings(Settings):
    """Everything `woodshed speech models` can be told."""

    flag_names: ClassVar[Mapping[str, str]] = {"config_path": "config"}
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "target": ("target",),
        "files": (
            "config_path",
            "gpt_checkpoint",
            "tokenizer",
            "semantic_codec",
            "w2v_bert",
            "w2v_stats",
            "campplus",
        ),
        "download": ("download", "yes"),
    }

    target: Target = Field(
        default="2.0", description="Version of IndexTTS2 to make features for: 2.0, 2.5, or both from one pass."
    )
    config_path: FilePath | None = Field(
        default=None,
        description="config.yaml of the model; the other files are looked for beside it. Unset: checkpoints/ here.",
    )
    gpt_checkpoint: Annotated[tuple[FilePath, ...], Field(strict=False)] = Field(
        default=(), description="GPT (gpt.pth); with --target both, one of each version."
    )
    tokenizer: Annotated[tuple[FilePath, ...], Field(strict=False)] = Field(
        default=(), description="SentencePiece model (2.0) or tiktoken vocabulary (2.5)."
    )
    semantic_codec: Annotated[tuple[FilePath, ...], Field(strict=False)] = Field(
        default=(), description="Semantic codec: MaskGCT's model.safetensors (2.0) or codec.pth (2.5)."
    )
    w2v_bert: FilePath | None = Field(
        default=None, description="w2v-bert-2.0: model.safetensors, or the folder that holds it and its config.json."
    )
    w2v_stats: FilePath | None = Field(default=None, description="Mean and variance: wav2vec2bert_stats.pt.")
    campplus: FilePath | None = Field(
        default=None, description="CAMPPlus speaker network (2.5): campplus_cn_common.bin."
    )
    download: bool = Field(
        default=False, description="Fetch what is missing from the Hugging Face hub, after asking; then check it."
    )
    yes: bool = Field(
        default=False, description="Do not ask before a download: the licences of the files have been read."
    )
