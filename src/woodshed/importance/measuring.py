"""The passes of an analysis: batches of looks in, rows of a draw table out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from woodshed.backends.noise import noise
from woodshed.chance import generator
from woodshed.contracts import Draw, LossOfMany, Predicts, Trainable
from woodshed.errors import ItemError, ModelError
from woodshed.importance.belief import Spectrum
from woodshed.importance.draw_table import DrawTable
from woodshed.importance.focus import Timesteps
from woodshed.importance.gradients import GradientProbe, RowsUnclear
from woodshed.importance.layers import LayerShape, layer_shapes
from woodshed.importance.looks import Look
from woodshed.importance.spectrum import GradientSketch, spectrum_of

ENTRIES = 1024
"""Of each layer's gradient that are kept of every draw."""
SENSITIVITY_EVERY = 4
"""Of so many looks one is looked at for sensitivity as well."""
SKETCH_RANK = 32
"""Singular values that are told of each mean gradient."""
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How far a batch's energies may be from those of its examples alone, relative to the larger."""


@runtime_checkable
class Examples(Protocol):
    """Where examples come from, by number."""

    def __len__(self) -> int: ...

    def name(self, song: int) -> str: ...

    def example(self, item: int, visit: int) -> Any:
        """What the model's loss looks at: the crop that this visit sees. Raises `ItemError` if there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """What is measured of each look."""

    batch_size: int
    mean_gradients: str
    """`memory`, `sketch` or `none`."""
    sensitivity: bool
    sketch_rank: int
    seed: int


class Measurer:
    """Makes passes over a model and fills a table.

    Args:
        model: its layers take no gradients of their own while the `probe` is attached.
        table: what is measured goes there, sums of gradients included.
        timesteps: what a draw weighs in the mean gradients.
    """

    def __init__(
        self, model: Trainable, examples: Examples, table: DrawTable, timesteps: Timesteps, options: Measuring
    ) -> None:
        self.model, self.examples, self.table, self._timesteps, self._options = (
            model, examples, table, timesteps, options,
        )  # fmt: skip
        layers = model.layers()
        self.shapes = layer_shapes(layers)
        self.places = entry_places(self.shapes, seed=options.seed)
        self.sums = _sums_for(layers, self.shapes, options, table)
        self.probe = GradientProbe(
            layers, entries=[torch.from_numpy(p) for p in self.places], whole=None if self.sums is None else self._add
        )
        self.failures: dict[int, str] = {}
        """Songs that could not be looked at, and why."""
        self.is_batched = isinstance(model, LossOfMany) and options.batch_size > 1
        self._is_checked = False

    def decided(self, *, is_batched: bool) -> None:
        """Do as an earlier run did, which has looked whether batches can be trusted."""
        self.is_batched, self._is_checked = is_batched, True

    def measure(self, looks: Sequence[Look]) -> None:
        """Make the passes of some looks, in batches of examples of one shape."""
        # The order is that of batches even where examples go one by one: a resumed run cannot know yet whether they do.
        seen = [(look, example) for look in looks if (example := self._example(look)) is not None]
        for batch in _batches(seen, self._options.batch_size):
            self._pass([look for look, _ in batch], [example for _, example in batch])

    def _example(self, look: Look) -> Any:
        if look.item in self.failures:
            return None
        try:
            return self.examples.example(look.item, look.visit)
        except ItemError as error:
            self.failures[look.item] = str(error)
            return None

    def _pass(self, looks: Sequence[Look], examples: Sequence[Any]) -> None:
        if len(looks) > 1 and not self._is_checked:
            self._check_batches(looks, examples)
        if len(looks) > 1 and not self.is_batched:
            for look, example in zip(looks, examples, strict=True):
                self._pass([look], [example])
            return
        draws = [look.draw for look in looks]
        weights = self._timesteps.weights([draw.timestep for draw in draws], self._timesteps.asked).tolist()
        try:
            measured = self.probe.measure(self._losses(examples, draws), num_examples=len(looks), weights=weights)
        except RowsUnclear as error:
            # Sums of gradients may hold a part of this pass already.
            raise ModelError(f"batches cannot be told apart: {error}", hint="--batch-size 1") from error
        assert measured.entries is not None
        if not bool(measured.energy.isfinite().all()):
            self._refuse(looks)
        sensitivity = {
            place: self._sensitivity(example, look.draw)
            for place, (look, example) in enumerate(zip(looks, examples, strict=True))
            if self._options.sensitivity and look.number % SENSITIVITY_EVERY == 0
        }
        self.table.add(looks, measured.energy, measured.entries, sensitivity, num_passes=1)

    def _refuse(self, looks: Sequence[Look]) -> None:
        names = ", ".join(self.examples.name(look.item) for look in looks)
        raise ModelError(
            f"the gradients of {names} are not finite",
            hint="--precision fp32; if that does not help, the checkpoint or these items are damaged",
        )

    def _losses(self, examples: Sequence[Any], draws: Sequence[Draw]) -> Callable[[], Tensor]:
        if len(examples) == 1:
            return lambda: self.model.loss(examples[0], draws[0]).reshape(1)
        assert isinstance(self.model, LossOfMany)
        many = self.model
        return lambda: many.losses(examples, draws)

    def _sensitivity(self, example: Any, draw: Draw) -> Float32[Tensor, " layer"]:
        """Squared norm of the gradient of a random combination of the outputs, over their number: in the mean over
        combinations, how much an output value moves with the layer's weights."""
        model = self.model
        assert isinstance(model, Predicts)

        def objective() -> Tensor:
            output = model.predict(example, draw)
            direction = noise(
                dataclasses.replace(draw, seed=draw.seed ^ 0x5DEECE66D, mirrored=False),
                output.shape,
                device=output.device,
                dtype=torch.float32,
            )
            value: Tensor = (output.float() * direction).sum().reshape(1) / math.sqrt(output.numel())
            return value

        return self.probe.measure(objective, num_examples=1, wants_entries=False).energy[0]

    def _check_batches(self, looks: Sequence[Look], examples: Sequence[Any]) -> None:
        """Whether this model's batches say of each example what it says alone; if not, there are no batches."""
        self._is_checked = True
        draws = [look.draw for look in looks]
        alone = torch.cat(
            [
                self.probe.measure(self._losses([example], [draw]), num_examples=1, wants_entries=False).energy
                for example, draw in zip(examples, draws, strict=True)
            ]
        )
        try:
            together = self.probe.measure(
                self._losses(examples, draws), num_examples=len(looks), wants_entries=False
            ).energy
        except RowsUnclear:
            self.is_batched = False
            return
        dtype = next(iter(self.model.layers().values())).weight.dtype
        assert isinstance(dtype, torch.dtype)
        scale = torch.maximum(alone, together).clamp_min(1e-30)
        # Of layers that hardly matter rounding is all there is.
        matters = alone > 1e-6 * alone.max()
        self.is_batched = bool((((alone - together).abs() / scale)[matters] < AGREEMENT.get(dtype, 0.1)).all())

    def _add(self, layer: int, gradient: Float32[Tensor, "d_out d_in"], weight: float) -> None:
        assert self.sums is not None
        accumulator = self.sums[layer]
        if isinstance(accumulator, GradientSketch):
            accumulator.add(gradient, weight)
        else:
            accumulator.add_(gradient, alpha=weight)

    @property
    def sum_bytes(self) -> int:
        """Of what mean gradients are summed in."""
        return sum(part.nbytes for part in self.sums or ())


