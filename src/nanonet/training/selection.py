"""Which learner to ship, without needing a validation set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.models.cohort import TEACHER
from nanonet.tasks.metrics import softmax

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Selection:
    """The choice and what it rests on.

    Attributes:
        selected: the learner's name.
        criterion: what was compared, in words.
        labels_used: labels beyond the training labels that were looked at to choose.
        scores: the compared figure by student; higher is better.
    """

    selected: str
    criterion: str
    labels_used: int
    scores: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain tables."""
        return asdict(self)


def select_by_score(
    logits: Mapping[str, Logits], scores: Mapping[str, float], metric: str, rows: int
) -> Selection:
    """Choose the student that scores best on validation rows.

    Ties go to the one that agrees more with the cohort.

    Args:
        logits: by learner, the teacher included, (n, C) on the same rows.
        scores: by student.
        metric: what they are.
        rows: labels that were looked at.
    """
    agreement = agreement_scores(logits)
    best = max(scores, key=lambda name: (scores[name], agreement[name]))
    return Selection(best, f"{metric} on {rows} validation rows", rows, dict(scores))


def select_by_agreement(logits: Mapping[str, Logits], rows: str) -> Selection:
    """Choose the student that agrees most with the cohort's mean prediction; no label needed.

    Args:
        logits: by learner, the teacher included, (n, C) on the same rows.
        rows: what the rows are, in words.
    """
    scores = agreement_scores(logits)
    best = max(scores, key=lambda name: scores[name])
    return Selection(best, f"agreement with the cohort on {rows}", 0, scores)


def agreement_scores(logits: Mapping[str, Logits]) -> dict[str, float]:
    """Return per student the mean log-likelihood of the cohort's mean prediction."""
    probabilities = {name: softmax(z.astype(np.float64)) for name, z in logits.items()}
    mean = np.mean(list(probabilities.values()), axis=0)
    return {
        name: float((mean * np.log(p + 1e-12)).sum(-1).mean())
        for name, p in probabilities.items()
        if name != TEACHER
    }
