"""Every format is read, by its content, with the length that was announced."""

from __future__ import annotations

import os
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audio.conftest import decode_all, make_music, write_sound, write_with_ffmpeg
from woodshed.audio.decode import DecodeLimits, blocks
from woodshed.audio.headers import find_mp3_frames
from woodshed.audio.opening import file_digest
from woodshed.audio.probe import probe
from woodshed.errors import AudioError

PCM16_STEP = 1 / 32768

LOSSLESS = [
    ("WAV", "PCM_U8", 2 / 128),
    ("WAV", "PCM_16", PCM16_STEP),
    ("WAV", "PCM_24", 2**-23),
    ("WAV", "PCM_32", 2**-23),
    ("WAV", "FLOAT", 0),
    ("WAV", "DOUBLE", 0),
    ("RF64", "PCM_16", PCM16_STEP),
    ("W64", "PCM_24", 2**-23),
    ("AIFF", "PCM_16", PCM16_STEP),
    ("AIFF", "FLOAT", 0),
    ("AU", "PCM_16", PCM16_STEP),
    ("CAF", "PCM_24", 2**-23),
    ("FLAC", "PCM_16", PCM16_STEP),
    ("FLAC", "PCM_24", 2**-23),
]


@pytest.mark.parametrize(("format", "subtype", "step"), LOSSLESS)
def test_lossless_formats_come_back_as_written(
    sound_file: Callable[..., Path], format: str, subtype: str, step: float
) -> None:
    path = sound_file("SOUND.WrongSuffix", 70_001, format=format, subtype=subtype)
    info = probe(str(path))
    assert (info.rate_hz, info.num_channels, info.num_samples) == (44_100, 2, 70_001)
    assert info.format.endswith(f"/{subtype}")
    assert info.decoder.startswith("libsndfile-")
    assert np.abs(decode_all(path) - make_music(70_001).T).max() <= step


@pytest.mark.parametrize(
    ("name", "format", "subtype", "rate_hz"),
    [("a.MP3", "MP3", None, 44_100), ("a.OGG", "OGG", "VORBIS", 44_100), ("a.Opus", "OGG", "OPUS", 48_000)],
)
def test_lossy_formats_come_back_close_and_whole(
    sound_file: Callable[..., Path], name: str, format: str, subtype: str | None, rate_hz: int
) -> None:
    path = sound_file(name, 50_000, format=format, subtype=subtype, rate_hz=rate_hz)
    decoded = decode_all(path)
    assert decoded.shape == (2, 50_000)
    assert np.corrcoef(decoded[0], make_music(50_000)[:, 0])[0, 1] > 0.95
    assert np.array_equal(decoded, soundfile.read(path, dtype="float32")[0].T)


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [("a.m4a", "aac", None), ("a.aac", "aac", "adts"), ("a.MKA", "aac", "matroska"), ("b.m4a", "alac", None)],
)
def test_what_libsndfile_does_not_know_goes_to_ffmpeg(
    tmp_path: Path, name: str, codec: str, format: str | None
) -> None:
    path = write_with_ffmpeg(tmp_path / name, codec, format=format)
    info, decoded = probe(str(path)), decode_all(path)
    assert info.decoder.startswith("PyAV-")
    assert info.format.endswith(f"/{codec}")
    assert decoded.shape == (2, info.num_samples)
    assert 60_000 <= info.num_samples <= 60_000 + 3 * 1024
    lag = 1024 if codec == "aac" and format == "adts" else 0  # raw AAC keeps the encoder's delay
    assert np.corrcoef(decoded[0, lag : lag + 60_000], make_music(60_000)[:, 0])[0, 1] > 0.95
    if codec == "alac":
        assert np.abs(decoded - make_music(60_000).T).max() <= 2**-22


def test_blocks_are_bounded_and_any_block_size_gives_the_same_samples(sound_file: Callable[..., Path]) -> None:
    for path in (sound_file("a.flac", 20_000), sound_file("a.mp3", 20_000), sound_file("a.ogg", 20_000)):
        info = probe(str(path))
        whole = decode_all(path)
        for size in (997, 4096):
            parts = list(blocks(str(path), info, block_samples=size))
            assert max(part.shape[1] for part in parts) == size
            assert np.array_equal(np.concatenate(parts, axis=1), whole)


