"""What the commands other than `encode` give back: plain facts, for a program or for whoever shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import PurePath

from pydantic import BaseModel

from woodshed.contracts import Failure, Json, Summary


def to_json(report: object) -> dict[str, Json]:
    """A report (or a `Summary`) as JSON values, with its exit code if it has one.

    JSON knows neither infinity nor NaN: such a number becomes None.
    """
    plain: dict[str, Json] = _plain(report)
    exit_code = getattr(report, "exit_code", None)
    return plain if exit_code is None else {**plain, "exit_code": exit_code}


def _plain(value: object) -> Json:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, PurePath) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What an encode run would do."""

    output: str
    num_rows: int
    num_planned: int
    """Rows that this run would encode."""
    num_done_before: int
    num_duplicates: int
    num_unreadable: int
    num_records: int
    """Records that the planned rows would give."""
    num_batches: int
    audio_s: float
    """Seconds of source audio in the planned rows."""
    computed_s: float
    """Seconds of audio that the model would see, context and padding included."""
    window_samples: int | None
    """None where a file is one record of any length."""
    rate_hz: int
    estimated_bytes: int
    estimated_s: float | None
    """Time the run would take; None where nothing is known of this machine's speed."""
    unreadable: tuple[Failure, ...] = ()
    """The first hundred rows that cannot be read."""
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: a plan is a plan, whatever it found."""
        return 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeReport:
    """What `woodshed decode` made."""

    output: str
    num_decoded: int
    num_failed: int
    audio_s: float
    elapsed_s: float
    files: tuple[str, ...] = ()
    """The first hundred sound files, below `output`."""
    failures: tuple[Failure, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 3 some items failed."""
        return 3 if self.num_failed else 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayFacts:
    """One array that the records of a folder hold."""

    name: str
    axes: tuple[str, ...]
    dtype: str
    shapes: str
    """Smallest to largest, such as `64 x 120..645`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFacts:
    """One record of a folder."""

    id: str
    source: str
    shape: tuple[int, ...]
    start_s: float
    duration_s: float
    prompt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectReport:
    """What lies in a folder."""

    folder: str
    layout: str
    model: str
    rate_hz: int
    hop_samples: int
    num_items: int
    num_records: int
    num_failed: int
    num_silent: int
    audio_s: float
    size_bytes: int
    arrays: tuple[ArrayFacts, ...] = ()
    records: tuple[RecordFacts, ...] = ()
    failure_kinds: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: whatever lies there, it was looked at."""
        return 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFacts:
    """One feature of every row of a speech folder."""

    name: str
    dtype: str
    shapes: str
    """Smallest to largest, such as `34..814` or `32 x 1280`."""
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UtteranceFacts:
    """One row of a speech folder."""

    id: str
    side: str
    """`train` or `val`."""
    speaker: str
    language: str
    duration_s: float
    text_len: int
    code_len: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFacts:
    """What one release of IndexTTS2 finds in a speech folder."""

    release: str
    """`2.0` or `2.5`."""
    manifests: str
    """Where its manifests lie, below the folder."""
    tokenizer: str
    vocab_size: int
    gpt_checkpoint: str
    codes_per_second: float
    num_codes: int
    """Entries of the codebook."""
    lengths: Mapping[str, Mapping[str, float | int] | None]
    """Of `seconds`, `text_len` and `code_len`: `min`, `p5`, `median`, `p95`, `max`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechInspectReport:
    """What lies in a folder of `woodshed speech`: `num_done == num_train + num_val`."""

    folder: str
    command: str
    semantic: str
    """What hears the codes."""
    layout: str
    releases: tuple[ReleaseFacts, ...]
    num_rows: int
    """Rows of the source manifest."""
    num_train: int
    num_val: int
    num_adopted: int
    """Rows that IndexTTS2's own preprocessing had made."""
    hours: float
    size_bytes: int
    split: Mapping[str, Json]
    speakers: Mapping[str, Json]
    """`count`, `rows_without`, and rows by speaker in `most_rows`."""
    languages: Mapping[str, int]
    unknown_tokens: Mapping[str, Json]
    """`count`, `rate`, `rows`, and the `characters`."""
    failed: Mapping[str, int]
    skipped: Mapping[str, int]
    """Rows that gave nothing, by reason."""
    columns: tuple[ColumnFacts, ...]
    absent: tuple[str, ...]
    """Features that a trainer expects and that this folder's models cannot make."""
    models: Mapping[str, str]
    """Digests, shortened."""
    records: tuple[UtteranceFacts, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_done(self) -> int:
        return self.num_train + self.num_val

    @property
    def exit_code(self) -> int:
        """0: whatever lies there, it was looked at."""
        return 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """Whether a folder holds what it says."""

    folder: str
    num_records: int
    num_files: int
    """Files whose checksum was compared."""
    source_s: float
    """Seconds of audio that the freshly probed sources hold."""
    covered_s: float
    """Seconds of them that the records account for."""
    num_reencoded: int
    max_difference: float | None
    """Largest difference between stored and fresh values; None where nothing was encoded again."""
    num_problems: int
    problems: tuple[Failure, ...] = ()
    """The first hundred; `id` names the item or file."""
    num_mended: int = 0
    """How many of the problems `--repair` has mended."""
    num_taken_back: int = 0
    """Items that `--repair` found damaged and took back: the next run makes them again."""
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 all is well, 1 something is not, 3 all is mended and items are to be made again."""
        if self.num_problems > self.num_mended:
            return 1
        return 3 if self.num_taken_back else 0

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoClip:
    """One sound of the demo, and how close its decoded form came."""

    name: str
    original: str
    decoded: str
    duration_s: float
    log_mel_error_db: float
    si_sdr_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What the demo did."""

    output: str
    encoded: Summary
    verified: VerifyReport
    clips: tuple[DemoClip, ...]
    elapsed_s: float

    @property
    def exit_code(self) -> int:
        """That of the first step which did not succeed, or 0."""
        return self.encoded.exit_code or self.verified.exit_code

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechReport:
    """What `woodshed speech` did, or under `dry_run` would do, by data set."""

    datasets: tuple[str, ...]
    """As `language=manifest`."""
    results: tuple[Summary | PlanReport, ...]
    """One for each, up to the one that was interrupted."""

    @property
    def exit_code(self) -> int:
        """130 or 143 interrupted, 3 some rows failed, 0 done."""
        return max((result.exit_code for result in self.results), default=0)

    def to_json(self) -> dict[str, Json]:
        return to_json(self)
