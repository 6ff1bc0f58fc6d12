from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from woodshed.cli.doctor import EXTRAS, Finding, diagnosis_lines, installed_version
from woodshed.cli.progress import Pace, PlainObserver, QuietObserver, RichObserver, watcher
from woodshed.cli.show import show
from woodshed.contracts import Failure, Progress, Summary
from woodshed.jobs.report import (
    ArrayFacts,
    DecodeReport,
    DemoClip,
    DemoReport,
    InspectReport,
    PlanReport,
    RecordFacts,
    VerifyReport,
)

HALFWAY = Progress(
    items_total=10, items_done=4, items_failed=1, items_skipped=0,
    audio_total_s=7200.0, audio_done_s=3600.0, audio_now_s=1800.0, elapsed_s=60.0,
)  # fmt: skip
OVER = replace(HALFWAY, items_done=9, audio_done_s=7200.0, audio_now_s=5400.0, elapsed_s=180.0)
SUMMARY = Summary(
    output="my out", num_rows=20, num_done=6, num_failed=14, num_skipped=0, num_pending=0, num_new=6, num_records=9,
    num_silent=2, audio_s=90.0, elapsed_s=3.0, bytes_written=2**20,
    failures=tuple(Failure(id=f"bad-{n:02}.wav", kind="truncated", reason="[half] of it\x1b[31m") for n in range(14)),
    failure_kinds={"truncated": 13, "empty": 1}, notes=("mind the gap",),
)  # fmt: skip
PLAN = PlanReport(
    output="o", num_rows=5, num_planned=3, num_done_before=0, num_duplicates=1, num_unreadable=1, num_records=4,
    num_batches=2, audio_s=100.0, computed_s=105.0, window_samples=1_320_960, rate_hz=44_100, estimated_bytes=3 * 2**20,
    estimated_s=61.0, unreadable=(Failure(id="x.wav", kind="empty", reason="no samples"),),
)  # fmt: skip
VERIFIED = VerifyReport(
    folder="o", num_records=4, num_files=8, source_s=100.0, covered_s=99.0, num_reencoded=2, max_difference=1e-6,
    num_problems=1, problems=(Failure(id="0/1.npy", kind="checksum", reason="differs"),),
)  # fmt: skip
INSPECTED = InspectReport(
    folder="o", layout="stable_audio", model="woodshed-tiny", rate_hz=24_000, hop_samples=480, num_items=2,
    num_records=2, num_failed=0, num_silent=0, audio_s=4.0, size_bytes=2048,
    arrays=(ArrayFacts(name="latents", axes=("latent", "frame"), dtype="float32", shapes="64 x 100..200"),),
    records=(RecordFacts(id="r0", source="a.wav", shape=(64, 100), start_s=0.0, duration_s=2.0, prompt="a bell"),),
)  # fmt: skip
DECODED = DecodeReport(output="d", num_decoded=2, num_failed=0, audio_s=4.0, elapsed_s=1.0, files=("a.wav", "b.wav"))
DEMO = DemoReport(
    output="demo out",
    encoded=replace(SUMMARY, num_failed=0, failures=()),
    verified=replace(VERIFIED, num_problems=0, problems=()),
    clips=(
        DemoClip(
            name="speech", original="a.wav", decoded="b.wav", duration_s=3.0, log_mel_error_db=3.21, si_sdr_db=12.3
        ),
    ),
    elapsed_s=20.0,
)


def shown(report: object) -> str:
    stream = io.StringIO()
    show(report, Console(file=stream))
    return stream.getvalue()


def test_pace_counts_only_this_run() -> None:
    pace = Pace.of(HALFWAY)
    assert (pace.items, pace.audio, pace.speed, pace.left) == ("4/10", "1.00 h of 2.00 h", "30x", "2:00")
    assert pace.line() == "4/10 items, 1.00 h of 2.00 h, 30x real time, 2:00 left, 1 failed"


def test_pace_before_anything_is_done() -> None:
    pace = Pace.of(replace(HALFWAY, audio_now_s=0.0, elapsed_s=0.0))
    assert (pace.speed, pace.left) == ("-", "-")


def test_plain_lines_come_now_and_then_and_at_the_end() -> None:
    stream, now_s = io.StringIO(), [0.0]
    observer = PlainObserver(Console(file=stream), every_s=5.0, now_s=lambda: now_s[0])
    for done, at_s in ((1, 0.0), (2, 1.0), (3, 4.9), (4, 5.0), (5, 6.0)):
        now_s[0] = at_s
        observer.progress(replace(HALFWAY, items_done=done))
    observer.progress(OVER)
    observer.progress(OVER)
    assert [line.split(" items")[0] for line in stream.getvalue().splitlines()] == ["1/10", "4/10", "9/10"]


