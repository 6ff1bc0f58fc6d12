"""Dataset configs of stable-audio-tools: JSON with `dataset_type: audio_dir` and a list of folders in `datasets`.

The ids of a config with several folders are `<dataset id>/<path below the folder>`; with one folder, the path alone.
Relative paths start at the current folder, as in the original, or else beside the config.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from woodshed.contracts import BadRow, Item, Json
from woodshed.errors import ItemError, UsageError
from woodshed.sources.custom_metadata import CustomMetadata, MetadataModule, load_module
from woodshed.sources.folder import Root, read_folders
from woodshed.sources.sidecar import parse_object
from woodshed.sources.source import Source

READER_KEYS = ("random_crop", "drop_last")
"""Keys that steer the original's loader: kept in the description, for `--compat`."""
TRAINING_KEYS = (
    *("latent_crop_length", "latent_extension", "min_length_sec", "max_length_sec", "volume_norm", "volume_norm_param"),
    *("remove_silence", "silence_threshold", "max_silence_duration", "epoch_steps", "resampled_shards"),
    *("force_channels", "augment_phase"),
)
"""Keys of other dataset types or of training: without effect here, ignored with a note."""
DATASET_KEYS = ("id", "path", "custom_metadata_module")


def open_dataset_config(path: str, *, captions: bool = True, trust_remote_code: bool, exclude: Sequence[str]) -> Source:
    """The source that a dataset config describes.

    Raises:
        UsageError: when the config cannot be used, or names code while `trust_remote_code` is False.
    """
    config = _read(path)
    _check_type(config.get("dataset_type"), path)
    ignored = sorted(set(config) & set(TRAINING_KEYS))
    _check_keys(config, ("dataset_type", "datasets", *READER_KEYS, *TRAINING_KEYS), where=path)
    datasets = _datasets(config.get("datasets"), path)
    labels = labels_of([dataset["id"] for dataset in datasets])
    find = partial(_find, config_path=path)
    roots = [
        Root(path=find(dataset["path"], what=f"datasets[{i}].path", exists=Path.is_dir), label=label)
        for i, (dataset, label) in enumerate(zip(datasets, labels, strict=True))
    ]
    modules = _modules(datasets, labels, find, path, trust_remote_code=trust_remote_code)
    about = {
        "kind": "audio_dir",
        "dataset_config": {
            "dataset_type": "audio_dir",
            "datasets": [
                {"id": dataset["id"], "folder": Path(root.path).resolve().name}
                | (
                    {"custom_metadata_module": module.name, "sha256": module.sha256}
                    if (module := modules.get(label))
                    else {}
                )
                for dataset, label, root in zip(datasets, labels, roots, strict=True)
            ],
            **{key: config[key] for key in READER_KEYS if key in config},
        },
    }
    note = f"{', '.join(ignored)} in the dataset config: without effect on encoding, ignored"
    read: Callable[[], Iterator[Item | BadRow]] = partial(
        read_folders, roots, exclude=tuple(exclude), captions=captions
    )
    return Source(
        roots=tuple(str(Path(root.path).absolute()) for root in roots),
        read=read,
        about=about,
        annotate=CustomMetadata(modules) if modules else None,
        remarks=(note,) if ignored else (),
    )


def labels_of(ids: Sequence[str]) -> list[str | None]:
    """What stands before the ids of each data set's rows: different for each, and never read as two folders.

    >>> labels_of(["only"])
    [None]
    >>> labels_of(["a", "a", "a/b"])
    ['a', 'a#2', 'a%2Fb']
    """
    if len(ids) == 1:
        return [None]
    labels: list[str] = []
    wanted = [name.replace("%", "%25").replace("/", "%2F") for name in ids]
    for i, name in enumerate(wanted):
        label, number = name, 2
        while label in labels or (label != name and label in wanted[i:]):
            label, number = f"{name}#{number}", number + 1
        labels.append(label)
    return list(labels)


def _read(path: str) -> dict[str, Json]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return parse_object(file.read(), where=f"the dataset config {path}", kind="config")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the dataset config {path} cannot be read: {error}") from error
    except ItemError as error:
        raise UsageError(error.message) from error


def _check_type(kind: Json, path: str) -> None:
    where = f"the dataset config {path}"
    if kind == "audio_dir":
        return
    if kind in ("s3", "wds"):
        raise UsageError(
            f"{where} has dataset_type {kind!r}: tar shards and S3 come with the scale release",
            hint='unpack the shards into a folder, and give it with --input or as dataset_type "audio_dir"',
        )
    if kind == "pre_encoded":
        raise UsageError(
            f'{where} has dataset_type "pre_encoded": its files are latents already, there is nothing to encode',
            hint="name the config of the raw audio, or read the latents with woodshed.open(folder)",
        )
    raise UsageError(f"{where} has dataset_type {kind!r}, not one that is known", hint='use "audio_dir"')


def _check_keys(found: Mapping[str, Json], known: Sequence[str], *, where: str) -> None:
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"remove it; known are {', '.join(known)}"
            raise UsageError(f"{where} has the unknown key {key!r}", hint=hint)


def _datasets(value: Json, path: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise UsageError(
            f"{path} needs `datasets`, a list with one entry or more",
            hint='for example "datasets": [{"id": "mine", "path": "sounds/"}]',
        )
    for i, dataset in enumerate(value):
        where = f"datasets[{i}] of {path}"
        if not isinstance(dataset, dict):
            raise UsageError(f"{where} is not an object with `id` and `path`")
        _check_keys(dataset, DATASET_KEYS, where=where)
        for key in ("id", "path"):
            if not isinstance(dataset.get(key), str) or not dataset[key]:
                raise UsageError(f"{where} needs `{key}`, a text")
        if not isinstance(dataset.get("custom_metadata_module", ""), str | None):
            raise UsageError(f"{where}: `custom_metadata_module` is not the path of a Python file")
    return value


def _modules(
    datasets: Sequence[Mapping[str, str]],
    labels: Sequence[str | None],
    find: Callable[..., str],
    path: str,
    *,
    trust_remote_code: bool,
) -> dict[str | None, MetadataModule]:
    modules = {}
    for i, (dataset, label) in enumerate(zip(datasets, labels, strict=True)):
        name = dataset.get("custom_metadata_module")
        if not name:
            continue
        if not trust_remote_code:
            raise UsageError(
                f"{path} names code to run: datasets[{i}].custom_metadata_module is {name!r}",
                hint="read that file, and if you trust it, add --trust-remote-code",
            )
        modules[label] = load_module(find(name, what=f"datasets[{i}].custom_metadata_module", exists=Path.is_file))
    return modules


def _find(name: str, *, what: str, exists: Callable[[Path], bool], config_path: str) -> str:
    for candidate in (Path(name), Path(config_path).parent / name):
        if exists(candidate):
            return str(candidate.absolute())
    kind = "folder" if exists is Path.is_dir else "file"
    raise UsageError(
        f"{what} of {config_path}: there is no {kind} {name}",
        hint=f"relative paths start at the current folder ({Path.cwd()}) or beside the config",
    )
