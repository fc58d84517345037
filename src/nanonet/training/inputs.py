"""What a run reads, and the task of classification: label set, checks, encoded rows."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import Config, DataConfig
from nanonet.data.checks import check_labeled
from nanonet.data.readers import Columns, TextStream, TextTable, open_stream, read_table, stream_of
from nanonet.tasks.base import OUTPUTS, EncodedTable, Task
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.metrics import accuracy
from nanonet.tasks.tokenization import EncodedTexts, TextTokenizer, encoding_warnings
from nanonet.training.streams import StreamedTexts, encode_stream


@dataclass(frozen=True)
class TrainingTables:
    """What a run reads."""

    labeled: TextTable
    unlabeled: TextTable | TextStream | None = None
    validation: TextTable | None = None

    def by_name(self) -> dict[str, TextTable | TextStream]:
        """Return the tables that there are."""
        tables: dict[str, TextTable | TextStream | None] = {
            "labeled": self.labeled,
            "unlabeled": self.unlabeled,
            "validation": self.validation,
        }
        return {name: table for name, table in tables.items() if table is not None}


def read_tables(
    task: Task[Any], labeled: str, unlabeled: str | None, validation: str | None
) -> TrainingTables:
    """Read the files of a run (see `Task.read` for errors)."""
    return TrainingTables(
        task.read(labeled, labeled=True),
        task.read(unlabeled, labeled=False) if unlabeled else None,
        task.read(validation, labeled=True) if validation else None,
    )


def columns_of(data: DataConfig) -> Columns:
    """Return the columns that a configuration names."""
    return Columns(data.text_column, data.label_column, data.label_name_column)


def label_set_of(table: TextTable) -> LabelSet:
    """Return the classes of a labelled table (see `LabelSet.from_columns` for errors)."""
    return LabelSet.from_columns(table.labels or [], table.names, table.source, table.rows)


def encode_labels(table: TextTable, labels: LabelSet) -> NDArray[np.int64]:
    """Return class indexes (n,).

    Raises:
        DataError: a label that training never saw.
    """
    return labels.encode(table.labels or [], table.source, table.rows, table.names)


class TextTask(Task[TextTable | TextStream]):
    """A task whose rows are texts."""

    def __init__(self, config: Config) -> None:
        self._data = config.data

    @abstractmethod
    def read_labeled(self, source: str) -> TextTable:
        """Read a table with labels (see `read` for errors)."""

    @abstractmethod
    def truth(self, table: TextTable, labels: LabelSet) -> NDArray[np.int64]:
        """Return the class index of each unit of a table, (U,).

        Raises:
            DataError: a label that training never saw.
        """

    def read(self, source: str, labeled: bool) -> TextTable | TextStream:
        """See `Task.read`. Unlabelled texts are not read before they are encoded."""
        return self.read_labeled(source) if labeled else open_stream(source, self._data.text_column)

    def encode(
        self, table: TextTable | TextStream, labels: LabelSet | None, tokenizer: TextTokenizer
    ) -> EncodedTable:
        """See `Task.encode`."""
        if labels is None:
            stream = stream_of(table) if isinstance(table, TextTable) else table
            streamed = encode_stream(stream, tokenizer)
            # As a view of one number, it takes no memory.
            unknown = np.broadcast_to(np.int64(-1), len(streamed.ids))
            return EncodedTable(table.source, streamed, unknown)
        own = _table(table)
        return EncodedTable(own.source, tokenizer.encode(own.texts), self.truth(own, labels))

    def encoding_warnings(self, encoded: EncodedTable, max_length: int) -> list[str]:
        """See `Task.encoding_warnings`."""
        texts = encoded.encoded
        assert isinstance(texts, EncodedTexts | StreamedTexts)
        return encoding_warnings(encoded.source, texts, max_length)


class Classification(TextTask):
    """Single-label classification: a unit is a text, and has one class of several."""

    outputs = OUTPUTS["classification"]
    metric = "accuracy"

    def read_labeled(self, source: str) -> TextTable:
        """See `TextTask.read_labeled`."""
        return read_table(source, columns_of(self._data), labels="required")

    def truth(self, table: TextTable, labels: LabelSet) -> NDArray[np.int64]:
        """See `TextTask.truth`."""
        return encode_labels(table, labels)

    def label_set(self, labeled: TextTable | TextStream) -> LabelSet:
        """See `Task.label_set` (and `LabelSet.from_columns` for errors)."""
        return label_set_of(_table(labeled))

    def warnings(self, tables: Mapping[str, TextTable | TextStream], labels: LabelSet) -> list[str]:
        """See `Task.warnings`: one class, or a class that training never sees, is an error."""
        warnings = check_labeled(_table(tables["labeled"]), labels)
        if "validation" in tables:
            encode_labels(_table(tables["validation"]), labels)
        return warnings

    def score(self, encoded: EncodedTable, logits: NDArray[Any]) -> float:
        """Return the accuracy."""
        return accuracy(encoded.truth, logits.argmax(-1))


def _table(texts: TextTable | TextStream) -> TextTable:
    assert isinstance(texts, TextTable), "only unlabelled texts come as a stream"
    return texts
