"""Preprocessing++, steps 3 and 4: which timesteps count, and how large adapters may be."""

from __future__ import annotations

from collections.abc import Mapping

from woodshed.cli.wizard.fields import current, parsed
from woodshed.cli.wizard.outside import Outside
from woodshed.cli.wizard.questions import Option, Question, State, Step
from woodshed.errors import UsageError
from woodshed.importance.focuses import focus_named
from woodshed.jobs.analyze_settings import AnalyzeSettings

LARGE_RANK = 512
FOCUSES: Mapping[str, str] = {
    "balanced": "as the model trains; for most uses",
    "texture": "0 to 0.4: timbre, sound; style transfer",
    "structure": "0.6 to 1: rhythm, beat grid, composition",
    "uniform": "0 to 1, all alike",
}
CUSTOM = "custom"


def focus_steps(offered: Mapping[str, str]) -> list[Step]:
    """Ask which timesteps count."""

    def focus_of(state: State) -> str:
        return _now("timestep_focus", state, offered)

    def focus(state: State) -> Question:
        options = [Option(value=name, label=f"{name:<11}{about}") for name, about in FOCUSES.items()]
        options.append(Option(value=CUSTOM, label=f"{CUSTOM:<11}LOW,HIGH: a range of your own"))
        now = focus_of(state)
        return Question(
            key="timestep_focus",
            text="Which timesteps count?",
            help="Timestep 1 is noise, 0 is finished sound. What the model settles early (near 1) is structure: "
            "rhythm, beat grid, composition. What it settles late (near 0) is texture: timbre and sound design. "
            "balanced, the distribution that the model is trained with, is recommended for most uses.",
            kind="choice",
            default=now if now in FOCUSES else CUSTOM,
            options=tuple(options),
        )

    def focus_answered(state: State, answer: str) -> State:
        if answer == CUSTOM:
            return state.asked_again("custom_focus").given("timestep_focus")
        return state.given("custom_focus").given("timestep_focus", timestep_focus=answer)

    def custom(state: State) -> Question:
        now = focus_of(state)
        return Question(
            key="custom_focus",
            text="Lowest and highest timestep, as LOW,HIGH",
            help="Two numbers between 0 (finished sound) and 1 (noise), such as 0.2,0.7.",
            default="" if now in FOCUSES else now,
        )

    def custom_answered(state: State, answer: str) -> State:
        focus_named(answer)
        return state.given("custom_focus", timestep_focus=answer)

    return [
        Step(name="timestep_focus", todo=focus, answered=focus_answered),
        Step(name="custom_focus", todo=custom, answered=custom_answered),
    ]


_RANK_TEXTS = {
    "rank": "Base rank: the median to aim at",
    "rank_min": "Least rank of a layer",
    "rank_max": "Largest rank of a layer",
}


def _now(name: str, state: State, offered: Mapping[str, str]) -> str:
    """What a field is, as given, as offered from before, or by default."""
    return (
        offered[name] if name in offered and name not in state.values else current(AnalyzeSettings, state.values, name)
    )


def rank_step(name: str, outside: Outside, offered: Mapping[str, str]) -> Step:
    """Ask for one of the three ranks."""

    def answered(state: State, answer: str) -> State:
        rank = check_rank(name, answer, state)
        if rank > LARGE_RANK:
            outside.say(f"note: ranks above {LARGE_RANK} make large adapters that seldom do better")
        return state.given(name, **{name: rank})

    return Step(
        name=name,
        todo=lambda state: Question(
            key=name,
            text=_RANK_TEXTS[name],
            help=f"{AnalyzeSettings.model_fields[name].description} A layer's adapter of rank r has r x (inputs + "
            "outputs) parameters. least <= base <= largest.",
            default=_rank_default(name, state, offered),
        ),
        answered=answered,
    )


def _rank_default(name: str, state: State, offered: Mapping[str, str]) -> str:
    """What is offered: as it was, but never on the wrong side of the base rank."""
    now = int(_now(name, state, offered))
    if name == "rank":
        return str(now)
    base = int(current(AnalyzeSettings, state.values, "rank"))
    return str(min(now, base) if name == "rank_min" else max(now, base))


def check_rank(name: str, answer: str, state: State) -> int:
    """The rank that is answered.

    Raises:
        UsageError: it is no whole number of 1 or more, or on the wrong side of the base rank.

    >>> check_rank("rank_max", "96", State(values={"rank": 64}))
    96
    """
    rank = parsed(AnalyzeSettings, name, answer)
    base = int(current(AnalyzeSettings, state.values, "rank"))
    if not isinstance(rank, int) or rank < 1:
        raise UsageError(f"{answer!r} is no rank", hint="a whole number, 1 or more")
    if name == "rank_min" and rank > base:
        raise UsageError(f"{rank} is more than the base rank {base}", hint=f"{base} or less; b goes back to the base")
    if name == "rank_max" and rank < base:
        raise UsageError(f"{rank} is less than the base rank {base}", hint=f"{base} or more; b goes back to the base")
    return rank
