"""What bundles that read texts are asked over HTTP and what they say; which bundle is which."""

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from nanonet.runtime.predictor import MultilabelPredictor, Predictor, TextModel
from nanonet.runtime.requests import Asked
from nanonet.runtime.served import Served
from nanonet.runtime.summaries import Summaries
from nanonet.runtime.summarizer import Summarizer
from nanonet.tasks.labels import LabelSet

Model = Predictor | MultilabelPredictor | Summarizer


def served(model: Model) -> Served[Any, Any]:
    """Return a loaded bundle as the server sees it."""
    kinds: dict[str, Any] = {"multilabel": Labels, "summarization": Summaries}
    kind: Served[Any, Any] = kinds.get(model.manifest.task, Classes)(model)
    return kind


# classification


class TextsAsked(Asked):
    """One text or several."""

    text: str | None = Field(None, description="One text; give either this or texts.")
    texts: list[str] | None = Field(None, fail_fast=True, description="Several texts.")


A = TypeVar("A", bound=TextsAsked)


class ClassesAsked(TextsAsked):
    """One text or several, and what to say of each."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["first text", "second text"], "top_k": 2}]}
    )

    top_k: int | None = Field(
        None, ge=1, le=1_000_000, description="Also list this many classes, best first."
    )
    probabilities: bool = Field(False, description="Also give the probability of every class.")
    min_probability: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Abstain (label null) where the best class has a lower probability. Without it,"
        " the bundle decides; 0: never.",
    )


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


class OfTexts(Served[str, A]):
    """What answers texts; see `Served`."""

    def __init__(self, predictor: TextModel) -> None:
        self.manifest = predictor.manifest

    def items(self, asked: A) -> list[str]:
        """See `Served`."""
        return [text for text in asked.rows().values() if isinstance(text, str)]

    def warm_up(self) -> list[str]:
        """See `Served`."""
        words = min(self.manifest.max_length, 32)
        return ["some more words that have no meaning " * (words // 7 + 1)] * 16

    def work(self, item: str) -> float:
        """See `Served`.

        Words have about four bytes per token in most scripts. The tokenizer reads also what the
        model never sees of a long text, much faster.
        """
        size = len(item.encode())
        return 2 + min(self.manifest.max_length, size / 4) + size / 200


def _listed(labels: LabelSet) -> list[dict[str, Any]]:
    pairs = zip(labels.values, labels.names, strict=True)
    return [{"label": value, "label_name": name} for value, name in pairs]


class Classes(OfTexts[ClassesAsked]):
    """A classifier; see `Served`."""

    about = "Text classification."
    page = "classify.html"
    asked = ClassesAsked
    answers = PredictAnswer

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(predictor)
        self._predictor = predictor

    def info(self) -> dict[str, Any]:
        """See `Served`."""
        return {
            "labels": _listed(self._predictor.labels),
            "min_probability": self._predictor.min_confidence,
        }

    def run(self, items: list[str]) -> Iterable[Any]:
        """See `Served`."""
        return self._predictor.predict_proba(items)

    def answer(self, found: NDArray[np.float32], asked: ClassesAsked) -> dict[str, Any]:
        """See `Served`."""
        return classification(self._predictor.labels, found, asked, self._predictor.min_confidence)


def classification(
    labels: LabelSet,
    probabilities: NDArray[np.float32],
    asked: ClassesAsked,
    min_confidence: float,
) -> dict[str, Any]:
    """Return the answer to one text, from the probability of each class, (classes,).

    It abstains where the most probable class has less than what is asked for or, where nothing is,
    ``min_confidence``.
    """
    order = np.argsort(-probabilities, kind="stable")
    listed = [
        {
            "label": labels.values[i],
            "label_name": labels.names[i],
            "probability": round(float(probabilities[i]), 6),
        }
        for i in order[: asked.top_k or 1]
    ]
    answer: dict[str, Any] = dict(listed[0])
    least = asked.min_probability
    if least is None:
        least = min_confidence
    answer["abstained"] = float(probabilities[order[0]]) < least
    if answer["abstained"]:
        answer["label"] = answer["label_name"] = None
    if asked.top_k is not None:
        answer["top"] = listed
    if asked.probabilities:
        answer["probabilities"] = {
            name: round(float(p), 6) for name, p in zip(labels.names, probabilities, strict=True)
        }
    return answer


# several labels


class LabelsAsked(TextsAsked):
    """One text or several, and what to say of each."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["first text", "second text"]}]}
    )

    probabilities: bool = Field(False, description="Also give the probability of every label.")
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="From which probability on a text gets a label; else the bundle decides.",
    )


class LabelsPrediction(BaseModel):
    """A text's labels, the surest first. ``probabilities`` is there only if asked for."""

    labels: list[Choice]
    probabilities: dict[str, float] | None = None


class LabelsAnswer(BaseModel):
    """The labels of each text, in order."""

    predictions: list[LabelsPrediction]


class Labels(OfTexts[LabelsAsked]):
    """What gives texts any number of labels; see `Served`."""

    about = "Labels of texts, several or none each."
    page = "label.html"
    asked = LabelsAsked
    answers = LabelsAnswer

    def __init__(self, predictor: MultilabelPredictor) -> None:
        super().__init__(predictor)
        self._predictor = predictor

    def info(self) -> dict[str, Any]:
        """See `Served`."""
        listed = _listed(self._predictor.labels)
        limits = zip(listed, self._predictor.thresholds.tolist(), strict=True)
        return {"labels": [own | {"threshold": round(limit, 6)} for own, limit in limits]}

    def run(self, items: list[str]) -> Iterable[Any]:
        """See `Served`."""
        return self._predictor.predict_proba(items)

    def answer(self, found: NDArray[np.float32], asked: LabelsAsked) -> dict[str, Any]:
        """See `Served`."""
        labels = self._predictor.labels
        order = self._predictor.surest_first(found, asked.threshold)
        shown = np.round(found.astype(np.float64), 6).tolist()
        answer: dict[str, Any] = {
            "labels": [
                {
                    "label": labels.values[k],
                    "label_name": labels.names[k],
                    "probability": shown[k],
                }
                for k in order
            ]
        }
        if asked.probabilities:
            answer["probabilities"] = dict(zip(labels.names, shown, strict=True))
        return answer
