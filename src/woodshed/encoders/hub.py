"""Files of a model on the Hugging Face hub, brought to this machine as they are needed, of one revision throughout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
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
        if not self.is_local:
            check_hub_name(self.name)

    def bring(self, patterns: Iterable[str]) -> Path:
        """The folder, after the files that match have come in: from the network, or else from an earlier run.

        Args:
            patterns: as the hub's client takes them, such as `vae/*.safetensors`.

        Raises:
            ModelError: the hub model cannot be had, and nothing of it is on this machine.
        """
        if self.is_local:
            return Path(self.name)
        wanted = list(patterns)
        folder = snapshot(self.name, lambda: wanted, revision=self._revision, extra="adapters")
        # A snapshot's folder is named by its commit: what comes later must be of the same one.
        self._revision = folder.name
        return folder


def check_hub_name(name: str) -> None:
    """Raises `ModelError` for what is no folder here and cannot be a hub model's name either."""
    if not HUB_NAME.fullmatch(name):
        raise ModelError(f"there is no folder {name!r}, and it is not a hub name such as 'owner/model'")


def snapshot(name: str, patterns: Callable[[], list[str]], *, revision: str | None = None, extra: str) -> Path:
    """A folder with files of a hub model: from the network, or else from an earlier run.

    Args:
        patterns: says which files; it may ask the hub.
        extra: of ours that brings the hub's client.

    Raises:
        ModelError: the client is missing, or the model cannot be had and nothing of it is on this machine.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"{name!r} is no local folder, and hub names need huggingface_hub", hint=f"pip install 'woodshed[{extra}]'"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns()))
    except (OSError, ValueError, RuntimeError) as online:
        # httpx errors of older and newer clients are OSError or RuntimeError; the copy of an earlier run may do.
        try:
            return Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the hub model {name!r} cannot be had: {type(online).__name__}: {str(online).splitlines()[0]}",
                hint="check the name and the network (HF_TOKEN for gated models), or give a local folder",
            ) from error
