"""What a run folder says, read without torch; what is missing of an unfinished run is left empty.

`training.run_folder` lists the files. Here every value gets its type, so that a damaged file is one
error in one place.
"""

import json
import shlex
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nanonet.core.bundle import is_bundle
from nanonet.core.errors import RunError
from nanonet.report.evaluations import Evaluation, by_name, parse_evaluation

PROGRAM = ("nanonet", "nanonet.exe", "__main__.py")  # file names that the command line goes by
KINDS = ("evaluation", "training", "warmup")  # of points
ALL_LEARNERS = "all learners"  # whose figure the speed is
T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """A file that training read.

    Attributes:
        kind: ``labeled``, ``unlabeled`` or ``validation``.
        source: as it was named.
        rows: texts or documents.
    """

    kind: str
    source: str
    rows: int


@dataclass(frozen=True)
class Environment:
    """Where a run was made: versions by package, and the rest in words."""

    command: str | None  # None: it was not the command line
    python: str
    platform: str
    processor: str
    hardware: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Learner:
    """A teacher or student.

    Attributes:
        layers: of the backbone, counted from 1.
        score: what students were compared by; None: they were not.
    """

    name: str
    layers: list[int]
    trained: int
    total: int
    score: float | None


@dataclass(frozen=True)
class Head:
    """A student's head that was fitted in the end, see `training.heads.FittedHead`."""

    student: str
    texts: int
    judges: int
    before: float
    after: float
    kept: bool


@dataclass(frozen=True)
class Outcome:
    """What ``summary.json`` says."""

    selected: str
    criterion: str
    labels_used: int
    learners: list[Learner]
    heads: list[Head]
    steps: int
    seconds: float
    finished: bool
    stopped: str | None


@dataclass(frozen=True)
class Point:
    """A row of ``metrics.jsonl``.

    Attributes:
        kind: ``training``, ``warmup`` or ``evaluation``.
        values: by figure, such as a loss or ``accuracy``, and by learner.
        source: the data of an evaluation.
    """

    kind: str
    step: int
    values: dict[str, dict[str, float]]
    source: str = ""


@dataclass(frozen=True)
class Run:
    """A run folder's content; see the other classes of this module."""

    path: Path
    task: str
    recipe: str
    backbone: str
    steps: int
    config_text: str
    inputs: list[Inputs]
    classes: list[str]
    environment: Environment
    outcome: Outcome | None  # None: it never came to its end
    points: list[Point]
    evaluations: list[Evaluation]
    warnings: list[str]


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: it is none, or a file of it is damaged.
    """
    config_path = path / "config.toml"
    if is_bundle(path):
        raise RunError(f"{path} is a bundle: a report is made of the run that it came from")
    if not config_path.is_file():
        raise RunError(f"{path} is not a run folder: it has no config.toml")
    with _intact(config_path):
        text = config_path.read_text(encoding="utf-8")
        config = tomllib.loads(text)
        inputs = [
            Inputs(kind, str(value["source"]), int(value["rows"]))
            for kind, value in config["inputs"].items()
            if isinstance(value, dict) and "rows" in value
        ]
        task, recipe = str(config["task"]), str(config["recipe"])
        backbone, steps = str(config["backbone"]["name"]), int(config["training"]["steps"])
    points = _lines(path / "warmup" / "metrics.jsonl", _point)
    classes = _json(path / "labels.json", lambda v: [str(name) for name in v["names"]])
    return Run(
        path=path,
        task=task,
        recipe=recipe,
        backbone=backbone,
        steps=steps,
        config_text=text,
        inputs=inputs,
        classes=classes,
        environment=_json(path / "environment.json", _environment),
        outcome=_json(path / "summary.json", _outcome)
        if (path / "summary.json").exists()
        else None,
        points=points + _lines(path / "metrics.jsonl", _point),
        evaluations=_lines(path / "evaluations.jsonl", lambda v: parse_evaluation(v, len(classes))),
        warnings=_warnings(path / "log.txt"),
    )


@contextmanager
def _intact(path: Path, line: int = 0) -> Iterator[None]:
    """Turn whatever is wrong with a file's content into a `RunError` that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        where = f"{path}, line {line}" if line else str(path)
        reason = (
            error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        )
        raise RunError(f"{where} cannot be read ({reason})") from None


def _json(path: Path, convert: Callable[[Any], T]) -> T:
    with _intact(path):
        return convert(json.loads(path.read_text(encoding="utf-8")))


def _lines(path: Path, convert: Callable[[Any], T]) -> list[T]:
    """Return what the lines of a file say; nothing where there is none."""
    if not path.exists():
        return []
    with _intact(path):
        lines = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines[:-1], 1):  # a killed run may have left half a line
        with _intact(path, number):
            found.append(convert(json.loads(line)))
    return found


def _environment(values: Any) -> Environment:
    hardware, command = values["hardware"], [str(word) for word in values["command"]]
    by_us = bool(command) and Path(command[0]).name in PROGRAM
    return Environment(
        command=shlex.join(["nanonet", *command[1:]]) if by_us else None,
        python=str(values["python"]),
        platform=str(values["platform"]),
        processor=str(values["processor"]),
        hardware=f"{hardware['device']}, {hardware['precision']}, {hardware['attention']} attention"
        + (f", threads: {hardware['threads']}" if hardware["device"] == "cpu" else ""),
        versions=by_name(values["versions"], str),
    )


def _outcome(values: Any) -> Outcome:
    selection = values["selection"]
    scores = by_name(selection["scores"], float)
    trained, total = values["trainable_parameters"], values["total_parameters"]
    learners = [
        Learner(name, _layers(layers), int(trained[name]), int(total[name]), scores.get(name))
        for name, layers in values["layer_maps"].items()
    ]
    selected = str(values["selected"])
    if not total[selected] > 0:  # a KeyError where it is no learner
        raise ValueError(f"{selected} has no parameters")
    return Outcome(
        selected=selected,
        criterion=str(selection["criterion"]),
        labels_used=int(selection["labels_used"]),
        learners=learners,
        heads=[_head(name, head) for name, head in values.get("heads", {}).items()],
        steps=int(values["steps"]),
        seconds=float(values["seconds"]),
        finished=bool(values["finished"]),
        stopped=values["stopped"] and str(values["stopped"]),
    )


def _head(student: str, values: Any) -> Head:
    return Head(
        student=student,
        texts=int(values["texts"]),
        judges=int(values["judges"]),
        before=float(values["before"]),
        after=float(values["after"]),
        kept=bool(values["kept"]),
    )


def _point(row: Any) -> Point:
    kind, step = str(row["kind"]), int(row["step"])
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}")
    if kind == "evaluation":
        own = {k: by_name(v, float) for k, v in row.items() if k not in ("kind", "step", "set")}
        return Point(kind, step, own, str(row["set"]))
    values: dict[str, dict[str, float]] = {}
    for key, value in row["losses"].items():
        learner, _, objective = key.partition(".")
        values.setdefault(f"loss: {objective}", {})[learner] = float(value)
    for key, value in row["learning_rates"].items():
        learner, _, part = key.partition(".")
        values.setdefault(f"learning rate: {part}", {})[learner] = float(value)
    values["tokens per second"] = {ALL_LEARNERS: float(row["tokens_per_second"])}
    return Point(kind, step, values)


def _warnings(path: Path) -> list[str]:
    """Return what a run warned of, each once: a resumed run says it again."""
    if not path.exists():
        return []
    with _intact(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    marked = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
    return list(dict.fromkeys(marked))


def _layers(values: Any) -> list[int]:
    return [int(value) for value in values]
