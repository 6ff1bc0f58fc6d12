from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from woodshed.encoders.speech import conformer
from woodshed.encoders.speech.conditioning import Conditioning, merge_emotions
from woodshed.encoders.weights import TensorFile, open_tensors
from woodshed.errors import ItemError, ModelError

TREE = Path(__file__).parents[3]
SHARED = TREE.parent / "shared" / "golden" / "indextts2"
LAYOUTS = TREE / "tests" / "golden" / "indextts2"

needs_goldens = pytest.mark.skipif(
    not (SHARED / "unifiedvoice_tiny.safetensors").is_file(), reason="the large goldens (../shared) are not here"
)


# A small checkpoint of sizes that nothing else has, and the networks again, as plain formulas for one clip.

SMALL_GPT = {
    "model_dim": 20,
    "condition_type": "conformer_perceiver",
    "condition_num_latent": 5,
    "condition_module": {
        "output_size": 36,
        "linear_units": 14,
        "attention_heads": 3,
        "num_blocks": 3,
        "input_layer": "conv2d2",
        "perceiver_mult": 1.5,
    },
    "emo_condition_module": {
        "output_size": 8,
        "linear_units": 10,
        "attention_heads": 1,
        "num_blocks": 1,
        "input_layer": "conv2d2",
        "perceiver_mult": 2,
    },
}


