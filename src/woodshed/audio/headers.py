"""What containers announce about themselves and decoders keep quiet about, or get wrong.

libsndfile clips the length of a cut-off WAV or AIFF to what is there, guesses the length of an MP3 without a frame
count (and then stops decoding at its guess), and skips damaged pages of an Ogg stream: all without an error.
These functions read the headers themselves. They look at bytes through `os.pread`, so the file's offset stays put.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

MAX_CHUNKS = 4096
"""Chunks of a WAV-like file that are looked at before the one with the sound; real files have a dozen."""

STREAMED_BYTES = 0x7FFF_0000
"""A 32-bit length from here on was written by a program that did not know the length yet."""

MP3_SEARCH_BYTES = 1 << 17
MP3_BITRATES_KBPS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates by MPEG version (2 stands for 2.5 too) and layer."""

MP3_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
"""Sample rates by the version bits of the header."""

MP3_SLACK_BYTES = 4096
"""Sound beyond what the first frame counts that is put down to padding; more is a second recording glued on."""

ByteOrder: TypeAlias = Literal["little", "big"]

_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, slots=True)
class SoundBytes:
    """Where a WAV-like file says that its samples lie."""

    start: int
    size: int | None
    """None: the writer did not know; the samples go on to the end of the file."""


def announced_sound_bytes(descriptor: int, file_bytes: int) -> SoundBytes | None:
    """Find the samples of a WAV (RIFF, RIFX, RF64, BW64), AIFF, AU, W64 or CAF file; None for anything else.

    Sources: Microsoft RIFF and EBU Tech 3306 (RF64), Apple AIFF-C and CAF, Sun AU, Sonic Foundry Wave64.
    """
    head = os.pread(descriptor, 40, 0)
    match head[:4]:
        case b"RIFF" | b"RF64" | b"BW64":
            return _find_chunk(descriptor, file_bytes, b"data", order="little")
        case b"RIFX":
            return _find_chunk(descriptor, file_bytes, b"data", order="big")
        case b"FORM":
            return _find_chunk(descriptor, file_bytes, b"SSND", order="big")
        case b".snd" | b"dns.":
            order: ByteOrder = "big" if head[:1] == b"." else "little"
            start, size = (int.from_bytes(head[at : at + 4], order) for at in (4, 8))
            return SoundBytes(start, None if size >= STREAMED_BYTES else size)
        case b"riff":
            return _find_wave64_data(descriptor, file_bytes)
        case b"caff":
            return _find_caf_data(descriptor, file_bytes)
    return None


def _find_chunk(descriptor: int, file_bytes: int, name: bytes, *, order: ByteOrder) -> SoundBytes | None:
    at, long_size = 12, None
    for _ in range(MAX_CHUNKS):
        chunk = os.pread(descriptor, 24, at)
        if len(chunk) < 8:
            return None
        size = int.from_bytes(chunk[4:8], order)
        if chunk[:4] == b"ds64":
            long_size = int.from_bytes(chunk[16:24], "little")
        if chunk[:4] == name:
            if size == 0xFFFF_FFFF and long_size is not None:
                size = long_size
            elif size >= STREAMED_BYTES and at + 8 + size > file_bytes:
                return SoundBytes(at + 8, None)
            return SoundBytes(at + 8, size)
        at += 8 + size + size % 2
    return None


def _find_wave64_data(descriptor: int, file_bytes: int) -> SoundBytes | None:
    at = 40
    for _ in range(MAX_CHUNKS):
        chunk = os.pread(descriptor, 24, min(at, file_bytes))
        size = int.from_bytes(chunk[16:24], "little")
        if len(chunk) < 24 or size < 24:
            return None
        if chunk[:4] == b"data":
            return SoundBytes(at + 24, size - 24)
        at += size + -size % 8
    return None


def _find_caf_data(descriptor: int, file_bytes: int) -> SoundBytes | None:
    at = 8
    for _ in range(MAX_CHUNKS):
        chunk = os.pread(descriptor, 12, min(at, file_bytes))
        size = int.from_bytes(chunk[4:12], "big", signed=True)
        if len(chunk) < 12:
            return None
        if chunk[:4] == b"data":
            return SoundBytes(at + 12, None if size < 0 else size)
        if size < 0:
            return None
        at += 12 + size
    return None


@dataclass(frozen=True, slots=True)
class Mp3Span:
    """Where the frames of an MPEG audio file lie, tags left out."""

    start: int
    """First byte to decode: after the counting frame when that frame cannot be trusted."""
    end: int
    is_counted: bool
    """The first frame holds the number of frames of the whole file, so the decoder knows the exact length."""


def find_mp3_frames(descriptor: int, file_bytes: int) -> Mp3Span | None:
    """Find the frames between the tags of an MPEG audio file; None when there are no two in a row.

    Sources: ISO 11172-3 (frame header), the Xing/Info frame as LAME writes it, id3.org, the APEv2 tag.
    """
    start = _skip_id3v2(descriptor)
    end = _before_tail_tags(descriptor, file_bytes)
    head = os.pread(descriptor, MP3_SEARCH_BYTES, start)
    for at in _sync_words(head):
        length = _mp3_frame_bytes(head[at : at + 4])
        if length is None or (at + length + 4 <= len(head) and _mp3_frame_bytes(head[at + length :][:4]) is None):
            continue
        frame = head[at : at + length]
        counted_bytes = _counted_bytes(frame)
        if counted_bytes is None:
            # An Info frame without a count is silence to the decoder; leaving it in does no harm.
            return Mp3Span(start + at, end, is_counted=False)
        if counted_bytes and end - (start + at) > counted_bytes + MP3_SLACK_BYTES:
            return Mp3Span(start + at + length, end, is_counted=False)
        return Mp3Span(start + at, end, is_counted=True)
    return None


