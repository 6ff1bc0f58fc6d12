"""Changing the sample rate of a stream, block by block, with results that do not depend on the blocks.

`soxr` (the default of the product) is libsoxr at its HQ setting: nothing that would fold back survives (-100 dB and far
less). The two others repeat torchaudio's default, a short windowed sinc that lets tones near the limit fold back at
-17 dB; they exist so that models trained behind it see the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, TypeAlias, assert_never, runtime_checkable

import numpy as np
import soxr
from jaxtyping import Float32, Float64, Int64

ResamplerName: TypeAlias = Literal["soxr", "torchaudio_sinc", "torchaudio_functional"]
"""`torchaudio_sinc` equals `torchaudio.transforms.Resample`, `torchaudio_functional` equals
`torchaudio.functional.resample`: the latter rounds its filter's argument to single precision (up to 5e-6 apart)."""

Block: TypeAlias = Float32[np.ndarray, "channel time"]
Changed: TypeAlias = Float32[np.ndarray, "channel new_time"]

SOXR_CHUNK_SAMPLES = 1 << 14

LOWPASS_ZEROS = 6
ROLLOFF = 0.99
TILE_OUTPUTS = 1 << 15
MAX_TILE_VALUES = 1 << 19
MIN_PERIOD_OUTPUTS = 16
SMALL_PRODUCT = 200_000
"""Multiplications in one matrix product: OpenBLAS starts threads above 262,144, and they would fight for the cores."""


@runtime_checkable
class Resampler(Protocol):
    """Takes a signal in blocks of any sizes and gives it back at another rate."""

    def push(self, block: Block) -> Changed:
        """Take the next samples; give back what is ready, perhaps nothing."""
        ...

    def flush(self) -> Changed:
        """Give back the rest. In all `resampled_length` samples have come; nothing may be pushed any more."""
        ...


