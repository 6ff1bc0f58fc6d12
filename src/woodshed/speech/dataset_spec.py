"""The grammar of `--dataset LANG=MANIFEST[=OUTPUT]`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from woodshed.errors import UsageError

_LANGUAGE = re.compile(r"[\w-]+")
_FORM = "LANG=MANIFEST or LANG=MANIFEST=OUTPUT"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """One data set of a run over several."""

    language: str
    manifest: Path
    output: Path


@dataclass(frozen=True, slots=True)
class _Part:
    text: str
    is_quoted: bool = False


def parse_dataset_spec(text: str, output_root: Path | None) -> DatasetSpec:
    """Read one `LANG=MANIFEST[=OUTPUT]`. An OUTPUT that is given is taken as it is, not put below `output_root`.

    A part in quotes may hold `=`. Where paths that hold it are not quoted, the reading whose manifest exists counts.

    >>> spec = parse_dataset_spec("am='a=b/m.jsonl'", Path("out"))
    >>> spec.language, spec.manifest.as_posix(), spec.output.as_posix()
    ('am', 'a=b/m.jsonl', 'out/am_processed_data')

    Raises:
        UsageError: it has another form, or more than one reading.
    """
    parts = _parts(text)
    language = parts[0].text
    if len(parts) < 2:
        raise UsageError(f"--dataset {text} names no manifest", hint=f"write {_FORM}, such as am=data/manifest.jsonl")
    if not _LANGUAGE.fullmatch(language):
        wrong = "names no language" if not language else f"has the language {language!r}"
        raise UsageError(f"--dataset {text} {wrong}", hint=f"write {_FORM} with a code such as am or zh-CN")
    manifest, output = _reading(parts[1:], text)
    if not manifest:
        raise UsageError(f"--dataset {text} names no manifest", hint=f"write {_FORM}")
    root = output_root if output_root is not None else Path()
    return DatasetSpec(
        language=language,
        manifest=_path(manifest),
        output=_path(output) if output else root / f"{language.lower()}_processed_data",
    )


def parse_dataset_specs(texts: Iterable[str], output_root: Path | None) -> tuple[DatasetSpec, ...]:
    """Read several, each with an output folder of its own.

    Raises:
        UsageError: one has another form, or two write to one folder.
    """
    specs = tuple(parse_dataset_spec(text, output_root) for text in texts)
    first: dict[Path, DatasetSpec] = {}
    for spec in specs:
        other = first.setdefault(spec.output.resolve(), spec)
        if other is not spec:
            raise UsageError(
                f"--dataset: {other.manifest} and {spec.manifest} would both be written to {spec.output}",
                hint=f"name another output: {spec.language}={spec.manifest}=OUTPUT",
            )
    return specs


def _parts(text: str) -> list[_Part]:
    """What stands between the `=` that are not quoted. A quote counts where it opens and closes a part."""
    parts: list[_Part] = []
    rest: str | None = text
    while rest is not None:
        start = rest.lstrip()
        if start[:1] in ("'", '"'):
            quoted, closing, after = start[1:].partition(start[0])
            if not closing or (after.strip() and not after.lstrip().startswith("=")):
                raise UsageError(f"--dataset {text}: the quote {start[0]} does not enclose one part", hint=_FORM)
            parts.append(_Part(quoted, is_quoted=True))
            _, equals, rest_or_none = after.partition("=")
        else:
            plain, equals, rest_or_none = rest.partition("=")
            parts.append(_Part(plain.strip()))
        rest = rest_or_none if equals else None
    return parts


def _reading(parts: list[_Part], text: str) -> tuple[str, str]:
    """Manifest and output (empty where not given) from the parts after the language."""
    words = [part.text for part in parts]
    if len(parts) == 1 or parts[0].is_quoted:
        return words[0], "=".join(words[1:])
    if parts[-1].is_quoted:
        return "=".join(words[:-1]), words[-1]
    readings = [("=".join(words[:end]), "=".join(words[end:])) for end in range(1, len(words) + 1)]
    existing = [reading for reading in readings if reading[0] and _path(reading[0]).is_file()]
    if len(existing) == 1:
        return existing[0]
    if existing:
        shown = " and ".join(manifest for manifest, _ in existing)
        raise UsageError(
            f"--dataset {text} can be read in two ways: {shown} both exist",
            hint="put the manifest in quotes: \"LANG='MANIFEST'=OUTPUT\"",
        )
    if len(parts) > 2:
        raise UsageError(
            f"--dataset {text} has too many parts, and no way to read it names a manifest that exists",
            hint=f"write {_FORM}; put a part that holds = in quotes: \"LANG='MANIFEST'=OUTPUT\"",
        )
    return words[0], words[1]


def _path(text: str) -> Path:
    # No shell expands a `~` that stands after `=`.
    path = Path(text)
    return path.expanduser() if text == "~" or text.startswith("~/") else path
