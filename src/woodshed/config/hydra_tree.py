"""Composes a tree of YAML files by Hydra into flat settings, and says in our words what does not work."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from woodshed.config.dump import literal
from woodshed.config.group_source import SCHEME, Loaded, load_yaml, reading
from woodshed.errors import UsageError
from woodshed.jobs.complaints import closest
from woodshed.jobs.settings import Settings

PACKAGED = Path(__file__).parent / "conf"
"""The groups that come with Woodshed; folders of the same names beside a settings file come before it."""

_PRIMARY = "woodshed_primary"
_NOT_SETTINGS = frozenset({"defaults", "hydra"})
_OVERRIDE = re.compile(r"(?P<mark>\+\+|\+|~)?(?P<key>[A-Za-z_][\w./-]*)(?:@[^=]*)?(?:=(?P<value>.*))?", re.DOTALL)


def composed_values(
    model: type[Settings],
    *,
    flags: Mapping[str, object],
    config: Path | None,
    config_dirs: Sequence[Path],
    overrides: Sequence[str],
) -> tuple[dict[str, object], dict[str, str]]:
    """Values of the YAML layer with the flags laid over them, and where those of the YAML layer came from.

    Raises:
        UsageError: a file, key, group or value does not work.
    """
    return _composed(model, flags, _Request(model, config, config_dirs, overrides))


class _Request:
    """What is asked of Hydra, checked and put into its words."""

    def __init__(
        self, model: type[Settings], config: Path | None, config_dirs: Sequence[Path], overrides: Sequence[str]
    ) -> None:
        for folder in config_dirs:
            if not folder.is_dir():
                raise UsageError(f"--config-dir {folder} is not a folder")
        self.model = model
        self.config = config
        beside = [] if config is None else [config.parent]
        self.roots = [folder.resolve() for folder in (*config_dirs, *beside, PACKAGED)]
        self.groups = _groups(self.roots, not_groups=model.model_fields)
        self.override_of: dict[str, str] = {}
        self.overrides = [self._in_hydras_words(text) for text in overrides]

    def _in_hydras_words(self, text: str) -> str:
        parsed = _OVERRIDE.fullmatch(text)
        if parsed is None or (parsed["value"] is None and parsed["mark"] != "~"):
            raise UsageError(f"argument {text!r} is neither a flag nor key=value", hint="as in batch_size=4")
        key = parsed["key"]
        aliases = {flag.replace("-", "_"): field for field, flag in self.model.flag_names.items()}
        field = aliases.get(key, key)
        if field in self.model.model_fields and parsed["value"] is not None:
            self.override_of[field] = field
            # Hydra refuses a plain key=value whose key no file mentions.
            return f"++{field}={parsed['value']}"
        if field in self.model.model_fields or key in self.groups or key.split(".")[0].split("/")[0] == "hydra":
            return text
        meant = closest(key, [*self.model.model_fields, *self.groups])
        raise UsageError(
            f"{text}: no setting or group is called {key!r}",
            hint=f"did you mean {meant}?" if meant else f"groups are {', '.join(self.groups)}",
        )

    def primary(self) -> DictConfig:
        """The settings file, with all groups open to choice if it has no `defaults:` list of its own."""
        content = OmegaConf.create() if self.config is None else load_yaml(self.config)
        if "defaults" not in content:
            content["defaults"] = ["_self_", *({group: None} for group in self.groups)]
        wanted = OmegaConf.select(content, "hydra.searchpath") or []
        searched = [*(f"{SCHEME}://{root}" for root in self.roots), *wanted]
        OmegaConf.update(content, "hydra.searchpath", searched, force_add=True)
        return content


def _groups(roots: Iterable[Path], *, not_groups: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Folders with YAML files in them, and the names to choose from."""
    found: dict[str, set[str]] = {}
    for root in roots:
        for file in root.glob("*/*.yaml"):
            found.setdefault(file.parent.name, set()).add(file.stem)
    return {
        name: tuple(sorted(found[name]))
        for name in sorted(found)
        if name.isidentifier() and name not in {*not_groups, *_NOT_SETTINGS}
    }


