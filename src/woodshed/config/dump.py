"""Settings as a file that gives the same settings when it is read again."""

from __future__ import annotations

import re

import yaml

from woodshed.jobs.settings import Settings


def literal(text: str) -> str:
    r"""Text that YAML read by Hydra gives back as it stands: `${` would otherwise be an interpolation.

    >>> literal("${HOME}"), literal("a")
    ('\\${HOME}', 'a')
    """
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)


def as_yaml(settings: Settings) -> str:
    """YAML with one line per field, in the order of the model; good for `--config`."""
    plain = {name: literal(value) if isinstance(value, str) else value for name, value in settings.to_json().items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=10_000)
