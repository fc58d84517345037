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
