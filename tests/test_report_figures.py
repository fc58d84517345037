"""What a report's figures are: scores, intervals, confusions, durations, charts."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from nanonet.report import charts, examples, figures, page
from nanonet.tasks.metrics import class_scores, confusion, macro_f1


def test_confusion_and_class_scores_are_scikit_learn_s():
    rng = np.random.default_rng(0)
    for classes in (2, 3, 7):
        truth, predicted = rng.integers(0, classes, size=(2, 40))
        counts = confusion(truth, predicted, classes)
        expected = confusion_matrix(truth, predicted, labels=range(classes))
        np.testing.assert_array_equal(counts, expected)
        scores = precision_recall_fscore_support(
            truth, predicted, labels=range(classes), zero_division=0
        )
        np.testing.assert_allclose(class_scores(counts), np.stack(scores[:3], axis=-1))
        assert figures.macro_f1_of(counts) == pytest.approx(macro_f1(truth, predicted))


def test_intervals():
    low, high = figures.wilson(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson (1927), by hand
    assert figures.wilson(10, 10)[1] == pytest.approx(1.0)
    assert figures.wilson(0, 10)[0] == pytest.approx(0.0)
    counts = np.array([[40, 10], [20, 30]])
    low, high = figures.macro_f1_interval(counts)
    assert low < figures.macro_f1_of(counts) < high
    assert 0.15 < high - low < 0.21  # about 4 standard errors of a share of 100
    sure = np.array([[5, 0], [0, 5]])
    assert figures.macro_f1_interval(sure) == (1.0, 1.0)


def test_many_classes_are_listed_by_pairs():
    classes = [f"c{i}" for i in range(20)]
    counts = 9 * np.eye(20, dtype=np.int64)
    counts[3, 7], counts[8, 2] = 4, 6
    table = figures._confusions(counts, classes)
    assert table.rows == [["c8", "c2", "6"], ["c3", "c7", "4"]]


def test_divergence():
    """0 where all agree; log 2 where two are sure of different classes."""
    sure, other = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert examples.divergence([sure, sure]) == pytest.approx(0.0, abs=1e-9)
    assert examples.divergence([sure, other]) == pytest.approx(np.log(2), abs=1e-9)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.25, "0.2 s"),
        (59.4, "59.4 s"),
        (61, "1 min 1 s"),
        (3599.6, "1 h 0 min"),
        (7300, "2 h 1 min"),
    ],
)
def test_duration(seconds, words):
    assert page.duration(seconds) == words


def test_charts_with_little_to_draw():
    from nanonet.report.run import Point

    points = [
        Point("training", 1, {"loss: a": {"teacher": 0.0}}),
        Point("training", 2, {"loss: b": {"teacher": -1.0}, "loss: c": {"teacher": 1e-9}}),
        Point("training", 3, {"loss: c": {"teacher": 5.0}}),
        Point("training", 4, {"loss: c": {"teacher": float("nan")}}),
    ]
    drawn = charts.draw_charts(points)
    assert [chart.title for chart in drawn] == ["loss: a", "loss: b", "loss: c"]
