"""`woodshed speech models`: every file that a speech run needs, where it is, whether it will do; fetched on request."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch

from woodshed.contracts import Json, Observer
from woodshed.encoders.speech.campplus import CampPlus
from woodshed.encoders.speech.checkpoint import open_checkpoint
from woodshed.encoders.speech.conditioning import Conditioning
from woodshed.encoders.speech.model_files import GivenFiles, ModelFile, find_model_files
from woodshed.encoders.speech.published_files import Role, Target
from woodshed.encoders.speech.semantic_codec import SemanticCodec
from woodshed.encoders.speech.w2vbert import SemanticStats, W2VBert
from woodshed.encoders.weights import TensorFile
from woodshed.errors import ModelError, UsageError, WoodshedError
from woodshed.jobs.report import to_json
from woodshed.jobs.speech_models_settings import SpeechModelsSettings

Tell: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechModelsReport:
    """The files that a speech run needs, as they lie on this machine."""

    target: Target
    files: tuple[ModelFile, ...]
    downloaded: tuple[Role, ...] = ()
    """What this command has fetched."""
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 all there and sound, 1 something is missing, damaged or of another model."""
        return 0 if all(file.is_fine for file in self.files) else 1

    def to_json(self) -> dict[str, Json]:
        return to_json(self)


def run(settings: SpeechModelsSettings, *, observer: Observer | None = None) -> SpeechModelsReport:
    """List, check and, if so told, download the files of a target.

    Without `download` no network call is made. Questions and news go to the observer, or to stderr where there is none.

    Raises:
        UsageError: a file is given that is of no use, or a download is asked for and nobody can be asked for consent.
        ModelError: huggingface_hub is not installed, or the disk is too small for a download.
    """
    tell: Tell = observer.message if observer is not None else _to_stderr
    files = _found(settings)
    wanted = [file for file in files if file.is_fetchable and file.state != "ok"] if settings.download else []
    troubles: dict[Role, str] = {}
    notes: list[str] = []
    is_agreed = False
    if wanted:
        is_agreed = _is_agreed(wanted, settings, tell)
        if is_agreed:
            troubles = {file.role: told for file in wanted if (told := _fetch(file, tell)) is not None}
            files = _found(settings)
        else:
            notes.append("nothing was downloaded: you did not agree")
    checked = tuple(_checked(file, notes) for file in files)
    return SpeechModelsReport(
        target=settings.target,
        files=tuple(_with_trouble(file, troubles.get(file.role)) for file in checked),
        downloaded=tuple(file.role for file in wanted if is_agreed and file.role not in troubles),
        notes=tuple(notes),
    )


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _found(settings: SpeechModelsSettings) -> Sequence[ModelFile]:
    return find_model_files(settings.target, given_files(settings)).files


def given_files(settings: SpeechModelsSettings) -> GivenFiles:
    """What the settings name."""
    return GivenFiles(
        config=settings.config_path,
        gpt_checkpoints=settings.gpt_checkpoint,
        tokenizers=settings.tokenizer,
        semantic_codecs=settings.semantic_codec,
        w2v_bert=settings.w2v_bert,
        w2v_stats=settings.w2v_stats,
        campplus=settings.campplus,
    )


