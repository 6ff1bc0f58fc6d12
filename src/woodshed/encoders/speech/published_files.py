"""The files that a speech run needs, as they were published: names, repositories, sizes, licences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Target = Literal["2.0", "2.5", "both"]
Role = Literal[
    "config", "tokenizer_2.0", "tokenizer_2.5", "gpt_2.0", "gpt_2.5", "w2v_bert", "w2v_bert_config", "w2v_stats",
    "codec_50hz", "codec_25hz", "campplus",
]  # fmt: skip

_BILIBILI = "bilibili Model Use License"
_MASKGCT = "CC-BY-NC-4.0 (not for commercial use)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One file that a target needs, as it was published."""

    role: Role
    title: str
    flag: str
    family: str
    """What its content must be: a `Family`, or `sentencepiece`, `tiktoken`, `yaml`, `json`."""
    names: tuple[str, ...]
    """Where it lies below a checkpoint folder."""
    hub_repo: str
    hub_file: str
    about_bytes: int
    """Size of the published file, within a few per cent."""
    licence: str
    is_needed: bool = True
    other_repos: tuple[str, ...] = ()
    """Repositories that hold the same file: one of their copies in the hub cache will do."""


def wanted_files(target: Target) -> tuple[Wanted, ...]:
    """The files of a target; sizes, names and licences are those of the published repositories."""
    repo, other = "IndexTeam/IndexTTS-2", "IndexTeam/IndexTTS-2.5"
    if target == "2.5":
        repo, other = other, repo
    shared = (
        Wanted(
            role="config", title="model config", flag="--config", family="yaml", names=("config.yaml",),
            hub_repo=repo, hub_file="config.yaml", about_bytes=2_900, licence=_BILIBILI, is_needed=False,
        ),
        Wanted(
            role="w2v_bert", title="w2v-bert-2.0", flag="--w2v-bert", family="w2v_bert",
            names=("hf_cache/w2v-bert-2.0/model.safetensors", "w2v-bert-2.0/model.safetensors"),
            hub_repo="facebook/w2v-bert-2.0", hub_file="model.safetensors", about_bytes=2_322_063_736, licence="MIT",
        ),
        Wanted(
            role="w2v_bert_config", title="config of w2v-bert-2.0", flag="--w2v-bert", family="json",
            names=("hf_cache/w2v-bert-2.0/config.json", "w2v-bert-2.0/config.json"),
            hub_repo="facebook/w2v-bert-2.0", hub_file="config.json", about_bytes=1_874, licence="MIT", is_needed=False,
        ),
        Wanted(
            role="w2v_stats", title="mean and variance of w2v-bert's layer", flag="--w2v-stats", family="w2v_stats",
            names=("wav2vec2bert_stats.pt",), hub_repo=repo, hub_file="wav2vec2bert_stats.pt", about_bytes=9_343,
            licence=_BILIBILI, other_repos=(other,),
        ),
    )  # fmt: skip
    versions = ("2.0", "2.5") if target == "both" else (target,)
    own = tuple(wanted for version in versions for wanted in (_WANTED_20 if version == "2.0" else _WANTED_25))
    return (*shared, *own)


_WANTED_20 = (
    Wanted(
        role="tokenizer_2.0", title="SentencePiece model", flag="--tokenizer", family="sentencepiece",
        names=("bpe.model",), hub_repo="IndexTeam/IndexTTS-2", hub_file="bpe.model", about_bytes=476_000,
        licence=_BILIBILI,
    ),
    Wanted(
        role="gpt_2.0", title="GPT of IndexTTS2 2.0", flag="--gpt-checkpoint", family="gpt_2.0", names=("gpt.pth",),
        hub_repo="IndexTeam/IndexTTS-2", hub_file="gpt.pth", about_bytes=3_484_000_000, licence=_BILIBILI,
    ),
    Wanted(
        role="codec_50hz", title="semantic codec, 50 Hz", flag="--semantic-codec", family="repcodec_50hz",
        names=(
            "hf_cache/semantic_codec_model.safetensors", "semantic_codec_model.safetensors",
            "semantic_codec/model.safetensors", "hf_cache/semantic_codec/model.safetensors",
        ),
        hub_repo="amphion/MaskGCT", hub_file="semantic_codec/model.safetensors", about_bytes=177_183_712,
        licence=_MASKGCT,
    ),
)  # fmt: skip
_WANTED_25 = (
    Wanted(
        role="tokenizer_2.5", title="tiktoken vocabulary", flag="--tokenizer", family="tiktoken",
        names=("multilingual_zh_ja_yue_char_del.tiktoken",), hub_repo="IndexTeam/IndexTTS-2.5",
        hub_file="multilingual_zh_ja_yue_char_del.tiktoken", about_bytes=907_395, licence=_BILIBILI,
    ),
    Wanted(
        role="gpt_2.5", title="GPT of IndexTTS2 2.5", flag="--gpt-checkpoint", family="gpt_2.5", names=("gpt.pth",),
        hub_repo="IndexTeam/IndexTTS-2.5", hub_file="gpt.pth", about_bytes=3_259_599_833, licence=_BILIBILI,
    ),
    Wanted(
        role="codec_25hz", title="semantic codec, 25 Hz", flag="--semantic-codec", family="enhanced_25hz",
        names=("codec.pth",), hub_repo="IndexTeam/IndexTTS-2.5", hub_file="codec.pth", about_bytes=607_290_935,
        licence=_BILIBILI,
    ),
    Wanted(
        role="campplus", title="CAMPPlus speaker network", flag="--campplus", family="campplus",
        names=("hf_cache/campplus_cn_common.bin", "campplus_cn_common.bin"), hub_repo="funasr/campplus",
        hub_file="campplus_cn_common.bin", about_bytes=28_036_335, licence="Apache-2.0",
    ),
)  # fmt: skip
