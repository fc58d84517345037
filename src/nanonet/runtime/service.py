"""What the server's routes share: the batcher around the model, and whether requests are taken."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from nanonet.runtime.batching import Batcher, ClosedError, OverloadedError, TooMuchError
from nanonet.runtime.observe import Metrics, log
from nanonet.runtime.requests import Limits, RequestError, parse, read_body
from nanonet.runtime.served import Served

LAG_SECONDS = 0.02  # how often the event loop's lateness is looked at
# A request waits for the event loop to be read, to be handled, to hear of its answer, to send it.
LAGS = 4


@dataclass(frozen=True)
class ServerSettings:
    """How to serve.

    Attributes:
        max_latency: seconds within which an accepted request is to be answered.
        limits: of a request.
        token: what clients must send as bearer token; None: everyone may ask.
    """

    max_latency: float = 1.0
    limits: Limits = field(default_factory=Limits)
    token: str | None = None


class Service:
    """What the routes share."""

    def __init__(self, served: Served[Any, Any], settings: ServerSettings) -> None:
        self.served, self.settings = served, settings
        self.metrics = Metrics()
        self.draining = False
        self.lag = 0.0  # seconds
        self.batcher = Batcher(served.run, served.work, settings.max_latency, self.metrics.batch)
        self.metrics.queue_texts.set_function(lambda: self.batcher.waiting)
        self.metrics.rate.set_function(lambda: self.batcher.rate)
        self.metrics.lag.set_function(lambda: self.lag)

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.batcher.ready and not self.draining

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Run the worker and watch the event loop while the application runs."""
        manifest = self.served.manifest
        log("start", task=manifest.task, max_length=manifest.max_length)
        self.batcher.start(self.served.warm_up())
        watch = asyncio.create_task(self._watch_lag())
        yield
        watch.cancel()
        self.batcher.close()
        await asyncio.to_thread(self.batcher.join)
        log("stop")

    async def _watch_lag(self) -> None:
        """Requests wait unseen while the event loop is late, so admission counts that time."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_SECONDS)
            late = time.monotonic() - before - LAG_SECONDS
            self.lag += 0.3 * (late - self.lag)

    @property
    def late(self) -> float:
        """Seconds that a request waits outside the queue."""
        return LAGS * self.lag

    def overload(self) -> Response | None:
        """Return the refusal of any request whatever, if none can be answered in time."""
        try:
            self.batcher.check(self.late)
        except OverloadedError as error:
            refusal = self._overloaded(error)
            return JSONResponse({"error": refusal.detail}, 429, refusal.headers)
        return None

    async def predict(self, request: Request) -> Response:
        """Answer one text or several."""
        limits = self.settings.limits
        if not self.ready:
            raise self._closed()
        body = await read_body(request, limits.body_bytes)
        started = time.monotonic()
        asked = parse(body, limits, self.served.asked)
        items = self.served.items(asked)
        request.state.texts = len(items)
        try:
            if self.draining:  # since the body began
                raise ClosedError("the server is stopping")
            accepted = self.batcher.submit(items, self.late)
        except OverloadedError as error:
            raise self._overloaded(error) from None
        except TooMuchError as error:
            self.metrics.rejected.labels("too_much").inc()
            raise RequestError(413, str(error)) from None
        except ClosedError:
            raise self._closed() from None
        answer = await asyncio.wrap_future(accepted)
        request.state.batch = answer.batch
        predictions = [self.served.answer(found, asked) for found in answer.rows]
        self.metrics.latency.observe(time.monotonic() - started)
        return JSONResponse({"predictions": predictions})

    def _overloaded(self, error: OverloadedError) -> HTTPException:
        self.metrics.rejected.labels("overload").inc()
        seconds = str(max(1, math.ceil(error.seconds)))
        return HTTPException(429, str(error), {"Retry-After": seconds})

    def _closed(self) -> HTTPException:
        self.metrics.rejected.labels("closed").inc()
        state = "stopping" if self.draining else "not ready yet"
        return HTTPException(503, f"the server is {state}", {"Retry-After": "1"})
