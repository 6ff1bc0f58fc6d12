"""`fisher_map.json` on disk: read, written whole, and described by a JSON Schema (`docs/fisher_map.schema.json`).

Side-Step's trainer takes a map that has `target_modules`, `rank_pattern` and `alpha_pattern`, compares `version`,
`model_variant`, `num_hidden_layers` and `dataset_hash` where they are there, and looks past all keys that it does not
know. A map of its own goes through ours and back without a loss: its keys, their order, and whole numbers are kept.

The schema is made anew by

    python -c 'import json; from woodshed.importance.map_files import schema; print(json.dumps(schema(), indent=2))'

Source: Side-Step 1.1.2, its reader and writer of maps.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from woodshed.contracts import Json
from woodshed.errors import StoreError
from woodshed.importance.belief import Scored
from woodshed.importance.fisher_map import FORMAT, KEEP_ORDER, SCHEMA_VERSION, FisherMap
from woodshed.importance.layers import LayerShape
from woodshed.importance.sidestep_rule import PREFIX, UNKNOWN_RANK, block_suffix
from woodshed.store.disk import Disk
from woodshed.store.whole_file import write_whole

MAP_NAME = "fisher_map.json"
_MOST_FAULTS = 5
_ANALYSE = "make it anew with `woodshed analyze`"


def map_at(path: Path) -> Path:
    """The map that a path stands for: itself, or `fisher_map.json` in it where it is a folder or has no suffix.

    >>> map_at(Path("songs")).as_posix(), map_at(Path("my_map.json")).as_posix()
    ('songs/fisher_map.json', 'my_map.json')
    """
    return path / MAP_NAME if path.is_dir() or (not path.suffix and not path.is_file()) else path


def read_map(path: Path) -> FisherMap:
    """Read a map of ours or of Side-Step's.

    Raises:
        StoreError: there is none, it is damaged, or of a version that is not known yet.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StoreError(f"there is no map {path}", hint=_ANALYSE) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise StoreError(f"cannot read the map {path}: {reason}", hint=_ANALYSE) from error
    try:
        content = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"the map {path} is damaged: {error}", hint=_ANALYSE) from error
    if not isinstance(content, dict):
        raise StoreError(f"the map {path} holds {_kind(content)}, a JSON object was expected", hint=_ANALYSE)
    _check_versions(path, content)
    try:
        return FisherMap.model_validate(content, strict=True, context=KEEP_ORDER)
    except ValidationError as error:
        raise StoreError(f"the map {path} is damaged: {_faults(error)}", hint=_ANALYSE) from error


def notes_on(fisher_map: FisherMap) -> tuple[str, ...]:
    """What a reader of this map should know, as Side-Step would say it."""
    if fisher_map.version >= SCHEMA_VERSION:
        return ()
    return (f"the map is of version {fisher_map.version}, {SCHEMA_VERSION} is the present one: better {_ANALYSE}",)


def map_to_json(fisher_map: FisherMap) -> bytes:
    """The file: optional fields of schema 2 only where they were given, floats in full.

    Raises:
        StoreError: a number is not finite, and JSON has none for it.
    """
    content = fisher_map.model_dump(exclude_unset=True)
    if fisher_map.woodshed is not None:
        content["woodshed"] = fisher_map.woodshed.model_dump()
    broken = next(_not_finite(content, ""), None)
    if broken is not None:
        raise StoreError(f"the map has no number for {broken}", hint="measure again, with fp32 if it was not")
    # ASCII, because names of files can hold what is no text.
    return json.dumps(content, indent=2, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def write_map(path: Path, fisher_map: FisherMap, *, disk: Disk | None = None) -> None:
    """Write a map in one step: after a crash at any moment there is the old one or the new one, never a part.

    Raises:
        StoreError: the disk refuses, or a number of the map is not finite.
    """
    disk = disk or Disk()
    content = map_to_json(fisher_map)
    target = path.resolve() if path.is_symlink() else path
    for folder in reversed(target.parents):
        if not folder.is_dir():
            disk.make_folder(folder)
    write_whole(target, content, disk=disk)
    disk.sync([target.parent])


def schema() -> dict[str, Json]:
    """The JSON Schema of a map, draft 2020-12."""
    described = FisherMap.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fisher_map.json of woodshed analyze",
        "description": "What an analysis found and which rank it gave each layer. The top level is schema 2 of "
        "Side-Step; all that it has no room for stands under `woodshed`.",
    } | {key: value for key, value in described.items() if key not in ("title", "description")}


