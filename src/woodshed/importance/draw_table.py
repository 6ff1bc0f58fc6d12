"""What was measured, draw by draw, on disk as it comes: the whole of an analysis can be told from it, and resumed.

A folder holds `entries.f32`, which only grows, and `draws.safetensors`, which is written whole and says how many draws
count: what a killed run wrote beyond that is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from woodshed.contracts import Json
from woodshed.errors import StoreError
from woodshed.importance.looks import Look

DRAWS = "draws.safetensors"
ENTRIES = "entries.f32"
_SUM = "sum/"


class DrawTable:
    """Draws so far, in memory and in a folder.

    Args:
        folder: made if need be; what it holds of an earlier run is taken over.
        num_layers: columns of the energies.
        num_entries: entries of all layers' gradients that are kept of each draw.
    """

    def __init__(self, folder: Path, *, num_layers: int, num_entries: int) -> None:
        self.folder, self.num_layers, self.num_entries = folder, num_layers, num_entries
        self.items: list[int] = []
        self.numbers: list[int] = []
        """Of the look that each draw was."""
        self.visits: list[int] = []
        self.timesteps: list[float | None] = []
        self._energy: list[Float32[np.ndarray, " layer"]] = []
        self._sensitivity: list[Float32[np.ndarray, " layer"] | None] = []
        self.num_looks = 0
        """Looks that were made; those at items that cannot be looked at left no draw."""
        self.notes: dict[str, Json] = {}
        """What else a resumed run has to know."""
        self._passes: list[int] = []
        """Backward passes by draw: all of a batch's stand at its first."""
        self.sums: dict[str, Tensor] = {}
        """What mean gradients are made of, as of the last draw; filled in by whoever measures."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._load()
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be used: {error}",
                hint="--output names a place for the map, and for its draws beside it",
            ) from error

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_passes(self) -> int:
        """Backward passes, those for sensitivity included."""
        return sum(self._passes) + sum(values is not None for values in self._sensitivity)

    @property
    def energy(self) -> Float32[np.ndarray, "draw layer"]:
        """Squared norms of the gradients."""
        return np.stack(self._energy) if self._energy else np.zeros((0, self.num_layers), np.float32)

    @property
    def sensitivity(self) -> tuple[Int64[np.ndarray, " measured"], Float32[np.ndarray, "measured layer"]]:
        """Which draws were looked at for it, and what they gave."""
        kept = [(row, values) for row, values in enumerate(self._sensitivity) if values is not None]
        rows = np.array([row for row, _ in kept], np.int64)
        return rows, np.stack([v for _, v in kept]) if kept else np.zeros((0, self.num_layers), np.float32)

    def entries(self, columns: slice) -> Float32[np.ndarray, "draw entry"]:
        """Sampled entries of the gradients, read from disk: all of them would take too much memory."""
        start, stop, _ = columns.indices(self.num_entries)
        rows = np.empty((len(self), stop - start), np.float32)
        with (self.folder / ENTRIES).open("rb", buffering=0) as file:
            for row in range(len(rows)):
                file.seek(4 * (row * self.num_entries + start))
                file.readinto(rows[row].data)
        return rows

    def add(
        self,
        looks: Sequence[Look],
        energy: Float32[Tensor, "draw layer"],
        entries: Float32[Tensor, "draw entry"],
        sensitivity: Mapping[int, Float32[Tensor, " layer"]],
        *,
        num_passes: int,
    ) -> None:
        """Take in a batch. Its entries go to disk at once; it counts from the next `commit` on.

        Args:
            sensitivity: of some of the looks, by their place in the batch.
            num_passes: backward passes that the energies took.
        """
        with (self.folder / ENTRIES).open("ab") as file:
            file.write(np.ascontiguousarray(entries.numpy(), np.float32).tobytes())
        for place, look in enumerate(looks):
            self.items.append(look.item)
            self.numbers.append(look.number)
            self.visits.append(look.visit)
            self.timesteps.append(look.draw.timestep)
            self._energy.append(energy[place].numpy())
            found = sensitivity.get(place)
            self._sensitivity.append(None if found is None else found.numpy())
        self._passes += [num_passes] + [0] * (len(looks) - 1)

    def cut(self, num_looks: int) -> None:
        """Forget what was measured after so many looks.

        Raises:
            ValueError: sums of gradients are kept, and nothing can be taken out of them.
        """
        num_draws = sum(number < num_looks for number in self.numbers)
        if num_draws < len(self) and self.sums:
            raise ValueError("sums of gradients cannot be cut")
        for rows in (
            self.items,
            self.numbers,
            self.visits,
            self.timesteps,
            self._energy,
            self._sensitivity,
            self._passes,
        ):
            del rows[num_draws:]
        self.num_looks = min(self.num_looks, num_looks)
        os.truncate(self.folder / ENTRIES, 4 * num_draws * self.num_entries)

    def commit(self) -> None:
        """Write down how far the run is."""
        with (self.folder / ENTRIES).open("ab") as file:
            os.fsync(file.fileno())
        rows, values = self.sensitivity
        times = [np.nan if t is None else t for t in self.timesteps]
        write_tensors(
            self.folder / DRAWS,
            {
                "items": torch.tensor(self.items, dtype=torch.int64),
                "numbers": torch.tensor(self.numbers, dtype=torch.int64),
                "visits": torch.tensor(self.visits, dtype=torch.int64),
                "timesteps": torch.tensor(times, dtype=torch.float64),
                "energy": torch.from_numpy(self.energy),
                "sensitivity_rows": torch.from_numpy(rows),
                "sensitivity": torch.from_numpy(values),
                "passes": torch.tensor(self._passes, dtype=torch.int64),
                "num_looks": torch.tensor(self.num_looks),
                **{_SUM + name: values for name, values in self.sums.items()},
            },
            notes=self.notes,
        )

    def _load(self) -> None:
        file = self.folder / DRAWS
        if not file.is_file():
            (self.folder / ENTRIES).write_bytes(b"")
            return
        found, self.notes = _read(file)
        num_draws = len(found["items"])
        entries = self.folder / ENTRIES
        wanted = 4 * num_draws * self.num_entries
        if not entries.is_file() or entries.stat().st_size < wanted:
            raise StoreError(f"{entries} is shorter than {file.name} says", hint=f"remove {self.folder} and start anew")
        os.truncate(entries, wanted)
        self.sums = {name.removeprefix(_SUM): values for name, values in found.items() if name.startswith(_SUM)}
        self.items, self.numbers, self.visits = (found[name].tolist() for name in ("items", "numbers", "visits"))
        self.timesteps = [None if np.isnan(t) else t for t in found["timesteps"].tolist()]
        self._energy = list(found["energy"].numpy())
        measured = dict(zip(found["sensitivity_rows"].tolist(), found["sensitivity"].numpy(), strict=True))
        self._sensitivity = [measured.get(row) for row in range(num_draws)]
        self._passes, self.num_looks = found["passes"].tolist(), int(found["num_looks"])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, notes: Mapping[str, Json]) -> None:
    """Write a file of tensors, whole or not at all."""
    staged = path.with_suffix(".part")
    metadata = {"notes": json.dumps(notes)}
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, staged, metadata=metadata)
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    staged.replace(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Json]]:
    try:
        with safe_open(path, framework="pt") as file:
            notes: dict[str, Json] = json.loads((file.metadata() or {}).get("notes", "{}"))
            return {name: file.get_tensor(name).clone() for name in file.keys()}, notes  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"{path} is damaged: {error}", hint=f"remove {path.parent} and start anew") from error
