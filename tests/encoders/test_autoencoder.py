"""Cut against whole, through real small networks: for random shapes of network, lengths, windows and batches.

What `FrameEncoder` stores is compared with one call of the plain network on the whole padded clip.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encoders.plain_oobleck import PlainAutoencoder, model_config
from woodshed.audio.probe import probe
from woodshed.contracts import Arrays, Item, Record
from woodshed.encoders.autoencoder import PEAK, FrameEncoder, FrameOptions
from woodshed.encoders.checkpoints import load_autoencoder
from woodshed.encoders.models import OobleckModel
from woodshed.run.single import encode_item

RATE_HZ = 8_000
FP32_TOLERANCE = 1e-5
"""Of the standard deviation of the network's latents."""
FP64_TOLERANCE = 1e-10
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@st.composite
def configs(draw: st.DrawFn, bottleneck: dict[str, Any] | None = None) -> dict[str, Any]:
    strides = draw(st.lists(st.integers(2, 5), min_size=1, max_size=3).map(tuple))
    mults = draw(st.lists(st.integers(1, 4), min_size=len(strides), max_size=len(strides)).map(tuple))
    return model_config(
        channels=draw(st.integers(1, 6)),
        c_mults=mults,
        strides=strides,
        latent_dim=draw(st.integers(1, 5)) if bottleneck is None else 4,
        audio_channels=draw(st.sampled_from([1, 2])),
        use_snake=draw(st.booleans()),
        rate_hz=RATE_HZ,
        bottleneck=bottleneck,
    )


class Network:
    """A plain network of random weights, and ours loaded from its checkpoint."""

    def __init__(self, config: dict[str, Any], folder: Path, *, dtype: torch.dtype, seed: int) -> None:
        self.plain = PlainAutoencoder(config["model"], seed=seed)
        torch.save({"state_dict": self.plain.state_dict()}, folder / "model.ckpt")
        self.autoencoder = load_autoencoder(config, folder / "model.ckpt", parts="encoder", dtype=dtype)
        self.plain.to(dtype)
        self.dtype = dtype
        self.hop = self.autoencoder.ratio
        self.reach = self.autoencoder.encode_reach_frames
        # Of a long noise: a clip of a frame or two, or mostly padding, has next to no deviation of its own.
        noise = torch.rand(1, self.autoencoder.audio_channels, 200 * self.hop, dtype=dtype) * 1.8 - 0.9
        with torch.inference_mode():
            self.scale = float(self.plain.encoder(noise).std())

    def encoder(self, *, discrete: bool = False, **options: Any) -> FrameEncoder:
        name: Literal["float32", "float64"] = "float64" if self.dtype == torch.float64 else "float32"
        return FrameEncoder(OobleckModel(self.autoencoder, discrete=discrete), FrameOptions(dtype=name, **options))

    def whole(self, path: str, num_frames: int) -> np.ndarray:
        """The plain network's answer to the clip, cut or filled up with zeros to `num_frames` frames."""
        audio = soundfile.read(path, dtype="float32", always_2d=True)[0].T[:, : num_frames * self.hop]
        padded = np.zeros((1, audio.shape[0], num_frames * self.hop), np.float32)
        padded[0, :, : audio.shape[1]] = audio
        with torch.inference_mode():
            features: np.ndarray = self.plain.encoder(torch.from_numpy(padded).to(self.dtype))[0].numpy()
        return features

    @property
    def rounding(self) -> float:
        """A few units in the last place: latents can have a large mean and hardly any deviation."""
        return 1e-6 if self.dtype == torch.float32 else 0.0

    @property
    def tolerance(self) -> float:
        return FP64_TOLERANCE if self.dtype == torch.float64 else FP32_TOLERANCE * self.scale


def clip(folder: Path, num_samples: int, channels: int, *, seed: int, name: str = "clip") -> Item:
    path = folder / f"{name}.wav"
    rng = np.random.default_rng(seed)
    # Within full scale: beyond it, reading clamps.
    soundfile.write(path, rng.uniform(-0.9, 0.9, (num_samples, channels)), RATE_HZ, subtype="FLOAT")
    return Item(
        id=name, path=str(path), relpath=path.name, size_bytes=path.stat().st_size, mtime_ns=0, audio=probe(str(path))
    )


