"""The engine under trouble: pieces out of order, memory, slow decoders, interruption. The network is real and small."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from tests.jobs.conftest import tree
from woodshed.batching.pack import BatchLimits
from woodshed.contracts import Arrays, Example, Item, Json, Progress, Summary
from woodshed.encoders.autoencoder import FrameEncoder, FrameOptions
from woodshed.errors import ItemError
from woodshed.run.engine import EngineOptions
from woodshed.run.feeder import Feeder
from woodshed.run.plan import PlanOptions
from woodshed.run.session import plan_folder, run_plan
from woodshed.run.stopping import StopSignals
from woodshed.sources.open import open_source
from woodshed.store.shards import Shards
from woodshed.store.stable_audio import StableAudio
from woodshed.store.store import Store

RATE_HZ = 8_000
HOP = 16


class SmallNetwork:
    """Three convolutions: a finite reach, 8 kHz, mono, 16 samples per frame."""

    rate_hz, channels, hop_samples, reach_frames = RATE_HZ, 1, HOP, 2
    kind = "latents"
    codebook_sizes: tuple[int, ...] = ()
    fingerprint: Mapping[str, Json] = {"network": "small"}

    def __init__(self) -> None:
        torch.manual_seed(1)
        self._net = torch.nn.Sequential(
            torch.nn.Conv1d(1, 6, 5, padding=2),
            torch.nn.ELU(),
            torch.nn.Conv1d(6, 6, 2 * HOP, stride=HOP, padding=HOP // 2),
            torch.nn.ELU(),
            torch.nn.Conv1d(6, 4, 3, padding=1),
        )

    @torch.inference_mode()
    def analyse(self, audio: Tensor) -> dict[str, Tensor]:
        return {"latents": self._net(audio)}


class Watcher:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[Progress] = []

    def message(self, text: str) -> None: ...

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        length = int(rng.integers(40, 3 * RATE_HZ))
        soundfile.write(folder / f"{number:02d}.wav", 0.3 * rng.standard_normal(length).clip(-3, 3), RATE_HZ)
    return folder


def encoder(**options: object) -> FrameEncoder:
    made = {"window": "tile", "record_frames": 256, "window_frames": 40, "quantum_frames": 8} | options
    return FrameEncoder(SmallNetwork(), FrameOptions(**made))  # type: ignore[arg-type]


def run(
    sounds: Path,
    output: Path,
    own: FrameEncoder,
    *,
    threads: int = 2,
    max_cost_s: float = 0.5,
    stopped: StopSignals | None = None,
    packed: bool = False,
    max_waiting_bytes: int = 2**20,
) -> tuple[Summary, Watcher]:
    layout = Shards(spec=own.spec) if packed else StableAudio(spec=own.spec, window_samples=256 * HOP)
    options = PlanOptions(limits=BatchLimits(max_cost_s=max_cost_s), unit_items=7, shard_bytes=100_000)
    watcher = Watcher()
    with Store.open(output, layout=layout, fingerprint=own.fingerprint, spec=own.spec, group_s=0.0) as store:
        rows = open_source(str(sounds), None).rows()
        work = plan_folder(
            rows, own, options, log=store.log, planned_before=store.plan.lines(), next_position=store.next_position
        )
        summary = run_plan(
            work,
            own,
            store,
            options=EngineOptions(num_threads=threads, max_waiting_bytes=max_waiting_bytes),
            observer=watcher,
            stopped=stopped or StopSignals(),
        )
    return summary, watcher


def test_progress_ends_at_the_totals(sounds: Path, tmp_path: Path) -> None:
    summary, watcher = run(sounds, tmp_path / "out", encoder())
    last = watcher.seen[-1]
    assert (last.items_done, last.items_total, last.items_failed) == (30, 30, 0)
    assert last.audio_done_s == pytest.approx(last.audio_total_s)
    assert summary.audio_s == pytest.approx(last.audio_total_s)


class Flaky(FrameEncoder):
    """Runs out of memory for batches of more than `room` pieces."""

    room = 2
    num_refused = 0

    def encode(self, batch: Sequence[Example]) -> list[Arrays]:
        if len(batch) > self.room:
            self.num_refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().encode(batch)


def test_running_out_of_memory_changes_nothing_but_the_last_bits(sounds: Path, tmp_path: Path) -> None:
    run(sounds, tmp_path / "roomy", encoder())
    flaky = Flaky(SmallNetwork(), encoder().options)
    summary, _ = run(sounds, tmp_path / "flaky", flaky)
    assert summary.num_done == 30
    assert flaky.num_refused > 0
    assert any("memory ran out" in note for note in summary.notes)
    plain, split = tree(tmp_path / "roomy"), tree(tmp_path / "flaky")
    assert plain.keys() == split.keys()
    for name in (name for name in plain if name.endswith(".npy")):
        one, other = np.load(tmp_path / "roomy" / name), np.load(tmp_path / "flaky" / name)
        np.testing.assert_allclose(one, other, atol=1e-5 * one.std())


class Interrupting(FrameEncoder):
    """Asks the run to stop after some batches, as a signal would."""

    def stop_after(self, count: int, signals: StopSignals) -> Interrupting:
        self._left, self._signals = count, signals
        return self

    def encode(self, batch: Sequence[Example]) -> list[Arrays]:
        self._left -= 1
        if self._left < 0:
            self._signals.name = "SIGTERM"
        return super().encode(batch)


@pytest.mark.parametrize("packed", [False, True])
def test_interrupted_runs_end_in_the_same_tree(sounds: Path, tmp_path: Path, packed: bool) -> None:
    run(sounds, tmp_path / "straight", encoder(), packed=packed)
    for count in (0, 3, 7, 2, 11, 5):
        signals = StopSignals()
        own = Interrupting(SmallNetwork(), encoder().options).stop_after(count, signals)
        summary, _ = run(sounds, tmp_path / "broken", own, packed=packed, stopped=signals)
        if summary.stopped_by:
            assert summary.exit_code == 143
            assert summary.num_done + summary.num_pending == 30
    final, _ = run(sounds, tmp_path / "broken", encoder(), packed=packed)
    assert (final.num_done, final.num_pending, final.exit_code) == (30, 0, 0)
    assert tree(tmp_path / "straight") == tree(tmp_path / "broken")


def test_a_plan_of_other_windows_is_made_anew(sounds: Path, tmp_path: Path) -> None:
    signals = StopSignals()
    own = Interrupting(SmallNetwork(), encoder().options).stop_after(30, signals)
    interrupted, _ = run(sounds, tmp_path / "out", own, stopped=signals)
    assert 0 < interrupted.num_done < 30
    summary, _ = run(sounds, tmp_path / "out", encoder(window_frames=56))
    assert (summary.num_done, summary.num_failed) == (30, 0)


class BadOutput(FrameEncoder):
    """Gives NaN for one clip, refuses another, and computes the rest."""

    def encode(self, batch: Sequence[Example]) -> list[Arrays]:
        if any(example.item_id == "07.wav" for example in batch):
            raise ItemError("the network refuses 07.wav", kind="refused")
        made = super().encode(batch)
        for example, arrays in zip(batch, made, strict=True):
            if example.item_id == "05.wav":
                arrays["latents"][...] = np.nan  # type: ignore[index]
        return made


def test_an_item_that_fails_on_the_device_fails_alone(sounds: Path, tmp_path: Path) -> None:
    summary, _ = run(sounds, tmp_path / "out", BadOutput(SmallNetwork(), encoder().options))
    assert (summary.num_done, summary.num_failed) == (28, 2)
    assert {failure.id: failure.kind for failure in summary.failures} == {"05.wav": "not_finite", "07.wav": "refused"}
    run(sounds, tmp_path / "plain", encoder())
    plain, out = tree(tmp_path / "plain"), tree(tmp_path / "out")
    assert all(plain[name] == content for name, content in out.items() if name.endswith(".npy"))


class Complaining(FrameEncoder):
    """Finds at the end of one file, when all its pieces are decoded, that the file is not what it announced."""

    def prepare(self, item: Item) -> Iterator[Example]:
        yield from super().prepare(item)
        if item.id == "03.wav":
            threading.Event().wait(0.2)
            raise ItemError("03.wav goes on after its announced end", kind="changed")


@pytest.mark.parametrize("threads", [0, 3])
def test_an_item_is_not_done_before_its_decoder_has_come_to_its_end(sounds: Path, tmp_path: Path, threads: int) -> None:
    own = Complaining(SmallNetwork(), encoder().options)
    summary, _ = run(sounds, tmp_path / "out", own, threads=threads)
    assert {failure.id: failure.kind for failure in summary.failures} == {"03.wav": "changed"}
    assert summary.num_done == 29


def test_shards_and_files_hold_the_same_arrays(sounds: Path, tmp_path: Path) -> None:
    import woodshed

    run(sounds, tmp_path / "files", encoder(pad_last=False))
    run(sounds, tmp_path / "shards", encoder(pad_last=False), packed=True)
    assert len(list((tmp_path / "shards" / "shards").glob("*.safetensors"))) > 1
    one, other = woodshed.open(tmp_path / "files"), woodshed.open(tmp_path / "shards")
    assert len(one) == len(other) > 30
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a["latents"], b["latents"])
        assert a["info"]["start_s"] == b["info"]["start_s"]


def test_little_room_and_pieces_out_of_order_do_not_block(sounds: Path, tmp_path: Path) -> None:
    done = threading.Event()

    def work() -> None:
        run(sounds, tmp_path / "out", encoder(), threads=1, max_cost_s=30.0, max_waiting_bytes=1)
        done.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert done.wait(timeout=60), "the feeder waits for itself"
    thread.join()


def test_feeder_reports_a_defect_in_a_thread_instead_of_hanging(sounds: Path) -> None:
    class Defect(FrameEncoder):
        def prepare(self, item: Item) -> Iterator[Example]:
            raise KeyError("a bug")

    own = Defect(SmallNetwork(), encoder().options)
    item = next(row for row in open_source(str(sounds), None).rows() if isinstance(row, Item))
    with Feeder([item], own, num_threads=1) as feeder, pytest.raises(KeyError, match="a bug"):
        feeder.take(0, 0)
