"""What models are compared on: texts or documents, and what counts as the same answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nanonet.core.bundle import Thresholds
from nanonet.core.config import Config, SummarizationConfig
from nanonet.core.errors import DataError
from nanonet.data.checks import fingerprint
from nanonet.data.documents import DocumentTable, read_documents
from nanonet.data.multilabel import MultilabelTable, flags_of, read_multilabel
from nanonet.data.readers import LabelUse, TextTable, read_table
from nanonet.tasks.base import Row, Window
from nanonet.tasks.budgets import Budget, choose
from nanonet.tasks.documents import Document
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.multilabel import DEFAULT_THRESHOLD, sigmoid
from nanonet.tasks.rouge import METRICS, Rouge
from nanonet.tasks.tokenization import Ids, TextTokenizer, length_chunks
from nanonet.tasks.windows import DocumentEncoder, EncodedDocuments, feed_of
from nanonet.training.inputs import columns_of
from nanonet.training.run_folder import RunFolder

TEXTS, DOCUMENTS = 1000, 200  # measured on, at most
TOKENS_PER_CHUNK, MAX_PADDING = 2048, 0.1

Feed = dict[str, NDArray[Any]]


class Sample(ABC):
    """Texts or documents to measure on.

    Attributes:
        source: where they are from, for messages.
        seen: whether training has read them: their tokens are among the run's token counts.
        task: of the model.
    """

    source: str
    seen: bool
    task: ClassVar[str]

    @abstractmethod
    def describe(self) -> str:
        """Return it as part of a sentence."""

    @abstractmethod
    def rows(self, tokenizer: str, max_length: int) -> list[list[Row]]:
        """Return the rows of each text; a text has one.

        Args:
            tokenizer: ``tokenizer.json`` content.
            max_length: tokens of a row at most.
        """

    @abstractmethod
    def answers(self, session: Any, rows: list[list[Row]], which: Sequence[int]) -> list[Any]:
        """Return what a model answers to the texts at ``which``, given the rows of all."""

    @abstractmethod
    def agreement(self, answers: list[Any], others: list[Any]) -> float:
        """Return how far answers to all texts are the same, 0 to 1."""

    @abstractmethod
    def scores(self, answers: list[Any]) -> dict[str, float]:
        """Return how good answers to all texts are, by metric; empty without labels."""


@dataclass(frozen=True)
class TextSample(Sample):
    """Texts; an answer is the index of a class, and agreement is the share of equal ones.

    Attributes:
        texts: (n,).
        truth: class indexes (n,); None where there are no labels.
    """

    task = "classification"
    source: str
    texts: list[str]
    truth: NDArray[Any] | None
    seen: bool

    def describe(self) -> str:
        """See `Sample`."""
        return f"{len(self.texts)} texts of {self.source}"

    def rows(self, tokenizer: str, max_length: int) -> list[list[Row]]:
        """See `Sample`."""
        return [[ids] for ids in TextTokenizer(tokenizer, max_length).encode(self.texts).ids]

    def answers(self, session: Any, rows: list[list[Row]], which: Sequence[int]) -> list[Any]:
        """See `Sample`."""
        asked = [rows[i][0] for i in which]
        return list(np.array(logits_of(session, asked)).argmax(-1)) if asked else []

    def agreement(self, answers: list[Any], others: list[Any]) -> float:
        """See `Sample`."""
        return float(np.mean([a == b for a, b in zip(answers, others, strict=True)]))

    def scores(self, answers: list[Any]) -> dict[str, float]:
        """See `Sample`."""
        return {} if self.truth is None else {"accuracy": float((self.truth == answers).mean())}


@dataclass(frozen=True)
class MultilabelSample(TextSample):
    """Texts; an answer is the labels given, as flags.

    Attributes:
        truth: flags (n, L); None where there are no labels.
        thresholds: from which probability on a text gets each label, (L,).
    """

    task = "multilabel"
    thresholds: NDArray[np.float32]

    def answers(self, session: Any, rows: list[list[Row]], which: Sequence[int]) -> list[Any]:
        """See `Sample`."""
        asked = [rows[i][0] for i in which]
        found = logits_of(session, asked) if asked else []
        return [tuple(sigmoid(own) >= self.thresholds) for own in found]

    def scores(self, answers: list[Any]) -> dict[str, float]:
        """See `Sample`."""
        if self.truth is None:
            return {}
        return {"accuracy": float((self.truth == np.array(answers)).all(-1).mean())}


@dataclass(frozen=True)
class DocumentSample(Sample):
    """Documents; an answer is the set of sentences chosen at the trained budget.

    Agreement is the F1 of two sets, a mean over documents: where both choose k sentences, the share
    that they have in common.

    Attributes:
        documents: (n,).
        references: sentences of each; None where there are none.
        settings: as trained.
    """

    task = "summarization"
    source: str
    documents: list[Document]
    references: list[list[str]] | None
    seen: bool
    settings: SummarizationConfig

    def describe(self) -> str:
        """See `Sample`."""
        return f"{len(self.documents)} documents of {self.source}"

    def rows(self, tokenizer: str, max_length: int) -> list[list[Row]]:
        """See `Sample`."""
        found = DocumentEncoder(tokenizer, max_length, self.settings).encode(self.documents)
        ends = np.cumsum(found.windows_of)
        pairs = zip(ends - found.windows_of, ends, strict=True)
        return [list[Row](found.ids[first:end]) for first, end in pairs]

    def answers(self, session: Any, rows: list[list[Row]], which: Sequence[int]) -> list[Any]:
        """See `Sample`."""
        documents = [self.documents[i] for i in which]
        windows = [row for i in which for row in rows[i] if isinstance(row, Window)]
        counts = np.array([len(rows[i]) for i in which], dtype=np.int64)
        sentences = np.array([len(document.spans) for document in documents], dtype=np.int64)
        pairs = zip(windows, logits_of(session, windows), strict=True)
        logits = [found[: len(window.sizes)] for window, found in pairs]
        units = np.concatenate(logits) if logits else np.empty(0, np.float32)
        merged = EncodedDocuments(windows, counts, sentences, 0.0).merge(units)
        budget, block = Budget.parse(self.settings.budget), self.settings.block_trigrams
        scored = zip(merged, documents, strict=True)
        return [frozenset(choose(own, d.sentences, budget, block)) for own, d in scored]

    def agreement(self, answers: list[Any], others: list[Any]) -> float:
        """See `Sample`."""
        pairs = [(a, b) for a, b in zip(answers, others, strict=True) if a | b]
        shares = [2 * len(a & b) / (len(a) + len(b)) for a, b in pairs]
        return float(np.mean(shares)) if shares else 1.0

    def scores(self, answers: list[Any]) -> dict[str, float]:
        """See `Sample`: ROUGE F1."""
        if self.references is None:
            return {}
        rouge, found = Rouge(), []
        for chosen, document, reference in zip(
            answers, self.documents, self.references, strict=True
        ):
            sentences = document.sentences
            found.append(rouge.score(reference, [sentences[i] for i in sorted(chosen)]))
        means = np.mean(found, axis=0)
        return {name: float(value) for name, value in zip(METRICS, means, strict=True)}


def draw_texts(table: TextTable, labels: LabelSet, seen: bool) -> TextSample:
    """Return at most `TEXTS` of a table's texts, the same ones each time.

    Raises:
        DataError: a label that training never saw.
    """
    rows = _draw(len(table.texts), TEXTS)
    truth = None
    if table.labels is not None and not seen:  # accuracy on training texts says nothing
        truth = labels.encode(table.labels, table.source, table.rows, table.names)[rows]
    return TextSample(table.source, [table.texts[i] for i in rows], truth, seen)


def draw_labels(
    table: MultilabelTable, labels: LabelSet, seen: bool, thresholds: Thresholds | None
) -> MultilabelSample:
    """Return at most `TEXTS` of a table's texts, the same ones each time.

    Raises:
        DataError: a label that training never saw.
    """
    rows = _draw(len(table.texts), TEXTS)
    truth = None
    if table.label_lists is not None and not seen:
        truth = flags_of(table, labels)[rows]
    values = [DEFAULT_THRESHOLD] * len(labels) if thresholds is None else thresholds.values
    texts = [table.texts[i] for i in rows]
    return MultilabelSample(table.source, texts, truth, seen, np.array(values, dtype=np.float32))


def draw_documents(
    table: DocumentTable, settings: SummarizationConfig, seen: bool
) -> DocumentSample:
    """Return at most `DOCUMENTS` of a table's documents, the same ones each time."""
    rows = _draw(len(table.documents), DOCUMENTS)
    references = None
    if table.summaries is not None and not seen:
        references = [table.summaries[i] for i in rows]
    documents = [table.documents[i] for i in rows]
    return DocumentSample(table.source, documents, references, seen, settings)


