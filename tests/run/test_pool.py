"""Worker processes: the same bytes for any number of them, and no item is lost when one dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.jobs.conftest import tree
from tests.run.test_engine import SmallNetwork, Watcher, encoder, sounds
from woodshed.batching.pack import BatchLimits
from woodshed.contracts import Arrays, Example, Item, Summary
from woodshed.encoders.autoencoder import FrameEncoder
from woodshed.errors import ModelError, WoodshedError
from woodshed.run.engine import EngineOptions
from woodshed.run.plan import PlanOptions
from woodshed.run.pool import MakeEncoder, Pool
from woodshed.run.session import plan_folder, run_plan
from woodshed.run.stopping import StopSignals
from woodshed.sources.open import open_source
from woodshed.store.stable_audio import StableAudio
from woodshed.store.store import Store

__all__ = ["sounds"]

HOP = SmallNetwork.hop_samples


def usual(number: int) -> FrameEncoder:
    return encoder()


class Deadly(FrameEncoder):
    """Kills its process at one sound."""

    def prepare(self, item: Item) -> Iterator[Example]:
        if item.id == "13.wav":
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().prepare(item)


class DiesOnce(FrameEncoder):
    """Kills its process at its first batch, unless another one has done so before."""

    def __init__(self, mark: Path) -> None:
        super().__init__(SmallNetwork(), encoder().options)
        self._mark = mark

    def encode(self, batch: Sequence[Example]) -> list[Arrays]:
        if not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(batch)


def deadly(number: int) -> FrameEncoder:
    return Deadly(SmallNetwork(), encoder().options)


def dies_once(mark: Path, number: int) -> FrameEncoder:
    return DiesOnce(mark)


def without_model(number: int) -> FrameEncoder:
    raise ModelError("there is no checkpoint x", hint="get it")


def dies_loading(number: int) -> FrameEncoder:
    os._exit(5)


def with_a_bug(number: int) -> FrameEncoder:
    raise KeyError("a bug")


def run(sounds: Path, output: Path, make_encoder: MakeEncoder, *, num_workers: int) -> Summary:
    own = encoder()
    options = PlanOptions(limits=BatchLimits(max_cost_s=0.5), unit_items=7)
    layout = StableAudio(spec=own.spec, window_samples=256 * HOP)
    with (
        Store.open(output, layout=layout, fingerprint=own.fingerprint, spec=own.spec) as store,
        Pool(
            make_encoder,
            num_workers=num_workers,
            compute_threads=1,
            decode_threads=2,
            max_waiting_bytes=2**20,
            stall_s=60.0,
        ) as pool,
    ):
        work = plan_folder(
            open_source(str(sounds), None).rows(),
            own,
            options,
            log=store.log,
            planned_before=store.plan.lines(),
            next_position=store.next_position,
        )
        return run_plan(
            work,
            own,
            store,
            options=EngineOptions(),
            observer=Watcher(),
            stopped=StopSignals(),
            pool=pool if num_workers else None,
        )


@pytest.mark.parametrize("num_workers", [1, 3])
def test_any_number_of_workers_gives_the_same_bytes(sounds: Path, tmp_path: Path, num_workers: int) -> None:
    run(sounds, tmp_path / "here", usual, num_workers=0)
    summary = run(sounds, tmp_path / "there", usual, num_workers=num_workers)
    assert (summary.num_done, summary.num_failed) == (30, 0)
    assert tree(tmp_path / "here") == tree(tmp_path / "there")


def test_a_sound_that_kills_its_process_costs_that_sound(sounds: Path, tmp_path: Path) -> None:
    run(sounds, tmp_path / "here", usual, num_workers=0)
    summary = run(sounds, tmp_path / "there", deadly, num_workers=2)
    assert (summary.num_done, summary.num_failed) == (29, 1)
    (failure,) = summary.failures
    assert (failure.id, failure.kind) == ("13.wav", "crashed")
    assert "signal 11" in failure.reason
    here, there = tree(tmp_path / "here"), tree(tmp_path / "there")
    assert there.items() <= here.items()
    assert {name.rpartition(".")[2] for name in here.keys() - there.keys()} == {"npy", "json"}


def test_the_work_of_a_killed_worker_is_done_again(sounds: Path, tmp_path: Path) -> None:
    run(sounds, tmp_path / "here", usual, num_workers=0)
    summary = run(sounds, tmp_path / "there", partial(dies_once, tmp_path / "mark"), num_workers=2)
    assert (tmp_path / "mark").exists()
    assert (summary.num_done, summary.num_failed) == (30, 0)
    assert tree(tmp_path / "here") == tree(tmp_path / "there")


def test_a_model_that_cannot_be_loaded_ends_the_run_with_its_reason(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no checkpoint x") as caught:
        run(sounds, tmp_path / "out", without_model, num_workers=2)
    assert caught.value.hint == "get it"
    with pytest.raises(WoodshedError, match=r"died while it loaded the model \(exit code 5\)"):
        run(sounds, tmp_path / "out", dies_loading, num_workers=1)
    with pytest.raises(WoodshedError, match="KeyError: 'a bug'"):
        run(sounds, tmp_path / "out", with_a_bug, num_workers=1)
    assert run(sounds, tmp_path / "out", usual, num_workers=1).num_done == 30
