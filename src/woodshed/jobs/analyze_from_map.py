"""Ranks given anew from the scores in a map: no model, no data, no time."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from woodshed.errors import UsageError
from woodshed.importance.allocation import Allocation, RankRequest, allocate
from woodshed.importance.belief import Scored, Spectrum
from woodshed.importance.fisher_map import FisherMap, LayerRecord, WoodshedPart
from woodshed.importance.focuses import focus_named
from woodshed.importance.kept_draws import densities, draws_path
from woodshed.importance.layers import LayerShape
from woodshed.importance.map_files import map_at, read_map, schema2_fields, write_map
from woodshed.importance.map_making import allocation_record
from woodshed.jobs.analyze_report import AnalyzeReport
from woodshed.jobs.analyze_settings import AnalyzeSettings


def ranks_from_map(settings: AnalyzeSettings, request: RankRequest, output: Path) -> AnalyzeReport:
    """Read a map, allocate as the settings say, write the result; under `dry_run` it is only reported.

    A focus that is given picks the profile that scores come from; without one it is the map's own.

    Raises:
        StoreError: the map cannot be read or written.
        UsageError: it lacks what is asked for.
    """
    started = time.monotonic()
    assert settings.from_map is not None
    source = map_at(settings.from_map)
    old = read_map(source)
    if old.woodshed is None:
        raise UsageError(
            f"{source} is a map of Side-Step: scores of the layers that it excludes are not in it, nor the "
            "shapes of any",
            hint="measure with woodshed analyze --dataset-dir",
        )
    own = old.woodshed
    focus = settings.timestep_focus if "timestep_focus" in settings.model_fields_set else old.timestep_focus
    shapes = [_shape(layer) for layer in own.layers]
    scores = _scores(settings, own, focus)
    made = allocate(
        request,
        shapes,
        scores,
        spectra={layer.name: Spectrum(layer.spectrum, layer.spectrum_rest) for layer in own.layers if layer.spectrum},
        effective_ranks=_effective_ranks(own),
    )
    new = _with_ranks(old, own, request, made, shapes, focus, settings, scores)
    notes = [] if request.rule != "sidestep" or _effective_ranks(own) else [_NO_EFFECTIVE_RANKS]
    notes += ["intervals and probabilities of ranks are those of the analysis; ranks are new"]
    if settings.dry_run:
        notes.append("dry run: the map was not written")
    else:
        _keep_draws(source, output)
        write_map(output, new)
    return AnalyzeReport(
        output=str(output),
        map=new,
        num_failed=0,
        failures=(),
        elapsed_s=time.monotonic() - started,
        announced_bytes=0,
        peak_extra_bytes=0,
        notes=(*notes, *made.notes),
    )


def _keep_draws(source: Path, output: Path) -> None:
    """The draws go along with the map: the new one is of them, too."""
    old, new = draws_path(source), draws_path(output)
    if old != new and old.is_file():
        new.parent.mkdir(parents=True, exist_ok=True)
        part = new.with_suffix(".part")
        shutil.copyfile(old, part)
        part.replace(new)


def _scores(settings: AnalyzeSettings, own: WoodshedPart, focus: str) -> dict[str, Scored]:
    """Of all layers, from the map's profile of a focus; of another focus from the draws that are kept beside it."""
    if focus in own.layers[0].profiles:
        return {
            layer.name: _scored(layer, focus, settings, str(own.draws.get("timestep_focus", focus)))
            for layer in own.layers
        }
    assert settings.from_map is not None
    if settings.allocator != "sidestep" and settings.score != "density":
        raise UsageError(
            f"the map has no {settings.score} for --timestep-focus {focus}",
            hint=f"it has that of {', '.join(own.layers[0].profiles)}; --score density can be told for any, from the "
            "draws that are kept beside the map",
        )
    return densities(draws_path(map_at(settings.from_map)), own, focus_named(focus))


def _effective_ranks(own: WoodshedPart) -> dict[str, int]:
    return {layer.name: layer.effective_rank for layer in own.layers if layer.effective_rank >= 0}


_NO_EFFECTIVE_RANKS = (
    "the map has no effective ranks of the weights, which an analysis with --allocator sidestep looks at: the rule "
    "went by scores alone"
)


def _scored(layer: LayerRecord, focus: str, settings: AnalyzeSettings, own_focus: str) -> Scored:
    profile = layer.profiles[focus]
    if settings.allocator == "sidestep" or settings.score == "density":
        return Scored(profile.density.value, profile.density.relative_se)
    if settings.score == "spectrum":
        if focus != own_focus:
            raise UsageError(
                f"the map has spectra for --timestep-focus {own_focus} only, not for {focus}",
                hint="--score wg or density, or analyze with this focus",
            )
        if not layer.spectrum:
            raise UsageError("the map has no spectra", hint="--score wg or density, or analyze with mean gradients")
        return Scored(profile.signal.value, profile.signal.relative_se)
    return Scored(profile.wg.value, profile.wg.relative_se)


def _shape(layer: LayerRecord) -> LayerShape:
    return LayerShape(
        name=layer.name,
        category=layer.category,
        d_out=layer.d_out,
        d_in=layer.d_in,
        num_weights=layer.num_weights,
        adaptable=layer.adaptable,
    )


def _with_ranks(
    old: FisherMap,
    own: WoodshedPart,
    request: RankRequest,
    made: Allocation,
    shapes: list[LayerShape],
    focus: str,
    settings: AnalyzeSettings,
    scores: dict[str, Scored],
) -> FisherMap:
    layers = [
        layer.model_copy(
            update={
                "rank": made.ranks.get(layer.name, 0),
                "alpha": made.alphas.get(layer.name, 0.0),
                "rank_probability": {},
                "inclusion_probability": 1.0 if layer.name in made.ranks else 0.0,
            }
        )
        for layer in own.layers
    ]
    record = allocation_record(request, made)
    density = (
        scores
        if focus not in own.layers[0].profiles
        else {
            layer.name: Scored(layer.profiles[focus].density.value, layer.profiles[focus].density.relative_se)
            for layer in own.layers
        }
    )
    fields = schema2_fields(
        shapes,
        made.ranks,
        made.alphas,
        density,
        effective_ranks=_effective_ranks(own),
        as_side_step=request.rule == "sidestep",
    )
    return FisherMap.model_validate(
        old.model_dump()
        | {
            "timestep_focus": focus,
            "timestep_range": [focus_named(focus).low, focus_named(focus).high],
            "base_rank": settings.rank,
            "rank_budget": {"min": settings.rank_min, "max": settings.rank_max},
            **fields,
            "woodshed": own.model_copy(update={"layers": layers, "allocation": record}),
        }
    )
