"""One front for all sources: a folder, a manifest, one sound, or a stable-audio dataset config."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from woodshed.contracts import BadRow, Item
from woodshed.errors import UsageError
from woodshed.sources.dataset_config import open_dataset_config
from woodshed.sources.folder import AUDIO_SUFFIXES, Root, file_row, read_folders
from woodshed.sources.manifest import SUFFIXES as MANIFEST_SUFFIXES
from woodshed.sources.manifest import read_manifest
from woodshed.sources.sidecar import SUFFIXES as SIDECAR_SUFFIXES
from woodshed.sources.source import Source

MAX_NAMES_COMPARED = 10_000


def open_source(
    input: str | None,
    dataset_config: str | None,
    *,
    captions: bool = True,
    trust_remote_code: bool = False,
    exclude: Sequence[str] = (),
) -> Source:
    """The rows to encode.

    Args:
        input: a folder, a manifest (`.jsonl`, `.ndjson`, `.csv`, `.tsv`) or one sound file.
        dataset_config: path of a stable-audio dataset config; exactly one of the two is given.
        captions: whether to read the `.txt` and `.json` files beside sounds; manifests have columns instead.
        trust_remote_code: whether a dataset config may name Python code to run.
        exclude: folders that are left out although they lie in an input folder, such as the output folder.

    Raises:
        UsageError: when neither or both are given, or what is given does not exist or cannot be used.
    """
    if (input is None) == (dataset_config is None):
        wrong = "neither --input nor --dataset-config is" if input is None else "both --input and --dataset-config are"
        raise UsageError(f"{wrong} given", hint="give one: --input FOLDER, or --dataset-config CONFIG.json")
    if dataset_config is not None:
        _check_exists(dataset_config, flag="--dataset-config")
        return open_dataset_config(
            dataset_config, captions=captions, trust_remote_code=trust_remote_code, exclude=exclude
        )
    assert input is not None
    _check_exists(input, flag="--input")
    path = Path(input).absolute()
    name = path.resolve().name
    suffix = path.suffix.lower()
    read: Callable[[], Iterator[Item | BadRow]]
    if path.is_dir():
        read = partial(read_folders, [Root(path=str(path))], exclude=tuple(exclude), captions=captions)
        return Source(roots=(str(path),), read=read, about={"kind": "folder", "name": name})
    if suffix in MANIFEST_SUFFIXES:
        read = partial(read_manifest, str(path))
        return Source(roots=(str(path.parent),), read=read, about={"kind": "manifest", "name": path.name})
    if suffix in AUDIO_SUFFIXES:
        read = partial(_one_file, path, captions=captions)
        return Source(roots=(str(path),), read=read, about={"kind": "file", "name": path.name})
    hint = (
        "a stable-audio dataset config goes to --dataset-config" if suffix == ".json" else "give the folder it lies in"
    )
    kinds = f"nor a manifest ({', '.join(MANIFEST_SUFFIXES)}), nor a sound that is known by its suffix"
    raise UsageError(f"--input {input} is neither a folder, {kinds}", hint=hint)


def _one_file(path: Path, *, captions: bool) -> Iterator[Item | BadRow]:
    yield file_row(str(path), row_id=path.name, relpath=path.name, sidecars=SIDECAR_SUFFIXES if captions else ())


def _check_exists(name: str, *, flag: str) -> None:
    path = Path(name).absolute()
    if path.exists():
        return
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    hint = f"the nearest folder that exists is {missing.parent}"
    try:
        names = [entry.name for entry in islice(missing.parent.iterdir(), MAX_NAMES_COMPARED)]
    except OSError:
        names = []
    near = difflib.get_close_matches(missing.name, names, n=1)
    if near:
        hint = f"did you mean {missing.parent / near[0]}?"
    raise UsageError(f"{flag} {name} does not exist", hint=hint)
