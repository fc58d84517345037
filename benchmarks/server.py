"""Load a server beyond what it can do, and see whether what it accepts is answered in time.

    python benchmarks/server.py BUNDLE --texts test.csv --seconds 60 --out server.json

Starts `nanonet serve BUNDLE` on loopback. A closed loop of clients finds the saturating rate; then
an open loop offers a multiple of it, in random gaps, whatever the answers. Latencies count from the
moment at which a request was due, so a client that falls behind does not flatter the server. A
request is lost if it gets no answer, or one that is neither 200 nor 429. One text per request.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CONNECTIONS = 900  # the client's most at a time
PATIENCE = 30.0  # seconds after which an answer counts as lost


class Connection:
    """A kept-alive HTTP connection: about as little work as a client can do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, address: tuple[str, int]) -> "Connection":
        """Connect."""
        return cls(*await asyncio.open_connection(*address))

    async def post(self, body: bytes) -> int:
        """Send a body to /predict; return the answer's status."""
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
        await self.reader.readexactly(length)
        return int(answer.split(b" ", 2)[1])

    def close(self) -> None:
        """Close the connection."""
        self.writer.close()


@dataclass
class Outcome:
    """What became of the requests of a loop."""

    statuses: Counter[str] = field(default_factory=Counter)
    accepted: list[float] = field(default_factory=list)  # latencies of status 200, seconds
    rejected: list[float] = field(default_factory=list)  # latencies of status 429, seconds
    late: float = 0.0  # by how much the client was late at worst, seconds
    memory: list[int] = field(default_factory=list)  # resident bytes: start, middle, end

    def add(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self.statuses[str(status)] += 1
        if status == 200:
            self.accepted.append(seconds)
        elif status == 429:
            self.rejected.append(seconds)


async def closed_loop(
    address: tuple[str, int], bodies: list[bytes], clients: int, seconds: float
) -> float:
    """Return the answers per second to clients that always wait for one before the next."""
    warm, end = time.monotonic() + seconds / 4, time.monotonic() + seconds
    counted = 0

    async def client(number: int) -> None:
        nonlocal counted
        connection = await Connection.open(address)
        i = number
        while time.monotonic() < end:
            status = await connection.post(bodies[i % len(bodies)])
            i += clients
            if status == 200:
                counted += time.monotonic() > warm
            else:
                await asyncio.sleep(0.05)
        connection.close()

    await asyncio.gather(*(client(i) for i in range(clients)))
    return counted / (time.monotonic() - warm)


async def open_loop(
    address: tuple[str, int], bodies: list[bytes], rate: float, seconds: float, process: int
) -> Outcome:
    """Offer requests at a rate, whatever becomes of them."""
    outcome, chance = Outcome(), random.Random(0)
    free: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(body: bytes, due: float) -> None:
        try:
            connection = free.pop() if free else await Connection.open(address)
            status = await asyncio.wait_for(connection.post(body), PATIENCE)
        except (OSError, EOFError, TimeoutError) as error:
            outcome.statuses[type(error).__name__] += 1
            return
        outcome.add(status, time.monotonic() - due)
        free.append(connection)

    start = time.monotonic()
    due = start
    outcome.memory.append(resident(process))
    while due < start + seconds:
        if len(outcome.memory) == 1 and due > start + seconds / 2:
            outcome.memory.append(resident(process))
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        outcome.late = max(outcome.late, time.monotonic() - due)
        if len(tasks) < CONNECTIONS:
            task = asyncio.create_task(one(bodies[chance.randrange(len(bodies))], due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        else:
            outcome.statuses["not sent"] += 1
        due += chance.expovariate(rate)
    await asyncio.gather(*tasks)
    outcome.memory.append(resident(process))
    for connection in free:
        connection.close()
    return outcome


def resident(process: int) -> int:
    """Return a process's resident memory, bytes (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def quantiles(latencies: list[float]) -> dict[str, float]:
    """Return p50, p99 and the worst, in milliseconds."""
    ordered = sorted(latencies) or [float("nan")]
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
        for name, share in at.items()
    }


def read_bodies(file: str | None) -> list[bytes]:
    """Return request bodies of the texts of a file, or of made-up ones of 20 to 60 words."""
    if file is None:
        chance = random.Random(0)
        words = ["market", "team", "science", "war", "game", "profit", "court", "price", "launch"]
        texts = [" ".join(chance.choices(words, k=chance.randint(20, 60))) for _ in range(1000)]
    else:
        from nanonet.data.readers import Columns, read_table

        texts = read_table(file, Columns(), labels="ignored").texts[:20_000]
    return [json.dumps({"text": text}).encode() for text in texts]


def start(options: argparse.Namespace, log: Any) -> tuple[subprocess.Popen[str], tuple[str, int]]:
    """Start the server; return its process and its address once it takes requests."""
    command = [sys.executable, "-m", "nanonet", "serve", options.bundle, "--port", "0"]
    command += ["--max-latency-ms", str(options.max_latency_ms), "--threads", str(options.threads)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    line = server.stdout.readline() if server.stdout else ""
    if "http://" not in line:
        sys.exit(f"error: the server did not start: {Path(log.name).read_text().strip()}")
    url = urlsplit(line.split()[-1])
    return server, (str(url.hostname), int(url.port or 0))


async def ready(address: tuple[str, int]) -> None:
    """Wait until the server has measured its model."""
    body = b'{"text": "ready?"}'
    for _ in range(600):
        try:
            connection = await Connection.open(address)
            status = await connection.post(body)
            connection.close()
            if status == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    sys.exit("error: the server did not become ready within a minute")


async def measure(options: argparse.Namespace, log: Any) -> dict[str, Any]:
    """Run both loops; return the figures."""
    bodies = read_bodies(options.texts)
    server, address = start(options, log)
    try:
        await ready(address)
        rate = await closed_loop(address, bodies, options.clients, options.closed_seconds)
        offered = options.factor * rate
        outcome = await open_loop(address, bodies, offered, options.seconds, server.pid)
    finally:
        server.terminate()
        status = server.wait()
    answered = len(outcome.accepted) + len(outcome.rejected)
    total = outcome.statuses.total()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "bundle_bytes": sum(p.stat().st_size for p in Path(options.bundle).iterdir()),
        "texts": Path(options.texts).name if options.texts else "made up",
        "budget_ms": options.max_latency_ms,
        "saturating_per_second": round(rate, 1),
        "offered_per_second": round(total / options.seconds, 1),
        "seconds": options.seconds,
        "offered": total,
        "accepted": len(outcome.accepted),
        "rejected": len(outcome.rejected),
        "lost": total - answered - outcome.statuses["not sent"],
        "not_sent": outcome.statuses["not sent"],
        "statuses": dict(outcome.statuses),
        "accepted_ms": quantiles(outcome.accepted),
        "rejected_ms": quantiles(outcome.rejected),
        "client_late_ms": round(1000 * outcome.late, 1),
        "resident_mb": [round(b / 2**20, 1) for b in outcome.memory],
        "exit_status": status,
    }


def table(figures: dict[str, Any]) -> str:
    """Return the main figures as Markdown."""
    latency, memory = figures["accepted_ms"], " / ".join(map(str, figures["resident_mb"]))
    rows = {
        "saturating rate, requests/s": figures["saturating_per_second"],
        f"offered for {figures['seconds']:g} s, requests/s": figures["offered_per_second"],
        "accepted, requests/s": round(figures["accepted"] / figures["seconds"], 1),
        "accepted / rejected / lost": f"{figures['accepted']} / {figures['rejected']}"
        f" / {figures['lost']}",
        "latency of accepted p50 / p99 / max, ms": f"{latency['p50']} / {latency['p99']}"
        f" / {latency['max']}",
        "budget, ms": figures["budget_ms"],
        "resident memory start / middle / end, MB": memory,
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {v} |" for name, v in rows.items())])


def main() -> None:
    """Measure, write the file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--texts", metavar="FILE", help="as for nanonet predict; else made up")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--closed-seconds", type=float, default=12)
    parser.add_argument("--clients", type=int, default=32, help="of the closed loop")
    parser.add_argument("--factor", type=float, default=2, help="times the saturating rate")
    parser.add_argument("--max-latency-ms", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0, help="of the server's model")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    options = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        figures = asyncio.run(measure(options, log))
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(table(figures))


if __name__ == "__main__":
    main()
