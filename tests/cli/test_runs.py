"""`woodshed encode` on a bad day: signals, a second run, full and read-only disks, a messy folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.jobs.conftest import GOLDEN, sound, tree
from woodshed.cli.main import main
from woodshed.contracts import Summary
from woodshed.jobs import encode
from woodshed.jobs.settings import EncodeSettings
from woodshed.store.reader import open_reader
from woodshed.store.verify import verify_files

ROOT = Path(__file__).parents[2]
NUM_MANY = 30
MODEL = {
    "model_config_path": GOLDEN / "models" / "tiny_vae.json",
    "ckpt_path": GOLDEN / "models" / "tiny_vae.ckpt",
    "device": "cpu",
}
FLAGS = ["--model-config", str(MODEL["model_config_path"]), "--ckpt-path", str(MODEL["ckpt_path"]), "--device", "cpu"]


def flags(source: Path, output: Path, *more: str) -> list[str]:
    return ["encode", "--input", str(source), "--output-path", str(output), "--sample-size", "16384", *FLAGS, *more]


def make_sounds(folder: Path, count: int, *, seconds: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        soundfile.write(folder / f"{number:03d}.wav", sound(seconds, 44_100, 2, seed=number % 7), 44_100)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Sounds that keep a run busy for seconds, and the tree that an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("many")
    source = make_sounds(folder / "sounds", NUM_MANY)
    assert main(flags(source, folder / "out", "--quiet")) == 0
    return source, tree(folder / "out")


class Running:
    """The command in a process of its own, with stdin closed and no terminal anywhere."""

    def __init__(self, words: list[str]) -> None:
        line = shlex.join([sys.executable, "-m", "woodshed", *words])
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {line} <&-"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        )
        self.lines: list[str] = []

    def wait_for(self, start: str) -> None:
        """Until a line on stderr starts like this."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(start):
                return
        raise AssertionError(f"no line starts with {start!r}: {self.lines}")

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout, and all of stderr."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, "\n".join([*self.lines, err])


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], Running]]:
    started: list[Running] = []

    def begin(words: list[str]) -> Running:
        started.append(Running(words))
        return started[-1]

    yield begin
    for running in started:
        running.process.kill()
        running.process.wait()
        for stream in (running.process.stdout, running.process.stderr):
            if stream is not None:
                stream.close()


# ---- signals


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_run_cleanly_and_the_same_command_goes_on(
    many: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    start: Callable[[list[str]], Running],
    name: str,
    code: int,
) -> None:
    source, expected = many
    wants_json = name == "SIGTERM"
    running = start(flags(source, tmp_path / "out", *(["--json"] if wants_json else [])))
    running.wait_for(f"encoding {NUM_MANY} of {NUM_MANY} items")
    os.kill(running.process.pid, getattr(signal, name))
    ended, out, err = running.end()
    assert ended == code, err
    assert "\x1b" not in out + err, "no terminal: plain lines"
    assert f"/{NUM_MANY} items, " in err
    if wants_json:
        report = json.loads(out)
        assert (report["stopped_by"], report["exit_code"]) == ("SIGTERM", 143)
        assert report["num_done"] + report["num_pending"] == report["num_rows"] == NUM_MANY
    else:
        assert "stopped by SIGINT; what is done is kept, and the same command goes on from here" in out
    committed = sum(entry.status == "done" for entry in open_reader(tmp_path / "out").entries())
    assert committed < NUM_MANY
    assert list(verify_files(open_reader(tmp_path / "out"))) == []
    assert main(flags(source, tmp_path / "out", "--quiet")) == 0
    assert tree(tmp_path / "out") == expected


class Signalling(encode.Silent):
    """Sends signals to this process when a message starts as expected."""

    def __init__(self, start: str, *signals: int) -> None:
        self._start, self._signals = start, signals

    def message(self, text: str) -> None:
        if text.startswith(self._start):
            for number in self._signals:
                os.kill(os.getpid(), number)
            time.sleep(0.01)  # Python runs handlers between two steps of this thread


def settings(source: Path, output: Path, **more: Any) -> EncodeSettings:
    given: dict[str, Any] = {"input": source, "output_path": output, "sample_size": 16384} | MODEL | more
    return EncodeSettings.model_validate(given)


