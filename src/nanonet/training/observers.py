"""What the loop tells of itself: log rows, and who is told."""

import time
from dataclasses import dataclass
from typing import Protocol

from nanonet.training.checkpoint import Position


@dataclass(frozen=True)
class LogRow:
    """Means over the steps since the row before.

    Attributes:
        step: steps done.
        losses: unweighted, by ``<learner>.<objective>``.
        learning_rates: of the last step, by ``<learner>.<part>``.
        seconds: training time since the start, earlier sessions included.
        tokens_per_second: real tokens of labelled and unlabelled rows drawn, per second.
    """

    step: int
    losses: dict[str, float]
    learning_rates: dict[str, float]
    seconds: float
    tokens_per_second: float


class Observer(Protocol):
    """Who is told what happens in the loop."""

    def on_step(self, step: int) -> None:
        """A step is done."""

    def on_log(self, row: LogRow) -> None:
        """A log row is complete."""

    def on_checkpoint(self, position: Position) -> None:
        """The position should be saved."""


class Pace:
    """Time and tokens since the last log row, by which the loop tells how fast it is."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0, 0.0
        self.restart()

    def restart(self) -> None:
        """Begin the next lap now."""
        self._last = time.perf_counter()

    def lap(self, tokens: int) -> float:
        """Return the seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._seconds += seconds
        self._tokens += tokens
        return seconds

    def rate(self) -> float:
        """Return tokens per second since the last call."""
        rate = self._tokens / max(self._seconds, 1e-9)
        self._tokens, self._seconds = 0, 0.0
        return rate
