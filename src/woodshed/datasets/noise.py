"""Noise that is addressed by frame, to draw latents from stored moments."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from woodshed.chance import generator

_RAW_PER_COUNT = 4  # 64-bit numbers that one step of Philox's counter gives


def normal_frames(
    rows: int, start: int, stop: int, *, seed: int, key: tuple[str | int, ...]
) -> Float32[np.ndarray, "row frame"]:
    """Standard normal noise for frames `[start, stop)` of an endless field with `rows` rows.

    Every `seed` and `key` has its own field. A crop gets the noise that the whole item has there.

    >>> whole = normal_frames(3, 0, 10, seed=0, key=("clip",))
    >>> bool((normal_frames(3, 4, 6, seed=0, key=("clip",)) == whole[:, 4:6]).all())
    True
    """
    bits = generator(seed, *key).bit_generator
    assert isinstance(bits, np.random.Philox)
    counts = -(-rows // _RAW_PER_COUNT)
    bits.advance(start * counts)
    # Not `standard_normal`: it uses up a number of draws that varies, so it cannot start at a given frame.
    raw = bits.random_raw((stop - start) * counts * _RAW_PER_COUNT)
    unit = (raw >> np.uint64(11)).reshape(stop - start, 2, 2 * counts) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(unit[:, 0] + 2.0**-53))  # never the logarithm of 0
    angle = 2.0 * np.pi * unit[:, 1]
    noise = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return np.ascontiguousarray(noise[:, :rows].T, dtype=np.float32)
