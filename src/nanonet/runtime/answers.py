"""What the model says, as the server writes it: the one place that knows the task."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from nanonet.tasks.labels import LabelSet


class ErrorAnswer(BaseModel):
    """Why a request was refused, in one line."""

    error: str


class Choice(BaseModel):
    """A class and its probability."""

    label: int | str
    label_name: str
    probability: float


class Prediction(BaseModel):
    """The answer to one text. ``top`` and ``probabilities`` are there only if asked for."""

    label: int | str | None
    label_name: str | None
    probability: float
    abstained: bool
    top: list[Choice] | None = None
    probabilities: dict[str, float] | None = None


class PredictAnswer(BaseModel):
    """One prediction per text, in order."""

    predictions: list[Prediction]


def classification(
    labels: LabelSet,
    probabilities: NDArray[np.float32],
    *,
    top_k: int | None,
    all_probabilities: bool,
    min_probability: float,
) -> dict[str, Any]:
    """Return the answer to one text.

    Args:
        labels: the classes.
        probabilities: of each class, shape (classes,).
        top_k: also list this many classes, most probable first.
        all_probabilities: also give the probability of each class by its name.
        min_probability: abstain where the most probable class has less.
    """
    order = np.argsort(-probabilities, kind="stable")
    listed = [
        {
            "label": labels.values[i],
            "label_name": labels.names[i],
            "probability": round(float(probabilities[i]), 6),
        }
        for i in order[: top_k or 1]
    ]
    answer: dict[str, Any] = dict(listed[0])
    answer["abstained"] = float(probabilities[order[0]]) < min_probability
    if answer["abstained"]:
        answer["label"] = answer["label_name"] = None
    if top_k is not None:
        answer["top"] = listed
    if all_probabilities:
        answer["probabilities"] = {
            name: round(float(p), 6) for name, p in zip(labels.names, probabilities, strict=True)
        }
    return answer
