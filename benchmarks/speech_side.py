"""One side of `speech.py`, in a process of its own; the last line that it prints is its measurement as JSON."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.measuring import cpu_s, peak_mib  # noqa: E402

LANGUAGE = "en"
WARM_S = 1.0


def make_models(folder: Path, layers: int, intermediate_size: int) -> None:
    """A model folder; w2v-bert is 1024 wide with 16 heads, as published, and as deep as told."""
    from tests.jobs.tiny_indextts import write_models
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

    write_models(folder, num_layers=layers)
    torch.manual_seed(1)
    config = Wav2Vec2BertConfig(
        hidden_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=16,
        intermediate_size=intermediate_size,
        add_adapter=False,
    )
    Wav2Vec2BertModel(config).save_pretrained(folder / "hf_cache" / "w2v-bert-2.0")


def plain(models: Path, manifest: Path, output: Path, layer: int, batch_size: int) -> dict[str, Any]:
    from benchmarks.speech_reference import PlainLoop

    started_s = cpu_s()
    PlainLoop(models, layer).run(manifest, output, batch_size=batch_size, language=LANGUAGE)
    return {"cpu_s": cpu_s() - started_s, "peak_mib": peak_mib()}


def ours(models: Path, manifest: Path, output: Path, layer: int) -> dict[str, Any]:
    from woodshed.jobs.speech import speech

    started_s = cpu_s()
    report = speech(
        manifest,
        output,
        config=models / "config.yaml",
        semantic_layer=layer,
        device="cpu",
        num_processes=1,
        compat=True,
        language=LANGUAGE,
    )
    assert report.exit_code == 0, report
    return {"cpu_s": cpu_s() - started_s, "peak_mib": peak_mib()}


def memory_stock(models: Path, layer: int, duration_s: float) -> dict[str, Any]:
    from transformers import Wav2Vec2BertModel

    bert = Wav2Vec2BertModel.from_pretrained(models / "hf_cache" / "w2v-bert-2.0").eval()

    @torch.inference_mode()
    def hear(features: torch.Tensor, valid: int) -> torch.Tensor:
        mask = (torch.arange(features.shape[1]) < valid).long()[None]
        hidden: torch.Tensor = bert(features, attention_mask=mask, output_hidden_states=True).hidden_states[layer]
        return hidden

    return _memory(hear, duration_s)


def memory_ours(models: Path, layer: int, duration_s: float) -> dict[str, Any]:
    from woodshed.encoders.speech.checkpoint import open_checkpoint
    from woodshed.encoders.speech.w2vbert import W2VBert

    weights = next((models / "hf_cache" / "w2v-bert-2.0").glob("*.safetensors"))
    bert = W2VBert.from_tensors(open_checkpoint(weights), layer=layer)
    return _memory(lambda features, valid: bert(features, torch.tensor([valid])), duration_s)


def _memory(hear: Callable[[torch.Tensor, int], torch.Tensor], duration_s: float) -> dict[str, Any]:
    """Peak memory of one pass above what there is before it. A pass over a second of sound comes first, so that all
    weights, code and buffers are there."""
    _features_through(hear, WARM_S)
    before_mib = _status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    hidden = _features_through(hear, duration_s)
    return {"activation_mib": _status_mib("VmHWM") - before_mib, "before_mib": before_mib, "mean": float(hidden.mean())}


def _features_through(hear: Callable[[torch.Tensor, int], torch.Tensor], duration_s: float) -> torch.Tensor:
    frames = round(duration_s * 50) - 1
    features = torch.randn(1, frames, 160, generator=torch.Generator().manual_seed(0))
    return hear(features, frames)


def _status_mib(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"/proc/self/status has no {name}"
    return int(found[1]) / 1024


def distance(reference: Path, made: Path) -> dict[str, float]:
    """How far two folders of features are apart: share of other codes, largest difference of the vectors."""
    differing = num_codes = num_lengths = 0
    largest = {"condition": 0.0, "emo_vec": 0.0}
    text_differs = 0
    paths = sorted((reference / "codes").glob("*.npy"))
    for path in paths:
        wanted, found = np.load(path), np.load(made / "codes" / path.name)
        shared = min(len(wanted), len(found))
        num_lengths += len(wanted) != len(found)
        differing += int((wanted[:shared] != found[:shared]).sum())
        num_codes += shared
        for name in largest:
            apart = np.abs(np.load(reference / name / path.name) - np.load(made / name / path.name)).max()
            largest[name] = max(largest[name], float(apart))
        texts = (np.load(folder / "text_ids" / path.name) for folder in (reference, made))
        text_differs += not np.array_equal(*texts)
    return {
        "clips": len(paths), "lengths": num_lengths, "codes": differing, "num_codes": num_codes,
        "texts": text_differs, **largest,
    }  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(sys.stderr):
        yield


def main() -> None:
    side, models, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    folder = Path(models)
    with _quiet():
        match side, rest:
            case "models", [layers, intermediate]:
                make_models(folder, int(layers), int(intermediate))
                made: dict[str, Any] = {}
            case "plain", [manifest, output, layer, batch_size]:
                made = plain(folder, Path(manifest), Path(output), int(layer), int(batch_size))
            case "ours", [manifest, output, layer]:
                made = ours(folder, Path(manifest), Path(output), int(layer))
            case "memory-stock", [layer, duration_s]:
                made = memory_stock(folder, int(layer), float(duration_s))
            case "memory-ours", [layer, duration_s]:
                made = memory_ours(folder, int(layer), float(duration_s))
            case _:
                raise SystemExit(f"no such side: {sys.argv[1:]}")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
