from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import woodshed
from woodshed.cli.commands import COMMANDS
from woodshed.cli.main import main
from woodshed.contracts import Failure, Observer, Progress, Summary
from woodshed.errors import StoreError
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.settings import EncodeSettings

SOURCES = str(Path(woodshed.__file__).parents[1])
ENCODE = ["encode", "--input", "sounds", "--output-path", "out"]
Job = Callable[..., object]


def summary(**changes: object) -> Summary:
    facts: dict[str, object] = {
        "output": "out", "num_rows": 3, "num_done": 3, "num_failed": 0, "num_skipped": 0, "num_pending": 0,
        "num_new": 3, "num_records": 5, "num_silent": 0, "audio_s": 61.5, "elapsed_s": 2.0, "bytes_written": 4096,
        "failures": (), "failure_kinds": {},
    }  # fmt: skip
    return Summary(**(facts | changes))  # type: ignore[arg-type]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Job], None]:
    """Puts a job of the test's own in the place of one that would load a model."""

    def install(name: str, run: Job) -> None:
        module = types.ModuleType(f"woodshed.jobs.{name}")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"woodshed.jobs.{name}", module)

    return install


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONPATH": SOURCES}
    ).stdout


@pytest.mark.parametrize(
    "code",
    [
        "import woodshed",
        "from woodshed.cli.main import main; main(['--help'])",
        "from woodshed.cli.main import main; main(['encode', '--help'])",
        "from woodshed.cli.main import main; main(['encode', '--batch-size', '0'])",
        "from woodshed.cli.main import main; main(['encode', 'model=woodshed_tiny', 'input=a', 'output_path=b', "
        "'--print-config'])",
        "from woodshed.cli.main import main; main(['analyze', '--help'])",
        "from woodshed.cli.main import main; main(['settings', 'path'])",
        "import woodshed.cli.wizard.menu",
    ],
)
def test_no_torch_is_loaded_before_there_is_work(code: str) -> None:
    loaded = run_python(f"import sys\n{code}\nprint('\\n' + ' '.join(sys.modules))").splitlines()[-1].split()
    assert "woodshed" in loaded
    assert not {"torch", "transformers", "soundfile"} & set(loaded)


def test_help_needs_neither_pydantic_nor_rich() -> None:
    loaded = run_python("import sys\nfrom woodshed.cli.main import main\nmain(['--help'])\nprint(*sys.modules)")
    assert not {"pydantic", "rich", "hydra", "numpy"} & set(loaded.splitlines()[-1].split())


def test_help_is_quick() -> None:
    """The bar is 0.4 s of wall time; CPU time is what a busy machine does not blur."""
    code = (
        "import time\nfrom woodshed.cli.main import main\nmain(['--help'])\nmain(['encode', '--help'])\n"
        "print(time.process_time())"
    )
    assert float(run_python(code).splitlines()[-1]) < 0.4


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command.name} " in shown for command in COMMANDS)
    assert "doctor" in shown


def test_without_a_command_help_is_shown_and_the_exit_code_says_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: woodshed COMMAND" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"woodshed {woodshed.__version__}\n"


