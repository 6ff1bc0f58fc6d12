"""Load a model of the transformers library, strictly and quietly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from woodshed.errors import ModelError, UsageError

INSTALL_HINT = "pip install 'woodshed[codecs]'"
MAX_KEYS_LISTED = 12


def load_pretrained(name: str) -> tuple[Any, str]:
    """A model and its `model_type`, from a folder or a hub name; every weight is there, and no other.

    Raises:
        UsageError: transformers is not installed, or the folder does not exist.
        ModelError: the folder holds no codec, or its weights do not fit its config.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError("codecs need the transformers library", hint=INSTALL_HINT) from error
    _check_folder(name)
    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            classes: dict[str, Any] = {
                "dac": transformers.DacModel,
                "encodec": transformers.EncodecModel,
                "mimi": transformers.MimiModel,
            }
            loader = classes.get(config.model_type, transformers.AutoModel)
            model, found = loader.from_pretrained(name, config=config, output_loading_info=True, weights_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise ModelError(
                f"{name} cannot be loaded as a codec: {lines[0] if lines else type(error).__name__}",
                hint="name a folder that save_pretrained wrote, or a codec on the Hugging Face hub",
            ) from error
    _check_keys(name, found)
    if not callable(getattr(model, "encode", None)):
        raise ModelError(
            f"{name} is a {type(model).__name__}, which has no `encode`: it is not an audio codec",
            hint="EncodecModel, DacModel and MimiModel are known to work",
        )
    return model, str(config.model_type)


def _check_folder(name: str) -> None:
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{name} has no config.json: it is not the folder of a transformers model",
                hint="name the folder that save_pretrained wrote",
            )
    elif folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UsageError(f"there is no folder {name}", hint="name a folder that exists, or owner/name on the hub")


def _check_keys(name: str, found: Mapping[str, Any]) -> None:
    problems = []
    for word, key in (("missing", "missing_keys"), ("unknown", "unexpected_keys"), ("misshapen", "mismatched_keys")):
        keys = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in found.get(key, ()))
        if keys:
            more = f" and {len(keys) - MAX_KEYS_LISTED} more" if len(keys) > MAX_KEYS_LISTED else ""
            problems.append(f"{len(keys)} {word}: {', '.join(keys[:MAX_KEYS_LISTED])}{more}")
    if problems:
        raise ModelError(
            f"the weights of {name} do not fit its config: {'; '.join(problems)}",
            hint="use the config that belongs to these weights",
        )


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without progress bars and load reports: what they say becomes an error here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Digest of names, types, shapes and values, `xxh3_128:<hex>`."""
    digest = xxhash.xxh3_128()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"xxh3_128:{digest.hexdigest()}"
