"""Command lines read into settings: one flag per field, named and described by the field itself."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from woodshed.config.compose import compose
from woodshed.errors import UsageError
from woodshed.jobs.complaints import SomeSettings, closest, metavar
from woodshed.jobs.settings import Settings

_SETTINGS_FILE = "settings_file"
_TERMINAL = ("config", "settings", "config_dir", "print_config", "json", "quiet")


@dataclass(frozen=True, kw_only=True)
class Given:
    """What stands on a command line."""

    flags: dict[str, object] = field(default_factory=dict)
    """Only the settings that were given as flags."""
    overrides: tuple[str, ...] = ()
    config: Path | None = None
    config_dirs: tuple[Path, ...] = ()
    print_config: bool = False
    json: bool = False
    quiet: bool = False


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are our errors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help lists every flag")


def build_parser(
    model: type[Settings], *, prog: str, summary: str, examples: Sequence[str], layered: bool, watched: bool
) -> argparse.ArgumentParser:
    """A parser with one flag per field, in the model's sections.

    Args:
        model: the settings that the command takes.
        prog: the command, such as `woodshed encode`.
        summary: what it does, in one sentence.
        examples: command lines for the end of the help text.
        layered: whether it takes settings files and `key=value` overrides too.
        watched: whether it runs long enough to show progress.
    """
    words = [model.positional, *model.further_positionals] if model.positional else []
    positional = "".join(f" {_as_word(model, name)}" for name in words)
    shown = "\n".join(f"  {example}" for example in examples)
    parser = _Parser(
        prog=prog,
        usage=f"{prog}{positional} [flags]" + (" [KEY=VALUE ...]" if layered else ""),
        description=summary,
        epilog=f"examples:\n{shown}",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if layered:
        parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Setting or group, as in model=NAME.")
    for title, names in model.sections.items():
        group = parser.add_argument_group(title)
        for name in names:
            _add_field(group, model, name)
    terminal = parser.add_argument_group("settings files and display" if layered else "display")
    if layered:
        # A command whose model has a `config` of its own takes its settings from elsewhere.
        flag = "--settings" if "config" in model.model_fields else "--config"
        terminal.add_argument(
            flag, dest=_SETTINGS_FILE, metavar="FILE", type=Path, help="Settings file (YAML, plain or Hydra)."
        )
        terminal.add_argument(
            "--config-dir", metavar="FOLDER", type=Path, action="append", help="More groups; may be repeated."
        )
        terminal.add_argument("--print-config", action="store_true", help="Print the composed settings and stop.")
    terminal.add_argument("--json", action="store_true", help="Print the result as JSON on stdout.")
    if watched:
        terminal.add_argument("--quiet", action="store_true", help="Show errors only.")
    return parser


def _add_field(group: argparse._ArgumentGroup, model: type[Settings], name: str) -> None:
    info = model.model_fields[name]
    kind = without_none(info.annotation)
    default = (
        ""
        if info.is_required() or info.default == "" or any(info.default is empty for empty in (None, False, ()))
        else f" (default: {_shown(info.default)})"
    )
    text = ((info.description or "") + default).replace("%", "%%")
    if name == model.positional or name in model.further_positionals:
        nargs = None if info.is_required() else "?"
        group.add_argument(name, metavar=name.upper(), nargs=nargs, help=text)
        return
    options: dict[str, Any] = {"dest": name, "help": text}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif get_origin(kind) is Literal:
        options["choices"] = get_args(kind)
    else:
        options["metavar"] = metavar(model, name)
        if kind in (int, float):
            options["type"] = kind
        elif get_origin(kind) is tuple:
            options |= {"nargs": "+", "action": "extend"}
    group.add_argument(model.flag(name), *model.flag_aliases.get(name, ()), **options)


def _as_word(model: type[Settings], name: str) -> str:
    return name.upper() if model.model_fields[name].is_required() else f"[{name.upper()}]"


def without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        return next(part for part in get_args(annotation) if part is not NoneType)
    return annotation


def _shown(default: object) -> str:
    if default is True:
        return "on"
    return f"{default:g}" if isinstance(default, float) else str(default)


def read_command_line(parser: argparse.ArgumentParser, model: type[Settings], argv: Sequence[str]) -> Given:
    """Sort a command line into settings, overrides and what concerns the terminal.

    Underscores in flags are taken as hyphens, and flags may stand between overrides.

    Raises:
        UsageError: an unknown flag or a value of the wrong kind.
    """
    found, unknown = parser.parse_known_intermixed_args([_usual_form(word, model) for word in argv])
    if unknown:
        shown = parser.format_help().split()
        of_terminal = (name for name in _TERMINAL if f"--{name.replace('_', '-')}" in shown)
        flags = [flag for name in model.model_fields for flag in (model.flag(name), *model.flag_aliases.get(name, ()))]
        names = [*(flag.strip("-").replace("-", "_") for flag in flags), *of_terminal]
        meant = closest(unknown[0].partition("=")[0], names)
        raise UsageError(
            f"unknown argument {unknown[0]}",
            hint=f"did you mean --{meant.replace('_', '-')}?" if meant else f"{parser.prog} --help lists every flag",
        )
    values = vars(found)
    return Given(
        flags={name: value for name, value in values.items() if name in model.model_fields},
        overrides=tuple(values.get("overrides") or ()),
        config=values.get(_SETTINGS_FILE),
        config_dirs=tuple(values.get("config_dir") or ()),
        print_config=values.get("print_config", False),
        json=values.get("json", False),
        quiet=values.get("quiet", False),
    )


def _usual_form(word: str, model: type[Settings]) -> str:
    """A flag as the parser knows it: `--model_config=x` and `--model-config-path=x` are `--model-config=x`."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--"):
        return word
    name = flag.strip("-").replace("-", "_")
    return (model.flag(name) if name in model.flag_names else "--" + name.replace("_", "-")) + equals + value


def settings_from(model: type[SomeSettings], given: Given) -> SomeSettings:
    """The settings that a command line asks for.

    Raises:
        UsageError: they do not work.
    """
    return compose(
        model, flags=given.flags, config=given.config, config_dirs=given.config_dirs, overrides=given.overrides
    )
