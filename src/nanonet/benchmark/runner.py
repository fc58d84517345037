"""Running cells side by side, each in its own process; what is done is not done again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from nanonet.benchmark.cell import RESULT, RUN, SPEC
from nanonet.benchmark.methods import KINDS
from nanonet.core.errors import InterruptedRunError
from nanonet.core.files import write_json

FAILURE, LOG = "error.json", "log.txt"
POLL = 0.05  # seconds between looks at the running processes


@dataclass(frozen=True)
class Cell:
    """One method on one draw of one data set with one seed.

    Attributes:
        identity: what the result depends on, as in JSON: method, dataset, draw, seed, kind, plan,
            data. A result with another identity is out of date.
        files: of the draw and of the test, by name.
        folder: where its files are.
    """

    identity: dict[str, Any]
    files: dict[str, Any]
    folder: Path

    @property
    def title(self) -> str:
        """The cell in words."""
        i = self.identity
        return f"{i['dataset']} {i['method']} draw {i['draw']} seed {i['seed']}"

    def result(self) -> dict[str, Any] | None:
        """Return the result, None where there is none or it is out of date."""
        found = _read(self.folder / RESULT)
        if found is None or not _same(self.identity, found):
            return None
        return found

    def failure(self) -> str | None:
        """Return the error of the last try, None where there is none or it is out of date."""
        found = _read(self.folder / FAILURE)
        if found is None or not _same(self.identity, found):
            return None
        return str(found["error"])


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else None
    return None


def _same(identity: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Return whether a stored record is of this identity; settings that came later: defaults."""
    if any(found.get(key) != value for key, value in identity.items() if key != "plan"):
        return False
    plan = found.get("plan")
    if not isinstance(plan, dict) or not isinstance(plan.get("config"), dict):
        return False
    complete = KINDS.get(identity["kind"]).complete(plan["config"])
    return bool({**plan, "config": complete} == identity["plan"])


@dataclass
class Runner:
    """Runs cells.

    Attributes:
        jobs: how many at a time.
        threads: of each.
        keep_runs: keep the folder that a cell filled.
        console: where progress goes.
    """

    jobs: int
    threads: int
    keep_runs: bool
    console: Console
    _walls: list[float] = field(default_factory=list)  # seconds of the cells that are done

    def run(self, cells: list[Cell]) -> None:
        """Run all cells; one that fails leaves its error, and the others go on.

        Raises:
            InterruptedRunError: Ctrl-C or SIGTERM. Running cells are stopped, finished ones stay.
        """
        waiting = deque(cells)
        running: dict[subprocess.Popen[bytes], Cell] = {}
        with _signals_noted() as asked_to_stop:
            try:
                while waiting or running:
                    if asked_to_stop.is_set():
                        left = len(waiting) + len(running)
                        raise InterruptedRunError(
                            f"stopped with {left} of {len(cells)} cells left; finished ones are"
                            " kept: run the same command again to go on"
                        )
                    while waiting and len(running) < self.jobs:
                        cell = waiting.popleft()
                        running[self._start(cell)] = cell
                    time.sleep(POLL)
                    for process in [p for p in running if p.poll() is not None]:
                        cell = running.pop(process)
                        self._finish(cell, process, len(waiting) + len(running), len(cells))
            except BaseException:
                for process, cell in running.items():
                    _stop(process, cell)
                raise

    def _start(self, cell: Cell) -> "subprocess.Popen[bytes]":
        cell.folder.mkdir(parents=True, exist_ok=True)
        for name in (RESULT, FAILURE):
            (cell.folder / name).unlink(missing_ok=True)
        spec = {
            "identity": cell.identity,
            "files": cell.files,
            "threads": self.threads,
            "keep_run": self.keep_runs,
        }
        write_json(cell.folder / SPEC, spec)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        command = [sys.executable, "-m", "nanonet.benchmark.cell", str(cell.folder)]
        with (cell.folder / LOG).open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def _finish(
        self, cell: Cell, process: "subprocess.Popen[bytes]", left: int, total: int
    ) -> None:
        """Say what came of a cell, and note its error if it failed."""
        result = cell.result() if process.returncode == 0 else None
        if result is not None:
            self._walls.append(result["wall_seconds"])
            outcome = f"accuracy {result['accuracy']:.4f} ({result['wall_seconds']:.0f} s)"
        else:
            error = error_of(process.returncode, cell.folder / LOG)
            write_json(cell.folder / FAILURE, {**cell.identity, "error": error})
            shutil.rmtree(cell.folder / RUN, ignore_errors=True)
            outcome = f"failed: {error}"
        after = f"{left} left" if left else "none left"
        if left and self._walls:
            seconds = left * sum(self._walls) / len(self._walls) / self.jobs
            after += f", about {duration(seconds)}"
        self.console.print(
            f"{total - left}/{total}  {cell.title}: {outcome}; {after}",
            markup=False,
            soft_wrap=True,
            style=None if result is not None else "yellow",
        )


def duration(seconds: float) -> str:
    """Return a length of time in words: ``"40 s"``, ``"12 min"``, ``"3.5 h"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def error_of(status: int, log: Path) -> str:
    """Return one line that says why a process failed."""
    if status < 0:
        hint = ": perhaps out of memory" if -status == 9 else ""
        return f"killed by signal {-status}{hint}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else f"ended with status {status}"


def _stop(process: "subprocess.Popen[bytes]", cell: Cell) -> None:
    """End a process of ours and remove what it was making."""
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()
    shutil.rmtree(cell.folder / RUN, ignore_errors=True)


@contextmanager
def _signals_noted() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C and SIGTERM set.

    An exception out of a handler could come between the start of a process and the note of it, and
    the process would outlive us.
    """
    asked_to_stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked_to_stop  # signal handlers belong to the main thread
        return

    def handler(number: int, frame: FrameType | None) -> None:
        asked_to_stop.set()

    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked_to_stop
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
