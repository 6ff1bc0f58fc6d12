"""Ranks and focus out of a preset of another tool or a settings file of ours; nothing else is taken from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from woodshed.errors import UsageError
from woodshed.importance.focuses import focus_named
from woodshed.jobs.analyze_settings import AnalyzeSettings

TAKEN = ("rank", "rank_min", "rank_max", "timestep_focus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What a file has to say here."""

    path: str
    rank: int | None = None
    rank_min: int | None = None
    rank_max: int | None = None
    timestep_focus: str | None = None
    num_left_out: int = 0
    """Settings in the file that this flow has no use for."""

    @property
    def values(self) -> dict[str, object]:
        """Field -> value, of those that the file has."""
        return {name: value for name in TAKEN if (value := getattr(self, name)) is not None}

    def told(self) -> str:
        """What was taken, in one sentence."""
        taken = ", ".join(f"{AnalyzeSettings.flag(name)} {value}" for name, value in self.values.items())
        left = f"; {self.num_left_out} other settings are left alone" if self.num_left_out else ""
        return f"taken from {self.path}: {taken or 'nothing, as it has neither ranks nor a focus'}{left}"


def read_preset(path: Path) -> Preset:
    """Read a JSON or YAML file of settings, one level deep. Numbers may be written as text.

    Raises:
        UsageError: there is no such file, it holds no settings, or a rank or focus in it cannot be.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="give a JSON or YAML file") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no settings by name", hint="give a preset, or a settings file of Woodshed")
    focus = content.get("timestep_focus")
    if focus is not None:
        focus_named(str(focus))
    return Preset(
        path=str(path),
        rank=_rank(content.get("rank"), "rank", path),
        rank_min=_rank(content.get("rank_min"), "rank_min", path),
        rank_max=_rank(content.get("rank_max"), "rank_max", path),
        timestep_focus=None if focus is None else str(focus),
        num_left_out=len(content.keys() - set(TAKEN)),
    )


def _rank(value: object, name: str, path: Path) -> int | None:
    if value is None:
        return None
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{name} in {path} is {value!r}, and a rank is a whole number of 1 or more")
    return int(text)
