"""Semantic codes from w2v-bert features: RepCodec (MaskGCT, IndexTTS2: 50 Hz), EnhancedCodec (IndexTTS 2.5: 25 Hz).

Both are a Vocos encoder and one factorised codebook of unit vectors (Wang et al., 2024, MaskGCT); the second halves
the frame rate first. Which one a checkpoint holds is told by its keys (`down.*`), its sizes by its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from woodshed.contracts import Json
from woodshed.encoders.oobleck import canonical_name, fold
from woodshed.encoders.speech.parts import load_part
from woodshed.encoders.speech.vocos import FrameConv, VocosBackbone, tap_major
from woodshed.encoders.weights import TensorFile
from woodshed.errors import ModelError

FEATURE_RATE_HZ = 50
RATE_KERNEL_FRAMES = 3
"""Width of the convolutions that halve and double the frame rate."""
ROWS_AT_ONCE = 256
"""Frames compared with the whole codebook at a time: 8 MiB of similarities at the real size, which a cache can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSizes:
    """Widths and counts; all but `downsample` are named as in the `semantic_codec` section of a config.yaml."""

    codebook_size: int
    hidden_size: int
    """Channels of the features."""
    codebook_dim: int
    vocos_dim: int
    vocos_intermediate_dim: int
    vocos_num_layers: int
    downsample: int
    """Feature frames per code: 1 or 2."""


