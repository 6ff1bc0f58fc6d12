"""One's own model as a `Trainable`: whatever a named callable gives, as long as it has `layers` and `loss`.

This runs code of the user's, because the user named it. What the object lacks of the protocol is filled in: its name is
the callable's, no condition is dropped, timesteps are uniform, and an example is the item as it comes.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from woodshed.contracts import Draw, Variant
from woodshed.errors import ModelError, UsageError, WoodshedError

OPTIONAL = ("predict", "losses", "silent")
"""Methods of the optional protocols, passed on where the object has them."""


class OwnModel:
    """`Trainable` around somebody's object; `Predicts`, `LossOfMany` and `KnowsSilence` if the object is.

    Args:
        inner: has `layers()` and `loss(example, draw)`.
        name: of what made it, for messages and as the variant's name.

    Raises:
        ModelError: `inner` has no `layers` or `loss`, or no layers that could be adapted.
    """

    def __init__(self, inner: Any, *, name: str) -> None:
        missing = [method for method in ("layers", "loss") if not callable(getattr(inner, method, None))]
        if missing:
            raise ModelError(
                f"{name} gives a {type(inner).__name__} without {' and '.join(f'{m}()' for m in missing)}",
                hint="a model has layers() -> {name: module} and loss(example, draw) -> scalar tensor",
            )
        self._inner, self._name = inner, name
        self._layers = _checked_layers(inner.layers(), name)
        for method in OPTIONAL:
            if callable(getattr(inner, method, None)):
                setattr(self, method, getattr(inner, method))

    @property
    def variant(self) -> Variant:
        given = getattr(self._inner, "variant", None)
        return given if isinstance(given, Variant) else Variant(name=self._name.rpartition(":")[2])

    @property
    def condition_dropout(self) -> float:
        return float(getattr(self._inner, "condition_dropout", 0.0))

    def layers(self) -> Mapping[str, nn.Module]:
        return self._layers

    def timestep(self, quantile: float) -> float | None:
        own = getattr(self._inner, "timestep", None)
        if not callable(own):
            return quantile
        timestep: float | None = own(quantile)
        return timestep

    def example(self, item: Mapping[str, Any]) -> Any:
        own = getattr(self._inner, "example", None)
        return own(item) if callable(own) else item

    def loss(self, example: Any, draw: Draw) -> Tensor:
        """The object's own loss.

        Raises:
            ModelError: it is no scalar tensor.
        """
        loss = self._inner.loss(example, draw)
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.is_floating_point():
            found = f"a tensor of shape {list(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else repr(loss)
            raise ModelError(
                f"loss() of {self._name} gave {found}, a floating-point scalar tensor was expected",
                hint="return for example (predicted - target).square().mean()",
            )
        return loss


def load_own(spec: str, **options: Any) -> OwnModel:
    """Call what `spec` names and check what it gives.

    Args:
        spec: `module:callable` of anything that can be imported, from the current folder too; or
            `path/to/file.py:callable`.
        options: those whose names the callable takes are passed to it by keyword; None is as if it were not given.

    Raises:
        UsageError: there is no such module or callable, or it takes no such option.
        ModelError: its code fails, or what it gives is no model.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise UsageError(f"{spec!r} names no callable", hint="write module:callable or path/to/file.py:callable")
    module = _imported(place)
    build = getattr(module, name, None)
    if build is None:
        near = difflib.get_close_matches(name, [n for n in dir(module) if not n.startswith("_")], n=1)
        raise UsageError(
            f"{place} has no {name!r}", hint=f"is it {near[0]!r}?" if near else "check the name behind the colon"
        )
    if not callable(build):
        raise UsageError(f"{spec} is a {type(build).__name__}, not something to call", hint="name a function or class")
    arguments = _arguments(build, options, spec)
    with _told(f"{spec} failed"):
        inner = build(**arguments)
    return OwnModel(inner, name=spec)


ALWAYS_GIVEN = ("device", "dtype")
"""Options that a callable may ignore: every model has them, and one of one's own may settle them itself."""


def _arguments(build: Callable[..., Any], options: Mapping[str, Any], spec: str) -> dict[str, Any]:
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):  # a callable of C has none to be seen
        parameters = inspect.signature(lambda: None).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    given = {key: value for key, value in options.items() if value is not None}
    unused = [key for key in given if not takes_all and key not in parameters and key not in ALWAYS_GIVEN]
    if unused:
        raise UsageError(
            f"{spec} takes no {' and no '.join(unused)}", hint="leave it out, or give the callable that argument"
        )
    return {key: value for key, value in given.items() if takes_all or key in parameters}


def _imported(place: str) -> ModuleType:
    path = Path(place)
    if path.suffix == ".py":
        if not path.is_file():
            raise UsageError(f"there is no file {place}", hint="check the path before the colon")
        name = f"woodshed_own_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None, "every .py file has a loader"
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Before it runs, as import does: dataclasses and pickle look their module up.
        sys.modules[name] = module
        with _search_in(path.parent), _told(f"{place} failed while it was imported"):
            spec.loader.exec_module(module)
        return module
    with _search_in(Path.cwd()):
        try:
            found = importlib.util.find_spec(place)
        except (ModuleNotFoundError, ValueError):
            found = None
        if found is None:
            raise UsageError(
                f"there is no module {place!r}",
                hint="install it, run from its folder, or give path/to/file.py:callable",
            )
        with _told(f"{place} failed while it was imported"):
            return importlib.import_module(place)


@contextmanager
def _search_in(folder: Path) -> Iterator[None]:
    """Let the code import what lies beside it."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn whatever somebody's code raises into an error that says whose it was."""
    try:
        yield
    except WoodshedError:
        raise
    except Exception as error:
        raise ModelError(
            f"{what}: {type(error).__name__}: {error}", hint="WOODSHED_DEBUG=1 shows where in the code"
        ) from error


def _checked_layers(layers: Any, name: str) -> Mapping[str, nn.Module]:
    if not isinstance(layers, Mapping) or not all(
        isinstance(key, str) and isinstance(module, nn.Module) for key, module in layers.items()
    ):
        raise ModelError(
            f"layers() of {name} gives a {type(layers).__name__} that does not map names to torch modules",
            hint="return for example dict(network.named_modules()), those of its linear layers only",
        )
    empty = [key for key, module in layers.items() if not any(True for _ in module.parameters())]
    if empty or not layers:
        found = f"layers without weights: {', '.join(empty[:10])}" if empty else "none"
        raise ModelError(
            f"layers() of {name} gives {found}", hint="give the layers that may be adapted, such as its nn.Linear"
        )
    return dict(layers)
