"""Metrics and thresholds where a text may have several labels, in numpy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]
DEFAULT_THRESHOLD = 0.5
# Texts with a label, and texts without it, that a threshold of its own takes.
FEWEST = 5


def sigmoid(logits: Floats) -> Floats:
    """Return probabilities of logits."""
    probabilities: Floats = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return probabilities


def logits_of_units(units: Floats, labels: int) -> Floats:
    """Return logits (n, L) of units (n L, 2), which give a logit z as (0, z) or as two."""
    logits: Floats = (units[:, 1] - units[:, 0]).reshape(-1, labels)
    return logits


def exact_match(truth: Flags, said: Flags) -> float:
    """Return the share of texts all of whose labels are right; (n, L) each.

    As scikit-learn's ``accuracy_score`` of such tables.
    """
    return float((truth == said).all(-1).mean())


def micro_f1(truth: Flags, said: Flags) -> float:
    """Return the F1 over all texts and labels; 0 where there is nothing to find or said."""
    return _f1(truth.ravel(), said.ravel())


def macro_f1(truth: Flags, said: Flags) -> float:
    """Return the unweighted mean F1 over the labels that occur in truth or answer.

    Labels that occur in neither are left out, as in `nanonet.tasks.metrics.macro_f1`.
    """
    occurs = (truth | said).any(0)
    scores = [_f1(truth[:, k], said[:, k]) for k in np.flatnonzero(occurs)]
    return float(np.mean(scores)) if scores else 0.0


def _f1(truth: Flags, said: Flags) -> float:
    hits, wrong = int((truth & said).sum()), int((truth ^ said).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0


def best_thresholds(truth: Flags, probabilities: Floats) -> list[float]:
    """Return from which probability on each label is best given.

    A label that `FEWEST` texts have, and as many have not, gets the threshold of its own best F1;
    the others share the one of the best F1 over all of them.

    Args:
        truth: (n, L).
        probabilities: (n, L).
    """
    have = truth.sum(0)
    own = (have >= FEWEST) & (len(truth) - have >= FEWEST)
    shared = _best(truth[:, ~own].ravel(), probabilities[:, ~own].ravel())
    return [_best(truth[:, k], probabilities[:, k]) if own[k] else shared for k in range(len(own))]


def expected_thresholds(probabilities: Floats) -> list[float]:
    """Return from which probability on each label gives the best F1, if the probabilities are true.

    If k texts are given a label, those of the highest p, then F1 is about
    2 sum of their p / (k + sum of all p) (Lipton et al. 2014). No text's label is needed.

    Args:
        probabilities: (n, L).
    """
    found = []
    for own in probabilities.T.astype(np.float64):
        p = np.sort(own)[::-1]
        scores = 2 * p.cumsum() / (np.arange(1, len(p) + 1) + p.sum())
        found.append(_threshold(p, scores))
    return found


def _best(truth: Flags, probabilities: Floats) -> float:
    """Return the threshold of the best F1."""
    if not truth.any():
        return DEFAULT_THRESHOLD
    order = np.argsort(-probabilities, kind="stable")
    p, hits = probabilities[order].astype(np.float64), truth[order].cumsum()
    return _threshold(p, 2 * hits / (np.arange(1, len(p) + 1) + hits[-1]))


def _threshold(p: Floats, scores: Floats) -> float:
    """Return the threshold of the best score, in the middle of its gap.

    Of equal ones the one that is nearest to a half.

    Args:
        p: probabilities, falling, (n,).
        scores: what giving the label to the first 1, 2 .. n of them is worth.
    """
    last = np.append(p[1:] < p[:-1], True)  # equal ones are given together
    below = np.append(p[1:], 0.0)
    middle = (p + below) / 2
    best = np.flatnonzero(last & (scores >= scores[last].max() - 1e-12))
    return float(middle[best[np.abs(middle[best] - DEFAULT_THRESHOLD).argmin()]])
