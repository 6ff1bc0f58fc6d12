"""Prompt/target pairs: two utterances of one speaker, as the IndexTTS2 GPT trainer reads them.

The prompt gives the voice (condition, emotion), the target the text and the codes. A pair depends on the seed, the
target's id and the speaker's rows, and not on their order. Records stay on disk: what is kept in memory of a row is
its id and where it stands.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import NamedTuple

from woodshed.chance import generator
from woodshed.contracts import Failure, Json
from woodshed.errors import UsageError
from woodshed.store.disk import Disk, disk_error

MAX_FAILURES_TOLD = 100
FEATURE_PATHS = ("text_ids_path", "codes_path", "condition_path", "emo_vec_path")
_SPEAKER_IN_NAME = re.compile(r"(?:JA_)?([^_]+)_")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRules:
    """What makes a pair."""

    pairs_per_target: int = 2
    max_per_speaker: int | None = None
    """Most pairs of one speaker."""
    max_pairs: int | None = None
    """Most pairs in all; those with few keep theirs, the others share the rest evenly."""
    min_text_len: int = 1
    min_code_len: int = 1
    seed: int = 2025
    speaker_from_name: bool = False
    """Take the speaker from the name of the sound where a row has none."""
    with_language: bool = True
    """Add the key `language`, which the original does not write."""


class Row(NamedTuple):
    """Where a row of a `FeatureTable` stands, and what it may be."""

    id: str
    table: FeatureTable
    offset_bytes: int
    num_bytes: int
    can_be_target: bool
    can_be_prompt: bool


class FeatureTable:
    """The rows of a feature manifest by speaker; the records themselves are read when asked for.

    Args:
        path: a manifest with the 13 keys of the original, as `woodshed speech` writes it.

    Raises:
        UsageError: when the file cannot be read.
    """

    def __init__(self, path: Path, rules: PairRules) -> None:
        self.path = path
        self.num_rows = 0
        self.speakers: dict[str, list[Row]] = defaultdict(list)
        self.not_targets: Counter[str] = Counter()
        """Why rows can be no targets: `bad_row`, `duplicate`, `no_features`, `no_speaker` or `too_short`."""
        self.failures: list[Failure] = []
        """The first lines that are no rows."""
        self._rules = rules
        self._ids: set[str] = set()
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UsageError(f"the manifest {path} cannot be read: {error.strerror}") from error
        offset_bytes = 0
        for number, line in enumerate(self._file, start=1):
            if line.strip():
                self._add(line, number, offset_bytes)
            offset_bytes += len(line)
        self._ids.clear()

    def __enter__(self) -> FeatureTable:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def _add(self, line: bytes, number: int, offset_bytes: int) -> None:
        self.num_rows += 1
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            self._refuse(number, f"is not valid JSON: {error}")
            return
        if not isinstance(record, dict) or not isinstance(record.get("id"), str):
            self._refuse(number, "has no `id`")
            return
        row_id = record["id"]
        if row_id in self._ids:
            self.not_targets["duplicate"] += 1
            return
        self._ids.add(row_id)
        speaker = _speaker(record, from_name=self._rules.speaker_from_name)
        reason = self._why_no_target(record, speaker)
        if reason is not None:
            self.not_targets[reason] += 1
        if speaker is not None:
            can_be_prompt = _has(record, "condition_path", "emo_vec_path")
            row = Row(row_id, self, offset_bytes, len(line), reason is None, can_be_prompt)
            self.speakers[speaker].append(row)

    def _refuse(self, number: int, what: str) -> None:
        self.not_targets["bad_row"] += 1
        if len(self.failures) < MAX_FAILURES_TOLD:
            name = self.path.name
            reason = f"line {number} of {name} {what}"
            self.failures.append(Failure(id=f"{name}:{number}", kind="bad_row", reason=reason, line=number))

    def _why_no_target(self, record: Mapping[str, Json], speaker: str | None) -> str | None:
        if not _has(record, "text_ids_path", "codes_path"):
            return "no_features"
        if speaker is None:
            return "no_speaker"
        lengths = (
            (record.get("text_len"), self._rules.min_text_len),
            (record.get("code_len"), self._rules.min_code_len),
        )
        is_long = all(isinstance(length, int) and length >= least for length, least in lengths)
        return None if is_long else "too_short"

    def record(self, row: Row) -> dict[str, Json]:
        """The record of one of the rows."""
        record: dict[str, Json] = json.loads(os.pread(self._file.fileno(), row.num_bytes, row.offset_bytes))
        return record


def _has(record: Mapping[str, Json], *columns: str) -> bool:
    return all(isinstance(record.get(column), str) and record[column] for column in columns)


def _speaker(record: Mapping[str, Json], *, from_name: bool) -> str | None:
    speaker = record.get("speaker")
    if speaker is not None and str(speaker).strip():
        return str(speaker)
    return speaker_from_name(str(record.get("audio_path") or "")) if from_name else None


def speaker_from_name(audio_path: str) -> str | None:
    """The speaker that a file name begins with, as in `<speaker>_0001.wav` or `JA_<speaker>_0001.wav`.

    >>> speaker_from_name("wavs/JA_abc_W1.wav"), speaker_from_name("anna_1.wav"), speaker_from_name("plain.wav")
    ('abc', 'anna', None)
    """
    found = _SPEAKER_IN_NAME.match(PurePosixPath(audio_path).stem)
    return found[1] if found else None


class Pair(NamedTuple):
    """One planned pair."""

    speaker: str
    target: Row
    prompt: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlan:
    """The pairs of one manifest. `num_targets` and the counts of `left_out` add up to its rows."""

    pairs: Sequence[Pair]
    """By speaker, then by the target's id."""
    num_rows: int
    num_targets: int
    """Rows that are the target of a pair."""
    speakers: Mapping[str, int] = field(default_factory=dict)
    """Pairs of each speaker that has some."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows that are no target, by reason."""


