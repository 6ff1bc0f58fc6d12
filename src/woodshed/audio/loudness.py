"""How loud a song is, and the gain that brings it to a wanted peak or loudness.

Integrated loudness follows ITU-R BS.1770-4, which EBU R128 refers to: K-weighting, mean square over blocks of 400 ms
that overlap by 75 %, a gate at -70 LUFS, and a gate 10 LU below the mean of what passed it. The Recommendation gives
the two filters as coefficients for 48 kHz; for other rates they are made anew by the bilinear transform from the
analogue filters that these coefficients belong to (Brecht De Man, *Evaluation of implementations of the EBU R128
loudness measurement*, AES Convention 145, 2018). A full-scale stereo sine of 1 kHz is at 0.0 LUFS, a mono one at
-3.0. Against pyloudnorm 0.2, on noise at seven rates: within 0.001 LU of its filters "DeMan", and within 0.1 LU of its
own ones from 22,050 Hz on (0.05 at 44.1 and 48 kHz, 0.22 at 8 kHz, where those leave the Recommendation further).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from jaxtyping import Float32, Float64

from woodshed.audio.channels import peak
from woodshed.errors import AudioError, UsageError

Normalize: TypeAlias = Literal["none", "peak", "lufs"]

SILENT_PEAK: Final = 1e-6
"""Below this peak (-120 dBFS) nothing is made louder."""
ABSOLUTE_GATE_LUFS: Final = -70.0
RELATIVE_GATE_LU: Final = -10.0
OFFSET_LU: Final = -0.691
STEPS_PER_S: Final = 10
STEPS_PER_BLOCK: Final = 4

CHANNEL_WEIGHTS: Final[dict[int, tuple[float, ...]]] = {
    1: (1,),
    2: (1, 1),
    3: (1, 1, 1),
    4: (1, 1, 1.41, 1.41),
    5: (1, 1, 1, 1.41, 1.41),
    6: (1, 1, 1, 0, 1.41, 1.41),
    7: (1, 1, 1, 0, 1, 1.41, 1.41),
    8: (1, 1, 1, 0, 1, 1, 1.41, 1.41),
}
"""Number of channels -> weights, in the order of WAV files: left, right, centre, low frequencies (not counted), back,
sides. Loudspeakers at 60 to 120 degrees count 1.41."""

_SHELF = (1681.974450955533, 3.999843853973347, 0.7071752369554196)
"""Corner in Hz, gain in dB, and quality of the shelf that stands for the head."""
_SHELF_SLOPE = 0.4996667741545416
_HIGH_PASS = (38.13547087602444, 0.5003270373238773)
"""Corner in Hz and quality of the filter that takes low frequencies away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loudness:
    """What was measured of one song."""

    peak_db: float
    """Largest sample in dBFS; -inf for digital silence."""
    lufs: float | None = None
    """Integrated loudness; -inf where nothing is above the gate or no block of 400 ms is complete; None if it was not
    asked for."""


def measure(blocks: Iterable[np.ndarray], *, rate_hz: int, lufs: bool) -> Loudness:
    """Listen to a sound once, block by block. Memory: ten numbers per second of sound.

    Args:
        blocks: consecutive parts of one sound, float32, shape (channel, time), each of any length.
        lufs: whether to measure integrated loudness, too.

    Raises:
        AudioError: of kind `too_many_channels`: loudness is defined for up to eight.
        UsageError: loudness without scipy.
    """
    highest = 0.0
    meter: _Meter | None = None
    for block in blocks:
        highest = max(highest, peak(block))
        if lufs:
            meter = meter or _Meter(rate_hz, len(block))
            meter.push(block)
    loudness = (meter.lufs() if meter is not None else -math.inf) if lufs else None
    return Loudness(peak_db=_decibels(highest, per_decade=20), lufs=loudness)


def gain_for(normalize: Normalize, loudness: Loudness | None, *, target_db: float, target_lufs: float) -> float:
    """The factor that brings a song to the wanted peak or loudness; 1 for silence.

    Nothing is limited: with `lufs`, `loudness.peak_db` plus the gain can lie above 0 dBFS.

    Args:
        loudness: may be None for `none`; must hold `lufs` for `lufs`.
        target_db: peak in dBFS, for `peak`.
        target_lufs: for `lufs`.

    >>> round(gain_for("peak", Loudness(peak_db=-7.0), target_db=-1.0, target_lufs=-14.0), 3)
    1.995
    """
    if normalize == "none":
        return 1.0
    assert loudness is not None
    if loudness.peak_db < _decibels(SILENT_PEAK, per_decade=20):
        return 1.0
    if normalize == "peak":
        return float(10 ** ((target_db - loudness.peak_db) / 20))
    assert loudness.lufs is not None
    return float(10 ** ((target_lufs - loudness.lufs) / 20)) if math.isfinite(loudness.lufs) else 1.0


