"""Both folder layouts give the same parts, strictly; nothing but numbers is taken from a checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import AceStepPipeline
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from tests.encoders.acestep.tiny_acestep import (
    TEXT_ENCODER_FOLDER,
    TinyAceStep,
    build_acestep,
    save_diffusers,
    save_upstream,
)
from woodshed.encoders.acestep.checkpoint import AceStepCheckpoint, open_checkpoint, unfilled, variant_of
from woodshed.encoders.acestep.convert import write_diffusers
from woodshed.encoders.acestep.folders import open_folder
from woodshed.encoders.acestep.names import Part, join_upstream, layer_order, split_upstream, to_upstream
from woodshed.encoders.hub import ModelFolder
from woodshed.errors import ModelError, UsageError

LAYOUTS: dict[str, Callable[[TinyAceStep, Path], Path]] = {
    "diffusers": save_diffusers,
    "upstream": save_upstream,
    "upstream in shards": lambda parts, folder: save_upstream(parts, folder, num_shards=3),
}


def assert_equal_modules(ours: nn.Module, theirs: nn.Module) -> None:
    mine, wanted = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == wanted.keys()
    assert all(torch.equal(mine[key], wanted[key]) for key in wanted)
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["base", "xl-sft"])
def test_every_part_is_what_was_saved(layout: str, variant: str, tmp_path: Path) -> None:
    parts = build_acestep(variant=variant, silence_frames=800)
    checkpoint = open_checkpoint(LAYOUTS[layout](parts, tmp_path))
    assert_equal_modules(checkpoint.transformer(), parts.transformer)
    assert_equal_modules(checkpoint.condition_encoder(), parts.condition_encoder)
    assert_equal_modules(checkpoint.text_encoder(), parts.text_encoder)
    assert checkpoint.variant.name == variant
    assert (checkpoint.rate_hz, checkpoint.hop_samples) == (48_000, 1920)
    text = "# Caption\na warm piano<|endoftext|>"
    assert checkpoint.tokenizer()(text).input_ids == parts.tokenizer(text).input_ids


def test_a_loaded_part_computes_what_the_original_does(tmp_path: Path) -> None:
    parts = build_acestep()
    checkpoint = open_checkpoint(save_upstream(parts, tmp_path))
    ids = torch.arange(12)[None]
    theirs = Qwen3Model.from_pretrained(tmp_path / TEXT_ENCODER_FOLDER)
    with torch.no_grad():
        assert torch.equal(checkpoint.text_encoder()(ids).last_hidden_state, theirs(ids).last_hidden_state)
        inputs = {
            "hidden_states": torch.randn(1, 9, 16), "timestep": torch.tensor([0.4]), "timestep_r": torch.tensor([0.4]),
            "encoder_hidden_states": torch.randn(1, 5, 24), "context_latents": torch.randn(1, 9, 32),
        }  # fmt: skip
        assert torch.equal(checkpoint.transformer()(**inputs).sample, parts.transformer(**inputs).sample)


def test_parts_come_in_the_type_that_is_asked_for(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_upstream(build_acestep(silence_frames=8), tmp_path))
    for module in (
        checkpoint.transformer(dtype=torch.bfloat16),
        checkpoint.condition_encoder(dtype=torch.bfloat16),
        checkpoint.text_encoder(dtype=torch.bfloat16),
    ):
        assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.bfloat16}


def test_a_text_encoder_within_a_language_model_is_the_same(tmp_path: Path) -> None:
    parts = build_acestep(silence_frames=8)
    folder = save_upstream(parts, tmp_path)
    inner = folder / TEXT_ENCODER_FOLDER
    alone = open_checkpoint(folder).digest("text_encoder")
    model = Qwen3ForCausalLM(Qwen3Config.from_pretrained(inner))
    model.model.load_state_dict(parts.text_encoder.state_dict())
    (inner / "model.safetensors").unlink()
    model.save_pretrained(inner)
    checkpoint = open_checkpoint(folder)
    assert "lm_head.weight" in load_file(inner / "model.safetensors")
    assert_equal_modules(checkpoint.text_encoder(), parts.text_encoder)
    assert checkpoint.digest("text_encoder") == alone


PUBLISHED: dict[str, dict[str, Any]] = {
    "2B": {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "XL": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "encoder_hidden_size": 2048, "encoder_intermediate_size": 6144,
        "encoder_num_attention_heads": 16, "encoder_num_key_value_heads": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize(("size", "num_candidates", "num_billions"), [("2B", 264, 1.58), ("XL", 352, 4.17)])
def test_published_configs_build_and_every_key_goes_both_ways(
    size: str, num_candidates: int, num_billions: float, tmp_path: Path
) -> None:
    home = tmp_path / "acestep-v15-base"
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"model_type": "acestep", "is_turbo": False, **PUBLISHED[size]}))
    folder = open_folder(tmp_path, None)
    upstream: dict[str, tuple[str, str]] = {}
    for part in get_args(Part):
        settings = folder.settings(part)
        module = unfilled(part, settings, folder_tensors(settings), "here")
        if part == "transformer":
            candidates = [n for n, m in module.named_modules() if layer_order(to_upstream(n)) is not None]
            assert len(candidates) == num_candidates
            assert module.get_parameter("condition_embedder.weight").shape[1] == 2048
            assert sum(p.numel() for p in module.parameters()) / 1e9 == pytest.approx(num_billions, abs=0.01)
        else:
            assert settings["hidden_size"] == 2048
        upstream |= {
            join_upstream(part, name): (part, name) for name in module.state_dict() if name != "silence_latent"
        }
    assert {key: split_upstream(key) for key in upstream} == upstream
    assert {"null_condition_emb", "decoder.proj_in.1.weight", "encoder.timbre_encoder.special_token"} <= set(upstream)


def folder_tensors(settings: dict[str, Any]) -> Any:
    from woodshed.encoders.weights import TensorFile

    frames = (1, 15_000, settings.get("timbre_hidden_dim", 64))
    return TensorFile(path=Path("x"), shapes={"silence_latent": frames}, read=lambda _: torch.empty(0))


def test_opening_reads_no_weights_and_imports_no_library(tmp_path: Path) -> None:
    folder = save_upstream(build_acestep(silence_frames=8), tmp_path)
    for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.pt")]:
        path.write_bytes(b"nothing to see")
    code = (
        "import sys; from woodshed.encoders.acestep.checkpoint import open_checkpoint;"
        f"open_checkpoint({str(folder)!r}); assert not {{'diffusers', 'transformers'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_code_that_comes_along_is_never_run(tmp_path: Path) -> None:
    folder = save_upstream(build_acestep(silence_frames=8), tmp_path)
    code = folder / "acestep-v15-base" / "modeling_acestep_v15_base.py"
    code.write_text("raise SystemExit('this was run')")
    checkpoint = open_checkpoint(folder)
    checkpoint.transformer()
    torch.save({"silence": subprocess.Popen}, code.with_name("silence_latent.pt"))
    with pytest.raises(ModelError, match="holds more than tensors"):
        checkpoint.condition_encoder()


# What is wrong with a checkpoint -----------------------------------------------------------------------------------


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("layout", ["diffusers", "upstream"])
def test_keys_that_do_not_fit_are_listed(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout](build_acestep(silence_frames=8), tmp_path)
    file, prefix, query = {
        "diffusers": ("transformer/diffusion_pytorch_model.safetensors", "", "to_q"),
        "upstream": ("acestep-v15-base/model.safetensors", "decoder.", "q_proj"),
    }[layout]

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{prefix}layers.1.self_attn.{query}.weight"]
        tensors[f"{prefix}layers.7.mlp.up_proj.weight"] = torch.zeros(2)
        tensors[f"{prefix}norm_out.weight"] = torch.zeros(5)

    change(folder / file, edit)
    checkpoint = open_checkpoint(folder)
    with pytest.raises(ModelError) as caught:
        checkpoint.transformer()
    told = str(caught.value)
    assert "1 missing (layers.1.self_attn.to_q.weight)" in told
    assert "1 not of this model (layers.7.mlp.up_proj.weight)" in told
    assert "norm_out.weight is [5] instead of [24]" in told
    checkpoint.condition_encoder()


def test_tensors_of_no_part_are_listed(tmp_path: Path) -> None:
    folder = save_upstream(build_acestep(silence_frames=8), tmp_path)
    change(folder / "acestep-v15-base/model.safetensors", lambda t: t.update({"lm_head.weight": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"1 tensors that are not of ACE-Step 1\.5: lm_head\.weight"):
        open_checkpoint(folder).transformer()


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = LAYOUTS["upstream in shards"](build_acestep(silence_frames=8), tmp_path)
    (folder / "acestep-v15-base/model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names 'model-00002-of-00003\.safetensors', which is not in its folder"):
        open_checkpoint(folder).transformer()


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    folder = LAYOUTS["upstream in shards"](build_acestep(silence_frames=8), tmp_path / "a")
    index = folder / "acestep-v15-base/model.safetensors.index.json"
    shutil.copy(index.with_name("model-00001-of-00003.safetensors"), tmp_path / "stolen.safetensors")
    index.write_text(index.read_text().replace("model-00001-of-00003.safetensors", "../../stolen.safetensors"))
    with pytest.raises(ModelError, match="not in its folder"):
        open_checkpoint(folder).transformer()


def test_a_silence_of_zeros_is_refused(tmp_path: Path) -> None:
    parts = build_acestep(silence_frames=8)
    parts.condition_encoder.silence_latent.zero_()
    checkpoint = open_checkpoint(save_upstream(parts, tmp_path))
    with pytest.raises(ModelError, match=r"all zeros.* never trained on such a condition"):
        checkpoint.condition_encoder()


@pytest.mark.parametrize(("content", "told"), [(torch.ones(1, 8, 16), r"\[1, 8, 16\]"), ({"a": 1}, "dict")])
def test_a_silence_of_another_shape_is_refused(content: Any, told: str, tmp_path: Path) -> None:
    folder = save_upstream(build_acestep(silence_frames=8), tmp_path)
    torch.save(content, folder / "acestep-v15-base/silence_latent.pt")
    with pytest.raises(ModelError, match=told + r", a tensor of \[1, 16, frames\] was expected"):
        open_checkpoint(folder).condition_encoder()


def test_a_setting_of_a_newer_library_is_refused(tmp_path: Path) -> None:
    folder = save_diffusers(build_acestep(silence_frames=8), tmp_path)
    path = folder / "transformer/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_flux_capacitor": True}))
    with pytest.raises(ModelError, match="does not know: use_flux_capacitor"):
        open_checkpoint(folder).transformer()


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = save_upstream(build_acestep(silence_frames=8), tmp_path)
    shutil.rmtree(folder / TEXT_ENCODER_FOLDER)
    with pytest.raises(ModelError, match=r"no Qwen3-Embedding-0\.6B/ beside .*acestep-v15-base"):
        open_checkpoint(folder).tokenizer()
    with pytest.raises(ModelError, match=r"holds no ACE-Step 1\.5"):
        open_checkpoint(folder / "vae")


# Variants ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for variant in ("base", "xl-turbo"):
        save_upstream(build_acestep(variant=variant, silence_frames=8), folder, variant=variant)
    return folder


def test_one_of_several_variants_must_be_named(several: Path) -> None:
    with pytest.raises(UsageError, match="holds several variants: base, xl-turbo"):
        open_checkpoint(several)
    with pytest.raises(UsageError, match="no variant 'sft': there is base, xl-turbo"):
        open_checkpoint(several, variant="sft")


@pytest.mark.parametrize("name", ["xl-turbo", "acestep-v15-xl-turbo"])
def test_a_variant_goes_by_both_names(name: str, several: Path) -> None:
    checkpoint = open_checkpoint(several, variant=name)
    assert checkpoint.variant.name == "xl-turbo"
    assert checkpoint.variant.fragile is not None
    assert "distilled" in checkpoint.variant.fragile


def test_a_variants_own_folder_will_do(several: Path) -> None:
    checkpoint = open_checkpoint(several / "acestep-v15-base")
    assert (checkpoint.variant.name, checkpoint.variant.fragile) == ("base", None)
    assert checkpoint.vae_path == several / "vae"


def test_a_diffusers_folder_has_one_variant(tmp_path: Path) -> None:
    folder = save_diffusers(build_acestep(variant="turbo", silence_frames=8), tmp_path)
    assert open_checkpoint(folder, variant="turbo").variant.fragile
    with pytest.raises(UsageError, match="is the variant 'turbo', not 'base'"):
        open_checkpoint(folder, variant="base")


@pytest.mark.parametrize(
    ("facts", "folder_name", "name"),
    [
        ({"model_version": "sft"}, "anything", "sft"),
        ({"model_version": "turbo", "is_turbo": False}, "anything", "turbo"),
        ({"model_version": "turbo", "is_turbo": False}, "acestep-v15-base", "base"),
        ({}, "acestep-v15-turbo-shift3", "turbo"),
        ({}, "my-database", "my-database"),
        ({"hidden_size": 2560, "encoder_hidden_size": 2048, "model_version": "base"}, "x", "xl-base"),
        ({"hidden_size": 2048, "encoder_hidden_size": 2048, "model_version": "base"}, "x", "base"),
    ],
)
def test_what_a_checkpoint_is_called(facts: dict[str, Any], folder_name: str, name: str) -> None:
    found = variant_of(facts, folder_name=folder_name)
    assert found.name == name
    assert (found.fragile is not None) == name.endswith("turbo")


# Digests and conversion --------------------------------------------------------------------------------------------


def digests(checkpoint: AceStepCheckpoint) -> list[str]:
    return [checkpoint.digest(part) for part in ("transformer", "condition_encoder", "text_encoder", "tokenizer")]


def test_digests_are_of_the_weights_whatever_the_layout(tmp_path: Path) -> None:
    parts = build_acestep(silence_frames=8)
    made = [digests(open_checkpoint(save(parts, tmp_path / name))) for name, save in LAYOUTS.items()]
    assert made[0] == made[1] == made[2]
    parts.condition_encoder.silence_latent[0, 3, 3] += 1
    other = digests(open_checkpoint(save_upstream(parts, tmp_path / "other")))
    assert [a == b for a, b in zip(made[0], other, strict=True)] == [True, False, True, True]


def test_a_converted_checkpoint_is_what_diffusers_loads(tmp_path: Path) -> None:
    parts = build_acestep(variant="xl-base")
    parts.config["timestep_mu"] = 0.25
    checkpoint = open_checkpoint(save_upstream(parts, tmp_path / "a", variant="xl-base", num_shards=2))
    folder = write_diffusers(checkpoint, tmp_path / "b")
    loaded = AceStepPipeline.from_pretrained(folder)
    for name in (*get_args(Part), "vae", "text_encoder"):
        theirs = getattr(loaded, name).state_dict()
        assert all(torch.equal(theirs[key], value) for key, value in getattr(parts, name).state_dict().items()), name
    wanted = {key: value for key, value in parts.pipeline().scheduler.config.items() if not key.startswith("_")}
    assert {key: loaded.scheduler.config[key] for key in wanted} == wanted
    again = open_checkpoint(folder)
    assert digests(again) == digests(checkpoint)
    assert (again.timestep_mu, again.timestep_sigma) == (0.25, 1.0)
    assert again.variant == checkpoint.variant
    with pytest.raises(UsageError, match="is not empty"):
        write_diffusers(checkpoint, folder)


# The hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of its own, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_name_without_network_is_told_so(offline: Path) -> None:
    with pytest.raises(ModelError, match="hub model 'owner/songs' cannot be had") as caught:
        open_checkpoint("owner/songs")
    assert "local folder" in str(caught.value)


def test_a_hub_model_of_an_earlier_run_serves_offline(offline: Path) -> None:
    parts, commit = build_acestep(silence_frames=8), "f" * 40
    home = offline / "models--owner--songs"
    save_upstream(parts, home / "snapshots" / commit, variant="sft")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    checkpoint = open_checkpoint("owner/songs", variant="sft")
    assert_equal_modules(checkpoint.transformer(), parts.transformer)
    assert checkpoint.source == "owner/songs"


def test_neither_folder_nor_hub_name() -> None:
    with pytest.raises(ModelError, match="there is no folder 'nowhere/at/all', and it is not a hub name"):
        ModelFolder("nowhere/at/all")
