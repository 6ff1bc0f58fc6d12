"""Put items of different length into one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from woodshed.datasets.stable_audio import WrappedMask
from woodshed.errors import StoreError


def collate(items: Sequence[Any]) -> Any:
    """Batch items of what `woodshed.open` gives: arrays are filled up with zeros to the longest, masks say where.

    Dicts give a dict: the main array ("item row frame"), `mask` (bool, "item frame") and `info`, a list of dicts; of
    songs also `condition` ("item token width") and `condition_mask`, where a network has to be told what is padding.
    With `as_stable_audio`, pairs give a pair: the arrays, and a tuple of infos whose masks have the batch's length.
    Rows of a `SpeechDataset` give a dict: ids and codes ("item length"), each with a mask beside it (`codes_mask`,
    bool), vectors and latents stacked, and `info`.

    Raises:
        StoreError: items differ in their number of rows.
    """
    if isinstance(items[0], Mapping) and "mask" not in items[0]:
        return _collated_speech(items)
    if isinstance(items[0], Mapping):
        main = next(name for name in items[0] if name not in ("mask", "info"))
        infos = [item["info"] for item in items]
        arrays = _stacked([item[main] for item in items], infos)
        mask = _stacked([item["mask"][None] for item in items], infos)[:, 0]
        whole = [name for name in items[0] if name not in (main, "mask", "info")]
        return {main: arrays, "mask": mask, **_whole(items, whole), "info": infos}
    arrays = _stacked([pair[0] for pair in items], [pair[1] for pair in items])
    num_frames = arrays.shape[-1]
    longer = [
        {**info, "padding_mask": WrappedMask([_lengthened(info["padding_mask"][0], num_frames)])} for _, info in items
    ]
    return arrays, tuple(longer)


def _whole(items: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Tensor]:
    """Arrays without frames, filled up along their first axis, each with its mask."""
    batch: dict[str, Tensor] = {}
    for name in names:
        values = [item[name] for item in items]
        lengths = torch.tensor([len(value) for value in values])
        batch[name] = pad_sequence(values, batch_first=True)
        batch[f"{name}_mask"] = torch.arange(batch[name].shape[1]) < lengths[:, None]
    return batch


def _collated_speech(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {}
    for name in items[0]:
        values = [item[name] for item in items]
        if name == "info":
            batch[name] = values
        elif values[0].dtype == torch.int64:
            batch[name] = pad_sequence(values, batch_first=True)
            lengths = torch.tensor([len(value) for value in values])
            batch[f"{name}_mask"] = torch.arange(batch[name].shape[1]) < lengths[:, None]
        else:
            batch[name] = torch.stack(values)
    return batch


def _stacked(
    arrays: Sequence[Shaped[Tensor, "_ _"]], infos: Sequence[Mapping[str, Any]]
) -> Shaped[Tensor, "item row frame"]:
    num_frames = max(array.shape[-1] for array in arrays)
    for array, info in zip(arrays, infos, strict=True):
        if array.shape[0] != arrays[0].shape[0]:
            raise StoreError(
                f"{info['latent_filename']} has {array.shape[0]} rows, but {infos[0]['latent_filename']} has "
                f"{arrays[0].shape[0]}",
                hint="the folder mixes the outputs of two models: keep each in a folder of its own",
            )
    return torch.stack([_lengthened(array, num_frames) for array in arrays])


def _lengthened(array: Shaped[Tensor, "*row _"], num_frames: int) -> Shaped[Tensor, "*row frame"]:
    return torch.nn.functional.pad(array, (0, num_frames - array.shape[-1]))
