"""The files that a speech run needs: where each is found on this machine, and what each holds. No network.

A file is looked for where the user says it is; else beside `config.yaml` and the GPT checkpoint, in the sub-folders
that IndexTTS2's own tools make there; else in the cache of the Hugging Face hub. What is given is never replaced by
something else, and neither is a file that the config names.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from woodshed.encoders.speech.checkpoint import family_of, open_checkpoint
from woodshed.encoders.speech.file_digests import file_digest
from woodshed.encoders.speech.model_config import PUBLISHED, ModelConfig, read_model_config
from woodshed.encoders.speech.published_files import Role, Target, Wanted, wanted_files
from woodshed.errors import ModelError, UsageError, WoodshedError

State = Literal["ok", "missing", "wrong family", "damaged", "absent"]
"""`absent`: not there and not needed, because the published values are known."""
Source = Literal["given", "folder", "hub cache", "nowhere"]

DEFAULT_FOLDER = Path("checkpoints")
"""Where IndexTTS2's own instructions put everything; looked at when no config is given."""
_POINTER = b"version https://git-lfs.github.com/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file that a run needs: found or not."""

    role: Role
    title: str
    state: State
    path: Path | None
    source: Source
    size_bytes: int | None
    """Size of what was found."""
    family: str | None
    """What was found is this; None where nothing was found or it cannot be opened."""
    problem: str | None
    looked_at: tuple[str, ...]
    """Every place that was tried, in order."""
    hub_repo: str
    hub_file: str
    about_bytes: int
    licence: str
    is_fetchable: bool
    """Whether the published file will do: not where the user or the config names another one."""

    @property
    def is_fine(self) -> bool:
        """Whether a run can do with it as it is."""
        return self.state in ("ok", "absent")

    @property
    def fetch(self) -> str:
        """The command that brings the published file into the hub cache."""
        return f"hf download {self.hub_repo} {self.hub_file}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFiles:
    """What the user names; several GPTs, tokenizers or codecs are told apart by their content."""

    config: Path | None = None
    gpt_checkpoints: tuple[Path, ...] = ()
    tokenizers: tuple[Path, ...] = ()
    semantic_codecs: tuple[Path, ...] = ()
    w2v_bert: Path | None = None
    """The weights, or the folder that holds `model.safetensors` and `config.json`."""
    w2v_stats: Path | None = None
    campplus: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """All files of a target."""

    target: Target
    files: tuple[ModelFile, ...]
    config: ModelConfig
    """As found, or the published values."""

    def path(self, role: Role) -> Path:
        """Where a file of the target lies.

        Raises:
            ModelError: it is missing or cannot be used; says where it was looked for and how to fetch it.
        """
        file = self._file(role)
        if file.state != "ok" or file.path is None:
            raise _not_usable((file,), self.target)
        return file.path

    def found(self, role: Role) -> Path | None:
        """Where a file lies that a run can do without; None where it is not there.

        Raises:
            ModelError: it is there, but cannot be used.
        """
        return None if self._file(role).state == "absent" else self.path(role)

    def _file(self, role: Role) -> ModelFile:
        return next(file for file in self.files if file.role == role)

    def require(self) -> None:
        """Refuse to go on while a needed file is missing or unusable.

        Raises:
            ModelError: names each of them, every place looked at, and the commands that fetch them.
        """
        bad = tuple(file for file in self.files if not file.is_fine)
        if bad:
            raise _not_usable(bad, self.target)

    def digests(self) -> dict[Role, str]:
        """Digest of each file's content, for fingerprints; cached between runs.

        Raises:
            ModelError: a file cannot be read.
        """
        return {file.role: file_digest(file.path) for file in self.files if file.state == "ok" and file.path}


def find_model_files(target: Target, given: GivenFiles | None = None, *, hub_cache: Path | None = None) -> ModelFiles:
    """Find the files of a target on this machine; opens each, reads none, and never calls the network.

    Args:
        given: what the user names.
        hub_cache: folder of the hub's cache; unset: where `huggingface_hub` has it (HF_HOME, HF_HUB_CACHE).

    Raises:
        UsageError: a file is given that the target has no use for.
    """
    given = given or GivenFiles()
    wanted = wanted_files(target)
    assigned = _assigned(given, wanted, target)
    folders = _folders(given)
    found: list[ModelFile] = []
    config = PUBLISHED
    # The sizes of given weights are not those of somebody else's config, so theirs can only lie beside them.
    only: dict[Role, Path] = {}
    if "w2v_bert" in assigned:
        only["w2v_bert_config"] = assigned["w2v_bert"].with_name("config.json")
    for one in wanted:
        file = _find(one, assigned.get(one.role), only.get(one.role), folders, hub_cache)
        if one.role == "config" and file.state == "ok" and file.path is not None:
            config = read_model_config(file.path)
            only.update(_named_by(config, target) if file.source != "hub cache" else {})
        found.append(file)
    return ModelFiles(target=target, files=tuple(found), config=config)