def lengths(hop: int, reach: int, *, most: int = 6) -> st.SearchStrategy[int]:
    """Samples: from one to several windows, on and off the frame grid."""
    return st.integers(1, most * (2 * reach + 8) * hop) | st.integers(1, most * (2 * reach + 8)).map(lambda n: n * hop)


def records(encoder: FrameEncoder, item: Item) -> list[Record]:
    made = encode_item(encoder, item)
    assert len(made) == encoder.outline(item).num_records
    assert [record.meta["index"] for record in made] == list(range(len(made)))
    return made


@dtypes
@settings(max_examples=12, deadline=None)
@given(data=st.data(), config=configs(), seed=st.integers(0, 99))
def test_whole_equals_the_unchunked_encode(dtype: torch.dtype, data: st.DataObject, config: Any, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        network = Network(config, Path(name), dtype=dtype, seed=seed)
        num_samples = data.draw(lengths(network.hop, network.reach))
        item = clip(Path(name), num_samples, config["audio_channels"], seed=seed)
        window = 2 * network.reach + data.draw(st.integers(1, 40))
        quantum = data.draw(st.sampled_from([1, 3, 8]))
        encoder = network.encoder(window="whole", window_frames=window, quantum_frames=quantum)
        (record,) = records(encoder, item)
        expected = network.whole(item.path, math.ceil(num_samples / network.hop))
        made = record.arrays["latents"]
        assert made.dtype == expected.dtype
        np.testing.assert_allclose(made, expected, rtol=network.rounding, atol=network.tolerance)
        assert (record.meta["num_samples"], record.meta["valid_frames"]) == (num_samples, expected.shape[1])


@dtypes
@settings(max_examples=12, deadline=None)
@given(data=st.data(), config=configs(), seed=st.integers(0, 99))
def test_first_equals_full_padding_in_all_frames(
    dtype: torch.dtype, data: st.DataObject, config: Any, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        network = Network(config, Path(name), dtype=dtype, seed=seed)
        num_samples = data.draw(lengths(network.hop, network.reach, most=3))
        frames = data.draw(st.integers(1, 5 * (2 * network.reach + 8)))
        item = clip(Path(name), num_samples, config["audio_channels"], seed=seed)
        encoder = network.encoder(window="first", record_frames=frames, window_frames=2 * network.reach + 9)
        (record,) = records(encoder, item)
        expected = network.whole(item.path, frames)
        np.testing.assert_allclose(record.arrays["latents"], expected, rtol=network.rounding, atol=network.tolerance)
        valid = min(frames, math.ceil(num_samples / network.hop))
        assert (record.meta["num_frames"], record.meta["valid_frames"]) == (frames, valid)


@dtypes
@settings(max_examples=12, deadline=None)
@given(data=st.data(), config=configs(), seed=st.integers(0, 99))
def test_tiles_equal_slices_of_one_fully_padded_encode(
    dtype: torch.dtype, data: st.DataObject, config: Any, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        network = Network(config, Path(name), dtype=dtype, seed=seed)
        num_samples = data.draw(lengths(network.hop, network.reach, most=4))
        frames = data.draw(st.integers(1, 3 * (2 * network.reach + 8)))
        item = clip(Path(name), num_samples, config["audio_channels"], seed=seed)
        tile = network.encoder(window="tile", record_frames=frames, window_frames=2 * network.reach + 9)
        made = records(tile, item)
        assert len(made) == math.ceil(num_samples / (frames * network.hop))
        expected = network.whole(item.path, len(made) * frames)
        joined = np.concatenate([record.arrays["latents"] for record in made], axis=1)
        np.testing.assert_allclose(joined, expected, rtol=network.rounding, atol=network.tolerance)
        assert sum(record.meta["num_samples"] for record in made) == num_samples
        trimmed = FrameEncoder(tile.model, replace(tile.options, pad_last=False))
        valid = math.ceil(num_samples / network.hop)
        kept = np.concatenate([record.arrays["latents"] for record in records(trimmed, item)], axis=1)
        np.testing.assert_array_equal(kept, joined[:, :valid])


def in_random_batches(encoder: FrameEncoder, items: list[Item], data: st.DataObject) -> dict[str, list[Record]]:
    """All items' records, their pieces shuffled into batches of random sizes (equal keys only)."""
    queues: dict[str, list[tuple[Item, Any]]] = {}
    for item in items:
        for piece, example in zip(encoder.outline(item).pieces, encoder.prepare(item), strict=True):
            queues.setdefault(piece.key, []).append((item, example))
    parts: dict[tuple[str, int], Arrays] = {}
    for key in sorted(queues):
        order = data.draw(st.permutations(queues[key]))
        while order:
            size = data.draw(st.integers(1, len(order)))
            batch, order = order[:size], order[size:]
            for (item, example), part in zip(batch, encoder.encode([row for _, row in batch]), strict=True):
                parts[item.id, example.index] = part
    made: dict[str, list[Record]] = {}
    for item in items:
        joiner = encoder.joiner(item)
        for index in range(len(encoder.outline(item).pieces)):
            made.setdefault(item.id, []).extend(joiner.add(parts[item.id, index]))
    return made


@settings(max_examples=10, deadline=None)
@given(
    data=st.data(),
    config=configs(bottleneck={"type": "fsq", "config": {"levels": [5, 5], "num_codebooks": 2}}),
    seed=st.integers(0, 99),
)
def test_batches_of_any_order_and_size_give_the_same(data: st.DataObject, config: Any, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        network = Network(config, Path(name), dtype=torch.float32, seed=seed)
        items = [
            clip(Path(name), data.draw(lengths(network.hop, network.reach, most=2)), config["audio_channels"],
                 seed=seed + number, name=f"clip{number}")
            for number in range(4)
        ]  # fmt: skip
        for discrete in (False, True):
            encoder = network.encoder(
                window="tile", record_frames=30, window_frames=2 * network.reach + 16, discrete=discrete
            )
            shuffled = in_random_batches(encoder, items, data)
            for item in items:
                for one, other in zip(records(encoder, item), shuffled[item.id], strict=True):
                    assert one.meta == other.meta
                    main = encoder.spec.main
                    if discrete:
                        np.testing.assert_array_equal(one.arrays[main], other.arrays[main])
                    else:
                        scale = float(np.abs(one.arrays[main]).max())
                        np.testing.assert_allclose(one.arrays[main], other.arrays[main], rtol=0, atol=1e-5 * scale)


def test_a_context_that_is_too_short_is_seen(tmp_path: Path) -> None:
    """The comparison can fail: one frame of context less than the reach gives other latents."""
    network = Network(model_config(strides=(2, 3), rate_hz=RATE_HZ), tmp_path, dtype=torch.float64, seed=1)
    item = clip(tmp_path, 150 * network.hop, 2, seed=1)
    expected = network.whole(item.path, 150)
    errors = []
    for missing in (0, 1):
        model = ShortSighted(network.autoencoder, missing)
        options = FrameOptions(window="whole", dtype="float64", window_frames=2 * network.reach + 9)
        (record,) = encode_item(FrameEncoder(model, options), item)
        errors.append(float(np.abs(record.arrays["latents"] - expected).max()))
    assert errors[0] < FP64_TOLERANCE < errors[1]


class ShortSighted(OobleckModel):
    """Says that its reach is less than it is."""

    def __init__(self, autoencoder: Any, missing_frames: int) -> None:
        super().__init__(autoencoder)
        self._missing_frames = missing_frames

    @property
    def reach_frames(self) -> int:
        return super().reach_frames - self._missing_frames


def test_silence_is_told_by_the_loudest_sample_of_the_record(tmp_path: Path) -> None:
    network = Network(model_config(strides=(2, 4), rate_hz=RATE_HZ), tmp_path, dtype=torch.float32, seed=0)
    item = clip(tmp_path, 64 * network.hop, 2, seed=0)
    audio = np.zeros((64 * network.hop, 2), np.float32)
    audio[40 * network.hop, 1] = 0.5
    soundfile.write(item.path, audio, RATE_HZ, subtype="FLOAT")
    made = records(network.encoder(window="tile", record_frames=16), item)
    assert [record.meta["silent"] for record in made] == [True, True, False, True]
    assert all(PEAK not in record.arrays for record in made)
    assert len(encode_item(network.encoder(window="tile", record_frames=16, drop_silence=True), item)) == 1
