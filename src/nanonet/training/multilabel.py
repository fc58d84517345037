"""The task of labelling texts that may have several labels each, or none."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import Config
from nanonet.core.errors import ConfigError, DataError
from nanonet.data.checks import duplicate_count
from nanonet.data.multilabel import MultilabelTable, flags_of, read_multilabel
from nanonet.data.readers import TextStream, TextTable
from nanonet.tasks.base import OUTPUTS, EncodedTable
from nanonet.tasks.labels import LabelSet, listing, quoted
from nanonet.training.inputs import TextTask
from nanonet.training.propagation import check_neighbours_only


class Multilabel(TextTask):
    """Every label is a question of its own: a text has a unit for each."""

    outputs = OUTPUTS["multilabel"]
    metric = "average precision"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not config.data.label_separator.strip():
            raise ConfigError("key 'data.label_separator' is empty: it must separate labels")
        check_neighbours_only(config.propagation, "multilabel")

    def read_labeled(self, source: str) -> TextTable:
        """See `TextTask.read_labeled`."""
        return read_multilabel(source, self._data, labels="required")

    def truth(self, table: TextTable, labels: LabelSet) -> NDArray[np.int64]:
        """See `TextTask.truth`."""
        return encode_labels(_table(table), labels)

    def label_set(self, labeled: TextTable | TextStream) -> LabelSet:
        """See `Task.label_set`."""
        return label_set_of(_table(labeled))

    def warnings(self, tables: Mapping[str, TextTable | TextStream], labels: LabelSet) -> list[str]:
        """See `Task.warnings`: a single label is an error."""
        table = _table(tables["labeled"])
        if len(labels) < 2:
            raise DataError(
                f"{table.source} has only one label ({quoted(labels.names[0])}): for a single yes"
                " or no, train with --task classification and two classes"
            )
        if "validation" in tables:
            held_out = _table(tables["validation"])
            if not encode_labels(held_out, labels).any():
                raise DataError(
                    f"{held_out.source}: no text has a label, which tells nothing of a model: give"
                    " other validation texts, or none"
                )
        warnings = []
        flags = flags_of(table, labels)
        if always := [n for n, f in zip(labels.names, flags.T, strict=True) if f.all()]:
            warnings.append(
                f"{table.source}: every text has {listing([quoted(n) for n in always])}: without"
                " texts that have it not, nothing can be learnt of a label"
            )
        if flags.sum(1).max() == 1:
            warnings.append(
                f"{table.source}: no text has several labels; if they exclude each other, --task"
                " classification is better (in CSV files they are separated by"
                f" {quoted(self._data.label_separator)}, see data.label_separator)"
            )
        if copies := duplicate_count(table.texts):
            warnings.append(f"{table.source}: {copies} copies of an earlier text; decide on one")
        return warnings

    def score(self, encoded: EncodedTable, logits: NDArray[Any]) -> float:
        """Return the average precision over all texts and labels, which needs no threshold."""
        from sklearn.metrics import average_precision_score

        return float(average_precision_score(encoded.truth, logits[:, 1] - logits[:, 0]))


def label_set_of(table: MultilabelTable) -> LabelSet:
    """Return the labels of a table (see `LabelSet.from_columns` for errors)."""
    pairs = zip(table.label_lists or [], table.rows, strict=True)
    each = [(label, row) for own, row in pairs for label in own]
    return LabelSet.from_columns([y for y, _ in each], None, table.source, [r for _, r in each])


def encode_labels(table: MultilabelTable, labels: LabelSet) -> NDArray[np.int64]:
    """Return whether each text has each label, 0 or 1, text by text: (n L,)."""
    return flags_of(table, labels).astype(np.int64).ravel()


def _table(texts: TextTable | TextStream) -> MultilabelTable:
    assert isinstance(texts, MultilabelTable), "only unlabelled texts come in other forms"
    return texts