def measurer_in(
    folder: Path, model: Trainable, examples: Examples, timesteps: Timesteps, options: Measuring
) -> Measurer:
    """A measurer that goes on from the table in a folder, or begins one."""
    shapes = layer_shapes(model.layers())
    num_entries = sum(min(ENTRIES, shape.num_weights) for shape in shapes)
    table = DrawTable(folder, num_layers=len(shapes), num_entries=num_entries)
    return Measurer(model, examples, table, timesteps, options)


def entry_places(shapes: Sequence[LayerShape], *, seed: int) -> list[Int64[np.ndarray, "_"]]:
    """Which entries of each layer's weight are sampled: without replacement, in rising order."""
    return [
        np.sort(
            generator(seed, shape.name, "entries").choice(
                shape.num_weights, min(ENTRIES, shape.num_weights), replace=False
            )
        )
        for shape in shapes
    ]


Sums: TypeAlias = list[Tensor | GradientSketch]


def _sums_for(
    layers: Mapping[str, nn.Module], shapes: Sequence[LayerShape], options: Measuring, table: DrawTable
) -> Sums | None:
    """Zeros, or what an earlier run summed up; the table writes down what stands in them."""
    if options.mean_gradients == "none":
        return None
    made: Sums = []
    for shape, module in zip(shapes, layers.values(), strict=True):
        assert isinstance(module.weight, Tensor)
        device = module.weight.device
        if options.mean_gradients == "memory":
            whole = torch.zeros(shape.d_out, shape.d_in, device=device)
            _take_over(table, shape.name, whole)
            made.append(whole)
            continue
        sketch = GradientSketch(
            shape.d_out, shape.d_in, options.sketch_rank, seed=options.seed, key=shape.name, device=device
        )
        _take_over(table, f"{shape.name}/left", sketch.left)
        _take_over(table, f"{shape.name}/right", sketch.right)
        made.append(sketch)
    return made


