"""The reference of `speech.py`: preprocessing as the original loop does it, written down plainly.

File order, batches of 16, stock `SeamlessM4TFeatureExtractor` (numpy) and `Wav2Vec2BertModel` with all its layers, the
codec on the padded batch without masks, four `numpy.save` per clip and a manifest. Decoding and the two resampling
steps are those of `tests.jobs.plain_indextts`. Two parts are ours: the text rules (the original's, which `--compat`
follows), and in batches of more than one the conditioning networks, told the lengths of the clips. At a batch size of 1
conditioning is the plain formula of the tests, so that the comparison of results owes nothing to ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from tests.encoders.speech.test_conditioning import plain_condition, plain_emotion
from tests.jobs.plain_indextts import PlainFeatures, plain_is_validation, plain_row, plain_wave
from torch import Tensor
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertModel

from woodshed.encoders.speech.checkpoint import open_checkpoint
from woodshed.encoders.speech.conditioning import Conditioning
from woodshed.encoders.speech.text.rules import TextRules

FIRST_RATE_HZ, RATE_HZ = 24_000, 16_000
FOLDERS = ("text_ids", "codes", "condition", "emo_vec")


class PlainLoop:
    """All models of a folder that `tests.jobs.tiny_indextts.write_models` made."""

    def __init__(self, models: Path, layer: int) -> None:
        self._layer = layer
        self._rules = TextRules(models / "bpe.model", compat=True)
        self._front_end = SeamlessM4TFeatureExtractor(
            feature_size=80, num_mel_bins=80, sampling_rate=RATE_HZ, padding_value=1, stride=2
        )
        self._bert = Wav2Vec2BertModel.from_pretrained(models / "hf_cache" / "w2v-bert-2.0").eval()
        self._stats = torch.load(models / "wav2vec2bert_stats.pt", weights_only=True)
        self._codec = load_file(models / "hf_cache" / "semantic_codec_model.safetensors")
        self._gpt = torch.load(models / "gpt.pth", weights_only=True)["model"]
        self._conditioning = Conditioning.from_tensors(open_checkpoint(models / "gpt.pth"))

    @torch.inference_mode()
    def run(self, manifest: Path, output: Path, *, batch_size: int, language: str) -> None:
        """Make the features of a manifest's rows, in their order."""
        for folder in FOLDERS:
            (output / folder).mkdir(parents=True)
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        with (output / "train_manifest.jsonl").open("w") as train, (output / "val_manifest.jsonl").open("w") as val:
            for first in range(0, len(rows), batch_size):
                batch = rows[first : first + batch_size]
                waves = [plain_wave(manifest.parent / row["audio"], FIRST_RATE_HZ) for row in batch]
                for row, features in zip(batch, self._features(batch, waves, language), strict=True):
                    for folder in FOLDERS:
                        np.save(output / folder / f"{row['id']}.npy", getattr(features, folder))
                    file = val if plain_is_validation(row["id"], 0.01) else train
                    file.write(json.dumps(plain_row(row, features), ensure_ascii=False) + "\n")
                    file.flush()

    def _features(self, batch: list[dict[str, Any]], waves: list[np.ndarray], language: str) -> list[PlainFeatures]:
        inputs = self._front_end(waves, sampling_rate=RATE_HZ, return_tensors="pt")
        hidden = self._bert(**inputs, output_hidden_states=True).hidden_states[self._layer]
        features = (hidden - self._stats["mean"]) / self._stats["var"].sqrt()
        codes = plain_batch_codes(self._codec, features)
        visible = inputs["attention_mask"].sum(dim=1)
        if len(batch) == 1:
            condition = plain_condition(self._gpt, features[0], int(visible[0]))[None]
            emotion = plain_emotion(self._gpt, features[0], int(visible[0]))[None]
        else:
            frames = torch.tensor([(1 + (len(wave) - 400) // 160 + 1) // 2 for wave in waves])
            condition = self._conditioning.condition(features, frames, visible)
            emotion = self._conditioning.emotion(features, frames, visible)
        return [
            PlainFeatures(
                text_ids=self._rules.ids(self._rules.clean(row["text"]), language).ids,
                codes=codes[index].numpy().astype(np.int32),
                condition=condition[index].numpy(),
                emo_vec=emotion[index].numpy(),
            )
            for index, row in enumerate(batch)
        ]


def plain_batch_codes(
    state: Mapping[str, Tensor], features: Float[Tensor, "batch frame channel"]
) -> Int[Tensor, "batch frame"]:
    """RepCodec on a batch as it is, padding included."""

    def along_time(name: str, x: Tensor, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        y = F.conv1d(x.transpose(1, 2), weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=groups)
        return y.transpose(1, 2)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    x = norm("encoder.0.norm", along_time("encoder.0.embed", features))
    for block in range(len({key.split(".")[3] for key in state if key.startswith("encoder.0.convnext.")})):
        at = f"encoder.0.convnext.{block}"
        y = norm(f"{at}.norm", along_time(f"{at}.dwconv", x, groups=x.shape[-1]))
        x = x + state[f"{at}.gamma"] * linear(f"{at}.pwconv2", F.gelu(linear(f"{at}.pwconv1", y)))
    x = linear("encoder.1", norm("encoder.0.final_layer_norm", x))
    stem = "quantizer.quantizers.0"
    direction = state[f"{stem}.in_project.weight_v"]
    weight = (state[f"{stem}.in_project.weight_g"] * direction / direction.norm(dim=(1, 2), keepdim=True))[..., 0]
    latents = F.normalize(F.linear(x, weight, state[f"{stem}.in_project.bias"]), dim=-1)
    table = F.normalize(state[f"{stem}.codebook.weight"], dim=1)
    distances = latents.square().sum(-1, keepdim=True) - 2 * latents @ table.T + table.square().sum(1)
    return (-distances).max(dim=-1).indices
