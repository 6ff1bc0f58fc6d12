"""woodshed-tiny-dit: small, better than plain guesses on songs it never saw, and true to the `Trainable` seam."""

from __future__ import annotations

import math
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

import woodshed
from woodshed.backends.noise import noise
from woodshed.backends.tiny_dit import TinyDitBackend, TinyDitExample, woodshed_tiny_dit
from woodshed.backends.tiny_dit_network import (
    TAGS,
    TinyDit,
    TinyDitConfig,
    load_tiny_dit,
    load_woodshed_tiny_dit,
    save_tiny_dit,
)
from woodshed.contracts import Draw, LossOfMany, Predicts, Trainable
from woodshed.encoders.tiny import load_woodshed_tiny
from woodshed.errors import ItemError, ModelError, UsageError

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_dit"
ASSETS = Path(str(files("woodshed") / "assets"))
HELD_OUT_SONGS = ("war-of-freedom-full", "feelings-full", "feelings-band")
MODEL = woodshed_tiny_dit()
TIMES = [MODEL.timestep((k + 0.5) / 4) for k in range(4)]


def untrained(**changes: int) -> TinyDitBackend:
    torch.manual_seed(0)
    return TinyDitBackend(TinyDit(TinyDitConfig(**changes)))


def example(num_frames: int, *, seed: int = 0, tag: int = 1) -> TinyDitExample:
    latents = torch.randn(num_frames, 64, generator=torch.Generator().manual_seed(seed))
    return TinyDitExample(latents, tag)


@pytest.fixture(scope="module")
def songs() -> list[TinyDitExample]:
    """Excerpts of songs that no training saw, encoded here."""
    codec = load_woodshed_tiny()
    found = []
    for name in HELD_OUT_SONGS:
        samples, rate_hz = soundfile.read(ASSETS / f"demo/{name}.opus", dtype="float32", always_2d=True)
        left = soxr.resample(samples[:, 0], rate_hz, codec.config.rate_hz)[: 250 * codec.config.hop_samples]
        latents = codec.encode(torch.from_numpy(left)[None, None])[0]
        found.append(MODEL.example({"latents": latents, "info": {"tag": "rock"}}))
    return found