def k_weighting(
    rate_hz: int,
) -> tuple[tuple[Sequence[float], Sequence[float]], tuple[Sequence[float], Sequence[float]]]:
    """The two filters for a rate, each as numerator and denominator.

    >>> shelf, high_pass = k_weighting(48_000)
    >>> [round(value, 8) for value in shelf[0]]
    [1.53512486, -2.69169619, 1.19839281]
    """
    corner_hz, gain_db, quality = _SHELF
    k = math.tan(math.pi * corner_hz / rate_hz)
    high = 10 ** (gain_db / 20)
    band = high**_SHELF_SLOPE
    norm = 1 + k / quality + k * k
    shelf = (
        [
            (high + band * k / quality + k * k) / norm,
            2 * (k * k - high) / norm,
            (high - band * k / quality + k * k) / norm,
        ],
        [1.0, 2 * (k * k - 1) / norm, (1 - k / quality + k * k) / norm],
    )
    corner_hz, quality = _HIGH_PASS
    k = math.tan(math.pi * corner_hz / rate_hz)
    norm = 1 + k / quality + k * k
    high_pass = ([1.0, -2.0, 1.0], [1.0, 2 * (k * k - 1) / norm, (1 - k / quality + k * k) / norm])
    return shelf, high_pass


class _Meter:
    """Filters blocks and keeps the weighted energy of every 100 ms."""

    def __init__(self, rate_hz: int, num_channels: int) -> None:
        if num_channels not in CHANNEL_WEIGHTS:
            raise AudioError(
                f"the sound has {num_channels} channels, and loudness is defined for 1 to {max(CHANNEL_WEIGHTS)}",
                kind="too_many_channels",
                hint="measure its peak instead",
            )
        self._lfilter = _lfilter()
        self._rate_hz = rate_hz
        self._weights = np.array(CHANNEL_WEIGHTS[num_channels])
        self._filters = k_weighting(rate_hz)
        self._states = [np.zeros((num_channels, 2)) for _ in self._filters]
        self._num_samples = 0
        self._sum = 0.0
        """Energy of the step that is not complete."""
        self._steps: list[float] = []
        """Energy (sum of squares) of every complete step."""

    def push(self, block: Float32[np.ndarray, "channel time"]) -> None:
        if not block.size:
            # scipy 1.17 forgets the state of a filter over nothing
            return
        filtered: np.ndarray = block.astype(np.float64)
        for number, (numerator, denominator) in enumerate(self._filters):
            filtered, self._states[number] = self._lfilter(
                numerator, denominator, filtered, axis=1, zi=self._states[number]
            )
        energies = self._weights @ np.square(filtered)
        start, end = self._num_samples, self._num_samples + energies.size
        for step_end in self._ends(after=start, until=end):
            self._steps.append(self._sum + float(energies[: step_end - self._num_samples].sum()))
            self._sum = 0.0
            energies = energies[step_end - self._num_samples :]
            self._num_samples = step_end
        self._sum += float(energies.sum())
        self._num_samples = end

    def _ends(self, *, after: int, until: int) -> Iterator[int]:
        """Where steps end; at 11,025 Hz they are 1,102 or 1,103 samples."""
        step = len(self._steps) + 1
        while (end := round(step * self._rate_hz / STEPS_PER_S)) <= until:
            assert end > after
            yield end
            step += 1

    def lufs(self) -> float:
        steps = np.array(self._steps)
        if steps.size < STEPS_PER_BLOCK:
            return -math.inf
        block_samples = self._rate_hz * STEPS_PER_BLOCK / STEPS_PER_S
        blocks = np.lib.stride_tricks.sliding_window_view(steps, STEPS_PER_BLOCK).sum(axis=1) / block_samples
        loud = _above(blocks, ABSOLUTE_GATE_LUFS)
        if not loud.size:
            return -math.inf
        loud = _above(loud, _lufs(float(loud.mean())) + RELATIVE_GATE_LU)
        return _lufs(float(loud.mean()))


def _above(energies: Float64[np.ndarray, " block"], gate_lufs: float) -> Float64[np.ndarray, " louder"]:
    kept: np.ndarray = energies[energies > 10 ** ((gate_lufs - OFFSET_LU) / 10)]
    return kept


def _lufs(energy: float) -> float:
    return OFFSET_LU + _decibels(energy, per_decade=10)


def _decibels(ratio: float, *, per_decade: int) -> float:
    return per_decade * math.log10(ratio) if ratio > 0 else -math.inf


def _lfilter() -> Any:
    try:
        return import_module("scipy.signal").lfilter
    except ModuleNotFoundError as error:
        raise UsageError(
            "measuring loudness needs the package scipy, which is not installed",
            hint="pip install 'woodshed[adapters]', or bring songs to one peak instead: --normalize peak",
        ) from error
