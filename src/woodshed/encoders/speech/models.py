"""The networks of a run, from their files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from woodshed.contracts import Json
from woodshed.encoders.speech.campplus import CampPlus
from woodshed.encoders.speech.checkpoint import open_checkpoint
from woodshed.encoders.speech.conditioning import Conditioning
from woodshed.encoders.speech.encoder import Networks, Target
from woodshed.encoders.speech.model_files import ModelFiles
from woodshed.encoders.speech.published_files import Role
from woodshed.encoders.speech.semantic_codec import SemanticCodec
from woodshed.encoders.speech.w2vbert import SEMANTIC_LAYER, SemanticStats, W2VBert
from woodshed.errors import ModelError

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
    made: dict[str, SemanticCodec | Conditioning] = {}
    for target in targets:
        suffix, codec_role = ("", "codec_50hz") if target == "2.0" else ("_25", "codec_25hz")
        # The config beside a run for both is that of 2.0 or of 2.5: its sizes are compared with its own models only.
        config = files.config if files.config.path is not None and len(targets) == 1 else None
        codec_file: Role = "codec_50hz" if codec_role == "codec_50hz" else "codec_25hz"
        gpt_file: Role = "gpt_2.0" if target == "2.0" else "gpt_2.5"
        codec = SemanticCodec.from_tensors(open_checkpoint(files.path(codec_file)), device=device)
        conditioning = Conditioning.from_tensors(
            open_checkpoint(files.path(gpt_file)), config=None if config is None else asdict(config.gpt), device=device
        )
        if config is not None:
            codec.check_config(asdict(config.semantic_codec))
        _check_fit(files, bert, codec, target)
        made |= {f"codec{suffix}": codec, f"conditioning{suffix}": conditioning}
    campplus = None
    if "2.5" in targets:
        campplus = CampPlus.from_tensors(open_checkpoint(files.path("campplus")), device=device)
    digests = files.digests()
    return Networks(
        w2v_bert=bert,
        stats=stats,
        campplus=campplus,
        digests={"layer": layer, **{role: digests[role] for role in _IN_FINGERPRINT if role in digests}},
        device=device,
        **made,  # type: ignore[arg-type]
    )


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
