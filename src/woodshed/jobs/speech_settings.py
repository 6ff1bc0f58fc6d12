"""What `woodshed speech` can be told. Flags of IndexTTS2's `preprocess_data.py` keep their names and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from woodshed.encoders.speech.published_files import Target
from woodshed.encoders.speech.published_values import (
    MAX_CLIP_S,
    MIN_FRAMES,
    ORIGINAL_FIRST_RATE_HZ,
    RATE_HZ,
    REFERENCE_S,
    SEMANTIC_LAYER,
)
from woodshed.errors import UsageError
from woodshed.jobs.settings import FilePath, Settings, check_device
from woodshed.speech.split import SplitBy

Paths = Annotated[tuple[FilePath, ...], Field(strict=False)]
COMPAT_LANGUAGE = "ja"


class SpeechSettings(Settings):
    """Everything `woodshed speech` can be told."""

    alternatives: ClassVar[Mapping[str, str]] = {"manifest": "dataset", "dataset": "manifest"}
    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "data": ("manifest", "dataset", "language", "max_seconds", "min_frames"),
        "models": (
            "target",
            "semantic",
            "config",
            "gpt_checkpoint",
            "tokenizer",
            "semantic_codec",
            "w2v_bert",
            "w2v_stats",
            "campplus",
            "semantic_layer",
        ),
        "text": ("text_compat", "text_engine", "max_text_tokens", "unknown_threshold"),
        "features": ("compat", "audio_sr", "reference_seconds", "strict_trim", "max_codes", "condition_dtype"),
        "output": ("output_dir", "output_root", "layout", "val_ratio", "split_by", "seed"),
        "computing": ("device", "num_processes", "batch_size", "workers", "precision"),
        "run": ("dry_run", "max_samples", "skip_existing", "retry_failed"),
    }

    manifest: FilePath | None = Field(
        default=None,
        description="JSONL manifest, one utterance a line: id, text, audio; speaker, language, duration if known.",
    )
    dataset: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="A data set as LANG=MANIFEST or LANG=MANIFEST=OUTPUT; may be repeated. Takes the place of "
        "--manifest, --language and --output-dir. A path that holds = goes in quotes of its own.",
    )
    language: str | None = Field(
        default=None,
        min_length=1,
        description="Language of rows that do not name theirs, such as en, zh, ja or am; unset: judged by the script "
        f"(under --compat: {COMPAT_LANGUAGE}).",
    )
    max_seconds: float = Field(
        default=MAX_CLIP_S,
        gt=0,
        le=MAX_CLIP_S,
        allow_inf_nan=False,
        description="Longest clip; a longer one is reported.",
    )
    min_frames: int = Field(
        default=MIN_FRAMES, ge=MIN_FRAMES, description="Shortest clip, in frames of 20 ms; a shorter one is reported."
    )

    target: Target = Field(
        default="2.0", description="Version of IndexTTS2 to make features for: 2.0, 2.5, or both from one pass."
    )
    semantic: Literal["w2v-bert", "whisper"] = Field(
        default="w2v-bert",
        description="What hears the codes: IndexTTS2's own w2v-bert and codec; or Whisper tiny.en with a small "
        "codebook of ours, which needs no download, gives codes of its own and no conditioning.",
    )
    config: FilePath | None = Field(
        default=None,
        description="The model's config.yaml; other files are looked for beside it. Unset: checkpoints/config.yaml.",
    )
    gpt_checkpoint: Paths = Field(
        default=(), description="The GPT (gpt.pth); with --target both, one of each version. Unset: beside the config."
    )
    tokenizer: Paths = Field(
        default=(), description="SentencePiece model (2.0), tiktoken vocabulary (2.5). Unset: beside the config."
    )
    semantic_codec: Paths = Field(
        default=(), description="MaskGCT's semantic_codec/model.safetensors (2.0), codec.pth (2.5). Unset: beside the "
        "config or in the hub's cache."
    )  # fmt: skip
    w2v_bert: FilePath | None = Field(
        default=None, description="w2v-bert-2.0, file or folder. Unset: beside the config or in the hub's cache."
    )
    w2v_stats: FilePath | None = Field(
        default=None, description="wav2vec2bert_stats.pt. Unset: beside the config or in the hub's cache."
    )
    campplus: FilePath | None = Field(
        default=None, description="campplus_cn_common.bin (2.5). Unset: beside the config or in the hub's cache."
    )
    semantic_layer: int = Field(
        default=SEMANTIC_LAYER, ge=0, description="Hidden state of w2v-bert that codes and conditioning are made of."
    )

    text_compat: bool = Field(
        default=False,
        description="Read texts as the original does, the run's language for all rows. On under --compat.",
    )
    text_engine: Literal["wetext", "tn"] = Field(
        default="wetext", description="Engine that reads Chinese and English numbers; tn is what the original takes on "
        "Linux, and has to be installed (WeTextProcessing)."
    )  # fmt: skip
    max_text_tokens: int | None = Field(
        default=None, ge=1, description="Longest text in tokens; unset: as the config says (600)."
    )
    unknown_threshold: float = Field(
        default=0.01, ge=0, le=1, allow_inf_nan=False,
        description="Warn when more than this share of the text ids is unknown to the tokenizer.",
    )  # fmt: skip

    compat: bool = Field(
        default=False,
        description="Give the numbers of the original run with a batch size of 1: its resampling by way of 24 kHz, "
        "reference from the whole clip, text routing, audio paths.",
    )
    audio_sr: int | None = Field(
        default=None,
        ge=1000,
        le=384_000,
        description=f"Rate of the first resampling under --compat (default there {ORIGINAL_FIRST_RATE_HZ}); otherwise "
        f"only {RATE_HZ}, the rate that the models hear.",
    )
    reference_seconds: float = Field(
        default=REFERENCE_S, ge=0.1, le=MAX_CLIP_S, allow_inf_nan=False,
        description="Condition, speaker and emotion are taken from so much of a clip's beginning, as in inference.",
    )  # fmt: skip
    strict_trim: bool = Field(
        default=False, description="Leave out a last frame of which half is padding; the original keeps its code."
    )
    max_codes: int | None = Field(
        default=None, ge=1, description="Longest clip in codes; unset: as the config says (1815)."
    )
    condition_dtype: Literal["float32", "float16"] = Field(
        default="float32", description="Type of the stored condition; float16 halves the folder."
    )

    output_dir: FilePath = Field(
        default="processed_data",
        validate_default=True,
        description="Folder that receives the features; an unfinished run resumes there. A folder made by the "
        "original is checked and taken over.",
    )
    output_root: FilePath | None = Field(
        default=None, description="Where data sets of --dataset go that name no OUTPUT: <lang>_processed_data in it."
    )
    layout: Literal["indextts", "shards"] = Field(
        default="indextts",
        description="indextts: four .npy files per clip and manifests, as the trainers read; shards: few large files, "
        "for woodshed.open.",
    )
    val_ratio: float = Field(
        default=0.01, allow_inf_nan=False, description="Share of the rows that the validation manifest gets."
    )
    split_by: SplitBy = Field(
        default="id",
        description="id: the original's rule; speaker, recording, text: what belongs together stays on one side.",
    )
    seed: int = Field(default=17, ge=0, lt=2**63, description="Picks the groups of --split-by.")

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps.")
    num_processes: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Worker processes, spread over all devices; the results do not depend on it. 0: one per GPU, or "
        "one per core of the CPU.",
    )
    batch_size: int = Field(default=0, ge=0, description="Most clips per batch; 0: as the device's memory allows.")
    workers: int = Field(default=0, ge=0, description="Threads per process that read ahead; 0: by the cores.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="Arithmetic of w2v-bert; anything but fp32 changes some codes."
    )

    dry_run: bool = Field(default=False, description="Plan, report, and write nothing.")
    max_samples: int = Field(default=0, ge=0, description="Make at most so many new rows; 0: all.")
    skip_existing: bool = Field(
        default=False,
        description="In a folder of the original, take over every row whose files are there and sound, listed or not.",
    )
    retry_failed: bool = Field(default=False, description="Try the rows again that failed in an earlier run.")

    _device_is_known = field_validator("device")(check_device)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_what_is_implied(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        implied: dict[str, object] = {"audio_sr": RATE_HZ}
        if data.get("compat") is True:
            implied = {"audio_sr": ORIGINAL_FIRST_RATE_HZ, "text_compat": True, "language": COMPAT_LANGUAGE}
        return data | {name: value for name, value in implied.items() if data.get(name) is None}

    @model_validator(mode="after")
    def _check_together(self) -> SpeechSettings:
        if not self.manifest and not self.dataset:
            raise UsageError(
                "no manifest is given", hint="add --manifest FILE, or --dataset LANG=FILE for each of several"
            )
        if not self.compat and self.audio_sr != RATE_HZ:
            raise UsageError(
                f"--audio-sr {self.audio_sr}: the models hear {RATE_HZ} Hz and nothing else",
                hint=f"leave it out; with --compat it sets the original's first resampling ({ORIGINAL_FIRST_RATE_HZ})",
            )
        if self.compat and self.reference_seconds != REFERENCE_S:
            raise UsageError(
                "--compat takes condition and emotion from the whole clip, so --reference-seconds has no say",
                hint="leave one of the two out",
            )
        if self.semantic == "whisper":
            if self.target != "2.0":
                raise UsageError(
                    f"--semantic whisper gives 50 codes a second, like 2.0, and not --target {self.target}",
                    hint="leave --target out",
                )
            if self.compat:
                raise UsageError("--compat copies IndexTTS2, which has no --semantic whisper", hint="keep one of them")
        return self
