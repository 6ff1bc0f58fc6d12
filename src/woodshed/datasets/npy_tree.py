"""Folders of `.npy` + `.json` pairs: our `stable_audio` layout, stable-audio-tools' own trees and stable-audio-3's.

| written by | names | windows | beside them |
| --- | --- | --- | --- |
| Woodshed | `<rank>/<13 digits>` | one length | `<id>.moments.safetensors` with `std` where the `.npy` is a mean |
| stable-audio-tools | `<rank>/<13 digits>` | one length | `details.json` names the window, but not the frames' rate |
| stable-audio-3 | `<10 digits>` | trimmed to the sound | `silence.npy`, which is no item |

Any of them may be copied, renamed or merged: an item is a `.npy` file with a `.json` of the same stem.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from woodshed.contracts import Json
from woodshed.datasets.spans import Clock, Span, is_ours, read_span
from woodshed.datasets.stored import StoredItem, TokenAxes, record_name
from woodshed.errors import StoreError

SILENCE = "silence.npy"
MOMENTS_SUFFIX = ".moments.safetensors"

# stable-audio-3 writes no window or ratio; both of its autoencoders have these (256 latents at 44,100 / 4096 Hz).
_SA3_ROWS = 256
_SA3_HOP_SAMPLES = 4096


class NpyTree:
    """Windows of one folder, in the order of their names (numbers by value).

    Args:
        folder: searched with everything below it; `filelist.txt` in it, if there, names the files instead.
        token_axes: order of a token array's axes; `None` takes it from our `details.json`, or (codebook, frame).
        hop_samples: samples per frame; `None` works it out from the folder.

    Raises:
        StoreError: nothing to read in there, or the first window cannot be read.
    """

    def __init__(self, folder: Path, *, token_axes: TokenAxes | None = None, hop_samples: int | None = None) -> None:
        self._folder = folder
        self._names = list_arrays(folder)
        if not self._names:
            shards = (folder / "shards").is_dir()
            raise StoreError(
                f"{folder} holds no latents or tokens: no .npy file in it or below it",
                hint="shards are read with the .woodshed folder beside them: copy that too"
                if shards
                else "give the output folder itself, the one with details.json or the rank folders",
            )
        details_path = folder / "details.json"
        details = _read_json(details_path) if details_path.is_file() else {}
        first = _open_array(self._path(0))
        spec = _stated_spec(details)
        self.kind = str(spec.get("kind", "tokens" if np.issubdtype(first.dtype, np.integer) else "latents"))
        axes = token_axes or (" ".join(spec["arrays"][spec["main"]]["axes"]) if spec else None)
        self._is_transposed = self._frames_come_first(axes, first)
        num_frames = first.shape[0 if self._is_transposed else 1]
        self.clock = _clock(details, first.shape, num_frames, hop_samples)

    def __len__(self) -> int:
        return len(self._names)

    def span(self, index: int) -> Span:
        return self.item(index).span

    def item(self, index: int) -> StoredItem:
        path = self._path(index)
        stored = _open_array(path)
        array = stored.T if self._is_transposed else stored
        meta = _read_json(path.with_suffix(".json"))
        dtype = np.int64 if self.kind == "tokens" else np.float32
        moments = path.with_name(path.stem + MOMENTS_SUFFIX)
        return StoredItem(
            name=self._item_name(index, meta),
            where=str(path),
            meta=meta,
            span=read_span(meta, rows=array.shape[0], stored_frames=array.shape[1], clock=self.clock),
            rows=array.shape[0],
            read=lambda start, stop: torch.from_numpy(np.array(array[:, start:stop], dtype=dtype, order="C")),
            read_std=(lambda start, stop: _read_std(moments, start, stop)) if moments.is_file() else None,
        )

    def silence(self) -> Shaped[Tensor, "row frame"] | None:
        path = self._folder / SILENCE
        if not path.is_file():
            return None
        array = _open_array(path, drop_batch_axis=True)
        dtype = np.int64 if self.kind == "tokens" else np.float32
        return torch.from_numpy(np.array(array, dtype=dtype, order="C"))

    def _item_name(self, index: int, meta: dict[str, Json]) -> str:
        """The name that `CommittedFolder` gives it: draws stay the same in a copy without the commit log."""
        if is_ours(meta) and "id" in meta and "record_index" in meta:
            return record_name(meta["id"], meta["record_index"])
        return self._names[index].removesuffix(".npy").replace(os.sep, "/")

    def _path(self, index: int) -> Path:
        return self._folder / self._names[index]

    def _frames_come_first(self, axes: str | None, first: Shaped[np.ndarray, "a b"]) -> bool:
        if axes is not None:
            return self.kind == "tokens" and axes.startswith("frame")
        if self.kind == "tokens" and first.shape[0] > first.shape[1]:
            raise StoreError(
                f"tokens in {self._path(0)} have shape {first.shape}: more rows than columns, and the folder does not "
                "say which axis is time",
                hint="stable-audio-tools stores RVQ and dithered FSQ tokens with token_axes='frame codebook'; "
                "pass that, or token_axes='codebook frame'",
            )
        return False


def list_arrays(folder: Path) -> list[str]:
    """Names of the item files, below `folder` (or as `filelist.txt` gives them).

    Raises:
        StoreError: no such folder, or a folder in it cannot be listed.
    """
    filelist = folder / "filelist.txt"
    try:
        if filelist.is_file():
            lines = filelist.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            return [line.strip() for line in lines if line.strip()]
        return sorted(_scan(folder, "", set()), key=_by_number)
    except OSError as error:
        raise StoreError(f"cannot list {folder}: {error}", hint="check the path and its permissions") from error


def _scan(folder: Path, prefix: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    here = folder.stat()
    if (here.st_dev, here.st_ino) in seen:  # a link leads here again
        return
    seen.add((here.st_dev, here.st_ino))
    subfolders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                subfolders.append(entry.name)
            elif entry.name.lower().endswith(".npy") and entry.name != SILENCE:
                yield prefix + entry.name
    for name in sorted(subfolders):
        yield from _scan(folder / name, f"{prefix}{name}/", seen)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sort key: rank 10 comes after rank 9.

    >>> sorted(["10/0.npy", "9/1.npy", "9/a.npy"], key=_by_number)
    ['9/1.npy', '9/a.npy', '10/0.npy']
    """
    return [(len(part) if part.isdigit() else 1 << 30, part) for part in re.split(r"[/.]", name)]


