"""Another device gives the same tokens and nearly the same floats; a folder can change hands between devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import woodshed
from tests.jobs.conftest import WINDOW
from woodshed.errors import UsageError

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("name", ["tiny_vae", "tiny_fsq"])
def test_a_gpu_gives_what_the_cpu_gives(
    sounds: Path, tmp_path: Path, model: Callable[[str], dict[str, Path]], name: str
) -> None:
    for device in ("cpu", "cuda"):
        discrete = name == "tiny_fsq"
        woodshed.encode(
            sounds, tmp_path / device, device=device, sample_size=WINDOW, is_discrete=discrete, **model(name)
        )
    pairs = zip(woodshed.open(tmp_path / "cpu"), woodshed.open(tmp_path / "cuda"), strict=True)
    for cpu, cuda in pairs:
        kind = "tokens" if name == "tiny_fsq" else "latents"
        one, other = cpu[kind].numpy(), cuda[kind].numpy()
        if kind == "tokens":
            assert (one != other).mean() < 1e-3, "only values on a rounding edge may fall to the other side"
        else:
            np.testing.assert_allclose(one, other, atol=1e-3 * one.std())


@pytest.mark.gpu
@needs_cuda
def test_a_run_begun_on_the_cpu_is_finished_on_the_gpu(
    sounds: Path, tmp_path: Path, model: Callable[[str], dict[str, Path]]
) -> None:
    settings = {"sample_size": WINDOW, **model("tiny_tanh")}
    first = woodshed.encode(sounds, tmp_path / "out", device="cpu", limit_batches=3, **settings)
    rest = woodshed.encode(sounds, tmp_path / "out", device="cuda", **settings)
    assert (first.num_done, rest.num_new, rest.num_pending) == (3, 5, 0)


def test_a_device_that_is_not_there_is_a_usage_error(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this machine has"):
        woodshed.encode(sounds, tmp_path / "out", device="cuda:99")
