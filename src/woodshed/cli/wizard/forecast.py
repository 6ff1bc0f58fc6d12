"""Preprocessing++, step 5: what has to be agreed to, what it takes on this machine, and the summary."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path

from woodshed.cli.consent import CONSENT
from woodshed.cli.quantities import audio_length, clock, size
from woodshed.cli.wizard.focus_and_ranks import FOCUSES
from woodshed.cli.wizard.form import MORE
from woodshed.cli.wizard.outside import Outside
from woodshed.cli.wizard.questions import Question, State, Step, Work
from woodshed.errors import WoodshedError
from woodshed.jobs.analyze_report import AnalyzePlan
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.complaints import checked

_NOT_MEASURED = frozenset({"rank", "rank_min", "rank_max", "timestep_focus", "yes"})
"""Fields that change neither time nor memory."""
COLUMNS = 78
ADVICE = (
    "Adapters that follow a map adapt fast, and can overfit: lower the learning rate (from 1e-4 to 5e-5, say), "
    "and listen to samples early."
)


def forecast_steps(outside: Outside) -> list[Step]:
    """Ask for what the job would stop at, and measure; not while one setting after another is being changed."""
    return [
        Step(
            name="gates", applies=_is_complete, todo=lambda state: Work(text="", do=lambda: _with_gates(state, outside))
        ),
        _turbo_step(),
        _overwrite_step(),
        Step(
            name="plan", applies=_is_complete, todo=lambda state: Work(text="", do=lambda: _with_plan(state, outside))
        ),
    ]


def _is_complete(state: State) -> bool:
    return state.editing is None and MORE in state.settled


def _settings(state: State) -> AnalyzeSettings:
    return checked(AnalyzeSettings, state.values)


def _with_gates(state: State, outside: Outside) -> State:
    kinds = frozenset(gate.kind for gate in outside.gates(_settings(state)))
    state = dataclasses.replace(state.given("gates"), gates=kinds)
    return state.asked_again("turbo", "overwrite")


def _turbo_step() -> Step:
    def answered(state: State, answer: str) -> State:
        if answer == "y":
            return state.given("turbo", accept_turbo=True)
        return state.without("model").asked_again("checkpoint_dir", "model", "gates", "plan")

    return Step(
        name="turbo",
        applies=lambda state: _is_complete(state) and "turbo" in state.gates and not state.values.get(CONSENT["turbo"]),
        todo=lambda _: Question(
            key="turbo",
            text="Go on with Turbo all the same?",
            help="Turbo models make sound in few steps without guidance, and training can undo that: the loss spikes "
            "and the output turns to noise. n goes back to the choice of the model.",
            kind="yes_no",
            default="n",
            preface="Turbo is fragile: adapters that follow a map can destabilise it. Base is recommended.",
            is_menu=True,
        ),
        answered=answered,
    )


def _overwrite_step() -> Step:
    def answered(state: State, answer: str) -> State:
        if answer == "y":
            return state.given("overwrite", yes=True)
        return dataclasses.replace(state, editing="output")

    return Step(
        name="overwrite",
        applies=lambda state: _is_complete(state)
        and "overwrite" in state.gates
        and not state.values.get(CONSENT["overwrite"]),
        todo=lambda state: Question(
            key="overwrite",
            text="Write over it?",
            help="n asks for another file. Nothing is written before the analysis is through.",
            kind="yes_no",
            default="n",
            preface=f"{_output(state)} is there already: an earlier map of this data.",
            is_menu=True,
        ),
        answered=answered,
    )  # fmt: skip


def _output(state: State) -> str:
    settings = _settings(state)
    return str(settings.output or Path(str(settings.dataset_dir)) / "fisher_map.json")


def _with_plan(state: State, outside: Outside) -> State:
    values = {name: value for name, value in state.values.items() if name not in _NOT_MEASURED}
    try:
        # Nothing is written or trained by measuring, so it needs no consent.
        plan = outside.measure(checked(AnalyzeSettings, {**values, "dry_run": True, "yes": True, "accept_turbo": True}))
    except WoodshedError as error:
        outside.say(f"this will not do as it is: {error.message}" + (f"\n  try: {error.hint}" if error.hint else ""))
        return dataclasses.replace(state.given("plan"), plan=None, trouble=error.message)
    state = dataclasses.replace(state.given("plan"), plan=plan, trouble="")
    if plan.fragile is None or state.values.get(CONSENT["turbo"]):
        return state
    # The checkpoint says what its name did not.
    return dataclasses.replace(state.asked_again("turbo"), gates=state.gates | {"turbo"})


def summary(state: State) -> str:
    """What is about to be done, and what it takes, for 80 columns."""
    settings, plan, found = _settings(state), state.plan, state.found
    facts = {
        "data": f"{found.told} in {settings.dataset_dir}" if found else str(settings.dataset_dir),
        "model": _model_told(settings, plan),
        "focus": f"{settings.timestep_focus}: {FOCUSES.get(settings.timestep_focus, 'these timesteps only')}",
        "ranks": f"{settings.rank} as the median, {settings.rank_min} at least, {settings.rank_max} at most",
        "map": (plan.output if plan else _output(state)) + (" (written over)" if settings.yes else ""),
    }
    if settings.budget is not None:
        facts["ranks"] = f"{settings.budget:,} parameters in all, {settings.rank_min} to {settings.rank_max} a layer"
    if plan is not None:
        length = f" ({audio_length(plan.audio_s)})" if plan.audio_s else ""
        facts["data"] = f"{plan.num_items} songs{length} in {settings.dataset_dir}"
        facts["time"] = (
            f"{clock(plan.shortest_s)} to {clock(plan.longest_s)} on this machine ({plan.s_per_draw:.2g} s a draw, "
            f"{plan.fewest_draws} to {plan.most_draws} draws)"
        )
        disk = f", {size(plan.disk_bytes)} on disk" if plan.disk_bytes else ""
        facts["memory"] = f"{size(plan.model_bytes)} for the model, {size(plan.extra_bytes)} for measuring{disk}"
    lines = [
        textwrap.fill(f"  {name:<8}{value}", COLUMNS, subsequent_indent=" " * 10, break_on_hyphens=False)
        for name, value in facts.items()
    ]
    return "\n".join(["", *lines, ADVICE, ""])


def _model_told(settings: AnalyzeSettings, plan: AnalyzePlan | None) -> str:
    variant = plan.variant if plan else settings.model or ""
    layers = f", {plan.num_layers} layers" if plan else ""
    where = f" in {settings.checkpoint_dir}" if settings.checkpoint_dir else ""
    return f"{settings.backend} {variant}{where}{layers}".replace("  ", " ")
