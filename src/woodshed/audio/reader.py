"""Opening a sound file, whatever it is called: which library decodes it, and how long it truly claims to be.

libsndfile decodes WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, AU, W64, CAF and others; what it does not know goes to PyAV.
The content decides, never the suffix.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Protocol, runtime_checkable

import numpy as np
import soundfile
from jaxtyping import Float32

from woodshed.audio.headers import Mp3Span, announced_sound_bytes, find_mp3_frames, find_ogg_fault
from woodshed.audio.opening import open_file, shown
from woodshed.errors import AudioError

MAX_CHANNELS = 8
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 384_000

MAX_SAMPLES_PER_BYTE = 8192
"""No coding of ours packs more time into a byte: 65,535 constant samples of FLAC take 12 bytes or more."""

MISSING_BYTES_TOLERATED = 64
"""Some writers count their own header as sound; fewer missing bytes than this are put down to that."""

UNKNOWN_LENGTH = 1 << 62
"""libsndfile announces 2^63 - 1 samples when it does not know."""

# fmt: off
SOUND_SUFFIXES = frozenset({
    "aac", "ac3", "aif", "aifc", "aiff", "amr", "ape", "au", "caf", "flac", "m4a", "mka", "mkv", "mp2", "mp3", "mp4",
    "oga", "ogg", "opus", "w64", "wav", "wave", "webm", "wma", "wv",
})
# fmt: on

FOREIGN_FORMATS = (
    (4, b"ftyp", "MP4 or M4A"),
    (4, b"moov", "QuickTime"),
    (4, b"mdat", "QuickTime"),
    (4, b"wide", "QuickTime"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (0, b"\x30\x26\xb2\x75", "ASF (WMA)"),
    (0, b"\xff\xf0", "AAC"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf8", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"ID3", "AAC or another format behind an ID3 tag"),
    (0, b"\x0b\x77", "AC-3"),
    (0, b"wvpk", "WavPack"),
    (0, b"TTA1", "TTA"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"#!AMR", "AMR"),
    (0, b"FLV\x01", "FLV"),
    (0, b"DSD ", "DSF"),
    (0, b"OggS", "Ogg with a coding other than Vorbis and Opus"),
    (0, b"caff", "CAF with an unusual coding"),
    (0, b"RIFF", "WAV with an unusual coding, or AVI"),
    (0, b"FORM", "AIFF with an unusual coding"),
)
"""Offset, mark and name of what PyAV is asked to decode. Nothing else reaches FFmpeg: its guesses are generous."""

PIPE_BLOCK_BYTES = 1 << 16

SNDFILE_UNRECOGNISED, SNDFILE_UNSUPPORTED = 1, 4
"""Error numbers of libsndfile's `sf_error_number`: not a format it knows; a coding it does not know."""

DECODER = f"libsndfile-{soundfile.__libsndfile_version__}"


@runtime_checkable
class Reader(Protocol):
    """A sound file that is being decoded, from the first sample to the last."""

    rate_hz: int
    num_channels: int
    num_samples: int | None
    """Announced length; None when the header does not hold it and only decoding can tell."""
    clock_s: float | None
    """Length by the clock of the container, where it has one: inexact, but it shows that the end is missing."""
    format: str
    decoder: str

    def read(self, num_samples: int) -> Float32[np.ndarray, "time channel"]:
        """Decode the next samples: as many as asked for, fewer only at the end, none after it.

        Raises:
            AudioError: kind `damaged`, or `truncated` when the data ended where more was needed.
        """
        ...

    def close(self) -> None: ...


@contextmanager
def open_reader(path: str, *, is_thorough: bool) -> Iterator[Reader]:
    """Open a sound file for decoding, and check what its header says.

    Args:
        is_thorough: also check what has to be read whole for it: the pages of an Ogg file, whose damage decoders hide.

    Raises:
        AudioError: what `open_file` raises, and kind `mislabelled` (not sound, though its name says so), `unsupported`,
            `no_audio`, `damaged`, `truncated`, `absurd_header`, `too_many_channels`, or `empty` (no samples).
    """
    with open_file(path) as (descriptor, file_bytes):
        if is_thorough and os.pread(descriptor, 4, 0) == b"OggS":
            _require_whole_pages(path, descriptor, file_bytes)
        with closing(_open(path, descriptor, file_bytes)) as reader:
            _require_sane(path, reader, file_bytes)
            yield reader