def _composed(
    model: type[Settings], flags: Mapping[str, object], request: _Request
) -> tuple[dict[str, object], dict[str, str]]:
    """Values of all layers, and where those of the YAML layer came from."""
    primary = request.primary()
    with reading(frozenset(model.model_fields)) as read, tempfile.TemporaryDirectory() as scratch:
        if request.config is not None:
            read.loaded.append(Loaded.of(request.config, primary))
        OmegaConf.save(primary, Path(scratch) / f"{_PRIMARY}.yaml")
        try:
            with warnings.catch_warnings(), initialize_config_dir(scratch, job_name="woodshed", version_base="1.3"):
                # Hydra warns where a file leaves `_self_` out; its documented place (last) is then used.
                warnings.simplefilter("ignore", UserWarning)
                composed = hydra_compose(_PRIMARY, overrides=request.overrides)
            found_in = _origins(model, read.loaded) | request.override_of
            values = _resolved(composed, flags)
        except (HydraException, OmegaConfBaseException) as error:
            raise _in_our_words(error, request) from error
    return _without_missing(model, values, read.loaded), found_in


def _origins(model: type[Settings], loaded: Iterable[Loaded]) -> dict[str, str]:
    origins: dict[str, str] = {}
    for content in loaded:
        for key in content.keys:
            if key not in model.model_fields and key not in _NOT_SETTINGS:
                meant = closest(key, model.model_fields)
                raise UsageError(
                    f"{content.file}: unknown setting {key!r}", hint=f"did you mean {meant}?" if meant else "remove it"
                )
            origins[key] = f"{key} in {content.file}"
    return origins


def _resolved(composed: DictConfig, flags: Mapping[str, object]) -> dict[str, object]:
    """Interpolations replaced; they see what was given as flags."""
    OmegaConf.set_struct(composed, False)
    for name, value in flags.items():
        composed[name] = literal(value) if isinstance(value, str) else value
    values: Any = OmegaConf.to_container(composed, resolve=True)
    return {str(key): value for key, value in values.items()} | dict(flags)


def _without_missing(
    model: type[Settings], values: Mapping[str, object], loaded: Iterable[Loaded]
) -> dict[str, object]:
    """Drop what is still `???` if another setting makes it needless; refuse the rest.

    A `???` that is merged onto an earlier null leaves null, so the files are asked, not the merged values: a group
    that was chosen and not filled in must never fall back to a default model.
    """
    given = {name: value for name, value in values.items() if value != "???"}
    for content in loaded:
        for name in content.demanded:
            other = model.alternatives.get(name)
            if given.get(name) is None and (other is None or given.get(other) is None):
                raise UsageError(
                    f"{name} in {content.file} is ???: it must be given",
                    hint=f"add {model.flag(name)} or {name}=..."
                    + (f", or {model.flag(other)} instead" if other else ""),
                )
    return given


def _in_our_words(error: Exception, request: _Request) -> UsageError:
    """What Hydra or OmegaConf has to say, in one line that names our flags."""

    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    where = "settings" if request.config is None else str(request.config)
    if isinstance(error, OverrideParseException):
        given = error.override.lstrip("+")
        key, _, value = given.partition("=")
        return UsageError(f"{given}: not understood", hint=f"put quotes around the value: '{key}=\"{value}\"'")
    undecided = re.match(r"You must specify '([^']+)'", lines[0])
    if undecided:
        group = undecided[1]
        return UsageError(f"{where}: no choice is made for group {group!r}", hint=_choices(group, request))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group:
            return UsageError(f"group {group!r} has no {name!r}", hint=_choices(group, request))
    text = lines[0].replace(_PRIMARY, where)
    appended = re.search(r"use (\+\S+)", str(error))
    return UsageError(f"{where}: {text}" if where not in text else text, hint=appended[1] if appended else None)


def _choices(group: str, request: _Request) -> str:
    names = request.groups.get(group.split("@")[0])
    return f"{group}=NAME with one of: {', '.join(names)}" if names else f"make {group}/NAME.yaml beside the settings"
