"""What PEFT makes of a map: its layers, its ranks, its alphas, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from tests.encoders.acestep.tiny_acestep import build_acestep
from woodshed.backends.acestep import AceStep
from woodshed.backends.tiny_dit import woodshed_tiny_dit
from woodshed.contracts import Variant
from woodshed.errors import ModelError
from woodshed.importance.layers import layer_shapes
from woodshed.importance.map_files import schema2_fields
from woodshed.importance.peft_patterns import peft_patterns, verify_injection

KINDS = {"lora": peft.LoraConfig, "lokr": peft.LoKrConfig, "loha": peft.LoHaConfig}


def tiny_dit() -> tuple[nn.Module, Mapping[str, nn.Module]]:
    model = woodshed_tiny_dit()
    return model.network, model.layers()


def acestep() -> tuple[nn.Module, Mapping[str, nn.Module]]:
    parts = build_acestep(silence_frames=4, num_layers=12)
    model = AceStep(
        parts.transformer,
        silence=parts.condition_encoder.silence_latent,
        null_condition=parts.condition_encoder.null_condition_emb,
        variant=Variant(name="base"),
        mu=-0.4,
        sigma=1.0,
    )
    return parts.transformer, model.layers()


def uneven(layers: Mapping[str, nn.Module]) -> tuple[dict[str, int], dict[str, float]]:
    """Every third layer left out, and ranks that no neighbour shares."""
    ranks = {name: 2 + index % 7 for index, name in enumerate(layers) if index % 3}
    return ranks, {name: 1.5 * rank for name, rank in ranks.items()}


def injected(network: nn.Module, kind: str, keywords: Mapping[str, Any]) -> nn.Module:
    wrapped: nn.Module = peft.get_peft_model(network, KINDS[kind](**keywords))
    return wrapped


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [tiny_dit, acestep], ids=["tiny-dit", "acestep"])
def test_exactly_the_layers_of_the_map_are_adapted(
    kind: str, model: Callable[[], tuple[nn.Module, Mapping[str, nn.Module]]]
) -> None:
    network, layers = model()
    ranks, alphas = uneven(layers)
    patterns = peft_patterns(network, layers, ranks, alphas)
    wrapped = injected(network, kind, patterns.keywords)
    verify_injection(wrapped, layers, ranks, alphas)
    # Beside the check of ours: by what PEFT trains.
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    stems = {re.sub(r"\.(lora|lokr|hada)_.*", "", name) for name in trained}
    assert len(stems) == len(ranks)
    adapted: list[Any] = [wrapped.get_submodule(stem) for stem in stems]
    assert {id(module.get_base_layer()) for module in adapted} == {id(layers[name]) for name in ranks}


def test_ranks_are_those_of_the_weights() -> None:
    network, layers = tiny_dit()
    ranks, alphas = uneven(layers)
    injected(network, "lora", peft_patterns(network, layers, ranks, alphas).keywords)
    for name, rank in ranks.items():
        module = network.get_submodule(name)
        assert module.lora_A["default"].weight.shape[0] == rank
        assert module.scaling["default"] == 1.5
    assert all(type(network.get_submodule(name)) is nn.Linear for name in layers if name not in ranks)


def test_an_adapter_that_is_saved_is_loaded_as_it_was(tmp_path: Any) -> None:
    network, layers = tiny_dit()
    ranks, alphas = uneven(layers)
    wrapped: Any = injected(network, "lora", peft_patterns(network, layers, ranks, alphas).keywords)
    wrapped.save_pretrained(tmp_path)
    fresh, fresh_layers = tiny_dit()
    verify_injection(peft.PeftModel.from_pretrained(fresh, tmp_path), fresh_layers, ranks, alphas)


def test_side_steps_trainer_adapts_what_our_map_says() -> None:
    # Its trainer hands these three fields to PEFT as they are, and the least rank as the fallback.
    network, layers = tiny_dit()
    ranks, alphas = uneven(layers)
    fields = schema2_fields(layer_shapes(layers), ranks, alphas, {})
    named = {key: fields[key] for key in ("target_modules", "rank_pattern", "alpha_pattern")}
    verify_injection(injected(network, "lora", named | {"r": 16, "lora_alpha": 32}), layers, ranks, alphas)
    # With endings alone, as Side-Step writes them, what the map leaves out is adapted all the same.
    network, layers = tiny_dit()
    fields = schema2_fields(layer_shapes(layers), ranks, alphas, {}, as_side_step=True)
    named["target_modules"] = fields["target_modules"]
    theirs = injected(network, "lora", named | {"r": 16, "lora_alpha": 32})
    with pytest.raises(ModelError, match="has an adapter that the map does not know"):
        verify_injection(theirs, layers, ranks, alphas)


class Twins(nn.Module):
    """Names that are endings, prefixes and look-alikes of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(12)])
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])})
        self.layersx1 = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_end_or_look_like_others_are_told_apart(kind: str) -> None:
    network = Twins()
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    ranks = {"layers.1": 2, "encoder.layers.1": 3, "layers.11": 4}
    alphas = {"layers.1": 2.0, "encoder.layers.1": 1.0, "layers.11": 0.5}
    wrapped = injected(network, kind, peft_patterns(network, layers, ranks, alphas).keywords)
    verify_injection(wrapped, layers, ranks, alphas)
    for excluded in ("layersx1", "layers.0", "encoder.layers.0", "layers.10"):
        assert type(network.get_submodule(excluded)) is nn.Linear