class Pointwise(nn.Module):
    """A linear map of each frame, kept as checkpoints have it: a convolution's [out, in, 1]."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, channels, 1))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, x: Float[Tensor, "*axes channel"]) -> Float[Tensor, "*axes out_channel"]:
        return F.linear(x, self.weight[..., 0], self.bias)


class Quantiser(nn.Module):
    """One codebook, searched by direction."""

    def __init__(self, sizes: CodecSizes) -> None:
        super().__init__()
        self.in_project = Pointwise(sizes.hidden_size, sizes.codebook_dim)
        self.out_project = Pointwise(sizes.codebook_dim, sizes.hidden_size)
        self.codebook = nn.Embedding(sizes.codebook_size, sizes.codebook_dim)

    def codes(self, latents: Float[Tensor, "batch code hidden"]) -> Int[Tensor, "batch code"]:
        """For each latent the nearest row of the codebook, both at length 1; of rows equally near, the first.

        Of unit vectors the nearest is the one of greatest cosine. The distance itself, |a|^2 - 2ab + |b|^2, would round
        away differences below 1e-7 and call rows equal that are not.
        """
        exact = self.codebook.weight.dtype
        wanted = F.normalize(self.in_project(latents.to(exact)), dim=-1).flatten(0, 1)
        rows = F.normalize(self.codebook.weight, dim=-1).t()
        # `max` and not `argmax`: it promises the first of equals as well, and takes a third of the time.
        found = torch.cat([(some @ rows).max(dim=-1).indices for some in torch.split(wanted, ROWS_AT_ONCE)])
        return found.view(latents.shape[:2])

    def vectors(self, codes: Int[Tensor, "batch code"]) -> Float[Tensor, "batch code hidden"]:
        """What the codes stand for; made of the rows at their own lengths."""
        out: Tensor = self.out_project(self.codebook(codes))
        return out


class SemanticCodec(nn.Module):
    """Features to codes; with the decoder, codes back to features. Made by `from_tensors`.

    Batches are padded on the right. Each clip gets the codes that it gets alone, whatever stands in its padding and
    beside it.
    """

    def __init__(self, sizes: CodecSizes, *, with_decoder: bool, path: Path) -> None:
        super().__init__()
        self.sizes = sizes
        self.path = path
        if sizes.downsample > 1:
            self.down = FrameConv(
                sizes.hidden_size, sizes.hidden_size, kernel_frames=RATE_KERNEL_FRAMES, stride=sizes.downsample
            )
        self.encoder = _vocos(sizes)
        self.quantizer = nn.ModuleDict({"quantizers": nn.ModuleList([Quantiser(sizes)])})
        if with_decoder:
            self.decoder = _vocos(sizes)
            if sizes.downsample > 1:
                self.up = FrameConv(sizes.hidden_size, sizes.hidden_size, kernel_frames=RATE_KERNEL_FRAMES)

    @classmethod
    def from_tensors(
        cls,
        tensors: TensorFile,
        *,
        with_decoder: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> SemanticCodec:
        """Build the codec that a checkpoint holds; weight norm in either spelling, or folded already.

        Args:
            tensors: the codec's own keys, without a wrapper.
            with_decoder: read the decoder too. Its keys must be there either way.
            dtype: of the encoder; the search of the codebook is in float32 at least.

        Raises:
            ModelError: keys are missing, extra or misshapen; lists them.
        """
        known = _plain_weights(tensors)
        sizes = _sizes_of(known)
        with torch.device("meta"):
            everything = cls(sizes, with_decoder=True, path=tensors.path)
            codec = cls(sizes, with_decoder=with_decoder, path=tensors.path)
        load_part(everything, _unread(known), device="meta")
        exact = torch.promote_types(dtype, torch.float32)
        for name, part in codec.named_children():
            wanted = exact if name == "quantizer" else dtype
            load_part(part, known, prefix=f"{name}.", dtype=wanted, device=device)
        return codec.requires_grad_(False).eval()

    @property
    def downsample(self) -> int:
        """Feature frames per code: 1 or 2."""
        return self.sizes.downsample

    @property
    def codebook_size(self) -> int:
        """Codes are 0 to this, exclusive."""
        return self.sizes.codebook_size

    @property
    def hidden_size(self) -> int:
        """Channels of the features."""
        return self.sizes.hidden_size

    @property
    def rate_hz(self) -> int:
        """Codes per second: 50 or 25."""
        return FEATURE_RATE_HZ // self.downsample

    def num_codes(self, frames: int) -> int:
        """Codes of a clip of so many feature frames: a last odd frame gets a code of its own."""
        return -(-frames // self.downsample)

    def check_config(self, config: Mapping[str, Json]) -> None:
        """Compare with the `semantic_codec` section of a config.yaml; what that does not say is not compared.

        Raises:
            ModelError: they speak of different codecs; names both values of each difference.
        """
        names = [name for name in CodecSizes.__dataclass_fields__ if name != "downsample"]
        ours = {name: getattr(self.sizes, name) for name in names}
        said = {name: config[name] for name in names if name in config}
        if "downsample_scale" in config:
            ours["downsample_scale"] = self.downsample
            said["downsample_scale"] = config["downsample_scale"] or 1
        differences = [f"{name} is {ours[name]}, not {value}" for name, value in said.items() if value != ours[name]]
        if differences:
            raise ModelError(
                f"the semantic codec {self.path} is not what the config says: {', '.join(differences)}",
                hint="give the config.yaml that came with this checkpoint",
            )

    @torch.inference_mode()
    def codes(
        self, features: Float[Tensor, "batch frame hidden"], frames: Int[Tensor, "batch"]
    ) -> Int[Tensor, "batch code"]:
        """Codes of normalised w2v-bert features, `num_codes(frames)` of them per clip.

        Args:
            features: 50 per second, padded on the right with anything.
            frames: how many are the clip's own, each 1 or more.

        Returns:
            0 to `codebook_size`, exclusive; behind a clip's own codes they mean nothing.
        """
        x, padding = features.to(self._dtype), _padding(features, frames)
        if self.downsample > 1:
            x = F.gelu(self.down(x, padding))
            padding = _padding(x, -(-frames // self.downsample))
        return self._quantiser.codes(_through(self.encoder, x, padding))

    @torch.inference_mode()
    def quantized(self, codes: Int[Tensor, "batch code"]) -> Float[Tensor, "batch code hidden"]:
        """The vectors that codes stand for, as the decoder and other networks get them."""
        return self._quantiser.vectors(codes)

    @torch.inference_mode()
    def decode(
        self, codes: Int[Tensor, "batch code"], num_codes: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch frame hidden"]:
        """Features again, `downsample` frames per code. Needs `with_decoder`.

        Args:
            num_codes: how many are the clip's own; None: all, for every clip.
        """
        x = self._quantiser.vectors(codes).to(self._dtype)
        padding = None if num_codes is None else _padding(x, num_codes)
        x = _through(self.decoder, x, padding)
        if self.downsample > 1:
            x = x.repeat_interleave(self.downsample, dim=1)
            padding = None if padding is None else padding.repeat_interleave(self.downsample, dim=1)
            x = self.up(x, padding)
        return x

    @property
    def _quantiser(self) -> Quantiser:
        quantiser = self.get_submodule("quantizer.quantizers.0")
        assert isinstance(quantiser, Quantiser)
        return quantiser

    @property
    def _dtype(self) -> torch.dtype:
        return self.get_parameter("encoder.1.weight").dtype


def _vocos(sizes: CodecSizes) -> nn.ModuleList:
    backbone = VocosBackbone(sizes.hidden_size, sizes.vocos_dim, sizes.vocos_intermediate_dim, sizes.vocos_num_layers)
    return nn.ModuleList([backbone, nn.Linear(sizes.vocos_dim, sizes.hidden_size)])


def _through(
    stack: nn.ModuleList, x: Float[Tensor, "batch frame hidden"], padding: Bool[Tensor, "batch frame"] | None
) -> Float[Tensor, "batch frame hidden"]:
    backbone, project = stack
    out: Tensor = project(backbone(x, padding))
    return out


def _padding(
    x: Float[Tensor, "batch frame channel"], frames: Int[Tensor, "batch"]
) -> Bool[Tensor, "batch frame"] | None:
    """True behind the end of each clip; None when all clips fill the batch, so that nothing need be masked."""
    num_frames = x.shape[1]
    if bool((frames == num_frames).all()):
        return None
    return torch.arange(num_frames, device=x.device) >= frames.to(x.device)[:, None]


def _sizes_of(tensors: TensorFile) -> CodecSizes:
    """Sizes from the shapes of a few tensors.

    Raises:
        ModelError: these are missing, or have another number of axes.
    """
    first = "encoder.0.convnext.0.pwconv1.weight"
    telling = {"quantizer.quantizers.0.codebook.weight": 2, "encoder.1.weight": 2, first: 2}
    found = {name: tensors.shapes.get(name) for name in telling}
    wrong = [name for name, shape in found.items() if shape is None or len(shape) != telling[name] or 0 in shape]
    if wrong:
        raise ModelError(
            f"{tensors.path} is no semantic codec: it has no usable {', '.join(wrong)}",
            hint="RepCodec is MaskGCT's semantic_codec/model.safetensors, EnhancedCodec is IndexTTS 2.5's codec.pth",
        )
    (codebook_size, codebook_dim), (hidden_size, _), (inner, dim) = (tensors.shapes[name] for name in telling)
    blocks = {name.split(".")[3] for name in tensors.shapes if name.startswith("encoder.0.convnext.")}
    return CodecSizes(
        codebook_size=codebook_size,
        hidden_size=hidden_size,
        codebook_dim=codebook_dim,
        vocos_dim=dim,
        vocos_intermediate_dim=inner,
        vocos_num_layers=len(blocks),
        downsample=2 if any(name.startswith("down.") for name in tensors.shapes) else 1,
    )


def _plain_weights(tensors: TensorFile) -> TensorFile:
    """The same tensors with weight norm folded away, and wide convolutions laid out as they are computed.

    Raises:
        ModelError: the two halves of a weight-normed tensor do not fit each other.
    """
    spelled = {canonical_name(key): key for key in tensors.shapes}
    sources: dict[str, tuple[str, ...]] = {key: (key,) for key in tensors.shapes}
    shapes = dict(tensors.shapes)
    for name, key in spelled.items():
        stem = name.removesuffix("_v")
        if stem == name or f"{stem}_g" not in spelled or stem in shapes:
            continue
        lengths = spelled[f"{stem}_g"]
        shape = shapes.pop(key)
        wanted = (shape[0], *[1] * (len(shape) - 1)) if shape else ()
        if (given := shapes.pop(lengths)) != wanted:
            raise ModelError(
                f"{tensors.path} does not hold what this model needs: {lengths} is {list(given)} instead of"
                f" {list(wanted)}",
                hint="download or export the checkpoint again",
            )
        shapes[stem] = shape
        sources[stem] = (lengths, key)

    def read(name: str) -> Tensor:
        parts = [tensors.read(key) for key in sources[name]]
        if len(parts) == 2:
            parts = [fold(dict(zip(("weight_g", "weight_v"), parts, strict=True)), dtype=torch.float32)]
        (tensor,) = parts
        return tap_major(tensor) if tensor.dim() == 3 and min(tensor.shape[1:]) > 1 else tensor

    return TensorFile(path=tensors.path, shapes=shapes, read=read)


def _unread(tensors: TensorFile) -> TensorFile:
    """Tensors of the same shapes without content: for checks that read nothing."""
    return TensorFile(
        path=tensors.path, shapes=tensors.shapes, read=lambda name: torch.empty(tensors.shapes[name], device="meta")
    )