@settings(max_examples=25, deadline=None)
@given(
    rate_hz=st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000]),
    num_channels=st.integers(1, 2),
    num_samples=st.integers(1, 9_000),
    mode=st.sampled_from(["CONSTANT", "AVERAGE", "VARIABLE"]),
)
def test_mp3_length_is_exact(
    tmp_path_factory: pytest.TempPathFactory, rate_hz: int, num_channels: int, num_samples: int, mode: str
) -> None:
    path = tmp_path_factory.mktemp("mp3") / "a.mp3"
    write_sound(path, num_samples, rate_hz=rate_hz, num_channels=num_channels, bitrate_mode=mode)
    assert decode_all(path).shape == (num_channels, num_samples)


def _without_count(mp3: bytes, folder: Path) -> bytes:
    path = folder / "counted.mp3"
    path.write_bytes(mp3)
    with path.open("rb") as file:
        counted = find_mp3_frames(file.fileno(), len(mp3))
    assert counted is not None
    assert counted.is_counted
    second = mp3.index(mp3[counted.start : counted.start + 2], counted.start + 100)
    return mp3[second:]


def test_mp3_without_a_count_is_decoded_to_its_end(tmp_path: Path, sound_file: Callable[..., Path]) -> None:
    # libsndfile alone guesses from the first frame: too short here by more than half.
    loud = sound_file("loud.mp3", 44_100 * 2, bitrate_mode="CONSTANT", compression_level=0.0).read_bytes()
    quiet = sound_file("quiet.mp3", 44_100 * 8, bitrate_mode="CONSTANT", compression_level=0.7).read_bytes()
    path = tmp_path / "joined.mp3"
    path.write_bytes(_without_count(loud, tmp_path) + _without_count(quiet, tmp_path))
    guessed = soundfile.info(path).frames
    info = probe(str(path))
    assert guessed < 0.8 * info.num_samples
    assert abs(info.num_samples - 44_100 * 10) < 5 * 1152
    assert decode_all(path).shape == (2, info.num_samples)


def test_two_joined_mp3_files_are_decoded_as_one(tmp_path: Path, sound_file: Callable[..., Path]) -> None:
    one = sound_file("one.mp3", 44_100 * 3).read_bytes()
    path = tmp_path / "joined.mp3"
    path.write_bytes(one + one)
    assert soundfile.info(path).frames == 44_100 * 3
    assert 44_100 * 6 <= probe(str(path)).num_samples <= 44_100 * 6 + 6 * 1152
    assert decode_all(path).shape[1] == probe(str(path)).num_samples


def test_mp3_tags_are_no_sound(tmp_path: Path, sound_file: Callable[..., Path]) -> None:
    mp3 = sound_file("plain.mp3", 40_000).read_bytes()
    id3v2 = b"ID3\x04\x00\x00" + bytes([0, 0, 0x17, 0x38]) + bytes(0x17 * 128 + 0x38)
    id3v1 = b"TAG" + bytes(125)
    ape = bytes(5000 - 32) + b"APETAGEX" + (2000).to_bytes(4, "little") + (5000).to_bytes(4, "little") + bytes(16)
    bare = _without_count(mp3, tmp_path)
    path = tmp_path / "tagged.mp3"
    for sound in (mp3, bare):
        path.write_bytes(sound)
        expected = decode_all(path)
        for tagged in (id3v2 + sound, sound + id3v1, sound + ape, id3v2 + sound + ape + id3v1):
            path.write_bytes(tagged)
            assert np.array_equal(decode_all(path), expected)


def test_flac_of_unknown_length_is_counted(sound_file: Callable[..., Path]) -> None:
    path = sound_file("pipe.flac", 100_000)
    data = bytearray(path.read_bytes())
    set_flac_length(data, 0)
    path.write_bytes(data)
    assert probe(str(path)).num_samples == 100_000
    assert np.abs(decode_all(path) - make_music(100_000).T).max() <= PCM16_STEP


