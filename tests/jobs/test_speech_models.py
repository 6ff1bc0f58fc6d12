from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.encoders.speech.small_models import GOLDEN, HUB_FILES, write, write_folder, write_hub_cache
from woodshed.cli.flags import build_parser, read_command_line, settings_from
from woodshed.cli.show_speech_models import lines_of
from woodshed.encoders.speech.checkpoint import Family
from woodshed.encoders.speech.model_files import ModelFile
from woodshed.encoders.speech.published_files import Role
from woodshed.encoders.weights import TensorFile
from woodshed.errors import ModelError, UsageError
from woodshed.jobs.speech_models import SpeechModelsReport, check_keys, run
from woodshed.jobs.speech_models_settings import SpeechModelsSettings

OF_25: list[Role] = [
    "config", "w2v_bert", "w2v_bert_config", "w2v_stats", "tokenizer_2.5", "gpt_2.5", "codec_25hz", "campplus",
]  # fmt: skip
LAYOUTS: dict[str, Family] = {
    "gpt_v2": "gpt_2.0", "gpt_v25_campplus": "gpt_2.5", "repcodec_maskgct": "repcodec_50hz",
    "enhanced_codec_v25": "enhanced_25hz", "campplus": "campplus", "w2vbert": "w2v_bert",
}  # fmt: skip
TINY_GPT = Path(__file__).parents[2].parent / "shared" / "golden" / "indextts2" / "unifiedvoice_tiny.safetensors"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def settings(line: str) -> SpeechModelsSettings:
    parser = build_parser(
        SpeechModelsSettings, prog="woodshed speech models", summary="", examples=(), layered=False, watched=False
    )
    return settings_from(SpeechModelsSettings, read_command_line(parser, SpeechModelsSettings, line.split()))