def _open_array(path: Path, *, drop_batch_axis: bool = False) -> Shaped[np.ndarray, "a b"]:
    """Map the file: only what is sliced is read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(
            f"cannot read {path}: {error}", hint="the file is damaged or missing: encode it again, or remove the pair"
        ) from error
    if drop_batch_axis and array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2:
        raise StoreError(f"{path} has shape {array.shape}, not two axes (channels or codebooks, and frames)")
    return np.asarray(array)


def _read_json(path: Path) -> dict[str, Json]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(
            f"{path} is missing", hint="an interrupted run can leave an array without it: remove the .npy file"
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}", hint="an interrupted run can cut it short") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path} holds {type(content).__name__}, not an object with keys")
    return content


def _read_std(path: Path, start: int, stop: int) -> Float32[Tensor, "row frame"]:
    try:
        with safe_open(path, framework="pt") as arrays:
            std: Tensor = arrays.get_slice("std")[:, start:stop]
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot read the moments in {path}: {error}") from error
    return std.float()


def _stated_spec(details: dict[str, Json]) -> dict[str, Json]:
    """The `RecordSpec` that our `details.json` holds; empty for everybody else's."""
    spec = details.get("spec")
    return (
        spec if isinstance(spec, dict) and {"kind", "main", "arrays", "rate_hz", "hop_samples"} <= spec.keys() else {}
    )


def _clock(details: dict[str, Json], shape: tuple[int, ...], num_frames: int, hop_samples: int | None) -> Clock:
    """Ours states the hop; stable-audio-tools states the window; stable-audio-3 states neither."""
    spec = _stated_spec(details)
    rate_hz = spec.get("rate_hz")
    stated = hop_samples or spec.get("hop_samples")
    window_samples = details.get("sample_size")
    if isinstance(stated, int):
        return Clock(rate_hz=rate_hz, hop_samples=stated, window_samples=window_samples)
    if isinstance(window_samples, int) and num_frames:
        return Clock(
            rate_hz=rate_hz, hop_samples=_hop_of_window(window_samples, num_frames), window_samples=window_samples
        )
    if not details and shape[0] == _SA3_ROWS:
        return Clock(rate_hz=rate_hz, hop_samples=_SA3_HOP_SAMPLES)
    return Clock(rate_hz=rate_hz)


def _hop_of_window(window_samples: int, num_frames: int) -> int | None:
    """The hop of `num_frames = floor(window_samples / hop)`: exact division, else the one power of two that fits.

    >>> _hop_of_window(65_536, 128), _hop_of_window(65_000, 126), _hop_of_window(65_000, 7)
    (512, 512, 8192)
    >>> _hop_of_window(1000, 6) is None
    True
    """
    if window_samples % num_frames == 0:
        return window_samples // num_frames
    power = 1 << (window_samples // num_frames).bit_length() - 1
    return power if window_samples // power == num_frames else None
