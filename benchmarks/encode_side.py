"""One side of `encode.py`, in a process of its own: prints what it measured as a line of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.encoders.plain_oobleck import PlainAutoencoder, model_config, plain_encoder
from torch import nn
from torch.profiler import ProfilerActivity, profile

import woodshed
from benchmarks.encode import RATE_HZ, RATIO, WINDOW_SAMPLES
from benchmarks.measuring import cpu_s, peak_mib
from benchmarks.plain_loop import encode_plainly, load_plain
from woodshed.audio.clip import file_digest
from woodshed.audio.decode import blocks
from woodshed.audio.probe import probe
from woodshed.contracts import Example, Item
from woodshed.jobs.model import load_encoder
from woodshed.jobs.settings import EncodeSettings
from woodshed.run.memory import freed_memory_kept
from woodshed.sources.open import open_source

C_MULTS, STRIDES, LATENT_DIM = (1, 2, 4, 8, 16), (2, 4, 4, 8, 8), 64
PROFILED_S = 24.0
"""Sound that the breakdown of the network is taken from."""
OPERATIONS = {
    "convolutions": ("conv", "mkldnn", "mm", "nnpack"),
    "Snake": ("aten::sin", "aten::mul", "aten::square", "aten::pow", "aten::addcmul", "Compiled", "Dynamo"),
}
"""Beginnings or parts of the names under which the profiler lists what a part is made of."""


class Stopwatch:
    """CPU time, wall time and memory from now on."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.start_s = cpu_s()
        self._wall_s = time.perf_counter()

    def read(self, useful_s: Iterable[float]) -> dict[str, Any]:
        peak = peak_mib()
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device) / 2**20
        return {
            "start_s": self.start_s,
            "cpu_s": cpu_s() - self.start_s,
            "wall_s": time.perf_counter() - self._wall_s,
            "useful_s": [*useful_s],
            "peak_mib": peak,
        }


def make_model(folder: Path) -> dict[str, Any]:
    """Config and checkpoint of a random autoencoder."""
    config = model_config(
        channels=json.loads((folder / "size.json").read_text())["channels"],
        c_mults=C_MULTS,
        strides=STRIDES,
        latent_dim=LATENT_DIM,
        bottleneck={"type": "vae"},
        rate_hz=RATE_HZ,
        final_tanh=False,
    )
    (folder / "model.json").write_text(json.dumps(config))
    torch.save({"state_dict": PlainAutoencoder(config["model"], seed=0).state_dict()}, folder / "model.ckpt")
    return {}


def run_plain(folder: Path, device: str) -> dict[str, Any]:
    watch = Stopwatch(device)
    encoder = load_plain(folder / "model.json", folder / "model.ckpt", device)
    useful_s = encode_plainly(
        folder / "clips", folder / "plain", encoder,
        rate_hz=RATE_HZ, window_samples=WINDOW_SAMPLES, ratio=RATIO, device=device,
    )  # fmt: skip
    return watch.read([*useful_s])


def run_woodshed(folder: Path, device: str, *, compile: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"compile": compile, "latents": "mean", "device": device}
    options |= {"model_config_path": folder / "model.json", "ckpt_path": folder / "model.ckpt"}
    if compile:
        woodshed.encode(folder / "warm-up", folder / "warmed-up", **options)
    watch = Stopwatch(device)
    summary = woodshed.encode(folder / "clips", folder / ("compiled" if compile else "woodshed"), **options)
    if summary.exit_code:
        raise SystemExit(f"the run failed: {summary.failures}")
    return watch.read(probe(str(path)).duration_s for path in sorted((folder / "clips").iterdir()))


