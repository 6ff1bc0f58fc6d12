from __future__ import annotations

import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encoders.speech.small_models import CONFIG, FOLDER_FILES, HUB_FILES, write, write_folder, write_hub_cache
from woodshed.encoders.speech.file_digests import file_digest
from woodshed.encoders.speech.model_config import PUBLISHED, read_model_config
from woodshed.encoders.speech.model_files import GivenFiles, ModelFile, ModelFiles, find_model_files
from woodshed.encoders.speech.published_files import Role, Target, wanted_files
from woodshed.errors import ModelError, UsageError

SHARED = ["config", "w2v_bert", "w2v_bert_config", "w2v_stats"]
OF_20 = ["tokenizer_2.0", "gpt_2.0", "codec_50hz"]
OF_25 = ["tokenizer_2.5", "gpt_2.5", "codec_25hz", "campplus"]
ROLES: dict[Target, list[str]] = {
    "2.0": [*SHARED, *OF_20], "2.5": [*SHARED, *OF_25], "both": [*SHARED, *OF_20, *OF_25],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoints folder, no hub cache and no digests of the machine; and no network."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a network call was made")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, no_network)


def file_of(files: ModelFiles, role: Role) -> ModelFile:
    return next(file for file in files.files if file.role == role)


@pytest.mark.parametrize("target", ["2.0", "2.5", "both"])
def test_which_files_a_target_needs_and_where_they_are_published(target: Target) -> None:
    wanted = {one.role: (one.hub_repo, one.hub_file) for one in wanted_files(target)}
    expected = {role: HUB_FILES[role] for role in ROLES[target]}
    if target == "2.5":
        for role in ("config", "w2v_stats"):
            expected[role] = ("IndexTeam/IndexTTS-2.5", expected[role][1])
    assert wanted == expected


@pytest.mark.parametrize("target", ["2.0", "2.5"])
def test_a_checkpoint_folder_holds_everything(target: Target) -> None:
    write_folder(Path("checkpoints"), ROLES[target])
    files = find_model_files(target)
    files.require()
    assert {file.role: str(file.path) for file in files.files} == {
        role: f"checkpoints/{FOLDER_FILES[role]}" for role in ROLES[target]
    }
    assert all(file.state == "ok" and file.source == "folder" and file.problem is None for file in files.files)
    assert files.config.gpt.max_text_tokens == 20


def test_the_hub_cache_holds_everything_and_no_network_call_is_made(tmp_path: Path) -> None:
    write_hub_cache(tmp_path / "hub", ROLES["both"])
    files = find_model_files("both")
    files.require()
    assert {file.source for file in files.files} == {"hub cache"}
    assert all(file.path is not None and file.path.is_file() for file in files.files)
    assert set(files.digests()) == set(ROLES["both"])


def test_a_hub_cache_in_the_checkpoint_folder_is_seen(tmp_path: Path) -> None:
    write_hub_cache(tmp_path / "models" / "hf_cache", ROLES["2.0"])
    files = find_model_files("2.0", GivenFiles(config=write("config", tmp_path / "models" / "config.yaml")))
    files.require()
    assert file_of(files, "gpt_2.0").source == "hub cache"


def test_what_is_given_comes_first_then_the_folder_then_the_hub(tmp_path: Path) -> None:
    write_hub_cache(tmp_path / "hub", ROLES["2.0"])
    assert file_of(find_model_files("2.0"), "gpt_2.0").source == "hub cache"
    write_folder(Path("checkpoints"), ROLES["2.0"])
    assert file_of(find_model_files("2.0"), "gpt_2.0").source == "folder"
    mine = write("gpt_2.0", tmp_path / "mine" / "tuned.pth")
    found = find_model_files("2.0", GivenFiles(gpt_checkpoints=(mine,)))
    assert (file_of(found, "gpt_2.0").path, file_of(found, "gpt_2.0").source) == (mine, "given")


def test_both_targets_find_their_own_gpt_under_one_name(tmp_path: Path) -> None:
    write_folder(Path("checkpoints"), ROLES["2.0"])
    write_hub_cache(tmp_path / "hub", OF_25)
    files = find_model_files("both")
    files.require()
    assert file_of(files, "gpt_2.0").source == "folder"
    assert file_of(files, "gpt_2.5").source == "hub cache"