def shown(report: SpeechModelsReport) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(lines_of(report), markup=False, highlight=False, emoji=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def state_of(report: SpeechModelsReport, role: Role) -> str:
    return file_of(report, role).state


def file_of(report: SpeechModelsReport, role: Role) -> ModelFile:
    return next(file for file in report.files if file.role == role)


def full_size(layout: str) -> TensorFile:
    keys = json.loads((GOLDEN / f"layout_{layout}.json").read_text())["keys"]
    shapes = {key: tuple(value[0] if value and isinstance(value[0], list) else value) for key, value in keys.items()}
    return TensorFile(path=Path(layout), shapes=shapes, read=lambda key: torch.empty(shapes[key], device="meta"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_real_size_pass_and_wrong_keys_do_not(layout: str) -> None:
    whole = full_size(layout)
    check_keys(whole, LAYOUTS[layout])
    key = next(key for key in whole.shapes if key.startswith(("emo_layer.", "encoder.", "xvector.")))
    without = {name: shape for name, shape in whole.shapes.items() if name != key}
    larger = {name: (shape[0] + 1, *shape[1:]) if name == key else shape for name, shape in whole.shapes.items()}
    for shapes in (without, larger):
        with pytest.raises(ModelError, match=layout):
            check_keys(TensorFile(path=whole.path, shapes=shapes, read=whole.read), LAYOUTS[layout])


def test_flags_name_files(tmp_path: Path) -> None:
    made = settings("--target both --gpt-checkpoint a.pth b.pth --config m/config.yaml --w2v-bert w --yes")
    assert (made.target, made.gpt_checkpoint, made.yes) == ("both", (Path("a.pth"), Path("b.pth")), True)
    assert (made.config_path, made.w2v_bert, made.download) == (Path("m/config.yaml"), Path("w"), False)
    with pytest.raises(UsageError, match="--target"):
        settings("--target 3")


def test_what_is_missing_is_listed_with_how_to_get_it() -> None:
    report = run(SpeechModelsSettings())
    assert report.exit_code == 1
    text = shown(report)
    assert "5 of 7 files for --target 2.0 are missing or cannot be used" in text
    assert "looked at checkpoints/gpt.pth" in text
    assert "amphion/MaskGCT: CC-BY-NC-4.0 (not for commercial use)" in text
    assert "woodshed speech models --target 2.0 --download" in text
    assert "hf download IndexTeam/IndexTTS-2 gpt.pth" in text
    assert report.to_json()["exit_code"] == 1


def write_sound_20(folder: Path) -> None:
    """A checkpoint folder of 2.0 that passes every check."""
    if not TINY_GPT.is_file():
        pytest.skip("unifiedvoice_tiny.safetensors is not beside this checkout")
    write_folder(folder, ["config", "w2v_bert", "w2v_bert_config", "w2v_stats", "tokenizer_2.0", "codec_50hz"])
    torch.save({"model": load_file(TINY_GPT)}, folder / "gpt.pth")


def test_sound_files_pass_and_the_report_says_where_they_are() -> None:
    write_sound_20(Path("checkpoints"))
    report = run(SpeechModelsSettings())
    assert [(file.role, file.problem) for file in report.files if file.state != "ok"] == []
    assert report.exit_code == 0
    text = shown(report)
    assert "all files for --target 2.0 are there" in text
    assert "checkpoints/hf_cache/semantic_codec_model.safetensors (folder)" in text
    plain = report.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert {file["role"]: file["family"] for file in plain["files"]}["codec_50hz"] == "repcodec_50hz"


@pytest.mark.parametrize(
    ("role", "problem"),
    [
        ("gpt_2.0", "keys"), ("codec_50hz", "does not hold what this model needs"), ("w2v_bert", "w2v-bert"),
        ("w2v_stats", "not finite"), ("tokenizer_2.0", "is no whole SentencePiece model"),
    ],
)  # fmt: skip
def test_files_that_open_but_will_not_do_are_found(role: Role, problem: str) -> None:
    folder = Path("checkpoints")
    write_sound_20(folder)
    path = run(SpeechModelsSettings()).files
    spoilt = next(file.path for file in path if file.role == role)
    assert spoilt is not None
    spoil(role, spoilt)
    report = run(SpeechModelsSettings())
    assert report.exit_code == 1
    assert [file.role for file in report.files if not file.is_fine] == [role]
    told = str(file_of(report, role).problem)
    assert str(spoilt) in told
    assert f"{role}: {told}" in " ".join(shown(report).split())


def spoil(role: Role, path: Path) -> None:
    """Take something away that only a look at every key or value shows."""
    from safetensors.torch import save_file

    match role:
        case "gpt_2.0":
            state = torch.load(path, weights_only=True)
            del state["model"]["emovec_layer.bias"]
            torch.save(state, path)
        case "w2v_stats":
            torch.save({"mean": torch.zeros(16), "var": torch.full((16,), float("nan"))}, path)
        case "tokenizer_2.0":
            path.write_bytes(path.read_bytes()[:5000])
        case _:
            state = load_file(path)
            lost = next(key for key in state if key.startswith(("encoder.0.norm", "encoder.layers.3.ffn1")))
            del state[lost]
            save_file(state, path)


def test_a_download_is_refused_where_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError, match=r"there is no terminal to ask on.*bilibili.*add --yes") as caught:
        run(SpeechModelsSettings(download=True))
    assert caught.value.exit_code == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Heard:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, progress: object) -> None:
        raise AssertionError("nothing to count")


def test_nothing_is_fetched_without_a_yes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard = Heard()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    report = run(SpeechModelsSettings(download=True), observer=heard)
    assert report.notes == ("nothing was downloaded: you did not agree",)
    assert report.downloaded == ()
    assert not (tmp_path / "hub").exists()
    assert any("licence: CC-BY-NC-4.0 (not for commercial use)" in line for line in heard.lines)
    assert heard.lines[-1].endswith("Download? [y/N]")


def test_a_disk_that_is_too_small_is_told_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage())
    with pytest.raises(ModelError, match=r"the download needs 5\.98 GB, and .* has 1\.0 kB free"):
        run(SpeechModelsSettings(download=True, yes=True), observer=Heard())


class Usage:
    free = 1000


