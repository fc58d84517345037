"""Stopping a run after the step that it is in: Ctrl-C, SIGTERM, a time limit."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """A wish to stop after the current step, and why."""

    reason: str = ""

    def check_clock(self, seconds: float, max_minutes: float) -> None:
        """Ask to stop when the time limit is reached (0: no limit)."""
        if not self.reason and max_minutes > 0.0 and seconds >= 60.0 * max_minutes:
            self.reason = "time limit"


@contextmanager
def stop_on_interrupt(stop: StopRequest, patient: bool = False) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into a `StopRequest`; a second one interrupts at once.

    Not where ``patient``: a launcher of many processes hands on the signal that they have too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signal handlers belong to the main thread; a notebook's or server's stay as is
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if stop.reason == "interrupted" and not patient:
            raise KeyboardInterrupt
        stop.reason = "interrupted"

    old = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
