"""The documentation is true: its commands parse, its Python runs, its links lead somewhere, and no flag is left out."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.datasets.test_datasets_side_step import write_song as write_side_step_song
from tests.encoders.acestep.tiny_acestep import build_acestep, save_upstream
from tests.jobs.conftest import GOLDEN, sound
from tests.jobs.songs_fixtures import SIDECAR, write_song
from tests.jobs.speech_fixtures import shared_models
from tests.jobs.tiny_indextts import LAYER, TEXTS
from woodshed.cli.flags import build_parser, read_command_line, settings_from
from woodshed.cli.main import COMMANDS
from woodshed.errors import UsageError
from woodshed.jobs.analyze_settings import AnalyzeSettings
from woodshed.jobs.settings import EncodeSettings, Settings
from woodshed.jobs.songs_settings import SongsSettings
from woodshed.jobs.speech_pairs_settings import SpeechPairsSettings
from woodshed.jobs.speech_retokenize_settings import SpeechRetokenizeSettings
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.run.plan import TAKEN_BACK

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [
    ROOT / "README.md",
    *sorted((ROOT / "docs/guide").glob("*.md")),
    *sorted((ROOT / "docs/coming-from").glob("*.md")),
]

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMANDS_BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}


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
def speech_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Small models of IndexTTS2. They have no 17 layers, so another one is the default meanwhile."""
    field = SpeechSettings.model_fields["semantic_layer"]
    published, field.default = field.default, LAYER
    SpeechSettings.model_rebuild(force=True)
    yield shared_models(tmp_path_factory)
    field.default = published
    SpeechSettings.model_rebuild(force=True)


def speech_manifest(folder: Path) -> None:
    """`data/manifest.jsonl`: ten utterances of two speakers."""
    rows = []
    (folder / "data/wavs").mkdir(parents=True)
    for number in range(10):
        name = f"wavs/u{number:04d}.wav"
        soundfile.write(folder / "data" / name, sound(0.6 + 0.1 * number, 16_000, 1, seed=number), 16_000)
        text = f"{TEXTS[number % len(TEXTS)]} {number}"
        row = {"id": f"u{number:04d}", "text": text, "audio": name, "speaker": f"s{number % 2}", "language": "en"}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "data/manifest.jsonl").write_text("".join(rows))


