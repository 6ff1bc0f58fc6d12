"""`woodshed.open(folder)`: a torch data set over any output folder.

What an epoch sees follows from (seed, epoch, item) alone: not from worker processes, the order of access or what was
drawn before. An item is never replaced by another one: what cannot be read is an error that names its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from woodshed.chance import generator
from woodshed.datasets.committed import CommittedFolder
from woodshed.datasets.crops import Crop, handed_out_frames, plan_crop
from woodshed.datasets.noise import normal_frames
from woodshed.datasets.npy_tree import NpyTree
from woodshed.datasets.side_step import SideStepFolder, is_side_step_folder
from woodshed.datasets.spans import Clock, cropped_times, cropped_timestamps
from woodshed.datasets.speech import SpeechDataset, Split, is_speech_folder, open_speech
from woodshed.datasets.stable_audio import sat_item
from woodshed.datasets.stored import StoredFolder, StoredItem, TokenAxes
from woodshed.errors import StoreError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How stored windows are handed out. The fields are `open`'s arguments of the same names."""

    crop_frames: int | None = None
    random_crop: bool = False
    pad: bool = True
    sample: bool = True
    seed: int = 0
    as_stable_audio: bool = False

    def __post_init__(self) -> None:
        if self.crop_frames is not None and self.crop_frames < 1:
            raise UsageError(f"crop_frames={self.crop_frames} holds no frame", hint="give 1 or more, or None")
        if self.random_crop and self.crop_frames is None:
            raise UsageError("random_crop=True, but no crop_frames to crop to", hint="set crop_frames")


@overload
def open(
    folder: str | Path,
    *,
    min_seconds: float | None = None,
    max_seconds: float | None = None,
    split: Split,
) -> SpeechDataset: ...
@overload
def open(
    folder: str | Path,
    *,
    crop_frames: int | None = None,
    random_crop: bool = False,
    pad: bool = True,
    sample: bool = True,
    seed: int = 0,
    min_seconds: float | None = None,
    max_seconds: float | None = None,
    as_stable_audio: bool = False,
    token_axes: TokenAxes | None = None,
    hop_samples: int | None = None,
    # A type checker cannot look into a folder: `split` tells it of a speech folder.
    split: None = None,
) -> LatentDataset: ...
def open(
    folder: str | Path,
    *,
    crop_frames: int | None = None,
    random_crop: bool = False,
    pad: bool = True,
    sample: bool = True,
    seed: int = 0,
    min_seconds: float | None = None,
    max_seconds: float | None = None,
    as_stable_audio: bool = False,
    token_axes: TokenAxes | None = None,
    hop_samples: int | None = None,
    split: Split | None = None,
) -> LatentDataset | SpeechDataset:
    """Open an output folder of Woodshed, stable-audio-tools, stable-audio-3 or Side-Step as a data set.

    A folder of `woodshed speech` gives a `SpeechDataset`, and takes `min_seconds`, `max_seconds` and `split`; any other
    a `LatentDataset`, and takes all but `split`.

    Args:
        folder: a Woodshed folder of any layout, any tree of `.npy` + `.json` pairs (`filelist.txt` is honoured), or the
            `.pt` files that Side-Step's preprocessing writes.
        crop_frames: frames that every item has (at most, with `pad=False`); `None` hands out whole windows.
        random_crop: start anywhere among the valid frames, drawn anew each epoch; else at the window's start.
        pad: hand out the padding too, that a window is stored with or that `crop_frames` asks for (the folder's
            encoded silence, else zeros). False: valid frames only, so that lengths vary.
        sample: where moments are stored, draw mean + std * noise, anew each epoch; else the mean.
        seed: of all draws.
        min_seconds: leave out windows with less sound than this. Counts what the window holds, not its file.
        max_seconds: leave out windows with more sound than this.
        as_stable_audio: items as (latents, info), for the trainers of stable-audio-tools and stable-audio-3.
        token_axes: how foreign token arrays lie: stable-audio-tools stores FSQ tokens as (codebook, frame), those of
            RVQ and dithered FSQ as (frame, codebook), and says so nowhere.
        hop_samples: samples per frame, for a foreign folder that does not tell.
        split: of a speech folder, the rows of one manifest, `train` or `val`; `None` gives all that are done.

    Raises:
        StoreError: no such folder, nothing in it, or its first window cannot be read.
        UsageError: arguments that cannot work, or need a hop that the folder does not tell; no window is left.
    """
    view = View(
        crop_frames=crop_frames,
        random_crop=random_crop,
        pad=pad,
        sample=sample,
        seed=seed,
        as_stable_audio=as_stable_audio,
    )
    if is_speech_folder(Path(folder)):
        if view != View() or token_axes is not None or hop_samples is not None:
            raise UsageError(
                f"{folder} holds speech features, which are handed out whole",
                hint="open it with min_seconds, max_seconds and split only",
            )
        return open_speech(Path(folder), split=split, min_s=min_seconds, max_s=max_seconds)
    if split is not None:
        raise UsageError(f"split={split!r}, but {folder} has no manifests of a split", hint="leave it out")
    stored = _open_stored(Path(folder), token_axes, hop_samples)
    wants_seconds = min_seconds is not None or max_seconds is not None
    if stored.clock.hop_samples is None and (random_crop or wants_seconds):
        raise UsageError(
            f"{folder} does not tell how many samples a frame stands for, which random crops and length filters need",
            hint="pass hop_samples, the product of the encoder's strides",
        )
    if not wants_seconds:
        return LatentDataset(stored, np.arange(len(stored)), view)
    kept = _within(stored, min_seconds or 0.0, float("inf") if max_seconds is None else max_seconds)
    if not kept.size:
        raise UsageError(
            f"none of the {len(stored)} windows in {folder} lasts from min_seconds={min_seconds} to "
            f"max_seconds={max_seconds}",
            hint="widen min_seconds and max_seconds",
        )
    return LatentDataset(stored, kept, view)


