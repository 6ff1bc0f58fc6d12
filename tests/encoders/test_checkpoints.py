"""Checkpoints: known answers, wrappers, formats, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from vector_quantize_pytorch import ResidualVQ

from tests.encoders.plain_oobleck import PlainAutoencoder, model_config
from woodshed.encoders.checkpoints import Autoencoder, load_autoencoder
from woodshed.encoders.pretrained import load_diffusers_oobleck, load_pretrained, our_name
from woodshed.errors import ModelError

GOLDEN = Path(__file__).parents[1] / "golden" / "stable_audio"
CONFIG = model_config(bottleneck={"type": "vae"})
FLOAT32_STEPS = 2e-6
"""The stored answers were made in float32: they themselves are 3.8e-6 from the float64 result, on a scale of 7.8."""


def golden(name: str) -> Tensor:
    return torch.from_numpy(np.load(GOLDEN / "golden" / f"{name}.npy"))


def golden_state(name: str = "tiny_vae") -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(GOLDEN / "models" / f"{name}.ckpt", weights_only=True)["state_dict"]
    return state


def golden_config(name: str = "tiny_vae") -> dict[str, Any]:
    config: dict[str, Any] = json.loads((GOLDEN / "models" / f"{name}.json").read_text())
    return config


def state_of(config: dict[str, Any] = CONFIG, *, seed: int = 0) -> dict[str, Tensor]:
    return PlainAutoencoder(config["model"], seed=seed).state_dict()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def saved(folder: Path, state: dict[str, Tensor], name: str = "model.ckpt") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize("name", ["tiny_vae", "tiny_tanh", "tiny_fsq"])
def test_known_answers(name: str) -> None:
    files = GOLDEN / "models" / f"{name}.json", GOLDEN / "models" / f"{name}.ckpt"
    model = load_autoencoder(*files)
    exact = load_autoencoder(*files, parts="encoder", dtype=torch.float64)
    audio, pre = golden("x_batch2"), golden(f"{name}_pre_bottleneck")
    with torch.inference_mode():
        features = model.encode(audio)
        truth = exact.encode(audio.double())
        found = model.bottleneck.analyse(features)
        if name == "tiny_vae":
            latents = found["mean"] + found["std"] * golden("tiny_vae_noise_seed3")
        else:
            latents = found["latents"]
        decoded = model.decode(model.bottleneck.synthesise(golden(f"{name}_latents_seed3")))
    scale = float(pre.abs().max())
    assert (features - pre).abs().max() <= FLOAT32_STEPS * scale
    # Being near a rounded answer could hide an error of our own: the true result must not be further than it is.
    assert (features - truth).abs().max() <= 1.5 * (pre - truth).abs().max()
    assert (latents - golden(f"{name}_latents_seed3")).abs().max() <= FLOAT32_STEPS * scale
    assert (decoded[..., :4096] - golden(f"{name}_decoded")).abs().max() <= 1e-5
    if name == "tiny_fsq":
        assert torch.equal(found["tokens"].int(), golden("tiny_fsq_tokens"))


def sound_of(model: Autoencoder, frames: int = 6) -> Tensor:
    torch.manual_seed(1)
    with torch.inference_mode():
        return model.encode(torch.randn(1, model.audio_channels, frames * model.ratio).to(model.dtype))


@pytest.mark.parametrize(
    ("prefix", "file"),
    [
        ("", "a.safetensors"),
        ("model.", "a.ckpt"),
        ("module.", "a.safetensors"),
        ("autoencoder.", "a.ckpt"),
        ("autoencoder_ema.ema_model.", "a.safetensors"),
        ("ema.ema_model.", "a.ckpt"),
        ("pretransform.model.", "a.ckpt"),
        ("diffusion.pretransform.model.", "a.safetensors"),
    ],
)
def test_wrappers_and_formats_load_the_same(tmp_path: Path, prefix: str, file: str) -> None:
    plain = load_autoencoder(golden_config(), GOLDEN / "models" / "tiny_vae.ckpt")
    beside = {"discriminator.layers.0.weight": torch.ones(2), "losses_gen.scale": torch.ones(1)}
    path = saved(tmp_path, prefixed(golden_state(), prefix) | beside, file)
    model = load_autoencoder(golden_config(), path)
    assert (model.weights_digest, model.decoder_digest) == (plain.weights_digest, plain.decoder_digest)
    assert torch.equal(sound_of(model), sound_of(plain))
    assert model.averaged == ("ema" in prefix)
    assert prefix.rstrip(".") in model.source


def test_a_flat_pickle_without_state_dict_loads(tmp_path: Path) -> None:
    torch.save(state_of(), tmp_path / "a.pt")
    assert load_autoencoder(CONFIG, tmp_path / "a.pt").rate_hz == 44_100


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    state = prefixed(state_of(seed=1), "autoencoder.") | prefixed(state_of(seed=2), "autoencoder_ema.ema_model.")
    model = load_autoencoder(CONFIG, saved(tmp_path, state))
    alone = load_autoencoder(CONFIG, saved(tmp_path, state_of(seed=2), "alone.ckpt"))
    assert model.averaged
    assert "averaged weights" in model.source
    assert model.weights_digest == alone.weights_digest


def test_a_full_diffusion_checkpoint_and_its_config(tmp_path: Path) -> None:
    pretransform = {"type": "autoencoder", "scale": 0.7, "iterate_batch": True, "config": CONFIG["model"]}
    config = {"model_type": "diffusion_cond", "sample_rate": 32_000, "model": {"pretransform": pretransform}}
    state = prefixed(state_of(), "pretransform.model.")
    others = ("model.model.transformer.layers.0.weight", "conditioner.encoder.layers.0.weight")
    state |= {name: torch.ones(3) for name in others}
    model = load_autoencoder(config, saved(tmp_path, state))
    assert (model.rate_hz, model.ratio, model.latent_dim, model.audio_channels) == (32_000, 8, 6, 2)
    assert model.config["model"] == CONFIG["model"]
    assert model.config["sample_rate"] == 32_000


def test_parts(tmp_path: Path) -> None:
    state = state_of()
    both = load_autoencoder(CONFIG, saved(tmp_path, state))
    only = saved(tmp_path, {k: v for k, v in state.items() if k.startswith("encoder.")}, "encoder.safetensors")
    encoder = load_autoencoder(CONFIG, only, parts="encoder")
    assert encoder.decoder is None
    assert encoder.decoder_digest is None
    assert encoder.weights_digest == both.weights_digest
    assert torch.equal(sound_of(encoder), sound_of(both))
    with pytest.raises(ModelError, match="was loaded without its decoder"):
        encoder.decode(torch.zeros(1, 6, 3))
    num_decoder = sum(key.startswith("decoder.") for key in state)
    with pytest.raises(ModelError, match=f"keys {num_decoder} missing"):
        load_autoencoder(CONFIG, only)
    decoder = load_autoencoder(CONFIG, saved(tmp_path, state), parts="decoder")
    assert decoder.encoder is None
    assert decoder.decoder_digest == both.decoder_digest
    with pytest.raises(ModelError, match="was loaded without its encoder"):
        decoder.encode(torch.zeros(1, 2, 80))


def test_the_digest_sees_one_changed_value_and_not_the_precision_of_the_run(tmp_path: Path) -> None:
    state = state_of()
    first = load_autoencoder(CONFIG, saved(tmp_path, state))
    double = load_autoencoder(CONFIG, saved(tmp_path, state), dtype=torch.float64)
    assert double.weights_digest == first.weights_digest
    state["encoder.layers.3.alpha"][0] += 1e-6
    assert load_autoencoder(CONFIG, saved(tmp_path, state)).weights_digest != first.weights_digest


def test_the_new_spelling_of_weight_norm_and_plain_weights_load(tmp_path: Path) -> None:
    state = state_of()
    old = load_autoencoder(CONFIG, saved(tmp_path, state))
    renames = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    parted = {key: key.rpartition(".") for key in state}
    new = {f"{stem}.{renames.get(leaf, leaf)}": state[key] for key, (stem, _, leaf) in parted.items()}
    modern = load_autoencoder(CONFIG, saved(tmp_path, new, "new.ckpt"))
    assert modern.weights_digest == old.weights_digest
    assert torch.equal(sound_of(modern), sound_of(old))
    reference = parametrizations.weight_norm(nn.Conv1d(2, 4, 7))
    assert set(dict(reference.named_parameters())) == {"bias", *renames.values()}
    plain = {k: v for k, v in state.items() if not k.endswith(("weight_g", "weight_v"))}
    for key in state:
        if key.endswith("weight_v"):
            v, g = state[key], state[key.removesuffix("v") + "g"]
            plain[key.removesuffix("_v")] = v * (g / v.norm(dim=(1, 2), keepdim=True))
    folded = load_autoencoder(CONFIG, saved(tmp_path, plain, "plain.ckpt"))
    torch.testing.assert_close(sound_of(folded), sound_of(old), rtol=0, atol=1e-5)


def test_rvq_weights_load_and_an_unfilled_codebook_is_refused(tmp_path: Path) -> None:
    options = {"dim": 6, "codebook_size": 16, "num_quantizers": 3, "codebook_dim": 4}
    config = model_config(bottleneck={"type": "rvq", "config": {**options, "kmeans_init": True}})
    quantiser = prefixed(ResidualVQ(**options).state_dict(), "bottleneck.quantizer.")
    model = load_autoencoder(config, saved(tmp_path, state_of(config) | quantiser))
    assert model.bottleneck.codebook_sizes == (16, 16, 16)
    # The older library keeps `initted` as a vector of one float.
    older = {k: v.float().reshape(1) if k.endswith("initted") else v for k, v in quantiser.items()}
    other = load_autoencoder(config, saved(tmp_path, state_of(config) | older, "old.ckpt"))
    assert other.weights_digest == model.weights_digest
    unfilled = {k: torch.zeros_like(v) if k.endswith("initted") else v for k, v in older.items()}
    with pytest.raises(ModelError, match=r"layers.0._codebook.initted is false: training never filled the codebook"):
        load_autoencoder(config, saved(tmp_path, state_of(config) | unfilled))


def test_missing_extra_and_misshapen_keys_are_listed(tmp_path: Path) -> None:
    state = state_of()
    del state["encoder.layers.0.weight_g"], state["encoder.layers.3.alpha"]
    state["encoder.layers.9.weight"] = torch.ones(1)
    state["who.knows"] = torch.ones(1)
    state["encoder.layers.0.bias"] = torch.ones(5)
    with pytest.raises(ModelError) as error:
        load_autoencoder(CONFIG, saved(tmp_path, state), parts="encoder")
    text = str(error.value)
    assert "2 missing (encoder.layers.0.weight_g, encoder.layers.3.alpha)" in text
    assert "2 not of this model (encoder.layers.9.weight, who.knows)" in text
    assert "1 of another shape (encoder.layers.0.bias is [5] instead of [4])" in text
    assert "is this the checkpoint that belongs to the config?" in text


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    foreign = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(2, 2, 3)).state_dict()
    with pytest.raises(ModelError, match="holds no encoder of an autoencoder: its keys begin with 0, 1"):
        load_autoencoder(CONFIG, saved(tmp_path, foreign))
    other = state_of(model_config(channels=5, bottleneck={"type": "vae"}))
    with pytest.raises(ModelError, match=r"does not fit the model config: keys \d+ of another shape .*, \.\.\.\)"):
        load_autoencoder(CONFIG, saved(tmp_path, other))


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code from a checkpoint",))


def test_files_that_are_no_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": state_of(), "hyper_parameters": Payload()}, tmp_path / "code.ckpt")
    with pytest.raises(ModelError, match=r"holds more than tensors, or is no checkpoint.*never runs code"):
        load_autoencoder(CONFIG, tmp_path / "code.ckpt")
    assert "code from a checkpoint" not in capsys.readouterr().out
    for name in ("noise.ckpt", "noise.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint at all")
        with pytest.raises(ModelError, match="noise"):
            load_autoencoder(CONFIG, tmp_path / name)
    whole = saved(tmp_path, state_of(), "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="is no whole safetensors file"):
        load_autoencoder(CONFIG, tmp_path / "cut.safetensors")
    with pytest.raises(ModelError, match="there is no checkpoint"):
        load_autoencoder(CONFIG, tmp_path / "none.ckpt")
    torch.save({"epoch": 3}, tmp_path / "empty.ckpt")
    with pytest.raises(ModelError, match=r"holds no tensors: it has the keys \['epoch'\]"):
        load_autoencoder(CONFIG, tmp_path / "empty.ckpt")


def changed(path: str, value: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    *parents, last = path.split(".")
    inner = config
    for name in parents:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed("model_type", "lm"), "is a 'lm' model, which has no autoencoder that can encode"),
        (changed("model_type", "diffusion_uncond"), "is a 'diffusion_uncond' model"),
        (changed("model_type", None), "has no key 'model_type'"),
        (changed("sample_rate", None), "has no key 'sample_rate'"),
        (changed("sample_rate", "44100"), "sample_rate is '44100', a value of type int was expected"),
        (changed("model.latent_dim", None), "has no key 'latent_dim'"),
        (changed("model.encoder.config", None), "has no key 'encoder.config'"),
        (changed("model.encoder.type", "dac"), "encoder type 'dac' is not supported"),
        (changed("model.downsampling_ratio", 16), "downsampling_ratio is 16, but the encoder's own config makes it 8"),
        (changed("model.io_channels", 1), "io_channels is 1, but the encoder's own config makes it 2"),
        (changed("model.latent_dim", 5), "latent_dim is 5, but encoder and bottleneck make it 6"),
        (changed("model.decoder.config.latent_dim", 7), "the decoder takes 7 rows, the bottleneck gives 6"),
        (changed("model.decoder.config.strides", [2, 5]), "shortens 8 times and the decoder lengthens 10 times"),
        (changed("model.pretransform", {"type": "pqmf"}), "pretransform of its own is not supported"),
        (changed("model.encoder.config.antialias_activation", True), "antialias_activation=true is not supported"),
    ],
)
def test_configs_that_cannot_work(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    path = tmp_path / "model_config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message) as error:
        load_autoencoder(path, saved(tmp_path, state_of()))
    assert str(path) in str(error.value)


def test_config_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("[1]")
    for name, message in (("a", "is not JSON"), ("b", "holds a list"), ("c", "cannot be read")):
        with pytest.raises(ModelError, match=message):
            load_autoencoder(tmp_path / f"{name}.json", tmp_path / "model.ckpt")


def diffusers_folder(folder: Path) -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 4, 3], channel_multiples=[1, 2, 3], decoder_channels=4,
        decoder_input_channels=4, audio_channels=2, sampling_rate=44_100,
    ).eval()  # fmt: skip
    for name, parameter in theirs.named_parameters():
        if name.endswith(("alpha", "beta")):
            nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(folder)
    return theirs.requires_grad_(False)


@pytest.mark.parametrize("below", [".", "vae"])
def test_diffusers_folders_give_what_diffusers_gives(tmp_path: Path, below: str) -> None:
    theirs = diffusers_folder(tmp_path / below)
    ours = load_pretrained(tmp_path)
    audio, latents = torch.randn(2, 2, 24 * 10), torch.randn(2, 4, 10)
    with torch.inference_mode():
        found, expected = ours.bottleneck.analyse(ours.encode(audio)), theirs.encode(audio).latent_dist
        torch.testing.assert_close(found["mean"], expected.mean, rtol=0, atol=2e-6)
        torch.testing.assert_close(found["std"], expected.std, rtol=0, atol=2e-6)
        torch.testing.assert_close(ours.decode(latents), theirs.decode(latents).sample, rtol=0, atol=2e-6)
    assert (ours.rate_hz, ours.ratio, ours.latent_dim) == (44_100, 24, 4)


def test_a_diffusers_model_has_the_digest_of_its_stable_audio_form(tmp_path: Path) -> None:
    theirs = diffusers_folder(tmp_path)
    ours = load_diffusers_oobleck(tmp_path, parts="encoder")
    state = {our_name(key, num_blocks=3): value for key, value in theirs.state_dict().items()}
    state = {key: value.flatten() if key.endswith(("alpha", "beta")) else value for key, value in state.items()}
    other = load_autoencoder(ours.config, saved(tmp_path, state))
    assert other.weights_digest == ours.weights_digest


def test_folders_in_the_stable_audio_layout(tmp_path: Path) -> None:
    (tmp_path / "model_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelError, match=r"holds 0 checkpoints beside model_config.json"):
        load_pretrained(tmp_path)
    saved(tmp_path, state_of(), "vae_only.ckpt")
    assert load_pretrained(tmp_path).source.endswith("vae_only.ckpt")
    saved(tmp_path, state_of(seed=1), "model.safetensors")
    assert load_pretrained(str(tmp_path), parts="encoder").source.endswith("model.safetensors")


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="there is no folder 'nowhere', and it is not a hub name"):
        load_pretrained("nowhere")
    with pytest.raises(ModelError, match=r"holds neither model_config.json nor config.json"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    saved(tmp_path, state_of(), "diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelError, match="of the class 'AutoencoderKL', AutoencoderOobleck was expected"):
        load_pretrained(tmp_path)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hub model 'owner/model' cannot be had"):
        load_pretrained("owner/model")