def plan_pairs(targets: FeatureTable, rules: PairRules, *, more_prompts: FeatureTable | None = None) -> PairPlan:
    """Pair every target with other rows of its speaker.

    Args:
        targets: where targets and prompts come from.
        more_prompts: rows that may be prompts too.
    """
    left_out = Counter(targets.not_targets)
    drawn: dict[str, list[list[Pair]]] = {}
    for speaker in sorted(targets.speakers):
        rows = targets.speakers[speaker]
        more = more_prompts.speakers.get(speaker, []) if more_prompts is not None else []
        by_id = {row.id: row for row in (*more, *rows) if row.can_be_prompt}
        prompts = [by_id[row_id] for row_id in sorted(by_id)]
        ids = [row.id for row in prompts]
        sets = [
            [Pair(speaker, row, prompts[index]) for index in _draw(row.id, ids, rules)]
            for row in sorted(rows)
            if row.can_be_target
        ]
        drawn[speaker] = [pairs for pairs in sets if pairs]
        # Several rows and yet no prompt: they have no condition, as in folders for 2.5.
        reason = "alone" if prompts or len(rows) == 1 else "no_condition"
        left_out[reason] += len(sets) - len(drawn[speaker])
    quotas = _quotas({speaker: sum(map(len, sets)) for speaker, sets in drawn.items()}, rules)
    pairs: list[Pair] = []
    counts: dict[str, int] = {}
    num_targets = 0
    for speaker, sets in drawn.items():
        kept = _thinned(sets, quotas[speaker], rules.seed)
        num_targets += len(kept)
        left_out["over_limit"] += len(sets) - len(kept)
        counts[speaker] = sum(map(len, kept))
        pairs += (pair for of_target in kept for pair in of_target)
    return PairPlan(
        pairs=pairs,
        num_rows=targets.num_rows,
        num_targets=num_targets,
        speakers={speaker: count for speaker, count in counts.items() if count},
        left_out={reason: count for reason, count in sorted(left_out.items()) if count},
    )


def _draw(target_id: str, ids: Sequence[str], rules: PairRules) -> list[int]:
    """Positions of different prompts for one target in the sorted `ids`, itself left out."""
    own = bisect_left(ids, target_id)
    is_there = own < len(ids) and ids[own] == target_id
    num_others = len(ids) - is_there
    if not num_others:
        return []
    size = min(rules.pairs_per_target, num_others)
    others = generator(rules.seed, target_id, "prompts").choice(num_others, size=size, replace=False)
    return [index + (is_there and index >= own) for index in others.tolist()]