@pytest.fixture(scope="module")
def held_out() -> list[TinyDitExample]:
    """Two short stretches of unseen music for each tag, stored as latents by the recipe."""
    with safe_open(GOLDEN / "held_out.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    index = MODEL.network.config.tag_index
    return [TinyDitExample(latents, index(name.split("/")[0])) for name, latents in stored.items()]


def mean_loss(model: TinyDitBackend, examples: list[TinyDitExample], *, drop_condition: bool = False) -> float:
    """On a fixed grid of timesteps and noises."""
    draws = [Draw(seed=k, timestep=t, drop_condition=drop_condition) for k, t in enumerate(TIMES)]
    pairs = [(one, draw) for one in examples for draw in draws]
    with torch.no_grad():
        return float(model.losses([one for one, _ in pairs], [draw for _, draw in pairs]).mean())


def test_the_shipped_file_is_small() -> None:
    assert sum(p.numel() for p in MODEL.network.parameters()) <= 1_500_000
    assert (ASSETS / "woodshed-tiny-dit.safetensors").stat().st_size <= 3_000_000


def test_it_beats_the_best_constant_and_the_untrained_network_on_unseen_songs(songs: list[TinyDitExample]) -> None:
    trained = mean_loss(MODEL, songs)
    # Even the songs' own means, which no model can know, are a poor constant: noise and data stay unexplained.
    constant = np.mean([1 + float(e.latents.var(0, correction=0).mean()) for e in songs])
    assert trained < 0.7 * mean_loss(untrained(), songs)
    assert trained < 0.7 * constant


@pytest.mark.parametrize("tag", TAGS)
def test_it_beats_them_on_unseen_music_of_every_tag(held_out: list[TinyDitExample], tag: str) -> None:
    own = [e for e in held_out if e.tag == MODEL.network.config.tag_index(tag)]
    assert len(own) == 2
    trained = mean_loss(MODEL, own)
    assert trained < 0.8 * mean_loss(untrained(), own)
    assert trained < 0.8 * np.mean([1 + float(e.latents.var(0, correction=0).mean()) for e in own])


def test_tags_mean_something(held_out: list[TinyDitExample]) -> None:
    right = mean_loss(MODEL, held_out)
    wrong = [
        mean_loss(MODEL, [TinyDitExample(e.latents, 1 + (e.tag - 1 + shift) % len(TAGS)) for e in held_out])
        for shift in range(1, len(TAGS))
    ]
    none = mean_loss(MODEL, held_out, drop_condition=True)
    assert right < none < np.mean(wrong)
    assert right < min(wrong)


def test_the_untrained_network_is_the_best_line_for_white_data() -> None:
    x, time = torch.randn(3, 20, 64), torch.tensor([0.1, 0.5, 0.9])
    line = x * ((2 * time - 1) / (time**2 + (1 - time) ** 2))[:, None, None]
    torch.testing.assert_close(untrained().network(x, time, torch.tensor([0, 1, 2])), line)


def test_it_is_a_trainable_that_predicts_and_takes_many() -> None:
    assert isinstance(MODEL, Trainable)
    assert isinstance(MODEL, Predicts)
    assert isinstance(MODEL, LossOfMany)
    assert MODEL.variant.fragile is None
    assert 0.1 <= MODEL.condition_dropout <= 0.15


def test_layers_are_the_projections_by_their_common_names() -> None:
    layers = MODEL.layers()
    kinds = [
        f"{part}.{name}" for part in ("self_attn", "cross_attn") for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    ]
    kinds += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert list(layers) == [f"layers.{n}.{kind}" for n in range(MODEL.network.config.num_layers) for kind in kinds]
    assert all(MODEL.network.get_submodule(name) is layer for name, layer in layers.items())
    assert all(isinstance(layer, torch.nn.Linear) for layer in layers.values())


def test_the_gradient_reaches_every_layer_and_nothing_else() -> None:
    model = woodshed_tiny_dit()
    model.loss(example(40, tag=3), Draw(seed=1, timestep=0.6)).backward()  # type: ignore[no-untyped-call]
    layers = {f"{name}.weight" for name in model.layers()}
    for name, weight in model.network.named_parameters():
        assert (weight.grad is not None) == (name in layers)
        assert weight.grad is None or float(weight.grad.abs().max()) > 0, name


def test_the_loss_is_flow_matching_written_out() -> None:
    one, draw = example(30, tag=2), Draw(seed=5, timestep=0.3)
    x1 = noise(draw, (30, 64), device="cpu", dtype=torch.float32)
    noisy = 0.3 * x1 + 0.7 * one.latents
    velocity = MODEL.network(noisy[None], torch.tensor([0.3]), torch.tensor([2]))[0]
    torch.testing.assert_close(MODEL.predict(one, draw), velocity)
    torch.testing.assert_close(MODEL.loss(one, draw), (velocity - (x1 - one.latents)).square().mean())


def test_a_draw_decides_all_that_is_chance() -> None:
    one = example(30, tag=2)
    loss = MODEL.loss(one, Draw(seed=5, timestep=0.3))
    assert torch.equal(MODEL.loss(one, Draw(seed=5, timestep=0.3)), loss)
    assert not torch.equal(MODEL.loss(one, Draw(seed=6, timestep=0.3)), loss)
    assert not torch.equal(MODEL.loss(one, Draw(seed=5, timestep=0.4)), loss)
    assert not torch.equal(MODEL.loss(one, Draw(seed=5, timestep=0.3, mirrored=True)), loss)
    dropped = MODEL.loss(one, Draw(seed=5, timestep=0.3, drop_condition=True))
    assert torch.equal(dropped, MODEL.loss(TinyDitExample(one.latents, 0), Draw(seed=5, timestep=0.3)))
    assert not torch.equal(dropped, loss)


def test_a_mirrored_draw_turns_the_noise() -> None:
    silent = TinyDitExample(torch.zeros(30, 64), 0)
    # Of silence, noisy latents are the noise alone: the untrained network's velocity is linear in them.
    there, back = (untrained().predict(silent, Draw(seed=2, timestep=0.7, mirrored=m)) for m in (False, True))
    torch.testing.assert_close(there, -back)


@pytest.mark.parametrize("time", [None, -0.1, 1.1])
def test_a_draw_without_a_timestep_is_refused(time: float | None) -> None:
    with pytest.raises(UsageError, match=r"timestep=.* is not between 0 \(data\) and 1 \(noise\)"):
        MODEL.loss(example(10), Draw(seed=0, timestep=time))


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 90), min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_no_neighbour_changes_a_loss(lengths: list[int], seed: int) -> None:
    examples = [example(n, seed=seed + k, tag=k) for k, n in enumerate(lengths)]
    draws = [Draw(seed=seed + k, timestep=0.1 + 0.2 * k, drop_condition=k == 1) for k in range(len(lengths))]
    with torch.no_grad():
        together = MODEL.losses(examples, draws)
        alone = torch.stack([MODEL.loss(e, d) for e, d in zip(examples, draws, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_what_fills_a_batch_is_seen_by_nothing() -> None:
    x, time, tag = torch.randn(1, 50, 64), torch.tensor([0.4]), torch.tensor([1])
    mask = (torch.arange(80) < 50)[None]
    with torch.no_grad():
        bare = MODEL.network(x, time, tag)
        for filling in (0.0, 30.0):
            longer = torch.cat([x, torch.full((1, 30, 64), filling)], dim=1)
            got = MODEL.network(longer, time, tag, mask)[:, :50]
            torch.testing.assert_close(got, bare, rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_frame_sees_every_other() -> None:
    x = torch.randn(1, 60, 64)
    changed = x.clone()
    changed[0, 59] += 1
    time, tag = torch.tensor([0.4]), torch.tensor([1])
    difference = (MODEL.network(changed, time, tag) - MODEL.network(x, time, tag)).abs().amax(2)[0]
    assert float(difference.min()) > 0


def test_quantiles_are_those_of_a_logit_normal_sample() -> None:
    config = MODEL.network.config
    places = np.random.default_rng(0).normal(config.time_mean, config.time_std, 200_000)
    drawn = 1 / (1 + np.exp(-places))
    wanted = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
    np.testing.assert_allclose([MODEL.timestep(q) for q in wanted], np.quantile(drawn, wanted), atol=5e-3)
    with pytest.raises(UsageError, match=r"the quantile 1\.1 is not within 0 and 1"):
        MODEL.timestep(1.1)


def test_an_encoded_folder_gives_examples(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("war-of-freedom-full.opus", "war-of-freedom-full.txt"):
        shutil.copy(ASSETS / "demo" / name, tmp_path / "in")
    woodshed.encode(tmp_path / "in", tmp_path / "out", device="cpu")
    item = woodshed.open(tmp_path / "out", pad=False)[0]
    made = MODEL.example(item)
    assert MODEL.network.config.tags[made.tag - 1] == "rock"
    torch.testing.assert_close(made.latents, item["latents"][:64, :512].T, check_stride=False)
    assert 0 < mean_loss(MODEL, [made]) < 2


def test_an_example_is_the_middle_of_the_first_channel_without_padding() -> None:
    latents = torch.arange(128.0)[:, None] * 1000 + torch.arange(700.0)
    mask = torch.arange(700) < 612
    made = MODEL.example({"latents": latents, "mask": mask, "info": {}})
    assert made.tag == 0
    assert made.latents.shape == (512, 64)
    assert made.latents[0].tolist() == [1000 * k + 50 for k in range(64)]


@pytest.mark.parametrize(
    ("info", "tag"),
    [
        ({"tag": "hold music", "prompt": "rock"}, "hold music"),
        ({"genre": "Ambient", "caption": "drums only"}, "ambient"),
        ({"caption": "METAL with an acoustic intro"}, "metal"),
        ({"caption": "rockets and metallic sounds"}, None),
        ({"caption": None, "tag": ["x"]}, None),
    ],
)
def test_the_tag_is_the_first_known_word(info: dict[str, object], tag: str | None) -> None:
    made = MODEL.example({"latents": torch.zeros(64, 3), "info": info})
    assert made.tag == MODEL.network.config.tag_index(tag)


def test_items_that_cannot_be_used_say_why() -> None:
    with pytest.raises(UsageError, match=r"a\.wav has 65 rows of latents; woodshed-tiny gives 64"):
        MODEL.example({"latents": torch.zeros(65, 3), "info": {"relpath": "a.wav"}})
    with pytest.raises(UsageError, match="has 0 rows of latents"):
        MODEL.example({"tokens": torch.zeros(64, 3), "info": {}})
    with pytest.raises(ItemError, match=r"a\.wav has no valid frame") as empty:
        MODEL.example(
            {"latents": torch.zeros(64, 3), "mask": torch.zeros(3, dtype=torch.bool), "info": {"relpath": "a.wav"}}
        )
    assert empty.value.kind == "empty"
    with pytest.raises(ItemError, match="not finite") as damaged:
        MODEL.example({"latents": torch.full((64, 3), math.nan), "info": {}})
    assert damaged.value.kind == "not_finite"


def moments(latents: Tensor) -> Tensor:
    return torch.cat([latents.mean(1), latents.std(1)])


def test_samples_are_repeatable_and_follow_tag_and_guidance() -> None:
    made = MODEL.sample("metal", 40, 3, 4, 2.0)
    assert made.shape == (64, 40)
    assert torch.equal(MODEL.sample("metal", 40, 3, 4, 2.0), made)
    others = [MODEL.sample("ambient", 40, 3, 4, 2.0), MODEL.sample("metal", 40, 4, 4, 2.0)]
    others += [MODEL.sample("metal", 40, 3, 4, 1.0), MODEL.sample(None, 40, 3, 4)]
    assert all(not torch.allclose(made, other, atol=1e-2) for other in others)
    with pytest.raises(UsageError, match="tag 'polka' is none that the model knows"):
        MODEL.sample("polka", 40, 3)
    with pytest.raises(UsageError, match="513 frames"):
        MODEL.sample("metal", 513, 3)


def test_samples_sound_more_like_their_kind_than_noise_does(songs: list[TinyDitExample]) -> None:
    wanted = moments(torch.cat([song.latents for song in songs]).T)
    made = moments(torch.cat([MODEL.sample("rock", 128, seed, 12, 1.5) for seed in range(2)], dim=1))
    plain = moments(torch.randn(64, 256, generator=torch.Generator().manual_seed(0)))
    assert float((made - wanted).norm()) < float((plain - wanted).norm())


def test_files_are_read_back_and_others_refused(tmp_path: Path) -> None:
    small = untrained(num_layers=2, width=32, hidden=48).network
    save_tiny_dit(small, tmp_path / "small.safetensors")
    again = load_tiny_dit(tmp_path / "small.safetensors")
    assert again.config == small.config
    for mine, theirs in zip(small.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine.half().float())
    with pytest.raises(ModelError, match="no `config`"):
        load_tiny_dit(ASSETS / "whisper-tiny-en-codebook.safetensors")
    broken = load_woodshed_tiny_dit()
    del broken.layers[5]
    save_tiny_dit(broken, tmp_path / "broken.safetensors")
    with pytest.raises(ModelError, match=r"layers\.5\.self_attn\.q_proj"):
        load_tiny_dit(tmp_path / "broken.safetensors")
    with pytest.raises(ModelError, match="width=100 does not split"):
        TinyDitConfig(width=100, num_heads=3)
