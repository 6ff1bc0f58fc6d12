"""A model of one's own: what is filled in, what is passed on, and what is refused when it is opened."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.encoders.acestep.tiny_acestep import build_acestep, save_upstream
from woodshed.backends.acestep import AceStep
from woodshed.backends.open import BACKENDS, open_backend
from woodshed.backends.own import OwnModel, load_own
from woodshed.backends.whisper import Whisper
from woodshed.contracts import Draw, LossOfMany, Predicts, Trainable, Variant
from woodshed.errors import ModelError, UsageError

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "your-own-model.md"


class Smallest:
    """No more than there must be."""

    def __init__(self) -> None:
        self.linear = nn.Linear(3, 2)

    def layers(self) -> Mapping[str, nn.Module]:
        return {"linear": self.linear}

    def loss(self, example: Any, draw: Draw) -> torch.Tensor:
        return (self.linear(example["x"]) * (draw.timestep or 0)).sum()


class Fullest(Smallest):
    variant = Variant(name="turbo", fragile="it breaks")
    condition_dropout = 0.25

    def example(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return {"x": item["latents"][0, :3]}

    def timestep(self, quantile: float) -> None:
        return None

    def predict(self, example: Any, draw: Draw) -> torch.Tensor:
        return self.linear(example["x"])

    def losses(self, examples: Any, draws: Any) -> torch.Tensor:
        return torch.stack([self.loss(*pair) for pair in zip(examples, draws, strict=True)])


def test_what_is_left_out_is_filled_in() -> None:
    model = OwnModel(Smallest(), name="mine:Smallest")
    assert isinstance(model, Trainable)
    assert not isinstance(model, Predicts | LossOfMany)
    assert model.variant == Variant(name="Smallest")
    assert (model.condition_dropout, model.timestep(0.3)) == (0.0, 0.3)
    item = {"x": torch.ones(3)}
    assert model.example(item) is item
    model.loss(item, Draw(seed=0, timestep=0.5)).backward()
    assert model.layers()["linear"].weight.grad.tolist() == [[0.5] * 3] * 2


def test_what_is_there_is_passed_on() -> None:
    model = OwnModel(Fullest(), name="mine:Fullest")
    assert isinstance(model, Predicts)
    assert isinstance(model, LossOfMany)
    assert (model.variant.fragile, model.condition_dropout, model.timestep(0.3)) == ("it breaks", 0.25, None)
    example = model.example({"latents": torch.ones(2, 9)})
    assert model.predict(example, Draw(seed=0)).shape == (2,)
    assert model.losses([example] * 2, [Draw(seed=0)] * 2).shape == (2,)


# By name -----------------------------------------------------------------------------------------------------------


def page_block() -> str:
    """The model that the guide shows."""
    return next(code for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "class " in code)


def test_the_guides_model_is_short_and_opens_by_its_files_name(tmp_path: Path) -> None:
    code = page_block()
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    (tmp_path / "my_model.py").write_text(code)
    model = open_backend(f"{tmp_path / 'my_model.py'}:FrameDenoiser")
    assert isinstance(model, Trainable)
    assert list(model.layers()) == ["0", "2"]
    item = {"latents": torch.randn(64, 5), "mask": torch.ones(5, dtype=torch.bool)}
    model.loss(model.example(item), Draw(seed=0, timestep=0.5)).backward()
    assert all(float(layer.weight.grad.abs().sum()) > 0 for layer in model.layers().values())


def write(folder: Path, code: str, name: str = "own_code.py") -> str:
    """A file of somebody's code; gives its path."""
    (folder / name).write_text("from torch import nn\nimport torch\n" + code)
    return str(folder / name)


GOOD = """
class Model:
    def __init__(self, **given):
        self.given, self.linear = given, nn.Linear(2, 1)
    def layers(self):
        return {"linear": self.linear}
    def loss(self, example, draw):
        return self.linear(torch.ones(2)).sum()
"""


def test_a_module_of_the_current_folder_and_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD, "neighbour_of_mine.py")
    write(tmp_path, "from neighbour_of_mine import Model\nbuild = Model\n", "mine_of_this_test.py")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert isinstance(open_backend("mine_of_this_test:build"), Trainable)
    assert sys.path == path


