"""The layout that Side-Step trains from: one `.pt` per song with six keys, flat in the folder.

| key | shape | holds |
| --- | --- | --- |
| `target_latents` | [frame, 64] | the sampled latents |
| `attention_mask` | [frame] | ones |
| `encoder_hidden_states` | [token, width] | the condition |
| `encoder_attention_mask` | [token] | bool, False where the condition is padded |
| `context_latents` | [frame, 128] | encoded silence, and ones: what text-to-music is told of the sound |
| `metadata` | dict | what Side-Step keeps of a song, and under `woodshed` what we keep of a record |

`preprocess_meta.json` is written from the log (`preprocess_meta`). Side-Step names a file by its song's path, parts
joined by `__`; ours keep the suffix too, and escape what would let two songs claim one name.

Source: Side-Step 1.1.2, its preprocessing and its data module.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from woodshed.contracts import Json, Place, Record, RecordSpec
from woodshed.errors import StoreError
from woodshed.store.describe import describe, log_facts, to_json
from woodshed.store.entries import RecordEntry
from woodshed.store.names import LONGEST_NAME_BYTES, safe_name, shortened

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".pt"
STAGING_SUFFIX = ".tmp.pt"
"""What Side-Step calls its unfinished files, and leaves out when it reads."""
PREPROCESS_META = "preprocess_meta.json"
MD5 = "md5"
"""In the log's facts: what Side-Step compares a file with."""
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class SideStep:
    """One `.pt` per record. `silence` and `dtype` are needed for writing only."""

    spec: RecordSpec
    silence: np.ndarray | None = None
    """Encoded silence (frame, latent), repeated where a song is longer."""
    dtype: str = "float32"
    """Of all floats in a file: one of `DTYPES`."""
    _last: dict[int, str] = field(default_factory=dict, repr=False, compare=False)
    """Digest of the file last made, by position: `facts` is asked for right after `files`."""

    name = "sidestep"

    def files(self, record: Record, place: Place) -> Iterator[tuple[str, bytes]]:
        """The one file of a record.

        Raises:
            ItemError: metadata that JSON cannot hold.
        """
        content = self._content(record, place)
        self._last.clear()
        self._last[place.position] = _md5(content)
        yield file_name(place.item.id), content

    def facts(self, record: Record, place: Place) -> dict[str, Json]:
        """`store.describe.log_facts`, and the file's MD5."""
        digest = self._last.get(place.position) or _md5(self._content(record, place))
        return {**log_facts(record, place, self.spec), MD5: digest}

    def _content(self, record: Record, place: Place) -> bytes:
        import torch

        assert self.silence is not None, "a layout for reading writes nothing"
        dtype = getattr(torch, self.dtype)
        latents = torch.from_numpy(np.ascontiguousarray(record.arrays[self.spec.main].T)).to(dtype)
        condition = torch.from_numpy(np.ascontiguousarray(record.arrays["condition"])).to(dtype)
        mask = record.arrays.get("condition_mask")
        context = np.ones((latents.shape[0], 2 * latents.shape[1]), np.float32)
        context[:, : latents.shape[1]] = tiled(self.silence, latents.shape[0])
        tensors = {
            "target_latents": latents,
            "attention_mask": torch.ones(latents.shape[0], dtype=dtype),
            "encoder_hidden_states": condition,
            "encoder_attention_mask": torch.ones(condition.shape[0], dtype=torch.bool)
            if mask is None
            else torch.from_numpy(np.array(mask, bool)),
            "context_latents": torch.from_numpy(context).to(dtype),
        }
        described = json.loads(to_json(describe(record, place, self.spec), place))
        stream = io.BytesIO()
        metadata = side_step_metadata(place, encoded_s=described["num_samples"] / self.spec.rate_hz)
        torch.save({**tensors, "metadata": {**metadata, "woodshed": described}}, stream)
        return stream.getvalue()


def side_step_metadata(place: Place, *, encoded_s: float) -> dict[str, Json]:
    """What Side-Step stores of a song; its `audio_path` is the path below the source root, which stays true.

    Its trainer takes `duration` for the length of the latents, so that is what it is, whatever a sidecar says.
    """
    song = place.item.meta
    return {
        "audio_path": _text(place.item.relpath),
        "filename": _text(place.item.relpath.rsplit("/", 1)[-1]),
        "caption": str(song.get("caption") or ""),
        "lyrics": str(song.get("lyrics") or "") or "[Instrumental]",
        "duration": int(encoded_s),
        "bpm": song.get("bpm"),
        "keyscale": str(song.get("keyscale") or ""),
        "timesignature": str(song.get("timesignature") or ""),
        "genre": str(song.get("genre") or ""),
        "is_instrumental": bool(song.get("is_instrumental", True)),
        "custom_tag": str(song.get("custom_tag") or ""),
        "prompt_override": song.get("prompt_override"),
        "repeat": int(song.get("repeat") or 1),
    }


