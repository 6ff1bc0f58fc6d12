"""The engine that reads numbers, dates, prices and the like aloud: one for every platform.

The original takes `tn` (WeTextProcessing) on Linux and `wetext` elsewhere, and the two disagree. Here it is `wetext`
everywhere: grammars ready-made inside the package, nothing is downloaded, nothing built. `tn` can be asked for by
those who must have what the original made on Linux; it compiles its Chinese grammar once (half a minute) and keeps it
in the user's cache folder.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

from woodshed.errors import UsageError

EngineName: TypeAlias = Literal["wetext", "tn"]
Spoken: TypeAlias = Literal["zh", "en"]

OLDEST: Mapping[EngineName, tuple[int, ...]] = {"wetext": (0, 1, 8), "tn": (1, 2, 0)}
PACKAGES: Mapping[EngineName, str] = {"wetext": "wetext", "tn": "WeTextProcessing"}
_DIGIT = re.compile(r"\d")


# What the engines raise for a text that their grammar cannot parse: `wetext` asserts that there is a parse, and `tn`
# raises pynini's errors, which are RuntimeError and ValueError too.
NO_READING = (AssertionError, IndexError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Engine:
    """Reads texts aloud in Chinese and English. Loaded at its first text; safe to share between threads."""

    name: EngineName
    version: str
    _lock: AbstractContextManager[bool] = field(default_factory=threading.Lock, repr=False, compare=False)
    _readers: dict[Spoken, Callable[[str], str]] = field(default_factory=dict, repr=False, compare=False)

    def read(self, text: str, language: Spoken) -> str | None:
        """The text as it is spoken, or None where the grammar has no reading for it.

        Chinese text without a digit is what `wetext` returns as it is, so it never reaches the engine.
        """
        if self.name == "wetext":
            text = text.strip()
            if not text or (language == "zh" and not _DIGIT.search(text)):
                return text
        with self._lock:
            if not self._readers:
                self._readers.update(_load_wetext() if self.name == "wetext" else _load_tn(self.version))
            try:
                return self._readers[language](text)
            except NO_READING:
                return None


def open_engine(name: EngineName) -> Engine:
    """The engine of a name, which is looked up now and loaded when it is first needed.

    Raises:
        UsageError: it is not installed, or older than the first version whose answers are known.
    """
    oldest = ".".join(map(str, OLDEST[name]))
    try:
        version = metadata.version(PACKAGES[name])
    except metadata.PackageNotFoundError:
        raise UsageError(
            f"{PACKAGES[name]} is not installed: it reads the numbers of Chinese and English texts aloud",
            hint="install woodshed[speech]" if name == "wetext" else f"pip install 'WeTextProcessing>={oldest}'",
        ) from None
    if _release(version) < OLDEST[name]:
        raise UsageError(
            f"{PACKAGES[name]} {version} is too old: text ids could differ from those of {oldest}",
            hint=f"pip install '{PACKAGES[name]}>={oldest}'",
        )
    return Engine(name, version)


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    >>> _release("0.1.8"), _release("1.10.0rc1")
    ((0, 1, 8), (1, 10, 0))
    """
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()


def _load_wetext() -> dict[Spoken, Callable[[str], str]]:
    from wetext import Normalizer

    return {
        "zh": Normalizer(lang="zh", operator="tn", remove_erhua=False).normalize,
        "en": Normalizer(lang="en", operator="tn").normalize,
    }


def _load_tn(version: str) -> dict[Spoken, Callable[[str], str]]:
    """The Chinese grammar in the package drops interjections and r-endings, so the original compiles its own."""
    from tn.chinese.normalizer import Normalizer as Chinese
    from tn.english.normalizer import Normalizer as English

    logging.getLogger("wetext").setLevel(logging.WARNING)
    options = {"remove_interjections": False, "remove_erhua": False}
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "woodshed"
    grammar = caches / f"tn-{version}"
    if not grammar.is_dir():
        caches.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=caches) as building:
            Chinese(cache_dir=building, **options)
            try:
                Path(building).rename(grammar)
            except OSError:
                if not grammar.is_dir():  # otherwise another process was faster
                    raise
            else:
                Path(building).mkdir()  # for TemporaryDirectory to remove
    chinese = Chinese(cache_dir=str(grammar), **options)
    return {"zh": chinese.normalize, "en": English().normalize}
