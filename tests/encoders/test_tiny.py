"""woodshed-tiny: the file is whole and small, windows equal the whole, and the sound survives."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from woodshed.audio.distance import log_mel_distance_db, si_sdr_db
from woodshed.encoders.tiny import (
    TinyCodec,
    TinyCodecConfig,
    load_tiny_codec,
    load_woodshed_tiny,
    save_tiny_codec,
)

WEIGHTS = Path(str(files("woodshed") / "assets/woodshed-tiny.safetensors"))
DEMO = Path(str(files("woodshed") / "assets/demo"))
CODEC = load_woodshed_tiny()
EXACT = load_woodshed_tiny().double()
HOP = CODEC.config.hop_samples


def sound(num_frames: int, *, seed: int) -> Tensor:
    return torch.randn(1, 1, num_frames * HOP, generator=torch.Generator().manual_seed(seed)) * 0.1


def in_windows(
    call: Callable[[Tensor], Tensor], whole: Tensor, *, step: int, reach: int, unit_in: int, unit_out: int
) -> Tensor:
    """`call` on windows of `step` frames with `reach` frames of real context, put together again."""
    num_frames = whole.shape[-1] // unit_in
    pieces = []
    for start in range(0, num_frames, step):
        low, high = max(start - reach, 0), min(start + step + reach, num_frames)
        out = call(whole[..., low * unit_in : high * unit_in])
        pieces.append(out[..., (start - low) * unit_out : (min(start + step, num_frames) - low) * unit_out])
    return torch.cat(pieces, dim=-1)


windows = given(num_frames=st.integers(1, 150), step=st.integers(1, 60), seed=st.integers(0, 2**31))


@settings(max_examples=25, deadline=None)
@windows
def test_windows_encode_to_what_the_whole_encodes_to(num_frames: int, step: int, seed: int) -> None:
    audio = sound(num_frames, seed=seed)
    for codec, tolerance in ((CODEC, 1e-5), (EXACT, 1e-10)):
        given_audio = audio.to(codec.latent_mean.dtype)
        whole = codec.encode(given_audio)
        assert whole.shape == (1, codec.config.latent_dim, num_frames)
        pieces = in_windows(
            codec.encode, given_audio, step=step, reach=codec.encode_reach_frames, unit_in=HOP, unit_out=1
        )
        assert float((whole - pieces).abs().max()) <= tolerance * max(float(whole.std()), 1.0)


@settings(max_examples=25, deadline=None)
@windows
def test_windows_decode_to_what_the_whole_decodes_to(num_frames: int, step: int, seed: int) -> None:
    latents = torch.randn(1, CODEC.config.latent_dim, num_frames, generator=torch.Generator().manual_seed(seed))
    for codec, tolerance in ((CODEC, 1e-5), (EXACT, 1e-10)):
        z = latents.to(codec.latent_mean.dtype)
        whole = codec.decode(z)
        assert whole.shape == (1, 1, num_frames * HOP)
        pieces = in_windows(codec.decode, z, step=step, reach=codec.decode_reach_frames, unit_in=1, unit_out=HOP)
        assert float((whole - pieces).abs().max()) <= tolerance * float(whole.abs().max())


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_the_declared_reach_is_needed(way: str) -> None:
    """One frame less of context and the windows differ: the reach is computed, not guessed generously."""
    torch.manual_seed(0)
    audio = sound(60, seed=1).double()
    if way == "encode":
        whole = EXACT.encode(audio)
        pieces = in_windows(EXACT.encode, audio, step=20, reach=EXACT.encode_reach_frames - 1, unit_in=HOP, unit_out=1)
    else:
        z = EXACT.encode(audio)
        whole = EXACT.decode(z)
        pieces = in_windows(EXACT.decode, z, step=20, reach=EXACT.decode_reach_frames - 1, unit_in=1, unit_out=HOP)
    assert float((whole - pieces).abs().max()) > 1e-10


def test_neighbours_in_a_batch_do_not_change_a_sound() -> None:
    batch = torch.cat([sound(40, seed=seed) for seed in range(5)]).double()
    latents = EXACT.encode(batch)
    for row in range(5):
        torch.testing.assert_close(EXACT.encode(batch[row : row + 1])[0], latents[row], rtol=0, atol=1e-10)


def test_the_file_is_small_and_holds_its_configuration() -> None:
    assert WEIGHTS.stat().st_size < 5_000_000
    assert CODEC.config.rate_hz == 24_000
    assert CODEC.config.latent_dim <= 64
    bits = np.log2(CODEC.config.codebook_size) * CODEC.config.num_codebooks
    assert bits * CODEC.config.rate_hz / CODEC.config.hop_samples <= 6000


def test_saving_what_was_loaded_gives_the_same_codec(tmp_path: Path) -> None:
    save_tiny_codec(CODEC, tmp_path / "again.safetensors")
    again = load_tiny_codec(tmp_path / "again.safetensors")
    audio = sound(30, seed=0)
    torch.testing.assert_close(again.encode(audio), CODEC.encode(audio), rtol=1e-3, atol=1e-3)


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(WEIGHTS)
    del weights["decoder_in.bias"]
    from safetensors import safe_open

    with safe_open(WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    save_file(weights, tmp_path / "broken.safetensors", metadata=metadata)
    with pytest.raises(RuntimeError, match=r"decoder_in\.bias"):
        load_tiny_codec(tmp_path / "broken.safetensors")


def test_codes_have_the_declared_shape_and_fewer_codebooks_are_coarser() -> None:
    latents = CODEC.encode(demo_clip("prompt-demo-thanks")[None, None])
    codes = CODEC.quantize(latents)
    config = CODEC.config
    assert codes.shape == (1, config.num_codebooks, latents.shape[2])
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < config.codebook_size
    errors = [float((CODEC.dequantize(codes[:, :k]) - latents).square().mean()) for k in range(1, 13)]
    assert errors == sorted(errors, reverse=True)
    assert CODEC.dequantize(codes).shape == latents.shape
    assert torch.equal(CODEC.quantize(latents), codes)


def test_latents_are_about_standard() -> None:
    latents = torch.cat([CODEC.encode(demo_clip(path.stem)[None, None])[0] for path in DEMO.glob("*.opus")], dim=1)
    assert float(latents.mean(1).abs().max()) < 1.0
    assert float(latents.std(1).min()) > 0.4
    assert float(latents.std(1).max()) < 2.0


def demo_clip(name: str) -> Tensor:
    """First channel of a demo sound at 24 kHz, cut to whole frames."""
    samples, rate_hz = soundfile.read(DEMO / f"{name}.opus", dtype="float32", always_2d=True)
    mono = soxr.resample(samples[:, 0], rate_hz, CODEC.config.rate_hz)
    return torch.from_numpy(mono[: len(mono) // HOP * HOP].astype(np.float32))


@pytest.mark.parametrize(
    ("pattern", "least_si_sdr_db", "most_log_mel_db", "most_coded_log_mel_db"),
    [("prompt-*", 12.0, 3.5, 5.0), ("austen-*", 11.5, 3.5, 5.0), ("[fw]*-*", 8.5, 3.6, 5.0)],
)
def test_held_out_demo_sounds_survive(
    pattern: str, least_si_sdr_db: float, most_log_mel_db: float, most_coded_log_mel_db: float
) -> None:
    """Sounds that ship with the package and were never trained on; dense distorted guitars are the hardest of all."""
    rows = []
    for path in sorted(DEMO.glob(f"{pattern}.opus")):
        audio = demo_clip(path.stem)
        latents = CODEC.encode(audio[None, None])
        plain = CODEC.decode(latents)[0, 0].numpy()
        coded = CODEC.decode(CODEC.dequantize(CODEC.quantize(latents)))[0, 0].numpy()
        wanted = audio.numpy()
        rows.append(
            (
                si_sdr_db(wanted, plain),
                log_mel_distance_db(wanted, plain, rate_hz=24_000),
                log_mel_distance_db(wanted, coded, rate_hz=24_000),
            )
        )
    si_sdr, log_mel, coded_log_mel = np.mean(rows, axis=0)
    assert si_sdr >= least_si_sdr_db
    assert log_mel <= most_log_mel_db
    assert coded_log_mel <= most_coded_log_mel_db


def test_sound_of_a_broken_length_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="pad it with zeros"):
        CODEC.encode(torch.zeros(1, 1, HOP + 1))


def test_a_configuration_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="n_fft"):
        TinyCodecConfig(n_fft=500)


def test_reach_follows_from_the_kernels() -> None:
    wide = TinyCodec(TinyCodecConfig(width=8, hidden=8, kernel=15))
    assert wide.encode_reach_frames > CODEC.encode_reach_frames
    assert wide.decode_reach_frames > CODEC.decode_reach_frames
