"""The nouns (Item, Example, Record, RecordSpec) and the seams (Encoder, Layout, Trainable) that all layers share.

An *item* is one row of a source. An encoder cuts it into *examples* (windows of one shape, or the whole clip), turns
batches of examples into arrays, and joins an item's arrays into one or more *records*. A layout says which files hold
a record. The engine (`woodshed.run`) does everything else: order, threads, memory, failure, resuming.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

Json: TypeAlias = Any
"""What `json` can hold: None, bool, int, float, str, and lists and string-keyed dicts of those."""

Arrays: TypeAlias = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """What a sound file's header announces. Nothing is allocated from it; decoding compares with it."""

    rate_hz: int
    num_channels: int
    num_samples: int
    """Announced length per channel, at `rate_hz`."""
    format: str
    """Container and coding, such as `WAV/PCM_16`."""
    decoder: str
    """Library and version that decodes it, such as `libsndfile-1.2.2`: decoders differ in samples and length."""

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.rate_hz


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row of a source: one clip, with what is known about it."""

    id: str
    """Name within the source, unique and stable: the path below its root, or the manifest's own id.
    May hold surrogate-escaped bytes of a file name that is not UTF-8."""
    path: str
    """Where the sound lies on this machine."""
    relpath: str
    """The path below the source's root, with forward slashes: stays true when data moves."""
    size_bytes: int
    mtime_ns: int
    meta: Mapping[str, Json] = field(default_factory=dict)
    """Caption (`prompt`) and every other column that came with the row; JSON-safe."""
    audio: AudioInfo | None = None
    """Filled by the plan's probe of the header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row of a source that cannot become an item; it is accounted for as a failure (or as skipped)."""

    id: str
    kind: str
    reason: str
    skipped: bool = False
    """True for rows that are left out by rule (a duplicate of an earlier row), not by fault."""
    line: int | None = None
    """Where it stands in its manifest, counted from 1."""
    duplicate_of: str | None = None
    """For a duplicate: the id that an earlier row has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One example that is planned: its shape and cost, known before anything is decoded."""

    key: str
    """Only pieces with equal keys may share a batch: they have one shape (or one padding bucket)."""
    cost_s: float
    """Seconds of audio that computing it costs, context and padding included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What an encoder will do with an item, worked out from the header alone."""

    pieces: tuple[Piece, ...]
    num_records: int


@dataclass(slots=True, kw_only=True)
class Example:
    """One piece, decoded: the arrays that go to the device."""

    item_id: str
    index: int
    """Which piece of its item."""
    arrays: dict[str, np.ndarray]


