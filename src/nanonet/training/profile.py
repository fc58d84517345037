"""Where the time of a run goes: what ``nanonet train --profile`` measures.

Spans lie within each other, and the time of an inner one is not that of the outer one: the seconds
of all parts add up to those of the whole. Off, a span costs less than a microsecond.
"""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from nanonet.core.files import new_file

TRACED_STEPS = 3
STEPS_BEFORE = 5  # of a loop: memory has been allocated and caches are warm by then
STEP_PARTS = ("data", "teacher forward", "students forward", "losses", "backward", "optimizer")
PARTS = (
    "reading",
    "model",
    *STEP_PARTS,
    "propagation",
    "guard",
    "evaluation",
    "checkpoint",
    "tracing",
)
OTHER = "other"
_NOTHING = nullcontext()


@dataclass
class Part:
    """What was counted of one part; ``rows`` and ``tokens`` are those that an encoder read."""

    seconds: float = 0.0
    calls: int = 0
    rows: int = 0
    tokens: int = 0


class Profile:
    """Adds up the time of parts, and records a trace of a few steps.

    Args:
        folder: where the trace goes; None: nothing is measured.

    Attributes:
        on: whether anything is measured.
        parts: by name; those of a warm-up start with its name.
        steps: steps measured, neither traced nor of a warm-up.
        rows: drawn in these steps.
        tokens: of these rows.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.on = folder is not None
        self.parts: dict[str, Part] = {}
        self.steps = self.rows = self.tokens = 0
        self._trace = None if folder is None else folder / "trace.json"
        self._prefix = ""
        self._open: list[str] = []
        self._began = self._since = time.perf_counter()
        self._traced = range(0)
        self._tracer: torch.profiler.profile | None = None
        self._synchronize = False

    def span(self, part: str, rows: int = 0, tokens: int = 0) -> AbstractContextManager[None]:
        """Measure a block as a part's; ``rows`` and ``tokens``: what an encoder reads in it."""
        return self._measure(part, rows, tokens) if self.on else _NOTHING

    @contextmanager
    def within(self, loop: str) -> Iterator[None]:
        """Keep what happens in a block apart from the rest, under the loop's name; not traced."""
        self._prefix = f"{loop} "
        try:
            yield
        finally:
            self._prefix = ""

    def start(self, traced: range, device: str) -> None:
        """Begin a loop of which these steps are to be traced."""
        self._traced = range(0) if self._prefix else traced
        # What a GPU still works on would count for whoever waits for it.
        self._synchronize = torch.device(device).type == "cuda"

    def start_step(self, step: int) -> None:
        """Begin a step, and with it the trace, or end that (see `end_trace` for errors)."""
        if not self.on:
            return
        if step not in self._traced:
            self.end_trace()
        elif self._tracer is None:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if self._synchronize else []
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to standard error
            with self.span("tracing"):
                self._tracer = torch.profiler.profile(activities=activities)
                self._tracer.start()

    def count(self, rows: int, tokens: int) -> None:
        """Note what a step has drawn."""
        if self.on and self._tracer is None and not self._prefix:
            self.steps += 1
            self.rows += rows
            self.tokens += tokens

    def end_trace(self) -> None:
        """Write the trace if one is being recorded.

        Raises:
            OSError: the disk is full or not writable.
        """
        if self._tracer is None or self._trace is None:
            return
        with self.span("tracing"):
            tracer, self._tracer = self._tracer, None
            tracer.stop()
            with new_file(self._trace) as temporary:
                tracer.export_chrome_trace(str(temporary))

    def report(self) -> dict[str, Any]:
        """Return what was measured so far, ready for JSON."""
        self._mark()
        whole = self._since - self._began
        known = {**self.parts, OTHER: Part(whole - sum(p.seconds for p in self.parts.values()))}
        in_steps = sum(self.parts[name].seconds for name in STEP_PARTS if name in self.parts)
        return {
            "seconds": round(whole, 3),
            "steps": self.steps,
            "tokens_per_second": _rate(self.tokens, in_steps),
            "examples_per_second": _rate(self.rows, in_steps),
            "parts": [
                {
                    "part": name,
                    "seconds": round(part.seconds, 3),
                    "share": round(part.seconds / whole, 4),
                    "calls": part.calls,
                    "tokens_per_second": _rate(part.tokens, part.seconds),
                    "examples_per_second": _rate(part.rows, part.seconds),
                }
                for name, part in sorted(known.items(), key=lambda item: _place(item[0]))
            ],
        }

    @contextmanager
    def _measure(self, part: str, rows: int, tokens: int) -> Iterator[None]:
        name = "tracing" if self._tracer is not None else self._prefix + part
        self._mark()
        self._open.append(name)
        try:
            if self._tracer is None:
                yield
            else:
                with record_function(part):
                    yield
        finally:
            self._mark()
            self._open.pop()
            found = self.parts[name]  # `_mark` has made it
            found.calls += 1
            if name != "tracing":  # its pace says nothing
                found.rows += rows
                found.tokens += tokens

    def _mark(self) -> None:
        """Give the time since the last mark to the innermost open span."""
        if self._synchronize:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self.parts.setdefault(self._open[-1], Part()).seconds += now - self._since
        self._since = now


OFF = Profile()


def report_lines(report: dict[str, Any]) -> list[str]:
    """Return the lines that show a report to a person."""
    lines = [f"{'where the time went':28}{'seconds':>9}{'share':>8}{'calls':>8}{'tokens/s':>12}"]
    for row in report["parts"]:
        rate = f"{row['tokens_per_second']:,.0f}" if row["tokens_per_second"] else ""
        line = f"{row['part']:28}{row['seconds']:9.2f}{row['share']:8.1%}{row['calls']:8}{rate:>12}"
        lines.append(line.rstrip())
    lines.append(
        f"whole steps: {report['tokens_per_second'] or 0:,.0f} tokens/s,"
        f" {report['examples_per_second'] or 0:,.0f} examples/s over {report['steps']} steps"
    )
    return lines


def traced_steps(first: int, steps: int, busy: range) -> range:
    """Return the steps to trace of a loop from ``first`` to ``steps``.

    Args:
        first: its first step.
        steps: where it ends.
        busy: steps in which everything happens that ever does.
    """
    last = min(steps, busy.stop) if busy else steps
    start = max(first, busy.start if busy else 0) + STEPS_BEFORE
    start = max(first, min(start, last - TRACED_STEPS))
    return range(start, min(start + TRACED_STEPS, steps))


def _place(name: str) -> tuple[int, bool]:
    """Return where a part stands in the list: as in `PARTS`, those of a warm-up before others."""
    own = [i for i, part in enumerate(PARTS) if name.endswith(part)]
    return (own[0] if own else len(PARTS)), name not in PARTS


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 1) if count and seconds > 0.0 else None
