"""The `woodshed` command. Parses, calls one job, shows its report, and gives back the exit code.

Jobs and whatever they need (torch, models) are imported when a command runs, not to print help.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import woodshed
from woodshed.errors import UsageError, WoodshedError

if TYPE_CHECKING:
    from woodshed.jobs.settings import Settings

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Command:
    """What stands after `woodshed`: one word, or two."""

    name: str
    summary: str
    settings: str
    """Module of `woodshed.jobs` and class in it; the job itself is `woodshed.jobs.<name>.run`."""
    examples: tuple[str, ...]
    is_layered: bool = False
    """Takes settings files and overrides besides flags."""
    is_watched: bool = True
    """Runs long enough to show progress."""

    @property
    def module(self) -> str:
        """Of the job."""
        return f"woodshed.jobs.{self.name.replace(' ', '_')}"

    def settings_model(self) -> type[Settings]:
        """The class of its settings."""
        module, _, name = self.settings.partition(".")
        model: type[Settings] = getattr(import_module(f"woodshed.jobs.{module}"), name)
        return model


COMMANDS = (
    Command(
        name="encode",
        summary="Encode a folder of audio to latents or tokens.",
        settings="settings.EncodeSettings",
        is_layered=True,
        examples=(
            "woodshed encode --input my-sounds --output-path my-latents",
            "woodshed encode --model-config vae.json --ckpt-path vae.ckpt --dataset-config data.json --output-path out",
            "woodshed encode --config run.yaml model=woodshed_tiny batch_size=8 --dry-run",
        ),
    ),
    Command(
        name="decode",
        summary="Turn encoded data back into sound files, to listen.",
        settings="settings.DecodeSettings",
        examples=("woodshed decode my-latents --limit 3", "woodshed decode my-latents --output heard --format flac"),
    ),
    Command(
        name="inspect",
        summary="Show what is in a folder of encoded data.",
        settings="settings.InspectSettings",
        is_watched=False,
        examples=("woodshed inspect my-latents", "woodshed inspect my-latents --limit 0 --json"),
    ),
    Command(
        name="verify",
        summary="Check that a folder holds what it says, and that no second of its sources is missing.",
        settings="settings.VerifySettings",
        examples=("woodshed verify my-latents", "woodshed verify my-latents --source /new/place --reencode 5"),
    ),
    Command(
        name="speech",
        summary="Make TTS training features from audio and text, for IndexTTS 2.0 and 2.5.",
        settings="speech_settings.SpeechSettings",
        is_layered=True,
        examples=(
            "woodshed speech --manifest data/manifest.jsonl --tokenizer bpe.model --output-dir features",
            "woodshed speech --dataset en=en.jsonl --dataset am=am.jsonl=am_features --output-root features",
            "woodshed speech --manifest data/manifest.jsonl --tokenizer bpe.model --dry-run",
        ),
    ),
    Command(
        name="speech demo",
        summary="Make features of embedded real speech with models that need no download.",
        settings="speech_demo_settings.SpeechDemoSettings",
        examples=("woodshed speech demo", "woodshed speech demo --output somewhere-else"),
    ),
    Command(
        name="speech models",
        summary="List, check and fetch the model files that a speech run needs.",
        settings="speech_models_settings.SpeechModelsSettings",
        is_watched=False,
        examples=("woodshed speech models", "woodshed speech models --target both --download"),
    ),
    Command(
        name="speech pairs",
        summary="Pair prompts with targets of the same speaker, as the IndexTTS2 trainers read them.",
        settings="speech_pairs_settings.SpeechPairsSettings",
        is_watched=False,
        examples=("woodshed speech pairs features", "woodshed speech pairs features --pairs-per-target 3"),
    ),
    Command(
        name="speech retokenize",
        summary="Give a folder of features another tokenizer; all but the text ids stays.",
        settings="speech_retokenize_settings.SpeechRetokenizeSettings",
        examples=(
            "woodshed speech retokenize features --tokenizer new.model --dry-run",
            "woodshed speech retokenize features --tokenizer new.model",
        ),
    ),
    Command(
        name="songs",
        summary="Prepare songs with their captions and lyrics for fine-tuning ACE-Step.",
        settings="songs_settings.SongsSettings",
        is_layered=True,
        examples=(
            "woodshed songs --audio-dir my-songs --checkpoint-dir checkpoints --model base --output my-tensors",
            "woodshed songs --dataset-json dataset.json --checkpoint-dir OWNER/NAME --output my-tensors --dry-run",
            "woodshed songs --audio-dir my-songs --checkpoint-dir checkpoints --output for-side-step --layout sidestep",
        ),
    ),
    Command(
        name="songs convert",
        summary="Turn sidecars and dataset.json into each other; nothing is lost unseen.",
        settings="songs_convert_settings.SongsConvertSettings",
        is_watched=False,
        examples=(
            "woodshed songs convert my-songs",
            "woodshed songs convert dataset.json --dry-run",
            "woodshed songs convert my-songs --to json --overwrite",
        ),
    ),
    Command(
        name="songs tag",
        summary="Add, remove, clear or list the trigger tags of all songs of a folder.",
        settings="songs_tag_settings.SongsTagSettings",
        is_watched=False,
        examples=("woodshed songs tag my-songs", "woodshed songs tag my-songs --add zed"),
    ),
    Command(
        name="songs dataset",
        summary="Gather a folder of songs and their sidecars in one dataset.json.",
        settings="songs_dataset_settings.SongsDatasetSettings",
        is_watched=False,
        examples=(
            "woodshed songs dataset my-songs",
            "woodshed songs dataset my-songs --tag zed --genre-ratio 20 --output dataset.json",
        ),
    ),
    Command(
        name="demo",
        summary="Encode, verify and decode real speech and music with the embedded model.",
        settings="settings.DemoSettings",
        examples=("woodshed demo", "woodshed demo --output somewhere-else"),
    ),
)
DOCTOR_SUMMARY = "Show versions, devices, and optional parts that are missing."


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
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if argv else EXIT_USAGE
    if argv[0] in ("--version", "-V"):
        print(f"woodshed {woodshed.__version__}")
        return 0
    if argv[0] == "doctor":
        return _doctor(argv[1:])
    by_name = {command.name: command for command in COMMANDS}
    for num_words in (2, 1):
        command = by_name.get(" ".join(argv[:num_words]))
        if command is not None:
            return _run_command(command, argv[num_words:])
    from woodshed.jobs.complaints import closest

    meant = closest(argv[0], [*by_name, "doctor"])
    hint = f"did you mean woodshed {meant}?" if meant else "woodshed --help lists all commands"
    raise UsageError(f"{argv[0]!r} is not a command", hint=hint)


def overview() -> str:
    """Help for `woodshed` as a whole."""
    width = max(len(command.name) for command in COMMANDS) + 2
    lines = [f"  {command.name:<{width}}{command.summary}" for command in COMMANDS]
    return "\n".join(
        [
            "usage: woodshed COMMAND [flags]",
            "",
            "Raw audio in, training-ready features out.",
            "",
            "commands:",
            *lines,
            f"  {'doctor':<{width}}{DOCTOR_SUMMARY}",
            "",
            "woodshed COMMAND --help shows its flags and examples; woodshed --version the version.",
            "Start with: woodshed demo",
            "",
            "exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some items failed,",
            "            130 or 143 interrupted (the same command goes on)",
        ]
    )


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
    # With --json, stdout holds the JSON and nothing that a library or a custom metadata module prints.
    with redirect_stdout(sys.stderr) if given.json else nullcontext():
        report = _call_job(command, settings, is_quiet=given.quiet)
    from rich.console import Console

    from woodshed.cli.show import show
    from woodshed.jobs.report import to_json

    if given.json:
        print(json.dumps(to_json(report), indent=2))
    elif not given.quiet:
        show(report, Console(file=sys.stdout))
    exit_code: int = report.exit_code
    return exit_code


def _call_job(command: Command, settings: Any, *, is_quiet: bool) -> Any:
    run = import_module(command.module).run
    if not command.is_watched:
        return run(settings)
    from rich.console import Console

    from woodshed.cli.progress import watcher

    with watcher(Console(file=sys.stderr), is_quiet=is_quiet) as observer:
        return run(settings, observer=observer)


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