def set_flac_length(flac: bytearray, num_samples: int) -> None:
    """Overwrite the 36 bits of STREAMINFO that hold the length."""
    field = int.from_bytes(flac[18:26], "big") >> 36 << 36
    flac[18:26] = (field | num_samples).to_bytes(8, "big")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_wav_from_a_pipe_ends_where_the_file_ends(sound_file: Callable[..., Path], size: int) -> None:
    path = sound_file("pipe.wav", 10_000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = size.to_bytes(4, "little")
    path.write_bytes(data)
    assert decode_all(path).shape == (2, 10_000)


@pytest.mark.parametrize("rate_hz", [1_000, 8_000, 192_000, 384_000])
@pytest.mark.parametrize("num_channels", [1, 8])
def test_rates_and_channels_within_the_limits(sound_file: Callable[..., Path], rate_hz: int, num_channels: int) -> None:
    path = sound_file("a.wav", 500, rate_hz=rate_hz, num_channels=num_channels)
    info = probe(str(path))
    assert (info.rate_hz, info.num_channels) == (rate_hz, num_channels)
    assert decode_all(path).shape == (num_channels, 500)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 names only")
def test_names_that_are_not_utf8(tmp_path: Path, sound_file: Callable[..., Path]) -> None:
    for source in (sound_file("a.wav"), sound_file("a.mp3"), write_with_ffmpeg(tmp_path / "a.m4a", "aac")):
        name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + os.fsencode(source.suffix))
        source.rename(name)
        assert probe(name).num_channels == 2
        assert decode_all(name).shape[0] == 2
        os.truncate(name, 100)
        with pytest.raises(AudioError, match=r"caf\\xe9") as caught:
            decode_all(name)
        assert str(caught.value).encode("utf-8")


def test_many_threads_decode_the_same(tmp_path: Path, sound_file: Callable[..., Path]) -> None:
    bare = tmp_path / "bare.mp3"
    bare.write_bytes(_without_count(sound_file("a.mp3", 60_000).read_bytes(), tmp_path))
    paths = [bare, sound_file("a.flac", 60_000), sound_file("a.ogg", 60_000)] * 4
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(decode_all, paths))
    for path, result in zip(paths, results, strict=True):
        assert np.array_equal(result, decode_all(path))


def test_a_reader_that_stops_early_leaves_nothing_open(tmp_path: Path, sound_file: Callable[..., Path]) -> None:
    bare = tmp_path / "bare.mp3"
    bare.write_bytes(_without_count(sound_file("a.mp3", 44_100 * 20).read_bytes(), tmp_path))
    info = probe(str(bare))
    descriptors = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    before = (threading.active_count(), len(list(descriptors.iterdir())))
    for _ in range(5):
        parts = blocks(str(bare), info, block_samples=1000)
        next(parts)
        parts.close()
    assert (threading.active_count(), len(list(descriptors.iterdir()))) == before


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"woodshed")
    one = file_digest(str(path))
    assert one.startswith("xxh3_128:")
    assert len(one) == len("xxh3_128:") + 32
    path.write_bytes(b"woodsheD")
    assert file_digest(str(path)) != one


def test_limits(sound_file: Callable[..., Path]) -> None:
    path = sound_file("a.wav", 44_100)
    info = probe(str(path))
    for limits, kind in [
        (DecodeLimits(max_duration_s=0.5), "too_long"),
        (DecodeLimits(max_decoded_bytes=1000), "too_large"),
        (DecodeLimits(max_decoding_s=0.0), "too_slow"),
    ]:
        with pytest.raises(AudioError) as caught:
            list(blocks(str(path), info, limits=limits))
        assert caught.value.kind == kind
    with pytest.raises(AudioError, match="lasts 1 s or more; the limit is 0 s"):
        probe(str(path), limits=DecodeLimits(max_duration_s=0.25))


def test_ten_minutes_need_no_more_memory_than_one(sound_file: Callable[..., Path]) -> None:
    peaks = []
    for minutes in (1, 10):
        path = sound_file(f"{minutes}.flac", 8_000 * 60 * minutes, rate_hz=8_000, num_channels=1)
        info = probe(str(path))
        tracemalloc.start()
        for _ in blocks(str(path), info):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 2_000_000