def schema2_fields(
    shapes: Sequence[LayerShape],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    scores: Mapping[str, Scored],
    *,
    effective_ranks: Mapping[str, int] | None = None,
    as_side_step: bool = False,
) -> dict[str, Json]:
    """What schema 2 says of layers: who gets which rank, and who none.

    Names in patterns are those of `Trainable.layers`, which for ACE-Step are Side-Step's without `decoder.`. Under
    `target_modules` stand endings such as `self_attn.q_proj`, as PEFT takes them. PEFT takes an ending in every block:
    where one is also an excluded layer's, the full names stand in its place, so that Side-Step leaves out what the map
    leaves out.

    Args:
        shapes: of all layers, in the order of the model.
        ranks: of layers that get an adapter.
        scores: what layers are sorted by; one that has none comes last, with a score of 0.
        effective_ranks: of the weights, as far as known.
        as_side_step: endings alone, as Side-Step writes them, whatever else they match.
    """
    known = {shape.name: found for shape in shapes if (found := scores.get(shape.name)) and math.isfinite(found.value)}
    values = {shape.name: known[shape.name].value if shape.name in known else 0.0 for shape in shapes}
    included = sorted((shape.name for shape in shapes if shape.name in ranks), key=lambda name: -values[name])
    excluded = [shape.name for shape in shapes if shape.adaptable and shape.name not in ranks]
    modules = [
        {
            "name": _full_name(name),
            "fisher_score": values[name],
            "fisher_cross_run_std": _deviation(known.get(name)),
            "effective_rank": (effective_ranks or {}).get(name, UNKNOWN_RANK),
            "assigned_rank": ranks[name],
        }
        for name in included
    ]
    fields: dict[str, Json] = {
        "target_modules": _target_modules(included, [] if as_side_step else excluded),
        "rank_pattern": {name: ranks[name] for name in included},
        "alpha_pattern": {name: _whole_if_it_is(alphas[name]) for name in included},
        "modules": modules,
        "excluded_modules": [_full_name(name) for name in excluded],
    }
    num_blocks = _num_blocks([shape.name for shape in shapes])
    return fields if num_blocks is None else fields | {"num_hidden_layers": num_blocks}


def side_step_hash(folder: Path) -> str:
    """What Side-Step writes as `dataset_hash` to tell later whether the data has changed: of names and sizes of the
    `.pt` files right in the folder.

    Raises:
        StoreError: the folder cannot be read.
    """
    try:
        sizes = sorted((path.name, path.stat().st_size) for path in folder.glob("*.pt") if path.is_file())
    except OSError as error:
        raise StoreError(f"cannot read {folder}: {error.strerror}", hint="check the folder's permissions") from error
    listed = "|".join(f"{name}:{size}" for name, size in sizes)
    return hashlib.md5(listed.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()[:12]


def _target_modules(included: Sequence[str], excluded: Sequence[str]) -> list[str]:
    def ending(name: str) -> str:
        return block_suffix(name) or name

    taken = {ending(name) for name in excluded}
    return sorted({name if ending(name) in taken else ending(name) for name in included})


def _full_name(name: str) -> str:
    """As Side-Step names the layers of ACE-Step's transformer; other models' as they are."""
    return f"{PREFIX}{name}" if name.startswith("layers.") else name


def _num_blocks(names: Sequence[str]) -> int | None:
    """Blocks of a transformer that has one stack of them, None for other models."""
    numbers = [re.match(r"layers\.(\d+)\.", name) for name in names]
    found = [int(number[1]) for number in numbers if number is not None]
    return max(found) + 1 if found and len(found) == len(names) else None


def _deviation(score: Scored | None) -> float:
    if score is None or not math.isfinite(score.relative_se):
        return 0.0
    return score.value * score.relative_se


def _whole_if_it_is(alpha: float) -> int | float:
    return int(alpha) if float(alpha).is_integer() else alpha


def _check_versions(path: Path, content: Mapping[str, Json]) -> None:
    part = content.get("woodshed")
    for name, found, known in (
        ("version", content.get("version"), SCHEMA_VERSION),
        ("woodshed.format", part.get("format") if isinstance(part, dict) else None, FORMAT),
    ):
        if isinstance(found, int) and found > known:
            raise StoreError(
                f"the map {path} says {name} {found}, and this Woodshed knows {known} at most",
                hint=f"update Woodshed, or {_ANALYSE}",
            )


def _faults(error: ValidationError) -> str:
    found = [
        f"{'.'.join(str(part) for part in fault['loc'])} is missing"
        if fault["type"] == "missing"
        else f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    more = len(found) - _MOST_FAULTS
    return "; ".join([*found[:_MOST_FAULTS], *([f"and {more} more"] if more > 0 else [])])


def _kind(content: Json) -> str:
    kinds = {list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(content), "a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text}, which is no finite number")
    return number


def _not_finite(content: Any, place: str) -> Iterator[str]:
    if isinstance(content, float) and not math.isfinite(content):
        yield place
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _not_finite(value, f"{place}.{key}" if place else str(key))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from _not_finite(value, f"{place}[{index}]")
