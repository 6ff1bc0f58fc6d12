"""Why `woodshed speech` does not go on with a folder, in terms of features; and how to go on all the same."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from woodshed.jobs.speech_model import TOKENIZERS, model_files, targets_of
from woodshed.jobs.speech_settings import SpeechSettings
from woodshed.speech.retokenize import columns_touched
from woodshed.store.folder import OtherRunError, read_run


@contextmanager
def refusal_explained(folder: Path, settings: SpeechSettings) -> Iterator[None]:
    """Let an `OtherRunError` say which features the run would change, and what to do where it is the text ids only."""
    try:
        yield
    except OtherRunError as error:
        run = read_run(folder)
        touched = columns_touched(error.fields, () if run is None else run["spec"]["arrays"])
        if touched is None:
            raise
        hint = error.hint
        if all(name.startswith("text_ids") for name in touched):
            command = retokenize_command(folder, settings, error.fields)
            hint = f"{command} makes the text ids anew and keeps all else"
        message = f"{error.message}\nthese features would be others: {', '.join(touched)}"
        raise OtherRunError(message, hint=hint, fields=error.fields) from error


def retokenize_command(folder: Path, settings: SpeechSettings, fields: Sequence[str]) -> str:
    """The command after which a run with these settings goes on; `fields` of the fingerprint differ now."""
    names = {field.rpartition(".")[2] for field in fields}
    words = ["woodshed", "speech", "retokenize", str(folder)]
    if "tokenizer" in names:
        files = None if settings.tokenizer else model_files(settings)
        found = [files.path(TOKENIZERS[target]) for target in targets_of(settings)] if files is not None else []
        words += ["--tokenizer", *map(str, settings.tokenizer or found)]
    if "compat" in names:
        words.append("--text-compat" if settings.text_compat else "--no-text-compat")
    if "engine" in names:
        words += ["--text-engine", settings.text_engine]
    return shlex.join(words)
