from __future__ import annotations

import json
from pathlib import Path

import pytest

from woodshed.cli.main import main
from woodshed.errors import UsageError
from woodshed.jobs.user_settings import CONFIG_DIR, UserSettings, load, save, settings_path


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CONFIG_DIR, str(tmp_path / "config"))
    return tmp_path / "config"


def test_nothing_is_remembered_at_first() -> None:
    assert load() == UserSettings()
    assert not settings_path().exists()


def test_what_is_set_is_loaded_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert main(["settings", "set", "checkpoint-dir", str(tmp_path / "checkpoints")]) == 0
    assert main(["settings", "set", "model", "xl-base"]) == 0
    assert load() == UserSettings(checkpoint_dir=str(tmp_path / "checkpoints"), model="xl-base")
    capsys.readouterr()
    assert main(["settings", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["values"] == load().model_dump()
    assert main(["settings", "clear", "model"]) == 0
    assert load().model is None
    assert "(not set)" in capsys.readouterr().out


def test_a_folder_is_remembered_with_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["settings", "set", "checkpoint_dir", "models"]) == 0
    assert load().checkpoint_dir == str(tmp_path / "models")


def test_a_hub_name_stays_as_it_is() -> None:
    assert main(["settings", "set", "checkpoint_dir", "owner/name"]) == 0
    assert load().checkpoint_dir == "owner/name"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("set modle base", "did you mean model?"),
        ("set colour red", "one of checkpoint_dir, model"),
        ("set hf_token abc", "looks like a secret"),
        ("set openai_api_key abc", "looks like a secret"),
        ("set model hf_abcdefghijklmnopqrstuvwxyz", "looks like a secret"),
        ("set checkpoint_dir ./nowhere", "no folder here, and no hub name"),
        ("set model", "too few words"),
        ("clear", "too few words"),
        ("show model", "too many words"),
        ("shwo", "did you mean woodshed settings show?"),
    ],
)
def test_what_is_refused(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", *line.split()]) == 2
    assert said in capsys.readouterr().err
    assert not settings_path().exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"schema_version": 1, "model": "ba', "cannot be read"),
        ("[]", "no schema_version"),
        ('{"model": "base"}', "no schema_version"),
        ('{"schema_version": 2, "model": "base"}', "is of version 2"),
        ('{"schema_version": 1, "model": 3}', "model"),
        ('{"schema_version": 1, "moodel": "base"}', "moodel"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(content: str, said: str) -> None:
    settings_path().parent.mkdir(parents=True)
    settings_path().write_text(content)
    with pytest.raises(UsageError) as caught:
        load()
    assert said in caught.value.message
    assert str(settings_path()) in caught.value.message


def test_the_path_is_told_whatever_the_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    settings_path().parent.mkdir(parents=True)
    settings_path().write_text("no json")
    assert main(["settings", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(settings_path())


def test_saving_again_gives_the_same_bytes() -> None:
    first = save(UserSettings(model="base")).read_bytes()
    assert save(load()).read_bytes() == first
