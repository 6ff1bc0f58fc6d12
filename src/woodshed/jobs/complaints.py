"""How a setting that is refused is told to the person who gave it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from woodshed.errors import UsageError
from woodshed.jobs.settings import Settings

SomeSettings = TypeVar("SomeSettings", bound=Settings)

_COMPLAINTS: Mapping[str, str] = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be one of {expected}",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "path_type": "must be a path",
    "is_instance_of": "must be a path",
    "tuple_type": "must be a list",
}


def checked(
    model: type[SomeSettings], values: Mapping[str, object], *, origins: Mapping[str, str] | None = None
) -> SomeSettings:
    """Build settings, with errors that say where the value came from.

    Args:
        model: the settings to build.
        values: one value per field.
        origins: where each value came from, such as `--seed` or `seed in run.yaml`; the field's flag otherwise.

    Raises:
        UsageError: a value is missing, unknown, of the wrong kind or out of bounds, or does not go with another.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        details = error.errors(include_url=False)
    told = [_complaint(model, detail, origins or {}) for detail in details]
    # Hints come apart from their messages, so only a lone complaint, or the first, can carry one.
    raise UsageError("; ".join(message for message, _ in told), hint=told[0][1])


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant.

    >>> closest("bach-size", ["batch_size", "seed"])
    'batch_size'
    >>> closest("xyzzy", ["batch_size", "seed"]) is None
    True
    """
    plain, words = word.strip("-").replace("-", "_"), list(known)
    begun = [other for other in words if other.startswith(plain) and len(plain) > 2]
    found = begun or difflib.get_close_matches(plain, words, n=1, cutoff=0.6)
    return found[0] if found else None


def _complaint(model: type[Settings], detail: ErrorDetails, origins: Mapping[str, str]) -> tuple[str, str | None]:
    field = str(detail["loc"][0])
    where = origins.get(field, model.flag(field))
    kind: str = detail["type"]
    context: dict[str, Any] = detail.get("ctx", {})
    if kind == "missing":
        named = field.upper() if field == model.positional else f"{model.flag(field)} {metavar(model, field)}"
        return f"{where} is missing", f"add {named}"
    if kind == "extra_forbidden":
        meant = closest(field, model.model_fields)
        return f"unknown setting {field!r}", f"did you mean {meant}?" if meant else None
    template = _COMPLAINTS.get(kind)
    wish = template.format(**context) if template else detail["msg"]
    return f"{where} is {detail['input']!r}, but {wish}", None


def metavar(model: type[Settings], field: str) -> str:
    """What stands for the value of a field in help texts.

    >>> from woodshed.jobs.settings import EncodeSettings
    >>> metavar(EncodeSettings, "output_path"), metavar(EncodeSettings, "seed")
    ('PATH', 'N')
    """
    kinds = str(model.model_fields[field].annotation)
    for part, name in (("Path", "PATH"), ("int", "N"), ("float", "X")):
        if part in kinds:
            return name
    return "TEXT"
