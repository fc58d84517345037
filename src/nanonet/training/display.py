"""What a person sees of a run: a live table on a terminal, plain lines elsewhere, or nothing."""

from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nanonet.training.checkpoint import Position
from nanonet.training.engine import Engine
from nanonet.training.observers import LogRow, Observer
from nanonet.training.stopping import StopRequest, stop_on_interrupt


class Display(Protocol):
    """Where messages and progress go."""

    def say(self, text: str) -> None:
        """Show one line."""

    def warn(self, text: str) -> None:
        """Show one line that asks for attention."""

    def start(self, step: int, steps: int, what: str = "training") -> None:
        """Training, or another loop, starts."""

    def on_step(self, step: int) -> None:
        """A step is done."""

    def on_log(self, row: LogRow) -> None:
        """Losses and rates are known."""

    def stop(self) -> None:
        """Training has ended, one way or another."""


class SilentDisplay:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """See `Display`."""

    def warn(self, text: str) -> None:
        """See `Display`."""

    def start(self, step: int, steps: int, what: str = "training") -> None:
        """See `Display`."""

    def on_step(self, step: int) -> None:
        """See `Display`."""

    def on_log(self, row: LogRow) -> None:
        """See `Display`."""

    def stop(self) -> None:
        """See `Display`."""


class ConsoleDisplay:
    """Writes to standard error: live on a terminal, plain lines elsewhere; quiet: warnings only."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._steps = 0
        self._what = "training"
        self._last: tuple[int, float] | None = None  # step and seconds of the row before
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[cyan]{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
        )

    def say(self, text: str) -> None:
        """See `Display`."""
        if self._quiet:
            return
        self._console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """See `Display`."""
        self._console.print(f"warning: {text}", markup=False, soft_wrap=True, style="yellow")

    def start(self, step: int, steps: int, what: str = "training") -> None:
        """See `Display`."""
        self._steps = steps
        self._last = None
        self._what = what
        if self._console.is_terminal and not self._quiet:
            self._task = self._progress.add_task(what, total=steps, completed=step, rate="")
            self._live = Live(self._progress, console=self._console, refresh_per_second=4)
            self._live.start()

    def on_step(self, step: int) -> None:
        """See `Display`."""
        if self._live:
            self._progress.update(self._task, completed=step)

    def on_log(self, row: LogRow) -> None:
        """See `Display`."""
        if self._live:
            rate = f"{row.tokens_per_second:,.0f} tokens/s"
            self._progress.update(self._task, completed=row.step, rate=rate)
            table = Table.grid()
            table.add_row(self._progress)
            table.add_row(_losses_table(row))
            self._live.update(table)
        else:
            self.say(self._line(row))
        self._last = row.step, row.seconds

    def _line(self, row: LogRow) -> str:
        """Return a row as one line; the time left goes by the pace since the row before."""
        left = ""
        if self._last is not None and row.step > self._last[0]:
            pace = (row.seconds - self._last[1]) / (row.step - self._last[0])
            left = f", {pace * (self._steps - row.step):.0f} s left"
        losses: dict[str, list[str]] = {}
        for key, value in row.losses.items():
            learner, objective = key.split(".")
            losses.setdefault(learner, []).append(f"{objective} {value:.4f}")
        parts = [f"{n}: {', '.join(v)}, lr {_rate(row, n):.1e}" for n, v in losses.items()]
        speed = f"{row.tokens_per_second:,.0f} tokens/s{left}"
        name = "step" if self._what == "training" else f"{self._what} step"
        return f"{name} {row.step}/{self._steps}  " + "; ".join([*parts, speed])

    def stop(self) -> None:
        """See `Display`."""
        if self._live:
            self._live.stop()
            self._live = None
            self._progress.remove_task(self._task)


def _rate(row: LogRow, learner: str) -> float:
    """Return the learning rate of a learner's encoder, or of its head if only that learns."""
    rates = row.learning_rates
    return rates.get(f"{learner}.encoder", rates.get(f"{learner}.head", 0.0))


def _losses_table(row: LogRow) -> Table:
    """Return losses and learning rates, a learner a row."""
    learners = sorted({key.split(".")[0] for key in row.losses})
    objectives = list(dict.fromkeys(key.split(".")[1] for key in row.losses))
    table = Table(box=None, padding=(0, 2))
    for heading in ("", *objectives, "learning rate"):
        table.add_column(heading, justify="right")
    for learner in learners:
        cells = [row.losses.get(f"{learner}.{o}") for o in objectives]
        table.add_row(
            learner, *("" if c is None else f"{c:.4f}" for c in cells), f"{_rate(row, learner):.2e}"
        )
    return table


class LoggingDisplay:
    """Passes everything on and keeps the messages in the run's ``log.txt``."""

    def __init__(self, inner: Display, path: Path) -> None:
        self._inner = inner
        self._path = path
        self.start, self.stop = inner.start, inner.stop
        self.on_step, self.on_log = inner.on_step, inner.on_log

    def say(self, text: str) -> None:
        """See `Display`."""
        self._inner.say(text)
        self._append(text)

    def warn(self, text: str) -> None:
        """See `Display`."""
        self._inner.warn(text)
        self._append(f"warning: {text}")

    def _append(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def run_shown(
    engine: Engine, position: Position, observer: Observer, display: Display, what: str = "training"
) -> tuple[Position, str]:
    """Step from ``position`` to the end or until a stop is asked for, Ctrl-C included, and show it.

    Returns:
        Where it stands, and why it stopped: empty at the end, ``interrupted`` or ``time limit``.
    """
    stop = StopRequest()
    display.start(position.step, engine.config.training.steps, what)
    try:
        with stop_on_interrupt(stop, patient=engine.processes.count > 1):
            position = engine.run(position, observer, stop)
    finally:
        display.stop()
    return position, stop.reason
