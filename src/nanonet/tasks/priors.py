"""How common the classes are where a model is used, seen without labels.

Saerens et al. 2002, "Adjusting the outputs of a classifier to new a priori probabilities": a
classifier that learnt from texts with class shares s gives p(c | x); where the shares are w, the
probability is p(c | x) w_c / s_c, up to a factor. The shares w of unlabelled texts are the fixed
point of their own mean: expectation maximisation.
"""

import numpy as np
from numpy.typing import NDArray

from nanonet.tasks.metrics import Floats

ITERATIONS = 200


def estimate_shares(probabilities: Floats, learnt: Floats, more: float = 1.0) -> Floats:
    """Return the class shares of texts (C,), each above 0.

    Args:
        probabilities: (n, C), of a model that learnt from texts with the shares ``learnt`` (C,).
        more: texts that are counted besides, of the shares learnt: a class that no text seems to
            have may yet have one, and a model's errors pass for shares where it is often wrong.
    """
    counted = more / len(probabilities)
    shares = learnt
    for _ in range(ITERATIONS):
        likely = probabilities * (shares / learnt)
        mean = (likely / likely.sum(-1, keepdims=True)).mean(0)
        shares = (mean + counted * learnt) / (1.0 + counted)
    return shares


def distance(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Return the total variation distance of two distributions, 0 to 1."""
    return float(np.abs(one - other).sum() / 2)
