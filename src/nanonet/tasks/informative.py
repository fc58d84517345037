"""Which rows a model would learn most from, if their labels were known.

BADGE (Ash et al. 2020, "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds"):
were the most probable class a text's label, the loss would have the gradient (p - e) ⊗ x with
regard to the head's weights, p being its probabilities, e one-hot at the most probable class and x
its vector. It is long where the model is in doubt, and points elsewhere for texts of another kind.
Rows are drawn as k-means++ draws its centres, each with a probability that grows with the squared
distance to the nearest one that has been drawn: doubtful ones, and not ten copies of one doubt.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def most_informative(
    probabilities: NDArray[np.floating],
    vectors: NDArray[np.floating] | None,
    count: int,
    seed: int,
) -> list[int]:
    """Return the indexes of at most ``count`` rows, in the order in which they were chosen.

    Args:
        probabilities: (n, C).
        vectors: (n, H) of length 1; None: where there are none, doubts are told apart by their
            classes alone.
        count: rows wanted.
        seed: of the draws; the first row is the one with the longest gradient.
    """
    p = probabilities.astype(np.float64)
    doubt = p.copy()
    doubt[np.arange(len(p)), p.argmax(-1)] -= 1.0
    squares = (doubt**2).sum(-1)
    rng = np.random.default_rng(seed)
    nearest = squares + np.finfo(float).eps  # rows of no doubt at all come last, but come
    chosen: list[int] = []
    while len(chosen) < min(count, len(p)):
        if chosen:
            pick = int(rng.choice(len(p), p=nearest / nearest.sum()))
        else:
            pick = int(nearest.argmax())
        chosen.append(pick)
        # |g - h|² = |g|² + |h|² - 2 (d·d')(x·x'), without ever making g = d ⊗ x
        shared = doubt @ doubt[pick]
        if vectors is not None:
            shared = shared * (vectors @ vectors[pick])
        distance = np.maximum(squares + squares[pick] - 2 * shared, np.finfo(float).eps)
        nearest = np.minimum(nearest, distance)
        nearest[chosen] = 0.0
    return chosen