def conformer_shapes(prefix: str, module: Mapping[str, Any], *, kernel: int) -> dict[str, tuple[int, ...]]:
    width, heads, inner = module["output_size"], module["attention_heads"], module["linear_units"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed.conv.0.weight": (width, 1, 3, 3),
        "embed.conv.0.bias": (width,),
        "embed.out.0.weight": (width, width * 511),
        "embed.out.0.bias": (width,),
        "embed.pos_enc.pe": (1, 5000, width),
        "after_norm.weight": (width,),
        "after_norm.bias": (width,),
    }
    for index in range(module["num_blocks"]):
        block = f"encoders.{index}."
        shapes[f"{block}self_attn.linear_pos.weight"] = (width, width)
        for name in "uv":
            shapes[f"{block}self_attn.pos_bias_{name}"] = (heads, width // heads)
        for name, out, into in (
            *((f"self_attn.linear_{part}", width, (width,)) for part in ("q", "k", "v", "out")),
            ("feed_forward.w_1", inner, (width,)),
            ("feed_forward.w_2", width, (inner,)),
            ("conv_module.pointwise_conv1", 2 * width, (width, 1)),
            ("conv_module.depthwise_conv", width, (1, kernel)),
            ("conv_module.pointwise_conv2", width, (width, 1)),
            *((norm, width, ()) for norm in ("conv_module.norm", "norm_ff", "norm_mha", "norm_conv", "norm_final")),
        ):
            shapes[f"{block}{name}.weight"] = (out, *into)
            shapes[f"{block}{name}.bias"] = (out,)
    return {prefix + name: shape for name, shape in shapes.items()}


def perceiver_shapes(
    prefix: str, module: Mapping[str, Any], *, dim: int, latents: int, layers: int
) -> dict[str, tuple[int, ...]]:
    inner, context = 64 * module["attention_heads"], module["output_size"]
    gated = int(dim * module["perceiver_mult"] * 2 / 3)
    shapes: dict[str, tuple[int, ...]] = {"latents": (latents, dim), "norm.gamma": (dim,)}
    if context != dim:
        shapes |= {"proj_context.weight": (dim, context), "proj_context.bias": (dim,)}
    for index in range(layers):
        shapes |= {
            f"layers.{index}.0.to_q.weight": (inner, dim),
            f"layers.{index}.0.to_kv.weight": (2 * inner, dim),
            f"layers.{index}.0.to_out.weight": (dim, inner),
            f"layers.{index}.1.0.weight": (2 * gated, dim),
            f"layers.{index}.1.0.bias": (2 * gated,),
            f"layers.{index}.1.2.weight": (dim, gated),
            f"layers.{index}.1.2.bias": (dim,),
        }
    return {prefix + name: shape for name, shape in shapes.items()}


def small_tensors(family: str = "2.0") -> dict[str, Tensor]:
    speaker, emotion, dim = SMALL_GPT["condition_module"], SMALL_GPT["emo_condition_module"], SMALL_GPT["model_dim"]
    assert isinstance(speaker, dict)
    assert isinstance(emotion, dict)
    assert isinstance(dim, int)
    shapes = conformer_shapes("emo_conditioning_encoder.", emotion, kernel=5)
    # As wide as its context: the published module then has no projection.
    shapes |= perceiver_shapes("emo_perceiver_encoder.", emotion, dim=8, latents=1, layers=3)
    shapes |= {"emovec_layer.weight": (dim, 8), "emovec_layer.bias": (dim,)}
    shapes |= {"emo_layer.weight": (dim, dim), "emo_layer.bias": (dim,), "text_embedding.weight": (7, dim)}
    if family == "2.0":
        shapes |= conformer_shapes("conditioning_encoder.", speaker, kernel=7)
        shapes |= perceiver_shapes("perceiver_encoder.", speaker, dim=dim, latents=5, layers=2)
    else:
        shapes["spk_emb_proj.weight"] = (dim, 192)
    chance = torch.Generator().manual_seed(5)
    tensors = {}
    for name, shape in shapes.items():
        scale = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 and "pos_bias" not in name else 0.4
        tensors[name] = torch.randn(shape, generator=chance) * scale + (1.0 if "norm" in name else 0.0)
        if name.endswith("latents"):
            tensors[name] = torch.randn(shape, generator=chance)
        if name.endswith(".pe"):
            tensors[name] = plain_positions(*shape[1:])[None]
    return tensors


def in_memory(tensors: Mapping[str, Tensor]) -> TensorFile:
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return TensorFile(path=Path("small.pth"), shapes=shapes, read=lambda name: tensors[name])


def plain_positions(count: int, width: int) -> Tensor:
    table = torch.zeros(count, width)
    for pair in range(0, width, 2):
        angle = torch.arange(count) / 10_000 ** (pair / width)
        table[:, pair], table[:, pair + 1] = torch.sin(angle), torch.cos(angle)
    return table


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def plain_linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    out = x @ w[f"{name}.weight"].reshape(w[f"{name}.weight"].shape[0], -1).T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def plain_norm(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def plain_attention(w: Mapping[str, Tensor], x: Tensor, seen: Tensor) -> Tensor:
    u, v = w["pos_bias_u"], w["pos_bias_v"]
    size = u.shape[1]
    place = plain_linear(w, "linear_pos", plain_positions(*x.shape))
    query, key, value = (plain_linear(w, f"linear_{name}", x) for name in "qkv")
    heads = []
    for head in range(len(u)):
        part = slice(head * size, (head + 1) * size)
        q, k, p = query[:, part], key[:, part], place[:, part]
        scores = ((q + u[head]) @ k.T + (q + v[head]) @ p.T) / math.sqrt(size)
        weights = scores.masked_fill(~seen, -math.inf).softmax(dim=-1).masked_fill(~seen, 0.0)
        heads.append(weights @ value[:, part])
    return plain_linear(w, "linear_out", torch.cat(heads, dim=-1))


def plain_conformer(w: Mapping[str, Tensor], features: Tensor, valid: int) -> tuple[Tensor, Tensor]:
    image = F.conv2d(features[None], w["embed.conv.0.weight"], w["embed.conv.0.bias"], stride=2).relu()
    x = plain_linear(w, "embed.out.0", image.transpose(0, 1).flatten(1))
    x = x * math.sqrt(x.shape[1])
    seen = (torch.arange(len(features)) < valid)[2::2]
    for index in range(len({name.split(".")[1] for name in w if name.startswith("encoders.")})):
        block = below(w, f"encoders.{index}.")
        x = x + plain_attention(below(block, "self_attn."), plain_norm(block, "norm_mha", x), seen)
        conv = below(block, "conv_module.")
        y = plain_norm(block, "norm_conv", x) * seen[:, None]
        value, gate = plain_linear(conv, "pointwise_conv1", y).chunk(2, dim=-1)
        y = (value * gate.sigmoid()).T
        kernel = conv["depthwise_conv.weight"]
        y = F.conv1d(y, kernel, conv["depthwise_conv.bias"], padding=kernel.shape[2] // 2, groups=len(kernel)).T
        x = x + plain_linear(conv, "pointwise_conv2", F.silu(plain_norm(conv, "norm", y))) * seen[:, None]
        inner = F.silu(plain_linear(block, "feed_forward.w_1", plain_norm(block, "norm_ff", x)))
        x = plain_norm(block, "norm_final", x + plain_linear(block, "feed_forward.w_2", inner))
    return plain_norm(w, "after_norm", x), seen


def plain_perceiver(w: Mapping[str, Tensor], x: Tensor, seen: Tensor) -> Tensor:
    if "proj_context.weight" in w:
        x = plain_linear(w, "proj_context", x)
    latents = w["latents"]
    mask = torch.cat((torch.ones(len(latents), dtype=torch.bool), seen))
    for index in range(len({name.split(".")[1] for name in w if name.startswith("layers.")})):
        layer = below(w, f"layers.{index}.")
        query = plain_linear(layer, "0.to_q", latents)
        key, value = plain_linear(layer, "0.to_kv", torch.cat((latents, x))).chunk(2, dim=-1)
        heads = []
        for start in range(0, query.shape[1], 64):
            part = slice(start, start + 64)
            scores = (query[:, part] @ key[:, part].T / 8).masked_fill(~mask, -math.inf)
            heads.append(scores.softmax(dim=-1) @ value[:, part])
        latents = latents + plain_linear(layer, "0.to_out", torch.cat(heads, dim=-1))
        value, gate = plain_linear(layer, "1.0", latents).chunk(2, dim=-1)
        latents = latents + plain_linear(layer, "1.2", value * F.gelu(gate))
    return latents / latents.norm(dim=-1, keepdim=True) * math.sqrt(latents.shape[1]) * w["norm.gamma"]


def plain_condition(tensors: Mapping[str, Tensor], features: Tensor, valid: int) -> Tensor:
    steps = plain_conformer(below(tensors, "conditioning_encoder."), features, valid)
    return plain_perceiver(below(tensors, "perceiver_encoder."), *steps)


def plain_emotion(tensors: Mapping[str, Tensor], features: Tensor, valid: int) -> Tensor:
    steps = plain_conformer(below(tensors, "emo_conditioning_encoder."), features, valid)
    latents = plain_perceiver(below(tensors, "emo_perceiver_encoder."), *steps)
    return plain_linear(tensors, "emo_layer", plain_linear(tensors, "emovec_layer", latents))[0]


SMALL = small_tensors()


@pytest.fixture(scope="module")
def small() -> Conditioning:
    return Conditioning.from_tensors(in_memory(SMALL), config=SMALL_GPT)


def features_of(frames: int, *, seed: int = 0) -> Tensor:
    return torch.randn(frames, 1024, generator=torch.Generator().manual_seed(1000 * seed + frames))


def alone(model: Conditioning, features: Tensor, valid: int) -> tuple[Tensor, Tensor]:
    arguments = features[None], torch.tensor([len(features)]), torch.tensor([valid])
    return model.condition(*arguments)[0], model.emotion(*arguments)[0]


def assert_close(ours: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, wanted, rtol=0, atol=tolerance)


# The numbers of the original


@pytest.fixture(scope="module")
def tiny() -> Conditioning:
    config = json.loads((SHARED / "unifiedvoice_tiny.json").read_text())["config"]
    return Conditioning.from_tensors(open_tensors(SHARED / "unifiedvoice_tiny.safetensors"), config=config)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(SHARED / "unifiedvoice_tiny_io.safetensors")


@needs_goldens
@pytest.mark.parametrize("frames", [3, 4, 25, 50, 121])
def test_single_clips_equal_the_original(tiny: Conditioning, golden: dict[str, Tensor], frames: int) -> None:
    features = golden[f"feat_{frames}"]
    for valid in (frames, 1024):
        condition, emotion = alone(tiny, features[0], valid)
        assert_close(condition, golden[f"condition_{frames}"][0])
        assert_close(emotion, golden[f"emo_vec_{frames}"][0])
    steps = (frames - 1) // 2
    out, visible = tiny.conditioning_encoder(features, inside=[steps], visible=[steps])
    assert_close(out, golden[f"conformer_out_{frames}"])
    assert visible.all()


@needs_goldens
def test_a_masked_last_frame_equals_the_original(tiny: Conditioning, golden: dict[str, Tensor]) -> None:
    condition, emotion = alone(tiny, golden["feat_121"][0], 120)
    assert_close(condition, golden["condition_121_len120"][0])
    assert_close(emotion, golden["emo_vec_121_len120"][0])
    assert (condition - golden["condition_121"][0]).abs().max() > 0.05


@needs_goldens
def test_a_batch_equals_the_original_run_clip_by_clip(tiny: Conditioning, golden: dict[str, Tensor]) -> None:
    lengths = golden["batch_len"]
    condition = tiny.condition(golden["batch_feat"], lengths, lengths)
    emotion = tiny.emotion(golden["batch_feat"], lengths, lengths)
    for index in range(len(lengths)):
        assert_close(condition[index], golden[f"batch_condition_unpadded_{index}"][0])
        assert_close(emotion[index], golden[f"batch_emo_vec_unpadded_{index}"][0])


@needs_goldens
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_merged_emotions_equal_the_original(tiny: Conditioning, golden: dict[str, Tensor], alpha: float) -> None:
    base, other = (alone(tiny, golden[f"merge_{name}"][0], 1024)[1] for name in "ab")
    assert_close(merge_emotions(base, other, alpha), golden[f"merge_emovec_{alpha}"][0])


@needs_goldens
def test_the_position_table_is_the_originals() -> None:
    stored = load_file(SHARED / "unifiedvoice_tiny.safetensors")["conditioning_encoder.embed.pos_enc.pe"][0]
    assert torch.equal(conformer.sinusoid(5000, 32), stored)


# The formulas, at other sizes


@pytest.mark.parametrize(
    ("frames", "valid"), [(3, 3), (3, 2), (4, 3), (5, 4), (6, 1), (17, 16), (40, 40), (41, 20), (64, 9999)]
)
def test_other_sizes_equal_the_plain_formula(small: Conditioning, frames: int, valid: int) -> None:
    features = features_of(frames)
    condition, emotion = alone(small, features, valid)
    assert_close(condition, plain_condition(SMALL, features, valid))
    assert_close(emotion, plain_emotion(SMALL, features, valid))


def test_blocks_of_steps_and_of_queries_change_nothing(small: Conditioning, monkeypatch: pytest.MonkeyPatch) -> None:
    features = features_of(2 * conformer.BLOCK_STEPS + 90)
    assert (len(features) - 1) // 2 > conformer.BLOCK_STEPS
    monkeypatch.setattr(conformer, "MAX_SCORES", 3 * 556 * 100)
    condition, emotion = alone(small, features, 1024)
    assert_close(condition, plain_condition(SMALL, features, 1024))
    assert_close(emotion, plain_emotion(SMALL, features, 1024))


def test_a_clip_of_which_nothing_is_visible_gives_what_the_latents_give_alone(small: Conditioning) -> None:
    first, second = alone(small, features_of(3), 2), alone(small, features_of(3, seed=1), 0)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[0].isfinite().all()


# Batches

clips = st.lists(
    st.tuples(st.integers(3, 45), st.sampled_from([0, 1, 2, 7, 50]), st.integers(0, 99)), min_size=1, max_size=6
)


@settings(max_examples=40, deadline=None)
@given(clips=clips, spare=st.integers(0, 9), filling=st.sampled_from([0.0, 1.0, 1e30, math.nan, math.inf]))
def test_each_row_of_a_batch_equals_the_clip_alone(
    small: Conditioning, clips: list[tuple[int, int, int]], spare: int, filling: float
) -> None:
    frames = torch.tensor([count for count, _, _ in clips])
    valid = torch.tensor([max(0, count - short) if short < 50 else 1024 for count, short, _ in clips])
    features = torch.full((len(clips), int(frames.max()) + spare, 1024), filling)
    for row, (count, _, seed) in zip(features, clips, strict=True):
        row[:count] = features_of(count, seed=seed)
    condition = small.condition(features, frames, valid)
    emotion = small.emotion(features, frames, valid)
    for index, (count, _, seed) in enumerate(clips):
        wanted = alone(small, features_of(count, seed=seed), int(valid[index]))
        assert_close(condition[index], wanted[0])
        assert_close(emotion[index], wanted[1])


@pytest.mark.parametrize(("frames", "kind"), [(2, "too_short"), (10_001, "too_long")])
def test_clips_that_the_encoder_cannot_take_are_told(small: Conditioning, frames: int, kind: str) -> None:
    lengths = torch.tensor([5, frames])
    with pytest.raises(ItemError) as caught:
        small.emotion(torch.zeros(2, 8, 1024), lengths, lengths)
    assert str(caught.value) == (
        f"a clip of {frames} feature frames cannot be conditioned on: 3 to 10000 are possible "
        "(try: at 50 frames a second that is 60 ms to 200 s of sound)"
    )
    assert caught.value.kind == kind
    assert (small.min_frames, small.max_frames) == (3, 10_000)


# Loading


def test_what_is_in_the_file_is_shared_and_not_copied(small: Conditioning) -> None:
    weight = small.conditioning_encoder.embed.get_parameter("out.0.weight")
    assert weight.data_ptr() == SMALL["conditioning_encoder.embed.out.0.weight"].data_ptr()
    assert not weight.requires_grad


def test_the_position_table_may_be_absent() -> None:
    bare = {name: value for name, value in SMALL.items() if not name.endswith(".pe")}
    features = features_of(20)
    condition, emotion = alone(Conditioning.from_tensors(in_memory(bare)), features, 20)
    assert_close(condition, plain_condition(SMALL, features, 20))
    assert_close(emotion, plain_emotion(SMALL, features, 20))


def test_half_precision_stays_near(small: Conditioning) -> None:
    model = Conditioning.from_tensors(in_memory(SMALL), dtype=torch.bfloat16)
    features = features_of(30)
    half, whole = alone(model, features, 29), alone(small, features, 29)
    assert half[0].dtype == torch.bfloat16
    assert_close(half[0].float(), whole[0], 0.2)
    assert_close(half[1].float(), whole[1], 0.2)


def test_a_25_checkpoint_has_emotion_only() -> None:
    tensors = small_tensors("2.5")
    model = Conditioning.from_tensors(in_memory(tensors), config=SMALL_GPT | {"condition_type": "none"})
    assert (model.family, model.model_dim, model.num_latents) == ("2.5", 20, 0)
    lengths = torch.tensor([30])
    features = features_of(30)[None]
    assert_close(model.emotion(features, lengths, lengths)[0], plain_emotion(tensors, features[0], 30))
    with pytest.raises(ModelError) as caught:
        model.condition(features, lengths, lengths)
    assert str(caught.value) == (
        "a 2.5 checkpoint has no conditioning encoder "
        "(try: its voice is the CAMPPlus speaker vector; only 2.0 has condition vectors)"
    )


def test_another_checkpoint_is_told() -> None:
    with pytest.raises(ModelError) as caught:
        Conditioning.from_tensors(in_memory({"gpt.wte.weight": torch.zeros(1)}))
    assert str(caught.value) == (
        "small.pth is no GPT of IndexTTS2: it has neither conditioning_encoder.* (2.0) nor spk_emb_proj.* (2.5) "
        "(try: give gpt.pth with --gpt-checkpoint)"
    )


PREFIX = "conditioning_encoder.encoders.1."


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {
                f"{PREFIX}norm_ff.bias": None,
                f"{PREFIX}norm_macaron.bias": torch.zeros(36),
                f"{PREFIX}feed_forward.w_1.bias": torch.zeros(15),
            },
            f"keys 1 missing ({PREFIX}norm_ff.bias); 1 not of this model ({PREFIX}norm_macaron.bias); "
            f"1 of another shape ({PREFIX}feed_forward.w_1.bias is [15] instead of [14])",
        ),
        (
            {"conditioning_encoder.encoders.0.self_attn.pos_bias_u": None},
            "small.pth has no conditioning_encoder.encoders.0.self_attn.pos_bias_u, which tells the size of the "
            "network (try: give a whole gpt.pth; a file of adapters or of another model cannot be used)",
        ),
        (
            {"perceiver_encoder.latents": torch.zeros(20)},
            "small.pth has, with shape [20], perceiver_encoder.latents, which tells the size of the network",
        ),
        ({"emovec_layer.bias": None}, "keys 1 missing (emovec_layer.bias)"),
        ({"emo_layer.more": torch.zeros(1)}, "keys 1 not of this model (emo_layer.more)"),
        (
            {"emo_perceiver_encoder.latents": torch.zeros(2, 8)},
            "keys 1 of another shape (emo_perceiver_encoder.latents is [2, 8] instead of [1, 8])",
        ),
        (
            {"perceiver_encoder.layers.0.0.to_q.weight": torch.zeros(40, 20)},
            "perceiver_encoder.layers.0.0.to_q.weight is [40, 20] instead of [64, 20]",
        ),
        (
            {"conditioning_encoder.embed.pos_enc.pe": torch.zeros(1, 4000, 36)},
            "has a position table conditioning_encoder.embed.pos_enc.pe of [1, 4000, 36] instead of [1, 5000, 36]",
        ),
        (
            {"emo_conditioning_encoder.encoders.0.conv_module.depthwise_conv.weight": torch.zeros(8, 1, 4)},
            "has a depthwise convolution over 4 steps: only odd numbers keep the length",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(changes: dict[str, Tensor | None], told: str) -> None:
    tensors = {name: value for name, value in (SMALL | changes).items() if value is not None}
    with pytest.raises(ModelError) as caught:
        Conditioning.from_tensors(in_memory(tensors))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_dim": 1280}, "model_dim is 1280 in the config and 20 in the checkpoint"),
        (
            {"condition_type": "perceiver"},
            "condition_type is 'perceiver' in the config and 'conformer_perceiver' in the checkpoint",
        ),
        (
            {"condition_module": {"input_layer": "conv2d4", "num_blocks": 6}},
            "condition_module.num_blocks is 6 in the config and 3 in the checkpoint; "
            "condition_module.input_layer is 'conv2d4' in the config and 'conv2d2' in the checkpoint",
        ),
        (
            {"emo_condition_module": {"perceiver_mult": 4}},
            "emo_condition_module.perceiver_mult is 4 in the config, "
            "which makes a feed-forward of 21 instead of 10 in the checkpoint",
        ),
        ({"emo_condition_module": 5}, "emo_condition_module is 5 in the config instead of a section"),
    ],
)
def test_a_config_that_says_otherwise_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError) as caught:
        Conditioning.from_tensors(in_memory(SMALL), config=changes)
    assert str(caught.value) == (
        f"small.pth and the gpt section of the config disagree: {told} "
        "(try: give the config.yaml that belongs to the checkpoint)"
    )


