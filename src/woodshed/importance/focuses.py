"""Which timesteps count: focuses by name, or by two bounds. Needs no torch, as command lines are checked with it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from woodshed.errors import UsageError

BALANCED = "balanced"
RANGES = {"texture": (0.0, 0.4), "structure": (0.6, 1.0), "uniform": (0.0, 1.0)}
"""Named focuses beside `balanced`, which is the model's own training distribution: uniform between two timesteps."""
FOCUS_NAMES = (BALANCED, *RANGES)


@dataclass(frozen=True, slots=True)
class Focus:
    """A distribution over timesteps."""

    name: str
    low: float
    """Bounds that count; for `balanced` 0 and 1."""
    high: float

    @property
    def is_balanced(self) -> bool:
        return self.name == BALANCED


def focus_named(name: str) -> Focus:
    """A focus by its name, or by `LOW,HIGH`.

    Raises:
        UsageError: there is no such focus, or its bounds are none.

    >>> focus_named("texture"), focus_named("0.1,0.5").high
    (Focus(name='texture', low=0.0, high=0.4), 0.5)
    """
    if name == BALANCED:
        return Focus(name, 0.0, 1.0)
    if name in RANGES:
        return Focus(name, *RANGES[name])
    numbers = re.fullmatch(r"\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*", name)
    low, high = (float(numbers[1]), float(numbers[2])) if numbers else (1.0, 0.0)
    if not 0 <= low < high <= 1:
        raise UsageError(
            f"--timestep-focus {name} is no focus",
            hint=f"one of {', '.join(FOCUS_NAMES)}, or two timesteps LOW,HIGH with 0 <= LOW < HIGH <= 1",
        )
    return Focus(name, low, high)
