"""A map from an analysis: profiles of every layer for every focus, ranks with their probabilities, what drives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from woodshed.contracts import Json
from woodshed.errors import UsageError
from woodshed.importance.allocation import Allocation, RankRequest
from woodshed.importance.analysis import Analysis, Scoring
from woodshed.importance.contrast import Contrast, contrast, halves_correlation
from woodshed.importance.fisher_map import (
    AllocationRecord,
    Convergence,
    Estimate,
    LayerRecord,
    Profile,
    ReferenceRecord,
)
from woodshed.importance.focus import effective_draws
from woodshed.importance.focuses import Focus
from woodshed.importance.resampling import (
    RESAMPLES,
    Interval,
    linear_interval,
    log_interval,
    mean_intervals,
    relative_errors,
    resampled_means,
    song_counts,
    spearman,
)
from woodshed.importance.scores import (
    Resampled,
    Songs,
    density_without,
    distinct_groups,
    energy_scores,
    leverage,
    songs_of,
)

RANK_RESAMPLES = 200
TRACE_BINS = 10
MAX_LEVERAGE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What an analysis found, as the map says it."""

    layers: list[LayerRecord]
    allocation: Allocation
    allocation_record: AllocationRecord
    convergence: Convergence
    effective_draws: dict[str, float]
    leverage: list[dict[str, Json]]
    halves_correlation: float
    trace: dict[str, Json]
    reference: ReferenceRecord | None
    density: Float64[np.ndarray, " layer"]
    density_std: Float64[np.ndarray, " layer"]


def findings(analysis: Analysis, *, reference_kind: str | None) -> Findings:
    """All that is to be said of a finished analysis."""
    scoring = analysis.scoring(resamples=RESAMPLES)
    allocation = analysis.allocation(scoring)
    score = analysis.request.followed
    compared = _compared(analysis)
    profiles = {focus.name: _profiles(analysis, scoring, focus) for focus in analysis.timesteps.focuses}
    if compared is not None:
        asked = profiles[analysis.timesteps.asked.name]
        profiles[analysis.timesteps.asked.name] = [
            profile.model_copy(update={"contrast": value})
            for profile, value in zip(asked, compared.layers.tolist(), strict=True)
        ]
    halves = _halves(analysis, score)
    scored = scoring.of("wg" if score == "spectrum" else score)
    return Findings(
        layers=_layers(analysis, scoring, allocation, profiles, scored),
        allocation=allocation,
        allocation_record=allocation_record(analysis.request, allocation),
        convergence=_convergence(analysis),
        effective_draws={
            focus.name: effective_draws(analysis.timesteps.weights(analysis.measurer.table.timesteps, focus))
            for focus in analysis.timesteps.focuses
        },
        leverage=_leverage(analysis, scoring, scored, score),
        halves_correlation=halves,
        trace=_trace(analysis),
        reference=None
        if compared is None
        else _reference(analysis, scored, compared, reference_kind or "", score, ceiling=halves),
        density=scoring.density.values,
        density_std=scoring.density.resamples.std(axis=0),
    )


def _compared(analysis: Analysis) -> Contrast | None:
    if analysis.reference is None:
        return None
    return contrast(
        analysis.entries,
        analysis.measurer.table,
        analysis.reference.table,
        analysis.timesteps,
        seed=analysis.plan.seed,
    )


def _profiles(analysis: Analysis, scoring: Scoring, focus: Focus) -> list[Profile]:
    """Of all layers under one focus; a focus that few draws speak of has wide intervals."""
    table = analysis.measurer.table
    if focus == analysis.timesteps.asked:
        energy, wg, signal, songs = scoring.energy, scoring.wg, scoring.signal, scoring.songs
        counts = scoring.counts
    else:
        songs = songs_of(table, analysis.timesteps, focus)
        if not songs.totals.sum() > 0:
            return []
        counts = song_counts(len(songs.items), seed=analysis.plan.seed, resamples=RESAMPLES)
        energy = energy_scores(table.energy, songs, counts)
        wg = analysis.entries.wg(table, songs, counts)
        signal = analysis.entries.signal(table, songs, counts)
    num_songs = int((songs.totals > 0).sum())
    sensitivity = _sensitivity(analysis, songs)
    weights = [shape.num_weights for shape in analysis.shapes]
    errors = {name: relative_errors(made.resamples, num_songs) for name, made in (("energy", energy), ("wg", wg))}
    of_energies = mean_intervals(counts, songs.members @ table.energy.astype(np.float64), songs.totals)
    profiles = []
    for layer, size in enumerate(weights):
        of_energy = _estimate(of_energies[layer], errors["energy"][layer])
        of_signal = linear_interval(float(signal.values[layer]), signal.resamples[:, layer], num_songs)
        profiles.append(
            Profile(
                energy=of_energy,
                density=_scaled(of_energy, 1 / size),
                signal=_estimate(of_signal, _relative(of_signal, signal.resamples[:, layer])),
                noise=float(energy.values[layer] - np.nan_to_num(signal.values[layer])),
                wg=_estimate(
                    log_interval(float(wg.values[layer]), wg.resamples[:, layer], num_songs), errors["wg"][layer]
                ),
                sensitivity=None if sensitivity is None else _scaled(sensitivity[layer], 1 / size),
            )
        )
    return profiles


