"""The networks of a run, from their files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch

from woodshed.contracts import Json
from woodshed.encoders.speech.campplus import CampPlus
from woodshed.encoders.speech.checkpoint import open_checkpoint
from woodshed.encoders.speech.conditioning import Conditioning
from woodshed.encoders.speech.encoder import Networks, Target
from woodshed.encoders.speech.model_config import ModelConfig
from woodshed.encoders.speech.model_files import ModelFiles
from woodshed.encoders.speech.published_files import Role
from woodshed.encoders.speech.semantic_codec import SemanticCodec
from woodshed.encoders.speech.w2vbert import SEMANTIC_LAYER, SemanticStats, W2VBert
from woodshed.errors import ModelError

_ROLES: Mapping[Target, tuple[Role, Role]] = {"2.0": ("codec_50hz", "gpt_2.0"), "2.5": ("codec_25hz", "gpt_2.5")}
"""The files of one release: its codec and its GPT."""
_IN_FINGERPRINT: Sequence[Role] = (
    "w2v_bert",
    "w2v_stats",
    "codec_50hz",
    "codec_25hz",
    "gpt_2.0",
    "gpt_2.5",
    "campplus",
)


def load_networks(
    files: ModelFiles,
    targets: Sequence[Target],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    layer: int = SEMANTIC_LAYER,
) -> Networks:
    """Load what the targets need. Weights in fp32 on a CPU stay mapped from their files, shared by all processes.

    Args:
        dtype: arithmetic of w2v-bert, by far the largest; the others stay in fp32, as codes are sensitive.
        layer: hidden state of w2v-bert that the semantic features are.

    Raises:
        ModelError: a file is missing, is not what it should be, or does not fit the others or the config.
    """
    files.require()
    bert = W2VBert.from_tensors(
        open_checkpoint(files.path("w2v_bert")), layer=layer, config=_json(files), device=device, dtype=dtype
    )
    stats = SemanticStats.from_tensors(open_checkpoint(files.path("w2v_stats")), device=device)
    # The config beside a run for both is that of one of them: it is compared with models that are alone only.
    config = files.config if files.config.path is not None and len(targets) == 1 else None
    codecs, conditionings = {}, {}
    for target in targets:
        codecs[target], conditionings[target] = _load_release(files, target, config, device)
        _check_fit(files, bert, codecs[target], target)
    campplus = None
    if "2.5" in targets:
        campplus = CampPlus.from_tensors(open_checkpoint(files.path("campplus")), device=device)
    digests = files.digests()
    return Networks(
        w2v_bert=bert,
        stats=stats,
        codec=codecs.get("2.0"),
        codec_25=codecs.get("2.5"),
        conditioning=conditionings.get("2.0"),
        conditioning_25=conditionings.get("2.5"),
        campplus=campplus,
        digests={"layer": layer, **{role: digests[role] for role in _IN_FINGERPRINT if role in digests}},
        device=device,
    )


def _load_release(
    files: ModelFiles, target: Target, config: ModelConfig | None, device: torch.device
) -> tuple[SemanticCodec, Conditioning]:
    codec_role, gpt_role = _ROLES[target]
    codec = SemanticCodec.from_tensors(open_checkpoint(files.path(codec_role)), device=device)
    if config is not None:
        codec.check_config(config.stated_codec)
    stated = None if config is None else config.stated_gpt
    gpt = open_checkpoint(files.path(gpt_role))
    return codec, Conditioning.from_tensors(gpt, config=stated, device=device)


def _json(files: ModelFiles) -> Mapping[str, Json] | None:
    path = files.found("w2v_bert_config")
    if path is None:
        return None
    try:
        config: Mapping[str, Json] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="fetch the file again") from error
    return config


def _check_fit(files: ModelFiles, bert: W2VBert, codec: SemanticCodec, target: Target) -> None:
    if bert.config.hidden_size != codec.hidden_size:
        raise ModelError(
            f"the semantic codec of {target} takes {codec.hidden_size} features and {files.path('w2v_bert')} gives "
            f"{bert.config.hidden_size}",
            hint="they belong to different models",
        )
