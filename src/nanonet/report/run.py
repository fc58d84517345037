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

import numpy as np
from numpy.typing import NDArray

from nanonet.core.bundle import is_bundle
from nanonet.core.errors import RunError

PROGRAM = ("nanonet", "nanonet.exe", "__main__.py")  # file names that the command line goes by
KINDS = ("evaluation", "training", "warmup")  # of points
ALL_LEARNERS = "all learners"  # whose figure the speed is
Interval = tuple[float, float]
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
class Outcome:
    """What ``summary.json`` says."""

    selected: str
    criterion: str
    labels_used: int
    learners: list[Learner]
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
class Evaluation:
    """What ``nanonet evaluate`` noted of one file.

    Attributes:
        selected: the learner that was shipped.
        others: figures that this module does not know, by name.
        warnings: what makes the figures doubtful.
    """

    source: str
    examples: int
    selected: str
    others: dict[str, float]
    warnings: list[str]


@dataclass(frozen=True)
class ClassEvaluation(Evaluation):
    """An evaluation of a classifier.

    Attributes:
        accuracy: by learner.
        macro_f1: of the shipped learner.
        confusion: (C, C) by learner, true classes in rows; empty where it was not noted.
    """

    accuracy: dict[str, float]
    macro_f1: float
    confusion: dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class MultilabelEvaluation(Evaluation):
    """An evaluation where a text may have several labels.

    Attributes:
        accuracy: share of texts all of whose labels are right, by learner.
        micro_f1: by learner.
        macro_f1: of the shipped learner.
        by_label: F1 of the shipped learner, by label.
    """

    accuracy: dict[str, float]
    micro_f1: dict[str, float]
    macro_f1: float
    by_label: dict[str, float]


@dataclass(frozen=True)
class SummaryEvaluation(Evaluation):
    """An evaluation of a summarizer.

    Attributes:
        budget: of every summary.
        rouge: by learner, then by metric.
        intervals: of the shipped learner, by metric.
        baselines: by name, then by metric.
        margins: by metric: over which baseline, by how much, and the interval of that.
    """

    budget: str
    rouge: dict[str, dict[str, float]]
    intervals: dict[str, Interval]
    baselines: dict[str, dict[str, float]]
    margins: dict[str, tuple[str, float, Interval]]


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
        evaluations=_lines(path / "evaluations.jsonl", lambda v: _evaluation(v, len(classes))),
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
        versions=_by_name(values["versions"], str),
    )


def _outcome(values: Any) -> Outcome:
    selection = values["selection"]
    scores = _by_name(selection["scores"], float)
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
        steps=int(values["steps"]),
        seconds=float(values["seconds"]),
        finished=bool(values["finished"]),
        stopped=values["stopped"] and str(values["stopped"]),
    )


def _point(row: Any) -> Point:
    kind, step = str(row["kind"]), int(row["step"])
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}")
    if kind == "evaluation":
        own = {k: _by_name(v, float) for k, v in row.items() if k not in ("kind", "step", "set")}
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


def _evaluation(row: Any, classes: int) -> Evaluation:
    if row["selected"] not in row["learners"] or row["examples"] < 1:
        raise ValueError("it has no row or no shipped learner")
    if "by_label" in row:
        return _multilabel_evaluation(row)
    return _summary_evaluation(row) if "budget" in row else _class_evaluation(row, classes)


def _common(row: Any, *known: str) -> tuple[str, int, str, dict[str, float], list[str]]:
    """Return the fields of every `Evaluation`; of what is not known, the numbers are kept."""
    known = ("seconds", *known)
    others = {k: v for k, v in row.items() if isinstance(v, float) and k not in known}
    warnings = [str(text) for text in row.get("warnings", [])]
    return str(row["source"]), int(row["examples"]), str(row["selected"]), others, warnings


def _class_evaluation(row: Any, classes: int) -> ClassEvaluation:
    confusion = {
        name: _confusion(counts, classes, row["examples"])
        for name, counts in row.get("confusion", {}).items()
    }
    return ClassEvaluation(
        *_common(row, "accuracy", "macro_f1"),
        accuracy=_by_name(row["learners"], _share),
        macro_f1=_share(row["macro_f1"]),
        confusion=confusion,
    )


def _multilabel_evaluation(row: Any) -> MultilabelEvaluation:
    return MultilabelEvaluation(
        *_common(row, "accuracy", "micro_f1", "macro_f1"),
        accuracy=_by_name(row["learners"], _share),
        micro_f1=_by_name(row["learners_micro_f1"], _share),
        macro_f1=_share(row["macro_f1"]),
        by_label=_by_name(row["by_label"], _share),
    )


def _summary_evaluation(row: Any) -> SummaryEvaluation:
    metrics = list(row["intervals"])
    tables = {k: v for k, v in row.items() if isinstance(v, dict) and v.keys() == set(metrics)}
    del tables["intervals"], tables["margins"]
    margins = row["margins"].items()
    if any(own.keys() != set(metrics) for own in row["learners"].values()):
        raise ValueError("a learner has other metrics than the rest")
    return SummaryEvaluation(
        *_common(row, *metrics),
        budget=str(row["budget"]),
        rouge=_by_name(row["learners"], _numbers),
        intervals=_by_name(row["intervals"], _interval),
        baselines=_by_name(tables, _numbers),
        margins={
            k: (str(v["over"]), float(v["difference"]), _interval(v["interval"]))
            for k, v in margins
        },
    )


def _warnings(path: Path) -> list[str]:
    """Return what a run warned of, each once: a resumed run says it again."""
    if not path.exists():
        return []
    with _intact(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    marked = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
    return list(dict.fromkeys(marked))


def _by_name(values: Any, convert: Callable[[Any], T]) -> dict[str, T]:
    return {str(name): convert(value) for name, value in values.items()}


def _numbers(values: Any) -> dict[str, float]:
    return _by_name(values, float)


def _layers(values: Any) -> list[int]:
    return [int(value) for value in values]


def _interval(values: Any) -> Interval:
    low, high = values
    return float(low), float(high)


def _share(value: Any) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{value} is not from 0 to 1")
    return float(value)


def _confusion(values: Any, classes: int, examples: int) -> NDArray[np.int64]:
    counts = np.array(values, dtype=np.int64)
    if counts.shape != (classes, classes) or counts.min() < 0 or counts.sum() != examples:
        raise ValueError(f"a confusion does not count {examples} rows of {classes} classes")
    return counts
