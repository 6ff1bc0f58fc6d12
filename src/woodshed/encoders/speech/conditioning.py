"""The speaker and emotion vectors of IndexTTS2, from normalised w2v-bert features, exact for padded batches.

Two branches of the GPT's checkpoint, each a Conformer and a Perceiver: `condition` (2.0 only) gives 32 vectors for the
voice, `emotion` (2.0 and 2.5) one vector for its mood. The rest of the checkpoint is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from woodshed.contracts import Json
from woodshed.encoders.speech.conformer import MAX_FRAMES, MIN_FRAMES, NUM_POSITIONS, Conformer, ConformerSizes
from woodshed.encoders.speech.parts import load_part
from woodshed.encoders.speech.perceiver import HEAD_SIZE, Perceiver, PerceiverSizes
from woodshed.encoders.weights import TensorFile
from woodshed.errors import ItemError, ModelError

Family = Literal["2.0", "2.5"]

POSITION_TABLE = "embed.pos_enc.pe"
"""A buffer that checkpoints may hold; a formula gives it."""
CONDITION_TYPE = "conformer_perceiver"
INPUT_LAYER = "conv2d2"


class Conditioning(nn.Module):
    """Both branches of one checkpoint; made by `from_tensors`."""

    min_frames = MIN_FRAMES
    max_frames = MAX_FRAMES

    def __init__(
        self,
        *,
        family: Family,
        model_dim: int,
        speaker: tuple[ConformerSizes, PerceiverSizes] | None,
        emotion: tuple[ConformerSizes, PerceiverSizes],
    ) -> None:
        super().__init__()
        self.family: Family = family
        self.model_dim = model_dim
        self.num_latents = 0 if speaker is None else speaker[1].num_latents
        """Vectors of `condition`; 0 in 2.5, which has no such branch."""
        if speaker is not None:
            self.conditioning_encoder = Conformer(speaker[0])
            self.perceiver_encoder = Perceiver(speaker[1])
        self.emo_conditioning_encoder = Conformer(emotion[0])
        self.emo_perceiver_encoder = Perceiver(emotion[1])
        self.emovec_layer = nn.Linear(emotion[1].dim, model_dim)
        self.emo_layer = nn.Linear(model_dim, model_dim)

    @classmethod
    def from_tensors(
        cls,
        tensors: TensorFile,
        *,
        config: Mapping[str, Json] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Conditioning:
        """Build the branches with the sizes of the tensors, and fill them.

        Args:
            tensors: keys of `gpt.pth` below its wrapper; those of other parts are left alone.
            config: the `gpt` section of `config.yaml`, to be compared with the tensors.

        Raises:
            ModelError: this is no GPT of IndexTTS2, keys are missing, extra or misshapen, or the config says otherwise.
        """
        family = family_of(tensors)
        speaker = _branch_sizes(tensors, "") if family == "2.0" else None
        emotion = _branch_sizes(tensors, "emo_")
        model_dim = _size(tensors, "emo_layer.weight", 0)
        if config is not None:
            differences = list(_differences(config, model_dim, speaker, emotion))
            if differences:
                raise ModelError(
                    f"{tensors.path} and the gpt section of the config disagree: {'; '.join(differences)}",
                    hint="give the config.yaml that belongs to the checkpoint",
                )
        with torch.device("meta"):
            module = cls(family=family, model_dim=model_dim, speaker=speaker, emotion=emotion)
        for name, part in module.named_children():
            computed = (POSITION_TABLE,) if isinstance(part, Conformer) else ()
            load_part(part, tensors, prefix=f"{name}.", computed=computed, dtype=dtype, device=device)
        return module.to(device=device, dtype=dtype).eval()

    @torch.no_grad()
    def condition(
        self,
        features: Float[Tensor, "batch frame 1024"],
        frames: Int[Tensor, "batch"],
        valid: Int[Tensor, "batch"],
    ) -> Float[Tensor, "batch latent dim"]:
        """The voice: what the GPT is conditioned on in front of the text. Each row is that of the clip alone.

        Args:
            features: right-padded with anything.
            frames: how many of them are each clip's own, `min_frames` to `max_frames`.
            valid: how many of those are not masked, as a run of the clip alone would be told; `frames` or more is all.

        Raises:
            ModelError: the checkpoint is of 2.5, which has no such branch.
            ItemError: a clip is shorter or longer than the encoder takes.
        """
        if self.family != "2.0":
            raise ModelError(
                f"a {self.family} checkpoint has no conditioning encoder",
                hint="its voice is the CAMPPlus speaker vector; only 2.0 has condition vectors",
            )
        return _summary(self.conditioning_encoder, self.perceiver_encoder, features, frames, valid)

    @torch.no_grad()
    def emotion(
        self,
        features: Float[Tensor, "batch frame 1024"],
        frames: Int[Tensor, "batch"],
        valid: Int[Tensor, "batch"],
    ) -> Float[Tensor, "batch dim"]:
        """The mood, as one vector. Arguments, exactness and errors as for `condition`.

        Raises:
            ItemError: a clip is shorter or longer than the encoder takes.
        """
        latents = _summary(self.emo_conditioning_encoder, self.emo_perceiver_encoder, features, frames, valid)
        out: Tensor = self.emo_layer(self.emovec_layer(latents[:, 0]))
        return out


def merge_emotions(
    base: Float[Tensor, "*batch dim"], other: Float[Tensor, "*batch dim"], alpha: float
) -> Float[Tensor, "*batch dim"]:
    """Move an emotion vector towards another: `base` at alpha 0, `other` at 1.

    >>> merge_emotions(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0]), 0.5)
    tensor([2., 2.])
    """
    return base + alpha * (other - base)


def _summary(
    encoder: Conformer, perceiver: Perceiver, features: Tensor, frames: Tensor, valid: Tensor
) -> Float[Tensor, "batch latent dim"]:
    lengths = frames.tolist()
    for count in lengths:
        if not MIN_FRAMES <= count <= MAX_FRAMES:
            raise ItemError(
                f"a clip of {count} feature frames cannot be conditioned on: {MIN_FRAMES} to {MAX_FRAMES} are possible",
                kind="too_short" if count < MIN_FRAMES else "too_long",
                hint="at 50 frames a second that is 60 ms to 200 s of sound",
            )
    assert max(lengths) <= features.shape[1], "frames counts more than features holds"
    inside = [(count - 1) // 2 for count in lengths]
    # A step is masked if the last of its three frames is.
    visible = [min(max((count - 1) // 2, 0), most) for count, most in zip(valid.tolist(), inside, strict=True)]
    steps, is_visible = encoder(features, inside=inside, visible=visible)
    latents: Tensor = perceiver(steps, is_visible)
    return latents


def family_of(tensors: TensorFile) -> Family:
    """Which IndexTTS2 a GPT checkpoint is of, told by its keys.

    Raises:
        ModelError: it is of neither.
    """
    if any(key.startswith("conditioning_encoder.") for key in tensors.shapes):
        return "2.0"
    if any(key.startswith("spk_emb_proj.") for key in tensors.shapes):
        return "2.5"
    raise ModelError(
        f"{tensors.path} is no GPT of IndexTTS2: it has neither conditioning_encoder.* (2.0) nor spk_emb_proj.* (2.5)",
        hint="give gpt.pth with --gpt-checkpoint",
    )


def _branch_sizes(tensors: TensorFile, start: str) -> tuple[ConformerSizes, PerceiverSizes]:
    """Sizes of a Conformer and its Perceiver; `start` is empty for the speaker's branch, `emo_` for the emotion's."""
    conformer, perceiver = f"{start}conditioning_encoder.", f"{start}perceiver_encoder."
    block, layer = f"{conformer}encoders.0.", f"{perceiver}layers.0."
    width = _size(tensors, f"{conformer}embed.conv.0.weight", 0)
    _check_position_table(tensors, conformer + POSITION_TABLE, width)
    kernel = _size(tensors, f"{block}conv_module.depthwise_conv.weight", 2)
    if kernel % 2 == 0:
        raise ModelError(
            f"{tensors.path} has a depthwise convolution over {kernel} steps: only odd numbers keep the length",
            hint="is this an IndexTTS2 checkpoint, unmodified?",
        )
    return (
        ConformerSizes(
            width=width,
            num_blocks=_count(tensors, f"{conformer}encoders."),
            num_heads=_size(tensors, f"{block}self_attn.pos_bias_u", 0),
            ff_width=_size(tensors, f"{block}feed_forward.w_1.weight", 0),
            kernel=kernel,
        ),
        PerceiverSizes(
            dim=_size(tensors, f"{perceiver}latents", 1),
            context=width,
            # The original takes one vector for the emotion, so a file with more does not fit.
            num_latents=1 if start else _size(tensors, f"{perceiver}latents", 0),
            num_layers=_count(tensors, f"{perceiver}layers."),
            num_heads=max(1, _size(tensors, f"{layer}0.to_q.weight", 0) // HEAD_SIZE),
            ff_width=_size(tensors, f"{layer}1.2.weight", 1),
        ),
    )


def _size(tensors: TensorFile, key: str, axis: int) -> int:
    shape = tensors.shapes.get(key)
    if shape is None or len(shape) <= axis or shape[axis] == 0:
        found = "has no" if shape is None else f"has, with shape {list(shape)},"
        raise ModelError(
            f"{tensors.path} {found} {key}, which tells the size of the network",
            hint="give a whole gpt.pth; a file of adapters or of another model cannot be used",
        )
    return shape[axis]


def _count(tensors: TensorFile, prefix: str) -> int:
    """Number of layers in a list of them."""
    found = (re.match(r"\d+(?=\.)", key.removeprefix(prefix)) for key in tensors.shapes if key.startswith(prefix))
    return len({match.group() for match in found if match})


def _check_position_table(tensors: TensorFile, key: str, width: int) -> None:
    shape, wanted = tensors.shapes.get(key), (1, NUM_POSITIONS, width)
    if shape not in (None, wanted):
        raise ModelError(
            f"{tensors.path} has a position table {key} of {list(shape)} instead of {list(wanted)}",
            hint="is this an IndexTTS2 checkpoint, unmodified?",
        )


def _differences(
    config: Mapping[str, Json],
    model_dim: int,
    speaker: tuple[ConformerSizes, PerceiverSizes] | None,
    emotion: tuple[ConformerSizes, PerceiverSizes],
) -> Iterator[str]:
    """What the `gpt` section of a config says otherwise than the tensors; it need not say everything."""
    sections = [("emo_condition_module", emotion)]
    facts: list[tuple[str, Json]] = [("model_dim", model_dim)]
    if speaker is not None:
        sections.insert(0, ("condition_module", speaker))
        facts += [("condition_type", CONDITION_TYPE), ("condition_num_latent", speaker[1].num_latents)]
    yield from _unequal(config, "", facts)
    for name, (conformer, perceiver) in sections:
        section = config.get(name, {})
        if not isinstance(section, Mapping):
            yield f"{name} is {section!r} in the config instead of a section"
            continue
        yield from _unequal(
            section,
            f"{name}.",
            [
                ("output_size", conformer.width),
                ("linear_units", conformer.ff_width),
                ("attention_heads", conformer.num_heads),
                ("attention_heads", perceiver.num_heads),
                ("num_blocks", conformer.num_blocks),
                ("input_layer", INPUT_LAYER),
            ],
        )
        multiple = section.get("perceiver_mult")
        if isinstance(multiple, int | float) and int(perceiver.dim * multiple * 2 / 3) != perceiver.ff_width:
            yield (
                f"{name}.perceiver_mult is {multiple} in the config, which makes a feed-forward of "
                f"{int(perceiver.dim * multiple * 2 / 3)} instead of {perceiver.ff_width} in the checkpoint"
            )


def _unequal(section: Mapping[str, Json], start: str, facts: list[tuple[str, Json]]) -> Iterator[str]:
    for key, found in facts:
        if section.get(key, found) != found:
            yield f"{start}{key} is {section[key]!r} in the config and {found!r} in the checkpoint"
