"""Files that are broken, or lie, become an error with a reason: never silence, never a shorter clip, never a crash."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audio.conftest import decode_all, write_sound, write_with_ffmpeg
from tests.audio.test_sound_formats import set_flac_length
from woodshed.audio.decode import blocks
from woodshed.audio.headers import ogg_checksum
from woodshed.audio.probe import probe
from woodshed.errors import AudioError


def failure(path: Path | str) -> AudioError:
    with pytest.raises(AudioError) as caught:
        decode_all(path)
    assert Path(path).name in str(caught.value)
    return caught.value


def test_missing_empty_folder_pipe(tmp_path: Path) -> None:
    assert failure(tmp_path / "none.wav").kind == "missing"
    (tmp_path / "empty.wav").touch()
    assert failure(tmp_path / "empty.wav").kind == "empty"
    assert "0 bytes" in str(failure(tmp_path / "empty.wav"))
    (tmp_path / "folder.wav").mkdir()
    assert failure(tmp_path / "folder.wav").kind == "unreadable"
    os.mkfifo(tmp_path / "pipe.wav")
    assert failure(tmp_path / "pipe.wav").kind == "unreadable"
    with pytest.raises(AudioError) as caught:
        probe("a\0b.wav")
    assert caught.value.kind == "unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_permission_denied(sound_file: Callable[..., Path]) -> None:
    path = sound_file("locked.wav")
    path.chmod(0)
    error = failure(path)
    assert error.kind == "unreadable"
    assert "permission denied" in str(error)


def test_what_is_no_sound(tmp_path: Path) -> None:
    for content in (b"hello, this is a text\n" * 50, b"x", bytes(5000), b"#EXTM3U\nfile:///etc/passwd\n"):
        for name, kind in [("a.wav", "mislabelled"), ("a.M4A", "mislabelled"), ("a.dat", "unsupported")]:
            path = tmp_path / name
            path.write_bytes(content)
            error = failure(path)
            assert error.kind == kind
            assert "it begins with" in str(error)


def test_a_wrong_suffix_does_not_matter(sound_file: Callable[..., Path]) -> None:
    path = sound_file("flac-inside.mp3", 1234, format="FLAC")
    assert probe(str(path)).format == "FLAC/PCM_16"
    assert decode_all(path).shape == (2, 1234)


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        *[("a.wav", "PCM_16"), ("a.aiff", "PCM_24"), ("a.au", "PCM_16"), ("a.w64", "PCM_16"), ("a.caf", "PCM_16")],
        *[("a.rf64", "PCM_16"), ("a.flac", "PCM_16"), ("a.mp3", None), ("a.ogg", "VORBIS"), ("b.ogg", "OPUS")],
    ],
)
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_cut_off_files(sound_file: Callable[..., Path], name: str, subtype: str | None, kept: float) -> None:
    path = sound_file(name, 200_000, subtype=subtype, rate_hz=48_000)
    os.truncate(path, int(path.stat().st_size * kept) + 1)
    assert failure(path).kind == "truncated"


def test_the_message_of_a_cut_off_file_holds_both_numbers(sound_file: Callable[..., Path]) -> None:
    path = sound_file("a.wav", 10_000)
    os.truncate(path, 20_044)
    assert str(failure(path)).endswith(
        "is cut off: its header announces 40,000 bytes of sound, the file holds 20,000 "
        "(try: copy or fetch the file again)"
    )
    path = sound_file("a.mp3", 100_000)
    os.truncate(path, path.stat().st_size // 2)
    assert "of the 100,000 samples it announces" in str(failure(path))


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.flac", "a.mp3", "a.ogg"])
@pytest.mark.parametrize("num_bytes", [4, 12, 44, 60])
def test_only_a_header(sound_file: Callable[..., Path], name: str, num_bytes: int) -> None:
    path = sound_file(name, 10_000)
    os.truncate(path, num_bytes)
    assert failure(path).kind in ("truncated", "damaged", "mislabelled", "empty")


def test_no_samples(sound_file: Callable[..., Path]) -> None:
    error = failure(sound_file("a.wav", 0))
    assert error.kind == "empty"
    assert "announces no samples" in str(error)


def test_damaged_flac_and_ogg(sound_file: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    for name, subtype in [("a.flac", "PCM_16"), ("a.ogg", "VORBIS"), ("b.ogg", "OPUS")]:
        path = sound_file(name, 300_000, subtype=subtype, rate_hz=48_000)
        data = bytearray(path.read_bytes())
        for at in rng.integers(len(data) // 4, len(data) // 2, 20):
            data[at] ^= 0xFF
        path.write_bytes(data)
        assert failure(path).kind == "damaged", name


def test_ogg_with_a_hole_or_a_second_recording(tmp_path: Path, sound_file: Callable[..., Path]) -> None:
    whole = sound_file("a.ogg", 300_000).read_bytes()
    pages = [b"OggS" + page for page in whole.split(b"OggS")[1:]]
    path = tmp_path / "b.ogg"
    path.write_bytes(b"".join(pages[:5] + pages[6:]))
    assert "pages are missing" in str(failure(path))
    path.write_bytes(whole + sound_file("c.ogg", 10_000).read_bytes())
    assert failure(path).kind == "unsupported"
    path.write_bytes(whole + b"TAG" + bytes(125))
    assert decode_all(path).shape == (2, 300_000)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_ogg_checksum_is_the_crc_of_the_standard(payload: bytes) -> None:
    page = bytes(26) + payload
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1) ^ (0x104C11DB7 if register & 0x80000000 else 0)
    assert ogg_checksum(page) == register


def test_flac_that_claims_18_days(sound_file: Callable[..., Path]) -> None:
    path = sound_file("a.flac", 50_000)
    data = bytearray(path.read_bytes())
    set_flac_length(data, 2**36 - 1)
    path.write_bytes(data)
    error = failure(path)
    assert error.kind == "absurd_header"
    assert "68,719,476,735 samples" in str(error)
    set_flac_length(data, 50_001)
    path.write_bytes(data)
    assert failure(path).kind == "truncated"


@pytest.mark.parametrize(
    ("at", "value", "kind", "text"),
    [
        ((24, "<I"), 1, "absurd_header", "announces 1 samples per second; 1,000 to 384,000"),
        ((24, "<I"), 2**31 - 1, "absurd_header", "announces 2,147,483,647 samples per second"),
        ((22, "<H"), 0, "damaged", "header"),
        ((22, "<H"), 65_535, "damaged", "header"),
    ],
)
def test_absurd_wav_headers(
    sound_file: Callable[..., Path], at: tuple[int, str], value: int, kind: str, text: str
) -> None:
    path = sound_file("a.wav", 10_000)
    data = bytearray(path.read_bytes())
    struct.pack_into(at[1], data, at[0], value)
    path.write_bytes(data)
    error = failure(path)
    assert error.kind == kind
    assert text in str(error)


def test_too_many_channels(sound_file: Callable[..., Path]) -> None:
    for num_channels in (9, 1024):
        error = failure(sound_file("a.wav", 10, num_channels=num_channels))
        assert error.kind == "too_many_channels"
        assert f"{num_channels:,} channels; at most 8" in str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, value: float) -> None:
    audio = np.zeros((100_000, 2), np.float32)
    audio[70_003, 1] = value
    path = tmp_path / "a.wav"
    soundfile.write(path, audio, 44_100, subtype="FLOAT")
    assert probe(str(path)).num_samples == 100_000
    error = failure(path)
    assert error.kind == "not_finite"
    assert "sample 70,003" in str(error)


def test_a_file_that_changed_after_the_probe(sound_file: Callable[..., Path]) -> None:
    info = probe(str(sound_file("a.wav", 10_000)))
    for again in ({"num_samples": 9_000}, {"rate_hz": 48_000}, {"num_channels": 1}, {"format": "AIFF"}):
        path = sound_file("a.wav", again.pop("num_samples", 10_000), **again)
        with pytest.raises(AudioError, match="is not the file that was probed") as caught:
            list(blocks(str(path), info))
        assert caught.value.kind == "changed"


def test_damaged_and_cut_off_m4a(tmp_path: Path) -> None:
    path = write_with_ffmpeg(tmp_path / "a.m4a", "aac", num_samples=200_000)
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 2)
    assert failure(path).kind == "damaged"
    data = bytearray(whole)
    for at in range(len(data) // 4, len(data) // 2, 500):
        data[at] ^= 0xFF
    path.write_bytes(data)
    assert failure(path).kind == "damaged"
    path = write_with_ffmpeg(tmp_path / "a.mka", "aac", format="matroska", num_samples=200_000)
    os.truncate(path, path.stat().st_size // 2)
    assert failure(path).kind in ("truncated", "damaged")


def test_without_pyav_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_with_ffmpeg(tmp_path / "a.m4a", "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    error = failure(path)
    assert error.kind == "unsupported"
    assert str(error).endswith("is MP4 or M4A, which needs the PyAV decoder (try: pip install 'woodshed[av]')")


def test_a_coding_that_nobody_knows(tmp_path: Path) -> None:
    path = write_with_ffmpeg(tmp_path / "a.m4a", "aac")
    path.write_bytes(path.read_bytes().replace(b"mp4a", b"zzzz").replace(b"esds", b"zzzz"))
    error = failure(path)
    assert error.kind == "unsupported"
    assert "is MP4 or M4A with a coding that FFmpeg does not know" in str(error)


def test_chunk_sizes_beyond_what_a_file_can_be(sound_file: Callable[..., Path]) -> None:
    for name, field in [("a.w64", slice(56, 64)), ("a.caf", slice(12, 20))]:
        path = sound_file(name, 1_000)
        data = bytearray(path.read_bytes())
        data[field] = b"\x7f" + b"\xff" * 7 if name == "a.caf" else b"\xff" * 8
        path.write_bytes(data)
        assert failure(path).kind in ("damaged", "truncated", "empty")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damage_gives_anything_but_an_audio_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["a.wav", "a.flac", "a.mp3", "a.ogg", "a.aiff", "a.caf", "a.w64", "a.au"]))
    path = write_sound(tmp_path_factory.mktemp("fuzz") / name, 3_000)
    sound = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 8))):
        sound[data.draw(st.integers(0, min(len(sound) - 1, 400)))] = data.draw(st.integers(0, 255))
    path.write_bytes(sound[: data.draw(st.integers(1, len(sound)))])
    with suppress(AudioError):
        info = probe(str(path))
        assert sum(block.shape[1] for block in blocks(str(path), info)) == info.num_samples
