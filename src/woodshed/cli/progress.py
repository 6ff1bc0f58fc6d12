"""How a run is watched: bars in a terminal, now and then a line in a log file, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from woodshed.cli.quantities import audio_length, clock, printable
from woodshed.contracts import Observer, Progress

PLAIN_EVERY_S = 5.0


@runtime_checkable
class Watcher(Observer, AbstractContextManager["Watcher"], Protocol):
    """An observer that is switched on and off again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What there is to say about a run's progress."""

    items: str
    audio: str
    speed: str
    left: str
    trouble: str

    @classmethod
    def of(cls, progress: Progress) -> Pace:
        """Speed is audio-seconds per second of this run; what earlier runs did does not count."""
        speed = progress.audio_now_s / progress.elapsed_s if progress.elapsed_s > 0 else 0.0
        remaining_s = max(0.0, progress.audio_total_s - progress.audio_done_s)
        trouble = [
            f"{count} {word}"
            for count, word in ((progress.items_failed, "failed"), (progress.items_skipped, "skipped"))
            if count
        ]
        return cls(
            items=f"{progress.items_done}/{progress.items_total}",
            audio=f"{audio_length(progress.audio_done_s)} of {audio_length(progress.audio_total_s)}",
            speed=f"{speed:.3g}x" if speed else "-",
            left=clock(remaining_s / speed) if speed else "-",
            trouble=", ".join(trouble),
        )

    def line(self) -> str:
        """All of it on one line."""
        parts = [f"{self.items} items", self.audio, f"{self.speed} real time", f"{self.left} left", self.trouble]
        return ", ".join(part for part in parts if part)


class QuietObserver:
    """Shows nothing."""

    def __enter__(self) -> QuietObserver:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def message(self, text: str) -> None:
        """Ignored."""

    def progress(self, progress: Progress) -> None:
        """Ignored."""


class PlainObserver:
    """One line every few seconds, for log files and pipes.

    Args:
        console: where lines go.
        every_s: least time between two lines of progress; the last one, when all is done, is always shown.
        now_s: the clock.
    """

    def __init__(
        self, console: Console, *, every_s: float = PLAIN_EVERY_S, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._every_s = every_s
        self._now_s = now_s
        self._shown_at_s: float | None = None
        self._shown = ""

    def __enter__(self) -> PlainObserver:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def message(self, text: str) -> None:
        print(printable(text), file=self._console.file, flush=True)

    def progress(self, progress: Progress) -> None:
        line = Pace.of(progress).line()
        is_over = progress.items_done + progress.items_failed + progress.items_skipped >= progress.items_total
        now_s = self._now_s()
        is_due = self._shown_at_s is None or now_s - self._shown_at_s >= self._every_s
        if line != self._shown and (is_due or is_over):
            self._shown_at_s, self._shown = now_s, line
            self.message(line)


class RichObserver:
    """Bars that are redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.fields[items]} items"),
            BarColumn(),
            TextColumn("{task.fields[audio]}"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[left]} left"),
            TextColumn("[red]{task.fields[trouble]}"),
            console=console,
            transient=True,
        )
        self._task = self._bars.add_task("", total=None, items="-", audio="-", speed="-", left="-", trouble="")

    def __enter__(self) -> RichObserver:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def message(self, text: str) -> None:
        self._bars.console.print(Text(printable(text)))

    def progress(self, progress: Progress) -> None:
        pace = Pace.of(progress)
        self._bars.update(
            self._task,
            # An empty plan has no audio, and a bar of nothing out of nothing counts as unknown.
            total=progress.audio_total_s or None,
            completed=progress.audio_done_s,
            items=pace.items,
            audio=pace.audio,
            speed=pace.speed,
            left=pace.left,
            trouble=pace.trouble,
        )


def watcher(console: Console, *, is_quiet: bool) -> Watcher:
    """The observer that suits a console."""
    if is_quiet:
        return QuietObserver()
    # Not `console.is_terminal`: FORCE_COLOR makes that true for a log file, which bars would fill with escapes.
    return RichObserver(console) if console.file.isatty() else PlainObserver(console)