class LatentDataset(Dataset[Any]):
    """Windows of an output folder, by number. Made by `open`.

    An item is a dict:

    - `latents` (float32, "latent frame"), `tokens` (int64, "codebook frame") or `features`, as `kind` says;
    - `mask` (bool, "frame"): True where a frame stands for sound;
    - of songs: `condition` (float32, "token width"), whole, whatever the crop, and without padding;
    - `info`: what is stored about the window, brought up to date with the crop: `start_s` (exact) and
      `seconds_start` (its floor) in the source file, `duration_s` of sound in the crop, `padding_mask` (the mask
      again), `latent_crop_start`, `latent_crop_length`, `latent_filename`; as stored: `seconds_total` of the whole
      file, `prompt`, `relpath` and all else.

    With `as_stable_audio` it is the pair that `woodshed.datasets.stable_audio.sat_item` makes of that.
    """

    def __init__(self, stored: StoredFolder, kept: Int64[np.ndarray, "item"], view: View) -> None:
        self._stored = stored
        self._kept = kept
        self._silence: Shaped[Tensor, "row frame"] | None = None
        self.view = view
        # Shared memory: persistent worker processes hold copies of this object, and must see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def viewed(self, view: View) -> LatentDataset:
        """The same windows, handed out in another way; the folder is not opened again."""
        return LatentDataset(self._stored, self._kept, view)

    @property
    def kind(self) -> str:
        """`latents`, `tokens` or `features`."""
        return self._stored.kind

    @property
    def clock(self) -> Clock:
        """Sample rate and hop, as far as the folder tells."""
        return self._stored.clock

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops and noise. Workers of a data loader see it from its next iteration on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Any:
        item = self.stored_item(index)
        crop = self._crop(item)
        mask = torch.zeros(crop.num_frames, dtype=torch.bool)
        mask[: crop.stop - crop.start] = torch.from_numpy(item.span.mask[crop.start : crop.stop])
        handed_out = {
            self.kind: self._filled(self._frames(item, crop), crop),
            "mask": mask,
            **{name: read() for name, read in item.whole.items()},
            "info": _info(item, crop, mask),
        }
        return sat_item(handed_out) if self.view.as_stable_audio else handed_out

    def stored_item(self, index: int) -> StoredItem:
        """The window itself, before any crop, filling or draw.

        Raises:
            StoreError: it cannot be read; the message names the file.
            IndexError: there is no such item.
        """
        return self._stored.item(int(self._kept[index]))

    def frame_counts(self) -> Int64[np.ndarray, "item"]:
        """Frames that each item is handed out with, the same in every epoch: what batches are planned from."""
        view = self.view
        if view.pad and view.crop_frames is not None:
            return np.full(len(self), view.crop_frames, dtype=np.int64)
        spans = (self._stored.span(int(index)) for index in self._kept)
        counts = (
            handed_out_frames(
                stored_frames=span.mask.size,
                valid_frames=span.valid_frames,
                crop_frames=view.crop_frames,
                pad=view.pad,
            )
            for span in spans
        )
        return np.fromiter(counts, dtype=np.int64, count=len(self))

    def _crop(self, item: StoredItem) -> Crop:
        view = self.view

        def draw_below(count: int) -> int:
            return int(generator(view.seed, self.epoch, item.name, "crop").integers(count))

        return plan_crop(
            stored_frames=item.span.mask.size,
            valid_frames=item.span.valid_frames,
            crop_frames=view.crop_frames,
            pad=view.pad,
            draw_below=draw_below if view.random_crop else None,
        )

    def _frames(self, item: StoredItem, crop: Crop) -> Shaped[Tensor, "row frame"]:
        frames = item.read(crop.start, crop.stop)
        if item.read_std is None or not self.view.sample:
            return frames
        return frames + item.read_std(crop.start, crop.stop) * self._noise(item, crop)

    def _noise(self, item: StoredItem, crop: Crop) -> Float32[Tensor, "row frame"]:
        key = (self.epoch, item.name, "moments")
        return torch.from_numpy(normal_frames(item.rows, crop.start, crop.stop, seed=self.view.seed, key=key))

    def _filled(self, frames: Shaped[Tensor, "row read"], crop: Crop) -> Shaped[Tensor, "row frame"]:
        """Lengthen to what the crop announces, with the folder's silence from its start on, repeated, or zeros."""
        rows, missing = frames.shape[0], crop.num_frames - frames.shape[1]
        if missing == 0:
            return frames
        if self._silence is None:
            silence = self._stored.silence()
            self._silence = torch.zeros(rows, 1, dtype=frames.dtype) if silence is None else silence
        if self._silence.shape[0] != rows:
            raise StoreError(
                f"the folder's encoded silence has {self._silence.shape[0]} rows, but a window has {rows}",
                hint="the folder mixes the outputs of two models, or its silence.npy is another model's",
            )
        repeats = -(-missing // self._silence.shape[1])
        return torch.cat([frames, self._silence.repeat(1, repeats)[:, :missing]], dim=1)


def _info(item: StoredItem, crop: Crop, mask: Tensor) -> dict[str, Any]:
    info = dict(item.meta)
    info.update(cropped_times(item.span, crop))
    timestamps = cropped_timestamps(info.get("timestamps"), item.span, crop)
    if timestamps is not None:
        info["timestamps"] = timestamps
    info["padding_mask"] = mask
    info["latent_crop_start"] = crop.start
    info["latent_crop_length"] = crop.num_frames
    info["latent_filename"] = item.where
    return info


def _open_stored(folder: Path, token_axes: TokenAxes | None, hop_samples: int | None) -> StoredFolder:
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder", hint="give the output folder of a finished run")
    if (folder / ".woodshed" / "run.json").is_file():
        return CommittedFolder(folder)
    if is_side_step_folder(folder):
        return SideStepFolder(folder)
    return NpyTree(folder, token_axes=token_axes, hop_samples=hop_samples)


def _within(stored: StoredFolder, min_s: float, max_s: float) -> Int64[np.ndarray, "item"]:
    if min_s > max_s:
        raise UsageError(f"min_seconds={min_s} is more than max_seconds={max_s}", hint="swap them")
    kept = []
    for index in range(len(stored)):
        valid_s = stored.span(index).valid_s
        if valid_s is None:
            raise StoreError(
                f"the metadata of {stored.item(index).where} has no sample_rate: nobody can tell its seconds",
                hint="add sample_rate to it, or open the folder without min_seconds and max_seconds",
            )
        if min_s <= valid_s <= max_s:
            kept.append(index)
    return np.array(kept, dtype=np.int64)
