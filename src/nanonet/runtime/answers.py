"""What a bundle is asked over HTTP and what it says: the one place that knows the task."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from nanonet.core.bundle import Manifest
from nanonet.core.errors import ConfigError, MissingExtraError
from nanonet.runtime.predictor import MultilabelPredictor, Predictor, TextModel
from nanonet.runtime.requests import Asked, RequestError, Row
from nanonet.runtime.summarizer import Selection, Summarizer, make_documents
from nanonet.tasks.documents import split_text
from nanonet.tasks.labels import LabelSet

Item = TypeVar("Item")  # what the model gets of a row
A = TypeVar("A", bound=Asked)


class ErrorAnswer(BaseModel):
    """Why a request was refused, in one line."""

    error: str


class Served(ABC, Generic[Item, A]):
    """A bundle as the server sees it.

    Attributes:
        about: what it does, as a sentence.
        page: the part of the page at / that is its own.
        asked: a request's body.
        answers: what it gets.
    """

    about: ClassVar[str]
    page: ClassVar[str]
    asked: type[A]
    answers: ClassVar[type[BaseModel]]
    manifest: Manifest

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Return what clients should know of it."""

    @abstractmethod
    def items(self, asked: A) -> list[Item]:
        """Return what the model is to answer, a part for each row.

        Raises:
            RequestError: it cannot.
        """

    @abstractmethod
    def warm_up(self) -> list[Item]:
        """Return items of usual length to measure the model with."""

    @abstractmethod
    def work(self, item: Item) -> float:
        """Return about how much work an item is, in tokens, without tokenizing it."""

    @abstractmethod
    def run(self, items: list[Item]) -> Iterable[Any]:
        """Return what the model finds, one for each item; called in the worker thread."""

    @abstractmethod
    def answer(self, found: Any, asked: A) -> dict[str, Any]:
        """Return the answer to one row."""


Model = Predictor | MultilabelPredictor | Summarizer


def served(model: Model) -> Served[Any, Any]:
    """Return a loaded bundle as the server sees it."""
    kinds: dict[str, Any] = {"multilabel": Labels, "summarization": Summaries}
    kind: Served[Any, Any] = kinds.get(model.manifest.task, Classes)(model)
    return kind


# classification


class ClassesAsked(Asked):
    """One text or several, and what to say of each."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["first text", "second text"], "top_k": 2}]}
    )

    text: str | None = Field(None, description="One text; give either this or texts.")
    texts: list[str] | None = Field(None, fail_fast=True, description="Several texts.")
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


class LabelsAsked(Asked):
    """One text or several, and what to say of each."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["first text", "second text"]}]}
    )

    text: str | None = Field(None, description="One text; give either this or texts.")
    texts: list[str] | None = Field(None, fail_fast=True, description="Several texts.")
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


# summarization


def _kind(value: object) -> str:
    return "sentences" if isinstance(value, list) else "text"


Sentences = Annotated[list[str], Field(fail_fast=True)]
Document = Annotated[
    Annotated[str, Tag("text")] | Annotated[Sentences, Tag("sentences")], Discriminator(_kind)
]


class SummariesAsked(Asked):
    """One document or several, and how long their summaries may be."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"text": "It rained. The river rose. Nobody saw it.", "budget": "words=5"}]
        }
    )
    sources = ("text", "sentences", "texts")
    advice = "give one of 'text', 'sentences' (of one document) and 'texts' (a list of documents)"

    text: str | None = Field(None, description="One document; give this, sentences or texts.")
    sentences: Sentences | None = Field(None, description="One document, cut into sentences.")
    texts: list[Document] | None = Field(
        None, fail_fast=True, description="Several documents: texts, or lists of sentences."
    )
    budget: str | None = Field(
        None, description="sentences=3, words=100 or ratio=0.3 of the words; else as trained."
    )
    block_trigrams: bool | None = Field(
        None, description="No two sentences with three words in a row in common; else as trained."
    )


class ChosenSentence(BaseModel):
    """A sentence of a summary: its number, its place in characters, and how much it belongs."""

    index: int
    start: int
    end: int
    score: float
    text: str


class SummaryPrediction(BaseModel):
    """A summary, a sentence a line, and its sentences in the document's order.

    Places are in the text or, for a list of sentences, in the sentences joined by a blank.
    """

    summary: str
    sentences: list[ChosenSentence]


class SummariesAnswer(BaseModel):
    """One summary per document, in order."""

    predictions: list[SummaryPrediction]


@dataclass(frozen=True)
class Wanted:
    """A document, and which of its sentences are asked for."""

    row: Row
    selection: Selection


class Summaries(Served[Wanted, SummariesAsked]):
    """A summarizer; see `Served`."""

    about = "Extractive summarization."
    page = "summarize.html"
    asked = SummariesAsked
    answers = SummariesAnswer

    def __init__(self, summarizer: Summarizer) -> None:
        self.manifest = summarizer.manifest
        self._summarizer = summarizer
        self._no_texts = ""
        try:
            split_text("", summarizer.settings.language)
        except MissingExtraError as error:
            self._no_texts = f"this server takes sentences only: {error}"

    def info(self) -> dict[str, Any]:
        """See `Served`."""
        settings = self._summarizer.settings
        return {
            "budget": settings.budget,
            "block_trigrams": settings.block_trigrams,
            "language": settings.language,
        }

    def items(self, asked: SummariesAsked) -> list[Wanted]:
        """See `Served`."""
        rows = asked.rows()
        if self._no_texts and any(isinstance(row, str) for row in rows.values()):
            raise RequestError(422, self._no_texts)
        try:
            selection = self._summarizer.selection(asked.budget, asked.block_trigrams)
        except ConfigError as error:
            raise RequestError(422, str(error)) from None
        return [Wanted(row, selection) for row in rows.values()]

    def warm_up(self) -> list[Wanted]:
        """See `Served`."""
        selection = self._summarizer.selection(None, None)
        return [Wanted(["some more words that have no meaning"] * 24, selection)] * 4

    def work(self, item: Wanted) -> float:
        """See `Served`.

        Of a long document, what windows have in common is read twice.
        """
        sentences = [item.row] if isinstance(item.row, str) else item.row
        tokens = sum(len(sentence.encode()) + 1 for sentence in sentences) / 4
        is_long = tokens > self.manifest.max_length
        return 2 + tokens / (1 - self._summarizer.settings.overlap if is_long else 1)

    def run(self, items: list[Wanted]) -> Iterable[Any]:
        """See `Served`."""
        language = self._summarizer.settings.language
        documents = make_documents([item.row for item in items], language)
        scored = zip(items, documents, self._summarizer.score(documents), strict=True)
        return [item.selection.summary(document, logits) for item, document, logits in scored]

    def answer(self, found: Any, asked: SummariesAsked) -> dict[str, Any]:
        """See `Served`."""
        answer: dict[str, Any] = found.to_json()
        return answer
