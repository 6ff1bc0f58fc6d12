"""An analysis from its first pass to its last: measure, look at the ranks that follow, stop when they stay put."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from woodshed.contracts import Json
from woodshed.importance.allocation import Allocation, RankRequest, allocate
from woodshed.importance.belief import Scored, Spectrum
from woodshed.importance.convergence import CHECK_DRAWS, Checks, Reason
from woodshed.importance.focus import Timesteps
from woodshed.importance.layers import LayerShape
from woodshed.importance.looks import LookPlan, looks
from woodshed.importance.measuring import Measurer, exact_wg, spectra
from woodshed.importance.resampling import draw_error, relative_errors, song_counts
from woodshed.importance.scores import EntryScores, Resampled, Songs, energy_scores, songs_of
from woodshed.importance.sidestep_rule import effective_rank

CHECK_RESAMPLES = 50
COMMIT_EVERY_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Scores of all layers for the focus that was asked for, and what ranks need beside them."""

    songs: Songs
    counts: Float64[np.ndarray, "resample song"]
    energy: Resampled
    density: Resampled
    wg: Resampled
    """Exact where whole mean gradients are kept; then resamples are scaled to it."""
    signal: Resampled
    spectra: list[Spectrum] | None

    def of(self, score: str) -> Resampled:
        """What a score's standard errors come from; for the spectrum it is the signal that is spread over it."""
        return {"wg": self.wg, "density": self.density, "spectrum": self.signal}[score]


