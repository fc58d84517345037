"""The task of extractive summarization: documents, the labels of their sentences, ROUGE."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import Config
from nanonet.core.errors import DataError
from nanonet.data.checks import duplicate_count
from nanonet.data.documents import DocumentTable, read_documents
from nanonet.data.readers import LabelUse
from nanonet.models.cohort import Cohort
from nanonet.tasks.base import OUTPUTS, EncodedTable, HeadStart, Task, unit_counts, units_of
from nanonet.tasks.budgets import Budget
from nanonet.tasks.documents import check_language
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.rouge import rouge_of
from nanonet.tasks.tokenization import UNKNOWN_SHARE_LIMIT, TextTokenizer, unknown_warning
from nanonet.tasks.windows import DocumentEncoder, EncodedDocuments
from nanonet.training.device import Hardware
from nanonet.training.evaluation import embed
from nanonet.training.propagation import check_neighbours_only
from nanonet.training.sentences import Start, fit_start

LABELS = LabelSet((0, 1), ("other", "summary"))  # of a sentence


@dataclass(frozen=True)
class EncodedDocumentTable(EncodedTable):
    """Windows of documents, with the table that they were made of."""

    encoded: EncodedDocuments
    table: DocumentTable

    @property
    def examples(self) -> int:
        """See `EncodedTable.examples`."""
        return len(self.table.documents)


class Summarization(Task[DocumentTable]):
    """Extractive summarization: a unit is a sentence, which is in the summary or not."""

    outputs = OUTPUTS["summarization"]

    def __init__(self, config: Config) -> None:
        self._settings = config.summarization
        self._columns = config.data
        self._normalized = config.head.normalize
        check_language(self._settings.language)
        check_neighbours_only(config.propagation, "summarization")
        self._budget = Budget.parse(self._settings.budget)
        self.metric = f"ROUGE-2 F1 at {self._budget}"

    def read(self, source: str, labeled: bool) -> DocumentTable:
        """See `Task.read`."""
        use: LabelUse = "required" if labeled else "ignored"
        return read_documents(source, self._columns, self._settings.language, labels=use)

    def label_set(self, labeled: DocumentTable) -> LabelSet:
        """Return `LABELS`, whatever the table."""
        return LABELS

    def warnings(self, tables: Mapping[str, DocumentTable], labels: LabelSet) -> list[str]:
        """See `Task.warnings`: no unlabelled sentence to choose against is an error."""
        labeled = tables["labeled"]
        if 0 not in labeled.truth():
            raise DataError(
                f"{labeled.source}: every sentence is in its summary; give documents that are"
                " longer than their summaries"
            )
        warnings = [line for table in tables.values() for line in table.warnings()]
        if copies := duplicate_count(labeled.texts):
            warnings.append(f"{labeled.source}: {copies} documents are copies of an earlier one")
        return warnings

    def encode(
        self, table: DocumentTable, labels: LabelSet | None, tokenizer: TextTokenizer
    ) -> EncodedTable:
        """See `Task.encode`."""
        encoder = DocumentEncoder(tokenizer.to_json(), tokenizer.max_length, self._settings)
        encoded = encoder.encode(table.documents)
        known = table.truth() if labels is not None else None
        return EncodedDocumentTable(table.source, encoded, _unit_truth(encoded, known), table)

    def encoding_warnings(self, encoded: EncodedTable, max_length: int) -> list[str]:
        """See `Task.encoding_warnings`: no document is cut, but a script can be unknown."""
        assert isinstance(encoded, EncodedDocumentTable)
        share = encoded.encoded.unknown_share
        return [unknown_warning(encoded.source, share)] if share > UNKNOWN_SHARE_LIMIT else []

    def start_heads(
        self, cohort: Cohort, labeled: EncodedTable, hardware: Hardware, seed: int
    ) -> HeadStart:
        """Start the heads from `fit_start`, where they read features and normalised vectors.

        What the first learner's vectors add (the teacher's, where there is one) decides for all.
        """
        if not (self._settings.start and self._settings.features and self._normalized):
            return HeadStart()
        assert isinstance(labeled, EncodedDocumentTable)
        documents = [own for own in _units_of_documents(labeled.encoded) if len(own)]
        labels = [labeled.truth[own] for own in documents]
        table = np.concatenate([window.features for window in labeled.encoded.ids])
        features = [table[own].astype(np.float64) for own in documents]
        first: Start | None = None
        for name in cohort:
            vectors = embed(cohort[name], labeled.encoded.ids, hardware).astype(np.float64)
            start = fit_start(
                features,
                [vectors[own] for own in documents],
                labels,
                seed,
                like=first,
            )
            cohort[name].head.start_from(start.vectors, start.features, start.bias)
            first = first or start
        assert first is not None
        return HeadStart(first.note(), not first.uses_vectors, first.notice())

    def score(self, encoded: EncodedTable, logits: NDArray[Any]) -> float:
        """Return the mean ROUGE-2 F1 of the summaries at the settings' budget."""
        assert isinstance(encoded, EncodedDocumentTable)
        merged = encoded.encoded.merge(logits[:, 1] - logits[:, 0])
        texts = [document.sentences for document in encoded.table.documents]
        references = encoded.table.summaries or []
        block = self._settings.block_trigrams
        return float(rouge_of(merged, texts, references, self._budget, block)[:, 1].mean())


def _units_of_documents(encoded: EncodedDocuments) -> list[NDArray[np.int64]]:
    """Return where the units of each document stand among all units."""
    counts = unit_counts(encoded.ids)
    ends = np.cumsum(encoded.windows_of)
    windows = [np.arange(e - n, e) for e, n in zip(ends, encoded.windows_of, strict=True)]
    return [units_of(own, counts) for own in windows]


def _unit_truth(
    encoded: EncodedDocuments, sentences: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Return the label of each unit, from those of all sentences; -1 where there are none."""
    starts = np.cumsum(encoded.sentences_of) - encoded.sentences_of
    owners = np.repeat(starts, encoded.windows_of)
    places = [start + w.sentences for start, w in zip(owners, encoded.ids, strict=True)]
    units = np.concatenate(places) if places else np.empty(0, dtype=np.int64)
    return np.full(len(units), -1) if sentences is None else sentences[units]
