"""Read texts that may have several labels each, or none."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import DataConfig
from nanonet.core.errors import DataError
from nanonet.data.checks import clean_label, clean_text
from nanonet.data.readers import Columns, LabelUse, TextTable, csv_label, read_raw, refuse_nothing
from nanonet.tasks.labels import Label, LabelSet, as_numbers, place, quoted


@dataclass(frozen=True)
class MultilabelTable(TextTable):
    """Texts that may have several labels each; all lists have the same length n.

    Attributes:
        labels: each text's labels as one word, JSON.
        label_lists: the labels themselves, distinct within a text; None without labels.
    """

    label_lists: list[list[Label]] | None = None


def _table(
    source: str,
    texts: list[str],
    rows: list[int],
    labels: list[list[Label]] | None,
    dropped_empty: int = 0,
) -> MultilabelTable:
    words: list[Label] | None = None
    if labels is not None:
        words = [json.dumps(own, ensure_ascii=False) for own in labels]
    return MultilabelTable(source, texts, rows, words, None, dropped_empty, labels)


def read_multilabel(source: str | Path, data: DataConfig, *, labels: LabelUse) -> MultilabelTable:
    """Read a table: a text's labels are a list or, in a CSV file, ``data.label_separator`` apart.

    An empty list or cell says that a text has none of the labels. See `read_table` for ``labels``.

    Raises:
        DataError: anything unusable; names the file, the line or row, and the column.
        MissingExtraError: Parquet or the hub needs a package that is not installed.
    """
    columns = Columns(data.text_column, data.label_column, "")
    raw = read_raw(source, columns, labels, partial(_split, separator=data.label_separator))
    name = str(source)
    where = [place(name, row) for row in raw.rows]
    texts = [clean_text(t, w, data.text_column) for t, w in zip(raw.texts, where, strict=True)]
    full = [i for i, text in enumerate(texts) if text.strip()]
    refuse_nothing(name, data.text_column, len(texts), len(full))
    if labels == "required" and len(full) < len(texts):
        first = next(i for i, text in enumerate(texts) if not text.strip())
        raise DataError(
            f"{where[first]}: column {quoted(data.text_column)} is empty"
            f" ({len(texts) - len(full)} such rows in all); fill or remove them"
        )
    cells = raw.labels
    found = None
    if cells is not None:
        own = [_labels_of(cells[i], where[i], data.label_column) for i in full]
        found = _same_kind(own)
    kept, rows = [texts[i] for i in full], [raw.rows[i] for i in full]
    return _table(name, kept, rows, found, len(texts) - len(full))


def multilabel_from_lists(
    texts: Iterable[Any], labels: Iterable[Iterable[Any]] | None, source: str
) -> MultilabelTable:
    """Make a table of texts and, for each, its labels.

    Raises:
        DataError: a text that is no ``str``, an unusable label, or unequal lengths.
    """
    words = [clean_text(t, place(source, i), "text") for i, t in enumerate(texts, 1)]
    found = None
    if labels is not None:
        given = list(labels)
        if len(given) != len(words):
            raise DataError(
                f"{source}: {len(words)} texts but {len(given)} lists of labels; give one per text"
            )
        own = [_labels_of(cell, place(source, i), "label") for i, cell in enumerate(given, 1)]
        found = _same_kind(own)
    for i, text in enumerate(words, 1):
        if not text.strip():
            raise DataError(f"{place(source, i)}: the text is empty; leave it out")
    return _table(source, words, list(range(1, len(words) + 1)), found)


def flags_of(table: MultilabelTable, labels: LabelSet) -> NDArray[np.bool_]:
    """Return which labels each text has, (n, L).

    Raises:
        DataError: there are no labels, or one that training never saw.
    """
    if table.label_lists is None:
        raise DataError(f"{table.source} has no labels to compare with")
    flags = np.zeros((len(table.texts), len(labels)), dtype=bool)
    for i, own in enumerate(table.label_lists):
        rows = [table.rows[i]] * len(own)
        flags[i, labels.encode(own, table.source, rows)] = True
    return flags


def _split(cell: str, separator: str) -> Any:
    """Return the labels of a CSV file's cell: parts, or a list in JSON, as `write_table` has it."""
    text = cell.strip()
    if text in ("", "nan", "NaN"):  # pandas writes a gap so
        return []
    if text.startswith("["):
        with suppress(ValueError):
            return json.loads(text)
    return [csv_label(part.strip()) for part in text.split(separator) if part.strip()]


def _labels_of(cell: Any, where: str, column: str) -> list[Any]:
    """Return the labels of a text, each once."""
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if cell is None or isinstance(cell, str | bytes | dict) or not isinstance(cell, Iterable):
        raise DataError(
            f"{where}, column {quoted(column)}: {quoted(cell)} is no list of labels; write a list,"
            " which is empty where a text has none"
        )
    labels = list(cell)
    if any(isinstance(label, list | tuple | dict) for label in labels):
        raise DataError(
            f"{where}, column {quoted(column)}: {quoted(labels)} holds lists; write one list of"
            " whole numbers or words"
        )
    return list(dict.fromkeys(clean_label(label, where, column) for label in labels))


def _same_kind(labels: list[list[Any]]) -> list[list[Label]]:
    """Return labels with text such as "0" turned into numbers, if that fits all of them."""
    flat = iter(as_numbers([label for own in labels for label in own]))
    return [[next(flat) for _ in own] for own in labels]