class Hub:
    """A small hub: real HTTP, the headers that huggingface_hub reads, and files of a test."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lies: set[str] = set()
        """Paths whose content is not what their digest says."""
        hub = self
        for role, (repo, name) in HUB_FILES.items():
            self.files[f"/{repo}/resolve/main/{name}"] = write(role, folder / role).read_bytes()
        for role in ("config", "w2v_stats"):
            name = HUB_FILES[role][1]
            self.files[f"/IndexTeam/IndexTTS-2.5/resolve/main/{name}"] = (folder / role).read_bytes()

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                path = self.path.split("?")[0]
                hub.requests.append(f"{self.command} {path}")
                commit = hashlib.sha1(b"commit").hexdigest()
                content = hub.files.get(path.replace(f"/resolve/{commit}/", "/resolve/main/"))
                if content is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                digest = hashlib.sha256(content).hexdigest()
                if path in hub.lies:
                    content = content[:-1] + bytes([content[-1] ^ 1])
                self.send_response(200)
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{digest}"')
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if with_body:
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path / "published")
    yield made
    made.server.shutdown()
    made.server.server_close()


def in_another_process(hub: Hub, home: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a user's own process would run: huggingface_hub reads its settings when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join(sys.path), "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


DOWNLOAD = """
import json, sys
from woodshed.jobs.speech_models import run
from woodshed.jobs.speech_models_settings import SpeechModelsSettings
report = run(SpeechModelsSettings(target="2.5", download=True, yes=True))
json.dump(report.to_json(), sys.stdout)
"""


def test_a_download_fills_the_cache_and_nothing_is_called_from_then_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = in_another_process(hub, tmp_path / "home", DOWNLOAD)
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert set(report["downloaded"]) == set(OF_25)
    found = {file["role"]: file for file in report["files"]}
    assert {file["source"] for file in found.values()} == {"hub cache"}
    for role, file in found.items():
        assert Path(file["path"]).is_relative_to(tmp_path / "home")
        assert file["size_bytes"] == len((tmp_path / "published" / role).read_bytes())
    assert "facebook/w2v-bert-2.0/model.safetensors, 416.2 kB, licence: MIT" in first.stderr

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a network call was made")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    again = run(SpeechModelsSettings(target="2.5", download=True, yes=True), observer=Heard())
    assert {file.role: str(file.path) for file in again.files} == {role: file["path"] for role, file in found.items()}


@pytest.mark.slow
def test_content_that_is_not_what_the_hub_announced_is_thrown_away(hub: Hub, tmp_path: Path) -> None:
    hub.files.pop("/funasr/campplus/resolve/main/campplus_cn_common.bin")
    stats = "/IndexTeam/IndexTTS-2.5/resolve/main/wav2vec2bert_stats.pt"
    hub.lies.add(stats)
    result = in_another_process(hub, tmp_path / "home", DOWNLOAD)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    problems = {file["role"]: file["problem"] for file in report["files"] if file["state"] == "missing"}
    assert set(problems) == {"w2v_stats", "campplus"}
    assert "arrived with other content than the hub announced (sha256" in problems["w2v_stats"]
    assert "funasr/campplus/campplus_cn_common.bin could not be downloaded: " in problems["campplus"]
    assert report["exit_code"] == 1
    assert not list((tmp_path / "home").rglob("wav2vec2bert_stats.pt"))


@pytest.mark.slow
def test_a_damaged_copy_in_the_cache_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    write_hub_cache(tmp_path / "home" / "hub", ["w2v_stats"])
    damaged = next((tmp_path / "home").rglob("wav2vec2bert_stats.pt")).resolve()
    damaged.write_bytes(b"half")
    program = DOWNLOAD.replace('target="2.5"', 'target="2.0"')
    result = in_another_process(hub, tmp_path / "home", program)
    assert result.returncode == 0, result.stderr
    file = next(file for file in json.loads(result.stdout)["files"] if file["role"] == "w2v_stats")
    assert (file["state"], file["problem"]) == ("ok", None)
