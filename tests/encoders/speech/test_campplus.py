"""CAMPPlus: equal to the original, the same in every batch, loaded strictly."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from woodshed.encoders.speech.campplus import CampPlus, CampPlusSizes, DenseSizes
from woodshed.encoders.speech.campplus_layers import segment_context
from woodshed.encoders.speech.fbank import campplus_fbank
from woodshed.encoders.weights import open_tensors
from woodshed.errors import ModelError

GOLDEN = Path(__file__).parents[2] / "golden" / "indextts2"
SHARED = Path(__file__).parents[3].parent / "shared" / "golden" / "indextts2"
needs_shared = pytest.mark.skipif(
    not (SHARED / "campplus_tiny.safetensors").is_file(), reason="campplus_tiny.safetensors is not beside the tree"
)
SIZES = CampPlusSizes(
    head_channels=3,
    head_blocks=(1, 2),
    num_channels=7,
    blocks=(
        DenseSizes(num_layers=2, bottleneck=6, growth=4, num_hidden=3, num_channels_out=9),
        DenseSizes(num_layers=3, bottleneck=5, growth=3, num_hidden=2, num_channels_out=8),
        DenseSizes(num_layers=1, bottleneck=4, growth=2, num_hidden=2, num_channels_out=5),
    ),
    embedding=11,
)


def state_of(sizes: CampPlusSizes) -> dict[str, Tensor]:
    """Weights as after training: signals keep their size, and no tensor of batch normalisation is where it started."""
    torch.manual_seed(0)
    state = CampPlus(sizes).state_dict()
    for name, tensor in state.items():
        if "running_var" in name or tensor.ndim == 1:
            state[name] = torch.rand_like(tensor) + 0.5
        if "running_mean" in name or name.endswith("bias"):
            state[name] = torch.randn_like(tensor) * 0.5
        if tensor.ndim > 1:
            state[name] = torch.randn_like(tensor) * (2 / tensor[0].numel()) ** 0.5
    return state


@lru_cache(maxsize=2)
def small(dtype: torch.dtype) -> CampPlus:
    model = CampPlus(SIZES)
    model.load_state_dict(state_of(SIZES))
    return model.to(dtype).requires_grad_(False).eval()


def fbank_of(num_frames: int, seed: int = 0) -> Tensor:
    return torch.randn(num_frames, 80, generator=torch.Generator().manual_seed(seed)) * 3


def alone(model: CampPlus, fbank: Tensor) -> Tensor:
    return model.embed(fbank[None], torch.tensor([len(fbank)]))[0]


@needs_shared
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_golden(dtype: torch.dtype) -> None:
    model = CampPlus.from_tensors(open_tensors(SHARED / "campplus_tiny.safetensors"), dtype=dtype)
    golden = load_file(GOLDEN / "campplus_tiny_io.safetensors")
    for size in (16_000, 24_007):
        # These weights amplify: noise of 1e-6 on the input is 5e-5 here.
        assert (alone(model, golden[f"fbank_{size}"]) - golden[f"emb_{size}"][0]).abs().max() < 1e-4


@needs_shared
def test_equals_the_golden_from_the_samples_on() -> None:
    model = CampPlus.from_tensors(open_tensors(SHARED / "campplus_tiny.safetensors"))
    waves = load_file(GOLDEN / "audio_features_io.safetensors")
    golden = load_file(GOLDEN / "campplus_tiny_io.safetensors")
    for size in (16_000, 24_007):
        embedding = alone(model, torch.from_numpy(campplus_fbank(waves[f"wav_{size}"].numpy())))
        assert (embedding - golden[f"emb_{size}"][0]).abs().max() < 5e-4


def test_has_the_keys_and_shapes_of_the_published_model() -> None:
    layout = json.loads((GOLDEN / "layout_campplus.json").read_text())["keys"]
    wanted = {name: tuple(shape) for name, (shape, _) in layout.items()}
    assert CampPlusSizes.of(wanted) == CampPlusSizes.of({}) == CampPlusSizes()
    with torch.device("meta"):
        model = CampPlus(CampPlusSizes.of(wanted))
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == wanted
    assert len(wanted) == 937
    assert model.embedding_size == 192


def test_sizes_come_from_the_checkpoint(tmp_path: Path) -> None:
    save_file(state_of(SIZES), tmp_path / "campplus.safetensors")
    torch.save({"state_dict": state_of(SIZES)}, tmp_path / "campplus.bin")
    fbank = fbank_of(50)
    for name in ("campplus.safetensors", "campplus.bin"):
        model = CampPlus.from_tensors(open_tensors(tmp_path / name))
        assert CampPlusSizes.of(open_tensors(tmp_path / name).shapes) == SIZES
        assert torch.equal(alone(model, fbank), alone(small(torch.float32), fbank))
        assert not model.training


def test_a_wrong_checkpoint_is_refused(tmp_path: Path) -> None:
    state = state_of(SIZES)
    del state["xvector.block2.tdnnd3.linear1.weight"]
    state["xvector.block1.tdnnd1.cam_layer.linear_local.weight"] = torch.zeros(4, 6, 5)
    state["extra"] = torch.zeros(1)
    save_file(state, tmp_path / "campplus.safetensors")
    told = (
        "1 missing (xvector.block2.tdnnd3.linear1.weight); 1 not of this model (extra); 1 of another shape "
        "(xvector.block1.tdnnd1.cam_layer.linear_local.weight is [4, 6, 5] instead of [4, 6, 3])"
    )
    with pytest.raises(ModelError, match=re.escape(told)):
        CampPlus.from_tensors(open_tensors(tmp_path / "campplus.safetensors"))
    save_file({"encoder.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=re.escape("937 missing (head.conv1.weight, ")):
        CampPlus.from_tensors(open_tensors(tmp_path / "other.safetensors"))


def batch_of(counts: list[int], filler: float, num_spare: int) -> tuple[Tensor, Tensor]:
    batch = torch.full((len(counts), max(counts) + num_spare, 80), filler)
    for row, count in enumerate(counts):
        batch[row, :count] = fbank_of(count, seed=count)
    return batch, torch.tensor(counts)


batches = given(
    counts=st.lists(st.sampled_from((3, 4, 5, 50, 199, 200, 201, 202, 203, 401)), min_size=1, max_size=5),
    filler=st.sampled_from((0.0, 7.0, -1e30, float("nan"), float("inf"))),
    num_spare=st.sampled_from((0, 1, 2, 250)),
)


@settings(max_examples=15, deadline=None)
@batches
def test_neighbours_and_padding_change_nothing(counts: list[int], filler: float, num_spare: int) -> None:
    model = small(torch.float32)
    found = model.embed(*batch_of(counts, filler, num_spare))
    for row, count in zip(found, counts, strict=True):
        assert torch.equal(row, alone(model, fbank_of(count, seed=count)))


@settings(max_examples=15, deadline=None)
@batches
def test_all_at_once_is_one_by_one(counts: list[int], filler: float, num_spare: int) -> None:
    # The way of an accelerator. In double precision, where no rounding can hide a frame that leaks.
    model = small(torch.float64)
    batch, frames = batch_of(counts, filler, num_spare)
    found = model(batch.double(), frames)
    for row, count in zip(found, counts, strict=True):
        assert (row - alone(model, fbank_of(count, seed=count).double())).abs().max() < 1e-10
    single = small(torch.float32)(batch, frames)
    assert (single - found).abs().max() < 1e-4


def test_every_frame_counts() -> None:
    model, fbank = small(torch.float64), fbank_of(260).double()
    whole = alone(model, fbank)
    for frame in (0, 1, 130, 258, 259):
        changed = fbank.clone()
        changed[frame] += 1
        assert (alone(model, changed) - whole).abs().max() > 1e-6


@pytest.mark.parametrize("num_frames", [1, 2, 99, 100, 101, 199, 200, 201, 350])
def test_context_is_that_of_pooling_with_a_ceiling(num_frames: int) -> None:
    x = torch.randn(2, 3, num_frames, dtype=torch.float64)
    wanted = F.avg_pool1d(x, kernel_size=100, stride=100, ceil_mode=True) + x.mean(2, keepdim=True)
    assert (segment_context(x, torch.tensor([num_frames] * 2)) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("counts", [[2], [0], [5, 2], [9]])
def test_impossible_lengths_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="3 to 8 are possible"):
        small(torch.float32).embed(torch.zeros(len(counts), 8, 80), torch.tensor(counts))


def test_half_precision_stays_close() -> None:
    fbank = fbank_of(120)
    model = CampPlus(SIZES)
    model.load_state_dict(state_of(SIZES))
    halved = alone(model.to(torch.bfloat16).eval(), fbank).float()
    wanted = alone(small(torch.float32), fbank)
    assert F.cosine_similarity(halved, wanted, dim=0) > 0.99
