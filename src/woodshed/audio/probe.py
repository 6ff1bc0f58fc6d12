"""What a sound file is, and how long: an answer that decoding will confirm."""

from __future__ import annotations

from woodshed.audio.decode import DecodeLimits, count_samples, require_samples
from woodshed.audio.reader import open_reader
from woodshed.contracts import AudioInfo


def probe(path: str, *, limits: DecodeLimits | None = None) -> AudioInfo:
    """Read a sound file's header; any format, by content and not by suffix.

    The length is the one that decoding gives. Where a header does not hold it (MP3 without a frame count, FLAC from a
    pipe, everything that PyAV decodes) the file is decoded once to count: slower, and true.

    Args:
        path: may hold surrogate-escaped bytes of a name that is not UTF-8.

    Raises:
        AudioError: the file cannot be used; its kind and text say why (see `open_reader` and `count_samples`).
    """
    limits = DecodeLimits() if limits is None else limits
    with open_reader(path, is_thorough=False) as reader:
        num_samples = reader.num_samples
        if num_samples is None:
            num_samples = count_samples(path, reader, limits)
        else:
            require_samples(path, reader, limits)
        return AudioInfo(
            rate_hz=reader.rate_hz,
            num_channels=reader.num_channels,
            num_samples=num_samples,
            format=reader.format,
            decoder=reader.decoder,
        )