PUBLISHED_GPT = {
    "model_dim": 1280,
    "condition_type": "conformer_perceiver",
    "condition_module": {
        "output_size": 512,
        "linear_units": 2048,
        "attention_heads": 8,
        "num_blocks": 6,
        "input_layer": "conv2d2",
        "perceiver_mult": 2,
    },
    "emo_condition_module": {
        "output_size": 512,
        "linear_units": 1024,
        "attention_heads": 4,
        "num_blocks": 4,
        "input_layer": "conv2d2",
        "perceiver_mult": 2,
    },
}


@pytest.mark.parametrize(
    ("layout", "family", "num_latents"),
    [("layout_gpt_v2.json", "2.0", 32), ("layout_gpt_v25_campplus.json", "2.5", 0)],
)
def test_the_published_layouts_fit(layout: str, family: str, num_latents: int) -> None:
    keys = json.loads((LAYOUTS / layout).read_text())["keys"]
    shapes = {name: tuple(shape) for name, (shape, _) in keys.items()}
    tensors = TensorFile(path=Path(layout), shapes=shapes, read=lambda name: torch.empty(shapes[name], device="meta"))
    model = Conditioning.from_tensors(tensors, config=PUBLISHED_GPT, device="meta")
    assert (model.family, model.model_dim, model.num_latents) == (family, 1280, num_latents)
    needed = [*(name for name, _ in model.named_children())]
    used = {name for name in shapes if name.split(".")[0] in needed and not name.endswith(".pe")}
    assert set(model.state_dict()) == used
    features, lengths = torch.empty(2, 60, 1024, device="meta"), torch.tensor([60, 31])
    assert model.emotion(features, lengths, lengths).shape == (2, 1280)
    if family == "2.0":
        assert model.condition(features, lengths, lengths).shape == (2, 32, 1280)
