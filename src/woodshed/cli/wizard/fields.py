"""Questions about single settings, worded by the settings themselves."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import get_args, get_origin

from pydantic import ValidationError

from woodshed.cli.flags import without_none
from woodshed.cli.wizard.questions import UNSET, Kind, Option, Question
from woodshed.errors import UsageError
from woodshed.jobs.complaints import checked
from woodshed.jobs.settings import FilePath, Settings

GO_ON = "go on"
_SPOKEN: Mapping[str, str] = {
    "audio_dir": "Folder of songs",
    "checkpoint_dir": "Checkpoint folder",
    "dataset": "Several data sets, as LANG=MANIFEST",
    "dataset_config_path": "Dataset config (JSON, of stable-audio-tools)",
    "dataset_json": "dataset.json, or a manifest",
    "folder": "Folder to look into",
    "input": "Folder of sounds, or a manifest",
    "manifest": "Manifest of utterances (JSONL)",
    "output": "Folder for the results",
    "output_dir": "Folder for the results",
    "output_path": "Folder for the results",
    "pretrained_name": "Model that encodes",
}
"""Fields that the wizard asks for by itself."""
_LABEL_COLUMNS = 74
"""What a line of a list may take of a terminal of 80 columns."""


def field_question(model: type[Settings], name: str, *, default: str = "", is_needed: bool = False) -> Question:
    """Ask for one field, by its own description.

    Args:
        default: what an empty answer means.
        is_needed: the field has to get a value.
    """
    info = model.model_fields[name]
    kind, options = _kind(model, name)
    can_be_unset = not is_needed and not info.is_required() and info.default in (None, ())
    if can_be_unset and kind == "choice":
        options = (*options, Option(value=UNSET, label="(none)", about="leave it open"))
    help_text = info.description or name
    if can_be_unset and default and kind in ("text", "path"):
        help_text += f" Answer {UNSET} to take the value away."
    if kind == "text" and get_origin(without_none(info.annotation)) is tuple:
        help_text += " Several are parted by spaces, as in a shell."
    return Question(
        key=name,
        text=spoken(name),
        help=help_text,
        kind=kind,
        default=default,
        options=options,
        is_optional=can_be_unset,
    )


def spoken(name: str) -> str:
    """A field as it is asked for.

    >>> spoken("checkpoint_dir"), spoken("num_workers")
    ('Checkpoint folder', 'num-workers')
    """
    return _SPOKEN.get(name, name.replace("_", "-"))


def _kind(model: type[Settings], name: str) -> tuple[Kind, tuple[Option, ...]]:
    kind = without_none(model.model_fields[name].annotation)
    if kind is bool:
        return "yes_no", ()
    if get_origin(kind) is type(None):
        return "text", ()
    choices = get_args(kind) if str(get_origin(kind)) == "typing.Literal" else ()
    if choices:
        return "choice", tuple(Option(value=str(choice), label=str(choice)) for choice in choices)
    is_path = kind in (Path, FilePath) or name == "checkpoint_dir"
    return ("path" if is_path else "text"), ()


def parsed(model: type[Settings], name: str, answer: str) -> object:
    """The value that an answer stands for; None where it takes the value away.

    Raises:
        UsageError: a number is none, quotes do not close, or the field needs a value.
    """
    info = model.model_fields[name]
    kind = without_none(info.annotation)
    if answer in ("", UNSET):
        if info.is_required():
            raise UsageError(f"{spoken(name)} is needed", hint=info.description)
        return None
    if kind is bool:
        return answer == "y"
    if kind in (int, float):
        try:
            return kind(answer)
        except ValueError as error:
            wanted = "whole number" if kind is int else "number"
            raise UsageError(f"{answer!r} is no {wanted}", hint=f"for example {_example(info.default)}") from error
    if get_origin(kind) is tuple:
        try:
            return tuple(shlex.split(answer))
        except ValueError as error:
            raise UsageError(f"{answer!r} cannot be parted into words: {error}", hint="close the quotes") from error
    return answer


def _example(default: object) -> object:
    return default if isinstance(default, (int, float)) and default else 8


def with_value(model: type[Settings], values: Mapping[str, object], name: str, answer: str) -> dict[str, object]:
    """All values with one of them answered.

    What contradicts another value is let through here: that other one may be changed next.

    Raises:
        UsageError: the value itself cannot be.
    """
    value = parsed(model, name, answer)
    changed = {key: other for key, other in values.items() if key != name}
    if value is not None:
        changed[name] = value
    try:
        model.model_validate(changed)
    except ValidationError as error:
        if any(detail["loc"][:1] == (name,) and detail["type"] != "missing" for detail in error.errors()):
            checked(model, {name: value})
    except UsageError:
        pass
    return changed


def shown(value: object) -> str:
    """A value as it is answered.

    >>> shown(True), shown(("a b", "c")), shown(None), shown(43200.0)
    ('y', "'a b' c", '', '43200')
    """
    if isinstance(value, bool):
        return "y" if value else "n"
    if isinstance(value, tuple):
        return shlex.join(map(str, value))
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return "" if value is None else str(value)


def current(model: type[Settings], values: Mapping[str, object], name: str) -> str:
    """What a field is now, as text; empty where it has no value."""
    if name in values:
        return shown(values[name])
    info = model.model_fields[name]
    return "" if info.is_required() else shown(info.get_default())


def all_fields_question(model: type[Settings], values: Mapping[str, object], *, left_out: frozenset[str]) -> Question:
    """The list of all fields with their values, to choose one that is to be changed."""
    options = [Option(value=GO_ON, label="nothing more, go on")]
    width = max(len(name) for name in model.model_fields) + 2
    for section, names in model.sections.items():
        for name in names:
            if name in left_out:
                continue
            line = f"{name.replace('_', '-'):<{width}}{current(model, values, name) or '(none)'}"
            line = line if len(line) <= _LABEL_COLUMNS else line[: _LABEL_COLUMNS - 3] + "..."
            about = model.model_fields[name].description or ""
            options.append(Option(value=name, label=line, about=about, section=section))
    return Question(
        key="all fields",
        text="Change anything else?",
        help="Every setting of this command with its value. Choose one to change it, or go on with all as they are.",
        kind="choice",
        options=tuple(options),
        is_menu=True,
    )
