"""The HTTP server: a bundle behind FastAPI, run by uvicorn."""

import hmac
import logging
import socket
import time
from importlib.resources import files
from types import FrameType
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nanonet.core.errors import BundleError
from nanonet.runtime.answers import Model, served
from nanonet.runtime.observe import JsonHandler, log
from nanonet.runtime.requests import RequestError
from nanonet.runtime.served import ErrorAnswer
from nanonet.runtime.service import ServerSettings, Service

HEAD_BYTES = 524_288  # of a request's head and what is read along with it
CONNECTIONS = 1000  # open at a time; further ones get 503
KEEP_ALIVE_SECONDS = 75  # longer than proxies keep a connection: they are to close it first
CLOSING_SECONDS = 5  # for half-sent requests, once everything accepted is answered
TASK_MARK = "<!-- the task's own part -->"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src"
    " 'unsafe-inline'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Observed:
    """Middleware: counts and logs each request, and refuses early what cannot be answered in time.

    A server that is asked for more than it can do lives on how cheaply it refuses.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: set[str]) -> None:
        self.app, self.service, self.paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        status = 500
        facts = scope.setdefault("state", {})  # request.state of the routes
        method, path = scope["method"], scope["path"]

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.service.draining:  # the client's next request needs another server
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            refusal = self.service.overload() if (method, path) == ("POST", "/predict") else None
            await (refusal or self.app)(scope, receive, watch)
        finally:
            known = path if path in self.paths else "other"
            self.service.metrics.requests.labels(known, str(status)).inc()
            log(
                "request",
                method=method,
                path=path[:200],
                status=status,
                ms=round(1000 * (time.monotonic() - started), 2),
                **{name: facts[name] for name in ("texts", "batch") if name in facts},
            )


def create_app(model: Model, settings: ServerSettings) -> FastAPI:
    """Return the application; ``app.state.service`` is its `Service`."""
    service = Service(served(model), settings)
    app = FastAPI(
        title="NanoNet",
        description=service.served.about,
        version=model.manifest.versions.get("nanonet", ""),
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
        lifespan=service.running,
    )
    app.state.service = service
    _add_errors(app)
    _add_routes(app, service)
    paths = {route.path for route in app.routes if hasattr(route, "path")}
    app.add_middleware(Observed, service=service, paths=paths)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    token = service.settings.token
    guarded = [Depends(_guard(token))] if token else []
    task = service.served
    answers: dict[int | str, dict[str, Any]] = {200: {"model": task.answers}}
    for refusal in (400, 401, 408, 413, 422, 429, 500, 503):
        answers[refusal] = {"model": ErrorAnswer}
    app.add_api_route(
        "/predict",
        service.predict,
        methods=["POST"],
        dependencies=guarded,
        response_class=JSONResponse,
        responses=answers,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": task.asked.model_json_schema()}},
            }
        },
    )

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"model": ErrorAnswer}})
    async def readyz() -> dict[str, str]:
        """Say whether requests are taken: not while starting or stopping."""
        if not service.ready:
            state = "stopping" if service.draining else "not ready yet"
            raise HTTPException(503, f"the server is {state}")
        return {"status": "ready"}

    @app.get("/metrics", dependencies=guarded, response_class=Response)
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/info", dependencies=guarded)
    async def info() -> dict[str, Any]:
        """Return what the bundle says of itself, and the limits of a request."""
        return _info(service)

    @app.get("/openapi.json", dependencies=guarded, include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return app.openapi()

    page = _read("page.html").replace(TASK_MARK, _read(task.page))
    for path, content in (("/", page), ("/docs", _read("docs.html"))):
        answer = HTMLResponse(content, headers=_PAGE_HEADERS)
        app.add_api_route(path, _always(answer), include_in_schema=False)


def _read(page: str) -> str:
    return (files("nanonet.runtime") / page).read_text(encoding="utf-8")


def _always(answer: Response) -> Any:
    async def page() -> Response:
        return answer

    return page


def _guard(token: str) -> Any:
    """Return the dependency that lets only those with the token through."""
    expected = token.encode()
    bearer = HTTPBearer(auto_error=False, description="The server's token.")

    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> None:
        found = given.credentials.encode("latin-1") if given else b""  # as headers are decoded
        if not hmac.compare_digest(found, expected):
            raise HTTPException(
                401,
                "send the header 'Authorization: Bearer TOKEN' with the server's token",
                {"WWW-Authenticate": "Bearer"},
            )

    return check


def _info(service: Service) -> dict[str, Any]:
    manifest, settings = service.served.manifest, service.settings
    return {
        "task": manifest.task,
        **service.served.info(),
        "max_length": manifest.max_length,
        "quantization": manifest.quantization,
        "parameters": manifest.parameters,
        "limits": {
            "body_bytes": settings.limits.body_bytes,
            "texts": settings.limits.texts,
            "characters": settings.limits.characters,
            "latency_ms": round(1000 * settings.max_latency),
        },
    }


def _add_errors(app: FastAPI) -> None:
    """Answer every error with ``{"error": ...}``."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return JSONResponse({"error": str(error)}, error.status)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    async def unforeseen(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "internal error: see the server's log"}, 500)

    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(StarletteHTTPException, http)
    app.add_exception_handler(Exception, unforeseen)


class Protocol(HttpToolsProtocol):
    """Uvicorn's protocol, with a limit on a request's head, which it leaves without one."""

    head = 0  # bytes received while no request was under way

    def data_received(self, data: bytes) -> None:
        """Called with what was read."""
        if self.cycle is None or self.cycle.response_complete:
            self.head += len(data)
            if self.head > HEAD_BYTES and (self.cycle is None or not self.cycle.more_body):
                self.send_400_response("The head of the request is too long.")
                return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self.head = 0


class Server(uvicorn.Server):
    """Uvicorn's server, which answers what was accepted before it closes its port.

    A second signal closes at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop. A signal handler may take no lock, so the rest is done in `on_tick`."""
        if self.service.draining:
            super().handle_exit(sig, frame)
        self.service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if self.service.draining:
            self.service.batcher.close()
            self.should_exit |= self.service.batcher.finished
        return await super().on_tick(counter)


def create_server(model: Model, settings: ServerSettings) -> Server:
    """Return the server of `create_app`, to be run on a bound socket.

    Raises:
        BundleError: the model does not run.
    """
    app = create_app(model, settings)
    task = app.state.service.served
    try:
        list(task.run(task.warm_up()))
    except Exception as error:  # onnxruntime and tokenizers raise kinds of their own
        reason = " ".join(str(error).split())
        raise BundleError(f"the bundle's model does not run: {reason}") from None
    config = uvicorn.Config(
        app,
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    return Server(config, app.state.service)


def serve(model: Model, settings: ServerSettings, listener: socket.socket) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, logging to stderr.

    Raises:
        BundleError: the model does not run.
    """
    logging.getLogger().addHandler(JsonHandler(logging.WARNING))
    create_server(model, settings).run(sockets=[listener])
