"""Decoding a sound file block by block, within limits, and the account of what came out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from woodshed.audio.opening import shown
from woodshed.audio.reader import Reader, open_reader
from woodshed.contracts import AudioInfo
from woodshed.errors import AudioError

BLOCK_SAMPLES = 1 << 16

CLOCK_SLACK_S = 0.25
"""How far a container's clock and its sound may differ: delay and padding of the codec, coarse time stamps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """What one file may cost. A small file can hold days of silence, or keep a decoder busy for ever."""

    max_duration_s: float = 24 * 3600.0
    max_decoded_bytes: int = 64 << 30
    """Of float32 samples, all channels, over the whole file; memory is bounded by the block anyway."""
    max_decoding_s: float = 3600.0
    """Time spent in the decoder, looked at after every block; time the caller spends on a block does not count."""


class _Budget:
    """Compares what a file has cost so far with its limits."""

    def __init__(self, path: str, reader: Reader, limits: DecodeLimits) -> None:
        self._path, self._limits = path, limits
        self._rate_hz, self._bytes_per_sample = reader.rate_hz, 4 * reader.num_channels
        self.spent_s = 0.0

    def require_samples(self, num_samples: int) -> None:
        limits, duration_s = self._limits, num_samples / self._rate_hz
        if duration_s > limits.max_duration_s:
            raise AudioError(
                f"{shown(self._path)} lasts {duration_s:,.0f} s or more; the limit is {limits.max_duration_s:,.0f} s",
                kind="too_long",
                hint="cut it into parts",
            )
        if num_samples * self._bytes_per_sample > limits.max_decoded_bytes:
            raise AudioError(
                f"{shown(self._path)} unpacks to {num_samples * self._bytes_per_sample:,} bytes or more; "
                f"the limit is {limits.max_decoded_bytes:,}",
                kind="too_large",
                hint="cut it into parts",
            )

    def require_time(self, num_samples: int) -> None:
        if self.spent_s > self._limits.max_decoding_s:
            raise AudioError(
                f"{shown(self._path)} took {self.spent_s:.1f} s to decode its first {num_samples:,} samples; "
                f"the limit is {self._limits.max_decoding_s:g} s",
                kind="too_slow",
                hint="convert it to FLAC or WAV first",
            )


def blocks(
    path: str, info: AudioInfo, *, limits: DecodeLimits | None = None, block_samples: int = BLOCK_SAMPLES
) -> Iterator[Float32[np.ndarray, "channel time"]]:
    """Decode a file at its own rate, `block_samples` at a time, all channels (a view, not contiguous).

    Integers are scaled to [-1, 1); floats come as they are. Memory does not depend on the length of the file, announced
    or true. After the last block it is certain that exactly `info.num_samples` samples came, all of them finite.

    Args:
        info: what `probe` said; checked against the file.

    Raises:
        AudioError: what `open_reader` raises, and kind `truncated` (fewer samples than announced), `damaged`, `changed`
            (not the file that was probed), `not_finite`, `too_long`, `too_large`, `too_slow`.
    """
    limits = DecodeLimits() if limits is None else limits
    with open_reader(path, is_thorough=True) as reader:
        if (reader.rate_hz, reader.num_channels, reader.format) != (info.rate_hz, info.num_channels, info.format):
            raise _changed(path, f"{reader.format}, {reader.rate_hz} Hz, {reader.num_channels} channels", info)
        if reader.num_samples not in (None, info.num_samples):
            raise _changed(path, f"{reader.num_samples:,} samples", info)
        num_done = 0
        for block in _raw_blocks(path, reader, limits, block_samples=block_samples, expected=info.num_samples):
            require_finite(block, path, start_sample=num_done)
            num_done += len(block)
            yield block.T
        if num_done != info.num_samples:
            raise AudioError(
                f"{shown(path)} gave {num_done:,} of the {info.num_samples:,} samples it announces",
                kind="truncated" if num_done < info.num_samples else "changed",
                hint="copy or fetch the file again",
            )


def count_samples(path: str, reader: Reader, limits: DecodeLimits) -> int:
    """Decode to the end to learn the length, and compare it with the container's clock where there is one.

    Raises:
        AudioError: kind `empty`, `damaged`, `truncated`, `too_long`, `too_large`, `too_slow`.
    """
    num_samples = sum(map(len, _raw_blocks(path, reader, limits, block_samples=BLOCK_SAMPLES, expected=None)))
    if num_samples == 0:
        raise AudioError(f"{shown(path)} decodes to no samples", kind="empty")
    duration_s = num_samples / reader.rate_hz
    if reader.clock_s is not None and duration_s < reader.clock_s - CLOCK_SLACK_S:
        raise AudioError(
            f"{shown(path)} is cut off: it announces {reader.clock_s:.2f} s and holds {duration_s:.2f} s",
            kind="truncated",
            hint="copy or fetch the file again",
        )
    return num_samples


def require_samples(path: str, reader: Reader, limits: DecodeLimits) -> None:
    """Refuse a file whose header alone breaks the limits.

    Raises:
        AudioError: kind `too_long` or `too_large`.
    """
    _Budget(path, reader, limits).require_samples(reader.num_samples or 0)


def _raw_blocks(
    path: str, reader: Reader, limits: DecodeLimits, *, block_samples: int, expected: int | None
) -> Iterator[Float32[np.ndarray, "time channel"]]:
    budget, num_done = _Budget(path, reader, limits), 0
    budget.require_samples(expected or 0)
    while True:
        # One more than expected, so that a file that goes on is noticed; never more than a block, whatever is claimed.
        wanted = block_samples if expected is None else min(block_samples, expected - num_done + 1)
        started_s = time.perf_counter()
        block = reader.read(wanted)
        budget.spent_s += time.perf_counter() - started_s
        num_done += len(block)
        budget.require_time(num_done)
        budget.require_samples(num_done)
        if len(block):
            yield block
        if len(block) < wanted or (expected is not None and num_done > expected):
            return


def require_finite(block: Float32[np.ndarray, "time channel"], path: str, *, start_sample: int) -> None:
    """Refuse NaN and infinity: one of them spoils every item of its batch.

    Raises:
        AudioError: kind `not_finite`, naming the first sample.
    """
    is_finite = np.isfinite(block)
    if not is_finite.all():
        first = start_sample + int(np.argmin(is_finite.all(axis=1)))
        raise AudioError(
            f"{shown(path)} holds a value that is no number (NaN or infinite) at sample {first:,}",
            kind="not_finite",
            hint="find what wrote it, or leave the file out",
        )


def _changed(path: str, what: str, info: AudioInfo) -> AudioError:
    return AudioError(
        f"{shown(path)} is not the file that was probed: now {what}; then {info.format}, {info.rate_hz} Hz, "
        f"{info.num_channels} channels, {info.num_samples:,} samples",
        kind="changed",
        hint="run again: the plan is made anew",
    )