def test_files_given_with_one_flag_are_told_apart_by_content(tmp_path: Path) -> None:
    gpts = (write("gpt_2.5", tmp_path / "a.pth"), write("gpt_2.0", tmp_path / "b.pth"))
    codecs = (write("codec_25hz", tmp_path / "c.pth"), write("codec_50hz", tmp_path / "d.safetensors"))
    words = (write("tokenizer_2.5", tmp_path / "e.tiktoken"), write("tokenizer_2.0", tmp_path / "f.model"))
    files = find_model_files("both", GivenFiles(gpt_checkpoints=gpts, semantic_codecs=codecs, tokenizers=words))
    versions: tuple[tuple[Role, Role, tuple[Path, Path]], ...] = (
        ("gpt_2.0", "gpt_2.5", gpts), ("codec_50hz", "codec_25hz", codecs), ("tokenizer_2.0", "tokenizer_2.5", words),
    )  # fmt: skip
    for old, new, given_paths in versions:
        assert (files.path(new), files.path(old)) == given_paths


def test_a_given_file_of_the_wrong_version_is_not_replaced(tmp_path: Path) -> None:
    write_folder(Path("checkpoints"), ROLES["2.0"])
    path = write("gpt_2.5", tmp_path / "new.pth")
    files = find_model_files("2.0", GivenFiles(gpt_checkpoints=(path,)))
    file = file_of(files, "gpt_2.0")
    assert (file.state, file.family) == ("wrong family", "gpt_2.5")
    with pytest.raises(ModelError, match=r"new\.pth is gpt_2\.5; gpt_2\.0 was expected"):
        files.require()


def test_a_given_file_of_another_kind_is_told(tmp_path: Path) -> None:
    torch.save({"decoder.weight": torch.ones(2)}, tmp_path / "other.pth")
    files = find_model_files("2.0", GivenFiles(gpt_checkpoints=(tmp_path / "other.pth",)))
    assert file_of(files, "gpt_2.0").state == "wrong family"
    with pytest.raises(ModelError, match=r"other\.pth is of no model that is known, judged by its keys; gpt_2\.0 was"):
        files.path("gpt_2.0")


def test_a_file_too_many_is_refused(tmp_path: Path) -> None:
    pair = (write("gpt_2.0", tmp_path / "a.pth"), write("gpt_2.0", tmp_path / "b.pth"))
    with pytest.raises(UsageError, match=r"--gpt-checkpoint .*b\.pth: --target 2\.0 has no use for it beside"):
        find_model_files("2.0", GivenFiles(gpt_checkpoints=pair))
    with pytest.raises(UsageError, match=r"--campplus .*: --target 2\.0 has no use for it"):
        find_model_files("2.0", GivenFiles(campplus=write("campplus", tmp_path / "c.bin")))


def test_w2v_bert_may_be_a_folder_and_brings_its_own_config(tmp_path: Path) -> None:
    write_hub_cache(tmp_path / "hub", SHARED)
    weights = write("w2v_bert", tmp_path / "w" / "model.safetensors")
    for named in (weights, weights.parent):
        files = find_model_files("2.0", GivenFiles(w2v_bert=named))
        assert files.path("w2v_bert") == weights
        assert files.found("w2v_bert_config") is None
    beside = write("w2v_bert_config", tmp_path / "w" / "config.json")
    assert find_model_files("2.0", GivenFiles(w2v_bert=weights)).found("w2v_bert_config") == beside


