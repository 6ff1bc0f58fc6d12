"""Somebody who answers the wizard from a list, and keeps what was asked and said."""

from __future__ import annotations

from dataclasses import dataclass, field

from woodshed.cli.wizard.questions import Back, Question
from woodshed.errors import WoodshedError

BACK = "<back>"


@dataclass
class Scripted:
    """Answers in order; the empty answer takes the default. Runs dry with an error that names the question."""

    answers: list[str]
    asked: list[Question] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def ask(self, question: Question) -> str | Back:
        self.asked.append(question)
        if question.preface:
            self.said.append(question.preface)
        assert self.answers, f"nothing to answer {question.text!r} with"
        answer = self.answers.pop(0)
        if answer == BACK:
            return Back()
        values = [option.value for option in question.options]
        answer = answer or (question.default if question.default in values or not values else values[0])
        assert not values or answer in values, f"{answer!r} is none of {values}"
        assert answer or question.is_optional, f"{question.text!r} needs an answer"
        return answer

    def say(self, text: str) -> None:
        self.said.append(text)

    def complain(self, error: WoodshedError | OSError) -> None:
        self.said.append(str(error))

    @property
    def keys(self) -> list[str]:
        """What was asked, in order."""
        return [question.key for question in self.asked]

    @property
    def text(self) -> str:
        """All that was said."""
        return "\n".join(self.said)