def resampled_length(num_samples: int, source_rate_hz: int, target_rate_hz: int) -> int:
    """Length after resampling: `num_samples * target / source`, rounded up.

    >>> resampled_length(44_101, 44_100, 16_000)
    16001
    """
    return -(-num_samples * target_rate_hz // source_rate_hz)


def make_resampler(name: ResamplerName, source_rate_hz: int, target_rate_hz: int, num_channels: int) -> Resampler:
    """A resampler for one signal; with equal rates it passes blocks on untouched."""
    if source_rate_hz == target_rate_hz:
        return _Untouched(num_channels)
    match name:
        case "soxr":
            return _Soxr(source_rate_hz, target_rate_hz, num_channels)
        case "torchaudio_sinc" | "torchaudio_functional":
            divisor = math.gcd(source_rate_hz, target_rate_hz)
            is_single = name == "torchaudio_functional"
            return _Sinc(
                _sinc_bank(source_rate_hz // divisor, target_rate_hz // divisor, is_single=is_single), num_channels
            )
        case _:
            assert_never(name)


class _Untouched:
    def __init__(self, num_channels: int) -> None:
        self._num_channels = num_channels

    def push(self, block: Block) -> Changed:
        return block

    def flush(self) -> Changed:
        return np.zeros((self._num_channels, 0), np.float32)


class _Soxr:
    def __init__(self, source_rate_hz: int, target_rate_hz: int, num_channels: int) -> None:
        self._rates_hz, self._num_channels = (source_rate_hz, target_rate_hz), num_channels
        self._stream = soxr.ResampleStream(source_rate_hz, target_rate_hz, num_channels, "float32", "HQ")
        self._pending = np.zeros((0, num_channels), np.float32)
        self._num_in = self._num_out = 0

    def push(self, block: Block) -> Changed:
        self._num_in += block.shape[1]
        return self._process(block.T)

    def _process(self, samples: Float32[np.ndarray, "time channel"]) -> Changed:
        # Chunks of one size: the result cannot depend on how the caller cuts the signal.
        joined = np.concatenate([self._pending, samples])
        whole = len(joined) - len(joined) % SOXR_CHUNK_SAMPLES
        self._pending = joined[whole:]
        ready = [
            self._stream.resample_chunk(joined[at : at + SOXR_CHUNK_SAMPLES])
            for at in range(0, whole, SOXR_CHUNK_SAMPLES)
        ]
        out = np.concatenate(ready).T if ready else np.zeros((self._num_channels, 0), np.float32)
        self._num_out += out.shape[1]
        return out

    def flush(self) -> Changed:
        # libsoxr rounds the length down where we round it up. Silence behind the end makes it give the last sample.
        source_rate_hz, target_rate_hz = self._rates_hz
        behind = np.zeros((-(-source_rate_hz // target_rate_hz) + 1, self._num_channels), np.float32)
        first = self._process(behind)
        last = self._stream.resample_chunk(self._pending, last=True).T
        wanted = resampled_length(self._num_in, source_rate_hz, target_rate_hz) - (self._num_out - first.shape[1])
        return np.concatenate([first, last], axis=1)[:, :wanted]


@dataclass(frozen=True, slots=True, eq=False)
class _SincBank:
    """The filter for one ratio, laid out as small matrix products.

    `period_outputs` samples come out for every `period_inputs` that go in, and then the filter's phases repeat.
    Neighbouring outputs need nearly the same inputs, so a group of them is one product of a window of inputs with a
    matrix that has a column for each output.
    """

    period_inputs: int
    period_outputs: int
    left_samples: int
    """Inputs needed before the one at the same time as the first output of a period."""
    starts: Int64[np.ndarray, "group period"]
    """Where the windows begin, for the periods of one tile."""
    taps: Float32[np.ndarray, "group 1 tap phase"]
    batch_periods: int
    """Periods in one matrix product; a tile is one or more such batches."""

    @property
    def tile_periods(self) -> int:
        return int(self.starts.shape[1])

    def span_samples(self, num_periods: int) -> int:
        """Inputs that `num_periods` periods look at."""
        return int(self.starts[:, num_periods - 1].max() + self.taps.shape[2])

    def apply(self, signal: Float32[np.ndarray, " input"], num_periods: int) -> Float32[np.ndarray, " output"]:
        """Outputs of `num_periods` periods (whole batches); `signal` begins `left_samples` before the first."""
        num_groups, _, num_taps, num_phases = self.taps.shape
        windows = np.lib.stride_tricks.sliding_window_view(signal, num_taps)[self.starts[:, :num_periods]]
        with np.errstate(over="ignore", invalid="ignore"):  # only values near the limit of float32; no number results
            products = np.matmul(windows.reshape(num_groups, -1, self.batch_periods, num_taps), self.taps)
        by_period = products.transpose(1, 2, 0, 3).reshape(num_periods, num_groups * num_phases)
        outputs: np.ndarray = by_period[:, : self.period_outputs].reshape(-1)
        return outputs


@lru_cache(maxsize=8)
def _sinc_bank(source: int, target: int, *, is_single: bool) -> _SincBank:
    """Filter for a reduced ratio; `source` and `target` have no common divisor."""
    repeats = max(1, -(-MIN_PERIOD_OUTPUTS // target))
    period_inputs, period_outputs = source * repeats, target * repeats
    num_groups = max(1, round(period_outputs / MIN_PERIOD_OUTPUTS))
    num_phases = -(-period_outputs // num_groups)
    reach = LOWPASS_ZEROS * source / (min(source, target) * ROLLOFF)
    heads = np.arange(num_groups) * num_phases * source / target
    first = np.floor(heads - reach).astype(np.int64)
    num_taps = int(np.ceil((heads + (num_phases - 1) * source / target + reach) - first).max()) + 1

    taps = np.empty((num_groups, 1, num_taps, num_phases), np.float32)
    for group in range(0, num_groups, 256):  # in slices: the double precision temporaries of a big bank are bigger
        members = np.arange(group, min(group + 256, num_groups))
        outputs = members[:, None, None] * num_phases + np.arange(num_phases)
        inputs = first[members, None, None] + np.arange(num_taps)[:, None]
        taps[members, 0] = _sinc_taps(outputs, inputs, source, target, np.float32 if is_single else np.float64)

    batch = max(
        1,
        min(
            TILE_OUTPUTS // period_outputs,
            SMALL_PRODUCT // (num_taps * num_phases),
            MAX_TILE_VALUES // (num_groups * num_taps),
        ),
    )
    num_batches = max(
        1, min(TILE_OUTPUTS // (period_outputs * batch), MAX_TILE_VALUES // (num_groups * num_taps * batch))
    )
    left_samples = -int(first.min())
    starts = (first + left_samples)[:, None] + np.arange(batch * num_batches) * period_inputs
    return _SincBank(period_inputs, period_outputs, left_samples, starts, taps, batch)


def _sinc_taps(
    outputs: Int64[np.ndarray, "group 1 phase"],
    inputs: Int64[np.ndarray, "group tap 1"],
    source: int,
    target: int,
    dtype: type[np.float32] | type[np.float64],
) -> Float64[np.ndarray, "group tap phase"] | Float32[np.ndarray, "group tap phase"]:
    """How much of each input goes into each output.

    With `f` the cutoff (0.99 of the lower of both Nyquist rates) and `d` the time between input and output, a tap is
    `2f * sinc(2f * d) * cos(pi * 2f * d / 12) ** 2` where `|2f * d| < 6`, else 0.
    """
    periods, phases = np.divmod(outputs, target)
    cutoff = min(source, target) * ROLLOFF
    # torchaudio holds a phase in single precision even where all else is double; so must whoever wants its numbers.
    phase = (phases.astype(np.float32) / np.float32(target)).astype(dtype)
    position = (inputs - periods * source).astype(dtype) / dtype(source)
    distance = np.clip((position - phase) * dtype(cutoff), -LOWPASS_ZEROS, LOWPASS_ZEROS)
    window = np.cos(distance * math.pi / LOWPASS_ZEROS / 2) ** 2
    taps: np.ndarray = np.sinc(distance) * (window * (cutoff / source))
    return taps


class _Sinc:
    def __init__(self, bank: _SincBank, num_channels: int) -> None:
        self._bank = bank
        # Begins `left_samples` before the first input that the next tile stands on; before the signal lies silence.
        self._buffer = np.zeros((num_channels, bank.left_samples), np.float32)
        self._num_in = self._num_out = 0

    def push(self, block: Block) -> Changed:
        self._num_in += block.shape[1]
        self._buffer = np.concatenate([self._buffer, block], axis=1)
        tiles = []
        while self._buffer.shape[1] >= self._bank.span_samples(self._bank.tile_periods):
            tiles.append(self._next_tile(self._bank.tile_periods))
        return self._joined(tiles)

    def flush(self) -> Changed:
        bank, tiles = self._bank, []
        wanted = -(-self._num_in * bank.period_outputs // bank.period_inputs) - self._num_out
        missing = wanted
        while missing > 0:
            num_batches = -(-missing // (bank.period_outputs * bank.batch_periods))
            num_periods = min(num_batches * bank.batch_periods, bank.tile_periods)
            behind = max(bank.span_samples(num_periods) - self._buffer.shape[1], 0)
            self._buffer = np.pad(self._buffer, ((0, 0), (0, behind)))
            tiles.append(self._next_tile(num_periods))
            missing -= tiles[-1].shape[1]
        return self._joined(tiles)[:, :wanted]

    def _next_tile(self, num_periods: int) -> Changed:
        span = self._bank.span_samples(num_periods)
        tile = np.stack([self._bank.apply(channel[:span], num_periods) for channel in self._buffer])
        self._buffer = self._buffer[:, num_periods * self._bank.period_inputs :]
        self._num_out += tile.shape[1]
        return tile

    def _joined(self, tiles: list[Float32[np.ndarray, "channel _tile"]]) -> Changed:
        return np.concatenate([np.zeros((len(self._buffer), 0), np.float32), *tiles], axis=1)