def file_name(item_id: str) -> str:
    """Name of a song's file. Different ids have different names, also where case is ignored.

    >>> file_name("live/My Song.wav"), file_name("a__b.wav"), file_name("a/b.wav")
    ('live__~my%20~song.wav.pt', 'a%5f%5fb.wav.pt', 'a__b.wav.pt')
    >>> file_name("take.tmp")
    'take%2etmp.pt'
    """
    escaped = []
    for part in item_id.split("/"):
        name = safe_name(part)
        # An underscore at a part's edge would move the border between two parts.
        name = name.replace("__", "%5f%5f")
        name = "%5f" + name[1:] if name.startswith("_") else name
        escaped.append(name[:-1] + "%5f" if name.endswith("_") else name)
    stem = "__".join(escaped)
    if stem.endswith(".tmp"):
        stem = stem[: -len(".tmp")] + "%2etmp"
    return shortened(stem, item_id.encode("utf-8", "surrogatepass"), LONGEST_NAME_BYTES - len(SUFFIX)) + SUFFIX


def tiled(silence: np.ndarray, num_frames: int) -> np.ndarray:
    """Encoded silence of any length.

    >>> tiled(np.array([[1.0], [2.0]]), 5)[:, 0].tolist()
    [1.0, 2.0, 1.0, 2.0, 1.0]
    """
    repeats = -(-num_frames // silence.shape[0])
    return np.tile(silence, (repeats, 1))[:num_frames]


def preprocess_meta(
    entries: Iterator[RecordEntry], *, facts: Mapping[str, Json], num_rows: int, num_failed: int
) -> bytes:
    """`preprocess_meta.json`: how a folder was made, and each file's MD5. No times: equal runs give equal files."""
    checksums = {file.path: record.facts.get(MD5, "") for record in entries for file in record.files}
    content = {
        **facts,
        "total": num_rows,
        "processed": len(checksums),
        "failed": num_failed,
        "checksums": dict(sorted(checksums.items())),
    }
    return json.dumps(content, indent=2, ensure_ascii=True).encode() + b"\n"


def read_arrays(folder: Path, record: RecordEntry, arrays: Mapping[str, Any], *, main: str) -> dict[str, np.ndarray]:
    """The arrays of a record of this layout, under the names that its encoder gave them.

    Raises:
        OSError, ValueError: its file is missing or is not what was committed.
    """
    stored = load(folder / record.files[0].path)
    read = {main: as_float32(stored["target_latents"]).T, "condition": as_float32(stored["encoder_hidden_states"])}
    if "condition_mask" in arrays:
        read["condition_mask"] = stored["encoder_attention_mask"].numpy().astype(bool)
    return read


def read_meta(folder: Path, record: RecordEntry) -> dict[str, Json]:
    """The metadata of a record of this layout."""
    meta: dict[str, Json] = load(folder / record.files[0].path)["metadata"]["woodshed"]
    return meta


def load(path: Path) -> dict[str, Any]:
    """A `.pt` file of this layout, ours or Side-Step's, memory-mapped; no code in it can run.

    Raises:
        StoreError: it is not such a file.
        OSError: it cannot be read.
    """
    import pickle

    import torch

    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StoreError(
            f"{path} is not a file of tensors: {reason}",
            hint="preprocess the song again; a file that needs code to be read is never run",
        ) from error
    missing = {"target_latents", "encoder_hidden_states"} - set(stored if isinstance(stored, dict) else ())
    if missing:
        raise StoreError(
            f"{path} has no {' and no '.join(sorted(missing))}: it is not a song of Side-Step",
            hint="name the folder that Side-Step's preprocessing or `woodshed songs --layout sidestep` wrote",
        )
    return dict(stored)


def as_float32(tensor: Tensor) -> np.ndarray:
    """A tensor of any float type as float32 numpy, which has no bfloat16."""
    array: np.ndarray = tensor.float().numpy()
    return array


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _text(name: str) -> str:
    """A file name as text that any reader takes, whatever bytes it holds."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
