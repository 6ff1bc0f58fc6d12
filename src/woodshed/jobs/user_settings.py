"""What a person has asked Woodshed to remember on this machine, in one small file of their own."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from woodshed.errors import UsageError
from woodshed.jobs.complaints import closest
from woodshed.store.whole_file import write_whole

CONFIG_DIR = "WOODSHED_CONFIG_DIR"
"""Environment variable: the folder of the file, in place of the system's folder for such files."""
SCHEMA_VERSION = 1
_SECRET = re.compile(r"token|secret|passw|passphrase|credential|api_?key|access_?key|private_?key", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}")


class UserSettings(BaseModel):
    """What commands take where their flag is not given. The description of a field is its documentation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    checkpoint_dir: str | None = Field(
        default=None, min_length=1, description="Checkpoint of the base model: a folder, or a hub name as OWNER/NAME."
    )
    model: str | None = Field(
        default=None, min_length=1, description="Variant in a folder that holds several: base, sft, turbo, xl-base, ..."
    )


def settings_path() -> Path:
    """The file. It need not exist."""
    folder = os.environ.get(CONFIG_DIR)
    return (Path(folder).expanduser() if folder else platformdirs.user_config_path("woodshed")) / "settings.json"


def load() -> UserSettings:
    """What is remembered; nothing, where there is no file.

    Raises:
        UsageError: the file is damaged, or a newer version wrote it.
    """
    path = settings_path()
    hint = f"mend it, or delete it and set anew: {path}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return UserSettings()
    except (OSError, ValueError) as error:
        raise UsageError(f"the settings file {path} cannot be read: {error}", hint=hint) from error
    if not isinstance(content, dict) or not isinstance(content.get("schema_version"), int):
        raise UsageError(f"the settings file {path} is damaged: it has no schema_version", hint=hint)
    if content["schema_version"] != SCHEMA_VERSION:
        raise UsageError(
            f"the settings file {path} is of version {content['schema_version']}, this is for {SCHEMA_VERSION}",
            hint="use the version of Woodshed that wrote it, or delete it",
        )
    try:
        return UserSettings.model_validate({key: content[key] for key in content if key != "schema_version"})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(f"the settings file {path} is damaged: {key}: {first['msg']}", hint=hint) from error


def save(settings: UserSettings) -> Path:
    """Write the file, whole or not at all; gives back its path.

    Raises:
        StoreError: the disk refuses.
        OSError: its folder cannot be made.
    """
    path = settings_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema_version": SCHEMA_VERSION, **settings.model_dump(exclude_none=True)}
    write_whole(path, json.dumps(content, indent=2).encode() + b"\n")
    return path


def changed(settings: UserSettings, key: str, value: str | None) -> UserSettings:
    """The settings with one of them set, or cleared by None.

    A folder is kept with its absolute path: what is remembered holds wherever a command is started.

    Raises:
        UsageError: there is no such setting, the value is none, or it looks like a secret.

    >>> changed(UserSettings(model="base"), "model", None)
    UserSettings(checkpoint_dir=None, model=None)
    """
    _refuse_secrets(key, value)
    name = key.strip("-").replace("-", "_")
    if name not in UserSettings.model_fields:
        meant = closest(name, UserSettings.model_fields)
        raise UsageError(
            f"{key!r} is no setting that is remembered",
            hint=f"did you mean {meant}?" if meant else f"one of {', '.join(UserSettings.model_fields)}",
        )
    if value is not None and not value.strip():
        raise UsageError(f"{name} would be empty", hint=f"woodshed settings clear {name} forgets it")
    if name == "checkpoint_dir" and value is not None:
        value = _checkpoint(value)
    return settings.model_copy(update={name: value})


def _checkpoint(value: str) -> str:
    path = Path(value).expanduser()
    if path.is_dir():
        return str(path.absolute())
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value, flags=re.ASCII):
        raise UsageError(
            f"checkpoint_dir {value} is no folder here, and no hub name either",
            hint="give a folder that is there, or OWNER/NAME",
        )
    return value


def _refuse_secrets(key: str, value: str | None) -> None:
    if not _SECRET.search(key) and not (value and _SECRET_VALUE.search(value)):
        return
    raise UsageError(
        f"{key!r} looks like a secret, and this file is plain text: it is not kept here",
        hint="log in with the service's own tool (hf auth login), or set an environment variable such as HF_TOKEN",
    )