def _sensitivity(analysis: Analysis, songs: Songs) -> list[Estimate] | None:
    table = analysis.measurer.table
    rows, values = table.sensitivity
    if not len(rows):
        return None
    members = songs.members[:, rows]
    seen = members.sum(axis=1) > 0
    if not seen.any():
        return None
    sums, totals = members[seen] @ values.astype(np.float64), members[seen].sum(axis=1)
    num_songs = len(totals)
    counts = song_counts(num_songs, seed=analysis.plan.seed)
    errors = relative_errors(resampled_means(counts, sums, totals), num_songs)
    intervals = mean_intervals(counts, sums, totals)
    return [_estimate(interval, error) for interval, error in zip(intervals, errors.tolist(), strict=True)]


def _layers(
    analysis: Analysis,
    scoring: Scoring,
    allocation: Allocation,
    profiles: Mapping[str, Sequence[Profile]],
    scored: Resampled,
) -> list[LayerRecord]:
    ranks, inclusion = _rank_probabilities(analysis, scoring, allocation)
    groups = distinct_groups(scored.values, relative_errors(scored.resamples, len(scoring.songs.items)))
    made = []
    for layer, shape in enumerate(analysis.shapes):
        spectrum = None if scoring.spectra is None else scoring.spectra[layer]
        made.append(
            LayerRecord(
                name=shape.name,
                category=shape.category,
                d_out=shape.d_out,
                d_in=shape.d_in,
                num_weights=shape.num_weights,
                adaptable=shape.adaptable,
                profiles={name: of_all[layer] for name, of_all in profiles.items() if of_all},
                spectrum=[] if spectrum is None else list(spectrum.values),
                spectrum_rest=0.0 if spectrum is None else spectrum.rest,
                rank=allocation.ranks.get(shape.name, 0),
                alpha=allocation.alphas.get(shape.name, 0.0),
                effective_rank=analysis.effective_ranks.get(shape.name, -1),
                rank_probability=ranks[shape.name],
                inclusion_probability=inclusion[shape.name],
                group=int(groups[layer]),
            )
        )
    return made


