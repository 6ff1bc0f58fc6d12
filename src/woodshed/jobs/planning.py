"""What a run would do, for `--dry-run` of every command that plans."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from woodshed.contracts import Encoder, Json, RecordSpec
from woodshed.jobs.report import PlanReport
from woodshed.run.plan import estimate_bytes
from woodshed.run.session import Work
from woodshed.store.folder import refuse_other_run
from woodshed.store.log import CommitLog
from woodshed.store.reader import open_reader

MAX_LISTED = 100


def plan_report(
    output: Path,
    work: Work,
    spec: RecordSpec,
    *,
    window_samples: int | None = None,
    padded_samples: int | None = None,
    computed_s_per_s: float | None = None,
    notes: Sequence[str] = (),
) -> PlanReport:
    """The report of a plan.

    Args:
        window_samples: length of a record's window at the model's rate; None where a record is a whole file.
        padded_samples: length that every record is filled up to; None where none is.
        computed_s_per_s: seconds of audio that the model computes in a second; None if not known.
    """
    account = work.account
    planned = [planned for unit in work.units for planned in unit.items]
    return PlanReport(
        output=str(output),
        num_rows=account.num_rows,
        num_planned=len(planned),
        num_done_before=account.num_done,
        num_duplicates=sum(skip.kind == "duplicate" for skip in account.skipped),
        num_unreadable=len(account.failures),
        num_records=work.num_records,
        num_batches=work.num_batches,
        audio_s=work.audio_s,
        computed_s=work.computed_s,
        window_samples=window_samples,
        rate_hz=spec.rate_hz,
        estimated_bytes=estimate_bytes(planned, spec, padded_samples=padded_samples),
        estimated_s=None if computed_s_per_s is None else work.computed_s / computed_s_per_s,
        unreadable=tuple(account.failures[:MAX_LISTED]),
        notes=tuple(notes),
    )


def known_log(output: Path, *, layout: str, fingerprint: Mapping[str, Json]) -> CommitLog:
    """What is committed in a folder that a run would go on with; nothing for a new one. Takes no lock.

    Raises:
        StoreError: another run made it, or its log is damaged.
    """
    if not (output / ".woodshed" / "run.json").exists():
        return CommitLog(output)
    reader = open_reader(output)
    found = {"layout": reader.layout, "fingerprint": dict(reader.fingerprint)}
    refuse_other_run(output, found, {"layout": layout, "fingerprint": fingerprint})
    return reader.log


def measured_speed(encoder: Encoder, work: Work) -> float | None:
    """Seconds of audio that this machine computes in a second, by one piece of the plan that is run twice: the first
    run warms up. None for a plan without work."""
    for unit in work.units:
        for batch in unit.batches:
            planned = unit.items[batch[0][0]]
            example = next(iter(encoder.prepare(planned.item)))
            encoder.encode([example])
            started = time.perf_counter()
            encoder.encode([example])
            return planned.pieces[example.index].cost_s / max(time.perf_counter() - started, 1e-9)
    return None