def _open(path: str, descriptor: int, file_bytes: int) -> Reader:
    _require_whole(path, descriptor, file_bytes)
    try:
        reader = SndfileReader(path, descriptor, file_bytes)
    except soundfile.LibsndfileError as error:
        return _open_foreign(path, descriptor, error)
    try:
        if reader.container == "MP3":
            span = find_mp3_frames(descriptor, file_bytes)
            if span is None:
                raise _not_sound(path, descriptor)
            if not span.is_counted:
                reader.close()
                return PipedMp3Reader(path, descriptor, span)
        elif reader.coding.startswith("MPEG"):
            # MP3 within WAV: libsndfile guesses its length too.
            reader.close()
            return _open_foreign(path, descriptor, None)
    except BaseException:
        reader.close()
        raise
    return reader


def _require_whole(path: str, descriptor: int, file_bytes: int) -> None:
    announced = announced_sound_bytes(descriptor, file_bytes)
    if announced is None or announced.size is None:
        return
    missing_bytes = announced.start + announced.size - file_bytes
    if missing_bytes > MISSING_BYTES_TOLERATED:
        raise AudioError(
            f"{shown(path)} is cut off: its header announces {announced.size:,} bytes of sound, "
            f"the file holds {max(announced.size - missing_bytes, 0):,}",
            kind="truncated",
            hint="copy or fetch the file again",
        )


def _require_whole_pages(path: str, descriptor: int, file_bytes: int) -> None:
    fault = find_ogg_fault(descriptor, file_bytes)
    if fault is not None:
        raise AudioError(
            f"{shown(path)}: {fault.message} (Ogg page at byte {fault.at_byte:,} of {file_bytes:,})",
            kind=fault.kind,
            hint="write it again as one stream" if fault.kind == "unsupported" else "copy or fetch the file again",
        )


def _open_foreign(path: str, descriptor: int, error: soundfile.LibsndfileError | None) -> Reader:
    head = os.pread(descriptor, 64, 0)
    name = next((name for at, mark, name in FOREIGN_FORMATS if head[at : at + len(mark)] == mark), None)
    is_unknown_coding = error is None or error.code in (SNDFILE_UNRECOGNISED, SNDFILE_UNSUPPORTED)
    is_other_ogg = head[:4] == b"OggS" and b"\x01vorbis" not in head and b"OpusHead" not in head
    if name is not None and (is_unknown_coding or is_other_ogg):
        from woodshed.audio.pyav import PyavReader

        return PyavReader(path, descriptor, container=name)
    if is_unknown_coding:
        raise _not_sound(path, descriptor)
    reason = error.error_string if error is not None else ""
    raise AudioError(
        f"{shown(path)} is damaged or cut off within its header ({reason.strip()})",
        kind="damaged",
        hint="copy or fetch the file again",
    )


def _not_sound(path: str, descriptor: int) -> AudioError:
    begins = os.pread(descriptor, 12, 0)
    suffix = os.path.splitext(path)[1].lower().lstrip(".")  # noqa: PTH122 -- Path() costs more than the probe
    is_claimed = suffix in SOUND_SUFFIXES
    return AudioError(
        f"{shown(path)} is not sound in any known format: it begins with {begins!r}",
        kind="mislabelled" if is_claimed else "unsupported",
        hint=f"look what it is (`file` tells); its name says {suffix}" if is_claimed else "leave it out of the source",
    )


def _require_sane(path: str, reader: Reader, file_bytes: int) -> None:
    if reader.num_channels > MAX_CHANNELS:
        raise AudioError(
            f"{shown(path)} has {reader.num_channels:,} channels; at most {MAX_CHANNELS} are supported",
            kind="too_many_channels",
            hint="split it, or mix it down first",
        )
    if not MIN_RATE_HZ <= reader.rate_hz <= MAX_RATE_HZ:
        raise AudioError(
            f"{shown(path)} announces {reader.rate_hz:,} samples per second; "
            f"{MIN_RATE_HZ:,} to {MAX_RATE_HZ:,} are supported",
            kind="absurd_header",
            hint="write it again with its true rate",
        )
    if reader.num_samples is None:
        return
    if reader.num_samples == 0:
        raise AudioError(
            f"{shown(path)} announces no samples (its size is {file_bytes:,} bytes)",
            kind="empty",
            hint="if it plays, its header was never completed: write it again, for example with ffmpeg",
        )
    if reader.num_samples > file_bytes * MAX_SAMPLES_PER_BYTE:
        raise AudioError(
            f"{shown(path)} announces {reader.num_samples:,} samples; its {file_bytes:,} bytes cannot hold them",
            kind="absurd_header",
            hint="write it again, for example with ffmpeg",
        )