def _rank_probabilities(
    analysis: Analysis, scoring: Scoring, allocation: Allocation
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Rank -> share of resamples of the songs that give it, and share in which the layer gets an adapter at all."""
    tally: dict[str, dict[int, int]] = {shape.name: {} for shape in analysis.shapes}
    resamples = scoring.of(analysis.request.followed).resamples[:RANK_RESAMPLES]
    usable = resamples[np.isfinite(resamples).all(axis=1)]
    for values in usable:
        found = analysis.allocation(scoring, values=values.tolist(), spread=allocation.spread).ranks
        for name, seen in tally.items():
            rank = found.get(name, 0)
            seen[rank] = seen.get(rank, 0) + 1
    total = max(1, len(usable))
    return (
        {name: {str(rank): count / total for rank, count in sorted(seen.items())} for name, seen in tally.items()},
        {name: 1 - seen.get(0, 0) / total for name, seen in tally.items()},
    )


def allocation_record(request: RankRequest, allocation: Allocation) -> AllocationRecord:
    """What a map says of how its ranks were given."""
    return AllocationRecord(
        rule=request.rule,
        score=request.followed,
        base_rank=request.base_rank,
        budget_params=request.budget_params,
        rank_min=request.rank_min,
        rank_max=request.rank_max,
        rank_multiple=request.rank_multiple,
        alpha_ratio=request.alpha_ratio,
        coverage=request.share,
        floors=dict(request.floors),
        seed=request.seed,
        num_params=allocation.num_params,
        median_rank=allocation.median_rank,
        shrinkage=allocation.shrinkage,
        notes=list(allocation.notes),
    )


def _convergence(analysis: Analysis) -> Convergence:
    checks = analysis.checks
    return Convergence(
        reason=analysis.reason,
        num_passes=sum(each.table.num_passes for each in analysis.measurers),
        num_draws=len(analysis.measurer.table),
        num_checks=len(checks.moved),
        patience=checks.patience,
        moved=list(checks.moved),
        relative_se=list(checks.errors),
        max_relative_se=checks.max_relative_error,
    )


def _leverage(analysis: Analysis, scoring: Scoring, scored: Resampled, score: str) -> list[dict[str, Json]]:
    table = analysis.measurer.table
    if score == "density":
        weights = np.array([shape.num_weights for shape in analysis.shapes])
        without = density_without(table.energy, scoring.songs) / weights
        shares = leverage(scored.values, without)
    else:
        shares = leverage(*analysis.entries.rest_without(table, scoring.songs))
    order = np.argsort(-shares, kind="stable")[:MAX_LEVERAGE]
    names = analysis.measurer.examples
    return [{"id": names.name(int(scoring.songs.items[song])), "share": float(shares[song])} for song in order]


def _halves(analysis: Analysis, score: str) -> float:
    return halves_correlation(
        analysis.entries,
        analysis.measurer.table,
        analysis.timesteps,
        "density" if score == "density" else "wg",
        analysis.measurer.table.energy.astype(np.float64),
        seed=analysis.plan.seed,
    )


def _trace(analysis: Analysis) -> dict[str, Json]:
    """Mean energy of each layer in bins of the timestep; null where no draw fell."""
    table = analysis.measurer.table
    if not analysis.timesteps.has_timesteps:
        return {}
    edges = np.linspace(0, 1, TRACE_BINS + 1)
    bins = np.clip(np.digitize(np.array(table.timesteps, np.float64), edges) - 1, 0, TRACE_BINS - 1)
    energy = table.energy.astype(np.float64)
    means = [energy[bins == place].mean(axis=0) if (bins == place).any() else None for place in range(TRACE_BINS)]
    return {
        "edges": edges.tolist(),
        "energy": {
            shape.name: [None if mean is None else float(mean[layer]) for mean in means]
            for layer, shape in enumerate(analysis.shapes)
        },
    }


def _reference(
    analysis: Analysis, scored: Resampled, compared: Contrast, kind: str, score: str, *, ceiling: float
) -> ReferenceRecord:
    assert analysis.reference is not None
    table = analysis.reference.table
    if not len(table):
        raise UsageError(
            "not one song of the reference can be looked at, so there is nothing to hold the data against",
            hint="another --reference, or none: what is measured of the data is kept",
        )
    songs = songs_of(table, analysis.timesteps, analysis.timesteps.asked)
    everyone = np.ones((1, len(songs.items)))
    if score == "density":
        weights = np.array([shape.num_weights for shape in analysis.shapes])
        of_reference = energy_scores(table.energy, songs, everyone).values / weights
    else:
        of_reference = analysis.entries.wg(table, songs, everyone).values
    return ReferenceRecord(
        kind=kind,
        num_items=len(songs.items),
        rank_correlation=spearman(scored.values, of_reference),
        ceiling=ceiling,
        p_value=compared.p_value,
        is_specific=compared.is_specific,
    )


def _estimate(interval: Interval, relative_se: float) -> Estimate:
    value = interval.value if np.isfinite(interval.value) else 0.0
    error = float(relative_se) if not np.isnan(relative_se) else float("inf")
    return Estimate(value=value, low=interval.low, high=interval.high, relative_se=error)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    ends = {"value": estimate.value * factor, "low": estimate.low * factor, "high": estimate.high * factor}
    return estimate.model_copy(update=ends)


def _relative(interval: Interval, resampled: Float64[np.ndarray, " resample"]) -> float:
    usable = resampled[np.isfinite(resampled)]
    return float(usable.std() / abs(interval.value)) if usable.size and interval.value else float("inf")