def measure_parts(folder: Path, device: str) -> dict[str, Any]:
    """CPU time of each part of a run, one after the other in one thread."""
    settings = EncodeSettings(
        input=folder / "clips", output_path=folder / "parts", device=device, latents="mean",
        model_config_path=folder / "model.json", ckpt_path=folder / "model.ckpt",
    )  # fmt: skip
    encoder = load_encoder(settings).encoder
    rows = open_source(str(folder / "clips"), None, trust_remote_code=False).rows()
    items = [replace(row, audio=probe(row.path)) for row in rows if isinstance(row, Item)]
    digest_s = spent(lambda item: file_digest(item.path), items)
    decode_s = spent(lambda item: sum(block.shape[1] for block in blocks(item.path, item.audio)), items)
    examples: list[Example] = []
    profiled_s = 0.0

    def prepare(item: Item) -> None:
        nonlocal profiled_s
        pieces = encoder.outline(item).pieces
        for example in encoder.prepare(item):
            cost_s = pieces[example.index].cost_s
            if not examples or profiled_s + cost_s <= PROFILED_S:
                profiled_s += cost_s
                examples.append(example)

    prepare_s = spent(prepare, items)
    computed_s = sum(piece.cost_s for item in items for piece in encoder.outline(item).pieces)
    encoder.encode(examples[:1])
    with freed_memory_kept():
        network_s = spent(lambda example: encoder.encode([example]), examples) * computed_s / profiled_s
    with freed_memory_kept(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        encoder.encode(examples[-1:])
    shares = operation_shares(profiler)
    config = json.loads((folder / "model.json").read_text())["model"]["encoder"]["config"]
    plain = plain_encoder(config)
    return {
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "gflop_per_s": gflop_per_s(plain),
        "peak_gflops": peak_gflops(),
        "cpu_s": {
            "digest of the files": digest_s,
            "decode": decode_s,
            "resample and cut": prepare_s - decode_s,
            **{name: share * network_s for name, share in shares.items()},
        },
    }


def spent(function: Any, things: Iterable[Any]) -> float:
    before = cpu_s()
    for thing in things:
        function(thing)
    return cpu_s() - before


def operation_shares(profiler: Any) -> dict[str, float]:
    found = dict.fromkeys([*OPERATIONS, "copies, additions, calls"], 0.0)
    for event in profiler.key_averages():
        for name, parts in OPERATIONS.items():
            if any(part in event.key for part in parts):
                found[name] += event.self_cpu_time_total
                break
        else:
            found["copies, additions, calls"] += event.self_cpu_time_total
    total = sum(found.values())
    return {name: value / total for name, value in found.items()}


def gflop_per_s(encoder: nn.Module) -> float:
    """Multiplications and additions of the convolutions for one second of sound, without context or padding."""
    rate_hz, total = float(RATE_HZ), 0.0
    for module in encoder.modules():
        if isinstance(module, nn.Conv1d):
            rate_hz /= module.stride[0]
            total += 2 * rate_hz * module.in_channels * module.out_channels * module.kernel_size[0]
    return total / 1e9


@torch.inference_mode()
def peak_gflops() -> float:
    """The fastest float32 arithmetic that torch reaches on one core here: matrix products and convolutions."""
    matrix = torch.randn(1024, 1024)
    best = 2 * 1024**3 / fastest_s(lambda: matrix @ matrix)
    for channels, length in ((128, 2048), (512, 2048), (1024, 1024)):
        signal, weight = torch.randn(1, channels, length), torch.randn(channels, channels, 7)
        best = max(best, 14 * channels**2 * length / fastest_s(lambda: nn.functional.conv1d(signal, weight)))  # noqa: B023
    return best / 1e9


def fastest_s(function: Any) -> float:
    function()
    return min(spent(lambda _: function(), range(1)) for _ in range(10))


def main() -> None:
    side, folder, device = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    match side:
        case "model":
            result = make_model(folder)
        case "plain":
            result = run_plain(folder, device)
        case "woodshed" | "compiled":
            result = run_woodshed(folder, device, compile=side == "compiled")
        case "parts":
            result = measure_parts(folder, device)
        case _:
            raise SystemExit(f"no side {side!r}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
