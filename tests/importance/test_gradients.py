"""Per-example gradients: equal to autograd, for every kind of layer and every way of calling it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from woodshed.backends.tiny_dit import woodshed_tiny_dit
from woodshed.contracts import Draw
from woodshed.errors import ModelError
from woodshed.importance.gradients import GradientProbe, RowsUnclear


class TwoLayers(nn.Module):
    """Sequences through two linear layers and a nonlinearity."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, width), nn.Linear(width, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Everything(nn.Module):
    """A convolution, norms, an embedding and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(11, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.norm, self.twice, self.scale = nn.LayerNorm(8), nn.Linear(8, 8), nn.GroupNorm(2, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = self.conv(x.mT)
        x = self.scale(x).mT
        return self.norm(self.twice(torch.relu(self.twice(x))))


def named(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "weight")}


def by_autograd(model: nn.Module, values: list[Tensor]) -> list[list[Tensor]]:
    """Gradient of each value with respect to each layer's weight."""
    weights = [module.weight for module in named(model).values()]
    return [list(torch.autograd.grad(value, weights, retain_graph=True)) for value in values]


def mean_square(output: Tensor) -> Tensor:
    return output.square().flatten(1).mean(1)


@pytest.mark.parametrize("length", [3, 200])
def test_energies_equal_autograd_for_short_and_long_sequences(length: int) -> None:
    torch.manual_seed(0)
    model, x = TwoLayers(), torch.randn(5, length, 12)
    expected = by_autograd(model, list(mean_square(model(x))))
    probe = GradientProbe(named(model))
    with probe.attached():
        measured = probe.measure(lambda: mean_square(model(x)), num_examples=5)
    for row, gradients in enumerate(expected):
        for layer, gradient in enumerate(gradients):
            assert float(measured.energy[row, layer]) == pytest.approx(float(gradient.square().sum()), rel=1e-5)


def test_smooth_sequences_are_no_special_case() -> None:
    # The shortcut that sums |a_t|^2 |g_t|^2 would be off by a factor of the length here.
    torch.manual_seed(0)
    model, x = TwoLayers(), torch.randn(2, 1, 12).expand(-1, 50, -1)
    expected = by_autograd(model, list(mean_square(model(x))))
    probe = GradientProbe(named(model))
    with probe.attached():
        energy = probe.measure(lambda: mean_square(model(x)), num_examples=2).energy
    assert float(energy[1, 0]) == pytest.approx(float(expected[1][0].square().sum()), rel=1e-5)


@pytest.mark.parametrize("num_examples", [1, 3])
def test_every_kind_of_layer_goes(num_examples: int) -> None:
    torch.manual_seed(0)
    model, tokens = Everything(), torch.randint(0, 11, (num_examples, 9))
    layers = {name: module for name, module in named(model).items() if num_examples == 1 or name != "twice"}
    expected = by_autograd(model, list(mean_square(model(tokens))))
    places = {name: torch.tensor([0, module.weight.numel() - 1]) for name, module in layers.items()}
    whole: dict[tuple[str, float], Tensor] = {}
    names = list(layers)
    probe = GradientProbe(
        layers,
        entries=list(places.values()),
        whole=lambda layer, gradient, weight: whole.__setitem__((names[layer], weight), gradient.clone()),
    )
    with probe.attached():
        measured = probe.measure(
            lambda: mean_square(model(tokens)),
            num_examples=num_examples,
            weights=[1.0 + r for r in range(num_examples)],
        )
    everything = list(named(model))
    assert measured.entries is not None
    for row in range(num_examples):
        for column, name in enumerate(names):
            gradient = expected[row][everything.index(name)]
            assert float(measured.energy[row, column]) == pytest.approx(float(gradient.square().sum()), rel=1e-4)
            torch.testing.assert_close(
                measured.entries[row, 2 * column : 2 * column + 2],
                gradient.reshape(-1)[places[name]],
                rtol=1e-4,
                atol=1e-6,
            )
            found = whole[(name, 1.0 + row)]
            torch.testing.assert_close(found, gradient.reshape(found.shape), rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_used_twice_is_measured_alone_or_not_at_all() -> None:
    model, tokens = Everything(), torch.randint(0, 11, (2, 9))
    probe = GradientProbe({"twice": model.twice})
    with probe.attached(), pytest.raises(RowsUnclear, match="twice"):
        probe.measure(lambda: mean_square(model(tokens)), num_examples=2)


def test_entries_are_those_of_the_gradient_on_both_paths() -> None:
    torch.manual_seed(0)
    model = TwoLayers()
    for length in (2, 100):
        x = torch.randn(3, length, 12)
        expected = by_autograd(model, list(mean_square(model(x))))
        places = [torch.tensor([5, 17, 100]), torch.tensor([0, 60])]
        probe = GradientProbe(named(model), entries=places)
        with probe.attached():
            measured = probe.measure(lambda x=x: mean_square(model(x)), num_examples=3)
        for row, gradients in enumerate(expected):
            wanted = torch.cat([g.reshape(-1)[p] for g, p in zip(gradients, places, strict=True)])
            assert measured.entries is not None
            torch.testing.assert_close(measured.entries[row], wanted, rtol=1e-4, atol=1e-7)


def test_weights_are_as_they_were_afterwards() -> None:
    model = TwoLayers()
    model.second.requires_grad_(False)
    probe = GradientProbe(named(model))
    with probe.attached():
        assert not any(parameter.requires_grad for parameter in model.parameters())
        probe.measure(lambda: mean_square(model(torch.randn(1, 4, 12))), num_examples=1)
    assert model.first.weight.requires_grad
    assert not model.second.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.first._forward_hooks


def test_a_real_model_in_a_batch_of_unequal_lengths() -> None:
    model = woodshed_tiny_dit()
    torch.manual_seed(1)
    examples = [model.example({"latents": torch.randn(64, n), "info": {"prompt": "rock"}}) for n in (60, 35)]
    draws = [Draw(seed=1, timestep=0.2), Draw(seed=2, timestep=0.8, drop_condition=True)]
    weights = [layer.weight for layer in model.layers().values()]
    assert all(isinstance(weight, Tensor) for weight in weights)
    expected = [torch.autograd.grad(model.loss(e, d), weights) for e, d in zip(examples, draws, strict=True)]  # type: ignore[arg-type]
    probe = GradientProbe(model.layers())
    with probe.attached():
        energy = probe.measure(lambda: model.losses(examples, draws), num_examples=2).energy
    for row, gradients in enumerate(expected):
        found = torch.stack([gradient.square().sum() for gradient in gradients])
        torch.testing.assert_close(energy[row], found, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("objective", [lambda: torch.zeros(1), lambda: torch.ones(1, requires_grad=False)])
def test_a_loss_without_the_layers_is_refused(objective: Any) -> None:
    probe = GradientProbe(named(TwoLayers()))
    with probe.attached(), pytest.raises(ModelError, match="no layer has any part"):
        probe.measure(objective, num_examples=1)
