"""From tables of texts to encoded rows: label set, checks, warnings, fingerprints."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import DataConfig
from nanonet.data.checks import check_labeled, fingerprint, overlap
from nanonet.data.readers import Columns, TextTable, read_table
from nanonet.tasks.labels import LabelSet
from nanonet.tasks.tokenization import EncodedTexts, TextTokenizer


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
    data: DataConfig, labeled: str, unlabeled: str | None, validation: str | None
) -> TrainingTables:
    """Read the files of a run.

    Raises:
        DataError: see `read_table`.
    """
    columns = columns_of(data)
    return TrainingTables(
        read_table(labeled, columns, labels="required"),
        read_table(unlabeled, columns, labels="ignored") if unlabeled else None,
        read_table(validation, columns, labels="required") if validation else None,
    )


def columns_of(data: DataConfig) -> Columns:
    """Return the columns that a configuration names."""
    return Columns(data.text_column, data.label_column, data.label_name_column)


@dataclass(frozen=True)
class EncodedTable:
    """A table's token ids and class indexes (n,), -1 where there is no label."""

    source: str
    encoded: EncodedTexts
    truth: NDArray[np.int64]


def label_set_of(table: TextTable) -> LabelSet:
    """Return the classes of a labelled table (see `LabelSet.from_columns` for errors)."""
    return LabelSet.from_columns(table.labels or [], table.names, table.source, table.rows)


def data_warnings(tables: TrainingTables, labels: LabelSet) -> list[str]:
    """Return what is odd about the texts and labels.

    Raises:
        DataError: only one class, or a class in the validation file that training never sees.
    """
    warnings = check_labeled(tables.labeled, labels)
    if tables.unlabeled is not None and tables.unlabeled.dropped_empty:
        count = tables.unlabeled.dropped_empty
        warnings.append(f"{tables.unlabeled.source}: {count} empty texts left out")
    if tables.validation is not None:
        encode_labels(tables.validation, labels)
        for name, table in (("labelled", tables.labeled), ("unlabelled", tables.unlabeled)):
            if table is not None and (shared := overlap(table.texts, tables.validation.texts)):
                warnings.append(
                    f"{len(shared)} texts of {tables.validation.source} are also among the {name}"
                    f" texts of {table.source}: the validation figures are too good"
                )
    return warnings


def encode_labels(table: TextTable, labels: LabelSet) -> NDArray[np.int64]:
    """Return class indexes (n,).

    Raises:
        DataError: a label that training never saw.
    """
    return labels.encode(table.labels or [], table.source, table.rows, table.names)


def encode_table(
    table: TextTable, labels: LabelSet | None, tokenizer: TextTokenizer
) -> EncodedTable:
    """Return token ids and, with ``labels``, class indexes."""
    truth = (
        encode_labels(table, labels)
        if labels is not None
        else np.full(len(table.texts), -1, dtype=np.int64)
    )
    return EncodedTable(table.source, tokenizer.encode(table.texts), truth)


def encode_tables(
    tables: TrainingTables, labels: LabelSet, tokenizer: TextTokenizer
) -> dict[str, EncodedTable]:
    """Return the tables of a run, encoded, by name."""
    return {
        name: encode_table(table, None if name == "unlabeled" else labels, tokenizer)
        for name, table in tables.by_name().items()
    }


def describe_inputs(tables: TrainingTables) -> dict[str, Any]:
    """Return source, rows and fingerprint of each table, for the run folder."""
    return {
        name: {"source": t.source, "rows": len(t.texts), "fingerprint": fingerprint(t)}
        for name, t in tables.by_name().items()
    }
