"""Items as the trainers of stable-audio-tools and stable-audio-3 take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class WrappedMask(list[Tensor]):
    """A padding mask in a list of one, with the `ndim` of a (1, frame) tensor.

    stable-audio-tools' trainers each expect another form: its diffusion trainer a list of one or a plain tensor, ARC
    and stable-audio-3 take element 0, the language model trainer reads `ndim` first. This serves them all.
    """

    ndim = 2


def sat_item(item: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Turn an item of a `LatentDataset` into (latents or tokens, info).

    `info["padding_mask"]` holds a bool tensor, so that `mask_padding` selects elements of the loss (the original's
    integer mask gathers whole rows by number). `info["audio"]` holds the latents, as in the original.
    """
    main = next(item[kind] for kind in ("latents", "tokens", "features") if kind in item)
    return main, {**item["info"], "padding_mask": WrappedMask([item["mask"]]), "audio": main}
