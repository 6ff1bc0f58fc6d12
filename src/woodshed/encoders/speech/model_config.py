"""What a speech run needs of IndexTTS2's `config.yaml`: limits, token numbers, sizes, and names of files.

A config is optional: without one the published values hold. Keys that nothing here uses may hold anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from woodshed.contracts import Json
from woodshed.errors import ModelError, UsageError

_T = TypeVar("_T", int, float, str)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionModule:
    """One Conformer with its Perceiver: `condition_module` (speaker) or `emo_condition_module` (emotion)."""

    output_size: int
    linear_units: int
    attention_heads: int
    num_blocks: int
    perceiver_mult: float = 2.0
    input_layer: str = "conv2d2"


@dataclass(frozen=True, slots=True, kw_only=True)
class GptConfig:
    """The section `gpt`; the defaults are those of the published 2.0 model."""

    model_dim: int = 1280
    max_text_tokens: int = 600
    """Longest text, in tokens; the table of text positions has two rows more."""
    max_mel_tokens: int = 1815
    """Longest speech, in semantic codes: 36 s at 50 Hz, 72 s at 25 Hz. The table of positions has three rows more."""
    number_text_tokens: int = 12_000
    number_mel_codes: int = 8194
    """Semantic codes and the two marks below."""
    start_text_token: int = 0
    stop_text_token: int = 1
    start_mel_token: int = 8192
    stop_mel_token: int = 8193
    condition_module: ConditionModule = ConditionModule(
        output_size=512, linear_units=2048, attention_heads=8, num_blocks=6
    )
    emo_condition_module: ConditionModule = ConditionModule(
        output_size=512, linear_units=1024, attention_heads=4, num_blocks=4
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticCodecConfig:
    """The section `semantic_codec`; the defaults are those of the published 2.0 model."""

    codebook_size: int = 8192
    hidden_size: int = 1024
    codebook_dim: int = 8
    vocos_dim: int = 384
    vocos_intermediate_dim: int = 2048
    vocos_num_layers: int = 12
    downsample_scale: int = 1
    """Feature frames per code: 1 gives 50 codes a second, 2 gives 25 (IndexTTS2 2.5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A `config.yaml`, or the published values where there is none."""

    path: Path | None = None
    version: str | None = None
    """Such as `2.0`; None where the file does not say."""
    gpt: GptConfig = GptConfig()
    semantic_codec: SemanticCodecConfig = SemanticCodecConfig()
    stated_gpt: Mapping[str, Json] = field(default_factory=dict)
    """The section `gpt` as it stands in the file, to be compared with a checkpoint: without any default of ours."""
    stated_codec: Mapping[str, Json] = field(default_factory=dict)
    """The section `semantic_codec` likewise."""
    gpt_checkpoint: str = "gpt.pth"
    """Names of files, relative to the config's folder."""
    w2v_stat: str = "wav2vec2bert_stats.pt"
    bpe_model: str = "bpe.model"


PUBLISHED = ModelConfig()
"""The published 2.0 model."""


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of the file, read key by key; errors name file and key."""

    path: Path
    name: str
    values: Mapping[str, Any]

    def get(self, key: str, default: _T) -> _T:
        """A value of the default's type; the default where the key is absent or empty."""
        value = self.values.get(key)
        return default if value is None else self._checked(key, value, type(default))

    def need(self, key: str, kind: type[_T]) -> _T:
        """A value that must be there."""
        if self.values.get(key) is None:
            raise ModelError(
                f"{self.path} has no key '{self.name}{key}'", hint="is this the config.yaml of an IndexTTS2 model?"
            )
        return self._checked(key, self.values[key], kind)

    def section(self, key: str, *, is_needed: bool = False) -> _Section:
        """A section below this one; empty where it is absent."""
        value = self.values.get(key)
        if value is None and not is_needed:
            value = {}
        if not isinstance(value, dict):
            what = (
                f"no section '{self.name}{key}'" if value is None else f"no section but {value!r} as {self.name}{key}"
            )
            raise ModelError(f"{self.path} has {what}", hint="is this the config.yaml of an IndexTTS2 model?")
        return _Section(self.path, f"{self.name}{key}.", value)

    def _checked(self, key: str, value: Any, kind: type[_T]) -> _T:
        named = f"{self.path}: {self.name}{key}"
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            words = {int: "a whole number", float: "a number", str: "text"}
            raise ModelError(f"{named} is {value!r}, {words[kind]} was expected")
        if isinstance(value, str):
            if not value.strip():
                raise ModelError(f"{named} is empty, text was expected")
        elif not 0 <= value < 2**31:
            raise ModelError(f"{named} is {value!r}, which no model has")
        return value


def read_model_config(path: Path) -> ModelConfig:
    """Read a `config.yaml`.

    Raises:
        UsageError: there is no such file.
        ModelError: it is no YAML, or a value that a run needs is missing or of the wrong kind.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"there is no config {path}", hint="check the path given with --config") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise ModelError(f"{path} is not YAML: {told}", hint="take the config.yaml that came with the model") from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} holds a {type(content).__name__}, not settings by name",
            hint="take the config.yaml that came with the model",
        )
    top = _Section(path, "", content)
    return ModelConfig(
        path=path,
        version=_version(content.get("version")),
        gpt=_gpt(top.section("gpt", is_needed=True)),
        semantic_codec=_semantic_codec(top.section("semantic_codec")),
        stated_gpt=top.section("gpt").values,
        stated_codec=top.section("semantic_codec").values,
        gpt_checkpoint=top.get("gpt_checkpoint", PUBLISHED.gpt_checkpoint),
        w2v_stat=top.get("w2v_stat", PUBLISHED.w2v_stat),
        bpe_model=top.section("dataset").get("bpe_model", PUBLISHED.bpe_model),
    )


def _version(value: object) -> str | None:
    """YAML reads `2.0` as a number; `2` is the same version."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{float(value)}"
    return value if isinstance(value, str) else None


def _gpt(section: _Section) -> GptConfig:
    known = PUBLISHED.gpt
    return GptConfig(
        # The class that reads this file upstream has other defaults, so a file without limits says nothing certain.
        max_text_tokens=_at_least_1(section, "max_text_tokens"),
        max_mel_tokens=_at_least_1(section, "max_mel_tokens"),
        model_dim=section.get("model_dim", known.model_dim),
        number_text_tokens=section.get("number_text_tokens", known.number_text_tokens),
        number_mel_codes=section.get("number_mel_codes", known.number_mel_codes),
        start_text_token=section.get("start_text_token", known.start_text_token),
        stop_text_token=section.get("stop_text_token", known.stop_text_token),
        start_mel_token=section.get("start_mel_token", known.start_mel_token),
        stop_mel_token=section.get("stop_mel_token", known.stop_mel_token),
        condition_module=_condition(section.section("condition_module"), known.condition_module),
        emo_condition_module=_condition(section.section("emo_condition_module"), known.emo_condition_module),
    )


def _at_least_1(section: _Section, key: str) -> int:
    value = section.need(key, int)
    if value < 1:
        raise ModelError(f"{section.path}: {section.name}{key} is {value}, at least 1 was expected")
    return value


def _condition(section: _Section, known: ConditionModule) -> ConditionModule:
    return ConditionModule(
        output_size=section.get("output_size", known.output_size),
        linear_units=section.get("linear_units", known.linear_units),
        attention_heads=section.get("attention_heads", known.attention_heads),
        num_blocks=section.get("num_blocks", known.num_blocks),
        perceiver_mult=section.get("perceiver_mult", known.perceiver_mult),
        input_layer=section.get("input_layer", known.input_layer),
    )


def _semantic_codec(section: _Section) -> SemanticCodecConfig:
    known = PUBLISHED.semantic_codec
    return SemanticCodecConfig(
        codebook_size=section.get("codebook_size", known.codebook_size),
        hidden_size=section.get("hidden_size", known.hidden_size),
        codebook_dim=section.get("codebook_dim", known.codebook_dim),
        vocos_dim=section.get("vocos_dim", known.vocos_dim),
        vocos_intermediate_dim=section.get("vocos_intermediate_dim", known.vocos_intermediate_dim),
        vocos_num_layers=section.get("vocos_num_layers", known.vocos_num_layers),
        downsample_scale=section.get("downsample_scale", known.downsample_scale),
    )