def test_a_missing_file_is_named_with_every_place_and_its_command(tmp_path: Path) -> None:
    files = find_model_files("2.0", GivenFiles(config=write("config", tmp_path / "m" / "config.yaml")))
    with pytest.raises(ModelError) as caught:
        files.path("codec_50hz")
    text = str(caught.value)
    for part in (
        "semantic codec, 50 Hz (codec_50hz) is missing: semantic_codec/model.safetensors",
        str(tmp_path / "m" / "hf_cache" / "semantic_codec_model.safetensors"),
        str(tmp_path / "m" / "semantic_codec" / "model.safetensors"),
        f"{tmp_path / 'hub'} (amphion/MaskGCT)",
        "hf download amphion/MaskGCT semantic_codec/model.safetensors",
        "woodshed speech models --target 2.0 --download",
    ):
        assert part in text
    with pytest.raises(ModelError, match="5 files that this run needs are missing or cannot be used"):
        files.require()
    assert file_of(files, "w2v_bert_config").state == "absent"


def test_a_given_file_that_does_not_exist_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    write_folder(Path("checkpoints"), ROLES["2.0"])
    files = find_model_files("2.0", GivenFiles(w2v_stats=tmp_path / "nowhere.pt"))
    with pytest.raises(ModelError, match=r"there is no file .*nowhere\.pt, given with --w2v-stats") as caught:
        files.require()
    assert "hf download" not in caught.value.message


def test_a_name_in_the_config_is_not_replaced_by_the_published_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "m", ROLES["2.0"])
    (tmp_path / "m" / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"gpt_checkpoint": "tuned.pth"}))
    given_config = GivenFiles(config=tmp_path / "m" / "config.yaml")
    assert file_of(find_model_files("2.0", given_config), "gpt_2.0").state == "missing"
    tuned = write("gpt_2.0", tmp_path / "m" / "tuned.pth")
    assert find_model_files("2.0", given_config).path("gpt_2.0") == tuned


@pytest.mark.parametrize(
    ("role", "content", "problem"),
    [
        ("gpt_2.0", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("gpt_2.0", b"", "cannot be read"),
        ("codec_50hz", b"noise" * 10, "is no whole safetensors file"),
        ("tokenizer_2.0", b"<html>not found</html>", "is no tokenizer"),
        ("w2v_bert_config", b"[1]", "holds no settings by name"),
        ("w2v_bert_config", b"{", "is not JSON"),
        ("config", b"gpt: [", "is not YAML"),
    ],
)
def test_damaged_files_are_told_and_a_sound_copy_elsewhere_is_taken(
    tmp_path: Path, role: Role, content: bytes, problem: str
) -> None:
    write_folder(Path("checkpoints"), ROLES["2.0"])
    (Path("checkpoints") / FOLDER_FILES[role]).write_bytes(content)
    file = file_of(find_model_files("2.0"), role)
    assert file.state == "damaged"
    assert problem in str(file.problem)
    write_hub_cache(tmp_path / "hub", [role])
    assert file_of(find_model_files("2.0"), role).source == "hub cache"


def test_configs_give_what_they_say_and_published_values_otherwise(tmp_path: Path) -> None:
    config = read_model_config(write("config", tmp_path / "config.yaml"))
    assert (config.version, config.gpt.max_mel_tokens, config.gpt.number_text_tokens) == ("2.0", 40, 12_000)
    assert (config.semantic_codec.codebook_size, config.semantic_codec.codebook_dim) == (32, 8)
    assert (config.stated_gpt, config.stated_codec) == (CONFIG["gpt"], CONFIG["semantic_codec"])
    assert (PUBLISHED.gpt.max_text_tokens, PUBLISHED.gpt.max_mel_tokens) == (600, 1815)
    assert (PUBLISHED.gpt.condition_module.num_blocks, PUBLISHED.gpt.emo_condition_module.linear_units) == (6, 1024)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpt": None}, "has no section 'gpt'"),
        ({"gpt": 3}, "has no section but 3 as gpt"),
        ({"gpt": {"max_text_tokens": 20}}, "has no key 'gpt.max_mel_tokens'"),
        ({"gpt": CONFIG["gpt"] | {"max_mel_tokens": "40"}}, "gpt.max_mel_tokens is '40', a whole number was expected"),  # type: ignore[operator]
        ({"gpt": CONFIG["gpt"] | {"max_mel_tokens": True}}, "gpt.max_mel_tokens is True, a whole number"),  # type: ignore[operator]
        ({"gpt": CONFIG["gpt"] | {"max_mel_tokens": 0}}, "gpt.max_mel_tokens is 0, at least 1 was expected"),  # type: ignore[operator]
        ({"gpt": CONFIG["gpt"] | {"stop_mel_token": -1}}, "gpt.stop_mel_token is -1, which no model has"),  # type: ignore[operator]
        ({"semantic_codec": [1]}, r"has no section but \[1\] as semantic_codec"),
        ({"w2v_stat": 5}, "w2v_stat is 5, text was expected"),
        ({"dataset": {"bpe_model": " "}}, "dataset.bpe_model is empty"),
    ],
)
def test_configs_that_cannot_work(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | change))
    with pytest.raises(ModelError, match=message) as caught:
        read_model_config(tmp_path / "config.yaml")
    assert str(tmp_path / "config.yaml") in caught.value.message


