"""Files of a model on the Hugging Face hub, brought to this machine as they are needed, of one revision throughout."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from woodshed.errors import ModelError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", flags=re.ASCII)


class ModelFolder:
    """A folder of a model: one on this machine, or a hub model's, which fills as files are asked for.

    Args:
        name: a folder, or a hub name such as `owner/model`.

    Raises:
        ModelError: it is neither.
    """

    def __init__(self, name: str | Path) -> None:
        self.name = str(name)
        self._revision: str | None = None
        self.is_local = Path(name).is_dir()
        if not self.is_local and not HUB_NAME.fullmatch(self.name):
            raise ModelError(f"there is no folder {self.name!r}, and it is not a hub name such as 'owner/model'")

    def bring(self, patterns: Iterable[str]) -> Path:
        """The folder, after the files that match have come in: from the network, or else from an earlier run.

        Args:
            patterns: as the hub's client takes them, such as `vae/*.safetensors`.

        Raises:
            ModelError: the hub model cannot be had, and nothing of it is on this machine.
        """
        if self.is_local:
            return Path(self.name)
        folder = _snapshot(self.name, list(patterns), self._revision)
        # A snapshot's folder is named by its commit: what comes later must be of the same one.
        self._revision = folder.name
        return folder


def _snapshot(name: str, patterns: list[str], revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"{name!r} is no local folder, and hub names need huggingface_hub", hint="pip install 'woodshed[adapters]'"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as online:
        # httpx errors of older and newer clients are OSError or RuntimeError; the copy of an earlier run may do.
        try:
            return Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the hub model {name!r} cannot be had: {type(online).__name__}: {str(online).splitlines()[0]}",
                hint="check the name and the network (HF_TOKEN for gated models), or give a local folder",
            ) from error
