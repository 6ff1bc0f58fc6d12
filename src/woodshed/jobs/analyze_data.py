"""The songs of an analysis: a folder's windows by song, crops of them, and what they are held against."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
from torch.utils.data import Dataset

from woodshed.chance import generator
from woodshed.contracts import KnowsSilence, Trainable
from woodshed.datasets.folder import LatentDataset, View
from woodshed.datasets.folder import open as open_data
from woodshed.datasets.side_step import is_side_step_folder
from woodshed.datasets.speech import SpeechDataset, is_speech_folder
from woodshed.errors import UsageError
from woodshed.importance.map_files import side_step_hash
from woodshed.importance.measuring import Examples
from woodshed.store.reader import open_reader
from woodshed.store.sidestep import STAGING_SUFFIX, SUFFIX

WORDS = ("condition", "text", "caption", "prompt", "tag", "genre", "lyrics")
"""What says in words how an item sounds, in the item or in its `info`."""


class FolderExamples:
    """Songs of an output folder. One that was stored in several windows is one song: they are looked at in turn.

    Args:
        crop_s: seconds of a window that a look sees, anywhere in it; 0: all of it.

    Raises:
        StoreError, UsageError: as `woodshed.open`.
    """

    def __init__(self, folder: Path, model: Trainable, *, crop_s: float, seed: int) -> None:
        self.folder, self._model, self._seed = folder, model, seed
        self._data: Dataset[Any] = _opened(folder, crop_s, seed)
        self._windows = _windows_by_song(self._data)
        self._songs = tuple(self._windows)

    def __len__(self) -> int:
        return len(self._songs)

    def name(self, item: int) -> str:
        return self._songs[item]

    def stored(self, item: int, visit: int) -> Mapping[str, Any]:
        """What the folder hands out for a visit, as `woodshed.open` gives it."""
        windows = self._windows[self._songs[item]]
        first = int(generator(self._seed, self._songs[item], "window").integers(len(windows)))
        if isinstance(self._data, LatentDataset):
            self._data.set_epoch(visit)
        handed_out: Mapping[str, Any] = self._data[windows[(first + visit) % len(windows)]]
        return handed_out

    def example(self, item: int, visit: int) -> Any:
        return self._model.example(self.stored(item, visit))

    @property
    def is_cropped(self) -> bool:
        """Whether another visit may see another part of a song."""
        if not isinstance(self._data, LatentDataset):
            return False
        view = self._data.view
        return view.random_crop or any(len(windows) > 1 for windows in self._windows.values())

    @property
    def audio_s(self) -> float | None:
        """Seconds of sound in all songs; None where the folder does not tell."""
        if isinstance(self._data, LatentDataset):
            rate_hz, hop = self._data.clock.rate_hz, self._data.clock.hop_samples
            if rate_hz is None or hop is None:
                return None
            return float(self._data.viewed(View(pad=False)).frame_counts().sum()) * hop / rate_hz
        return None


class SilentExamples:
    """The same looks with silence in place of sound.

    Raises:
        UsageError: the model knows no silence.
    """

    def __init__(self, examples: Examples, model: Trainable) -> None:
        if not isinstance(model, KnowsSilence):
            raise UsageError(
                "--reference silence: this model does not know how silence is encoded",
                hint="--reference permuted, or a folder to compare with",
            )
        self._examples, self._silent = examples, model.silent

    def __len__(self) -> int:
        return len(self._examples)

    def name(self, item: int) -> str:
        return self._examples.name(item)

    def example(self, item: int, visit: int) -> Any:
        return self._silent(self._examples.example(item, visit))


class PermutedExamples:
    """The same songs with each other's words: each song gets those of the one that a seed makes its neighbour.

    Raises:
        UsageError: there is one song only, or no two songs differ in their words.
    """

    def __init__(self, examples: FolderExamples, model: Trainable, *, seed: int) -> None:
        if len(examples) < 2:
            raise UsageError("--reference permuted needs at least two songs", hint="--reference silence, or a folder")
        self._examples, self._model = examples, model
        order = generator(seed, "permuted").permutation(len(examples)).tolist()
        self._partner = dict(zip(order, [*order[1:], order[0]], strict=True))
        texts = [_words(examples.stored(item, 0)) for item in range(min(len(examples), 50))]
        if all(_same(texts[0], other) for other in texts[1:]):
            raise UsageError(
                "--reference permuted: all songs have the same words, so nothing would change",
                hint="--reference silence, or a folder to compare with",
            )

    def __len__(self) -> int:
        return len(self._examples)

    def name(self, item: int) -> str:
        return self._examples.name(item)

    def example(self, item: int, visit: int) -> Any:
        own, other = self._examples.stored(item, visit), self._examples.stored(self._partner[item], visit)
        words = _words(other)
        info = {name: value for name, value in own.get("info", {}).items() if name not in WORDS}
        kept = {name: value for name, value in own.items() if name not in WORDS}
        return self._model.example(
            kept
            | {name: value for (place, name), value in words.items() if place == "item"}
            | {"info": info | {name: value for (place, name), value in words.items() if place == "info"}}
        )


class Partners:
    """Songs of another folder, one for each song of the data as far as they go; which one, a seed says."""

    def __init__(self, examples: FolderExamples, num_songs: int, *, seed: int) -> None:
        self._examples = examples
        order = generator(seed, "partners").permutation(len(examples)).tolist()
        self._songs = order[:num_songs]

    def __len__(self) -> int:
        return len(self._songs)

    def name(self, item: int) -> str:
        return self._examples.name(self._songs[item])

    def example(self, item: int, visit: int) -> Any:
        return self._examples.example(self._songs[item], visit)


def data_digest(folder: Path) -> str:
    """Digest of what the songs are: contents of sources, captions and the encoder, or the bytes of foreign files.

    Raises:
        StoreError: the folder's log cannot be read.
    """
    digest = xxhash.xxh3_128()
    if (folder / ".woodshed" / "run.json").is_file():
        reader = open_reader(folder)
        digest.update(json.dumps(reader.fingerprint, sort_keys=True).encode())
        for entry in sorted(reader.entries(), key=lambda entry: entry.id):
            if entry.status == "done":
                digest.update(f"{entry.id}\0{entry.digest}\0{entry.meta_digest}\n".encode("utf-8", "surrogateescape"))
    else:
        for path in _data_files(folder):
            digest.update(f"{path.relative_to(folder)}\0".encode("utf-8", "surrogateescape"))
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return f"xxh3_128:{digest.hexdigest()}"


def schema2_hash(folder: Path) -> str:
    """What a map gives as the hash of its data: Side-Step's own of its folders, of others 12 digits of the digest."""
    if is_side_step_folder(folder):
        return side_step_hash(folder)
    return data_digest(folder).partition(":")[2][:12]


