"""What a summarizer is asked over HTTP and what it says."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from nanonet.core.errors import ConfigError, MissingExtraError
from nanonet.runtime.requests import Asked, RequestError, Row
from nanonet.runtime.served import Served
from nanonet.runtime.summarizer import Selection, Summarizer, make_documents
from nanonet.tasks.documents import split_text


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
