"""Sound that libsndfile does not know (M4A, AAC, WebM, WMA and others), decoded by FFmpeg through PyAV.

PyAV is the optional extra `av`: its wheels bundle codecs under the GPL.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from jaxtyping import Float32

from woodshed.audio.opening import shown
from woodshed.errors import AudioError

DEMUXERS = "aac,ac3,eac3,aiff,amr,ape,asf,avi,caf,dsf,dts,flac,flv,matroska,mov,mp3,mpc,mpc8,ogg,tak,tta,wav,wv"
"""The only containers FFmpeg may recognise: playlists and scripts, which name other files, are not among them."""

CLOCKED_CONTAINERS = frozenset({"mov", "matroska", "asf", "caf", "flac", "ogg", "tta", "wav", "wv", "aiff", "avi"})
"""Containers whose length is written down, not estimated from a bit rate."""

FULL_SCALE = {"u8": 1 << 7, "s16": 1 << 15, "s32": 1 << 31, "s64": 1 << 63, "flt": 1, "dbl": 1}
"""What one stands for in FFmpeg's sample formats; `u8` has its zero at 128."""

STRICT = {"err_detect": "explode"}
"""Without it FFmpeg plays damaged FLAC and AAC to the end and says nothing."""


class PyavReader:
    """Decodes the first sound stream of a file with FFmpeg, strictly: the first fault in the data is an error.

    Args:
        container: what the file seems to be, for messages.

    Raises:
        AudioError: kind `unsupported` (PyAV is missing, or does not know the coding), `no_audio`, `empty` or `damaged`.
    """

    num_samples: int | None = None

    def __init__(self, path: str, descriptor: int, *, container: str) -> None:
        av = _import_av(path, container)
        self._path, self._num_read, self._pending = path, 0, list[np.ndarray]()
        self._ffmpeg_error: type[Exception] = av.error.FFmpegError
        os.lseek(descriptor, 0, os.SEEK_SET)
        # A file object, not a name: names need not be UTF-8, and FFmpeg would take `http:` or `concat:` for protocols.
        self._file = os.fdopen(descriptor, "rb", closefd=False)
        self._container: Any = None
        try:
            self._container = self._demux(av, container)
            stream = self._container.streams.audio[0]
            if stream.codec_context is None:
                raise AudioError(
                    f"{shown(path)} is {container} with a coding that FFmpeg does not know",
                    kind="unsupported",
                    hint="convert it to FLAC or WAV first",
                )
            stream.codec_context.options = STRICT
            stream.codec_context.thread_count = 1
            self._frames = self._container.decode(stream)
            self._start(stream)
        except BaseException:
            self.close()
            raise
        name = self._container.format.name.split(",")[0]
        self.clock_s = _clock_s(self._container, stream) if name in CLOCKED_CONTAINERS else None
        self.format = f"{name.upper()}/{stream.codec_context.name}"
        self.decoder = f"PyAV-{av.__version__}/libavcodec-{'.'.join(map(str, av.library_versions['libavcodec']))}"

    def _demux(self, av: Any, container: str) -> Any:
        try:
            opened = av.open(
                self._file,
                options={**STRICT, "format_whitelist": DEMUXERS, "protocol_whitelist": "none"},
                metadata_errors="replace",
            )
        except self._ffmpeg_error as error:
            raise AudioError(
                f"{shown(self._path)} looks like {container}, but is damaged, cut off or of an unknown kind "
                f"({_said(error)})",
                kind="damaged",
                hint="copy or fetch the file again",
            ) from error
        if not opened.streams.audio:
            opened.close()
            raise AudioError(f"{shown(self._path)} is {container} without a sound stream", kind="no_audio")
        return opened

    def _start(self, stream: Any) -> None:
        # The first frame knows what the header may not: AAC with spectral replication doubles its rate in decoding.
        self.rate_hz, self.num_channels = int(stream.codec_context.sample_rate or 0), 0
        first = self._next_block()
        if first is None:
            raise AudioError(f"{shown(self._path)} holds a sound stream without a single sample", kind="empty")
        self._pending.append(first)

    def read(self, num_samples: int) -> Float32[np.ndarray, "time channel"]:
        num_pending = sum(map(len, self._pending))
        while num_pending < num_samples and (block := self._next_block()) is not None:
            self._pending.append(block)
            num_pending += len(block)
        if not self._pending:
            return np.zeros((0, self.num_channels), np.float32)
        joined = np.concatenate(self._pending)
        self._pending = [joined[num_samples:]] if len(joined) > num_samples else []
        return joined[:num_samples]

    def _next_block(self) -> Float32[np.ndarray, "time channel"] | None:
        try:
            frame = next(self._frames, None)
        except self._ffmpeg_error as error:
            raise AudioError(
                f"{shown(self._path)} is damaged or cut off: "
                f"decoding stopped after {self._num_read:,} samples ({_said(error)})",
                kind="damaged",
                hint="copy or fetch the file again",
            ) from error
        if frame is None:
            return None
        num_channels = len(frame.layout.channels)
        if self._num_read == 0:
            self.rate_hz, self.num_channels = frame.sample_rate, num_channels
        if (frame.sample_rate, num_channels) != (self.rate_hz, self.num_channels):
            raise AudioError(
                f"{shown(self._path)} changes from {self.rate_hz} Hz and {self.num_channels} channels to "
                f"{frame.sample_rate} Hz and {num_channels} channels after {self._num_read:,} samples",
                kind="unsupported",
                hint="write it again at one rate, for example with ffmpeg -ar",
            )
        self._num_read += frame.samples
        return _samples(frame, num_channels)

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._file.close()


def _import_av(path: str, container: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise AudioError(
            f"{shown(path)} is {container}, which needs the PyAV decoder",
            kind="unsupported",
            hint="pip install 'woodshed[av]'",
        ) from error
    return av


def _clock_s(container: Any, stream: Any) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    # The length of the whole file says nothing about its sound if there are pictures too.
    if container.duration and len(container.streams) == 1:
        return float(container.duration) / 1e6
    return None


def _samples(frame: Any, num_channels: int) -> Float32[np.ndarray, "time channel"]:
    samples: np.ndarray = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, num_channels)
    name = frame.format.name.removesuffix("p")
    if name == "u8":
        samples = samples.astype(np.float32) - 128
    return (samples.astype(np.float32) * np.float32(1 / FULL_SCALE[name])).astype(np.float32, copy=False)


def _said(error: Exception) -> str:
    """What FFmpeg says, without the number of the open file that its messages end in: it differs from run to run."""
    return str(getattr(error, "strerror", None) or error)
