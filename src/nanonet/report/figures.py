"""Figures of evaluations as tables: rates in percent, beside 95% intervals."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanonet.report.evaluations import (
    ClassEvaluation,
    Evaluation,
    Interval,
    MultilabelEvaluation,
    SummaryEvaluation,
)
from nanonet.tasks.metrics import class_scores

Z = 1.959964  # 95% of a normal distribution lie within so many standard deviations
RESAMPLES = 1000  # of the bootstrap
LARGEST_MATRIX = 12  # classes: with more, a matrix cannot be read, and pairs are listed
PAIRS = 15  # confusions listed
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Cells as texts; the first of each row names it.

    Attributes:
        marked: the name of the row that matters most.
        shades: 0 to 1 of each cell but the first ones, (rows, columns); None: plain.
        words: whether the cells are texts, not numbers.
    """

    caption: str
    head: list[str]
    rows: list[list[str]]
    marked: str = ""
    shades: list[list[float]] | None = None
    words: bool = False


def percent(rate: float) -> str:
    """Return a rate in percent, with one decimal."""
    return f"{100 * rate:.1f}".replace("-", "−")


def between(interval: Interval) -> str:
    """Return an interval of a rate in percent."""
    return f"{percent(interval[0])} to {percent(interval[1])}"


def headline(evaluation: Evaluation) -> tuple[str, str]:
    """Return the name and the value of the one figure that says most of the shipped learner."""
    if isinstance(evaluation, SummaryEvaluation):
        metric = next(iter(evaluation.intervals))
        return _named(metric), percent(evaluation.rouge[evaluation.selected][metric])
    if isinstance(evaluation, MultilabelEvaluation):
        return "micro F1", f"{percent(evaluation.micro_f1[evaluation.selected])}%"
    assert isinstance(evaluation, ClassEvaluation)
    return "accuracy", f"{percent(evaluation.accuracy[evaluation.selected])}%"


def tables_of(evaluation: Evaluation, classes: list[str]) -> list[Table]:
    """Return all that an evaluation says."""
    if isinstance(evaluation, SummaryEvaluation):
        return [_rouge(evaluation), _margins(evaluation)]
    if isinstance(evaluation, MultilabelEvaluation):
        return [_label_rates(evaluation), _per_label(evaluation)]
    assert isinstance(evaluation, ClassEvaluation)
    tables = [_rates(evaluation)]
    if evaluation.selected in evaluation.confusion:
        counts = evaluation.confusion[evaluation.selected]
        tables += [_confusions(counts, classes), _per_class(counts, classes)]
    return tables


def _label_rates(evaluation: MultilabelEvaluation) -> Table:
    n = evaluation.examples
    rows = [
        [name, percent(f1), percent(right), between(wilson(right * n, n))]
        for (name, f1), right in zip(
            evaluation.micro_f1.items(), evaluation.accuracy.values(), strict=True
        )
    ]
    for row in rows:
        row.append(percent(evaluation.macro_f1) if row[0] == evaluation.selected else "")
    head = ["learner", "micro-F1, %", "all labels right, %", "95% interval", "macro-F1, %"]
    caption = "All learners; those that are not shipped at a threshold of a half"
    return Table(caption, head, rows, evaluation.selected)


def _per_label(evaluation: MultilabelEvaluation) -> Table:
    rows = [[name, percent(f1)] for name, f1 in evaluation.by_label.items()]
    return Table("Each label, the shipped learner", ["label", "F1, %"], rows)


def wilson(hits: float, n: int) -> Interval:
    """Return Wilson's 95% interval of a share of n (Wilson 1927)."""
    share = hits / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def macro_f1_of(counts: Counts) -> float:
    """Return the mean F1 over the classes that occur in truth or prediction, see `macro_f1`."""
    occurs = counts.sum(0) + counts.sum(1) > 0
    return float(class_scores(counts)[occurs, 2].mean())


