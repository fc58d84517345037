"""Micro-batches in one worker thread, behind a queue that is bounded by time.

What waits while the model runs makes up the next batch: nothing is delayed to fill one. A request
is accepted only if, at the rate measured so far, it will be answered within the latency budget;
any other is refused at once, so that under any load those accepted are answered in time.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from nanonet.core.errors import NanoNetError

# Of the budget; what the estimate of the rate misses and HTTP takes has the rest.
HEADROOM = 0.6
# Of the budget: a batch's time. Those that come while it runs wait for all of it.
BATCH_SHARE = 0.1
HALF_LIFE = 4.0  # full batches after which what was measured counts half


class OverloadedError(NanoNetError):
    """The queue is full: try again in ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the server has as much to do as it can answer in time: try again later")
        self.seconds = seconds


class TooMuchError(NanoNetError):
    """A request that would take longer than the budget even if nothing else were to do."""

    def __init__(self, seconds: float, budget: float) -> None:
        super().__init__(
            f"these texts would take about {1000 * seconds:.0f} ms, and only {1000 * budget:.0f} ms"
            " are allowed: send fewer or shorter ones at once"
        )


class ClosedError(NanoNetError):
    """The batcher was closed, or has not started."""


class Throughput:
    """How much work is done per second: a mean that forgets, over batches that tell.

    A batch of one text is slow for its size; batches of half the full size or more count.
    """

    def __init__(self, work: float, seconds: float) -> None:
        self.rate = work / seconds
        self._work, self._seconds = 0.0, 0.0

    def add(self, work: float, seconds: float, full: float) -> None:
        """Take in a batch of this much work, where ``full`` would be the most."""
        if work < full / 2:
            return
        keep = 0.5 ** (work / full / HALF_LIFE)
        self._work = self._work * keep + work
        self._seconds = self._seconds * keep + seconds
        self.rate = self._work / max(self._seconds, 1e-9)


@dataclass(frozen=True)
class Answer:
    """The rows of a request's texts, in order, and the texts of the batch that finished it."""

    rows: list[Any]
    batch: int


@dataclass
class _Request:
    texts: Sequence[Any]
    works: list[float]
    answer: "Future[Answer]" = field(default_factory=Future)
    rows: list[Any] = field(default_factory=list)  # the first ones; batches go in order


class Observer(Protocol):
    """Who is told of every batch."""

    def __call__(self, texts: int, seconds: float) -> None:
        """Called in the worker thread."""


class Batcher:
    """Runs a model in one worker thread.

    Args:
        run: texts, of whatever kind, to rows, as many and in the same order.
        work: what one text costs, in a unit of your own (about its tokens); above 0.
        budget: seconds within which what is accepted shall be answered.
        observe: told of every batch.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], Iterable[Any]],
        work: Callable[[Any], float],
        budget: float,
        observe: Observer = lambda texts, seconds: None,
    ) -> None:
        self._run, self._work, self._observe = run, work, observe
        self.budget = budget
        self._throughput: Throughput | None = None
        self._queue: deque[tuple[_Request, int]] = deque()  # (request, which of its texts)
        self._backlog = 0.0  # work accepted and not done, the running batch included
        self._running, self._started = 0.0, 0.0  # work of the running batch; when it began
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="nanonet-model", daemon=True)

    def start(self, warm_up: list[Any]) -> None:
        """Start the worker; it first runs ``warm_up`` three times to measure, then is ready."""
        self._warm_up = warm_up
        self._thread.start()

    def close(self) -> None:
        """Accept nothing more. What was accepted is still answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until a closed batcher has answered everything."""
        self._thread.join()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._throughput is not None and not self._closing

    @property
    def finished(self) -> bool:
        """Whether everything accepted is answered and nothing more is taken."""
        return self._closing and not self._thread.is_alive()

    @property
    def rate(self) -> float:
        """Work per second, as estimated now; 0 before the start is over."""
        return self._throughput.rate if self._throughput else 0.0

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return len(self._queue)

    def submit(self, texts: Sequence[Any], late: float = 0.0) -> "Future[Answer]":
        """Accept a request, or refuse it.

        Args:
            texts: at least one.
            late: seconds by which the caller sees requests too late.

        Raises:
            ClosedError: the batcher takes nothing, not yet or no longer.
            TooMuchError: it alone would take longer than the budget.
            OverloadedError: it could not be answered in time now.
        """
        request = _Request(texts, [self._work(text) for text in texts])
        total = sum(request.works)
        limit = HEADROOM * self.budget
        with self._changed:
            if self._closing or self._throughput is None:
                raise ClosedError("the server is stopping" if self._closing else "not ready yet")
            if total > limit * self.rate:
                raise TooMuchError(total / self.rate, limit)
            wait = late + self._wait() + total / self.rate
            if wait > limit:
                raise OverloadedError(wait - limit)
            request.answer.set_running_or_notify_cancel()  # from here on it cannot be cancelled
            self._backlog += total
            self._queue.extend((request, i) for i in range(len(texts)))
            self._changed.notify()
        return request.answer

    def check(self, late: float) -> None:
        """Refuse any request, as `submit` would, if even the smallest could not be answered.

        Raises:
            OverloadedError: so it is.
        """
        if not self.ready:
            return
        with self._changed:
            wait = late + self._wait()
        if wait > HEADROOM * self.budget:
            raise OverloadedError(wait - HEADROOM * self.budget)

    def _wait(self) -> float:
        """Return the seconds until what was accepted is done."""
        queued = (self._backlog - self._running) / self.rate
        if not self._running:
            return queued
        # A batch that is late by a second is taken to need another one.
        return queued + abs(self._running / self.rate - (time.monotonic() - self._started))

    def _serve(self) -> None:
        """Measure, then work until closed and empty."""
        slowest = 0.0
        for _ in range(3):
            started = time.monotonic()
            self._run(self._warm_up)
            slowest = max(slowest, time.monotonic() - started)
        self._throughput = Throughput(sum(map(self._work, self._warm_up)), max(slowest, 1e-9))
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                full = self.rate * self.budget * BATCH_SHARE
                batch = self._take(full)
                self._started = time.monotonic()
            rows: Iterable[Any] = [None] * len(batch)
            failed: BaseException | None = None
            try:
                rows = self._run([request.texts[i] for request, i in batch])
            except BaseException as error:  # the tokenizer's panics are no Exceptions
                failed = error
            seconds = time.monotonic() - self._started
            with self._changed:
                self._throughput.add(self._running, seconds, full)
                self._backlog -= self._running
                self._running = 0.0
            self._observe(len(batch), seconds)
            _deliver(batch, rows, failed)

    def _take(self, full: float) -> list[tuple[_Request, int]]:
        """Take from the queue's head at least one text, at most ``full`` work."""
        batch: list[tuple[_Request, int]] = []
        while self._queue:
            request, i = self._queue[0]
            if batch and self._running + request.works[i] > full:
                break
            batch.append(self._queue.popleft())
            self._running += request.works[i]
        return batch


def _deliver(
    batch: list[tuple[_Request, int]], rows: Iterable[Any], failed: BaseException | None
) -> None:
    """Give each request its rows, and answer those that are complete."""
    for (request, _), row in zip(batch, rows, strict=True):
        if request.answer.done():
            continue  # an earlier batch failed
        request.rows.append(row)
        if failed is not None:
            request.answer.set_exception(failed)
        elif len(request.rows) == len(request.texts):
            request.answer.set_result(Answer(request.rows, len(batch)))