@pytest.fixture(scope="session")
def acestep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of ACE-Step, as it is published."""
    return save_upstream(build_acestep(), tmp_path_factory.mktemp("acestep") / "acestep")


def songs(folder: Path) -> None:
    """`my-songs` with sidecars, `dataset.json`, and `for-side-step`, which Side-Step made."""
    for seed, name in enumerate(("album/Raindrops", "live/Raindrops", "sketch")):
        path = write_song(folder / "my-songs" / f"{name}.wav", 0.6 + 0.2 * seed, seed=seed)
        if name != "sketch":
            path.with_suffix(".txt").write_text(SIDECAR)
    samples = [{"audio_path": "my-songs/sketch.wav", "caption": "a sketch", "lyrics": "", "bpm": 90}]
    (folder / "dataset.json").write_text(json.dumps({"metadata": {"name": "mine"}, "samples": samples}))
    (folder / "for-side-step").mkdir()
    for number, num_frames in enumerate((300, 200)):
        write_side_step_song(folder / "for-side-step" / f"song {number}.pt", num_frames=num_frames)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speech_models: Path, acestep: Path) -> Path:
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
    speech_manifest(tmp_path)
    (tmp_path / "checkpoints").symlink_to(speech_models)
    (tmp_path / "acestep").symlink_to(acestep)
    songs(tmp_path)
    (tmp_path / "speech.yaml").write_text("manifest: data/manifest.jsonl\noutput_dir: features\n")
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
        names = [" ".join(words[:2]), words[0]]
        assert any(name in COMMANDS_BY_NAME for name in names), f"{where}: {line}"
        name = next(name for name in names if name in COMMANDS_BY_NAME)
        command = COMMANDS_BY_NAME[name]
        model = command.settings_model()
        parser = build_parser(
            model, prog=command.name, summary="", examples=(), layered=command.is_layered, watched=command.is_watched
        )
        try:
            settings_from(model, read_command_line(parser, model, words[len(name.split()) :]))
        except UsageError as error:
            pytest.fail(f"{where}: {line}\n{error}")


def test_the_pages_show_command_lines() -> None:
    """The parsing above would pass on pages whose blocks it does not recognise."""
    shown = [line for page in RUN for _, line in command_lines(page)]
    assert {shlex.split(line)[1] for line in shown} >= {"encode", "decode", "inspect", "verify", "demo", "speech"}
    assert {word for line in shown for word in shlex.split(line)[2:3]} >= {"demo", "models", "pairs", "retokenize"}
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


@pytest.mark.parametrize(
    ("page", "header", "model"),
    [
        ("stable-audio-tools", "| flag | there | here | |", EncodeSettings),
        ("side-step", "| flag | there | here | |", SongsSettings),
        ("side-step", "`woodshed analyze` has these flags:", AnalyzeSettings),
        ("indextts2", "| flag | there | here | |", SpeechSettings),
        ("indextts2", "`woodshed speech pairs` has the flags", SpeechPairsSettings),
        ("indextts2", "`woodshed speech retokenize` works on", SpeechRetokenizeSettings),
    ],
)
def test_coming_from_pages_have_a_row_for_every_flag(page: str, header: str, model: type[Settings]) -> None:
    """`header` stands once, before its table."""
    _, found, rest = (ROOT / f"docs/coming-from/{page}.md").read_text().partition(header)
    assert found
    assert header not in rest
    table = re.search(r"(?:^\|[^\n]*\n)+", rest.partition("\n")[2], re.MULTILINE)
    assert table is not None
    rows = "\n".join(line.split("|")[1] for line in table.group().splitlines())
    named = re.findall(r"`((?:--)?[a-zA-Z][a-zA-Z0-9-]+)`", rows)
    flags = [name.upper() if name == model.positional else model.flag(name) for name in model.model_fields]
    assert sorted(named) == sorted(flags), "rows and flags differ"


def test_exit_codes_page_knows_every_kind_of_failure() -> None:
    """Kinds stand in the code as keyword arguments of errors and bad rows; a few are arguments without a name."""
    page = (ROOT / "docs/exit-codes.md").read_text()
    source = ROOT / "src" / "woodshed"
    raised = re.compile(r"(?:Error|BadRow)\((?:[^()]|\([^()]*\))*?\bkind=\"(\w+)\"")
    either = re.compile(r"\bkind=\"\w+\" if [^\n]* else \"(\w+)\"")
    texts = [path.read_text() for path in source.rglob("*.py")]
    kinds = {kind for text in texts for kind in (*raised.findall(text), *either.findall(text))}
    assert {"truncated", "not_finite", "bad_row", "out_of_memory", "custom_metadata"} <= kinds, "the search works"
    assert {"no_tokens", "text_too_long", "bad_text", "no_id", "padded_codes", "other_length"} <= kinds, (
        "the search works for speech"
    )
    kinds |= {TAKEN_BACK, "crashed", "duplicate", "no_text", "no_audio", "silent"}
    internal = {"config", "dropped"}  # turned into a UsageError; never recorded
    assert not {kind for kind in kinds - internal if f"`{kind}`" not in page}


def test_exit_codes_page_knows_what_verify_finds() -> None:
    page = (ROOT / "docs/exit-codes.md").read_text().partition("## What `verify` finds")[2].partition("\n## ")[0]
    found = re.compile(r"findings\.add(?:_spoilt|_derived)?\([^,()]*(?:\([^()]*\))?[^,()]*, \"(\w+)\"")
    kinds = {kind for path in (ROOT / "src/woodshed/jobs").glob("*.py") for kind in found.findall(path.read_text())}
    assert {"array", "manifest", "coverage", "source", "reencode", "foreign"} <= kinds, "the search works"
    assert not {kind for kind in kinds if f"`{kind}`" not in page}


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


def test_formats_page_names_every_key_of_songs(folder: Path) -> None:
    import woodshed

    page = (ROOT / "docs/formats.md").read_text()
    made = {"checkpoint_dir": "acestep", "device": "cpu", "estimate": "all"}
    woodshed.prepare_songs("my-songs", "out", normalize="lufs", **made)
    woodshed.prepare_songs("my-songs", "pt", layout="sidestep", **made)
    wanted = set(woodshed.open("out")[0]["info"]) - {"latent_crop_start", "latent_crop_length", "latent_filename"}
    wanted -= {"start_s", "duration_s", "row"}  # what the data set works out of what is stored
    commits = [
        json.loads(line) for path in Path("pt/.woodshed/commits").glob("*") for line in path.read_text().splitlines()
    ]
    facts = next(line["records"][0]["facts"] for line in commits if line.get("records"))
    row = set(woodshed.open("out")[0]["info"]["row"])
    wanted |= {f"row.{key}" for key in row} | {"records[].facts.md5"} & {f"records[].facts.{key}" for key in facts}
    stored = torch.load(next(Path("pt").glob("*.pt")), weights_only=True)
    wanted |= set(stored) | set(stored["metadata"]) | set(json.loads(Path("pt/preprocess_meta.json").read_text()))
    details = json.loads(Path("out/details.json").read_text())
    wanted |= set(details) | {f"fingerprint.{key}" for key in details["fingerprint"]}
    assert {"text_prompt", "row.lufs_before", "target_latents", "checksums", "fingerprint.songs"} <= wanted
    assert not {key for key in wanted if f"`{key}`" not in page}
    names = {path.name for path in Path("out").iterdir()} | {path.name for path in Path("out/.woodshed").iterdir()}
    assert not {name for name in names if name not in page}


def schema_keys(value: Any, *, but: frozenset[str]) -> set[str]:
    """Keys of an object and of the objects in it; below those of `but` stand names of the data."""
    if not isinstance(value, dict):
        return set()
    inner = (schema_keys(part, but=but) for key, part in value.items() if key not in but)
    return set(value).union(*inner)


@pytest.mark.parametrize("target", ["2.0", "both"])
def test_formats_page_names_every_key_of_speech(target: str, folder: Path) -> None:
    import woodshed
    from woodshed.jobs import speech_pairs

    with Path("data/manifest.jsonl").open("a") as manifest:
        manifest.write('{"id": "gone", "text": "Nowhere.", "audio": "nowhere.wav"}\n')
    checkpoints = ("checkpoints/gpt.pth", "checkpoints/2.5/gpt.pth") if target == "both" else ()
    woodshed.speech_features(
        "data/manifest.jsonl", "out", config="checkpoints/config.yaml", gpt_checkpoint=checkpoints, target=target,
        val_ratio=0.5, num_processes=1,
    )  # fmt: skip
    page = (ROOT / "docs/formats.md").read_text()
    wanted: set[str] = set(_first_line(Path("out/failures.jsonl")))
    data = frozenset({"failed", "skipped", "most_rows", "languages", "characters", "fingerprint", "versions"})
    roots = [Path("out/2.0"), Path("out/2.5")] if target == "both" else [Path("out")]
    for root in roots:
        wanted |= set(_first_line(root / "train_manifest.jsonl"))
        wanted |= schema_keys(json.loads((root / "stats.json").read_text()), but=data)
    speech_pairs.run(SpeechPairsSettings(source=roots[0]))
    wanted |= set(_first_line(roots[0] / "gpt_pairs_train.jsonl"))
    commits = next(Path("out/.woodshed/commits").glob("*.jsonl")).read_text().splitlines()
    facts = next(line["records"][0]["facts"] for line in map(json.loads, commits) if line.get("records"))
    wanted |= set(facts["row"]) | {"records[].facts.row", "records[].facts.lengths"}
    assert {"codes_path", "target_codes_path", "p95", "on_both_sides", "reason", "unknown_characters"} <= wanted
    assert not {key for key in wanted if f"`{key}`" not in page and not key.endswith("_25")}
    written = {path.name for root in roots for path in root.iterdir()}
    written |= {path.name for path in Path("out/.woodshed").iterdir()}
    assert not {name for name in written if name not in page}


def _first_line(path: Path) -> dict[str, Any]:
    """The first object of a file of JSON lines."""
    found: dict[str, Any] = json.loads(path.read_text().splitlines()[0])
    return found


def test_formats_page_names_the_13_keys_in_their_order(folder: Path) -> None:
    import woodshed

    woodshed.speech_features("data/manifest.jsonl", "out", config="checkpoints/config.yaml", num_processes=1)
    keys = list(_first_line(Path("out/train_manifest.jsonl")))
    section = (ROOT / "docs/formats.md").read_text().partition("For 2.0, exactly these keys")[2].partition("For 2.5")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert re.findall(r"`(\w+)`", "".join(cells)) == keys
    assert len(keys) == 13