def _quotas(counts: Mapping[str, int], rules: PairRules) -> dict[str, int]:
    """How many pairs each speaker may have: all, up to the limits."""
    most = rules.max_per_speaker
    quotas = {speaker: count if most is None else min(count, most) for speaker, count in counts.items()}
    if rules.max_pairs is None or sum(quotas.values()) <= rules.max_pairs:
        return quotas
    room = rules.max_pairs
    ordered = sorted(quotas, key=lambda speaker: (quotas[speaker], speaker))
    for position, speaker in enumerate(ordered):
        # Whoever has least comes first, so what is not used up is shared by the rest.
        quotas[speaker] = min(quotas[speaker], room // (len(ordered) - position))
        room -= quotas[speaker]
    return quotas


def _thinned(sets: list[list[Pair]], quota: int, seed: int) -> list[list[Pair]]:
    """Chosen pairs of one speaker: a first pair for as many targets as possible, then a second, and so on."""
    if sum(map(len, sets)) <= quota:
        return sets
    luck = [generator(seed, pairs[0].target.id, "kept").random() for pairs in sets]
    ranked = sorted((turn, luck[index], index) for index, pairs in enumerate(sets) for turn in range(len(pairs)))
    num_kept = Counter(index for _, _, index in ranked[:quota])
    return [pairs[: num_kept[index]] for index, pairs in enumerate(sets) if num_kept[index]]


def pair_record(
    target: Mapping[str, Json], prompt: Mapping[str, Json], *, speaker: str, with_language: bool
) -> dict[str, Json]:
    """What the trainer reads of a pair, from the records of its two rows."""
    record = {
        "id": f"{target['id']}__{prompt['id']}",
        "speaker": speaker,
        "prompt_id": prompt["id"],
        "prompt_audio_path": prompt.get("audio_path", ""),
        "prompt_condition_path": prompt["condition_path"],
        "prompt_condition_len": prompt.get("condition_len", 0),
        "prompt_emo_vec_path": prompt["emo_vec_path"],
        "prompt_duration": prompt.get("duration"),
        "target_id": target["id"],
        "target_audio_path": target.get("audio_path", ""),
        "target_text": target.get("text", ""),
        "target_text_ids_path": target["text_ids_path"],
        "target_text_len": target["text_len"],
        "target_codes_path": target["codes_path"],
        "target_code_len": target["code_len"],
        "target_emo_vec_path": target.get("emo_vec_path", ""),
    }
    return {**record, "language": target.get("language", "")} if with_language else record


def pair_records(plan: PairPlan, rules: PairRules, *, folder: Path) -> Iterator[dict[str, Json]]:
    """The records of a plan, with feature paths that hold from `folder`, where the pairs will lie."""
    ways: dict[FeatureTable, str] = {}
    target: dict[str, Json] = {}
    for pair in plan.pairs:
        for table in (pair.target.table, pair.prompt.table):
            if table not in ways:
                ways[table] = _way(folder, table.path.parent)
        if target.get("id") != pair.target.id:
            target = _moved(pair.target, ways[pair.target.table])
        prompt = _moved(pair.prompt, ways[pair.prompt.table])
        yield pair_record(target, prompt, speaker=pair.speaker, with_language=rules.with_language)


def _way(start: Path, end: Path) -> str:
    """The way from one folder to another, with a slash at its end; empty where they are one."""
    # Resolved, since `..` behind a link to a folder does not lead back to where the link lies.
    way = PurePosixPath(os.path.relpath(end.resolve(), start.resolve())).as_posix()
    return "" if way == "." else f"{way}/"


def _moved(row: Row, way: str) -> dict[str, Json]:
    record = row.table.record(row)
    for column in FEATURE_PATHS:
        if record.get(column) and not record[column].startswith("/"):
            record[column] = way + record[column]
    return record


def write_pairs(path: Path, records: Iterable[Mapping[str, Json]]) -> None:
    """Write a file of pairs, whole or not at all; its folder is made if need be.

    Raises:
        StoreError: the disk refuses.
    """
    disk = Disk()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error("create the folder", path.parent, error) from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        disk.write(temporary, (json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records))
        disk.sync([temporary])
        disk.rename(temporary, path)
    finally:
        disk.remove(temporary)
    disk.sync([path.parent])


def holds_pairs(path: Path) -> bool:
    """Whether a file is one of pairs, by its first line; an empty one may be."""
    with path.open("rb") as file:
        line = file.readline()
    try:
        record = json.loads(line or b"{}")
    except (ValueError, RecursionError):
        return False
    return not line or (isinstance(record, dict) and {"prompt_condition_path", "target_codes_path"} <= record.keys())