def test_a_second_interrupt_ends_the_run_at_once(many: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    source, expected = many
    with pytest.raises(KeyboardInterrupt):
        encode.run(settings(source, tmp_path / "out"), observer=Signalling("encoding", signal.SIGINT, signal.SIGINT))
    assert main(flags(source, tmp_path / "out", "--quiet")) == 0
    assert tree(tmp_path / "out") == expected


def test_a_signal_while_planning_leaves_no_half_of_a_plan(many: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    source, expected = many
    summary = encode.run(settings(source, tmp_path / "out"), observer=Signalling("planning", signal.SIGTERM))
    assert isinstance(summary, Summary)
    assert (summary.stopped_by, summary.exit_code, summary.num_done) == ("SIGTERM", 143, 0)
    assert list((tmp_path / "out" / ".woodshed" / "plan").iterdir()) == []
    assert main(flags(source, tmp_path / "out", "--quiet")) == 0
    assert tree(tmp_path / "out") == expected


def test_json_is_one_document_and_quiet_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = make_sounds(tmp_path / "sounds", 2)
    assert main(flags(source, tmp_path / "out", "--json")) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["num_done"], report["exit_code"], report["stopped_by"]) == (2, 0, None)
    assert main(flags(source, tmp_path / "quiet", "--quiet")) == 0
    assert capfd.readouterr() == ("", "")


# ---- two runs


def test_a_second_run_is_refused_until_the_first_is_dead(
    many: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    start: Callable[[list[str]], Running],
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, expected = many
    running = start(flags(source, tmp_path / "out"))
    running.wait_for(f"encoding {NUM_MANY} of {NUM_MANY} items")
    os.kill(running.process.pid, signal.SIGSTOP)
    assert main(flags(source, tmp_path / "out", "--quiet")) == 1
    error = capfd.readouterr().err
    assert f"another run is writing to {tmp_path / 'out'}: process {running.process.pid} on {socket.gethostname()}" in (
        error
    )
    assert "try: wait for it or stop it, or choose another output folder" in error
    os.kill(running.process.pid, signal.SIGKILL)
    running.end()
    assert main(flags(source, tmp_path / "out", "--quiet")) == 0
    assert tree(tmp_path / "out") == expected


# ---- disks


def mount(*words: str) -> None:
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a file system to fill")
    done = subprocess.run(["mount", *words], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=250k", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("layout", ["stable_audio", "shards"])
def test_a_full_disk_loses_nothing_and_the_run_goes_on(
    tmp_path: Path, small_disk: Path, capfd: pytest.CaptureFixture[str], layout: str
) -> None:
    source = make_sounds(tmp_path / "sounds", 30)
    more = ["--quiet", "--layout", layout]
    assert main(flags(source, tmp_path / "out", *more)) == 0
    assert main(flags(source, small_disk / "out", *more)) == 1
    error = capfd.readouterr().err
    assert f"woodshed: error: cannot write {small_disk / 'out'}" in error
    assert "No space left on device" in error
    assert "free some space and run the same command again: what is committed is kept" in error
    assert list(verify_files(open_reader(small_disk / "out"))) == []
    mount("-o", "remount,size=40m", str(small_disk))
    assert main(flags(source, small_disk / "out", *more)) == 0
    assert tree(small_disk / "out") == tree(tmp_path / "out")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only, for root, too."""
    mounted: list[Path] = []

    def protect(folder: Path) -> None:
        if os.geteuid() != 0:
            folder.chmod(0o555)
            return
        mount("--bind", str(folder), str(folder))
        mounted.append(folder)
        mount("-o", "remount,ro,bind", str(folder))

    yield protect
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_read_only_folders_are_refused_with_a_clear_message(
    tmp_path: Path, read_only: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    source = make_sounds(tmp_path / "sounds", 2)
    parent = tmp_path / "parent"
    assert main(flags(source, parent / "out", "--quiet")) == 0
    soundfile.write(source / "new.wav", sound(0.3, 44_100, 2), 44_100)
    before = tree(parent / "out")
    read_only(parent)
    for name, what in (("out", "lock"), ("other", "cannot create the folder")):
        assert main(flags(source, parent / name, "--quiet")) == 1
        error = capfd.readouterr().err
        assert what in error
        assert str(parent / name) in error
        assert "Read-only file system" in error or "Permission denied" in error
        assert "try: " in error
    assert tree(parent / "out") == before


def test_places_that_cannot_be_an_output_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = make_sounds(tmp_path / "sounds", 2)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.doc").write_text("precious")
    for output, code, message in (
        (tmp_path / "file", 1, "a file is in the way"),
        (tmp_path / "file" / "below", 1, "a file is in the way"),
        (tmp_path / "foreign", 1, "is not empty and was not made by Woodshed: it holds thesis.doc"),
        (tmp_path, 2, "the input folder"),
        (source, 2, "the input folder"),
    ):
        assert main(flags(source, output, "--quiet")) == code, output
        error = capfd.readouterr().err
        assert message in error
        assert str(output) in error or str(source) in error
    assert (tmp_path / "file").read_text() == (tmp_path / "foreign" / "thesis.doc").read_text() == "precious"
    assert sorted(path.name for path in source.iterdir()) == ["000.wav", "001.wav"]


def test_an_output_folder_within_the_input_folder_is_no_source(tmp_path: Path) -> None:
    source = make_sounds(tmp_path / "sounds", 2)
    for _ in range(2):
        assert main(flags(source, source / "latents", "--quiet")) == 0
        assert main(["decode", str(source / "latents"), "--quiet"]) == 0
    assert {entry.id for entry in open_reader(source / "latents").entries()} == {"000.wav", "001.wav"}


# ---- what sources can be


def absurd_wav(data_bytes: int) -> bytes:
    """A header that announces so much 8-channel sound, and 96 bytes of it."""
    form = struct.pack("<HHIIHH", 1, 8, 384_000, 384_000 * 32, 32, 32)
    return (
        b"RIFF"
        + struct.pack("<I", 0xFFFFFFF0)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + (b"data" + struct.pack("<I", data_bytes) + bytes(96))
    )


def make_mess(folder: Path) -> dict[str, str]:
    """A folder in which everything is wrong that can be; gives the expected kind of each name, `done` or a failure."""
    make_sounds(folder, 3)
    (folder / "b").mkdir()
    good = (folder / "000.wav").read_bytes()
    expected = {"000.wav": "done", "001.wav": "done", "002.wav": "done"}
    for name, content, kind in (
        ("b/000.wav", good, "done"),
        ("UPPER.WAV", good, "done"),
        ("copy of 000.wav", good, "done"),
        ("caf\udce9.wav", good, "done"),
        ("new\nline.wav", good, "done"),
        ("zero.wav", b"", "empty"),
        ("text.flac", b"not a sound at all", "mislabelled"),
        ("cut.wav", good[: len(good) // 3], "truncated"),
        ("header.wav", good[:44], "truncated"),
        ("absurd.wav", absurd_wav(0x7000_0000), "truncated"),
        ("streamed.wav", absurd_wav(0xFFFF_FFFF), "done"),  # what a program writes that writes to a pipe
        ("noise.mp3", np.random.default_rng(0).bytes(5000), "mislabelled"),
    ):
        (folder / name).write_bytes(content)
        expected[name] = kind
    for name, samples in (
        ("silent.wav", np.zeros((30_000, 2))),
        ("six.wav", sound(0.5, 44_100, 6)),
        ("short.wav", sound(0.02, 44_100, 1)),
        ("one sample.wav", sound(0.02, 44_100, 1)[:1]),
    ):
        soundfile.write(folder / name, samples, 44_100)
        expected[name] = "done"
    for name, value in (("nan.wav", np.nan), ("infinite.wav", np.inf)):
        soundfile.write(folder / name, np.full((5_000, 1), value), 44_100, subtype="FLOAT")
        expected[name] = "not_finite"
    os.mkfifo(folder / "pipe.wav")
    os.mkfifo(folder / "002.txt")
    expected |= {"pipe.wav": "not_a_file", "002.wav": "bad_sidecar"}
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # the name of a socket has 108 bytes at most
        try:
            listener.bind("socket.wav")
        finally:
            os.chdir(here)
    expected["socket.wav"] = "not_a_file"
    (folder / "nowhere.wav").symlink_to(folder / "gone.wav")
    expected["nowhere.wav"] = "missing"
    (folder / "folder.wav").mkdir()
    (folder / "notes.doc").write_text("no sound, no row")
    return expected


def check_account(output: Path, expected: dict[str, str], report: dict[str, Any]) -> None:
    """Every row once: in the report, in the log, and on the disk."""
    entries = list(open_reader(output).entries())
    assert Counter(entry.id for entry in entries) == Counter(list(expected))
    for entry in entries:
        wanted = expected[entry.id]
        assert entry.status == ("done" if wanted == "done" else "failed"), (entry.id, entry.reason)
        assert entry.kind == ("" if wanted == "done" else wanted), (entry.id, entry.reason)
        assert (entry.status == "done") == (entry.reason == "")
        assert len(entry.reason) > 15 or entry.status == "done"
    num_done = sum(kind == "done" for kind in expected.values())
    assert (report["num_rows"], report["num_done"]) == (len(expected), num_done)
    assert (report["num_failed"], report["num_skipped"], report["num_pending"]) == (len(expected) - num_done, 0, 0)
    stored = Counter(json.loads(path.read_text())["relpath"] for path in output.glob("0/*.json"))
    assert set(stored) == {name for name, kind in expected.items() if kind == "done"}
    records = Counter(entry.id for entry in entries for _ in entry.records)
    assert stored == records
    assert len(list(output.glob("0/*.npy"))) == records.total() == report["num_records"]


def test_a_messy_folder_is_accounted_for_row_by_row(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "mess"
    expected = make_mess(source)
    for _ in range(2):
        assert main(flags(source, tmp_path / "out", "--json")) == 3
        report = json.loads(capfd.readouterr().out)
        check_account(tmp_path / "out", expected, report)
    assert report["num_new"] == 0
    assert main(["inspect", str(tmp_path / "out"), "--json"]) == 0
    inspected = json.loads(capfd.readouterr().out)
    assert inspected["num_items"] == report["num_done"]
    assert inspected["num_failed"] == report["num_failed"]
    assert inspected["num_silent"] == report["num_silent"] == 3
    assert main(["verify", str(tmp_path / "out"), "--json", "--reencode", "3"]) == 0
    verified = json.loads(capfd.readouterr().out)
    assert verified["num_problems"] == 0
    assert verified["num_records"] == report["num_records"]
    assert main(flags(source, tmp_path / "plain")) == 3
    out = capfd.readouterr().out
    assert f"done, but {report['num_failed']} of {len(expected)} rows failed" in out
    assert "--retry-failed" in out


def test_a_manifest_with_repeated_and_useless_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = make_sounds(tmp_path / "sounds", 2)
    rows = [
        '{"path": "sounds/000.wav", "prompt": "a"}',
        '{"path": "sounds/001.wav"}',
        '{"path": "sounds/000.wav", "prompt": "b"}',
        '{"path": "sounds/000.wav", "id": "another id"}',
        '{"path": "sounds/gone.wav"}',
        "not JSON",
        '{"caption": "no path"}',
    ]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("\n".join(rows) + "\n")
    assert main(flags(manifest, tmp_path / "out", "--json")) == 3
    report = json.loads(capfd.readouterr().out)
    account = tuple(report[f"num_{name}"] for name in ("rows", "done", "failed", "skipped", "pending"))
    assert account == (7, 3, 3, 1, 0)
    entries = {entry.id: entry for entry in open_reader(tmp_path / "out").entries()}
    assert len(entries) == 7
    assert [entry.kind for entry in entries.values() if entry.status == "skipped"] == ["duplicate"]
    assert entries["sounds/gone.wav"].kind == "missing"
    # A disk that is not mounted for once must not cost what is done.
    before = tree(tmp_path / "out")
    source.rename(tmp_path / "elsewhere")
    assert main(flags(manifest, tmp_path / "out", "--json")) == 3
    report = json.loads(capfd.readouterr().out)
    assert (report["num_done"], report["num_new"]) == (3, 0)
    assert any("cannot be read now" in note for note in report["notes"])
    assert tree(tmp_path / "out") == before


class Meddler(encode.Silent):
    """Does something to the sources between plan and encode."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        self._meddle = meddle

    def message(self, text: str) -> None:
        if text.startswith("encoding"):
            self._meddle()


def test_sources_that_change_under_the_run(tmp_path: Path) -> None:
    source = make_sounds(tmp_path / "sounds", 6)

    def meddle() -> None:
        (source / "000.wav").unlink()
        (source / "001.wav").write_bytes(b"")
        soundfile.write(source / "002.wav", sound(0.4, 44_100, 2), 44_100)
        soundfile.write(source / "003.wav", sound(1.0, 44_100, 2, seed=50), 44_100)
        (source / "004.wav").unlink()
        os.mkfifo(source / "004.wav")

    summary = encode.run(settings(source, tmp_path / "out"), observer=Meddler(meddle))
    assert isinstance(summary, Summary)
    assert (summary.num_rows, summary.num_done, summary.num_failed) == (6, 2, 4)
    kinds = {failure.id: failure.kind for failure in summary.failures}
    assert kinds == {"000.wav": "missing", "001.wav": "empty", "002.wav": "changed", "004.wav": "unreadable"}
    again = encode.run(settings(source, tmp_path / "out"), observer=encode.Silent())
    assert isinstance(again, Summary)
    assert (again.num_rows, again.num_done, again.num_failed) == (5, 3, 2), "a source that is there again is done again"
    entry = open_reader(tmp_path / "out").entry("003.wav")
    assert entry is not None
    main(flags(source, tmp_path / "fresh", "--quiet"))
    fresh = open_reader(tmp_path / "fresh").entry("003.wav")
    assert fresh is not None
    one, other = (
        open_reader(tmp_path / name).arrays(own.records[0])["latents"]
        for name, own in (("out", entry), ("fresh", fresh))
    )
    np.testing.assert_allclose(one, other, atol=1e-5, err_msg="what is stored is not what lies there now")


def test_commands_that_need_no_extra_load_without_one() -> None:
    code = (
        "import sys\n"
        "for name in ('sentencepiece', 'tiktoken', 'wetext', 'huggingface_hub', 'transformers', 'av'):\n"
        "    sys.modules[name] = None\n"
        "from importlib import import_module\n"
        "for job in ('encode', 'decode', 'inspect', 'verify', 'demo', 'speech'):\n"
        "    import_module(f'woodshed.jobs.{job}')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