def macro_f1_interval(counts: Counts, seed: int = 0) -> Interval:
    """Return the 95% percentile interval of the macro-F1, rows drawn with replacement."""
    rng, n = np.random.default_rng(seed), int(counts.sum())
    cells = np.nonzero(counts)  # few, where classes are many
    found, draw = [], np.zeros_like(counts)
    for _ in range(RESAMPLES):
        draw[cells] = rng.multinomial(n, counts[cells] / n)
        found.append(macro_f1_of(draw))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _rates(evaluation: ClassEvaluation) -> Table:
    """Return accuracy and macro-F1 of all learners."""
    n, rows = evaluation.examples, []
    for name, accuracy in evaluation.accuracy.items():
        rows.append([name, percent(accuracy), between(wilson(accuracy * n, n))])
        if name in evaluation.confusion:
            counts = evaluation.confusion[name]
            rows[-1] += [percent(macro_f1_of(counts)), between(macro_f1_interval(counts))]
        else:
            own = name == evaluation.selected
            rows[-1] += [percent(evaluation.macro_f1) if own else "", ""]
    if evaluation.selected in evaluation.confusion:
        rows.append(_always_the_same(evaluation.confusion[evaluation.selected], n))
    head = ["learner", "accuracy, %", "95% interval", "macro-F1, %", "95% interval"]
    return Table("All learners", head, rows, evaluation.selected)


def _always_the_same(counts: Counts, n: int) -> list[str]:
    """Return the row of what answers the most frequent true class every time."""
    most = counts.sum(1).argmax()
    plain = np.zeros_like(counts)
    plain[:, most] = counts.sum(1)
    hits = int(plain[most, most])
    rates = percent(hits / n), between(wilson(hits, n)), percent(macro_f1_of(plain))
    return ["(always the most frequent class)", *rates, between(macro_f1_interval(plain))]


def _confusions(counts: Counts, classes: list[str]) -> Table:
    if len(classes) <= LARGEST_MATRIX:
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        rows = [[name, *map(str, own)] for name, own in zip(classes, counts.tolist(), strict=True)]
        caption = "Confusion: true classes in rows, answers in columns"
        return Table(caption, ["", *classes], rows, shades=shares.tolist())
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(i), len(classes)) for i in order if wrong.flat[i]]
    rows = [[classes[true], classes[said], str(wrong[true, said])] for true, said in pairs]
    return Table(
        "The most frequent confusions", ["true class", "answer", "texts"], rows, words=True
    )


def _per_class(counts: Counts, classes: list[str]) -> Table:
    rows = [
        [name, *map(percent, scores), str(int(true))]
        for name, scores, true in zip(
            classes, class_scores(counts).tolist(), counts.sum(1), strict=True
        )
    ]
    head = ["class", "precision, %", "recall, %", "F1, %", "texts"]
    return Table("Each class", head, rows)


def _rouge(evaluation: SummaryEvaluation) -> Table:
    """Return ROUGE of learners and baselines; intervals of the shipped learner."""
    rows = [_line(name, own) for name, own in evaluation.rouge.items()]
    intervals = evaluation.intervals.items()
    for row in rows:
        if row[0] == evaluation.selected:
            cells = (
                f"{own} ({between(i)})" for own, (_, i) in zip(row[1:], intervals, strict=True)
            )
            row[1:] = cells
    rows += [_line(f"({name})", own) for name, own in evaluation.baselines.items()]
    caption = (
        f"ROUGE F1 in percent, 95% interval; baselines in brackets; budget {evaluation.budget}"
    )
    return Table(caption, ["", *map(_named, evaluation.intervals)], rows, evaluation.selected)


def _named(metric: str) -> str:
    return metric.replace("rouge", "ROUGE-")


def _line(name: str, values: dict[str, float]) -> list[str]:
    return [name, *map(percent, values.values())]


def _margins(evaluation: SummaryEvaluation) -> Table:
    rows = [
        [_named(metric), over, f"{100 * difference:+.1f}".replace("-", "−"), between(interval)]
        for metric, (over, difference, interval) in evaluation.margins.items()
    ]
    caption = "Ahead (+) or behind (−) the best baseline, in points, the oracle left aside"
    return Table(caption, ["", "baseline", "difference", "95% interval"], rows)
