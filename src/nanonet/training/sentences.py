"""Where the heads of a summarizer start: a logistic regression, its strength by cross-validation.

With few documents, gradient steps of a fixed size overwrite what position and centrality alone say,
and often for the worse. So the heads start from a regression, as strong as held-out documents bear
out: first on the features alone, then on features and the sentences' pooled vectors, as long as
these bring more than one standard error. Where they do not, the encoder stays out of it.
What this brings is measured in ``docs/experiments.md``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW = [2, 8]  # a decay with the rank, and centrality: what ten documents can weigh
STRENGTHS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C, the inverse of the penalty's weight
VECTOR_STRENGTHS = (0.01, 0.1, 1.0)  # where the vectors are used
VECTOR_SCALE = 4.0  # of the vectors, whose numbers are small, beside the features
FOLDS = 10
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Regression:
    """Which one is fitted: on some columns of features and vectors side by side, and its C."""

    columns: NDArray[np.int64]
    strength: float


@dataclass(frozen=True)
class Start:
    """A logistic regression over the sentences of labelled documents.

    Attributes:
        features: weights (F,).
        vectors: weights (H,); zeros where the vectors brought nothing.
        bias: the intercept.
        regression: the one that was chosen.
        losses: log loss per sentence on held-out documents of the best regressions without
            vectors (``features``) and with them (``encoder``); empty where none was held out.
    """

    features: Floats
    vectors: Floats
    bias: float
    regression: Regression
    losses: dict[str, float]

    @property
    def uses_vectors(self) -> bool:
        """Whether the vectors brought more than one standard error."""
        return len(self.regression.columns) > len(self.features)

    def note(self) -> dict[str, Any]:
        """Return what a run's summary keeps of it."""
        return {
            "strength": self.regression.strength,
            "features": min(len(self.regression.columns), len(self.features)),
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
    width = features[0].shape[1]
    tables = [np.hstack([f, VECTOR_SCALE * v]) for f, v in zip(features, vectors, strict=True)]
    full = tables[0].shape[1]
    regression, losses = (
        _choose(tables, labels, width, seed) if like is None else (like.regression, {})
    )
    fitted, bias = _fit(tables, labels, regression)
    weights = np.zeros(full)
    weights[regression.columns] = fitted
    return Start(weights[:width], VECTOR_SCALE * weights[width:], bias, regression, losses)


def _choose(
    tables: Sequence[Floats], labels: Sequence[Labels], width: int, seed: int
) -> tuple[Regression, dict[str, float]]:
    """Return the regression that held-out documents bear out, and the losses of both kinds."""
    columns = (np.array(FEW), np.arange(width))
    plain = [Regression(own, strength) for own in columns for strength in STRENGTHS]
    if len(labels) == 1:
        return plain[0], {}
    own = _held_out_losses(tables, labels, plain, seed)
    place = _most_cautious(own)
    full = np.arange(tables[0].shape[1])
    rich = [Regression(full, strength) for strength in VECTOR_STRENGTHS]
    rival = _held_out_losses(tables, labels, rich, seed)
    best = int(rival.mean(1).argmin())
    gain = own[place] - rival[best]
    better = gain.mean() > _standard_error(gain)
    losses = {"features": float(own[place].mean()), "encoder": float(rival[best].mean())}
    return rich[best] if better else plain[place], losses


def _fit(
    tables: Sequence[Floats], labels: Sequence[Labels], regression: Regression
) -> tuple[Floats, float]:
    """Return weights and intercept; that of the share alone where all labels are one."""
    from sklearn.linear_model import LogisticRegression

    table = np.concatenate([table[:, regression.columns] for table in tables])
    truth = np.concatenate(labels)
    if len(np.unique(truth)) < 2:
        share = np.clip(truth.mean(), 0.01, 0.99)
        return np.zeros(len(regression.columns)), float(np.log(share / (1 - share)))
    model = LogisticRegression(C=regression.strength, solver="newton-cholesky").fit(table, truth)
    return model.coef_[0], float(model.intercept_[0])


def _held_out_losses(
    tables: Sequence[Floats],
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
        known, truth = [tables[i] for i in others], [labels[i] for i in others]
        for k, regression in enumerate(regressions):
            weights, bias = _fit(known, truth, regression)
            for i in fold:
                logits = tables[i][:, regression.columns] @ weights + bias
                losses[k, i] = np.logaddexp(0.0, (1.0 - 2.0 * labels[i]) * logits).mean()
    return losses


def _most_cautious(losses: Floats) -> int:
    """Return the first row within one standard error, paired, of the one with the least mean."""
    excess = losses - losses[losses.mean(1).argmin()]
    return next(k for k, row in enumerate(excess) if row.mean() <= _standard_error(row))


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