@dataclass(slots=True, kw_only=True)
class Record:
    """What is stored: named arrays and what a reader must know about them."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Json]
    """At least what `RecordSpec.meta_keys` names; for audio in windows: `start_sample` and `num_samples` (valid
    samples at the model's rate), `num_frames`, `valid_frames`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Axes and type of one array of a record."""

    axes: tuple[str, ...]
    """Such as `("latent", "frame")` or `("codebook", "frame")`; the axis named `frame` is time."""
    dtype: str
    """Numpy name, such as `float32` or `int16`."""
    bytes_per_frame: int
    """Size of one step of the `frame` axis: disk use is estimated from it."""
    bytes_per_record: int = 0
    """Size of what does not grow with time."""


def smallest_integer(num_values: int) -> str:
    """Smallest numpy integer type that holds `0..num_values-1` and that torch supports in full.

    >>> [smallest_integer(size) for size in (256, 1024, 32_768, 65_536)]
    ['uint8', 'int16', 'int16', 'int32']
    """
    return next(name for name in ("uint8", "int16", "int32", "int64") if num_values - 1 <= np.iinfo(name).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSpec:
    """What an encoder makes."""

    kind: str
    """`latents`, `tokens` or `features`: the role of the main array."""
    main: str
    """Name of the main array."""
    arrays: Mapping[str, ArraySpec]
    rate_hz: int
    """Sample rate of the audio that the frames stand for."""
    hop_samples: int
    """Samples per frame at `rate_hz`."""
    audio_channels: int
    codebook_sizes: tuple[int, ...] = ()
    """For tokens: entries of each codebook, in the order of the `codebook` axis."""


@runtime_checkable
class Joiner(Protocol):
    """Puts the parts of one item together. Parts arrive in the order of the pieces."""

    def add(self, part: Arrays) -> list[Record]:
        """Take the next part; give back the records that are now complete, in order."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Turns items into arrays. Knows nothing of output files, memory or progress."""

    @property
    def spec(self) -> RecordSpec: ...

    @property
    def fingerprint(self) -> Mapping[str, Json]:
        """All that changes numbers for every item: weights' digest, config, preprocessing and its version."""
        ...

    def outline(self, item: Item) -> Outline:
        """What this item will cost, from its probed header. Pure. Raises `ItemError` if it cannot be encoded."""
        ...

    def prepare(self, item: Item) -> Iterator[Example]:
        """Decode and cut, on a CPU thread: exactly the outline's pieces, in order. Raises `ItemError`."""
        ...

    def encode(self, batch: Sequence[Example]) -> list[Arrays]:
        """Compute one batch on the device; all pieces have one key. Same order, arrays on the CPU."""
        ...

    def joiner(self, item: Item) -> Joiner: ...


@runtime_checkable
class FillsSeats(Protocol):
    """An encoder that pads a batch to its longest row: whatever has one seat shapes the arithmetic of all."""

    def stand_in(self, item: Item) -> Example:
        """Something of the shape that an item of this length (`item.audio`) has, to be thrown away. Opens no file."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a record stands in the plan: names of output files come from this and from nothing else."""

    item: Item
    digest: str
    """Content digest of the source, `xxh3_128:<hex>`."""
    rank: int
    position: int
    """Running number of the record over the whole plan."""
    index: int
    """Which record of its item."""
    num_records: int


@runtime_checkable
class Layout(Protocol):
    """How committed records lie on disk for the trainer that will read them."""

    name: str

    def files(self, record: Record, place: Place) -> Iterable[tuple[str, bytes]]:
        """The files that hold one record: path below the output folder, and content. Pure."""
        ...

    def facts(self, record: Record, place: Place) -> Mapping[str, Json]:
        """Small facts that the log keeps beside the names of the files: enough to sort and sample records, and to
        write whatever the layout derives from the log, without opening a file. Pure."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """All that chance decides in one look at one example; the same draw serves all layers of a model."""

    seed: int
    """Of the noise: the same seed gives the same noise for the same shape, on every device."""
    timestep: float | None = None
    """How noisy the example is made, from 0 (data) to 1 (noise); None for a loss without noise."""
    mirrored: bool = False
    """The noise with its sign turned: the other half of an antithetic pair."""
    drop_condition: bool = False
    """Look at the example without its condition, as training for classifier-free guidance does now and then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Which member of a family a base model is."""

    name: str
    """Such as `base`, `sft`, `turbo`."""
    fragile: str | None = None
    """Why adapters can spoil this variant, in one sentence for its user; None where nothing is known against it."""


@runtime_checkable
class Trainable(Protocol):
    """A base model as analysis and fine-tuning need it, and no more. What an example is, is the model's own affair."""

    @property
    def variant(self) -> Variant: ...

    @property
    def condition_dropout(self) -> float:
        """Share of training draws that drop the condition; 0 for a model without one."""
        ...

    def layers(self) -> Mapping[str, nn.Module]:
        """The layers that may be adapted, by canonical name, in a fixed order."""
        ...

    def timestep(self, quantile: float) -> float | None:
        """The model's own training distribution of timesteps, by its quantile function: evenly spread quantiles give
        the timesteps that training draws. None for a loss without noise."""
        ...

    def example(self, item: Mapping[str, Any]) -> Any:
        """What `loss` looks at, made of an item of `woodshed.open`, on the model's device."""
        ...

    def loss(self, example: Any, draw: Draw) -> Tensor:
        """The training loss of one example under one draw: a scalar to call `backward` on."""
        ...


@runtime_checkable
class Predicts(Protocol):
    """A `Trainable` whose raw output can be looked at, for what depends on the network and not on the loss."""

    def predict(self, example: Any, draw: Draw) -> Tensor:
        """What the network says of one example under one draw, with its gradient path."""
        ...


@runtime_checkable
class LossOfMany(Protocol):
    """A `Trainable` that can look at several examples at once."""

    def losses(self, examples: Sequence[Any], draws: Sequence[Draw]) -> Tensor:
        """`loss` of each pair, in order: shape (pair,). No neighbour changes a loss."""
        ...


@runtime_checkable
class KnowsSilence(Protocol):
    """A `Trainable` that knows how silence looks to it, for what is measured against silence."""

    def silent(self, example: Any) -> Any:
        """The same example, with silence in place of sound."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is; handed to whoever shows it, several times a second at most."""

    items_total: int
    items_done: int
    """Done in this run or before it."""
    items_failed: int
    items_skipped: int
    audio_total_s: float
    audio_done_s: float
    """Seconds of source audio done in this run or before it."""
    audio_now_s: float
    """Seconds of source audio done by this run."""
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one row gave nothing."""

    id: str
    kind: str
    reason: str
    line: int | None = None
    """Where it stands in its manifest, counted from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The account of a run: `num_done + num_failed + num_skipped == num_rows` unless `stopped_by` is set."""

    output: str
    num_rows: int
    num_done: int
    num_failed: int
    num_skipped: int
    num_pending: int
    """Rows left for a later run: not zero only after an interruption or under a limit."""
    num_new: int
    """Rows finished by this run."""
    num_records: int
    num_silent: int
    audio_s: float
    """Seconds of source audio in all rows that are done."""
    elapsed_s: float
    bytes_written: int
    failures: tuple[Failure, ...]
    """The first hundred; all of them are in the folder's log."""
    failure_kinds: Mapping[str, int]
    stopped_by: str | None = None
    """Name of the signal that ended the run early, such as `SIGINT`."""
    notes: tuple[str, ...] = ()
    """What the user should know, one sentence each."""
    next_steps: tuple[str, ...] = ("woodshed decode {folder} --limit 3",)
    """Commands that are likely to come next; `{folder}` stands for the output."""

    @property
    def exit_code(self) -> int:
        """0 done, 3 some rows failed, 130 or 143 interrupted."""
        if self.stopped_by is not None:
            return {"SIGINT": 130, "SIGTERM": 143}.get(self.stopped_by, 1)
        return 3 if self.num_failed else 0


@runtime_checkable
class Observer(Protocol):
    """Whoever shows progress."""

    def message(self, text: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...