def _draw(count: int, most: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(count).permutation(count)[:most])


def draw_sample(run: RunFolder, table: TextTable, seen: bool) -> Sample:
    """Return what to measure on of a table of the run's task; see `draw_texts`."""
    config, _ = run.read_config()
    if isinstance(table, DocumentTable):
        return draw_documents(table, config.summarization, seen)
    labels = run.read_labels()
    if config.task == "multilabel":
        if not isinstance(table, MultilabelTable):  # texts without labels
            table = MultilabelTable(table.source, table.texts, table.rows, None, None, 0)
        return draw_labels(table, labels, seen, run.thresholds)
    return draw_texts(table, labels, seen)


def run_sample(run: RunFolder) -> Sample | None:
    """Return texts that a run was trained with, if their file still is what it was.

    The unlabelled ones where there are any. None: they were given as lists, or have changed.
    """
    config, inputs = run.read_config()
    reading: tuple[tuple[str, LabelUse], ...] = (("unlabeled", "ignored"), ("labeled", "required"))
    for name, use in reading:
        known = inputs.get(name, {})
        try:
            table = _read(config, str(known.get("source", "")), use)
        except DataError:
            continue
        if fingerprint(table) == known.get("fingerprint"):
            return draw_sample(run, table, seen=True)
    return None


def _read(config: Config, source: str, use: LabelUse) -> TextTable:
    if config.task == "summarization":
        return read_documents(source, config.data, config.summarization.language, labels=use)
    if config.task == "multilabel":
        return read_multilabel(source, config.data, labels=use)
    return read_table(source, columns_of(config.data), labels=use)


def logits_of(session: Any, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
    """Return the logits of each row: (C,), or of a window's units and padding."""
    names = {given.name for given in session.get_inputs()}
    out: dict[int, NDArray[np.float32]] = {}
    for feed, places in batches(rows):
        known = {name: array for name, array in feed.items() if name in names}
        out |= dict(zip(places.tolist(), session.run(["logits"], known)[0], strict=True))
    return [out[i] for i in range(len(rows))]


def batches(rows: Sequence[Row]) -> list[tuple[Feed, Ids]]:
    """Return inputs of the model and the rows that each holds."""
    chunks = length_chunks([len(row) for row in rows], MAX_PADDING, TOKENS_PER_CHUNK)
    return [(feed_of([rows[i] for i in chunk]), chunk) for chunk in chunks]