def _folders(given: GivenFiles) -> tuple[Path, ...]:
    """Checkpoint folders: that of the config, those of the GPTs, and the usual one where no config is given."""
    of_config = (given.config.parent,) if given.config else ()
    usual = () if given.config else (DEFAULT_FOLDER,)
    return tuple(dict.fromkeys((*of_config, *(path.parent for path in given.gpt_checkpoints), *usual)))


def _named_by(config: ModelConfig, target: Target) -> dict[Role, Path]:
    """Files that a config names otherwise than the published one; they belong to the config's own version."""
    version = config.version if config.version in ("2.0", "2.5") else ("2.5" if target == "2.5" else "2.0")
    names: dict[Role, tuple[str, str]] = {
        "w2v_stats": (config.w2v_stat, PUBLISHED.w2v_stat),
        "gpt_2.5" if version == "2.5" else "gpt_2.0": (config.gpt_checkpoint, PUBLISHED.gpt_checkpoint),
    }
    if version == "2.0":
        names["tokenizer_2.0"] = (config.bpe_model, PUBLISHED.bpe_model)
    home = config.path.parent if config.path else DEFAULT_FOLDER
    return {role: home / name for role, (name, published) in names.items() if name != published}


def _assigned(given: GivenFiles, wanted: tuple[Wanted, ...], target: Target) -> dict[Role, Path]:
    """Which given file is for which role.

    Raises:
        UsageError: two are of one kind, or one is of no use.
    """
    roles = {one.role: one for one in wanted}
    assigned: dict[Role, Path] = {}
    singles: tuple[tuple[Role, Path | None], ...] = (
        ("config", given.config), ("w2v_stats", given.w2v_stats), ("campplus", given.campplus),
    )  # fmt: skip
    assigned |= {role: path for role, path in singles if path is not None}
    if "campplus" in assigned and "campplus" not in roles:
        raise UsageError(
            f"--campplus {given.campplus}: --target {target} has no use for it", hint="leave it out, or --target both"
        )
    if given.w2v_bert is not None:
        is_folder = given.w2v_bert.is_dir()
        assigned["w2v_bert"] = given.w2v_bert / "model.safetensors" if is_folder else given.w2v_bert
    kinds: tuple[tuple[tuple[Role, ...], tuple[Path, ...]], ...] = (
        (("gpt_2.0", "gpt_2.5"), given.gpt_checkpoints),
        (("tokenizer_2.0", "tokenizer_2.5"), given.tokenizers),
        (("codec_50hz", "codec_25hz"), given.semantic_codecs),
    )
    for kind, paths in kinds:
        assigned |= _matched([roles[role] for role in kind if role in roles], paths, target)
    return assigned


def _matched(wanted: list[Wanted], paths: tuple[Path, ...], target: Target) -> dict[Role, Path]:
    """Files given with one flag, each to the role it fits; one that fits none takes what is left."""
    free = list(wanted)
    matched: dict[Role, Path] = {}
    unfit: list[Path] = []
    for path in paths:
        family = _identified(path, wanted[0])[0] if path.is_file() else None
        fitting = next((one for one in free if one.family == family), None)
        if fitting is None:
            unfit.append(path)
        else:
            free.remove(fitting)
            matched[fitting.role] = path
    if len(unfit) > len(free):
        raise UsageError(
            f"{wanted[0].flag} {unfit[-1]}: --target {target} has no use for it beside the others",
            hint="give one file per version: --target both takes one of 2.0 and one of 2.5",
        )
    return matched | {one.role: path for one, path in zip(free, unfit, strict=False)}


