"""What a folder remembers of the run that made it: enough to decode it, to verify it and to look at it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from woodshed.contracts import Json
from woodshed.errors import StoreError, UsageError
from woodshed.jobs.complaints import checked
from woodshed.jobs.settings import DecodeSettings, EncodeSettings

DETAILS = "details.json"
DETAILS_DIGEST = "details.xxh3_64"
"""Beside the log: what `DETAILS` must hash to."""
SETTINGS = "settings.json"
"""The settings with absolute paths, for this machine; `details.json` is what travels."""


def settings_to_json(settings: EncodeSettings) -> bytes:
    """The content of `SETTINGS`."""
    plain = settings.to_json()
    for name in ("input", "dataset_config_path", "model_config_path", "ckpt_path"):
        value = getattr(settings, name)
        plain[name] = None if value is None else str(Path(value).absolute())
    plain["output_path"] = str(Path(settings.output_path).absolute())
    if settings.pretrained_name is not None and Path(settings.pretrained_name).is_dir():
        plain["pretrained_name"] = str(Path(settings.pretrained_name).absolute())
    return json.dumps(plain, indent=1, ensure_ascii=True).encode() + b"\n"


def own_folders(output: Path, settings: EncodeSettings) -> list[str]:
    """Folders that are no source, should they lie within one: the output, and where `woodshed decode` puts its sounds.

    What was decoded is a source all the same for whoever names it as the input.
    """
    decoded = DecodeSettings(folder=output).output_folder.resolve()
    named = None if settings.input is None else Path(settings.input).resolve()
    is_named = named is not None and named.is_relative_to(decoded)
    return [str(output)] if is_named else [str(output), str(decoded)]


def read_settings(folder: Path) -> EncodeSettings:
    """The settings of the last run over a folder.

    Raises:
        StoreError: the folder does not hold them.
    """
    path = folder / ".woodshed" / SETTINGS
    try:
        plain: Mapping[str, Json] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise StoreError(
            f"{folder} does not tell how it was made: {path} is missing",
            hint="this works on folders that `woodshed encode` wrote, with their .woodshed folder",
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}", hint="restore it from a backup") from error
    # settings for one run only do not belong to the folder
    kept = {name: value for name, value in plain.items() if name not in ("dry_run", "limit_batches", "retry_failed")}
    try:
        return checked(EncodeSettings, kept)
    except UsageError as error:
        raise StoreError(f"{path} is damaged: {error.message}", hint="restore it from a backup") from error
