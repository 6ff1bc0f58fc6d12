"""Reads the files of a Hydra tree in such a way that what a group says lands at the top level.

Hydra puts the content of `model/x.yaml` under the key `model`, unless the file begins with `# @package _global_`. Our
settings are flat, so here that header is understood where a file has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

from woodshed.errors import UsageError

SCHEME = "woodshed-conf"


@dataclass(frozen=True)
class Loaded:
    """One file of a composition."""

    file: Path
    keys: tuple[str, ...]
    demanded: tuple[str, ...]
    """Keys whose value is `???`: whoever chooses this file must give them."""

    @classmethod
    def of(cls, file: Path, content: DictConfig) -> Loaded:
        keys = {str(key): key for key in content}
        return cls(file, tuple(keys), tuple(name for name, key in keys.items() if OmegaConf.is_missing(content, key)))


@dataclass
class Reading:
    """What one composition may find, and what it has found."""

    fields: frozenset[str]
    """Names of settings: a folder of such a name beside the settings file holds data, not a group."""
    loaded: list[Loaded] = field(default_factory=list)


# Hydra builds its sources from nothing but a path, so this is how one is told what the composition is about.
_reading: ContextVar[Reading] = ContextVar("woodshed_reading")


@contextmanager
def reading(fields: frozenset[str]) -> Iterator[Reading]:
    """Make the source known to Hydra and collect what it loads."""
    Plugins.instance().register(_FlatGroups)
    current = Reading(fields=fields)
    token = _reading.set(current)
    try:
        yield current
    finally:
        _reading.reset(token)


def load_yaml(path: Path) -> DictConfig:
    """A settings file as Hydra sees it: interpolations and `???` are kept.

    Raises:
        UsageError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        content = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path} cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{path}{place} is not YAML: {problem}", hint="quote text that holds : # [ or {") from error
    if not isinstance(content, DictConfig):
        raise UsageError(f"{path} holds no `key: value` lines", hint="write one setting a line, as in `seed: 1`")
    return content


class _FlatGroups(ConfigSource):
    """A folder of YAML files whose groups land at the top level."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        file = self._file(config_path)
        content = load_yaml(file)
        _reading.get().loaded.append(Loaded.of(file, content))
        header = self._get_header_dict(file.read_text("utf-8")[:512])
        if header["package"] is None and "/" in config_path:
            header["package"] = "_global_"
        return ConfigResult(config=content, path=self.full_path(), provider=self.provider, header=header)

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        if config_path.split("/")[0] in _reading.get().fields:
            return False
        return (Path(self.path) / config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        folder = Path(self.path) / config_path
        groups = [child.name for child in folder.iterdir() if child.is_dir()]
        configs = [child.stem for child in folder.glob("*.yaml")]
        if results_filter == ObjectType.GROUP:
            return sorted(groups)
        return sorted(configs if results_filter == ObjectType.CONFIG else {*groups, *configs})

    def _file(self, config_path: str) -> Path:
        return Path(self.path) / self._normalize_file_name(config_path)
