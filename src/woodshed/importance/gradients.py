"""Per-example gradients of many layers from one backward pass.

The weight gradient of a linear layer is the sum over positions t of g_t a_t^T, with inputs a_t (d_in) and gradients g_t
of the outputs (d_out). Its squared norm per example is sum over t, t' of (a_t . a_t') (g_t . g_t'): the Gram trick,
cheap for sequences that are shorter than the layer is wide. For longer ones, and where single entries or mean gradients
are wanted, the sum itself is formed, one example at a time. Both are exact. Summing |a_t|^2 |g_t|^2 is not: it leaves
out how positions agree, which is most of it where signals are smooth.

Weights are frozen meanwhile, so that autograd keeps no input and forms no gradient of them. All else (convolutions,
norms) goes by the derivative of the layer alone, example by example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from woodshed.errors import ModelError

WholeGradient = Callable[[int, Float32[Tensor, "d_out d_in"], float], None]
"""Takes the number of a layer, the gradient of one example, and the example's weight."""


class RowsUnclear(Exception):
    """A layer was called in a way that does not tell which row belongs to which example."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one pass says of its examples, on the CPU."""

    energy: Float32[Tensor, "example layer"]
    """Squared norm of the gradient of each layer's weight."""
    entries: Float32[Tensor, "example entry"] | None
    """The gradient's entries that were asked for, layer by layer."""


@dataclass(slots=True)
class _Call:
    """One call of a layer, and the gradient of what it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gradient: Tensor | None = None


@dataclass(slots=True)
class _Pass:
    """What is collected during one pass."""

    num_examples: int
    weights: Sequence[float]
    wants_entries: bool
    calls: dict[int, list[_Call]] = field(default_factory=dict)
    energy: dict[int, Tensor] = field(default_factory=dict)
    entries: dict[int, Tensor] = field(default_factory=dict)
    trouble: Exception | None = None


class GradientProbe:
    """Hooks on layers. `attached` puts them on and takes them off; `measure` makes one pass.

    Args:
        layers: the layers to measure, by name; their `weight` counts, not a bias.
        entries: for each layer the flat places of its weight whose gradients are wanted; none by default.
        whole: called with the whole gradient of each layer and example, as soon as it is there.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        entries: Sequence[Int64[Tensor, "_"]] | None = None,
        whole: WholeGradient | None = None,
    ) -> None:
        self._names = tuple(layers)
        self._modules = tuple(layers.values())
        self._entries = entries
        self._whole = whole
        self._now: _Pass | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Freeze the layers and watch them; both are taken back in the end."""
        learned = [(p, p.requires_grad) for module in self._modules for p in module.parameters()]
        handles = [
            module.register_forward_hook(self._hook(index), with_kwargs=True)
            for index, module in enumerate(self._modules)
        ]
        try:
            for parameter, _ in learned:
                parameter.requires_grad_(False)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, was in learned:
                parameter.requires_grad_(was)

    def measure(
        self,
        objective: Callable[[], Float[Tensor, " example"]],
        *,
        num_examples: int,
        weights: Sequence[float] | None = None,
        wants_entries: bool = True,
    ) -> Measured:
        """Run `objective` and go back once; gradients are those of each of its values by itself.

        Args:
            objective: gives one value per example; row i of every layer's input must be of example i.
            weights: what `whole` is told of each example; without them it is not called.
            wants_entries: False leaves the entries out, where there are any.

        Raises:
            RowsUnclear: there are several examples, and a layer saw something else than one row for each.
            ModelError: no layer had any part in the objective, or a layer gives no tensor.
        """
        now = _Pass(
            num_examples=num_examples,
            weights=() if weights is None else weights,
            wants_entries=wants_entries and self._entries is not None,
        )
        self._now = now
        try:
            with torch.enable_grad():
                values = objective()
                if not values.requires_grad:
                    raise ModelError(
                        "no layer has any part in the loss: nothing was measured",
                        hint="loss() must run the modules that layers() names, with gradients on",
                    )
                values.sum().backward()  # type: ignore[no-untyped-call]
            if now.trouble is not None:
                raise now.trouble
            for index in list(now.calls):
                self._finish(now, index)
        finally:
            self._now = None
        return self._collected(now, values.device)

    def _hook(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:  # noqa: ARG001
            now = self._now
            if now is None or not torch.is_grad_enabled():
                return
            if not isinstance(output, Tensor):
                raise ModelError(
                    f"layer {self._names[index]} gives a {type(output).__name__}",
                    hint="name layers that give one tensor",
                )
            if not output.requires_grad:
                # Frozen weights and a first layer: the path of gradients begins here.
                output.requires_grad_()
            call = _Call(tuple(_detached(arg) for arg in args), {k: _detached(v) for k, v in kwargs.items()})
            now.calls.setdefault(index, []).append(call)
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self._arrived(now, index, call, gradient)
            )

        return hook

    def _arrived(self, now: _Pass, index: int, call: _Call, gradient: Tensor) -> None:
        call.gradient = gradient.detach()
        if now.trouble is None and all(other.gradient is not None for other in now.calls[index]):
            try:
                self._finish(now, index)
            except (RowsUnclear, ModelError) as error:
                # Autograd would wrap it in an error of its own.
                now.trouble = error

    @torch.no_grad()
    def _finish(self, now: _Pass, index: int) -> None:
        """A layer's gradient is complete: take from it what is wanted and let go of all else."""
        calls = [call for call in now.calls.pop(index) if call.gradient is not None]
        if not calls:
            return
        module = self._modules[index]
        if now.num_examples > 1:
            self._check_rows(now, index, calls)
        wants_entries = now.wants_entries
        wants_whole = self._whole is not None and len(now.weights) > 0
        if type(module) is nn.Linear:
            inputs = torch.cat([_rows(_input_of(call), now.num_examples) for call in calls], dim=1)
            outputs = torch.cat([_rows(call.gradient, now.num_examples) for call in calls], dim=1)
            if not wants_whole and _gram_is_cheaper(inputs, outputs):
                now.energy[index] = _gram_energy(inputs, outputs)
                if wants_entries:
                    now.entries[index] = _entries_of(inputs, outputs, self._places(index, inputs.device))
                return
            gradients: Iterable[Tensor] = (g.float().T @ a.float() for a, g in zip(inputs, outputs, strict=True))
        else:
            # The layer runs once more in there, which is not to be watched.
            self._now = None
            gradients = [_by_derivative(module, calls, row, now.num_examples) for row in range(now.num_examples)]
            self._now = now
        self._take(now, index, gradients, wants_entries=wants_entries, wants_whole=wants_whole)

    def _take(
        self, now: _Pass, index: int, gradients: Iterable[Tensor], *, wants_entries: bool, wants_whole: bool
    ) -> None:
        energies, entries = [], []
        for example, gradient in enumerate(gradients):
            energies.append(gradient.square().sum(dtype=torch.float32))
            if wants_entries:
                entries.append(gradient.reshape(-1)[self._places(index, gradient.device)])
            if wants_whole:
                assert self._whole is not None
                self._whole(index, gradient.reshape(len(gradient) if gradient.ndim else 1, -1), now.weights[example])
        now.energy[index] = torch.stack(energies)
        if wants_entries:
            now.entries[index] = torch.stack(entries)

    def _check_rows(self, now: _Pass, index: int, calls: Sequence[_Call]) -> None:
        tensors = [t for call in calls for t in (_input_of(call), call.gradient) if isinstance(t, Tensor)]
        if len(calls) > 1 or any(t.ndim < 2 or t.shape[0] != now.num_examples for t in tensors):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
            raise RowsUnclear(f"layer {self._names[index]} saw {shapes} for {now.num_examples} examples")

    def _places(self, index: int, device: torch.device) -> Tensor:
        assert self._entries is not None
        return self._entries[index].to(device)

    def _collected(self, now: _Pass, device: torch.device) -> Measured:
        zero = torch.zeros(now.num_examples, device=device)
        energy = torch.stack([now.energy.get(i, zero) for i in range(len(self._modules))], dim=1)
        if not now.wants_entries:
            return Measured(energy.cpu(), None)
        assert self._entries is not None
        rows = [
            now.entries.get(i, torch.zeros(now.num_examples, len(places), device=device))
            for i, places in enumerate(self._entries)
        ]
        return Measured(energy.cpu(), torch.cat(rows, dim=1).cpu())