class _ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that is read once, front to back.

    soundfile seeks after every read of a seekable file. At the end of a FLAC file of unknown or exaggerated length
    that fails, and takes the last block along.
    """

    def seekable(self) -> bool:
        return False


class SndfileReader:
    """Decodes with libsndfile; integers are scaled to [-1, 1), floats come as they are.

    Args:
        descriptor: what libsndfile reads from.
        file_bytes: its size; None for a pipe, whose offset does not tell whether the data ran out.
    """

    clock_s: float | None = None

    def __init__(self, path: str, descriptor: int, file_bytes: int | None) -> None:
        self._path, self._descriptor, self._file_bytes = path, descriptor, file_bytes
        self._sound = _ForwardSoundFile(descriptor, closefd=False)
        self._num_read = 0
        self.rate_hz: int = self._sound.samplerate
        self.num_channels: int = self._sound.channels
        self.num_samples: int | None = self._sound.frames if self._sound.frames < UNKNOWN_LENGTH else None
        self.container: str = self._sound.format
        self.coding: str = self._sound.subtype
        self.format = f"{self.container}/{self.coding}"
        self.decoder = DECODER

    def read(self, num_samples: int) -> Float32[np.ndarray, "time channel"]:
        try:
            block: np.ndarray = self._sound.read(num_samples, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            is_used_up = self._file_bytes is not None and (
                os.lseek(self._descriptor, 0, os.SEEK_CUR) >= self._file_bytes
            )
            raise decoding_error(
                self._path, self._num_read, self.num_samples, reason=error.error_string, is_used_up=is_used_up
            ) from error
        self._num_read += len(block)
        return block

    def close(self) -> None:
        self._sound.close()


class PipedMp3Reader(SndfileReader):
    """Decodes an MP3 that does not say how long it is.

    libsndfile would guess the length from the first frame's bit rate and stop there. It does not guess for a pipe, so
    a thread pipes the frames to it.
    """

    def __init__(self, path: str, descriptor: int, span: Mp3Span) -> None:
        self._read_end, self._write_end = os.pipe()
        self._is_closing = threading.Event()
        self._feeder = threading.Thread(target=self._feed, args=(descriptor, span), name="mp3-feeder", daemon=True)
        self._feeder.start()
        try:
            super().__init__(path, self._read_end, None)
        except BaseException:
            self._stop_feeding()
            raise

    def _feed(self, source: int, span: Mp3Span) -> None:
        at = span.start
        try:
            while at < span.end and not self._is_closing.is_set():
                block = os.pread(source, min(PIPE_BLOCK_BYTES, span.end - at), at)
                if not block:
                    break
                at += os.write(self._write_end, block)
        finally:
            os.close(self._write_end)

    def _stop_feeding(self) -> None:
        # The pipe is emptied before it is closed: a writer without a reader would get SIGPIPE.
        self._is_closing.set()
        while os.read(self._read_end, PIPE_BLOCK_BYTES):
            pass
        self._feeder.join()
        os.close(self._read_end)

    def close(self) -> None:
        super().close()
        self._stop_feeding()


def decoding_error(path: str, num_read: int, num_announced: int | None, *, reason: str, is_used_up: bool) -> AudioError:
    """The error for data that cannot be decoded: `truncated` when the file was used up, else `damaged`."""
    of = "" if num_announced is None else f" of {num_announced:,}"
    return AudioError(
        f"{shown(path)} is {'cut off' if is_used_up else 'damaged'}: decoding stopped after about "
        f"{num_read:,}{of} samples ({reason.strip()})",
        kind="truncated" if is_used_up else "damaged",
        hint="copy or fetch the file again",
    )
