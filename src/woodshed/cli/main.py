"""The `woodshed` command. Parses, calls one job, shows its report, and gives back the exit code.

Jobs and whatever they need (torch, models) are imported when a command runs, not to print help.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from typing import Any

import woodshed
from woodshed.cli.commands import COMMANDS, Command, command_named
from woodshed.errors import UsageError, WoodshedError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

DOCTOR_SUMMARY = "Show versions, devices, and optional parts that are missing."
WIZARD_SUMMARY = "Be asked instead: all of this by questions (also: woodshed alone, in a terminal)."
_ROOT_FLAGS = {"--yes": "--yes", "-y": "--yes", "--plain": "--plain"}
"""What may stand before the command, as Side-Step takes it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; gives back the exit code.

    0 done, 1 failed, 2 wrong usage, 3 done but some items failed, 130 or 143 interrupted and resumable.
    """
    try:
        exit_code = _run(list(sys.argv[1:] if argv is None else argv))
        # Here, where a closed pipe can still be caught, and not while Python shuts down.
        sys.stdout.flush()
        return exit_code
    except WoodshedError as error:
        return _told(error, hint=error.hint, message=error.message, exit_code=error.exit_code)
    except ModuleNotFoundError as error:
        from woodshed.cli.doctor import EXTRAS

        module = (error.name or "").partition(".")[0].replace("_", "-")
        extra = next((extra for extra, packages in EXTRAS.items() if module in packages), None)
        if extra is None:
            raise
        message = f"this needs the package {module}, which is not installed"
        return _told(error, message=message, hint=f"pip install 'woodshed[{extra}]'", exit_code=EXIT_USAGE)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more while closing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        return _told(error, hint=None, message=str(error), exit_code=EXIT_FAILED)
    except KeyboardInterrupt:
        print("woodshed: interrupted; the same command goes on from what is done", file=sys.stderr)
        return EXIT_INTERRUPTED


def _told(error: Exception, *, message: str, hint: str | None, exit_code: int) -> int:
    if os.environ.get("WOODSHED_DEBUG") == "1":
        raise error
    from woodshed.cli.quantities import printable

    # Line by line: a message may list what differs, and `printable` would show line ends as escapes.
    lines = "\n".join(printable(line) for line in message.split("\n"))
    print(f"woodshed: error: {lines}", file=sys.stderr)
    if hint:
        print(f"  try: {printable(hint)}", file=sys.stderr)
    return exit_code


def _run(argv: list[str]) -> int:
    num_root = next((i for i, word in enumerate(argv) if word not in _ROOT_FLAGS), len(argv))
    root = {_ROOT_FLAGS[word] for word in argv[:num_root]}
    argv = argv[num_root:]
    if "--plain" in root:
        # What rich and prompt_toolkit both look at.
        os.environ["NO_COLOR"] = "1"
    if not argv and "--yes" not in root and _is_terminal():
        return _wizard([])
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if argv else EXIT_USAGE
    if argv[0] in ("--version", "-V"):
        print(f"woodshed {woodshed.__version__}")
        return 0
    command, num_words = _command_of(argv)
    if "--yes" in root:
        if command is None or "yes" not in command.settings_model().model_fields:
            raise UsageError(f"woodshed {argv[0]} asks nothing that --yes could answer", hint="leave --yes out")
        argv.insert(num_words, "--yes")
    if command is not None:
        return _run_command(command, argv[num_words:])
    return _wizard(argv[1:]) if argv[0] == "wizard" else _doctor(argv[1:])


def _command_of(argv: list[str]) -> tuple[Command | None, int]:
    """The command that a line begins with, and how many words it takes; None for those that have no settings."""
    for num_words in (2, 1):
        command = command_named(" ".join(argv[:num_words]))
        if command is not None:
            return command, num_words
    if argv[0] in ("doctor", "wizard"):
        return None, 1
    from woodshed.jobs.complaints import closest

    names = [name for command in COMMANDS for name in (command.name, *command.aliases)]
    meant = closest(argv[0], [*names, "doctor", "wizard"])
    hint = f"did you mean woodshed {meant}?" if meant else "woodshed --help lists all commands"
    raise UsageError(f"{argv[0]!r} is not a command", hint=hint)


def overview() -> str:
    """Help for `woodshed` as a whole."""
    width = max(len(command.name) for command in COMMANDS) + 2
    lines = [f"  {command.name:<{width}}{command.summary}{_also(command)}" for command in COMMANDS]
    return "\n".join(
        [
            "usage: woodshed COMMAND [flags]",
            "",
            "Raw audio in, training-ready features out.",
            "",
            "commands:",
            *lines,
            f"  {'doctor':<{width}}{DOCTOR_SUMMARY}",
            f"  {'wizard':<{width}}{WIZARD_SUMMARY}",
            "",
            "woodshed COMMAND --help shows its flags and examples; woodshed --version the version.",
            "Start with: woodshed demo",
            "",
            "exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some items failed,",
            "            130 or 143 interrupted (the same command goes on)",
        ]
    )


def _also(command: Command) -> str:
    return f" (also: {', '.join(command.aliases)})" if command.aliases else ""


def _run_command(command: Command, argv: list[str]) -> int:
    from woodshed.cli.flags import build_parser, read_command_line, settings_from

    model = command.settings_model()
    parser = build_parser(
        model,
        prog=f"woodshed {command.name}",
        summary=command.summary,
        examples=command.examples,
        layered=command.is_layered,
        watched=command.is_watched,
    )
    if "-h" in argv or "--help" in argv:
        print(parser.format_help(), end="")
        return 0
    given = read_command_line(parser, model, argv)
    settings = settings_from(model, given)
    if given.print_config:
        from woodshed.config.dump import as_yaml

        print(as_yaml(settings), end="")
        return 0
    return _perform(command, settings, as_json=given.json, is_quiet=given.quiet)


def _perform(command: Command, settings: Any, *, as_json: bool, is_quiet: bool) -> int:
    """Run a job and show what came of it."""
    # With --json, stdout holds the JSON and nothing that a library or a custom metadata module prints.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        report = _call_job(command, settings, is_quiet=is_quiet)
    from rich.console import Console

    from woodshed.cli.show import show
    from woodshed.jobs.report import to_json

    if as_json:
        print(json.dumps(to_json(report), indent=2))
    elif not is_quiet:
        show(report, Console(file=sys.stdout))
    exit_code: int = report.exit_code
    return exit_code


def _call_job(command: Command, settings: Any, *, is_quiet: bool) -> Any:
    job = import_module(command.module)
    if "yes" in type(settings).model_fields:
        from woodshed.cli.consent import consented

        settings = consented(settings, lambda given: job.gates(given))
    run = job.run
    if not command.is_watched:
        return run(settings)
    from rich.console import Console

    from woodshed.cli.progress import watcher

    with watcher(Console(file=sys.stderr), is_quiet=is_quiet) as observer:
        return run(settings, observer=observer)


def _wizard(argv: list[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(f"usage: woodshed wizard\n\n{WIZARD_SUMMARY}")
        return 0
    if argv:
        raise UsageError(f"unknown argument {argv[0]}", hint="woodshed wizard takes no flags")
    if not _is_terminal() or os.environ.get("TERM") == "dumb":
        raise UsageError(
            "the wizard asks its questions in a terminal, and this is none",
            hint="give a command and its flags: woodshed --help lists them",
        )
    from woodshed.cli.wizard.menu import Wizard
    from woodshed.cli.wizard.terminal import Terminal

    return Wizard(Terminal(), lambda command, settings: _call_job(command, settings, is_quiet=False)).run()


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _doctor(argv: list[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(f"usage: woodshed doctor [--json]\n\n{DOCTOR_SUMMARY}")
        return 0
    unknown = [word for word in argv if word != "--json"]
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]}", hint="woodshed doctor takes --json only")
    from woodshed.cli.doctor import diagnose, diagnosis_lines
    from woodshed.jobs.report import to_json

    findings = diagnose()
    if argv:
        print(json.dumps([to_json(finding) for finding in findings], indent=2))
    else:
        print("\n".join(diagnosis_lines(findings)))
    return EXIT_FAILED if any(finding.state == "missing" for finding in findings) else 0
