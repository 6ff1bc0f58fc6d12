"""What the flow of Preprocessing++ asks of the world: everything that is no question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from woodshed.cli.consent import Gate
from woodshed.cli.wizard.data import Found
from woodshed.cli.wizard.questions import State
from woodshed.jobs.analyze_report import AnalyzePlan
from woodshed.jobs.analyze_settings import AnalyzeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Functions that load, measure, run and print; the questions themselves decide only."""

    look_at: Callable[[Path], Found]
    gates: Callable[[AnalyzeSettings], Sequence[Gate]]
    measure: Callable[[AnalyzeSettings], AnalyzePlan]
    """A dry run on this machine."""
    prepare: Callable[[str, Path, Mapping[str, object]], Path | None]
    """Ask for what a command needs to make data of a folder of sounds, beside what is given already, and run it.

    Gives back its output; None if nothing came of it.
    """
    perform: Callable[[State], State]
    """Run the analysis and show its report."""
    say: Callable[[str], None]
