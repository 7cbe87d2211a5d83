"""How a long step is shown: a bar on a terminal, a plain line about every ten seconds elsewhere, nothing with -q."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_SECONDS = 10.0


class Progress:
    """Shows nothing; the base of the two that do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""

    def step(self, name: str) -> None:
        """Begin another step."""

    def percent(self, value: int) -> None:
        """Show how much of the step is done, 0 … 100."""

    def tick(self) -> None:
        """Be called about every second, also when nothing happens."""


class Lines(Progress):
    """Plain lines on stderr, for logs and batch jobs."""

    def __init__(self, title: str) -> None:
        """Show `title` in every line."""
        self._title = title
        self._step = ""
        self._percent = -1
        self._started = self._shown = time.monotonic()

    def step(self, name: str) -> None:
        """Print the name of the step."""
        self._step, self._percent = name, -1
        self._started = time.monotonic()
        self._print()

    def percent(self, value: int) -> None:
        """Remember; printed by the next tick that is due."""
        self._percent = value

    def tick(self) -> None:
        """Print a line when the last one is ten seconds old."""
        if time.monotonic() - self._shown >= LINE_SECONDS:
            self._print()

    def _print(self) -> None:
        self._shown = time.monotonic()
        percent = f" {self._percent}%" if self._percent >= 0 else ""
        seconds = f" ({self._shown - self._started:.0f} s)" if self._shown - self._started >= 1 else ""
        sys.stderr.write(f"{self._title}: {self._step}{percent}{seconds}\n")
        sys.stderr.flush()


class Bar(Progress):
    """A rich progress bar on stderr."""

    def __init__(self, title: str) -> None:
        """Show `title` left of the bar."""
        self._title = title
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Start drawing."""
        from rich.console import Console  # noqa: PLC0415 - 60 ms, only on a terminal
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
        from rich.progress import Progress as Rich  # noqa: PLC0415

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bar = Rich(*columns, console=Console(stderr=True))
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing; the finished bars stay on the screen."""
        if self._bar:
            self._bar.stop()

    def step(self, name: str) -> None:
        """Finish the bar of the last step and start another."""
        if self._bar:
            self._finish()
            self._task = self._bar.add_task(f"{self._title}: {name}", total=100)

    def percent(self, value: int) -> None:
        """Move the bar."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=value)

    def _finish(self) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=100)


def shown(title: str, *, quiet: bool) -> Progress:
    """Choose by where stderr goes."""
    if quiet:
        return Progress()
    return Bar(title) if sys.stderr.isatty() else Lines(title)
