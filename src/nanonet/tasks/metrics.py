"""Metrics of classification, in numpy. Rates are fractions from 0 to 1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indexes = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


def softmax(logits: Floats) -> Floats:
    """Return probabilities (n, C) of logits (n, C)."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def accuracy(truth: Indexes, predicted: Indexes) -> float:
    """Return the share of rows (n,) that are predicted right."""
    return float((truth == predicted).mean())


def macro_f1(truth: Indexes, predicted: Indexes) -> float:
    """Return the unweighted mean F1 over the classes that occur in truth or prediction.

    As scikit-learn's ``f1_score(average="macro")``.
    """
    scores = []
    for label in np.union1d(truth, predicted):
        hits = int(((truth == label) & (predicted == label)).sum())
        wrong = int(((truth == label) ^ (predicted == label)).sum())
        scores.append(2 * hits / (2 * hits + wrong))
    return float(np.mean(scores))


def confusion(truth: Indexes, predicted: Indexes, classes: int) -> Indexes:
    """Return how many rows of each true class (rows) got each class (columns), (C, C)."""
    counts = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)


def class_scores(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return precision, recall and F1 of each class of a confusion (.., C, C): (.., C, 3).

    They are 0 where there is nothing to divide by.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    said, true = counts.sum(-2), counts.sum(-1)
    parts = ((hits, said), (hits, true), (2 * hits, said + true))
    return np.stack([top / np.maximum(under, 1) for top, under in parts], axis=-1)


def expected_calibration_error(truth: Indexes, probabilities: Floats, bins: int = 15) -> float:
    """Return the expected calibration error of probabilities (n, C) (Guo et al. 2017).

    Rows are parted into bins of equal width by the probability of their most probable class; the
    error is the mean over rows of the distance between a bin's accuracy and its mean probability.
    """
    confidence = probabilities.max(-1).astype(np.float64)
    right = probabilities.argmax(-1) == truth
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of, right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))
