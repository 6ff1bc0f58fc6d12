"""The documentation is true: its commands parse, its Python runs, its links lead somewhere, and no flag is left out."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.jobs.conftest import GOLDEN, sound
from woodshed.cli.flags import build_parser, read_command_line, settings_from
from woodshed.cli.main import COMMANDS
from woodshed.errors import UsageError
from woodshed.jobs.settings import EncodeSettings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [
    ROOT / "README.md",
    *sorted((ROOT / "docs/guide").glob("*.md")),
    *sorted((ROOT / "docs/coming-from").glob("*.md")),
]

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND_NAMES = [command.name for command in COMMANDS]


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    info: tuple[str, ...]
    code: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text()
    found = [
        Block(page, text.count("\n", 0, match.start()) + 2, tuple(match["info"].split()), match["code"])
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.info and block.info[0] in languages and "no-run" not in block.info]


def command_lines(page: Path) -> list[tuple[str, str]]:
    """Place and text of every `woodshed COMMAND ...` in the page's shell blocks; those of consoles stand behind `$`."""
    found = []
    for block in blocks(page, "sh", "console"):
        mark = "$ " if block.info[0] == "console" else ""
        for line in block.code.replace("\\\n", " ").splitlines():
            for part in line.removeprefix(mark).split("&&") if line.startswith(mark) else ():
                if part.strip().startswith("woodshed"):
                    found.append((block.where, part.strip()))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What CONTRIBUTING.md promises to the blocks; it is the current folder."""
    sounds = {"drums/loop.wav": (3.2, 44_100, 2), "voice/hello.flac": (1.1, 16_000, 1), "rain.ogg": (2.5, 48_000, 2)}
    for seed, (name, (seconds, rate_hz, channels)) in enumerate(sounds.items()):
        path = tmp_path / "my-sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sound(seconds, rate_hz, channels, seed=seed), rate_hz)
        path.with_suffix(".txt").write_text(f"the sound of {path.stem}")
    for name in ("vae", "fsq"):
        for suffix in ("json", "ckpt"):
            shutil.copy(GOLDEN / "models" / f"tiny_{name}.{suffix}", tmp_path / f"{name}.{suffix}")
    shutil.copytree(GOLDEN / "pre_encode_runs" / "tanh_bs1", tmp_path / "their-latents")
    datasets = [{"id": "mine", "path": "my-sounds"}]
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "audio_dir", "datasets": datasets}))
    (tmp_path / "run.yaml").write_text("input: my-sounds\noutput_path: my-latents\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_python_blocks_run_one_after_the_other(page: Path, folder: Path) -> None:
    found = blocks(page, "python")
    assert found, "the page shows no Python; take it out of RUN"
    names: dict[str, Any] = {"__name__": "a_page"}
    torch.manual_seed(0)
    for block in found:
        # Line numbers of the page, so that a traceback leads there.
        code = "\n" * (block.line - 1) + block.code
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_are_understood(page: Path, folder: Path) -> None:
    for where, line in command_lines(page):
        words = shlex.split(line)[1:]
        if words[0] == "doctor":
            assert words[1:] in ([], ["--json"]), where
            continue
        assert words[0] in COMMAND_NAMES, f"{where}: {line}"
        command = next(command for command in COMMANDS if command.name == words[0])
        model = command.settings_model()
        parser = build_parser(
            model, prog=command.name, summary="", examples=(), layered=command.is_layered, watched=command.is_watched
        )
        try:
            settings_from(model, read_command_line(parser, model, words[1:]))
        except UsageError as error:
            pytest.fail(f"{where}: {line}\n{error}")


def test_the_pages_show_command_lines() -> None:
    """The parsing above would pass on pages whose blocks it does not recognise."""
    shown = [line for page in RUN for _, line in command_lines(page)]
    assert {shlex.split(line)[1] for line in shown} >= {"encode", "decode", "inspect", "verify", "demo"}
    assert sum("--model-config" in line for line in shown) >= 4


def test_readme_gives_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert "python -m pip install . && woodshed demo" in lines
    assert "python -m pip install '.[test]' && ./check" in lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{page.name} links to {target}: no such heading"


def test_the_coming_from_page_has_a_row_for_every_flag() -> None:
    page = (ROOT / "docs/coming-from/stable-audio-tools.md").read_text()
    rows = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `--"))
    named = re.findall(r"`(--[a-z-]+)`", rows)
    flags = [EncodeSettings.flag(name) for name in EncodeSettings.model_fields]
    assert sorted(named) == sorted(flags), "rows and flags differ"


def test_exit_codes_page_knows_every_kind_of_failure() -> None:
    """Kinds stand in the code as keyword arguments of errors and bad rows."""
    page = (ROOT / "docs/exit-codes.md").read_text()
    source = ROOT / "src" / "woodshed"
    raised = re.compile(r"(?:Error|BadRow)\((?:[^()]|\([^()]*\))*?\bkind=\"(\w+)\"")
    kinds = {kind for path in source.rglob("*.py") for kind in raised.findall(path.read_text())}
    assert {"truncated", "not_finite", "bad_row", "out_of_memory", "custom_metadata"} <= kinds, "the search works"
    internal = {"config", "dropped"}  # turned into a UsageError; never recorded
    assert not {kind for kind in kinds - internal if f"`{kind}`" not in page}


def test_formats_page_names_every_key_that_is_written(folder: Path) -> None:
    import woodshed

    woodshed.encode(
        "my-sounds", "out", model_config_path="vae.json", ckpt_path="vae.ckpt", latents="moments", sample_size=65_536
    )
    page = (ROOT / "docs/formats.md").read_text()
    described = next(Path("out/0").glob("*.json"))
    keys = set(json.loads(described.read_text()))
    details = json.loads(Path("out/details.json").read_text())
    commit = next(Path("out/.woodshed/commits").glob("*.jsonl")).read_text().splitlines()[0]
    wanted = keys | set(details) - {"spec", "fingerprint"} | {f"spec.{key}" for key in details["spec"]}
    wanted |= {f"fingerprint.{key}" for key in details["fingerprint"]} | set(json.loads(commit)) - {"records"}
    assert not {key for key in wanted if f"`{key}`" not in page}
    names = {path.name for path in Path("out/.woodshed").iterdir()}
    assert not {name for name in names if f"`{name}" not in page}
    assert np.load(described.with_suffix(".npy")).dtype == np.float32
