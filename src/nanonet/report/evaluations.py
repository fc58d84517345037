"""What ``nanonet evaluate`` has noted in a run folder: the lines of ``evaluations.jsonl``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Interval = tuple[float, float]


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


def parse_evaluation(row: Any, classes: int) -> Evaluation:
    """Return what a line says of a run with so many classes.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is damaged.
    """
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
        accuracy=by_name(row["learners"], _share),
        macro_f1=_share(row["macro_f1"]),
        confusion=confusion,
    )


def _multilabel_evaluation(row: Any) -> MultilabelEvaluation:
    return MultilabelEvaluation(
        *_common(row, "accuracy", "micro_f1", "macro_f1"),
        accuracy=by_name(row["learners"], _share),
        micro_f1=by_name(row["learners_micro_f1"], _share),
        macro_f1=_share(row["macro_f1"]),
        by_label=by_name(row["by_label"], _share),
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
        rouge=by_name(row["learners"], _numbers),
        intervals=by_name(row["intervals"], _interval),
        baselines=by_name(tables, _numbers),
        margins={
            k: (str(v["over"]), float(v["difference"]), _interval(v["interval"]))
            for k, v in margins
        },
    )


def by_name(values: Any, convert: Callable[[Any], T]) -> dict[str, T]:
    """Return a table with its values converted."""
    return {str(name): convert(value) for name, value in values.items()}


def _numbers(values: Any) -> dict[str, float]:
    return by_name(values, float)


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
