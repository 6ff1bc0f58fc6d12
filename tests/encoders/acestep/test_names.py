"""The table of names is a bijection, over every tensor of real models and every candidate layer of both sizes."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.encoders.acestep.tiny_acestep import build_acestep, upstream_tensors
from woodshed.encoders.acestep.names import (
    LoraDialect,
    LoraKey,
    LoraPart,
    Part,
    join_upstream,
    layer_order,
    lora_key,
    parse_lora_key,
    split_upstream,
    to_diffusers,
    to_upstream,
)
from woodshed.errors import ModelError

PROJECTIONS = [
    *(f"{kind}_attn.{name}_proj" for kind, name in product(("self", "cross"), "qkvo")),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
]
SIZES = {
    "2B": {"hidden_size": 2048, "num_hidden_layers": 24},
    "XL": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 32, "num_attention_heads": 32,
        "encoder_hidden_size": 2048,
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", ["base", "xl-base"])
def test_every_tensor_of_a_model_has_one_name_in_each_dialect(variant: str) -> None:
    parts = build_acestep(variant=variant)
    named: dict[str, tuple[str, str]] = {}
    for key in upstream_tensors(parts):
        found = split_upstream(key)
        assert found is not None, key
        assert join_upstream(*found) == key
        named[key] = found
    assert len(set(named.values())) == len(named)
    for part in get_args(Part):
        theirs = set(getattr(parts, part).state_dict()) - {"silence_latent"}
        assert {name for home, name in named.values() if home == part} == theirs


@pytest.mark.parametrize(("size", "num_candidates"), [("2B", 264), ("XL", 352)])
def test_candidate_layers_of_the_published_sizes(size: str, num_candidates: int) -> None:
    from diffusers import AceStepTransformer1DModel

    with torch.device("meta"):
        model = AceStepTransformer1DModel(**SIZES[size])
    linears = {to_upstream(name) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    candidates = {name for name in linears if layer_order(name) is not None}
    num_layers = SIZES[size]["num_hidden_layers"]
    assert candidates == {f"layers.{i}.{name}" for i, name in product(range(num_layers), PROJECTIONS)}
    assert len(candidates) == num_candidates
    assert {to_diffusers(name) for name in candidates} <= {name for name, _ in model.named_modules()}


def test_names_that_are_alike_are_told_apart() -> None:
    """The detokenizer has a plain `proj_out`, and an MLP's projections are named alike in both dialects."""
    assert split_upstream("detokenizer.proj_out.weight") == ("audio_token_detokenizer", "proj_out.weight")
    assert split_upstream("decoder.proj_out.1.weight") == ("transformer", "proj_out_conv.weight")
    assert to_diffusers("layers.0.mlp.gate_proj") == "layers.0.mlp.gate_proj"
    assert to_diffusers("layers.1.self_attn.q_projector") == "layers.1.self_attn.q_projector"
    assert split_upstream("vae.encoder.conv1.weight") is None


LAYERS = st.builds("layers.{}.{}".format, st.integers(0, 99), st.sampled_from(PROJECTIONS))
LORA_KEYS = st.builds(LoraKey, LAYERS, st.sampled_from(get_args(LoraPart)))


@given(LORA_KEYS, st.sampled_from(get_args(LoraDialect)))
def test_lora_keys_come_back_from_every_dialect(key: LoraKey, dialect: LoraDialect) -> None:
    assert parse_lora_key(lora_key(key, dialect)) == key


@given(LAYERS)
def test_layer_names_come_back_and_renaming_twice_changes_nothing(layer: str) -> None:
    theirs = to_diffusers(layer)
    assert to_upstream(theirs) == layer
    assert (to_diffusers(theirs), to_upstream(layer)) == (theirs, layer)


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.layers.7.self_attn.q_proj.lora_A.weight",
        "base_model.model.layers.7.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.decoder.layers.7.self_attn.q_proj.lora_A.weight",
        "base_model.model.layers.7.self_attn.q_proj.lora_down.weight",
        "diffusion_model.layers.7.self_attn.q_proj.lora_A.weight",
        "diffusion_model.decoder.layers.7.self_attn.q_proj.lora_down.weight",
        "transformer.layers.7.self_attn.to_q.lora_A.weight",
        "layers.7.self_attn.q_proj.lora_A.weight",
    ],
)
def test_one_tensor_in_the_fields_spellings(key: str) -> None:
    assert parse_lora_key(key) == LoraKey("layers.7.self_attn.q_proj", "down")


def test_peft_and_diffusers_write_the_keys_that_we_write() -> None:
    """PEFT's own injection into diffusers' class, saved by PEFT and by diffusers."""
    import peft

    model = build_acestep(num_layers=1).transformer
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0", "up_proj"]))
    theirs = {f"transformer.{key}" for key in peft.get_peft_model_state_dict(model)}
    parsed = {parse_lora_key(key) for key in theirs}
    assert {lora_key(key, "diffusers") for key in parsed} == theirs
    assert len(parsed) == 2 * 5


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("lora_te_text_model_encoder_layers_0.lora_down.weight", "no tensor of a LoRA"),
        ("base_model.model.layers.0.self_attn.q_proj.weight", "no tensor of a LoRA"),
        ("base_model.model.layers.0.self_attn.q_norm.lora_A.weight", "no attention or MLP projection"),
        ("base_model.model.layers.0.attn.q_proj.lora_A.weight", "no attention or MLP projection"),
    ],
)
def test_other_tensors_are_refused_by_name(key: str, told: str) -> None:
    with pytest.raises(ModelError, match=told) as caught:
        parse_lora_key(key)
    assert key in str(caught.value)
