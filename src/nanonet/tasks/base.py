"""What a task must give: what learners answer, how tables become rows of tokens, and one score.

A *unit* is what gets one answer: a document, a sentence of it, or, where a document may have many
labels, the question whether it has one of them. A *row* is what the encoder reads
at once: the tokens of a text, or, where units are sentences, a `Window` of a document.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanonet.tasks.labels import LabelSet
from nanonet.tasks.stored import StoredRows
from nanonet.tasks.tokenization import Ids, TextTokenizer

Level = Literal["document", "sentence"]
Link = Literal["softmax", "sigmoid"]
Floats = NDArray[np.float32]
T = TypeVar("T")
FEATURES = 10  # of a sentence, see `nanonet.tasks.windows.sentence_features`


@dataclass(frozen=True)
class Outputs:
    """What learners of a task answer.

    Attributes:
        level: whether a unit is a document or a sentence.
        link: ``softmax``: a logit per class; ``sigmoid``: one logit, for yes; of a document, one
            for each label.
        features: numbers per unit that the head reads beside the pooled vector.
    """

    level: Level = "document"
    link: Link = "softmax"
    features: int = 0

    @property
    def is_multilabel(self) -> bool:
        """Whether each label of a document is a question of its own."""
        return self.level == "document" and self.link == "sigmoid"

    def logits(self, classes: int) -> int:
        """Return how many logits a pooled vector gets."""
        return 1 if self.level == "sentence" else classes


OUTPUTS = {
    "classification": Outputs(),
    "multilabel": Outputs(link="sigmoid"),
    "summarization": Outputs("sentence", "sigmoid", FEATURES),
}


@dataclass(frozen=True)
class Window:
    """A run of a document's T tokens, which hold S units: sentences, or pieces of long ones.

    Attributes:
        ids: token ids, special ones included, (T,).
        units: the unit that each token is pooled into, (T,); -1: none.
        segments: token types, which alternate with the sentences, (T,).
        features: of each unit, (S, F).
        sentences: the document's sentence that each unit is of, (S,).
        sizes: tokens of each unit, (S,).
    """

    ids: Ids
    units: Ids
    segments: Ids
    features: Floats
    sentences: Ids
    sizes: Ids

    def __len__(self) -> int:
        return len(self.ids)


Row = Ids | Window


def unit_counts(rows: Sequence[Row]) -> Ids:
    """Return how many units each row holds, (n,)."""
    if isinstance(rows, StoredRows):
        return np.ones(len(rows), dtype=np.int64)
    counts = (len(row.sizes) if isinstance(row, Window) else 1 for row in rows)
    return np.fromiter(counts, dtype=np.int64, count=len(rows))


def row_lengths(rows: Sequence[Row]) -> Ids:
    """Return the tokens of each row, (n,)."""
    if isinstance(rows, StoredRows):
        return rows.lengths
    return np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))


def units_of(rows: Ids, counts: Ids) -> Ids:
    """Return where the units of ``rows`` stand among the units of all rows.

    Args:
        rows: positions of rows, (m,).
        counts: units of every row, (n,).
    """
    ends = np.cumsum(counts)
    parts = [np.arange(ends[row] - counts[row], ends[row]) for row in rows]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


class Encoded(Protocol):
    """Rows, and what was lost of the texts."""

    @property
    def ids(self) -> Sequence[Row]:
        """The rows."""

    @property
    def truncated(self) -> int:
        """Texts that were cut."""


@dataclass(frozen=True)
class EncodedTable:
    """A table's rows and the class index of each unit, (U,); -1 where there is no label."""

    source: str
    encoded: Encoded
    truth: NDArray[np.int64]

    @property
    def examples(self) -> int:
        """Texts or documents."""
        return len(self.encoded.ids)


@dataclass(frozen=True)
class HeadStart:
    """What the heads of a cohort started from.

    Attributes:
        note: for the run's summary; empty where they started from zero.
        settled: no step of training would help.
        notice: what the user should know, if anything.
    """

    note: dict[str, Any] = field(default_factory=dict)
    settled: bool = False
    notice: str = ""


class Task(ABC, Generic[T]):
    """A task, over tables of a kind T (see `nanonet.training.tasks` for those that there are).

    Attributes:
        outputs: what its learners answer.
        metric: name of what `score` returns.
    """

    outputs: ClassVar[Outputs]
    metric: str

    @abstractmethod
    def read(self, source: str, labeled: bool) -> T:
        """Read a table; without ``labeled``, whatever labels it has are ignored.

        Raises:
            DataError: it cannot be used.
        """

    @abstractmethod
    def label_set(self, labeled: T) -> LabelSet:
        """Return the classes of a labelled table."""

    @abstractmethod
    def warnings(self, tables: Mapping[str, T], labels: LabelSet) -> list[str]:
        """Return what is odd about the tables, by name: labeled, unlabeled, validation.

        Raises:
            DataError: they cannot be learnt from.
        """

    @abstractmethod
    def encode(self, table: T, labels: LabelSet | None, tokenizer: TextTokenizer) -> EncodedTable:
        """Return a table's rows and, with ``labels``, their truth."""

    @abstractmethod
    def encoding_warnings(self, encoded: EncodedTable, max_length: int) -> list[str]:
        """Return what the tokenizer lost, where it is much."""

    def start_heads(
        self, cohort: Any, labeled: EncodedTable, hardware: Any, seed: int
    ) -> "HeadStart":
        """Set the heads of a `Cohort` that is about to train; by default they start from zero."""
        return HeadStart()

    @abstractmethod
    def score(self, encoded: EncodedTable, logits: NDArray[Any]) -> float:
        """Return how good logits (U, C) of a labelled table are; higher is better."""
