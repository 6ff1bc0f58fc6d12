"""Settings from three layers: the fields' defaults, then YAML composed by Hydra, then what was given as flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from woodshed.jobs.complaints import SomeSettings, checked


def compose(
    model: type[SomeSettings],
    *,
    flags: Mapping[str, object],
    config: Path | None = None,
    config_dirs: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> SomeSettings:
    """Build the settings of a command.

    Args:
        model: the settings to build.
        flags: values that were given as flags, and no others: they win over YAML.
        config: settings file, plain or with Hydra's `defaults:` list.
        config_dirs: folders with groups, searched before the settings file's folder and our own groups.
        overrides: `key=value` for a setting, `group=name` for a file of a group.

    Raises:
        UsageError: a file, key, group or value does not work; says which and what to try.
    """
    origins = {name: model.flag(name) for name in flags}
    if config is None and not config_dirs and not overrides:
        return checked(model, flags, origins=origins)
    # Here, because importing Hydra takes longer than all the rest of a command line.
    from woodshed.config.hydra_tree import composed_values

    values, found_in = composed_values(model, flags=flags, config=config, config_dirs=config_dirs, overrides=overrides)
    return checked(model, values, origins=found_in | origins)