def test_config_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no config .*--config"):
        read_model_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ModelError, match="holds a list, not settings by name"):
        read_model_config(tmp_path / "list.yaml")
    (tmp_path / "code.yaml").write_text("!!python/object/apply:os.mkdir [made]\n")
    with pytest.raises(ModelError, match="is not YAML"):
        read_model_config(tmp_path / "code.yaml")
    assert not Path("made").exists()


def settled(path: Path, content: bytes) -> Path:
    """A file that was last written a while ago."""
    path.write_bytes(content)
    moment_ns = time.time_ns() - 10 * 10**9
    os.utime(path, ns=(moment_ns, moment_ns))
    return path


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "woodshed" / "digests").glob("*"))


def test_a_digest_is_remembered_and_forgotten_with_the_file(tmp_path: Path) -> None:
    path = settled(tmp_path / "gpt.pth", b"one")
    digest = file_digest(path)
    (entry,) = entries(tmp_path)
    # The entry is believed: what it says is given back.
    content = json.loads(entry.read_text())
    entry.write_text(json.dumps(content | {"digest": "xxh3_128:0"}))
    assert file_digest(path) == "xxh3_128:0"
    settled(path, b"two")
    assert file_digest(path) not in (digest, "xxh3_128:0")
    settled(path, b"one")
    assert file_digest(path) == digest
    os.utime(path, ns=(1, 1))
    assert file_digest(path) == digest


def test_same_size_and_modification_time_do_not_fool_it(tmp_path: Path) -> None:
    path = settled(tmp_path / "gpt.pth", b"one")
    times, digest = path.stat(), file_digest(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert file_digest(path) != digest


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "new.pth").write_bytes(b"fresh")
    file_digest(tmp_path / "new.pth")
    assert entries(tmp_path) == []


@given(damage=st.sampled_from([b"", b"{", b"[]", b"null", b"\xff", b'{"for": 1}']))
@settings(max_examples=6, deadline=None)
def test_a_damaged_entry_is_replaced(tmp_path_factory: pytest.TempPathFactory, damage: bytes) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        path = settled(folder / "m.pth", b"content")
        digest = file_digest(path)
        (entry,) = entries(folder)
        whole = entry.read_bytes()
        entry.write_bytes(damage)
        assert file_digest(path) == digest
        assert entry.read_bytes() == whole


def test_many_at_once_agree_and_leave_nothing_behind(tmp_path: Path) -> None:
    paths = [settled(tmp_path / f"{i}.pth", bytes([i]) * 1000) for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(file_digest, paths * 20))
    assert found == found[:4] * 20
    assert len(set(found)) == 4
    assert len(entries(tmp_path)) == 4


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a-file"))
    assert file_digest(settled(tmp_path / "m.pth", b"x")).startswith("xxh3_128:")
    with pytest.raises(ModelError, match="cannot be read"):
        file_digest(tmp_path / "none.pth")


def test_digests_follow_content_alone(tmp_path: Path) -> None:
    write_folder(Path("checkpoints"), ROLES["2.0"])
    before = find_model_files("2.0").digests()
    torch.save({"mean": torch.zeros(16), "var": 2 * torch.ones(16)}, Path("checkpoints") / "wav2vec2bert_stats.pt")
    after = find_model_files("2.0").digests()
    assert [role for role in before if before[role] != after[role]] == ["w2v_stats"]
