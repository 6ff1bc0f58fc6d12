"""The w2v-bert-2.0 runner against transformers, and a batch against its clips alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

from woodshed.encoders.speech.w2vbert import LayerKeys, SemanticStats, W2VBert, W2VBertConfig, normalise_features
from woodshed.encoders.speech.w2vbert_attention import CPU_BLOCKS, Blocks, attend
from woodshed.encoders.weights import TensorFile, open_tensors
from woodshed.errors import ModelError

GOLDEN = Path(__file__).parents[2] / "golden" / "indextts2"
TINY = GOLDEN / "w2vbert_tiny.safetensors"
SMALL_BLOCKS = Blocks(rows=7, clips=1, queries=20, bias_elements=1)
GROUPED = Blocks(rows=64, clips=3, queries=32, bias_elements=4096)


def tiny_config() -> dict[str, Any]:
    with safe_open(TINY, framework="pt") as handle:
        config: dict[str, Any] = json.loads(handle.metadata()["config"])
    return config


def tensor_file(tensors: Mapping[str, Tensor], path: str = "some.safetensors") -> TensorFile:
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    return TensorFile(path=Path(path), shapes=shapes, read=dict(tensors).__getitem__)


@cache
def tiny(blocks: Blocks | None = None, *, layer: int = 17, dtype: torch.dtype = torch.float32) -> W2VBert:
    return W2VBert.from_tensors(open_tensors(TINY), layer=layer, config=tiny_config(), blocks=blocks, dtype=dtype)


@cache
def stock() -> Wav2Vec2BertModel:
    model = Wav2Vec2BertModel(Wav2Vec2BertConfig(**tiny_config())).eval()
    model.load_state_dict(load_file(TINY))
    return model


def stock_states(model: Wav2Vec2BertModel, features: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        states: tuple[Tensor, ...] = model(features, attention_mask=mask, output_hidden_states=True).hidden_states
    return states


def run(model: W2VBert, features: Tensor, valid: list[int]) -> Tensor:
    hidden: Tensor = model(features, torch.tensor(valid))
    return hidden


def close(left: Tensor, right: Tensor, *, atol: float = 1e-5) -> None:
    torch.testing.assert_close(left.clone(), right.clone(), rtol=0, atol=atol)


@pytest.mark.parametrize("blocks", [None, SMALL_BLOCKS, GROUPED], ids=["default", "small", "grouped"])
@pytest.mark.parametrize("num_samples", [880, 16000, 16160])
def test_golden_clips_come_out_as_published(num_samples: int, blocks: Blocks | None) -> None:
    audio, known = (
        load_file(GOLDEN / "audio_features_io.safetensors"),
        load_file(GOLDEN / "w2vbert_tiny_io.safetensors"),
    )
    hidden = run(tiny(blocks), audio[f"feat_{num_samples}"], [int(audio[f"mask_{num_samples}"].sum())])
    close(hidden, known[f"hidden17_{num_samples}"])
    stats = SemanticStats.from_tensors(tensor_file({name: known[f"stats_{name}"] for name in ("mean", "var")}))
    close(normalise_features(hidden, stats), known[f"normed_{num_samples}"])


@pytest.mark.parametrize("layer", [0, 1, 5, 18])
def test_every_hidden_state_equals_transformers_its_half_padded_frame_included(layer: int) -> None:
    audio = load_file(GOLDEN / "audio_features_io.safetensors")
    for num_samples in (720, 16160, 24007):
        features, mask = audio[f"feat_{num_samples}"], audio[f"mask_{num_samples}"]
        expected = stock_states(stock(), features, mask)[layer]
        close(run(tiny(layer=layer), features, [int(mask.sum())]), expected)


@pytest.mark.parametrize(("left", "right", "heads", "kernel"), [(3, 0, 4, 5), (0, 20, 1, 1), (130, 17, 2, 9)])
def test_other_sizes_equal_transformers(left: int, right: int, heads: int, kernel: int) -> None:
    changed = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "intermediate_size": 40,
        "conv_depthwise_kernel_size": kernel,
        "left_max_position_embeddings": left,
        "right_max_position_embeddings": right,
        "feature_projection_input_dim": 12,
        "layer_norm_eps": 1e-3,
    }
    torch.manual_seed(left)
    model = Wav2Vec2BertModel(Wav2Vec2BertConfig(**(tiny_config() | changed))).eval()
    features = torch.randn(1, 300, 12)
    valid = 299
    ours = W2VBert.from_tensors(tensor_file(model.state_dict()), layer=2, config=model.config.to_dict())
    expected = stock_states(model, features, (torch.arange(300) < valid)[None].long())[2]
    close(run(ours, features, [valid]), expected)
    ours.blocks = Blocks(rows=100, clips=1, queries=64, bias_elements=1 << 15)
    close(run(ours, features, [valid]), expected)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 120), st.booleans()), min_size=1, max_size=5),
    spare=st.integers(0, 40),
    garbage=st.sampled_from([0.0, 1.0, -3e4, 1e30, float("inf"), float("nan")]),
    blocks=st.sampled_from([None, SMALL_BLOCKS, GROUPED]),
    seed=st.integers(0, 99),
)
def test_a_clip_does_not_depend_on_its_batch(
    lengths: list[tuple[int, bool]], spare: int, garbage: float, blocks: Blocks | None, seed: int
) -> None:
    torch.manual_seed(seed)
    clips = [torch.randn(frames, 160) for frames, _ in lengths]
    valid = [frames - is_odd for frames, is_odd in lengths]
    batch = torch.full((len(clips), max(map(len, clips)) + spare, 160), garbage)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    # In float64 nothing but a leak is left. In float32 products of another number of rows are rounded otherwise, and
    # seventeen small random layers make up to 1.5e-5 of that in clips of two frames.
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 3e-5)):
        hidden = run(tiny(blocks, dtype=dtype), batch, valid)
        assert hidden.shape == (*batch.shape[:2], 16)
        assert hidden.isfinite().all()
        for row, clip, count in zip(hidden, clips, valid, strict=True):
            close(row[: len(clip)], run(tiny(dtype=dtype), clip[None], [count])[0], atol=tolerance)


def test_order_and_batch_size_change_nothing() -> None:
    torch.manual_seed(5)
    features, valid = torch.randn(5, 90, 160), [90, 12, 89, 1, 47]
    whole = run(tiny(), features, valid)
    turned = run(tiny(GROUPED), features.flip(0), valid[::-1]).flip(0)
    parts = torch.cat([run(tiny(), features[:2], valid[:2]), run(tiny(), features[2:], valid[2:])])
    for row, count in enumerate(valid):
        close(turned[row, : count + 1], whole[row, : count + 1])
        close(parts[row, : count + 1], whole[row, : count + 1])


def test_a_clip_of_no_valid_frame_stays_finite_and_harms_nobody() -> None:
    features = torch.randn(2, 30, 160)
    features[0] = float("nan")
    for blocks in (CPU_BLOCKS, GROUPED):
        hidden = run(tiny(blocks), features, [0, 30])
        assert hidden.isfinite().all()
        close(hidden[1], run(tiny(), features[1:], [30])[0])


def test_long_clips_never_hold_all_pairs_of_frames() -> None:
    size, heads, frames = 8, 2, 2000
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, frames, heads, size).unbind()
    table = torch.randn(73, size)
    result = query.clone()
    with torch.profiler.profile(profile_memory=True) as profile, torch.inference_mode():
        attend(result, key, value, table=table, left=64, num_keys=[frames], blocks=CPU_BLOCKS)
    largest = max(event.cpu_memory_usage for event in profile.events() or ())
    distance = (torch.arange(frames) - torch.arange(frames)[:, None]).clamp(-64, 8) + 64
    for head in range(heads):
        scores = query[0, :, head] @ key[0, :, head].T + (query[0, :, head] @ table.T).gather(1, distance)
        close(result[0, :, head], (scores * size**-0.5).softmax(-1) @ value[0, :, head])
    assert 0 < largest < 4 * heads * frames * frames / 4


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_half_precision_stays_near_float32(dtype: torch.dtype, atol: float) -> None:
    torch.manual_seed(2)
    features, valid = torch.randn(2, 100, 160), [100, 63]
    half = W2VBert.from_tensors(open_tensors(TINY), layer=3, dtype=dtype, blocks=GROUPED)
    whole = run(tiny(layer=3), features, valid)
    hidden = run(half, features, valid)
    assert hidden.dtype == dtype
    for row, count in enumerate(valid):
        close(hidden[row, :count].float(), whole[row, :count], atol=atol)


def layout() -> dict[str, tuple[int, ...]]:
    table = json.loads((GOLDEN / "layout_w2vbert.json").read_text())["keys"]
    return {key: tuple(shape) for key, shape in table.items()}


def test_the_real_layout_is_taken_up_to_layer_17_and_nothing_else_is_ignored() -> None:
    shapes = layout()
    asked: list[str] = []

    def read(key: str) -> Tensor:
        asked.append(key)
        return torch.empty(shapes[key], device="meta")

    tensors = TensorFile(path=Path("model.safetensors"), shapes=shapes, read=read)
    model = W2VBert.from_tensors(tensors, config=Wav2Vec2BertConfig().to_dict(), device="meta")
    keys = LayerKeys.of(tensors, layer=17)
    assert sorted(asked) == sorted(keys.used)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == {k: shapes[k] for k in keys.used}
    later = tuple(f"encoder.layers.{index}." for index in range(17, 24))
    assert set(keys.ignored) == {key for key in shapes if key == "masked_spec_embed" or key.startswith(later)}
    assert model.config == W2VBertConfig(num_layers=17)


def test_weights_that_fit_are_not_copied() -> None:
    state = load_file(TINY)
    model = W2VBert.from_tensors(tensor_file(state), layer=2)
    assert all(value.data_ptr() == state[name].data_ptr() for name, value in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["wav2vec2_bert.", "model."])
def test_prefixed_keys_load_and_a_head_beside_them_is_ignored(prefix: str) -> None:
    state = {prefix + key: value for key, value in load_file(TINY).items()} | {"lm_head.weight": torch.zeros(3, 16)}
    tensors = tensor_file(state)
    assert "lm_head.weight" in LayerKeys.of(tensors, layer=4).ignored
    features = torch.randn(1, 20, 160)
    close(run(W2VBert.from_tensors(tensors, layer=4), features, [20]), run(tiny(layer=4), features, [20]))


def broken(change: str) -> dict[str, Tensor]:
    state = load_file(TINY)
    key = "encoder.layers.2.ffn1.output_dense.bias"
    match change:
        case "missing":
            del state[key]
        case "extra":
            state["encoder.layers.2.self_attn.pos_bias_u"] = torch.zeros(2, 8)
        case "unknown":
            state["lm_head.weight"] = torch.zeros(2, 8)
        case "misshapen":
            state[key] = torch.zeros(5)
        case "no table":
            del state["encoder.layers.0.self_attn.distance_embedding.weight"]
        case "heads":
            state["encoder.layers.0.self_attn.distance_embedding.weight"] = torch.zeros(73, 5)
        case "table":
            state["encoder.layers.0.self_attn.distance_embedding.weight"] = torch.zeros(70, 8)
        case _:
            del state["feature_projection.projection.weight"]
    return state


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("missing", r"1 missing \(encoder.layers.2.ffn1.output_dense.bias\)"),
        ("extra", r"1 not of this model \(encoder.layers.2.self_attn.pos_bias_u\)"),
        ("unknown", r"1 not of this model \(lm_head.weight\)"),
        ("misshapen", r"encoder.layers.2.ffn1.output_dense.bias is \[5\] instead of \[16\]"),
        ("no table", "encoder.layers.0.self_attn.distance_embedding.weight is missing"),
        ("heads", "16 channels are no whole number of heads of 5"),
        ("table", "70 distances, but 64 to the left and 8 to the right make 73"),
        ("projection", "is no w2v-bert-2.0: feature_projection.projection.weight is missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        W2VBert.from_tensors(tensor_file(broken(change)))


def test_faults_behind_the_layer_do_not_matter() -> None:
    features = torch.randn(1, 9, 160)
    for change in ("missing", "extra", "misshapen"):
        ours = W2VBert.from_tensors(tensor_file(broken(change)), layer=2)
        close(run(ours, features, [9]), run(tiny(layer=2), features, [9]))


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match=r"has 18 layers, so there is no hidden state 19 \(try: ask for one of 0..18"):
        W2VBert.from_tensors(open_tensors(TINY), layer=19)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("hidden_size", 1024, "hidden_size is 16 by the tensors and 1024 by the config"),
        ("num_attention_heads", 4, "num_attention_heads is 2 by the tensors and 4 by the config"),
        ("conv_depthwise_kernel_size", 15, "conv_depthwise_kernel_size is 31 by the tensors and 15"),
        ("left_max_position_embeddings", 63, "73 distances, but 63 to the left"),
        ("position_embeddings_type", "rotary", "position_embeddings_type='rotary'; only 'relative_key' is supported"),
        ("hidden_act", "gelu", "hidden_act='gelu'; only 'swish' is supported"),
        ("model_type", "wav2vec2", "model_type='wav2vec2'; only 'wav2vec2-bert' is supported"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(name: str, value: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        W2VBert.from_tensors(open_tensors(TINY), config=tiny_config() | {name: value})


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"mean": torch.zeros(4)}, "instead of two vectors of one size, 'mean' and 'var'"),
        ({"mean": torch.zeros(4), "var": torch.ones(5)}, "instead of two vectors"),
        ({"mean": torch.zeros(4), "var": torch.zeros(4)}, "variance that is not above zero"),
        ({"mean": torch.full((4,), torch.nan), "var": torch.ones(4)}, "mean that is not finite"),
    ],
)
def test_statistics_that_cannot_normalise_are_refused(tensors: dict[str, Tensor], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        SemanticStats.from_tensors(tensor_file(tensors, "wav2vec2bert_stats.pt"))


def test_statistics_are_read_from_a_pickled_file(tmp_path: Path) -> None:
    torch.save({"mean": torch.full((3,), 2.0), "var": torch.full((3,), 4.0)}, tmp_path / "wav2vec2bert_stats.pt")
    stats = SemanticStats.from_tensors(open_tensors(tmp_path / "wav2vec2bert_stats.pt"))
    assert normalise_features(torch.full((1, 1, 3), 6.0), stats).tolist() == [[[2.0, 2.0, 2.0]]]
