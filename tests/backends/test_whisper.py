"""Real Whisper tiny.en on real sentences: the right text costs far less than another; gradients reach every layer."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import woodshed
from tests.encoders.speech.whisper_files import write_ctranslate2
from woodshed.audio.clip import read
from woodshed.audio.probe import probe
from woodshed.backends.whisper import Whisper, load_whisper
from woodshed.contracts import Draw, LossOfMany, Predicts, Trainable
from woodshed.encoders.speech.whisper_weights import find_weights
from woodshed.errors import ItemError, ModelError, UsageError
from woodshed.speech.demo_data import demo_manifest

DEMO = Path(str(files("woodshed.assets") / "demo"))
PROMPT, NOVEL = "prompt-conf-onlyperson", "austen-0930"
DRAW = Draw(seed=0)


@pytest.fixture(scope="module")
def model() -> Whisper:
    return load_whisper()


def spoken(name: str, text: str | None = None) -> dict[str, Any]:
    path = str(DEMO / f"{name}.opus")
    wave = read(path, probe(path), rate_hz=16_000, num_channels=1)[0]
    return {"audio": torch.from_numpy(wave), "text": text or (DEMO / f"{name}.txt").read_text()}


def test_it_is_what_analysis_and_training_ask_for(model: Whisper) -> None:
    assert isinstance(model, Trainable)
    assert isinstance(model, Predicts)
    assert isinstance(model, LossOfMany)
    assert (model.variant.name, model.condition_dropout, model.timestep(0.5)) == ("tiny.en", 0.0, None)


@pytest.mark.parametrize("name", [PROMPT, NOVEL])
def test_the_right_text_costs_far_less_than_another(name: str, model: Whisper) -> None:
    """Nats a token: under one for what is said, several for the same words in another order or another sentence."""
    right = spoken(name)
    words = right["text"].split()
    with torch.no_grad():
        said = model.loss(model.example(right), DRAW).item()
        shuffled = model.loss(model.example({**right, "text": " ".join(sorted(words))}), DRAW).item()
        other = model.loss(model.example({**right, "text": "The cat sat on the mat and looked at me."}), DRAW).item()
    assert said < 0.9
    assert min(shuffled, other) > 4 * said
    assert min(shuffled, other) > 3


def test_the_loss_is_the_librarys_own_of_the_same_labels(model: Whisper) -> None:
    example = model.example(spoken(PROMPT))
    labels = example.tokens[2:]
    with torch.no_grad():
        made = model.network(
            input_features=example.features[None],
            decoder_input_ids=example.tokens[None, :-1],
            labels=torch.cat([torch.tensor([-100]), labels])[None],
        )
        assert model.loss(example, DRAW).item() == pytest.approx(made.loss.item(), rel=1e-5)
        assert model.predict(example, DRAW).argmax(dim=1).tolist()[-1] == labels[-1].item()


def test_gradients_reach_every_layer_and_nothing_else(model: Whisper) -> None:
    model.loss(model.example(spoken(PROMPT)), DRAW).backward()
    layers = model.layers()
    own = ["fc1", "fc2", *(f"self_attn.{part}_proj" for part in ("k", "out", "q", "v"))]
    cross = [f"encoder_attn.{part}_proj" for part in ("k", "out", "q", "v")]
    names = [f"encoder.layers.{i}.{name}" for i in range(4) for name in own]
    names += [f"decoder.layers.{i}.{name}" for i in range(4) for name in sorted(own + cross)]
    assert list(layers) == names
    assert all(float(layer.weight.grad.abs().sum()) > 0 for layer in layers.values())
    reached = {id(p) for p in model.network.parameters() if p.grad is not None}
    assert reached == {id(p) for layer in layers.values() for p in layer.parameters()}
    model.network.zero_grad()


def test_losses_of_many_are_those_of_each_alone(model: Whisper) -> None:
    texts = ["One two.", "Three four.", "What is this here?", None]
    examples = [model.example(spoken(PROMPT, text)) for text in texts]
    with torch.no_grad():
        single = torch.stack([model.loss(example, DRAW) for example in examples])
        assert torch.allclose(model.losses(examples, [DRAW] * 4), single, rtol=1e-4)


def test_items_of_a_speech_folder_are_read_from_their_recordings(
    model: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = Path(str(files("woodshed.assets") / "speech-demo-bpe.model"))
    manifest = demo_manifest(Path())
    woodshed.speech_features(manifest, "out", semantic="whisper", tokenizer=(tokenizer,), num_processes=1)
    folder = woodshed.open("out")
    item = next(folder[i] for i in range(len(folder)) if folder[i]["info"]["id"] == PROMPT)
    assert torch.equal(model.example(item).features, model.example(spoken(PROMPT)).features)


def test_what_cannot_be_heard_is_told(model: Whisper) -> None:
    with pytest.raises(UsageError, match="audio and text, this item has codes, info"):
        model.example({"codes": torch.zeros(3), "info": {}})
    with pytest.raises(ItemError, match="lasts 31 s") as caught:
        model.example({"audio": torch.zeros(31 * 16_000), "text": "x"})
    assert caught.value.kind == "too_long"
    with pytest.raises(ItemError, match="lasts 0 s"):
        model.example({"audio": torch.zeros(0), "text": "x"})
    with pytest.raises(ItemError, match="at most 448"):
        model.example({"audio": torch.zeros(16_000), "text": "yes and no " * 200})


# Weights -----------------------------------------------------------------------------------------------------------


def test_weights_of_transformers_are_the_same_model(model: Whisper, tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in model.network.state_dict().items() if k != "proj_out.weight"}
    save_file(state, tmp_path / "model.safetensors")
    model.network.config.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(find_weights(None).with_name("tokenizer.json").read_bytes())
    again = load_whisper(tmp_path)
    example = model.example(spoken(PROMPT, "Hello"))
    with torch.no_grad():
        assert torch.equal(model.loss(example, DRAW), again.loss(example, DRAW))
    del state["model.decoder.layers.2.encoder_attn.v_proj.bias"]
    save_file({**state, "model.decoder.extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 missing .*encoder_attn\.v_proj\.bias.*1 not of this model .*extra"):
        load_whisper(tmp_path)


def test_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    path = write_ctranslate2(tmp_path / "model.bin", {"encoder/layer_0/gru/weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(ModelError, match="of another architecture: it has encoder/layer_0/gru/weight"):
        load_whisper(path)
    path = write_ctranslate2(tmp_path / "model.bin", {"encoder/conv1/weight": np.zeros((2, 80, 3), np.int8)})
    with pytest.raises(ModelError, match=r"quantised model\.encoder\.conv1\.weight"):
        load_whisper(path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json beside it"):
        load_whisper(path)
