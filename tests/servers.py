"""A server in a thread, and in a process of its own; a client of the standard library."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """An answer; ``json`` is None where it holds none."""

    status: int
    headers: dict[str, str]
    body: bytes
    json: Any = field(default=None)


@dataclass(frozen=True)
class Client:
    """Asks a server, a new connection for each request."""

    port: int

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            content = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = found.get("content-type") == "application/json"
        return Reply(response.status, found, content, json.loads(content) if is_json else None)

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def predict(self, **body: Any) -> Reply:
        return self.ask("POST", "/predict", json.dumps(body))

    def raw(self, data: bytes) -> bytes:
        """Send bytes and nothing more; return all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            parts = list(iter(lambda: connection.recv(65536), b""))
        return b"".join(parts)

    def wait_until_ready(self) -> None:
        while self.get("/readyz").status != 200:
            threading.Event().wait(0.02)


@contextlib.contextmanager
def running(predictor: Any, settings: Any, ready: bool = True):
    """Run a server in a thread; yield (client, server). It is stopped as by a signal."""
    from nanonet.runtime.server import create_server

    listener = socket.create_server(("127.0.0.1", 0))
    server = create_server(predictor, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    client = Client(listener.getsockname()[1])
    try:
        if ready:
            client.wait_until_ready()
        yield client, server
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(60)
        listener.close()
    assert not thread.is_alive()


@contextlib.contextmanager
def process(*arguments: object, **environment: str):
    """Run `nanonet serve` on a free port; yield (process, client). It is killed if still there."""
    command = [sys.executable, "-m", "nanonet", "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as server:
        try:
            found = re.search(r":(\d+)$", server.stdout.readline().strip())
            assert found, server.communicate()
            client = Client(int(found[1]))
            yield server, client
        finally:
            server.kill()
