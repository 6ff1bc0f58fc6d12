"""What `woodshed analyze` does only when it is told to, what it refuses, and what it says on a bad disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_runs import mount
from tests.cli.test_runs import read_only as read_only
from tests.cli.test_runs import small_disk as small_disk
from tests.encoders.acestep.tiny_acestep import build_acestep, save_upstream
from tests.jobs.analyze_fixtures import OWN, analyze, encoded, hidden, settings_for
from woodshed.cli.main import main
from woodshed.errors import UsageError
from woodshed.jobs.analyze import gates
from woodshed.jobs.user_settings import CONFIG_DIR

WORDS = ["analyze", "--backend", OWN["backend"], "--crop-s", "2", "--runs", "1", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded(tmp_path_factory.mktemp("songs"), count=3)


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CONFIG_DIR, str(tmp_path / "config"))
    return tmp_path / "config"


def refused(capfd: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """What a command line that is refused says."""
    assert main(words) == code
    return capfd.readouterr().err


def test_a_map_that_is_there_is_not_written_over(
    latents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "map.json"
    there.write_text("somebody's work")
    error = refused(capfd, *WORDS, "--dataset-dir", str(latents), "--output", str(there))
    assert f"{there} exists" in error
    assert "--yes writes over it, --output puts the map elsewhere" in error
    assert there.read_text() == "somebody's work"
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]
    assert main([*WORDS, "--dataset-dir", str(latents), "--output", str(there), "--yes"]) == 0
    assert json.loads(there.read_text())["version"] == 2


def test_yes_may_stand_before_the_command_and_the_command_has_two_names(latents: Path, tmp_path: Path) -> None:
    there = tmp_path / "map.json"
    there.write_text("somebody's work")
    assert main(["--yes", "fisher", *WORDS[1:], "-d", str(latents), "--output", str(there)]) == 0
    assert json.loads(there.read_text())["version"] == 2


def test_a_turbo_model_needs_consent(tmp_path: Path) -> None:
    """Whatever it is called: the folder's name says nothing, its config does."""
    checkpoint = save_upstream(build_acestep(variant="turbo"), tmp_path / "fine", variant="turbo")
    songs = tmp_path / "songs"
    songs.mkdir()
    asked = settings_for(songs, backend="acestep", checkpoint_dir=str(checkpoint), model="turbo")
    assert [gate.kind for gate in gates(asked)] == ["turbo"]
    for model in ({"model": "turbo"}, {}):
        with pytest.raises(UsageError, match=r"turbo: .*--accept-turbo") as caught:
            analyze(songs, backend="acestep", checkpoint_dir=str(checkpoint), **model)
        assert caught.value.exit_code == 2
    agreed = settings_for(songs, backend="acestep", checkpoint_dir=str(checkpoint), model="turbo", accept_turbo=True)
    assert gates(agreed) == ()


