"""Temperature scaling (Guo et al. 2017): probabilities are softmax(logits / T)."""

from collections.abc import Callable

import numpy as np

from nanonet.tasks.metrics import Floats, Indexes, softmax

LOWEST, HIGHEST = 0.05, 20.0  # temperatures beyond these are signs of useless logits


def fit_temperature(logits: Floats, targets: Floats) -> float:
    """Return the temperature of least cross-entropy with targets.

    Args:
        logits: (n, C).
        targets: probabilities (n, C): one-hot for labels.
    """
    z = logits.astype(np.float64)
    wanted = (targets * z).sum(-1).mean()  # the derivative by 1/T is E_p[z] - E_target[z]
    return _root(lambda t: wanted - (softmax(z / t) * z).sum(-1).mean())


def temperature_of_confidence(logits: Floats, confidence: float) -> float:
    """Return the temperature at which the most probable class has this probability on average.

    Args:
        logits: (n, C).
        confidence: from 1/C to 1.
    """
    z = logits.astype(np.float64)
    return _root(lambda t: confidence - softmax(z / t).max(-1).mean())


def _root(rising: Callable[[float], float]) -> float:
    """Return where a rising function of the temperature is zero, by bisection."""
    low, high = np.log(LOWEST), np.log(HIGHEST)
    for _ in range(60):
        middle = (low + high) / 2
        if rising(float(np.exp(middle))) < 0:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def smoothed(truth: Indexes, classes: int) -> Floats:
    """Return one-hot targets (n, C) that are no surer than n rows can tell (Platt 1999).

    Without this, rows that are all answered right would call for a temperature of zero.
    """
    doubt = 1.0 / (len(truth) + 2)
    return (1.0 - doubt) * np.eye(classes)[truth] + doubt / classes