def test_options_go_to_those_who_take_them(tmp_path: Path) -> None:
    place = write(
        tmp_path,
        GOOD + "def plain():\n    return Model()\n"
        "def picky(checkpoint, device='cpu'):\n    return Model(checkpoint=checkpoint, device=device)\n",
    )
    made = load_own(f"{place}:picky", checkpoint="here", variant=None, device="meta", dtype=torch.float32)
    assert made._inner.given == {"checkpoint": "here", "device": "meta"}
    assert load_own(f"{place}:Model", checkpoint="x", dtype=1)._inner.given == {"checkpoint": "x", "dtype": 1}
    load_own(f"{place}:plain", device="cpu", dtype=torch.float32)
    with pytest.raises(UsageError, match="plain takes no checkpoint"):
        load_own(f"{place}:plain", checkpoint="here")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("no_such_module_anywhere:build", "there is no module 'no_such_module_anywhere'"),
        ("no_such_package.inner:build", "there is no module 'no_such_package.inner'"),
        ("nowhere/at_all.py:build", "there is no file nowhere/at_all.py"),
        ("json:lods", "json has no 'lods'.*is it 'loads'"),
        ("sys:maxsize", "is a int, not something to call"),
        (":build", "names no callable"),
        ("json:", "names no callable"),
    ],
)
def test_names_that_lead_nowhere(spec: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        load_own(spec)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("1 / 0", "failed while it was imported: ZeroDivisionError"),
        (
            "import no_such_package_of_mine",
            "failed while it was imported: ModuleNotFoundError: .*no_such_package_of_mine",
        ),
        ("def build():\n    raise RuntimeError('out of luck')", "build failed: RuntimeError: out of luck"),
        ("def build():\n    return 3", r"gives a int without layers\(\) and loss\(\)"),
        (GOOD + "class build(Model):\n    loss = None", r"gives a build without loss\(\)"),
        (
            GOOD + "class build(Model):\n    def layers(self):\n        return [self.linear]",
            "gives a list that does not map",
        ),
        (GOOD + "class build(Model):\n    def layers(self):\n        return {}", r"layers\(\) of .* gives none"),
        (
            GOOD + "class build(Model):\n    def layers(self):\n        return {'act': nn.ReLU()}",
            "layers without weights: act",
        ),
    ],
)
def test_code_that_gives_no_model(code: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=told):
        load_own(f"{write(tmp_path, code)}:build")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("torch.zeros(2)", r"a tensor of shape \[2\], torch.float32"),
        ("torch.tensor(1)", r"a tensor of shape \[\], torch.int64"),
        ("0.5", "gave 0.5, a floating-point scalar tensor"),
    ],
)
def test_a_loss_that_is_no_scalar(value: str, told: str, tmp_path: Path) -> None:
    code = GOOD + f"class build(Model):\n    def loss(self, example, draw):\n        return {value}"
    model = load_own(f"{write(tmp_path, code)}:build")
    with pytest.raises(ModelError, match=told):
        model.loss(None, Draw(seed=0))


# All backends by name ----------------------------------------------------------------------------------------------


def test_every_name_opens_its_model(tmp_path: Path) -> None:
    folder = save_upstream(build_acestep(silence_frames=8), tmp_path)
    assert isinstance(open_backend("acestep", checkpoint=folder, variant="base", dtype="bf16"), AceStep)
    assert isinstance(open_backend("whisper"), Whisper)


def test_the_model_that_ships_opens_without_a_checkpoint() -> None:
    assert isinstance(open_backend("woodshed_tiny_dit"), Trainable)


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("acestepp", {}, r"no base model 'acestepp'.*is it 'acestep'\?"),
        ("mystery", {}, "no base model 'mystery'.*" + ", ".join(BACKENDS)),
        ("acestep", {}, "acestep needs a checkpoint"),
        ("stable_audio", {}, "stable-audio needs a checkpoint"),
        ("whisper", {"variant": "base"}, "whisper has no variants"),
        ("woodshed-tiny-dit", {"checkpoint": "x"}, "takes no checkpoint"),
        ("woodshed-tiny-dit", {"dtype": "bf16"}, "fp32 only"),
        ("acestep", {"dtype": "fp8"}, "no precision 'fp8'"),
    ],
)
def test_what_cannot_be_opened_is_told(name: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        open_backend(name, **given)
