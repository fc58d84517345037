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