@pytest.mark.parametrize("backend", ["acestep", "stable-audio"])
def test_a_model_without_its_checkpoint_is_asked_for(
    backend: str, latents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [gate.kind for gate in gates(settings_for(latents, backend=backend))] == ["checkpoint"]
    error = refused(capfd, "analyze", "--dataset-dir", str(latents), "--backend", backend)
    assert f"{backend} needs a checkpoint" in error
    assert "woodshed settings set checkpoint_dir" in error


def test_a_checkpoint_that_is_remembered_is_taken(
    latents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is looked for songs, and these are no songs: what is said is about them, and not about the checkpoint."""
    checkpoint = save_upstream(build_acestep(), tmp_path / "acestep")
    assert main(["settings", "set", "checkpoint_dir", str(checkpoint)]) == 0
    assert gates(settings_for(latents, backend="acestep")) == ()
    capfd.readouterr()
    error = refused(capfd, "analyze", "--dataset-dir", str(latents), "--device", "cpu")
    assert "checkpoint" not in error
    assert "latents" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--timestep-focus", "textur"], "--timestep-focus textur is no focus"),
        (["--timestep-focus", "0.3"], "--timestep-focus 0.3 is no focus"),
        (["--timestep-focus", "0.8,0.2"], "--timestep-focus 0.8,0.2 is no focus"),
        (["--rank-min", "96", "--rank-max", "32"], "--rank-min 96 is more than --rank-max 32"),
        (["--rank", "256"], "--rank 256 is not within"),
        (["--budget-mb", "0"], "--budget-mb is 0"),
        (["--budget-mb", "8", "--budget-params", "9"], "two budgets"),
        (["--coverage", "1.5"], "--coverage is 1.5"),
        (["--floors", "mlp"], "--floors mlp is no CATEGORY=SHARE"),
        (["--convergence-patience", "0"], "--convergence-patience is 0"),
        (["--score", "spectrum", "--mean-gradients", "none"], "--score spectrum needs mean gradients"),
        (["--allocator", "sidestep", "--rank-multiple", "4"], "the sidestep rule has a multiple"),
        (["--compare", "a.json", "b.json"], "either data, or a map to allocate from, or two maps"),
        (["--backend", "nosuch"], "there is no base model 'nosuch'"),
        (["--reference", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_what_cannot_work_is_refused(
    words: list[str], said: str, latents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "map.json"
    code = 1 if "nowhere" in words else 2
    error = refused(capfd, *WORDS, "--dataset-dir", str(latents), "--output", str(output), *words, code=code)
    assert said in error
    assert not output.exists()
    assert hidden(tmp_path) == []


def test_a_reference_of_silence_needs_a_model_that_knows_it(
    latents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset-dir", str(latents), "--output", str(tmp_path / "map.json"), "--reference", "silence"]
    assert "does not know how silence is encoded" in refused(capfd, *WORDS, *words)


def test_a_model_of_ones_own_may_know_silence(latents: Path, tmp_path: Path) -> None:
    """As the guide says."""
    (tmp_path / "hushed.py").write_text(
        "from tests.jobs.denoiser import Denoiser\n\n\n"
        "class Hushed(Denoiser):\n"
        "    def silent(self, example):\n"
        "        return 0 * example\n"
    )
    made = analyze(
        latents, backend=f"{tmp_path / 'hushed.py'}:Hushed", reference="silence", output=tmp_path / "map.json"
    ).map
    assert made.woodshed is not None
    assert made.woodshed.reference is not None
    assert made.woodshed.reference.kind == "silence"


def test_a_read_only_folder_is_refused_by_name(
    read_only: Callable[[Path], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    latents = encoded(tmp_path / "there", count=2)
    read_only(latents)
    error = refused(capfd, *WORDS, "--dataset-dir", str(latents), code=1)
    assert str(latents) in error
    assert "--output" in error
    assert main([*WORDS, "--dataset-dir", str(latents), "--output", str(tmp_path / "map.json")]) == 0


@pytest.mark.parametrize("free_bytes", [40_000, 120_000, 210_000])
def test_a_full_disk_is_told_and_the_old_map_stays(
    free_bytes: int, small_disk: Path, latents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of 250 kB; it fills up while draws are measured, when they are committed, or at the end."""
    there = small_disk / "map.json"
    there.write_text("{}")
    (small_disk / "ballast").write_bytes(bytes(245_000 - free_bytes))
    words = [*WORDS, "--dataset-dir", str(latents), "--output", str(there), "--yes"]
    error = refused(capfd, *words, code=1)
    assert "No space left on device" in error or "os error 28" in error
    assert str(small_disk) in error
    assert there.read_text() == "{}"
    (small_disk / "ballast").unlink()
    mount("-o", "remount,size=2m", str(small_disk))
    assert main(words) == 0
    assert main([*words[:-3], "--output", str(tmp_path / "map.json")]) == 0
    assert there.read_bytes() == (tmp_path / "map.json").read_bytes()


def test_a_second_analysis_of_the_same_waits(latents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Their draws would get mixed up. One with another seed is another analysis."""
    script = (
        "import sys, time\n"
        "from woodshed.cli.main import main\n"
        "from woodshed.importance.analysis import Analysis\n"
        "def run(self, **_):\n"
        "    print('here', flush=True)\n"
        "    time.sleep(600)\n"
        "Analysis.run = run\n"
        "main(sys.argv[1:])\n"
    )
    words = [*WORDS, "--dataset-dir", str(latents), "--output", str(tmp_path / "map.json")]
    with subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "here\n"
            error = refused(capfd, *words, code=1)
            assert "another run is writing to" in error
            assert f"process {first.pid}" in error
            assert main([*words, "--seed", "1"]) == 0
        finally:
            first.kill()
    assert main([*words, "--yes"]) == 0
    assert hidden(tmp_path) == []


def test_a_file_in_the_way_of_the_output_folder(
    latents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("precious")
    words = ["--dataset-dir", str(latents), "--output", str(tmp_path / "file" / "map.json")]
    error = refused(capfd, *WORDS, *words, code=1)
    assert str(tmp_path / "file") in error
    assert "--output" in error
    assert (tmp_path / "file").read_text() == "precious"