def test_a_canonical_name_may_differ_from_the_networks() -> None:
    network = Twins()
    layers = {"first": network.layers[0], "layers.0": network.layers[1]}
    ranks, alphas = {"layers.0": 3}, {"layers.0": 3.0}
    patterns = peft_patterns(network, layers, ranks, alphas)
    assert patterns.target_modules == r"layers\.1"
    assert (patterns.rank_pattern, patterns.alpha_pattern) == ({r"^layers\.1": 3}, {r"^layers\.1": 3})
    verify_injection(injected(network, "lora", patterns.keywords), layers, ranks, alphas)


def test_what_differs_from_the_map_is_listed() -> None:
    network = Twins()
    layers = dict(network.named_modules())
    keywords = {"target_modules": ["layers.1", "layers.2"], "r": 2, "lora_alpha": 4}
    wrapped = injected(network, "lora", keywords)
    with pytest.raises(ModelError) as caught:
        verify_injection(wrapped, layers, {"layers.1": 2, "layers.2": 3, "layers.3": 2}, dict.fromkeys(layers, 6.0))
    said = str(caught.value)
    assert "layers.3 has no adapter" in said
    assert "encoder.layers.1 has an adapter that the map does not know" in said
    assert "layers.2 has rank 2, the map says 3" in said
    assert "layers.1 has alpha 4, the map says 6" in said
    assert "peft_patterns" in str(caught.value.hint)


def test_an_adapter_outside_of_all_layers_is_found() -> None:
    network = Twins()
    wrapped = injected(network, "lora", {"target_modules": ["layers.0", "layersx1"], "r": 2, "lora_alpha": 2})
    layers = {"layers.0": network.get_submodule("layers.0.base_layer")}
    with pytest.raises(ModelError, match=r"layersx1 has an adapter that the map does not know"):
        verify_injection(wrapped, layers, {"layers.0": 2}, {"layers.0": 2.0})


def test_only_the_named_adapter_counts() -> None:
    network = Twins()
    layers = dict(network.named_modules())
    first = peft_patterns(network, layers, {"layers.1": 2}, {"layers.1": 2.0})
    wrapped: Any = injected(network, "lora", first.keywords)
    wrapped.add_adapter("other", peft.LoraConfig(target_modules=["layers.10"], r=4, lora_alpha=4))
    verify_injection(wrapped, layers, {"layers.1": 2}, {"layers.1": 2.0})
    verify_injection(wrapped, layers, {"layers.10": 4}, {"layers.10": 4.0}, adapter="other")


def test_a_map_that_does_not_fit_is_refused() -> None:
    network = Twins()
    layers = dict(network.named_modules())
    for ranks, others, said in (
        ({}, layers, "the map gives no layer an adapter"),
        ({"layers.99": 2}, layers, "the model has no layers layers.99, which the map names"),
        ({"far": 2}, {"far": nn.Linear(2, 2)}, "the network that is to be adapted does not hold far"),
    ):
        with pytest.raises(ModelError, match=said):
            peft_patterns(network, others, ranks, dict.fromkeys(ranks, 1.0))
    network.again = network.layers[3]
    with pytest.raises(ModelError, match=r"modules stand under several names in the network: layers.3"):
        peft_patterns(network, layers, {"layers.3": 2}, {"layers.3": 1.0})
    injected(network, "lora", peft_patterns(network, layers, {"layers.1": 2}, {"layers.1": 1.0}).keywords)
    with pytest.raises(ModelError, match=r"layers have adapters already: layers.1"):
        peft_patterns(network, layers, {"layers.1": 2}, {"layers.1": 1.0})


def test_the_adapted_network_starts_where_the_base_model_is() -> None:
    network = Twins()
    layers = dict(network.named_modules())
    x = torch.randn(3, 4)
    before = network(x)
    wrapped = injected(network, "lora", peft_patterns(network, layers, {"layers.0": 2}, {"layers.0": 4.0}).keywords)
    assert torch.equal(wrapped(x), before)