class Analysis:
    """One measurement, with or without a reference beside it.

    Args:
        measurer: of the data.
        reference: of what the data is held against; it makes the same looks.
        request: the ranks that are to stay put.
    """

    def __init__(
        self,
        measurer: Measurer,
        reference: Measurer | None,
        *,
        plan: LookPlan,
        timesteps: Timesteps,
        request: RankRequest,
        patience: int,
        max_relative_error: float,
    ) -> None:
        self.measurer, self.reference, self.plan, self.timesteps = measurer, reference, plan, timesteps
        self.request = request
        shapes = measurer.shapes
        self.checks = Checks(shapes, patience, max_relative_error)
        weights = [
            module.weight.detach().reshape(-1)[places].float().abs().cpu().numpy()
            for module, places in zip(measurer.model.layers().values(), measurer.places, strict=True)
            if isinstance(module.weight, Tensor)
        ]
        self.entries = EntryScores(shapes, weights)
        self.effective_ranks = _effective_ranks(measurer) if request.rule == "sidestep" else {}
        self.is_stable = self._resumed()
        if reference is not None:
            reference.table.cut(measurer.table.num_looks)

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        return self.measurer.shapes

    def run(self, *, progress: Callable[[int], None], is_stopped: Callable[[], bool]) -> bool:
        """Measure until ranks are stable or looks are used up; False if it was stopped before.

        What was measured is on disk then, and the same analysis goes on from there.
        """
        table = self.measurer.table
        committed, took_s = time.monotonic(), 0.0
        with ExitStack() as watched:
            for measurer in self.measurers:
                watched.enter_context(measurer.probe.attached())
            planned = islice(looks(self.plan, self.timesteps), table.num_looks, None)
            while not self.is_stable and (group := list(islice(planned, CHECK_DRAWS))):
                if is_stopped():
                    self._commit()
                    return False
                self.measurer.measure(group)
                if self.reference is not None:
                    # Songs without a partner are not held against anything.
                    paired = [look for look in group if look.item < len(self.reference.examples)]
                    self.reference.measure(paired)
                for each in self.measurers:
                    each.table.num_looks += len(group)
                self._check()
                progress(table.num_looks)
                # What is written may be large: a twentieth of the time at most goes into writing it.
                if time.monotonic() - committed > max(COMMIT_EVERY_S, 20 * took_s):
                    started = time.monotonic()
                    self._commit()
                    committed = time.monotonic()
                    took_s = committed - started
        self._commit()
        return True

    @property
    def measurers(self) -> list[Measurer]:
        """Of the data, and of the reference where there is one."""
        return [self.measurer] if self.reference is None else [self.measurer, self.reference]

    @property
    def reason(self) -> Reason:
        if self.plan.is_repetitive and not self.is_stable:
            return "fixed"
        return self.checks.reason(is_stable=self.is_stable, is_counted=self.plan.is_counted)

    def scoring(self, *, resamples: int, with_signal: bool = True, with_spectra: bool = True) -> Scoring:
        """Scores of all draws so far."""
        table = self.measurer.table
        songs = songs_of(table, self.timesteps, self.timesteps.asked)
        counts = song_counts(len(songs.items), seed=self.plan.seed, resamples=resamples)
        energy = energy_scores(table.energy, songs, counts)
        weights = np.array([shape.num_weights for shape in self.shapes])
        exact = exact_wg(self.measurer, total_weight=float(songs.totals.sum()))
        wg = self.entries.wg(table, songs, counts, exact=None if exact is None else np.array(exact))
        missing = np.full((resamples + 3, len(weights)), np.nan)
        nothing = Resampled(missing[0], missing[3:], missing[1:3])
        signal = self.entries.signal(table, songs, counts) if with_signal else nothing
        made = None
        if with_spectra:
            energies = self.entries.raw(table, songs).tolist()
            made = spectra(self.measurer, total_weight=float(songs.totals.sum()), energies=energies)
        return Scoring(
            songs=songs,
            counts=counts,
            energy=energy,
            density=Resampled(energy.values / weights, energy.resamples / weights, energy.halves / weights),
            wg=wg,
            signal=signal,
            spectra=made,
        )

    def allocation(
        self, scoring: Scoring, *, values: Sequence[float] | None = None, spread: float | None = None
    ) -> Allocation:
        """The ranks that follow from scores.

        Args:
            values: of a resample, in place of the scores themselves.
            spread: as `allocate` takes it.
        """
        resampled = scoring.of(self.request.followed)
        errors = relative_errors(resampled.resamples, len(scoring.songs.items))
        names = [shape.name for shape in self.shapes]
        scored = {
            name: Scored(float(value), float(error))
            for name, value, error in zip(names, resampled.values if values is None else values, errors, strict=True)
        }
        known = dict(zip(names, scoring.spectra or (), strict=False))
        return allocate(
            self.request, self.shapes, scored, spectra=known, effective_ranks=self.effective_ranks, spread=spread
        )

    def _check(self) -> None:
        if len(set(self.measurer.table.items)) < 2:
            return
        is_spectral = self.request.score == "spectrum"
        scoring = self.scoring(resamples=CHECK_RESAMPLES, with_signal=is_spectral, with_spectra=is_spectral)
        halves = scoring.of(self.request.followed).halves
        self.is_stable = self.checks.add(self.allocation(scoring).ranks, draw_error(halves))

    def _commit(self) -> None:
        table = self.measurer.table
        table.notes = {
            "request": self._decision(),
            "ranks": [dict(ranks) for ranks in self.checks.ranks],
            "moved": self.checks.moved,
            "errors": [error if np.isfinite(error) else None for error in self.checks.errors],
            "is_stable": self.is_stable,
            "is_batched": self.measurer.is_batched,
            "failures": [[[song, why] for song, why in each.failures.items()] for each in self.measurers],
        }
        # The reference first: where the data's table is behind, the reference's is cut to its length.
        if self.reference is not None:
            self.reference.table.commit()
        table.commit()

    def _resumed(self) -> bool:
        """Take over the checks of an earlier run that was after the same ranks."""
        notes = self.measurer.table.notes
        for each, failures in zip(self.measurers, notes.get("failures", ()), strict=False):
            each.failures |= {int(song): str(why) for song, why in failures}
        if "is_batched" in notes:
            for each in self.measurers:
                each.decided(is_batched=bool(notes["is_batched"]))
        if notes.get("request") != self._decision():
            return False
        self.checks.ranks = list(notes["ranks"])
        self.checks.moved = list(notes["moved"])
        self.checks.errors = [np.inf if error is None else error for error in notes["errors"]]
        return bool(notes["is_stable"])

    def _decision(self) -> Json:
        asked = asdict(self.request) | {"floors": dict(self.request.floors)}
        return asked | {"patience": self.checks.patience, "max_relative_error": self.checks.max_relative_error}


def _effective_ranks(measurer: Measurer) -> dict[str, int]:
    return {
        name: effective_rank(module.weight.detach())
        for name, module in measurer.model.layers().items()
        if isinstance(module.weight, Tensor) and module.weight.ndim == 2
    }
