"""The figures of the table, from the cells' results. Standard deviations are those of a sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

Result = Mapping[str, Any]
CONFIDENCE = 0.9


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (None of a single figure) and worst of n figures."""

    n: int
    mean: float
    std: float | None
    worst: float


@dataclass(frozen=True)
class Row:
    """What is known of a method on a data set; None where it does not apply.

    Attributes:
        method: its name.
        group: the ingredient that it changes, in an ablation.
        accuracy: of the shipped learner, over the cells.
        macro_f1: the same of its macro-F1, mean.
        ece: expected calibration error of its probabilities, mean.
        ece_uncalibrated: the same before calibration.
        teacher: the teacher's mean accuracy.
        best_student: mean over the cells of the best student's accuracy; needs test labels.
        mean_student: mean over the cells of the students' mean accuracy.
        gap: mean of the teacher's accuracy less the shipped learner's.
        difference: mean of the accuracy less the reference method's in the same draw and seed.
        difference_interval: where that mean lies with 90% confidence (Student's t, over draws).
        seconds: of training, mean.
        memory_mb: most resident memory of a cell's process until training ended, mean.
        above_loaded_mb: the same less what was resident before the first step, mean.
        trainable_share: of the shipped learner's parameters, mean.
        stored_kb: of the shipped learner's trained tensors (1,000 bytes), mean.
        exported_mb: of the exported model in 32 bits (10^6 bytes), mean.
        rate: texts that it classifies in a second, mean.
        students: accuracies of every single student of every cell.
        over_draws: standard deviation of the draws' mean accuracies (shipped).
        over_seeds: standard deviation of the accuracies (shipped) over seeds, within a draw.
        students_over_seeds: the same of single students, each against itself with other seeds.
    """

    method: str
    group: str
    accuracy: Spread
    macro_f1: float
    ece: float | None
    ece_uncalibrated: float | None
    teacher: float | None
    best_student: float | None
    mean_student: float | None
    gap: float | None
    difference: float | None
    difference_interval: tuple[float, float] | None
    seconds: float
    memory_mb: float
    above_loaded_mb: float
    trainable_share: float
    stored_kb: float
    exported_mb: float | None
    rate: float | None
    students: Spread | None
    over_draws: float | None
    over_seeds: float | None
    students_over_seeds: float | None


def make_row(method: str, group: str, cells: Sequence[Result], reference: Sequence[Result]) -> Row:
    """Return the figures of a method's cells on one data set.

    Args:
        method: its name.
        group: see `Row`.
        cells: at least one.
        reference: cells of the reference method; the same ones for that method itself.
    """
    shipped = [float(c["accuracy"]) for c in cells]
    students = [_students(c) for c in cells]
    single = [value for of_cell in students for value in of_cell.values()]
    taught = [c for c in cells if c["teacher"] is not None]
    pairs = [] if cells is reference else _differences(cells, reference)
    return Row(
        method=method,
        group=group,
        accuracy=_spread(shipped),
        macro_f1=mean(float(c["macro_f1"]) for c in cells),
        ece=_mean([c["ece"] for c in cells if "ece" in c]),
        ece_uncalibrated=_mean([c["ece_uncalibrated"] for c in cells if "ece" in c]),
        teacher=_mean([c["learners"][c["teacher"]] for c in taught]),
        best_student=_mean([max(s.values()) for s in students if s]),
        mean_student=_mean([mean(s.values()) for s in students if s]),
        gap=_mean([c["learners"][c["teacher"]] - c["accuracy"] for c in taught]),
        difference=_mean([value for _, value in pairs]),
        difference_interval=_interval(pairs),
        seconds=mean(c["training_seconds"] for c in cells),
        memory_mb=mean(c["memory"]["peak_mb"] for c in cells),
        above_loaded_mb=mean(c["memory"]["above_loaded_mb"] for c in cells),
        trainable_share=mean(
            c["trainable_parameters"][c["selected"]] / c["total_parameters"][c["selected"]]
            for c in cells
        ),
        stored_kb=mean(c["stored_bytes"][c["selected"]] / 1e3 for c in cells),
        exported_mb=_mean([c["exported_bytes"] / 1e6 for c in cells if "exported_bytes" in c]),
        rate=_mean([c["texts_per_second"] for c in cells if "texts_per_second" in c]),
        students=_spread(single) if single else None,
        over_draws=_between([(c["draw"], float(c["accuracy"])) for c in cells]),
        over_seeds=_within([(c["draw"], float(c["accuracy"])) for c in cells]),
        students_over_seeds=_within(
            [
                ((c["draw"], name), value)
                for c, of_cell in zip(cells, students, strict=True)
                for name, value in of_cell.items()
            ]
        ),
    )


def _students(cell: Result) -> dict[str, float]:
    return {n: float(v) for n, v in cell["learners"].items() if n != cell["teacher"]}


def _spread(values: Sequence[float]) -> Spread:
    std = stdev(values) if len(values) > 1 else None
    return Spread(len(values), mean(values), std, min(values))


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def _differences(cells: Sequence[Result], reference: Sequence[Result]) -> list[tuple[int, float]]:
    """Return draw and difference in accuracy from the reference where both have a cell."""
    theirs = {(c["draw"], c["seed"]): float(c["accuracy"]) for c in reference}
    return [
        (c["draw"], float(c["accuracy"]) - theirs[c["draw"], c["seed"]])
        for c in cells
        if (c["draw"], c["seed"]) in theirs
    ]


def _interval(pairs: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Return the interval of the draws' mean difference; None with a single draw."""
    from scipy.stats import t

    of_draws = [mean(group) for group in _grouped(pairs)]
    if len(of_draws) < 2:
        return None
    tail = (1 - CONFIDENCE) / 2
    half = float(t.ppf(1 - tail, len(of_draws) - 1)) * stdev(of_draws) / math.sqrt(len(of_draws))
    return mean(of_draws) - half, mean(of_draws) + half


def _grouped(values: Sequence[tuple[Any, float]]) -> list[list[float]]:
    groups: dict[Any, list[float]] = {}
    for key, value in values:
        groups.setdefault(key, []).append(value)
    return list(groups.values())


def _between(values: Sequence[tuple[Any, float]]) -> float | None:
    """Return the standard deviation of the groups' means; None with a single group."""
    means = [mean(group) for group in _grouped(values)]
    return stdev(means) if len(means) > 1 else None


def _within(values: Sequence[tuple[Any, float]]) -> float | None:
    """Return the standard deviation within groups, pooled; None where no group has two figures."""
    groups = [group for group in _grouped(values) if len(group) > 1]
    if not groups:
        return None
    squares = sum(stdev(group) ** 2 * (len(group) - 1) for group in groups)
    return math.sqrt(squares / sum(len(group) - 1 for group in groups))
