"""Woodshed prepares audio for model training: raw audio in, training-ready features out.

`import woodshed` loads neither torch nor any model: names below are imported when first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "analyze": ("woodshed.jobs.analyze", "analyze"),
    "encode": ("woodshed.jobs.encode", "encode"),
    "open": ("woodshed.datasets.folder", "open"),
    "prepare_songs": ("woodshed.jobs.songs", "prepare_songs"),
    "speech_features": ("woodshed.jobs.speech", "speech"),
}

if TYPE_CHECKING:
    from woodshed.datasets.folder import open as open
    from woodshed.jobs.analyze import analyze as analyze
    from woodshed.jobs.encode import encode as encode
    from woodshed.jobs.songs import prepare_songs as prepare_songs
    from woodshed.jobs.speech import speech as speech_features

__all__ = ["__version__", "analyze", "encode", "open", "prepare_songs", "speech_features"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'woodshed' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
