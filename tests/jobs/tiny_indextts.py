"""A small IndexTTS2 checkpoint folder of the true classes and key layouts, and a data set to run it on."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.encoders.speech.test_conditioning import SMALL_GPT, small_tensors
from woodshed.encoders.speech.campplus import CampPlus, CampPlusSizes

GOLDEN = Path(__file__).parents[1] / "golden" / "indextts2"
LAYER = 2
"""Hidden state to ask for: the small w2v-bert has no 17 layers."""
TEXTS = ("Hello, is this the 2nd one?", "我爱你 and you", "Ab c", "The rain in Spain.", "One, two, three!", "Yes")


def write_models(folder: Path, *, num_layers: int = LAYER + 1, seed: int = 0) -> Path:
    """Files of 2.0 and 2.5 where IndexTTS2's own programs put them.

    The folder itself serves 2.0, and both releases at once; `2.5/` has the GPT and config of 2.5 and links to the rest.
    """
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    config = Wav2Vec2BertConfig(
        hidden_size=1024, num_hidden_layers=num_layers, num_attention_heads=16, intermediate_size=64, add_adapter=False
    )
    Wav2Vec2BertModel(config).save_pretrained(folder / "hf_cache" / "w2v-bert-2.0")
    chance = torch.Generator().manual_seed(seed)
    torch.save(
        {"mean": 0.1 * torch.randn(1024, generator=chance), "var": 0.5 + torch.rand(1024, generator=chance)},
        folder / "wav2vec2bert_stats.pt",
    )
    gpt = {**SMALL_GPT, "max_text_tokens": 600, "max_mel_tokens": 1815}
    codec = {"codebook_size": 32, "hidden_size": 1024, "codebook_dim": 4, "vocos_dim": 12}
    settings = {
        "dataset": {"bpe_model": "bpe.model"},
        "gpt": gpt,
        "semantic_codec": {**codec, "vocos_intermediate_dim": 20, "vocos_num_layers": 3},
        "gpt_checkpoint": "gpt.pth",
        "w2v_stat": "wav2vec2bert_stats.pt",
        "version": 2.0,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    torch.save({"model": small_tensors("2.0")}, folder / "gpt.pth")
    save_file(_widened("repcodec_tiny", 16, chance), folder / "hf_cache" / "semantic_codec_model.safetensors")
    shutil.copyfile(GOLDEN / "tiny_bpe.model", folder / "bpe.model")
    (folder / "2.5").mkdir()
    torch.save({"model": small_tensors("2.5")}, folder / "2.5" / "gpt.pth")
    torch.save({"model": _widened("enhanced_codec_tiny", 24, chance)}, folder / "codec.pth")
    torch.save(_campplus(chance), folder / "hf_cache" / "campplus_cn_common.bin")
    vocabulary = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (folder / "multilingual_zh_ja_yue_char_del.tiktoken").write_text(vocabulary)
    own = {name: settings[name] for name in ("gpt_checkpoint", "w2v_stat")}
    (folder / "2.5" / "config.yaml").write_text(
        yaml.safe_dump({**own, "gpt": {**gpt, "condition_type": "none"}, "version": 2.5})
    )
    for name in ("hf_cache", "wav2vec2bert_stats.pt", "codec.pth", "multilingual_zh_ja_yue_char_del.tiktoken"):
        (folder / "2.5" / name).symlink_to(folder.absolute() / name)
    return folder


def _widened(name: str, hidden: int, chance: torch.Generator) -> dict[str, Tensor]:
    """A golden codec for features of 1024 channels, with weights of its own."""
    made = {}
    for key, value in load_file(GOLDEN / f"{name}.safetensors").items():
        shape = [1024 if length == hidden else length for length in value.shape]
        scale = max(1, int(np.prod(shape[1:]))) ** -0.5
        made[key] = value if shape == [*value.shape] else torch.randn(shape, generator=chance) * scale
    return made


def _campplus(chance: torch.Generator) -> dict[str, Tensor]:
    small = load_small_campplus_shapes()
    made = {}
    for key, shape in small.items():
        if key.endswith("num_batches_tracked"):
            made[key] = torch.zeros(shape, dtype=torch.int64)
        elif key.endswith("running_var"):
            made[key] = 0.5 + torch.rand(shape, generator=chance)
        else:
            made[key] = torch.randn(shape, generator=chance) * max(1, int(np.prod(shape[1:]))) ** -0.5
    return made


def load_small_campplus_shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a network a quarter as wide as the published one."""
    with torch.device("meta"):
        network = CampPlus(CampPlusSizes.of({}))
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def models_of(folder: Path, *, target: str = "2.0") -> list[str]:
    """Flags that name the models."""
    own = folder / "2.5" if target == "2.5" else folder
    flags = ["--config", str(own / "config.yaml"), "--semantic-layer", str(LAYER), "--device", "cpu"]
    if target == "both":
        flags += ["--gpt-checkpoint", str(folder / "gpt.pth"), str(folder / "2.5" / "gpt.pth")]
    return [*flags, "--target", target]


def write_clips(folder: Path, seconds: tuple[float, ...], *, rate_hz: int = 16_000, seed: int = 0) -> list[Path]:
    """Noise with a beat, one file per length."""
    rng = np.random.default_rng(seed)
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    paths = []
    for number, length_s in enumerate(seconds):
        time_s = np.arange(round(length_s * rate_hz)) / rate_hz
        sound = 0.3 * rng.standard_normal(len(time_s)) * (0.6 + 0.4 * np.sin(2 * np.pi * (3 + number % 5) * time_s))
        paths.append(folder / "wavs" / f"clip_{number:03d}.wav")
        soundfile.write(paths[-1], sound.clip(-1, 1), rate_hz)
    return paths


def write_manifest(path: Path, rows: list[Mapping[str, Any] | str]) -> Path:
    """One row a line; a text stands as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def rows_of(paths: list[Path]) -> list[Mapping[str, Any] | str]:
    """A plain row per clip."""
    return [
        {
            "id": f"utt_{number:03d}",
            "text": TEXTS[number % len(TEXTS)],
            "audio": f"wavs/{path.name}",
            "speaker": f"s{number % 2}",
        }
        for number, path in enumerate(paths)
    ]
