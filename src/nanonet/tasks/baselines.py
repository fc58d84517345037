"""What any summarizer should beat: scores of sentences that need no training. No torch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nanonet.core.errors import MissingExtraError
from nanonet.tasks.documents import EXTRA

Floats = NDArray[np.float64]


def lead(sentences: Sequence[str]) -> Floats:
    """Return scores (n,) that fall with the position."""
    return -np.arange(len(sentences), dtype=np.float64)


def longest(sentences: Sequence[str]) -> Floats:
    """Return the words of each sentence, (n,)."""
    return np.array([len(sentence.split()) for sentence in sentences], dtype=np.float64)


def at_random(sentences: Sequence[str], seed: int) -> Floats:
    """Return random scores (n,); they depend on the number of sentences and the seed alone."""
    return np.random.default_rng((seed, len(sentences))).random(len(sentences))


def centroid(sentences: Sequence[str]) -> Floats:
    """Return the cosine of each sentence's TF-IDF vector with the document's mean one, (n,).

    IDF is over the document's sentences (Radev et al. 2004, with scikit-learn's weights).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise MissingExtraError("the centroid baseline", EXTRA) from error
    try:
        vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(sentences)
    except ValueError:  # no word in any sentence
        return np.zeros(len(sentences))
    mean = np.asarray(vectors.mean(axis=0)).ravel()
    return np.asarray(vectors @ mean).ravel() / max(float(np.linalg.norm(mean)), 1e-12)