def test_the_observer_suits_the_stream() -> None:
    assert isinstance(watcher(Console(file=io.StringIO()), is_quiet=False), PlainObserver)
    assert isinstance(watcher(Console(file=io.StringIO()), is_quiet=True), QuietObserver)


def test_bars_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    observer = watcher(Console(file=stream), is_quiet=False)
    assert isinstance(observer, RichObserver)
    with observer:
        observer.progress(replace(HALFWAY, audio_total_s=0.0, audio_done_s=0.0))
        observer.progress(HALFWAY)
        observer.message("a [note]")
    assert "4/10 items" in stream.getvalue()
    assert "a [note]" in stream.getvalue()


def test_summary_tells_the_account_and_what_to_do_next() -> None:
    text = shown(SUMMARY)
    assert "done, but 14 of 20 rows failed" in text
    assert "14 (truncated 13, empty 1)" in text
    assert "bad-09.wav" in text
    assert "bad-10.wav" not in text
    assert "and 4 more" in text
    assert "[half] of it\\x1b[31m" in text
    assert "note: mind the gap" in text
    assert "woodshed verify 'my out'" in text
    assert "--retry-failed" in text


def test_a_stopped_run_says_how_to_go_on() -> None:
    text = shown(replace(SUMMARY, stopped_by="SIGINT", num_pending=3))
    assert "stopped by SIGINT; what is done is kept" in text
    assert "pending" in text
    assert "--retry-failed" not in text


def test_a_clean_run_shows_no_failures() -> None:
    text = shown(replace(SUMMARY, num_failed=0, failures=(), failure_kinds={}))
    assert text.startswith("done\n")
    assert "reason" not in text


def test_plan() -> None:
    text = shown(PLAN)
    for part in ("nothing was written", "3, in 2 batches", "1.7 min (the model sees 1.05x that)", "about 3.0 MiB",
                 "1320960 samples (29.95 s at 44100 Hz)", "about 1:01", "x.wav", "no samples"):  # fmt: skip
        assert part in text
    assert "not known before the first run" in shown(replace(PLAN, estimated_s=None))
    assert "whole files" in shown(replace(PLAN, window_samples=None, audio_s=0.0))


def test_verify_inspect_decode_and_demo() -> None:
    assert "1 problems" in shown(VERIFIED)
    assert "2, largest difference 1e-06" in shown(VERIFIED)
    assert "all is well" in shown(replace(VERIFIED, num_problems=0, problems=()))
    inspected = shown(INSPECTED)
    assert "64 x 100..200" in inspected
    assert "a bell" in inspected
    assert "listen to:\n  a.wav" in shown(DECODED)
    assert "woodshed inspect 'demo out'" in shown(DEMO)
    assert "3.21" in shown(DEMO)


def test_exit_codes_of_reports() -> None:
    assert (PLAN.exit_code, INSPECTED.exit_code, DECODED.exit_code, DEMO.exit_code, VERIFIED.exit_code) == (
        0,
        0,
        0,
        0,
        1,
    )
    assert replace(DECODED, num_failed=1).exit_code == 3
    assert replace(DEMO, verified=VERIFIED).exit_code == 1


def test_reports_as_json() -> None:
    told = replace(VERIFIED, max_difference=float("nan")).to_json()
    assert (told["max_difference"], told["exit_code"]) == (None, 1)
    assert told["problems"] == [{"id": "0/1.npy", "kind": "checksum", "reason": "differs", "line": None}]
    assert DEMO.to_json()["encoded"]["failure_kinds"] == {"truncated": 13, "empty": 1}


def test_doctor_knows_what_is_not_installed() -> None:
    assert installed_version("no-such-package-here") is None
    assert installed_version("pydantic") is not None
    lines = diagnosis_lines([Finding(topic="torch", state="missing", text="not installed", remedy="pip install torch")])
    assert lines == ["!  torch  not installed  (try: pip install torch)"]


def test_doctor_and_the_package_agree_on_extras() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for extra, packages in EXTRAS.items():
        assert {line.split(">")[0] for line in project["optional-dependencies"][extra]} == set(packages)


def test_a_long_folder_is_folded_and_never_cut() -> None:
    folder = "/deep" * 60
    lines = shown(replace(PLAN, output=folder)).splitlines()
    assert max(map(len, lines)) <= 120
    assert folder in "".join(line.strip() for line in lines)
