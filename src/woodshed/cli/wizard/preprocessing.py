"""Preprocessing++ by questions: model, data, focus, ranks, what it will take on this machine, and then `analyze`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from woodshed.cli.commands import Command
from woodshed.cli.consent import CONSENT
from woodshed.cli.wizard.focus_and_ranks import focus_steps, rank_step
from woodshed.cli.wizard.forecast import forecast_steps, summary
from woodshed.cli.wizard.form import MORE, closing_steps, opening_state
from woodshed.cli.wizard.model_and_data import data_steps, model_steps, preset_step
from woodshed.cli.wizard.outside import Outside
from woodshed.cli.wizard.questions import Option, State, Step

TITLE = "Preprocessing++ (auto-targeting + adaptive ranks)"
_MODEL_STEPS = ("backend", "checkpoint_dir", "model", "gates", "turbo", "plan")
_DATA_STEPS = ("dataset_dir", "sounds", "few", "gates", "overwrite", "plan")
_OWN_STEPS = frozenset({"dataset_dir", "from_map", "compare", "backend", "checkpoint_dir"})
"""Fields that are not in the list of all fields: what follows from them is asked too."""
_JUMPS: tuple[tuple[Option, Callable[[State], State]], ...] = (
    (
        Option(value="to model", label="change the model"),
        lambda state: state.without(CONSENT["turbo"]).asked_again(*_MODEL_STEPS),
    ),
    (
        Option(value="to data", label="change the data"),
        lambda state: state.without(CONSENT["overwrite"]).asked_again(*_DATA_STEPS),
    ),
    (
        Option(value="to focus", label="change the focus"),
        lambda state: state.asked_again("timestep_focus", "custom_focus", "plan"),
    ),
    (
        Option(value="to ranks", label="change the ranks"),
        lambda state: state.asked_again("rank", "rank_min", "rank_max", "plan"),
    ),
)


def analyze_steps(command: Command, outside: Outside, *, offered: Mapping[str, str]) -> list[Step]:
    """The flow.

    Args:
        command: `analyze`.
        outside: the world.
        offered: field -> what is offered as its default, from before.
    """
    return [
        preset_step(outside),
        *model_steps(offered),
        *data_steps(outside, offered),
        *focus_steps(offered),
        *(rank_step(name, outside, offered) for name in ("rank", "rank_min", "rank_max")),
        *forecast_steps(outside),
        *closing_steps(
            command,
            outside.perform,
            summary=summary,
            jumps=_JUMPS,
            left_out=_OWN_STEPS,
            script_folder=lambda state: Path(str(state.values.get("dataset_dir", "."))),
        ),
    ]


def start(*, checkpoint_dir: str | None, model: str | None) -> State:
    """What the flow starts from: what is remembered on this machine is not asked again."""
    remembered = {"checkpoint_dir": checkpoint_dir, "model": model if checkpoint_dir else None}
    return opening_state(MORE, **{name: value for name, value in remembered.items() if value is not None})
