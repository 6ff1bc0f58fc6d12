"""What a folder remembers of the run that made it: enough to decode it, to verify it and to look at it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import xxhash

from woodshed.contracts import Json
from woodshed.errors import StoreError, UsageError
from woodshed.jobs.complaints import SomeSettings, checked
from woodshed.jobs.flag_words import flag_words
from woodshed.jobs.settings import DecodeSettings, EncodeSettings, Settings
from woodshed.store.reader import Reader
from woodshed.store.store import Store

DETAILS = "details.json"
DETAILS_DIGEST = "details.xxh3_64"
"""Beside the log: what `DETAILS` must hash to."""
SETTINGS = "settings.json"
"""The settings with absolute paths, for this machine; `details.json` is what travels."""
SPEECH_KIND = "speech"
"""`RecordSpec.kind` of what `woodshed speech` makes."""
SONGS = "songs"
"""Key in the fingerprint of what `woodshed songs` makes."""
_FOR_ONE_RUN = ("command", "dry_run", "limit_batches", "max_samples", "max_songs", "retry_failed")
"""What `SETTINGS` may hold and is no setting of the folder."""

_FOLDERS_OR_NAMES = ("pretrained_name", "checkpoint_dir")
"""Settings that are a folder on this machine, or else a name that is true everywhere."""

Command: TypeAlias = Literal["encode", "speech", "songs"]


def made_by(reader: Reader) -> Command:
    """The command that made a folder."""
    if reader.spec["kind"] == SPEECH_KIND:
        return "speech"
    return "songs" if SONGS in reader.fingerprint else "encode"


def settings_to_json(settings: Settings, *, command: Command | None = None) -> bytes:
    """The content of `SETTINGS`: with absolute paths, for this machine.

    Args:
        command: written down where the settings alone do not tell.
    """
    plain = settings.to_json() if command is None else {"command": command, **settings.to_json()}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Path) or (name in _FOLDERS_OR_NAMES and value is not None and Path(value).is_dir()):
            plain[name] = str(Path(value).absolute())
    return json.dumps(plain, indent=1, ensure_ascii=True).encode() + b"\n"


def write_down(store: Store, *, details: bytes, settings: bytes) -> None:
    """Let a folder remember what made it."""
    store.render(DETAILS, details)
    store.note(DETAILS_DIGEST, xxhash.xxh3_64_hexdigest(details).encode())
    store.note(SETTINGS, settings)


def decoded_folder(output: Path) -> Path:
    """Where `woodshed decode` puts the sounds of a folder, unless it is told otherwise."""
    return DecodeSettings(folder=output).output_folder.resolve()


def own_folders(output: Path, settings: EncodeSettings) -> list[str]:
    """Folders that are no source, should they lie within one: the output, and where `woodshed decode` puts its sounds.

    What was decoded is a source all the same for whoever names it as the input.
    """
    decoded = decoded_folder(output)
    named = None if settings.input is None else Path(settings.input).resolve()
    is_named = named is not None and named.is_relative_to(decoded)
    return [str(output)] if is_named else [str(output), str(decoded)]


def read_settings(folder: Path, model: type[SomeSettings]) -> SomeSettings:
    """The settings of the last run over a folder; `model` is that of the command by which it was made.

    Raises:
        StoreError: the folder does not hold them.
    """
    path = folder / ".woodshed" / SETTINGS
    try:
        plain: Mapping[str, Json] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise StoreError(
            f"{folder} does not tell how it was made: {path} is missing",
            hint="this works on folders that `woodshed encode` or `woodshed speech` wrote, with their .woodshed folder",
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}", hint="restore it from a backup") from error
    if not isinstance(plain, dict):
        raise StoreError(f"{path} is damaged: it holds no settings", hint="restore it from a backup")
    try:
        return checked(model, {name: value for name, value in plain.items() if name not in _FOR_ONE_RUN})
    except UsageError as error:
        raise StoreError(f"{path} is damaged: {error.message}", hint="restore it from a backup") from error


def command_line(command: Command, settings: Settings) -> str:
    """A command line that goes on with a folder, for a shell.

    >>> command_line("encode", EncodeSettings(input=Path("my sounds"), output_path=Path("out"), captions=False))
    "woodshed encode --pretrained-name woodshed-tiny --input 'my sounds' --no-captions --output-path out"
    """
    return shlex.join(["woodshed", command, *_flags(settings)])


def _flags(settings: Settings) -> Iterator[str]:
    """Flags for all that is not as it would be without them. What takes several values comes first."""
    plain, single, several = settings.to_json(), list[str](), list[str]()
    for name, field in type(settings).model_fields.items():
        value = plain[name]
        default = field.default if not isinstance(field.default, Path) else str(field.default)
        if value == default or value in (None, []) or name in _FOR_ONE_RUN:
            continue
        (several if isinstance(value, list) else single).extend(flag_words(type(settings).flag(name), value))
    yield from (*several, *single)
