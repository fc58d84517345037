"""How far a long command is, on standard error: a bar on a terminal, else a line now and then."""

import sys
import time
from types import TracebackType
from typing import Any

import click

_LINE_EVERY = 30.0  # seconds


class RowProgress:
    """Shows the rows done of a job, their rate and the time left (see `runtime.batch.Progress`)."""

    def __init__(self, name: str, unit: str = "texts", *, quiet: bool = False) -> None:
        self._name = name
        self._unit = unit
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._rows = self._reused = 0
        self._since = self._last_line = time.monotonic()

    def __enter__(self) -> "RowProgress":
        if not self._quiet and sys.stderr.isatty():
            self._bar, self._task = _bar(self._name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, rows: int, reused: int, fraction: float) -> None:
        """See `runtime.batch.Progress`."""
        self._rows, self._reused = rows, reused
        now = time.monotonic()
        if self._bar is not None:
            total = 1.0 if fraction else None
            self._bar.update(self._task, total=total, completed=fraction, rows=self.summary())
        elif not self._quiet and now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            share = f" ({fraction:.0%} of the input)" if fraction else ""
            click.echo(f"{self._name}: {self.summary()}{share}", err=True)

    def summary(self) -> str:
        """Return the rows done and the rate of this call."""
        seconds = time.monotonic() - self._since
        rate = (self._rows - self._reused) / seconds if seconds > 0 else 0.0
        before = f" ({self._reused:,} of them answered before)" if self._reused else ""
        digits = 0 if rate >= 10 else 1
        return f"{self._rows:,} {self._unit}{before}, {rate:,.{digits}f} {self._unit}/s"


def _bar(name: str) -> tuple[Any, Any]:
    """Return a started bar and its task."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[rows]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    return bar, bar.add_task(name, total=None, rows="")
