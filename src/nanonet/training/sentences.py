"""Where the heads of a summarizer start: a logistic regression, its strength by cross-validation.

With few documents, gradient steps of a fixed size overwrite what position and centrality alone say,
and often for the worse. So the heads start from a regression, as strong as held-out documents bear
out: first on the features alone, then on features and the sentences' pooled vectors, as long as
these bring more than two standard errors. Where they do not, the encoder stays out of it.
What this brings is measured in ``docs/experiments.md``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW = (2, 8)  # a decay with the rank, and centrality: what ten documents can weigh
STRENGTHS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C, the inverse of the penalty's weight
VECTOR_STRENGTHS = (0.1, 0.5, 2.5, 12.0)  # C of the vectors' weights
VECTORS_MARGIN = 2.0  # standard errors by which the vectors must help to be used
FOLDS = 10
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Regression:
    """Which one is fitted.

    Attributes:
        columns: the features that it reads.
        strength: its C for these.
        vector_strength: its C for the vectors; 0: it does not read them.
    """

    columns: tuple[int, ...]
    strength: float
    vector_strength: float = 0.0


@dataclass(frozen=True)
class Start:
    """A logistic regression over the sentences of labelled documents.

    Attributes:
        features: weights (F,).
        vectors: weights (H,); zeros where the vectors brought nothing.
        bias: the intercept.
        regression: the one that was chosen.
        losses: log loss per sentence on held-out documents of the best regressions without vectors
            (``features``) and with them (``encoder``); empty where none was held out.
    """

    features: Floats
    vectors: Floats
    bias: float
    regression: Regression
    losses: dict[str, float]

    @property
    def uses_vectors(self) -> bool:
        """Whether the vectors brought enough."""
        return self.regression.vector_strength > 0

    def note(self) -> dict[str, Any]:
        """Return what a run's summary keeps of it."""
        return {
            "features": list(self.regression.columns),
            "strength": self.regression.strength,
            "encoder_strength": self.regression.vector_strength,
            "held_out_losses": {name: round(loss, 6) for name, loss in self.losses.items()},
            "encoder": self.uses_vectors,
        }

    def notice(self) -> str:
        """Return what the user should know where the encoder stays out of it."""
        if self.uses_vectors:
            return ""
        return (
            "held-out labelled documents do not bear out that the encoder adds to position, length"
            " and centrality of a sentence: these alone score it, and nothing is trained; label"
            " more documents, or train all the same with --set summarization.start=false"
        )


def fit_start(
    features: Sequence[Floats],
    vectors: Sequence[Floats],
    labels: Sequence[Labels],
    seed: int,
    like: Start | None = None,
) -> Start:
    """Fit the regression that the heads start from.

    Without vectors it is the most cautious one within one standard error of the best: on `FEW`
    features rather than all, and with a heavier penalty.

    Args:
        features: of the sentences of n documents, (S, F) each.
        vectors: their pooled vectors, L2-normalised, (S, H) each.
        labels: 0 or 1 per sentence, (S,) each.
        seed: draws the folds.
        like: fit the same regression as there, without holding documents out.
    """
    # Less its mean over the document, as the features are: sentences compete within one, and what
    # a vector says of the whole document helps none of them.
    rows = [(f, v - v.mean(0)) for f, v in zip(features, vectors, strict=True)]
    regression, losses = _choose(rows, labels, seed) if like is None else (like.regression, {})
    own, other, bias = _fit(rows, labels, regression)
    bias -= float(np.mean([v.mean(0) @ other for v in vectors]))
    return Start(own, other, bias, regression, losses)


def _choose(
    rows: Sequence[tuple[Floats, Floats]], labels: Sequence[Labels], seed: int
) -> tuple[Regression, dict[str, float]]:
    """Return the regression that held-out documents bear out, and the losses of both kinds."""
    every = tuple(range(rows[0][0].shape[1]))
    plain = [Regression(columns, strength) for columns in (FEW, every) for strength in STRENGTHS]
    if len(labels) == 1:
        return plain[0], {}
    own = _held_out_losses(rows, labels, plain, seed)
    place = _most_cautious(own)
    least = plain[int(own.mean(1).argmin())]
    rich = [replace(least, vector_strength=strength) for strength in VECTOR_STRENGTHS]
    rival = _held_out_losses(rows, labels, rich, seed)
    best = int(rival.mean(1).argmin())
    gain = own[place] - rival[best]
    better = gain.mean() > VECTORS_MARGIN * _standard_error(gain)
    losses = {"features": float(own[place].mean()), "encoder": float(rival[best].mean())}
    return rich[best] if better else plain[place], losses


def _fit(
    rows: Sequence[tuple[Floats, Floats]], labels: Sequence[Labels], regression: Regression
) -> tuple[Floats, Floats, float]:
    """Return the weights of features and vectors, and the intercept."""
    from sklearn.linear_model import LogisticRegression

    features, vectors = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    truth = np.concatenate(labels)
    own, other = np.zeros(features.shape[1]), np.zeros(vectors.shape[1])
    if len(np.unique(truth)) < 2:  # all of a fold's documents can be their own summaries
        return own, other, 0.0
    columns = list(regression.columns)
    scale = float(np.sqrt(regression.vector_strength / regression.strength))
    parts = [features[:, columns]] + ([scale * vectors] if scale else [])
    model = LogisticRegression(C=regression.strength, solver="newton-cholesky")
    weights = model.fit(np.hstack(parts), truth).coef_[0]
    own[columns] = weights[: len(columns)]
    if scale:
        other = scale * weights[len(columns) :]
    return own, other, float(model.intercept_[0])


def _held_out_losses(
    rows: Sequence[tuple[Floats, Floats]],
    labels: Sequence[Labels],
    regressions: Sequence[Regression],
    seed: int,
) -> Floats:
    """Return each document's log loss per sentence when held out, (regressions, n)."""
    count = len(labels)
    losses = np.empty((len(regressions), count))
    order = np.random.default_rng((seed, count)).permutation(count)
    for fold in np.array_split(order, min(FOLDS, count)):
        others = np.setdiff1d(order, fold)
        known, truth = [rows[i] for i in others], [labels[i] for i in others]
        for k, regression in enumerate(regressions):
            own, other, bias = _fit(known, truth, regression)
            for i in fold:
                logits = rows[i][0] @ own + rows[i][1] @ other + bias
                losses[k, i] = np.logaddexp(0.0, (1.0 - 2.0 * labels[i]) * logits).mean()
    return losses


def _most_cautious(losses: Floats) -> int:
    """Return the first row within one standard error, paired, of the one with the least mean."""
    excess = losses - losses[losses.mean(1).argmin()]
    return next(k for k, row in enumerate(excess) if row.mean() <= _standard_error(row))


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