def _input_of(call: _Call) -> Any:
    return call.args[0] if call.args else next(iter(call.kwargs.values()), None)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _rows(values: Tensor | None, num_examples: int) -> Float[Tensor, "example position width"]:
    """All positions of each example; a lone example may have any leading axes."""
    assert values is not None
    return values.reshape(num_examples, -1, values.shape[-1])


def _gram_is_cheaper(inputs: Float[Tensor, "e t d_in"], outputs: Float[Tensor, "e t d_out"]) -> bool:
    length, d_in, d_out = inputs.shape[1], inputs.shape[2], outputs.shape[2]
    return length * (d_in + d_out) < d_in * d_out


def _gram_energy(inputs: Float[Tensor, "e t d_in"], outputs: Float[Tensor, "e t d_out"]) -> Float32[Tensor, " e"]:
    a, g = inputs.float(), outputs.float()
    return ((a @ a.mT) * (g @ g.mT)).sum(dim=(1, 2))


def _entries_of(
    inputs: Float[Tensor, "e t d_in"], outputs: Float[Tensor, "e t d_out"], places: Int64[Tensor, " entry"]
) -> Float32[Tensor, "e entry"]:
    """Single entries of each example's gradient, without the gradient."""
    rows, columns = places // inputs.shape[2], places % inputs.shape[2]
    made = [(g[:, rows].float() * a[:, columns].float()).sum(0) for a, g in zip(inputs, outputs, strict=True)]
    return torch.stack(made)


def _by_derivative(module: nn.Module, calls: Sequence[_Call], row: int, num_examples: int) -> Tensor:
    """Gradient of any layer's weight for one example: the layer alone is run again."""
    assert isinstance(module.weight, Tensor)
    weight = module.weight.detach().requires_grad_()
    total = torch.zeros_like(weight, dtype=torch.float32)
    for call in calls:
        args = tuple(_row_of(arg, row, num_examples) for arg in call.args)
        kwargs = {name: _row_of(value, row, num_examples) for name, value in call.kwargs.items()}
        with torch.enable_grad():
            output = torch.func.functional_call(module, {"weight": weight}, args, kwargs)
        (gradient,) = torch.autograd.grad(output, weight, _row_of(call.gradient, row, num_examples))
        total += gradient
    return total


def _row_of(value: Any, row: int, num_examples: int) -> Any:
    if num_examples == 1 or not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != num_examples:
        return value
    return value[row : row + 1]
