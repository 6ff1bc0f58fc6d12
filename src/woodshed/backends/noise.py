"""The noise of a draw: made on the CPU in single precision, so that every device sees the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from woodshed.chance import generator
from woodshed.contracts import Draw


def noise(draw: Draw, shape: Sequence[int], *, device: str | torch.device, dtype: torch.dtype) -> Tensor:
    """Standard normal values of `shape`; the same seed and shape give the same values on every device.

    A mirrored draw has the same values with the sign turned.

    >>> values = noise(Draw(seed=3), (2, 4), device="cpu", dtype=torch.float32)
    >>> torch.equal(noise(Draw(seed=3, mirrored=True), (2, 4), device="cpu", dtype=torch.float32), -values)
    True
    """
    values = torch.from_numpy(generator(draw.seed, "noise").standard_normal(tuple(shape), dtype=np.float32))
    return (-values if draw.mirrored else values).to(device, dtype)
