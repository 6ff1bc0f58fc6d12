"""What never comes back holds up nobody: decoders and header readers that hang, and the items beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from tests.jobs.conftest import sound, tree
from woodshed.batching.pack import BatchLimits
from woodshed.contracts import Example, Item, Outline, Summary
from woodshed.encoders.autoencoder import FrameEncoder
from woodshed.errors import WoodshedError
from woodshed.jobs.encode import Silent, open_store
from woodshed.jobs.model import LoadedModel, load_encoder
from woodshed.jobs.settings import EncodeSettings
from woodshed.run.engine import EngineOptions
from woodshed.run.patience import MAX_LEFT_BEHIND, BoundedMap
from woodshed.run.plan import PlanOptions
from woodshed.run.session import plan_folder, run_plan
from woodshed.run.stopping import StopSignals
from woodshed.sources.open import open_source

GOLDEN = Path(__file__).parents[1] / "golden" / "stable_audio" / "models"
STALL_S = 0.6


class Hanging(FrameEncoder):
    """Hangs in a decoder after the first piece, or over a header, for the items that are named, until it is let go."""

    def hang(self, *, decoding: tuple[str, ...] = (), probing: tuple[str, ...] = ()) -> None:
        self.decoding, self.probing, self.let_go = decoding, probing, threading.Event()

    def outline(self, item: Item) -> Outline:
        if item.id in self.probing:
            self.let_go.wait()
        return super().outline(item)

    def prepare(self, item: Item) -> Iterator[Example]:
        examples = super().prepare(item)
        for example in examples:
            yield example
            if item.id in self.decoding:
                self.let_go.wait()


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(8):
        soundfile.write(folder / f"{number}.wav", sound(6.0 if number < 3 else 0.5, 44_100, 2, seed=number), 44_100)
    return folder


@pytest.fixture
def hanging(sounds: Path) -> Iterator[tuple[Hanging, LoadedModel]]:
    model = load_encoder(settings(sounds, sounds))
    assert isinstance(model.encoder, FrameEncoder)
    encoder = Hanging(model.encoder.model, model.encoder.options)
    encoder.hang()
    yield encoder, model
    encoder.let_go.set()


def settings(source: Path, output: Path) -> EncodeSettings:
    return EncodeSettings.model_validate(
        {"input": source, "output_path": output, "sample_size": 65_536, "device": "cpu",
         "model_config_path": GOLDEN / "tiny_tanh.json", "ckpt_path": GOLDEN / "tiny_tanh.ckpt"}
    )  # fmt: skip


def run(sounds: Path, output: Path, encoder: Hanging, model: LoadedModel, *, threads: int = 2) -> Summary:
    with open_store(settings(sounds, output), model) as store:
        work = plan_folder(
            open_source(str(sounds), None).rows(),
            encoder,
            PlanOptions(limits=BatchLimits(max_cost_s=model.batch_s), stall_s=STALL_S),
            log=store.log,
            planned_before=store.plan.lines(),
            next_position=store.next_position,
        )
        options = EngineOptions(num_threads=threads, stall_s=STALL_S)
        return run_plan(work, encoder, store, options=options, observer=Silent(), stopped=StopSignals())


@pytest.mark.parametrize("threads", [1, 3])
def test_a_decoder_that_hangs_costs_its_item_only(
    sounds: Path, tmp_path: Path, hanging: tuple[Hanging, LoadedModel], threads: int
) -> None:
    encoder, model = hanging
    expected = run(sounds, tmp_path / "straight", encoder, model)
    assert (expected.num_done, expected.exit_code) == (8, 0)
    encoder.hang(decoding=("1.wav", "4.wav"))
    started = time.monotonic()
    summary = run(sounds, tmp_path / "out", encoder, model, threads=threads)
    assert time.monotonic() - started > STALL_S
    # 4.wav has one piece, and hangs after it: nobody knows whether the file ends there.
    assert {failure.id: failure.kind for failure in summary.failures} == {"1.wav": "too_slow", "4.wav": "too_slow"}
    assert summary.num_done == 6
    assert all(f"{failure.id} made no progress for" in failure.reason for failure in summary.failures)
    assert all("its decoder or its disk hangs" in failure.reason for failure in summary.failures)
    straight, out = tree(tmp_path / "straight"), tree(tmp_path / "out")
    assert 0 < len(out) < len(straight)
    assert all(straight[name] == content for name, content in out.items())


def test_a_header_that_hangs_costs_its_item_only(
    sounds: Path, tmp_path: Path, hanging: tuple[Hanging, LoadedModel]
) -> None:
    encoder, model = hanging
    encoder.hang(probing=("0.wav", "5.wav"))
    summary = run(sounds, tmp_path / "out", encoder, model)
    assert (summary.num_done, summary.num_failed) == (6, 2)
    assert {failure.id: failure.kind for failure in summary.failures} == {"0.wav": "too_slow", "5.wav": "too_slow"}


def test_a_bounded_map_keeps_order_and_tells_what_did_not_end() -> None:
    let_go = threading.Event()

    def square(value: int) -> int:
        if value in (3, 4):
            let_go.wait()
        return value * value

    # Both threads hang: others take their place.
    bounded = BoundedMap(square, num_threads=2, limit_s=lambda value: 0.2)
    assert bounded(range(8)) == [0, 1, 4, None, None, 25, 36, 49]
    assert bounded.num_left_behind == 2
    assert bounded(range(5, 7)) == [25, 36]
    assert bounded([]) == []
    let_go.set()


def test_a_bounded_map_hands_on_what_was_raised_and_stops_when_asked() -> None:
    def fail(value: int) -> int:
        raise KeyError(value)

    with pytest.raises(KeyError):
        BoundedMap(fail, num_threads=2, limit_s=lambda value: 1.0)(range(4))
    let_go = threading.Event()
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    waiting = BoundedMap(lambda value: let_go.wait(), num_threads=2, limit_s=lambda value: 60.0)
    assert waiting(range(4), stopped=stop.is_set) == [None] * 4
    let_go.set()


def test_when_everything_hangs_the_run_ends() -> None:
    let_go = threading.Event()
    bounded = BoundedMap(lambda value: let_go.wait(), num_threads=8, limit_s=lambda value: 0.01)
    with pytest.raises(WoodshedError, match="the disk they lie on seems to hang") as caught:
        bounded(range(2 * MAX_LEFT_BEHIND))
    assert "--retry-failed" in str(caught.value)
    let_go.set()
