"""What a server tells of itself: Prometheus metrics, and a line of JSON per event. Never a text."""

import contextlib
import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "nanonet_requests",
            "Answered requests.",
            ["path", "status"],
            registry=self.registry,
        )
        self.rejected = Counter(
            "nanonet_rejected",
            "Requests to /predict refused for lack of time (overload, too_much) or of a server"
            " that is ready (closed).",
            ["reason"],
            registry=self.registry,
        )
        self.texts = Counter("nanonet_texts", "Texts answered.", registry=self.registry)
        self.latency = Histogram(
            "nanonet_request_seconds",
            "From a request's body to its answer, of accepted requests to /predict.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_texts = Histogram(
            "nanonet_batch_texts", "Texts per batch.", buckets=_SIZES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "nanonet_batch_seconds",
            "The model's time per batch.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_texts = Gauge(
            "nanonet_queue_texts", "Texts that wait for the model.", registry=self.registry
        )
        self.rate = Gauge(
            "nanonet_tokens_per_second",
            "The model's estimated speed, which decides what is accepted.",
            registry=self.registry,
        )
        self.lag = Gauge(
            "nanonet_loop_lag_seconds",
            "By how much the event loop is late, a moving mean.",
            registry=self.registry,
        )

    def batch(self, texts: int, seconds: float) -> None:
        """Count a batch."""
        self.texts.inc(texts)
        self.batch_texts.observe(texts)
        self.batch_seconds.observe(seconds)


def log(event: str, **fields: Any) -> None:
    """Write one line of JSON to stderr."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "event": event, **fields})
    with contextlib.suppress(OSError):  # whoever read the log is gone: no reason to stop
        print(line, file=sys.stderr, flush=True)


def where(error: BaseException) -> str:
    """Return an error's kind and place. Not its message, which might quote a text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    file = PurePath(trace.tb_frame.f_code.co_filename).name
    return f"{type(error).__name__} at {file}:{trace.tb_lineno}"


class JsonHandler(logging.Handler):
    """Turns what libraries log into lines of the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        fields = {"level": record.levelname.lower(), "message": record.getMessage().strip()}
        if record.exc_info and record.exc_info[1]:
            fields["error"] = where(record.exc_info[1])
        log("log", **fields)
