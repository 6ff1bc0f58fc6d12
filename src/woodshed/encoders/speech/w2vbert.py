"""w2v-bert-2.0 up to the layer that is asked for, and the normalisation of its output.

The network of Seamless (Barrault et al. 2023, arXiv 2312.05187): Conformer layers (Gulati et al. 2020, arXiv
2005.08100) over pairs of log-mel frames, with a causal depthwise convolution and a learned bias for clamped distances.
Modules are named as the keys of transformers' `Wav2Vec2BertModel`. Layers behind the one asked for are never read.

Frames of all clips are packed into one table of rows, without padding: matrix products and norms see no padded frame,
and only attention and convolution, which look along a clip, take clips apart again. A clip's output depends on that
clip alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from woodshed.contracts import Json
from woodshed.encoders.speech.parts import load_part
from woodshed.encoders.speech.w2vbert_attention import CPU_BLOCKS, DEVICE_BLOCKS, Blocks, Packing, SelfAttention
from woodshed.encoders.weights import SHOWN_KEYS, TensorFile
from woodshed.errors import ModelError

SEMANTIC_LAYER = 17
"""The hidden state that IndexTTS2 takes its semantic features from; 0 is the projected input."""
DEFAULT_REACH = (64, 8)
"""Largest distance to the left and to the right of w2v-bert-2.0, in frames."""
PREFIXES = ("", "wav2vec2_bert.", "model.")
"""What may stand before the keys: nothing in the published model, the first in a fine-tuned one with a head."""
BEHIND_THE_LAYERS = ("adapter.", "intermediate_ffn.")
LAYER_KEY = re.compile(r"encoder\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class W2VBertConfig:
    """Sizes of the network, read off its tensors."""

    num_layers: int
    """Layers that are computed: the index of the hidden state that is given out."""
    feature_size: int = 160
    """Log-mels per frame: two frames of 80."""
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_heads: int = 16
    left: int = DEFAULT_REACH[0]
    """Distances to the left are told apart up to here, in frames."""
    right: int = DEFAULT_REACH[1]
    kernel_frames: int = 31
    """Reach of the causal convolution."""
    norm_eps: float = 1e-5

    @classmethod
    def infer(
        cls, tensors: TensorFile, *, layer: int, prefix: str = "", config: Mapping[str, Json] | None = None
    ) -> W2VBertConfig:
        """Sizes from the tensors below `prefix`, checked against the `config.json` beside them.

        Raises:
            ModelError: tensors that give the sizes are missing or contradict the config, or the config asks for
                something other than `relative_key` positions and the swish activation.
        """
        told = dict(config or {})
        _refuse_unsupported(told, tensors)
        hidden_size, feature_size = _shape(tensors, f"{prefix}feature_projection.projection.weight", axes=2)
        first = f"{prefix}encoder.layers.0."
        sizes: dict[str, int] = {}
        if layer > 0:
            num_distances, head_size = _shape(tensors, f"{first}self_attn.distance_embedding.weight", axes=2)
            if head_size == 0 or hidden_size % head_size:
                raise ModelError(f"{tensors.path}: {hidden_size} channels are no whole number of heads of {head_size}")
            left, right = _reach(told, num_distances, tensors)
            sizes = {
                "intermediate_size": _shape(tensors, f"{first}ffn1.intermediate_dense.weight", axes=2)[0],
                "num_heads": hidden_size // head_size,
                "kernel_frames": _shape(tensors, f"{first}conv_module.depthwise_conv.weight", axes=3)[2],
                "left": left,
                "right": right,
            }
        eps = float(told.get("layer_norm_eps", 1e-5))
        found = cls(num_layers=layer, feature_size=feature_size, hidden_size=hidden_size, norm_eps=eps, **sizes)
        found._agree_with(told, tensors)
        return found

    def _agree_with(self, told: Mapping[str, Json], tensors: TensorFile) -> None:
        pairs = {"feature_projection_input_dim": self.feature_size, "hidden_size": self.hidden_size}
        if self.num_layers > 0:
            pairs |= {
                "num_attention_heads": self.num_heads,
                "intermediate_size": self.intermediate_size,
                "conv_depthwise_kernel_size": self.kernel_frames,
            }
        for name, value in pairs.items():
            if told.get(name, value) != value:
                raise ModelError(
                    f"{tensors.path} is of another model than its config.json: {name} is {value} by the tensors and "
                    f"{told[name]} by the config",
                    hint="put the config.json of this checkpoint beside it",
                )


def _refuse_unsupported(told: Mapping[str, Json], tensors: TensorFile) -> None:
    supported = {
        "model_type": ("wav2vec2-bert",),
        "position_embeddings_type": ("relative_key",),
        "hidden_act": ("swish", "silu"),
    }
    for name, values in supported.items():
        if name in told and told[name] not in values:
            raise ModelError(
                f"the config.json of {tensors.path} has {name}={told[name]!r}; only {values[0]!r} is supported",
                hint="use w2v-bert-2.0 or a fine-tuned copy of it",
            )


def _reach(told: Mapping[str, Json], num_distances: int, tensors: TensorFile) -> tuple[int, int]:
    left = told.get("left_max_position_embeddings", DEFAULT_REACH[0])
    right = told.get("right_max_position_embeddings", DEFAULT_REACH[1])
    if left + right + 1 != num_distances:
        raise ModelError(
            f"{tensors.path} has biases for {num_distances} distances, but {left} to the left and {right} to the right "
            f"make {left + right + 1}",
            hint="give the config.json of this checkpoint, which has left_max_position_embeddings and "
            "right_max_position_embeddings",
        )
    return left, right


def _shape(tensors: TensorFile, key: str, *, axes: int) -> tuple[int, ...]:
    shape = tensors.shapes.get(key)
    if shape is None or len(shape) != axes:
        state = "missing" if shape is None else f"of shape {list(shape)}"
        raise ModelError(
            f"{tensors.path} is no w2v-bert-2.0: {key} is {state}", hint="is this facebook/w2v-bert-2.0's model file?"
        )
    return shape


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKeys:
    """Which keys of a checkpoint are needed up to a layer."""

    prefix: str
    used: tuple[str, ...]
    """Everything that is not known to be needless: keys among them that the network lacks are an error on loading."""
    ignored: tuple[str, ...]
    """Later layers, what follows the layers, and the vector that stands for masked frames in training."""

    @classmethod
    def of(cls, tensors: TensorFile, *, layer: int) -> LayerKeys:
        """Sort the keys.

        Raises:
            ModelError: the file is no w2v-bert, or has too few layers.
        """
        landmark = "feature_projection.projection.weight"
        prefix = next((before for before in PREFIXES if before + landmark in tensors.shapes), None)
        if prefix is None:
            raise ModelError(
                f"{tensors.path} is no w2v-bert-2.0: {landmark} is missing; it has {list(tensors.shapes)[:SHOWN_KEYS]}",
                hint="is this facebook/w2v-bert-2.0's model file?",
            )
        names = {key: key.removeprefix(prefix) for key in tensors.shapes if key.startswith(prefix)}
        depths = {key: int(found[1]) for key, name in names.items() if (found := LAYER_KEY.match(name))}
        num_layers = max(depths.values(), default=-1) + 1
        if not 0 <= layer <= num_layers:
            raise ModelError(
                f"{tensors.path} has {num_layers} layers, so there is no hidden state {layer}",
                hint=f"ask for one of 0..{num_layers}",
            )
        used = tuple(
            key
            for key, name in names.items()
            if depths.get(key, -1) < layer and name != "masked_spec_embed" and not name.startswith(BEHIND_THE_LAYERS)
        )
        return cls(prefix=prefix, used=used, ignored=tuple(key for key in tensors.shapes if key not in set(used)))


def _row_blocks(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Even parts of at most `size` rows: a short last block would be slow."""
    return rows.chunk(-(-len(rows) // size))


class _FeedForward(nn.Module):
    def __init__(self, config: W2VBertConfig) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, rows: Float[Tensor, "row channel"]) -> Float[Tensor, "row channel"]:
        output: Tensor = self.output_dense(F.silu(self.intermediate_dense(rows), inplace=True))
        return output


class _Convolution(nn.Module):
    """Pointwise and gated, then along time, causal, then pointwise. Channels stay last throughout."""

    def __init__(self, config: W2VBertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.layer_norm = nn.LayerNorm(size, eps=config.norm_eps)
        self.pointwise_conv1 = nn.Conv1d(size, 2 * size, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(size, size, config.kernel_frames, groups=size, bias=False)
        self.depthwise_layer_norm = nn.LayerNorm(size, eps=config.norm_eps)
        self.pointwise_conv2 = nn.Conv1d(size, size, 1, bias=False)

    def add_to(self, rows: Float[Tensor, "row channel"], packing: Packing, blocks: Blocks) -> None:
        widen, narrow = self.pointwise_conv1.weight.squeeze(-1), self.pointwise_conv2.weight.squeeze(-1)
        inputs = _row_blocks(rows, blocks.rows)
        gated = torch.cat([F.glu(F.linear(self.layer_norm(part), widen), dim=-1) for part in inputs])
        # The same as clearing before the first pointwise convolution, as in training: it has no bias.
        packing.clear_invalid(gated)
        for span, clips in packing.groups(blocks.clips):
            gated[span] = clips.pack(self._along_time(clips.padded(gated[span])))
        for part, update in zip(inputs, _row_blocks(gated, blocks.rows), strict=True):
            part.add_(F.linear(F.silu(self.depthwise_layer_norm(update), inplace=True), narrow))

    def _along_time(self, clips: Float[Tensor, "clip frame channel"]) -> Float[Tensor, "clip frame channel"]:
        weight, dtype = self.depthwise_conv.weight, clips.dtype
        if clips.device.type == "cpu":
            # In half precision torch 2.13's oneDNN never returns from this call when there are few channels.
            clips, weight = clips.float(), weight.float()
        clips = F.pad(clips, (0, 0, weight.shape[-1] - 1, 0))
        # As an image one pixel high in channels-last order: no transposed copy, several times faster on a CPU.
        image = F.conv2d(clips.transpose(1, 2).unsqueeze(2), weight.unsqueeze(2), groups=len(weight)).to(dtype)
        return image.squeeze(2).transpose(1, 2)


class _Layer(nn.Module):
    """A Conformer layer with two half feed-forwards."""

    def __init__(self, config: W2VBertConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.norm_eps
        self.ffn1_layer_norm = nn.LayerNorm(size, eps=eps)
        self.ffn1 = _FeedForward(config)
        self.self_attn_layer_norm = nn.LayerNorm(size, eps=eps)
        self.self_attn = SelfAttention(
            hidden_size=size, num_heads=config.num_heads, left=config.left, right=config.right
        )
        self.conv_module = _Convolution(config)
        self.ffn2_layer_norm = nn.LayerNorm(size, eps=eps)
        self.ffn2 = _FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(size, eps=eps)

    def forward(
        self, rows: Float[Tensor, "row channel"], packing: Packing, blocks: Blocks
    ) -> Float[Tensor, "row channel"]:
        """The layer's output; the input is overwritten."""
        parts = _row_blocks(rows, blocks.rows)
        for part in parts:
            part.add_(self.ffn1(self.ffn1_layer_norm(part)), alpha=0.5)
        attended = self.self_attn(self.self_attn_layer_norm(rows), packing, blocks)
        for part, update in zip(parts, _row_blocks(attended, blocks.rows), strict=True):
            part.add_(self.self_attn.linear_out(update))
        del attended
        self.conv_module.add_to(rows, packing, blocks)
        for part in parts:
            part.add_(self.ffn2(self.ffn2_layer_norm(part)), alpha=0.5)
        output: Tensor = self.final_layer_norm(rows)
        return output


class W2VBert(nn.Module):
    """Features to the hidden state of one layer. Equal to transformers' single runs within 1e-5 in float32."""

    def __init__(self, config: W2VBertConfig, *, blocks: Blocks | None = None) -> None:
        super().__init__()
        self.config = config
        self.blocks = blocks
        projection = nn.ModuleDict()
        projection["layer_norm"] = nn.LayerNorm(config.feature_size, eps=config.norm_eps)
        projection["projection"] = nn.Linear(config.feature_size, config.hidden_size)
        self.feature_projection = projection
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_Layer(config) for _ in range(config.num_layers))})

    @classmethod
    def from_tensors(
        cls,
        tensors: TensorFile,
        *,
        layer: int = SEMANTIC_LAYER,
        config: Mapping[str, Json] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        blocks: Blocks | None = None,
    ) -> W2VBert:
        """Load what the hidden state `layer` needs; later layers are not read.

        Args:
            layer: which of transformers' `hidden_states`; 0 is the projected input.
            config: the content of the `config.json` beside the checkpoint, to check the sizes against.
            blocks: how much to work on at once; by the device if not given.

        Raises:
            ModelError: keys are missing, extra or misshapen, the file has too few layers, or the config contradicts
                the tensors or asks for what is not supported.
        """
        keys = LayerKeys.of(tensors, layer=layer)
        sizes = W2VBertConfig.infer(tensors, layer=layer, prefix=keys.prefix, config=config)
        with torch.device("meta"):
            model = cls(sizes, blocks=blocks)
        load_part(
            model, tensors.select({key: key for key in keys.used}), prefix=keys.prefix, device=device, dtype=dtype
        )
        return model

    @torch.inference_mode()
    def forward(
        self, features: Float[Tensor, "batch frame feature"], valid: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch frame hidden"]:
        """The hidden state of every frame.

        Args:
            features: stacked log-mels, right-padded with anything.
            valid: frames of each clip that are not padding at all.

        Returns:
            Hidden states. Defined for valid frames and for the one behind them, which in clips with an odd number of
            log-mel frames is half padding; zero further on.
        """
        blocks = self.blocks or (CPU_BLOCKS if features.device.type == "cpu" else DEVICE_BLOCKS)
        num_frames = features.shape[1]
        packing = Packing.of(valid.tolist(), num_frames=num_frames)
        projection = self.feature_projection
        rows = packing.pack(features).to(cast(nn.Linear, projection["projection"]).weight.dtype)
        rows = projection["projection"](projection["layer_norm"](rows))
        packing.clear_invalid(rows)
        for layer in cast(nn.ModuleList, self.encoder["layers"]):
            rows = layer(rows, packing, blocks)
        return packing.unpack(rows, num_frames=num_frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticStats:
    """Mean and variance of each channel of the hidden state, over the training data of the semantic codec."""

    mean: Float[Tensor, "hidden"]
    var: Float[Tensor, "hidden"]

    @classmethod
    def from_tensors(cls, tensors: TensorFile, *, device: torch.device | str = "cpu") -> SemanticStats:
        """Read the content of `wav2vec2bert_stats.pt`.

        Raises:
            ModelError: it does not hold a finite mean and a positive variance of the same size, and nothing else.
        """
        shapes = dict(tensors.shapes)
        if set(shapes) != {"mean", "var"} or shapes["mean"] != shapes["var"] or len(shapes["mean"]) != 1:
            raise ModelError(
                f"{tensors.path} holds {shapes} instead of two vectors of one size, 'mean' and 'var'",
                hint="is this the wav2vec2bert_stats.pt of IndexTTS2?",
            )
        mean, var = (tensors.read(name).to(device=device, dtype=torch.float32) for name in ("mean", "var"))
        if not (mean.isfinite().all() and var.isfinite().all() and (var > 0).all()):
            raise ModelError(f"{tensors.path} has a mean that is not finite or a variance that is not above zero")
        return cls(mean=mean, var=var)


@torch.inference_mode()
def normalise_features(
    hidden: Float[Tensor, "batch frame hidden"], stats: SemanticStats
) -> Float[Tensor, "batch frame hidden"]:
    """Hidden states brought to mean 0 and variance 1 per channel, in float32."""
    return (hidden.float() - stats.mean).div_(stats.var.sqrt())