def _data_files(folder: Path) -> list[Path]:
    if is_side_step_folder(folder):
        return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.endswith(STAGING_SUFFIX))
    arrays = sorted(folder.rglob("*.npy"))
    return [*arrays, *(sidecar for path in arrays if (sidecar := path.with_suffix(".json")).is_file())]


def _opened(folder: Path, crop_s: float, seed: int) -> Dataset[Any]:
    if folder.is_dir() and is_speech_folder(folder):
        return open_data(folder, split=None)
    whole = open_data(folder, pad=False, seed=seed)
    if not isinstance(whole, LatentDataset) or not crop_s:
        return whole
    rate_hz, hop = whole.clock.rate_hz, whole.clock.hop_samples
    if rate_hz is None or hop is None:
        return whole
    crop_frames = max(1, round(crop_s * rate_hz / hop))
    return whole.viewed(dataclasses.replace(whole.view, crop_frames=crop_frames, random_crop=True))


def _windows_by_song(data: Dataset[Any]) -> dict[str, list[int]]:
    """Song -> its windows; a song is a source file, or the record itself where that is not told."""
    songs: dict[str, list[int]] = {}
    if isinstance(data, LatentDataset):
        for index in range(len(data)):
            item = data.stored_item(index)
            songs.setdefault(str(item.meta.get("relpath") or item.name), []).append(index)
    elif isinstance(data, SpeechDataset):
        for index in range(len(data)):
            songs.setdefault(data.id_of(index), []).append(index)
    return songs


def _words(item: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    found = {("item", name): item[name] for name in WORDS if name in item}
    return found | {("info", name): item["info"][name] for name in WORDS if name in item.get("info", {})}


def _same(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].shape == b[key].shape and bool((a[key] == b[key]).all())
        if hasattr(a[key], "shape")
        else a[key] == b[key]
        for key in a
    )
