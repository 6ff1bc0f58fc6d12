"""`woodshed settings`: show or change what is remembered on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from woodshed.jobs.remember_settings import Action, RememberSettings
from woodshed.jobs.user_settings import UserSettings, changed, load, save, settings_path


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsReport:
    """What is remembered now."""

    action: Action
    path: str
    values: Mapping[str, str | None]
    """Setting -> value; None where it is not set."""

    exit_code = 0


def run(settings: RememberSettings) -> SettingsReport:
    """Do what is asked.

    Raises:
        UsageError: no such setting, a value that cannot be, or a damaged file.
        StoreError: the file cannot be written.
    """
    # The path is what a person needs who wants to mend the file, so it is told whatever the file holds.
    remembered = UserSettings() if settings.action == "path" else load()
    if settings.action in ("set", "clear"):
        assert settings.key is not None
        remembered = changed(remembered, settings.key, settings.value)
        save(remembered)
    return SettingsReport(action=settings.action, path=str(settings_path()), values=remembered.model_dump())