def _sync_words(data: bytes) -> Iterator[int]:
    at = data.find(b"\xff")
    while at >= 0:
        if len(data) > at + 3 and data[at + 1] >= 0xE0:
            yield at
        at = data.find(b"\xff", at + 1)


def _mp3_frame_bytes(header: bytes) -> int | None:
    """Length of the frame that a four-byte header begins; None if it is not one (or of free format)."""
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return None
    version, layer = (header[1] >> 3) & 3, 4 - ((header[1] >> 1) & 3)
    bitrate, rate, padding = header[2] >> 4, (header[2] >> 2) & 3, (header[2] >> 1) & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    family = 1 if version == 3 else 2
    bits_per_s = 1000 * MP3_BITRATES_KBPS[family, layer][bitrate - 1]
    rate_hz = MP3_RATES_HZ[version][rate]
    if layer == 1:
        return 4 * (12 * bits_per_s // rate_hz + padding)
    return (72 if family == 2 and layer == 3 else 144) * bits_per_s // rate_hz + padding


def _counted_bytes(frame: bytes) -> int | None:
    """What a Xing or Info frame counts in bytes (0: frames are counted, bytes are not); None: frames not counted."""
    for at in (13, 15, 21, 23, 36, 38):  # behind the side information, by version, channels and checksum
        if frame[at : at + 4] in (b"Xing", b"Info"):
            flags = frame[at + 7] if len(frame) >= at + 16 else 0
            if not flags & 1 or not any(frame[at + 8 : at + 12]):
                return None
            return int.from_bytes(frame[at + 12 : at + 16], "big") if flags & 2 else 0
    return None


def _skip_id3v2(descriptor: int) -> int:
    at = 0
    for _ in range(MAX_CHUNKS):
        tag = os.pread(descriptor, 10, at)
        if len(tag) < 10 or tag[:3] != b"ID3":
            break
        size = sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:10], (21, 14, 7, 0), strict=True))
        at += 10 + size + (10 if tag[5] & 0x10 else 0)
    return at


def _before_tail_tags(descriptor: int, file_bytes: int) -> int:
    end = file_bytes
    if end > 128 and os.pread(descriptor, 3, end - 128) == b"TAG":
        end -= 128
    footer = os.pread(descriptor, 32, max(end - 32, 0))
    if footer[:8] == b"APETAGEX":
        size, has_header = int.from_bytes(footer[12:16], "little"), footer[23] & 0x80
        end -= size + (32 if has_header else 0)
    return max(end, 0)


@dataclass(frozen=True, slots=True)
class OggFault:
    """What is wrong with an Ogg file, and the byte where it was noticed."""

    kind: str
    message: str
    at_byte: int


def find_ogg_fault(descriptor: int, file_bytes: int) -> OggFault | None:
    """Walk all pages of an Ogg file: checksums, page numbers, whole last page, one stream at a time (RFC 3533).

    Reads the file once, page by page (about 2 ms per MB). A stream without an end-of-stream mark is accepted when its
    last page is whole: recorders that are switched off leave such files, and nothing of them is missing. What follows
    the end-of-stream mark without being a page is a tag of some other format, and no part of the sound.
    """
    at, next_page = 0, dict[bytes, int]()
    has_sound_begun = has_ended = False
    while at < file_bytes:
        head = os.pread(descriptor, 27 + 255, at)
        if head[:4] != b"OggS"[: len(head)]:
            if has_ended:
                return None
            return OggFault("damaged", "the page does not begin as a page", at)
        num_segments = head[26] if len(head) > 26 else 0
        page_bytes = 27 + num_segments + sum(head[27 : 27 + num_segments])
        if len(head) < 27 + num_segments or at + page_bytes > file_bytes:
            return OggFault("truncated", "the last page is cut off", at)
        page = os.pread(descriptor, page_bytes, at)
        if ogg_checksum(page) != int.from_bytes(page[22:26], "little"):
            return OggFault("damaged", "the page's checksum is wrong", at)
        serial, number, is_first = page[14:18], int.from_bytes(page[18:22], "little"), bool(page[5] & 2)
        if is_first and has_sound_begun:
            return OggFault("unsupported", "a second recording is joined to the first", at)
        if not is_first:
            has_sound_begun = True
            if number != next_page.get(serial):
                return OggFault("damaged", "pages are missing", at)
        next_page[serial], has_ended = number + 1, bool(page[5] & 4)
        at += page_bytes
    return None


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of an Ogg page (polynomial 0x04C11DB7, most significant bit first, nothing inverted), its field as zero.

    zlib computes the same polynomial with all bits mirrored, so bytes go in mirrored and the result comes out so.
    """
    data = (page[:22] + bytes(4) + page[26:]).translate(_BITS_REVERSED)
    mirrored = zlib.crc32(data, 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{mirrored:032b}"[::-1], 2)
