"""A whole measurement on a small model, held against loops over autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from woodshed.backends.noise import noise
from woodshed.contracts import Draw, Variant
from woodshed.errors import ItemError, ModelError
from woodshed.importance.allocation import RankRequest
from woodshed.importance.analysis import Analysis
from woodshed.importance.draw_table import DrawTable
from woodshed.importance.focus import Timesteps
from woodshed.importance.focuses import focus_named
from woodshed.importance.layers import layer_shapes
from woodshed.importance.looks import Look, looks, plan_looks
from woodshed.importance.map_making import findings
from woodshed.importance.measuring import Measurer, Measuring, entry_places, exact_wg


class Song:
    """A sequence of vectors; another length for every third song."""

    def __init__(self, number: int, visit: int) -> None:
        chance = torch.Generator().manual_seed(1000 * number + visit)
        self.x = torch.randn(5 + 4 * (number % 3 == 0), 6, generator=chance) * (1 + number / 4)

    def as_dict(self) -> dict[str, Tensor]:
        return {"x": self.x}


class Songs:
    """Twelve of them; some may be broken."""

    def __init__(self, broken: Sequence[int] = (), num_songs: int = 12) -> None:
        self.broken, self.num_songs = broken, num_songs

    def __len__(self) -> int:
        return self.num_songs

    def name(self, song: int) -> str:
        return f"song-{song}"

    def example(self, item: int, visit: int) -> dict[str, Tensor]:
        if item in self.broken:
            raise ItemError(f"song-{item} is empty", kind="empty")
        return Song(item, visit).as_dict()


class Flow:
    """Flow matching with two linear layers."""

    condition_dropout = 0.2
    variant = Variant(name="flow")

    def __init__(self, *, mixes_rows: bool = False) -> None:
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(7, 10), nn.Linear(10, 6)
        self.mixes_rows = mixes_rows

    def layers(self) -> Mapping[str, nn.Module]:
        return {"blocks.0.mlp.first": self.first, "blocks.0.mlp.second": self.second}

    def timestep(self, quantile: float) -> float:
        return quantile**2

    def example(self, item: Mapping[str, Any]) -> Any:
        return item

    def loss(self, example: Any, draw: Draw) -> Tensor:
        return self._losses([example], [draw])[0]

    def predict(self, example: Any, draw: Draw) -> Tensor:
        return self._look([example], [draw])[0][0]

    def losses(self, examples: Sequence[Any], draws: Sequence[Draw]) -> Tensor:
        losses = self._losses(examples, draws)
        return losses + losses.mean() if self.mixes_rows else losses

    def _losses(self, examples: Sequence[Any], draws: Sequence[Draw]) -> Tensor:
        said, wanted = self._look(examples, draws)
        return (said - wanted).square().mean(dim=(1, 2))

    def _look(self, examples: Sequence[Any], draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        data = torch.stack([example["x"] for example in examples])
        start = torch.stack([noise(draw, data.shape[1:], device="cpu", dtype=data.dtype) for draw in draws])
        times = torch.tensor([float(draw.timestep or 0.0) for draw in draws])[:, None, None]
        told = torch.cat([times * start + (1 - times) * data, times.expand(-1, data.shape[1], 1)], dim=2)
        told = told * torch.tensor([0.5 if draw.drop_condition else 1.0 for draw in draws])[:, None, None]
        return self.second(torch.tanh(self.first(told))), start - data


def analysis_of(
    folder: Path, model: Flow, songs: Songs, *, batch_size: int = 4, mean_gradients: str = "memory", **asked: Any
) -> Analysis:
    timesteps = Timesteps(model, focus_named(asked.pop("focus", "balanced")))
    options = Measuring(batch_size=batch_size, mean_gradients=mean_gradients, sensitivity=True, sketch_rank=32, seed=0)
    shapes = layer_shapes(model.layers())
    entries = sum(len(places) for places in entry_places(shapes, seed=0))
    table = DrawTable(folder, num_layers=len(shapes), num_entries=entries)
    plan = plan_looks(
        len(songs), runs=asked.pop("runs", 3), batches=None, antithetic=False, condition_dropout=0.2, seed=0
    )
    request = RankRequest(base_rank=4, rank_min=1, rank_max=6, rank_multiple=1)
    return Analysis(
        Measurer(model, songs, table, timesteps, options),
        None,
        plan=plan,
        timesteps=timesteps,
        request=request,
        patience=asked.pop("patience", 50),
        max_relative_error=asked.pop("max_relative_error", 0.01),
    )


def gradients_of(model: Flow, songs: Songs, made: Sequence[Look]) -> list[list[Tensor]]:
    """By autograd, one look after the other."""
    weights = [layer.weight for layer in (model.first, model.second)]
    return [
        list(torch.autograd.grad(model.loss(songs.example(look.item, look.visit), look.draw), weights)) for look in made
    ]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_scores_are_those_of_plain_loops(tmp_path: Path, batch_size: int) -> None:
    model, songs = Flow(), Songs()
    analysis = analysis_of(tmp_path, model, songs, batch_size=batch_size)
    assert analysis.run(progress=lambda done: None, is_stopped=lambda: False)
    made = list(looks(analysis.plan, analysis.timesteps))
    gradients = gradients_of(model, songs, made)
    weights = analysis.timesteps.weights([look.draw.timestep for look in made], focus_named("balanced"))
    scoring = analysis.scoring(resamples=10)
    for layer, module in enumerate((model.first, model.second)):
        squares = np.array([float(found[layer].double().square().sum()) for found in gradients])
        energy = float((weights * squares).sum() / weights.sum())
        assert scoring.energy.values[layer] == pytest.approx(energy, rel=1e-5)
        assert scoring.density.values[layer] == pytest.approx(energy / module.weight.numel(), rel=1e-5)
        mean = torch.stack([w * found[layer].double() for w, found in zip(weights, gradients, strict=True)]).sum(0)
        mean = mean / float(weights.sum())
        wg = exact_wg(analysis.measurer, total_weight=float(weights.sum()))
        assert wg is not None
        assert wg[layer] == pytest.approx(float((mean * module.weight.detach().double()).abs().mean()), rel=1e-5)
        assert scoring.spectra is not None
        assert scoring.spectra[layer].values == pytest.approx(torch.linalg.svdvals(mean).tolist(), rel=1e-4)
        of_songs = [[i for i, look in enumerate(made) if look.item == song] for song in range(12)]
        totals = [float(weights[rows].sum()) for rows in of_songs]
        sums = [torch.stack([weights[i] * gradients[i][layer].double() for i in rows]).sum(0) for rows in of_songs]
        pairs = [(a, b) for a in range(12) for b in range(12) if a != b]
        signal = sum(float((sums[a] * sums[b]).sum()) for a, b in pairs) / sum(totals[a] * totals[b] for a, b in pairs)
        assert scoring.signal.values[layer] == pytest.approx(signal, rel=1e-4, abs=1e-6 * energy)


def test_a_sketch_tells_nearly_what_whole_gradients_tell(tmp_path: Path) -> None:
    found = {}
    for kind in ("memory", "sketch", "none"):
        analysis = analysis_of(tmp_path / kind, Flow(), Songs(), mean_gradients=kind)
        analysis.run(progress=lambda done: None, is_stopped=lambda: False)
        found[kind] = analysis.scoring(resamples=5)
    for kind in ("sketch", "none"):
        # All 70 and 60 entries are sampled here, so that nothing is lost.
        assert found[kind].wg.values == pytest.approx(found["memory"].wg.values, rel=1e-4)
    assert found["none"].spectra is None
    assert found["sketch"].spectra is not None
    assert found["memory"].spectra is not None
    for told, exact in zip(found["sketch"].spectra, found["memory"].spectra, strict=True):
        assert told.values[:3] == pytest.approx(exact.values[:3], rel=0.02)


def test_batches_that_mix_examples_are_noticed(tmp_path: Path) -> None:
    honest, mixing = (analysis_of(tmp_path / str(m), Flow(mixes_rows=m), Songs()) for m in (False, True))
    for analysis in (honest, mixing):
        analysis.run(progress=lambda done: None, is_stopped=lambda: False)
    assert honest.measurer.is_batched
    assert not mixing.measurer.is_batched
    assert mixing.measurer.table.energy == pytest.approx(honest.measurer.table.energy, rel=1e-4)
    assert honest.measurer.table.num_passes < mixing.measurer.table.num_passes == 36 + 9


def test_broken_songs_are_left_out_and_named(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path, Flow(), Songs(broken=[3]))
    analysis.run(progress=lambda done: None, is_stopped=lambda: False)
    assert analysis.measurer.failures == {3: "song-3 is empty"}
    assert set(analysis.measurer.table.items) == set(range(12)) - {3}
    assert analysis.measurer.table.num_looks == 36


def test_gradients_that_are_not_finite_stop_it(tmp_path: Path) -> None:
    model = Flow()
    with torch.no_grad():
        model.second.weight[0, 0] = float("nan")
    analysis = analysis_of(tmp_path, model, Songs())
    with pytest.raises(ModelError, match=r"song-\d+.*not finite"):
        analysis.run(progress=lambda done: None, is_stopped=lambda: False)


def test_stopped_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    whole = analysis_of(tmp_path / "whole", Flow(), Songs())
    whole.run(progress=lambda done: None, is_stopped=lambda: False)
    groups = iter([False, True])
    part = analysis_of(tmp_path / "part", Flow(), Songs())
    assert not part.run(progress=lambda done: None, is_stopped=lambda: next(groups))
    assert 0 < part.measurer.table.num_looks < 36
    again = analysis_of(tmp_path / "part", Flow(), Songs())
    assert again.checks.moved == part.checks.moved != []
    assert again.run(progress=lambda done: None, is_stopped=lambda: False)
    for one, other in ((whole, again),):
        assert findings(one, reference_kind=None).layers == (findings(other, reference_kind=None).layers)
        assert np.array_equal(one.measurer.table.energy, other.measurer.table.energy)


def test_patience_and_precision_decide_how_long_it_takes(tmp_path: Path) -> None:
    passes = {}
    for patience in (1, 4):
        analysis = analysis_of(
            tmp_path / str(patience), Flow(), Songs(), patience=patience, max_relative_error=5.0, runs=30
        )
        analysis.run(progress=lambda done: None, is_stopped=lambda: False)
        assert analysis.reason == "stable"
        passes[patience] = analysis.measurer.table.num_passes
    assert passes[1] < passes[4]
    strict = analysis_of(tmp_path / "strict", Flow(), Songs(), patience=1, max_relative_error=1e-6, runs=2)
    strict.run(progress=lambda done: None, is_stopped=lambda: False)
    assert strict.reason == "budget of passes used"


def test_a_map_by_the_sidestep_rule_tells_of_the_score_that_it_follows(tmp_path: Path) -> None:
    told = {}
    for name, request in (
        ("sidestep", RankRequest(rule="sidestep", base_rank=16, rank_min=8, rank_max=24)),
        ("density", RankRequest(score="density", base_rank=4, rank_min=1, rank_max=6, rank_multiple=1)),
        ("wg", RankRequest(score="wg", base_rank=4, rank_min=1, rank_max=6, rank_multiple=1)),
    ):
        analysis = analysis_of(tmp_path / name, Flow(), Songs())
        analysis.request = request
        analysis.run(progress=lambda done: None, is_stopped=lambda: False)
        told[name] = findings(analysis, reference_kind=None).leverage
    assert told["sidestep"] == told["density"] != told["wg"]


def test_other_focuses_are_answered_from_the_same_draws(tmp_path: Path) -> None:
    made = {}
    for focus in ("balanced", "texture"):
        analysis = analysis_of(tmp_path / focus, Flow(), Songs(), focus=focus, runs=80)
        analysis.run(progress=lambda done: None, is_stopped=lambda: False)
        made[focus] = findings(analysis, reference_kind=None)
    for aside, direct in zip(made["balanced"].layers, made["texture"].layers, strict=True):
        told, wanted = aside.profiles["texture"].energy, direct.profiles["texture"].energy
        assert told.value == pytest.approx(wanted.value, rel=0.1)
        assert wanted.low < told.value < wanted.high
    assert made["balanced"].effective_draws["texture"] < made["texture"].effective_draws["texture"]