def _is_agreed(wanted: Sequence[ModelFile], settings: SpeechModelsSettings, tell: Tell) -> bool:
    """Whether the user wants these files on this machine; asked on a terminal unless `--yes` says so."""
    licences = "; ".join(dict.fromkeys(f"{file.hub_repo}: {file.licence}" for file in wanted))
    # It is None where whoever started us closed it.
    if not settings.yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise UsageError(
            "--download asks before it fetches anything, and there is no terminal to ask on",
            hint=f"read the licences ({licences}), then add --yes",
        )
    sizes, cache = _download_sizes(wanted)
    total_bytes = sum(sizes.values())
    _require_space(total_bytes, cache)
    tell(f"to be downloaded into {cache}: {len(wanted)} files, {_size(total_bytes)}")
    for file in wanted:
        tell(f"  {file.hub_repo}/{file.hub_file}, {_size(sizes[file.role])}, licence: {file.licence}")
    if settings.yes:
        return True
    tell("The licences above hold for these files and for what you make with them. Download? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _download_sizes(wanted: Sequence[ModelFile]) -> tuple[dict[Role, int], Path]:
    """Bytes of each file as the hub has it today (as published where it does not answer), and where it would go."""
    try:
        from huggingface_hub import constants, hf_hub_download
    except ImportError as error:
        raise ModelError(
            "--download needs huggingface_hub, which is not installed", hint="pip install 'woodshed[speech]'"
        ) from error
    sizes = {}
    for file in wanted:
        try:
            size_bytes = hf_hub_download(file.hub_repo, file.hub_file, dry_run=True).file_size
        except _hub_errors():
            # Told when the download itself fails: a size is no reason to stop.
            size_bytes = None
        sizes[file.role] = size_bytes or file.about_bytes
    return sizes, Path(constants.HF_HUB_CACHE)


def _hub_errors() -> tuple[type[Exception], ...]:
    """Whatever a call to the hub may end in."""
    from huggingface_hub import errors

    # Its HTTP library differs between versions; the root of that library's errors is a base of the hub's own.
    transport = tuple(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    large_files = getattr(errors, "XetDownloadError", None)
    return (OSError, ValueError, RuntimeError, *transport, *((large_files,) if large_files else ()))


def _require_space(needed_bytes: int, cache: Path) -> None:
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    free_bytes = shutil.disk_usage(there).free
    if needed_bytes > free_bytes:
        raise ModelError(
            f"the download needs {_size(needed_bytes)}, and {there} has {_size(free_bytes)} free",
            hint="free some space, or set HF_HOME to a folder on a larger disk",
        )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 10**7 else f"{num_bytes / 1e3:.1f} kB"


def _fetch(file: ModelFile, tell: Tell) -> str | None:
    """Bring a file into the hub's cache and compare it with the digest that the hub announces.

    Returns:
        What went wrong, or None.
    """
    from huggingface_hub import hf_hub_download

    tell(f"downloading {file.hub_repo}/{file.hub_file}")
    is_cached_badly = file.state == "damaged" and file.source == "hub cache"
    try:
        path = Path(hf_hub_download(file.hub_repo, file.hub_file, force_download=is_cached_badly))
    except _hub_errors() as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"{file.hub_repo}/{file.hub_file} could not be downloaded: {reason}"
    # Large files lie in the cache under the sha256 that the hub announced; small ones under a git hash.
    blob = path.resolve()
    if len(blob.name) != 64 or set(blob.name) - set("0123456789abcdef"):
        return None
    with blob.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest == blob.name:
        return None
    blob.unlink()
    path.unlink(missing_ok=True)
    return (
        f"{file.hub_repo}/{file.hub_file} arrived with other content than the hub announced (sha256 {digest[:16]}... "
        f"instead of {blob.name[:16]}...), so it was removed again; try once more"
    )


def _with_trouble(file: ModelFile, trouble: str | None) -> ModelFile:
    """A file that is still not there, with the reason why its download failed."""
    return file if trouble is None or file.state == "ok" else replace(file, problem=trouble)


def _checked(file: ModelFile, notes: list[str]) -> ModelFile:
    """A file that was found, looked at more closely: every key and shape, but no weights.

    Returns:
        The file as it was, or marked as damaged with what is wrong.
    """
    if file.state != "ok" or file.path is None:
        return file
    try:
        if file.family is not None and file.family in _NETWORKS:
            check_keys(open_checkpoint(file.path), file.family)
        elif file.role == "w2v_stats":
            SemanticStats.from_tensors(open_checkpoint(file.path))
        elif file.role == "tokenizer_2.0":
            notes.extend(_check_sentencepiece(file.path))
        elif file.role == "tokenizer_2.5":
            _check_tiktoken(file.path)
    except WoodshedError as error:
        return replace(file, state="damaged", problem=error.message)
    return file


_NETWORKS: Mapping[str, Callable[[TensorFile], object]] = {
    "gpt_2.0": lambda tensors: Conditioning.from_tensors(tensors, device="meta"),
    "gpt_2.5": lambda tensors: Conditioning.from_tensors(tensors, device="meta"),
    "repcodec_50hz": lambda tensors: SemanticCodec.from_tensors(tensors, device="meta"),
    "enhanced_25hz": lambda tensors: SemanticCodec.from_tensors(tensors, device="meta"),
    "campplus": lambda tensors: CampPlus.from_tensors(tensors, device="meta"),
    "w2v_bert": lambda tensors: W2VBert.from_tensors(tensors, device="meta"),
}
"""How each network is built, strictly, from the tensors it needs."""


def check_keys(tensors: TensorFile, family: str) -> None:
    """Build the network that a checkpoint is for on the meta device, so that every key and shape is compared.

    Args:
        tensors: their names and shapes are looked at; none is read.
        family: one whose network we have; checkpoints of others pass.

    Raises:
        ModelError: keys that the network needs are missing, extra or misshapen; lists them.
    """
    shapes = tensors.shapes
    unread = TensorFile(path=tensors.path, shapes=shapes, read=lambda name: torch.empty(shapes[name], device="meta"))
    if family in _NETWORKS:
        _NETWORKS[family](unread)


def _check_sentencepiece(path: Path) -> list[str]:
    """Load a SentencePiece model; gives a note where that cannot be tried."""
    try:
        import sentencepiece
    except ImportError:
        return [f"{path} was not opened: sentencepiece is not installed (pip install 'woodshed[speech]')"]
    try:
        sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{path} is no whole SentencePiece model: {error}") from error
    return []


def _check_tiktoken(path: Path) -> None:
    """Every line of a vocabulary is a token and its rank, and the ranks are 0, 1, 2, ..."""
    for rank, line in enumerate(path.read_bytes().splitlines()):
        fields = line.split()
        if len(fields) != 2 or fields[1] != str(rank).encode():
            raise ModelError(f"{path}, line {rank + 1}: a token and the rank {rank} were expected")
