from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from woodshed.encoders.speech.checkpoint import WRAPPERS, family_of, open_checkpoint
from woodshed.encoders.weights import TensorFile
from woodshed.errors import ModelError

GOLDEN = Path(__file__).parents[2] / "golden" / "indextts2"
STATE = {"encoder.weight": torch.arange(6.0).reshape(2, 3), "encoder.bias": torch.ones(2)}


def layout(name: str) -> TensorFile:
    """A real-size checkpoint without its numbers."""
    keys = json.loads((GOLDEN / f"layout_{name}.json").read_text())["keys"]
    # That of w2v-bert lists shapes alone, the others [shape, type].
    shapes = {key: tuple(value[0] if value and isinstance(value[0], list) else value) for key, value in keys.items()}
    return TensorFile(path=Path(name), shapes=shapes, read=lambda key: torch.empty(shapes[key], device="meta"))


def saved(folder: Path, content: Any, name: str = "model.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def assert_same(found: TensorFile, state: dict[str, Tensor]) -> None:
    assert found.shapes == {key: tuple(value.shape) for key, value in state.items()}
    for key, value in state.items():
        assert torch.equal(found.read(key), value)


@pytest.mark.parametrize("name", ["m.pth", "m.pt", "m.bin"])
@pytest.mark.parametrize(
    "wrapper", [(), *((name,) for name in WRAPPERS), ("model", "state_dict"), ("state_dict", "model")]
)
def test_wrappers_are_taken_off(tmp_path: Path, name: str, wrapper: tuple[str, ...]) -> None:
    content: Any = STATE
    for key in reversed(wrapper):
        content = {"epoch": 7, key: content, "optimizer": {"state": {0: torch.ones(3)}}}
    assert_same(open_checkpoint(saved(tmp_path, content, name)), STATE)


def test_a_safetensors_file_needs_no_wrapper(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    assert_same(open_checkpoint(tmp_path / "model.safetensors"), STATE)


def test_the_old_format_of_torch_opens_too(tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(open_checkpoint(tmp_path / "old.pth"), STATE)


@pytest.mark.parametrize(
    "mark", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "base_model.model."]
)
def test_marks_of_parallel_compiled_and_adapted_modules_are_taken_off(tmp_path: Path, mark: str) -> None:
    assert_same(open_checkpoint(saved(tmp_path, {mark + key: value for key, value in STATE.items()})), STATE)
    inner = {key.replace(".", "._orig_mod."): value for key, value in STATE.items()}
    assert_same(open_checkpoint(saved(tmp_path, inner)), STATE)


@given(
    marked=st.dictionaries(
        st.sampled_from(["gpt.h.0.attn.weight", "emo_layer.weight", "a.bias", "modules.weight", "module_list.weight"]),
        st.sampled_from(["", "module.", "_orig_mod."]),
        min_size=1,
    )
)
@settings(max_examples=25, deadline=None)
def test_names_that_only_look_marked_stay(tmp_path_factory: pytest.TempPathFactory, marked: dict[str, str]) -> None:
    state = {name: torch.full((1,), float(i)) for i, name in enumerate(marked)}
    path = saved(tmp_path_factory.mktemp("marked"), {mark + name: state[name] for name, mark in marked.items()})
    assert_same(open_checkpoint(path), state)


def test_a_name_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"module.a.weight": torch.ones(1), "a.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"gives one tensor twice: module\.a\.weight and a\.weight"):
        open_checkpoint(path)


def lora(part: str, suffix: str = ".default") -> dict[str, Tensor]:
    return {
        f"{part}.base_layer.weight": torch.ones(4, 4),
        f"{part}.base_layer.bias": torch.ones(4),
        f"{part}.lora_A{suffix}.weight": torch.ones(2, 4),
        f"{part}.lora_B{suffix}.weight": torch.ones(4, 2),
    }


def test_adapters_of_parts_that_write_text_are_left_out(tmp_path: Path) -> None:
    state = {"emo_layer.weight": torch.ones(3, 3), **lora("gpt.h.0.attn.c_attn"), **lora("text_head", suffix="")}
    found = open_checkpoint(saved(tmp_path, {"model": {f"base_model.model.{k}": v for k, v in state.items()}}))
    assert set(found.shapes) == {
        "emo_layer.weight", "gpt.h.0.attn.c_attn.weight", "gpt.h.0.attn.c_attn.bias", "text_head.weight",
        "text_head.bias",
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".default"])
def test_adapters_of_parts_that_make_features_must_be_merged_first(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, lora("conditioning_encoder.encoders.0.self_attn.linear_q", suffix))
    with pytest.raises(ModelError, match=r"holds LoRA tensors of parts that make features: .*lora_A.*merge") as caught:
        open_checkpoint(path)
    assert str(path) in caught.value.message


def test_an_adapter_alone_is_no_model(tmp_path: Path) -> None:
    path = saved(tmp_path, {"gpt.h.0.lora_A.weight": torch.ones(2, 4), "gpt.h.0.lora_B.weight": torch.ones(4, 2)})
    with pytest.raises(ModelError, match="is a LoRA adapter alone"):
        open_checkpoint(path)


def test_optimiser_state_is_not_read_into_memory(tmp_path: Path) -> None:
    moments = {index: {"exp_avg": torch.ones(2**20)} for index in range(24)}
    path = saved(tmp_path, {"model": STATE, "optimizer": {"state": moments}}, "codec.pth")
    assert path.stat().st_size > 96 * 2**20
    before = private_bytes()
    found = open_checkpoint(path)
    assert private_bytes() - before < 8 * 2**20
    assert_same(found, STATE)


def private_bytes() -> int:
    """Memory that belongs to this process alone: pages of a mapped file that were never touched are not in it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("code-from-a-checkpoint",))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, {"model": STATE, "args": Payload()})
    refusal = r"holds more than tensors, or is no checkpoint: it refers to \w+\.mkdir.*woodshed never runs code"
    with pytest.raises(ModelError, match=refusal) as caught:
        open_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "code-from-a-checkpoint").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(content=st.binary(max_size=64))
@settings(max_examples=60, deadline=None)
def test_any_other_file_is_refused_with_its_name(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("other")
    for name in ("x.pth", "x.safetensors"):
        (folder / name).write_bytes(content)
        with pytest.raises(ModelError) as caught:
            open_checkpoint(folder / name)
        assert str(folder / name) in caught.value.message


def test_what_is_cut_short_or_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, STATE).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"cut\.pth"):
        open_checkpoint(tmp_path / "cut.pth")
    with pytest.raises(ModelError, match=r"holds no tensors: it has the keys \['epoch'\]"):
        open_checkpoint(saved(tmp_path, {"epoch": 3}))
    with pytest.raises(ModelError, match="holds a list, not tensors by name"):
        open_checkpoint(saved(tmp_path, [1, 2]))
    with pytest.raises(ModelError, match=r"there is no checkpoint .*woodshed speech models"):
        open_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(ModelError, match="is a folder"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("gpt_v2", "gpt_2.0"), ("gpt_v25_campplus", "gpt_2.5"), ("repcodec_maskgct", "repcodec_50hz"),
        ("enhanced_codec_v25", "enhanced_25hz"), ("campplus", "campplus"), ("w2vbert", "w2v_bert"),
    ],
)  # fmt: skip
def test_families_are_told_by_their_keys(name: str, family: str) -> None:
    assert family_of(layout(name)) == family


def test_families_of_small_models_wrappers_and_spellings(tmp_path: Path) -> None:
    codec = load_file(GOLDEN / "repcodec_tiny.safetensors")
    spelling = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    newer = {}
    for key, value in codec.items():
        stem, _, leaf = key.rpartition(".")
        newer[f"{stem}.{spelling.get(leaf, leaf)}"] = value
    assert family_of(open_checkpoint(saved(tmp_path, {"model": newer}))) == "repcodec_50hz"
    assert family_of(open_checkpoint(GOLDEN / "enhanced_codec_tiny.safetensors")) == "enhanced_25hz"
    bert = load_file(GOLDEN / "w2vbert_tiny.safetensors")
    for mark in ("", "wav2vec2_bert."):
        path = saved(tmp_path, {mark + key: value for key, value in bert.items()})
        assert family_of(open_checkpoint(path)) == "w2v_bert"
    statistics = {"mean": torch.zeros(4), "var": torch.ones(4)}
    assert family_of(open_checkpoint(saved(tmp_path, statistics))) == "w2v_stats"
    assert family_of(open_checkpoint(saved(tmp_path, STATE))) == "unknown"
    assert family_of(open_checkpoint(saved(tmp_path, {**statistics, "count": torch.ones(1)}))) == "unknown"


def test_copies_for_inference_do_not_change_the_family(tmp_path: Path) -> None:
    tensors = {key: torch.zeros(()) for key in layout("gpt_v25_campplus").shapes}
    copies = {f"inference_model.{key}": value for key, value in tensors.items() if key.startswith("gpt.")}
    found = open_checkpoint(saved(tmp_path, {"model": {**tensors, **copies, "gpt.wte.weight": torch.zeros(())}}))
    assert family_of(found) == "gpt_2.5"
