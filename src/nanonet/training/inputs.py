"""What a run reads, and the task of classification: label set, checks, encoded rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import Config, DataConfig
from nanonet.data.checks import check_labeled, fingerprint, overlap
from nanonet.data.readers import Columns, TextTable, read_table
from nanonet.tasks.base import OUTPUTS, EncodedTable, Task
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.metrics import accuracy
from nanonet.tasks.tokenization import EncodedTexts, TextTokenizer, encoding_warnings


@dataclass(frozen=True)
class TrainingTables:
    """What a run reads."""

    labeled: TextTable
    unlabeled: TextTable | None = None
    validation: TextTable | None = None

    def by_name(self) -> dict[str, TextTable]:
        """Return the tables that there are."""
        tables = {
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


def leak_warnings(tables: Mapping[str, TextTable]) -> list[str]:
    """Return a warning for each training table that holds texts of the validation table."""
    warnings = []
    validation = tables.get("validation")
    for name, table in tables.items():
        if validation is None or table is validation:
            continue
        if shared := overlap(table.texts, validation.texts):
            kind = "labelled" if name == "labeled" else "unlabelled"
            warnings.append(
                f"{len(shared)} texts of {validation.source} are also among the {kind}"
                f" texts of {table.source}: the validation figures are too good"
            )
    return warnings


class Classification(Task[TextTable]):
    """Single-label classification: a unit is a text, and has one class of several."""

    outputs = OUTPUTS["classification"]

    def __init__(self, config: Config) -> None:
        self.metric = "accuracy"
        self._columns = columns_of(config.data)

    def read(self, source: str, labeled: bool) -> TextTable:
        """See `Task.read`."""
        return read_table(source, self._columns, labels="required" if labeled else "ignored")

    def label_set(self, labeled: TextTable) -> LabelSet:
        """See `Task.label_set` (and `LabelSet.from_columns` for errors)."""
        return label_set_of(labeled)

    def warnings(self, tables: Mapping[str, TextTable], labels: LabelSet) -> list[str]:
        """See `Task.warnings`: one class, or a class that training never sees, is an error."""
        warnings = check_labeled(tables["labeled"], labels)
        if "unlabeled" in tables and (count := tables["unlabeled"].dropped_empty):
            warnings.append(f"{tables['unlabeled'].source}: {count} empty texts left out")
        if "validation" in tables:
            encode_labels(tables["validation"], labels)
        return warnings + leak_warnings(tables)

    def encode(
        self, table: TextTable, labels: LabelSet | None, tokenizer: TextTokenizer
    ) -> EncodedTable:
        """See `Task.encode`."""
        truth = (
            encode_labels(table, labels)
            if labels is not None
            else np.full(len(table.texts), -1, dtype=np.int64)
        )
        return EncodedTable(table.source, tokenizer.encode(table.texts), truth)

    def encoding_warnings(self, encoded: EncodedTable, max_length: int) -> list[str]:
        """See `Task.encoding_warnings`."""
        texts = encoded.encoded
        assert isinstance(texts, EncodedTexts)
        return encoding_warnings(encoded.source, texts, max_length)

    def score(self, encoded: EncodedTable, logits: NDArray[Any]) -> float:
        """Return the accuracy."""
        return accuracy(encoded.truth, logits.argmax(-1))


def describe_inputs(tables: TrainingTables) -> dict[str, Any]:
    """Return source, rows and fingerprint of each table, for the run folder."""
    return {
        name: {"source": t.source, "rows": len(t.texts), "fingerprint": fingerprint(t)}
        for name, t in tables.by_name().items()
    }
