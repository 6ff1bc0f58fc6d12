"""The command line that does the same as a flow of questions, to be run again without them."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from woodshed.cli.commands import Command
from woodshed.jobs.flag_words import flag_words
from woodshed.jobs.settings import Settings
from woodshed.store.whole_file import write_whole


def command_words(command: Command, settings: Settings, *, given: Collection[str]) -> list[str]:
    """The words of a command line that gives these settings.

    Args:
        command: that takes the settings.
        settings: to give.
        given: fields that were answered; of these, what is no default is in the line.
    """
    model = type(settings)
    words, single, several = list[str](), list[str](), list[str]()
    for names in model.sections.values():
        for name in names:
            value, info = getattr(settings, name), model.model_fields[name]
            if name == model.positional or name in model.further_positionals:
                words += [] if value is None else [_as_operand(str(value))]
            elif name in given and value not in (None, ()) and str(value) != str(info.get_default()):
                (several if isinstance(value, tuple) else single).extend(flag_words(model.flag(name), value))
    # Flags that take several values come last, where nothing can be taken for one of theirs.
    return ["woodshed", *command.name.split(), *words, *single, *several]


def _as_operand(text: str) -> str:
    return f"./{text}" if text.startswith("-") else text


def shell_lines(words: Sequence[str], *, columns: int = 78) -> str:
    """A command line in lines that a shell reads as one, indented; a flag stays with its values.

    >>> print(shell_lines(["woodshed", "inspect", "my latents", "--limit", "3"], columns=30))
      woodshed inspect \\
        'my latents' --limit 3
    """
    parts = list[str]()
    for word, before in zip(words, ["", *words], strict=False):
        is_value = before.startswith("--") and not word.startswith("--")
        parts = [*parts[:-1], f"{parts[-1]} {shlex.quote(word)}"] if is_value else [*parts, shlex.quote(word)]
    lines, line = list[str](), " "
    for part in parts:
        if len(line) + len(part) + 3 > columns and line.strip():
            lines, line = [*lines, f"{line} \\"], "   "
        line += f" {part}"
    return "\n".join([*lines, line])


def script(words: list[str], *, folder: Path) -> str:
    """A shell script that runs a command line from the folder it was made in, as its paths are meant.

    >>> print(script(["woodshed", "inspect", "my latents"], folder=Path("/home/me/music")), end="")
    #!/bin/sh
    cd /home/me/music || exit
    exec woodshed inspect 'my latents'
    """
    return f"#!/bin/sh\ncd {shlex.quote(str(folder))} || exit\nexec {shlex.join(words)}\n"


def save_script(path: Path, words: list[str]) -> None:
    """Write the script and let it be run.

    Raises:
        StoreError, OSError: the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, script(words, folder=Path.cwd()).encode())
    path.chmod(path.stat().st_mode | 0o111)
