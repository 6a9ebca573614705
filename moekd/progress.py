"""Progress for people: a live bar on a terminal, one line an epoch in a log file, nothing in worker processes."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Progressbar:
    """A bar for the running task and printed lines for what is done.

    Args:
        enabled: False prints nothing at all.
        console: where to print, default standard error.
    """

    def __init__(self, enabled: bool = True, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False)
        self.enabled = enabled
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not enabled or not self.console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Progressbar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, description: str, total: int, done: int = 0) -> None:
        """Begin a task of `total` units."""
        self.finish()
        self._task = self._progress.add_task(description, total=total, completed=done, note="")

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Move on; `note` is shown behind the bar (loss, metric)."""
        if self._task is None:
            return
        if note is None:
            self._progress.advance(self._task, amount)
        else:
            self._progress.update(self._task, advance=amount, note=note)

    def finish(self) -> None:
        """End the running task."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.enabled:
            self.console.print(text, markup=False)
