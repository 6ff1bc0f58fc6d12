"""Small files of every kind that a speech run needs, laid out as people have them."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).parents[2] / "golden" / "indextts2"
CONFIG = {
    "dataset": {"bpe_model": "bpe.model", "mel": {"n_fft": 1024}},
    "gpt": {"model_dim": 8, "max_text_tokens": 20, "max_mel_tokens": 40, "layers": 1},
    "semantic_codec": {"codebook_size": 32, "hidden_size": 16},
    "gpt_checkpoint": "gpt.pth",
    "w2v_stat": "wav2vec2bert_stats.pt",
    "vocoder": {"type": "bigvgan"},
    "version": 2.0,
}
HUB_FILES = {
    "config": ("IndexTeam/IndexTTS-2", "config.yaml"),
    "tokenizer_2.0": ("IndexTeam/IndexTTS-2", "bpe.model"),
    "gpt_2.0": ("IndexTeam/IndexTTS-2", "gpt.pth"),
    "w2v_stats": ("IndexTeam/IndexTTS-2", "wav2vec2bert_stats.pt"),
    "w2v_bert": ("facebook/w2v-bert-2.0", "model.safetensors"),
    "w2v_bert_config": ("facebook/w2v-bert-2.0", "config.json"),
    "codec_50hz": ("amphion/MaskGCT", "semantic_codec/model.safetensors"),
    "tokenizer_2.5": ("IndexTeam/IndexTTS-2.5", "multilingual_zh_ja_yue_char_del.tiktoken"),
    "gpt_2.5": ("IndexTeam/IndexTTS-2.5", "gpt.pth"),
    "codec_25hz": ("IndexTeam/IndexTTS-2.5", "codec.pth"),
    "campplus": ("funasr/campplus", "campplus_cn_common.bin"),
}
"""Where each is published, by role; written down here by hand, apart from the code under test."""
FOLDER_FILES = {
    "config": "config.yaml",
    "tokenizer_2.0": "bpe.model",
    "gpt_2.0": "gpt.pth",
    "w2v_stats": "wav2vec2bert_stats.pt",
    "w2v_bert": "hf_cache/w2v-bert-2.0/model.safetensors",
    "w2v_bert_config": "hf_cache/w2v-bert-2.0/config.json",
    "codec_50hz": "hf_cache/semantic_codec_model.safetensors",
    "tokenizer_2.5": "multilingual_zh_ja_yue_char_del.tiktoken",
    "gpt_2.5": "gpt.pth",
    "codec_25hz": "codec.pth",
    "campplus": "hf_cache/campplus_cn_common.bin",
}
"""Where IndexTTS2's own programs put each below their checkpoint folder."""


def scaled_down(layout: str) -> dict[str, Tensor]:
    """A real checkpoint's keys, its long axes a hundredth as long: such files open and are recognised, no more."""
    keys = json.loads((GOLDEN / f"layout_{layout}.json").read_text())["keys"]
    return {key: torch.zeros([1 + length // 100 for length in shape]) for key, (shape, _) in keys.items()}


def write(role: str, path: Path) -> Path:
    """Put the small file of a role somewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match role:
        case "config":
            path.write_text(yaml.safe_dump(CONFIG))
        case "tokenizer_2.0":
            shutil.copyfile(GOLDEN / "tiny_bpe.model", path)
        case "tokenizer_2.5":
            path.write_text("".join(f"{base64.b64encode(bytes([i])).decode()} {i}\n" for i in range(256)))
        case "gpt_2.0":
            torch.save(scaled_down("gpt_v2"), path)
        case "gpt_2.5":
            torch.save({"model": scaled_down("gpt_v25_campplus")}, path)
        case "w2v_stats":
            torch.save({"mean": torch.zeros(16), "var": torch.ones(16)}, path)
        case "w2v_bert":
            shutil.copyfile(GOLDEN / "w2vbert_tiny.safetensors", path)
        case "w2v_bert_config":
            path.write_text(json.dumps({"hidden_size": 16}))
        case "codec_50hz":
            save_file(load_file(GOLDEN / "repcodec_tiny.safetensors"), path)
        case "codec_25hz":
            state = load_file(GOLDEN / "enhanced_codec_tiny.safetensors")
            torch.save({"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, path)
        case "campplus":
            torch.save(scaled_down("campplus"), path)
        case _:
            raise AssertionError(role)
    path.chmod(0o644)
    return path


def write_folder(folder: Path, roles: list[str]) -> None:
    """Put files where IndexTTS2's own programs have them."""
    for role in roles:
        write(role, folder / FOLDER_FILES[role])


def write_hub_cache(cache: Path, roles: list[str]) -> None:
    """Put files where a download from the hub leaves them: a blob named by its sha256, and a link to it."""
    for role in roles:
        repo, name = HUB_FILES[role]
        home = cache / f"models--{repo.replace('/', '--')}"
        commit = hashlib.sha1(repo.encode()).hexdigest()
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text(commit)
        blob = write(role, home / "blobs" / "incoming")
        blob = blob.rename(blob.with_name(hashlib.sha256(blob.read_bytes()).hexdigest()))
        link = home / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
