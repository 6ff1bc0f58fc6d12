"""One tree of errors. Every error says what is wrong, where, and what to try.

Exit codes of the commands follow from the class: `UsageError` is 2, every other `WoodshedError` is 1.
An `ItemError` never ends a run: the engine records it as that item's failure and goes on (exit code 3).
"""

from __future__ import annotations


class WoodshedError(Exception):
    """Base of all errors that a user can cause or has to know of.

    Args:
        message: what is wrong and where, in one sentence.
        hint: what to try next.

    >>> print(WoodshedError("config.json has no key 'sample_rate'", hint="add it, for example 44100"))
    config.json has no key 'sample_rate' (try: add it, for example 44100)
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # By default an exception is made again from its positional arguments, and ours have others.
        return (_made_again, (type(self), self.args, self.__dict__))

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} (try: {self.hint})"


def _made_again(kind: type[WoodshedError], args: tuple[object, ...], state: dict[str, object]) -> WoodshedError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class UsageError(WoodshedError):
    """The command line, a settings file or an argument cannot work as given."""

    exit_code = 2


class ModelError(WoodshedError):
    """A model config or checkpoint cannot be used: wrong keys, wrong shapes, unknown architecture."""


class StoreError(WoodshedError):
    """The output folder cannot be used: locked, of another run, damaged, full or read-only."""


class ItemError(WoodshedError):
    """One item cannot be used. Recorded as its failure; never ends a run, never replaced by another item.

    Args:
        kind: short stable word for grouping in reports, such as `truncated`, `empty`, `not_finite`.
    """

    def __init__(self, message: str, *, kind: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class AudioError(ItemError):
    """A sound file cannot be read: missing, empty, truncated, mislabelled, absurd or not finite."""