def test_wrong_usage_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "--shufle"]) == 2
    shown = capsys.readouterr()
    assert shown.err == "woodshed: error: unknown argument --shufle\n  try: did you mean --shuffle?\n"
    assert shown.out == ""


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encod"]) == 2
    assert "did you mean woodshed encode?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["--yes analyze -d x", "-y fisher -d x", "--plain -y analyze -d x", "analyze -d x --yes", "fisher -y -d x"]
)
def test_root_flags_are_passed_on(line: str, job: Callable[[str, Job], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    seen: list[AnalyzeSettings] = []
    job("analyze", lambda settings, *, observer: seen.append(settings) or summary())
    assert main([*line.split(), "--quiet"]) == 0
    assert seen == [AnalyzeSettings(dataset_dir=Path("x"), yes=True)]


def test_yes_needs_a_command_that_asks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--yes", *ENCODE]) == 2
    assert "woodshed encode asks nothing that --yes could answer" in capsys.readouterr().err
    assert main(["-y", "doctor"]) == 2


def test_plain_output_has_no_colour() -> None:
    code = (
        "import os\nfrom woodshed.cli.main import main\nmain(['--plain', '--version'])\nprint(os.environ['NO_COLOR'])"
    )
    assert run_python(code).splitlines()[-1] == "1"


def test_the_wizard_needs_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wizard"]) == 2
    assert "the wizard asks its questions in a terminal, and this is none" in capsys.readouterr().err
    assert main(["wizard", "--fast"]) == 2
    assert main(["wizard", "--help"]) == 0


def test_the_job_gets_the_settings_of_the_line(job: Callable[[str, Job], None]) -> None:
    seen: list[EncodeSettings] = []

    def run(settings: EncodeSettings, *, observer: Observer) -> Summary:
        seen.append(settings)
        observer.message("hello")
        return summary()

    job("encode", run)
    assert main([*ENCODE, "--window", "whole", "seed=3"]) == 0
    assert (seen[0].window, seen[0].seed, seen[0].input) == ("whole", 3, Path("sounds"))


@pytest.mark.parametrize(
    ("changes", "code"),
    [({}, 0), ({"num_failed": 1}, 3), ({"stopped_by": "SIGINT"}, 130), ({"stopped_by": "SIGTERM"}, 143)],
)
def test_exit_codes(job: Callable[[str, Job], None], changes: dict[str, object], code: int) -> None:
    job("encode", lambda settings, *, observer: summary(**changes))
    assert main(ENCODE) == code


def test_json_leaves_stdout_to_the_json(job: Callable[[str, Job], None], capsys: pytest.CaptureFixture[str]) -> None:
    failure = Failure(id="caf\udce9.wav", kind="truncated", reason="[bold]half[/bold]")

    def run(settings: EncodeSettings, *, observer: Observer) -> Summary:
        print("a library's chatter")
        observer.message("working")
        observer.progress(
            Progress(
                items_total=2,
                items_done=1,
                items_failed=0,
                items_skipped=0,
                audio_total_s=2.0,
                audio_done_s=1.0,
                audio_now_s=1.0,
                elapsed_s=1.0,
            )
        )
        return summary(num_failed=1, failures=(failure,), failure_kinds={"truncated": 1}, audio_s=float("inf"))

    job("encode", run)
    assert main([*ENCODE, "--json"]) == 3
    shown = capsys.readouterr()
    told = json.loads(shown.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (told["exit_code"], told["num_rows"], told["audio_s"]) == (3, 3, None)
    assert told["failures"] == [
        {"id": "caf\udce9.wav", "kind": "truncated", "reason": "[bold]half[/bold]", "line": None}
    ]
    assert "a library's chatter\nworking\n" in shown.err
    assert "1/2 items" in shown.err


def test_quiet_shows_nothing(job: Callable[[str, Job], None], capsys: pytest.CaptureFixture[str]) -> None:
    def run(settings: EncodeSettings, *, observer: Observer) -> Summary:
        observer.message("working")
        return summary()

    job("encode", run)
    assert main([*ENCODE, "--quiet"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_an_error_of_ours_is_told_without_a_traceback(
    job: Callable[[str, Job], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(settings: EncodeSettings, *, observer: Observer) -> Summary:
        raise StoreError("out\x1b[31m is locked", hint="wait")

    job("encode", run)
    assert main(ENCODE) == 1
    assert capsys.readouterr().err == "woodshed: error: out\\x1b[31m is locked\n  try: wait\n"
    monkeypatch.setenv("WOODSHED_DEBUG", "1")
    with pytest.raises(StoreError):
        main(ENCODE)


def test_an_error_of_the_system_is_told_too(
    job: Callable[[str, Job], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(settings: EncodeSettings, *, observer: Observer) -> Summary:
        raise PermissionError(13, "Permission denied", "out")

    job("encode", run)
    assert main(ENCODE) == 1
    assert "Permission denied: 'out'" in capsys.readouterr().err


def test_ctrl_c_before_the_engine_listens(job: Callable[[str, Job], None], capsys: pytest.CaptureFixture[str]) -> None:
    def run(settings: EncodeSettings, *, observer: Observer) -> Summary:
        raise KeyboardInterrupt

    job("encode", run)
    assert main(ENCODE) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(job: Callable[[str, Job], None]) -> None:
    def run(settings: EncodeSettings, *, observer: Observer) -> Summary:
        raise ZeroDivisionError

    job("encode", run)
    with pytest.raises(ZeroDivisionError):
        main(ENCODE)


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    shell = f"{sys.executable} -m woodshed encode --input a --output-path b --print-config | true"
    done = subprocess.run(
        ["bash", "-c", shell], check=False, capture_output=True, text=True, env={"PYTHONPATH": SOURCES}
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_print_config_prints_a_settings_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ENCODE, "--compat", "--print-config"]) == 0
    file = tmp_path / "again.yaml"
    file.write_text(capsys.readouterr().out)
    assert "window: first\n" in file.read_text()
    assert main(["encode", "--config", str(file), "--print-config"]) == 0
    assert capsys.readouterr().out == file.read_text()


def test_doctor_takes_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    topics = {finding["topic"] for finding in json.loads(capsys.readouterr().out)}
    assert {"woodshed", "torch", "cpu", "extra codecs"} <= topics
    assert main(["doctor", "--nope"]) == 2