def _take_over(table: DrawTable, name: str, values: Tensor) -> None:
    found = table.sums.get(name)
    if found is not None:
        values.copy_(found)
    table.sums[name] = values


def spectra(measurer: Measurer, *, total_weight: float, energies: Sequence[float]) -> list[Spectrum] | None:
    """Of the mean gradients; None where they are not kept.

    Args:
        total_weight: of all draws.
        energies: squared norm of each layer's mean gradient, as sampled entries tell it: a sketch does not.
    """
    if measurer.sums is None:
        return None
    options, made = measurer._options, []
    for shape, summed, energy in zip(measurer.shapes, measurer.sums, energies, strict=True):
        if isinstance(summed, GradientSketch):
            made.append(summed.spectrum(scale=1 / total_weight, energy=energy))
        else:
            made.append(spectrum_of(summed / total_weight, options.sketch_rank, seed=options.seed, key=shape.name))
    return made


def exact_wg(measurer: Measurer, *, total_weight: float) -> list[float] | None:
    """Mean |W * mean g| over all weights, where whole mean gradients are kept."""
    if measurer.sums is None or any(isinstance(summed, GradientSketch) for summed in measurer.sums):
        return None
    made = []
    for summed, module in zip(measurer.sums, measurer.model.layers().values(), strict=True):
        assert isinstance(summed, Tensor)
        assert isinstance(module.weight, Tensor)
        weight = module.weight.detach().reshape(summed.shape)
        # Doubles on the CPU: not every device has them.
        by_row = (weight.float() * summed).abs().sum(dim=1).cpu().double()
        made.append(float(by_row.sum()) / weight.numel() / total_weight)
    return made


def _batches(seen: Sequence[tuple[Look, Any]], size: int) -> list[list[tuple[Look, Any]]]:
    """Looks whose examples have one shape, in order, at most `size` together."""
    waiting: dict[Hashable, list[tuple[Look, Any]]] = {}
    done = []
    for look, example in seen:
        batch = waiting.setdefault(_signature(example), [])
        batch.append((look, example))
        if len(batch) == size:
            done.append(waiting.pop(_signature(example)))
    return done + list(waiting.values())


def _signature(example: Any) -> Hashable:
    """Examples of which this is equal may share a pass."""
    tensors = _tensors(example)
    return tuple((name, tuple(value.shape)) for name, value in tensors.items()) if tensors else id(example)


def num_values(example: Any) -> int:
    """In all tensors of an example."""
    return sum(value.numel() for value in _tensors(example).values())


def _tensors(example: Any) -> dict[str, Tensor]:
    """Those of a dataclass or dict, by name."""
    parts: dict[str, Any] = {}
    if dataclasses.is_dataclass(example):
        parts = {part.name: getattr(example, part.name) for part in dataclasses.fields(example)}
    elif isinstance(example, dict):
        parts = dict(sorted(example.items()))
    return {name: value for name, value in parts.items() if isinstance(value, Tensor)}
