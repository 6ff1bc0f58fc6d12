"""Bottlenecks against the libraries whose weights they take, through those libraries' own state dicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, ResidualVQ

from woodshed.encoders.bottlenecks import make_bottleneck
from woodshed.encoders.quantisers import TRAINING_STATE, Bottleneck
from woodshed.errors import ModelError


def bottleneck(kind: str, features: int, **options: Any) -> Bottleneck:
    return make_bottleneck({"type": kind, "config": options}, feature_dim=features, where="config").eval()


def take(ours: Bottleneck, theirs: nn.Module) -> Bottleneck:
    state = {f"quantizer.{k}": v for k, v in theirs.state_dict().items() if k.rpartition(".")[2] not in TRAINING_STATE}
    state = {k: v for k, v in state.items() if k in ours.state_dict() or "shared" not in k}
    ours.load_state_dict(state)
    return ours.requires_grad_(False)


RVQ = [
    {"dim": 8, "codebook_size": 32, "num_quantizers": 4},
    {"dim": 8, "codebook_size": 32, "num_quantizers": 3, "codebook_dim": 5},
    {"dim": 8, "codebook_size": 16, "num_quantizers": 3, "use_cosine_sim": True},
    {"dim": 8, "codebook_size": 16, "num_quantizers": 2, "decay": 0.99, "threshold_ema_dead_code": 2},
]


@pytest.mark.parametrize("options", RVQ)
def test_rvq_equals_vector_quantize_pytorch(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    theirs = ResidualVQ(**options).eval()
    ours = take(bottleneck("rvq", 8, **options), theirs)
    pre = torch.randn(3, 8, 50)
    with torch.no_grad():
        latents, tokens, _ = theirs(pre.transpose(1, 2))
        found = ours.analyse(pre)
    assert torch.equal(found["tokens"], tokens.transpose(1, 2))
    torch.testing.assert_close(found["latents"], latents.transpose(1, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.synthesise(found["tokens"]), found["latents"], rtol=0, atol=1e-6)
    assert (ours.original_axes, ours.codebook_sizes) == (
        "frame codebook",
        (options["codebook_size"],) * options["num_quantizers"],
    )


def test_rvq_with_one_shared_codebook() -> None:
    torch.manual_seed(3)
    options = {"dim": 8, "codebook_size": 32, "num_quantizers": 3, "shared_codebook": True}
    theirs, ours = ResidualVQ(**options).eval(), bottleneck("rvq", 8, **options)
    ours.load_state_dict({"quantizer.layers.0._codebook.embed": theirs.state_dict()["layers.0._codebook.embed"]})
    pre = torch.randn(1, 8, 40)
    with torch.no_grad():
        tokens = theirs(pre.transpose(1, 2))[1]
    assert torch.equal(ours.analyse(pre)["tokens"], tokens.transpose(1, 2))


FSQS = [
    {"levels": [5, 5, 5, 5], "num_codebooks": 2},
    {"levels": [8, 5, 3]},
    {"levels": [8, 6, 4], "num_codebooks": 2, "dim": 10},
    {"levels": [7, 4], "dim": 6, "projection_has_bias": False},
    {"levels": [3, 5, 4], "num_codebooks": 2, "preserve_symmetry": True, "noise_dropout": 0.5},
    {"levels": [4, 5], "bound_hard_clamp": True},
]


@pytest.mark.parametrize("options", FSQS)
def test_fsq_equals_vector_quantize_pytorch(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    theirs = FSQ(**options).eval()
    ours = take(bottleneck("fsq", theirs.dim, **options), theirs)
    pre = 2 * torch.randn(3, theirs.dim, 200)
    with torch.no_grad():
        latents, tokens = theirs(pre.transpose(1, 2))
        tokens = tokens[..., None] if tokens.ndim == 2 else tokens
        found = ours.analyse(pre)
    assert torch.equal(found["tokens"], tokens.transpose(1, 2))
    torch.testing.assert_close(found["latents"], latents.transpose(1, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.synthesise(found["tokens"].int()), found["latents"], rtol=0, atol=1e-6)
    assert ours.original_axes == "codebook frame"


@pytest.mark.parametrize(("levels", "count"), [(5, 1), ([8, 5, 3], 2), (2, 1)])
def test_dithered_fsq_rounds_to_the_nearest_of_evenly_spaced_levels(levels: int | list[int], count: int) -> None:
    ours = bottleneck("dithered_fsq", 3 * count, dim=3, levels=levels, num_codebooks=count, dither_inference=True)
    each = torch.tensor([levels] * 3 if isinstance(levels, int) else levels)
    pre = torch.randn(2, 3 * count, 64, dtype=torch.float64)
    found = ours.analyse(pre)
    target = torch.tanh(pre).reshape(2, count, 3, 64)
    grids = [torch.linspace(-1, 1, int(n), dtype=torch.float64) for n in each]
    digits = torch.stack([(target[:, :, i, :, None] - grids[i]).abs().argmin(-1) for i in range(3)], dim=2)
    basis = torch.tensor([1, int(each[0]), int(each[0] * each[1])])
    assert torch.equal(found["tokens"], (digits * basis[None, None, :, None]).sum(2))
    nearest = torch.stack([grids[i][digits[:, :, i]] for i in range(3)], dim=2).reshape(2, 3 * count, 64)
    torch.testing.assert_close(found["latents"], nearest, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.synthesise(found["tokens"]).double(), nearest, rtol=0, atol=1e-6)
    assert torch.equal(found["tokens"], ours.analyse(pre)["tokens"])
    assert ours.original_axes == "frame codebook"


def test_dac_rvq_codes_by_angle_and_keeps_what_is_left() -> None:
    torch.manual_seed(3)
    ours = bottleneck("dac_rvq", 6, input_dim=6, n_codebooks=3, codebook_size=16, codebook_dim=[2, 3, 4])
    ours.load_state_dict({k: torch.randn_like(v) for k, v in ours.state_dict().items()})
    ours.requires_grad_(False)
    pre = torch.randn(2, 6, 30)
    found, residual, total = ours.analyse(pre), pre.clone(), torch.zeros_like(pre)
    for i, factor in enumerate(ours.quantizer.quantizers):  # type: ignore[union-attr, arg-type]
        low = factor.in_proj(residual).transpose(1, 2)
        cosine = torch.cosine_similarity(low[:, :, None], factor.codebook.weight, dim=-1)
        assert torch.equal(found["tokens"][:, i], cosine.argmax(-1))
        part = factor.out_proj(factor.codebook(cosine.argmax(-1)).transpose(1, 2))
        residual, total = residual - part, total + part
    torch.testing.assert_close(found["latents"], total, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.synthesise(found), total, rtol=0, atol=1e-5)


def test_vae_gives_moments() -> None:
    pre = torch.randn(2, 8, 5)
    found = bottleneck("vae", 8).analyse(pre)
    assert torch.equal(found["mean"], pre[:, :4])
    torch.testing.assert_close(found["std"], torch.log1p(pre[:, 4:].exp()) + 1e-4)
    assert torch.equal(bottleneck("vae", 8).synthesise(found), found["mean"])


def test_rvq_vae_quantises_the_mean() -> None:
    options = {"dim": 4, "codebook_size": 8, "num_quantizers": 2}
    ours, plain = bottleneck("rvq_vae", 8, **options), bottleneck("rvq", 4, **options)
    state = {k: torch.randn_like(v) for k, v in plain.state_dict().items()}
    ours.load_state_dict(state)
    plain.load_state_dict(state)
    pre = torch.randn(1, 8, 20)
    assert torch.equal(ours.analyse(pre)["tokens"], plain.analyse(pre[:, :4])["tokens"])


def test_continuous_ones() -> None:
    pre = torch.randn(2, 4, 5)
    assert torch.equal(bottleneck("tanh", 4, scale=3.0).analyse(pre)["latents"], torch.tanh(pre / 3.0) * 3.0)
    assert torch.equal(make_bottleneck(None, feature_dim=4, where="config").analyse(pre)["latents"], pre)
    assert bottleneck("l2_norm", 4).analyse(pre)["latents"].norm(dim=1) == pytest.approx(torch.ones(2, 5), abs=1e-6)
    squashed = bottleneck("wasserstein", 4, use_tanh=True).analyse(pre)["latents"]
    torch.testing.assert_close(squashed, torch.tanh(pre / 5.0) * 5.0)


def test_noise_behind_latents_is_the_callers() -> None:
    ours, latents, noise = bottleneck("wasserstein", 4, noise_augment_dim=2), torch.randn(1, 4, 5), torch.randn(1, 2, 5)
    assert ours.decoder_dim == 6
    assert torch.equal(ours.synthesise(latents, noise=noise), torch.cat([latents, noise], dim=1))
    with pytest.raises(ModelError, match="2 rows of noise"):
        ours.synthesise(latents)


ALL: list[tuple[str, int, dict[str, Any]]] = [
    ("vae", 8, {}),
    ("tanh", 8, {}),
    ("l2_norm", 8, {}),
    ("fsq", 8, {"levels": [5, 4], "num_codebooks": 2, "dim": 8}),
    ("dithered_fsq", 8, {"dim": 4, "levels": 5, "num_codebooks": 2}),
    ("rvq", 8, {"dim": 8, "codebook_size": 16, "num_quantizers": 3, "codebook_dim": 4}),
    ("rvq_vae", 8, {"dim": 4, "codebook_size": 16, "num_quantizers": 3}),
    ("dac_rvq", 8, {"input_dim": 8, "codebook_size": 16, "n_codebooks": 3, "codebook_dim": 4}),
    ("dac_rvq_vae", 8, {"input_dim": 4, "codebook_size": 16, "n_codebooks": 3, "codebook_dim": 4}),
]


@pytest.mark.parametrize(("kind", "features", "options"), ALL)
def test_each_frame_is_coded_by_itself(kind: str, features: int, options: dict[str, Any]) -> None:
    torch.manual_seed(5)
    ours = bottleneck(kind, features, **options).double()
    ours.load_state_dict({k: torch.randn_like(v) for k, v in ours.state_dict().items()})
    ours.requires_grad_(False)
    pre = torch.randn(3, features, 12, dtype=torch.float64)
    whole = ours.analyse(pre)
    for name, value in whole.items():
        part = ours.analyse(pre[1:2, :, 4:7])[name]
        assert value.shape[-1] == 12
        expected: Tensor = value[1:2, :, 4:7]
        torch.testing.assert_close(part, expected, rtol=0, atol=0 if name == "tokens" else 1e-12)
    assert whole.get("tokens", torch.zeros(1)).shape[1:] in ((), (len(ours.codebook_sizes), 12))
    assert (ours.kind == "tokens") == ("tokens" in whole)


def test_tokens_of_another_model_are_refused() -> None:
    ours = bottleneck("fsq", 4, levels=[5, 5], num_codebooks=2)
    with pytest.raises(ModelError, match="do not fit 2 codebooks of \\[25\\] entries"):
        ours.synthesise(torch.full((1, 2, 3), 25))
    with pytest.raises(ModelError, match="do not fit 2 codebooks"):
        ours.synthesise(torch.zeros(1, 3, 3, dtype=torch.long))
    with pytest.raises(ModelError, match="has latents and no tokens"):
        bottleneck("vae", 8).synthesise(torch.zeros(1, 4, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("kind", "features", "options", "message"),
    [
        ("softnorm", 8, {}, "bottleneck type 'softnorm' is not supported"),
        ("rvq", 8, {"dim": 8, "affine_param": True}, "option affine_param=True is not supported"),
        ("rvq", 8, {"dim": 8, "implicit_neural_codebook": True}, "option implicit_neural_codebook=True"),
        ("fsq", 4, {"levels": [5, 5], "orthogonal_rotation": True}, "option orthogonal_rotation=True"),
        ("fsq", 4, {}, "bottleneck fsq cannot be built"),
        ("fsq", 5, {"levels": [5, 5]}, "the encoder gives 5 features, the fsq bottleneck takes 2"),
        ("vae", 7, {}, "splits features in halves, the encoder gives 7"),
        ("dac_rvq", 8, {"quantize_on_decode": True}, "quantize_on_decode=true"),
        ("dithered_fsq", 3, {"dim": 3, "levels": [5, 5]}, "dithered_fsq with dim=3 has levels"),
    ],
)
def test_what_we_do_not_have_is_named(kind: str, features: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        bottleneck(kind, features, **options)