def _find(
    wanted: Wanted, given: Path | None, only: Path | None, folders: tuple[Path, ...], hub_cache: Path | None
) -> ModelFile:
    """The first file that is what it should be; else the first that is not, with what is wrong with it."""
    nothing = ModelFile(
        role=wanted.role,
        title=wanted.title,
        state="missing" if wanted.is_needed or given else "absent",
        path=None,
        source="given" if given else "nowhere",
        size_bytes=None,
        family=None,
        problem=None,
        looked_at=(),
        hub_repo=wanted.hub_repo,
        hub_file=wanted.hub_file,
        about_bytes=wanted.about_bytes,
        licence=wanted.licence,
        is_fetchable=given is None and only is None,
    )
    first_bad: ModelFile | None = None
    looked_at: list[str] = []
    for path, source, place in _places(wanted, given, only, folders, hub_cache):
        looked_at.append(place)
        if path is None or not path.is_file():
            continue
        family, problem = _identified(path, wanted)
        state: State = "damaged" if family is None else "ok" if family == wanted.family else "wrong family"
        if state == "wrong family":
            what = "of no model that is known, judged by its keys" if family == "unknown" else family
            problem = f"{path} is {what}; {wanted.family} was expected"
        found = replace(
            nothing, state=state, path=path, source=source, size_bytes=path.stat().st_size, family=family,
            problem=problem,
        )  # fmt: skip
        if state == "ok":
            return replace(found, looked_at=tuple(looked_at))
        first_bad = first_bad or found
    if given and first_bad is None:
        nothing = replace(nothing, problem=f"there is no file {given}, given with {wanted.flag}")
    return replace(first_bad or nothing, looked_at=tuple(looked_at))


def _places(
    wanted: Wanted, given: Path | None, only: Path | None, folders: tuple[Path, ...], hub_cache: Path | None
) -> Iterator[tuple[Path | None, Source, str]]:
    """Every place where a file may lie, in order, with its name for messages.

    Args:
        given: the user's word for it: nothing else will do.
        only: where the config, or a given file beside it, says that it is.
    """
    if given is not None:
        yield given, "given", str(given)
        return
    if only is not None:
        yield only, "folder", str(only)
        return
    for folder in folders:
        for name in wanted.names:
            yield folder / name, "folder", str(folder / name)
    for repo in (wanted.hub_repo, *wanted.other_repos):
        for folder in folders:
            # IndexTTS2's own programs set the hub's cache to this sub-folder.
            yield in_hub_cache(repo, wanted.hub_file, folder / "hf_cache"), "hub cache", f"{folder}/hf_cache ({repo})"
        yield in_hub_cache(repo, wanted.hub_file, hub_cache), "hub cache", f"{_hub_cache_name(hub_cache)} ({repo})"


def in_hub_cache(repo: str, file: str, cache: Path | None = None) -> Path | None:
    """A hub file that lies in a cache of the hub; never calls the network. None too where huggingface_hub is absent."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(repo, file, cache_dir=cache)
    return Path(found) if isinstance(found, str) else None


def _hub_cache_name(cache: Path | None) -> str:
    if cache is not None:
        return str(cache)
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return "the hub cache: not looked at, because huggingface_hub is not installed"
    return str(HF_HUB_CACHE)


def _identified(path: Path, wanted: Wanted) -> tuple[str | None, str | None]:
    """What a file is, and what is wrong when it cannot be opened as what it should be."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        if head.startswith(_POINTER):
            return None, f"{path} is a Git LFS pointer, not the file it stands for (git lfs pull fetches it)"
        match wanted.family:
            case "yaml":
                read_model_config(path)
                return "yaml", None
            case "json":
                return _json_object(path)
            case "sentencepiece" | "tiktoken":
                return _tokenizer_kind(path, head)
        return family_of(open_checkpoint(path)), None
    except OSError as error:
        return None, f"{path} cannot be read: {error}"
    except WoodshedError as error:
        return None, error.message


def _json_object(path: Path) -> tuple[str | None, str | None]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        return None, f"{path} is not JSON: {error}"
    return ("json", None) if isinstance(content, Mapping) else (None, f"{path} holds no settings by name")


def _tokenizer_kind(path: Path, head: bytes) -> tuple[str | None, str | None]:
    """A tiktoken vocabulary is lines of base64 and rank; a SentencePiece model begins with field 1, a message."""
    first = head.split(b"\n", 1)[0].split()
    if len(first) == 2 and first[1].isdigit():
        try:
            base64.b64decode(first[0], validate=True)
        except binascii.Error:
            return None, f"{path} is no tokenizer"
        return "tiktoken", None
    return ("sentencepiece", None) if head.startswith(b"\n") else (None, f"{path} is no tokenizer")


def _not_usable(files: tuple[ModelFile, ...], target: Target) -> ModelError:
    """What is missing or unusable, every place that was looked at, and how to fetch it."""
    lines = []
    for file in files:
        if file.problem:
            lines.append(f"  {file.title} ({file.role}): {file.problem}")
        else:
            lines.append(f"  {file.title} ({file.role}) is missing: {file.hub_file}; looked at")
            lines += [f"    {place}" for place in file.looked_at]
        if file.is_fetchable:
            lines.append(f"    to fetch it: {file.fetch}")
    count = f"{len(files)} files that this run needs are" if len(files) > 1 else "a file that this run needs is"
    return ModelError(
        "\n".join((f"{count} missing or cannot be used:", *lines)),
        hint=f"woodshed speech models --target {target} --download",
    )
