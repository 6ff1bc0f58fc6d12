"""Questions put in a terminal: arrows or plain typing, no mouse, no colour that carries meaning."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import questionary
from prompt_toolkit.filters import Condition
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.keys import Keys
from questionary.prompts.path import GreatUXPathCompleter

from woodshed.cli.quantities import printable
from woodshed.cli.wizard.questions import Back, Question
from woodshed.errors import WoodshedError

MAX_COLUMNS = 100
POINTER = ">"
KEYS = "b goes back, ? shows this help, Ctrl-C leaves."
_HELP = object()
_ABOUT = "Description: "
_STYLE = questionary.Style(
    [("question", "bold"), ("pointer", "bold"), ("highlighted", "bold"), ("instruction", ""), ("answer", "")]
)
_PRINTABLE = "".join(map(chr, range(32, 127)))


class Terminal:
    """Asks on stdin and stdout. `b` answers with `Back`, `?` shows help and asks again."""

    def ask(self, question: Question) -> str | Back:
        """Put a question until it has an answer.

        Raises:
            KeyboardInterrupt: Ctrl-C, or the end of the input.
        """
        if question.preface:
            self.say(question.preface)
        while True:
            try:
                answer = _chosen(question) if question.kind == "choice" else _typed(question)
            except EOFError as error:
                raise KeyboardInterrupt from error
            if answer is _HELP:
                self.say(f"{question.help}\n{KEYS}")
            elif isinstance(answer, Back):
                return answer
            elif isinstance(answer, str):
                if question.kind == "yes_no" and answer not in ("y", "n"):
                    self.say("please answer y or n")
                elif not answer and not question.is_optional:
                    self.say("this needs an answer; ? explains, b goes back")
                else:
                    return answer

    def say(self, text: str) -> None:
        """Print lines, wrapped between words; indented ones are left as they are, to be copied."""
        columns = min(shutil.get_terminal_size().columns, MAX_COLUMNS)
        for line in text.split("\n"):
            safe = printable(line)
            print(safe if safe.startswith(" ") else textwrap.fill(safe, columns, break_on_hyphens=False))
        sys.stdout.flush()

    def complain(self, error: WoodshedError | OSError) -> None:
        """Say what is wrong and what to try."""
        message, hint = (error.message, error.hint) if isinstance(error, WoodshedError) else (str(error), None)
        self.say(f"{message}" + (f"\n  try: {hint}" if hint else ""))


def _typed(question: Question) -> object:
    default = {"y": "Y/n", "n": "y/N"}.get(question.default, "y/n") if question.kind == "yes_no" else question.default
    text = f"{question.text}" + (f" [{default}]" if default else "") + ":"
    common: dict[str, Any] = {"qmark": "-", "style": _STYLE}
    if question.kind == "path":
        # Not questionary's own prompt for paths, where Enter closes the list of names before it answers: as in a
        # shell, names come with Tab.
        common |= {"completer": GreatUXPathCompleter(expanduser=True), "complete_while_typing": False}
    answer = _run(questionary.text(text, **common), _escape())
    if not isinstance(answer, str):
        return answer
    plain = answer.strip()
    if plain == "b":
        return Back()
    if plain == "?":
        return _HELP
    if question.kind == "path" and len(plain) > 1:
        # What a shell would have done.
        plain = str(Path(plain).expanduser()) if plain.startswith("~") else plain.rstrip("/")
    if question.kind == "yes_no":
        plain = plain.lower()[:1] if plain.lower() in ("y", "yes", "n", "no") else plain
    return plain or question.default


def _chosen(question: Question) -> object:
    choices: list[questionary.Choice | questionary.Separator] = []
    section = ""
    for option in question.options:
        if option.section != section:
            section = option.section
            choices.append(questionary.Separator(f"-- {section} --"))
        # Beneath the list, where questionary puts "Description: " before it.
        about = "\n ".join(textwrap.wrap(f"{_ABOUT}{option.about}", _columns() - 2))[len(_ABOUT) :] or None
        choices.append(questionary.Choice(option.label, value=option.value, description=about))
    values = [option.value for option in question.options]
    prompt = questionary.select(
        question.text,
        choices=choices,
        default=question.default if question.default in values else None,
        qmark="-",
        pointer=POINTER,
        style=_STYLE,
        use_jk_keys=False,
        use_search_filter=True,
        instruction="(arrows, Enter; / search, b back, ? help)",
    )
    return _run(prompt, _list_keys())


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _run(prompt: questionary.Question, keys: KeyBindings) -> object:
    application = prompt.application
    own = application.key_bindings
    application.key_bindings = merge_key_bindings([own, keys] if own is not None else [keys])
    return prompt.unsafe_ask()


def _leave(result: object) -> Callable[[KeyPressEvent], None]:
    def handle(event: KeyPressEvent) -> None:
        event.app.exit(result=result)

    return handle


def _escape() -> KeyBindings:
    """Esc goes back."""
    keys = KeyBindings()
    keys.add(Keys.Escape, eager=True)(_leave(Back()))
    return keys


def _list_keys() -> KeyBindings:
    """`b`, `?` and Esc are commands until `/` turns typing into a search."""
    keys, is_searching = KeyBindings(), False

    @Condition
    def commands() -> bool:
        return not is_searching

    def ignore(_: KeyPressEvent) -> None:
        return None

    def search(_: KeyPressEvent) -> None:
        nonlocal is_searching
        is_searching = True

    for character in _PRINTABLE:
        keys.add(character, eager=True, filter=commands)(ignore)
    keys.add("b", eager=True, filter=commands)(_leave(Back()))
    keys.add("?", eager=True, filter=commands)(_leave(_HELP))
    keys.add("/", eager=True, filter=commands)(search)
    keys.add(Keys.Escape, eager=True)(_leave(Back()))
    return keys
