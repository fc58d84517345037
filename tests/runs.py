"""The command line in-process, and the settings of runs that take a second."""

import contextlib
import io
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

SETTINGS = {
    "data.max_length": 32,
    "cohort.student_layers": 2,
    "warmup.steps": 0,
    "training.steps": 12,
    "training.checkpoint_every": 6,
    "training.labeled_batch": 12,
    "training.unlabeled_batch": 12,
    "training.precision": "fp32",
    "training.threads": 1,
}
FAST = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


def nanonet(*arguments: object) -> Outcome:
    """Run the command line in this process."""
    from nanonet.cli import main

    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        mock.patch.object(sys, "argv", ["nanonet", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> Outcome:
    outcome = nanonet(*arguments)
    assert outcome.status == 0, outcome.err
    assert "Traceback" not in outcome.err
    return outcome


def refuse(*arguments: object, parts: list[str], status: int = 1) -> str:
    """Check for one line on stderr that holds every part, nothing on stdout, and the status."""
    outcome = nanonet(*arguments)
    assert outcome.err.startswith("error: "), outcome
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.out == ""
    assert outcome.status == status, outcome
    for part in parts:
        assert part in outcome.err, outcome.err
    return outcome.err


def temporary_files(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if ".tmp" in p.name or p.name.startswith(".")]


def config_of(run: Path) -> dict[str, Any]:
    """Return what a run's configuration says."""
    return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
