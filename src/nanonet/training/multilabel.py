"""The task of labelling texts that may have several labels each, or none."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanonet.core.config import Config
from nanonet.core.errors import ConfigError, DataError
from nanonet.data.checks import duplicate_count
from nanonet.data.multilabel import MultilabelTable, flags_of, read_multilabel
from nanonet.data.readers import TextStream, TextTable, open_stream, stream_of
from nanonet.tasks.base import OUTPUTS, EncodedTable, Task
from nanonet.tasks.labels import LabelSet, listing, quoted
from nanonet.tasks.tokenization import EncodedTexts, TextTokenizer, encoding_warnings
from nanonet.training.streams import StreamedTexts, encode_stream


class Multilabel(Task[TextTable | TextStream]):
    """Every label is a question of its own: a text has a unit for each."""

    outputs = OUTPUTS["multilabel"]

    def __init__(self, config: Config) -> None:
        self.metric = "average precision"
        self._data = config.data
        if not config.data.label_separator.strip():
            raise ConfigError("key 'data.label_separator' is empty: it must separate labels")
        if config.propagation.classifier:
            raise ConfigError(
                "propagation.classifier is for labels that exclude each other: leave it out of the"
                " task multilabel"
            )

    def read(self, source: str, labeled: bool) -> TextTable | TextStream:
        """See `Task.read`."""
        if not labeled:
            return open_stream(source, self._data.text_column)
        return read_multilabel(source, self._data, labels="required")

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
        truth = encode_labels(_table(table), labels)
        return EncodedTable(table.source, tokenizer.encode(_table(table).texts), truth)

    def encoding_warnings(self, encoded: EncodedTable, max_length: int) -> list[str]:
        """See `Task.encoding_warnings`."""
        texts = encoded.encoded
        assert isinstance(texts, EncodedTexts | StreamedTexts)
        return encoding_warnings(encoded.source, texts, max_length)

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
