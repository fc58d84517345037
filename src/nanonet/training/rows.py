"""The encoded texts that a run learns from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanonet.tasks.base import Row
from nanonet.training.passages import Sentences


@dataclass(frozen=True)
class TrainingRows:
    """Encoded training texts.

    Attributes:
        labeled: rows.
        labels: class indexes of the labelled rows' units, (U,); where a text may have many labels,
            whether it has each of them, text by text.
        unlabeled: rows; empty without unlabelled text.
        aside: unlabelled rows that are not learnt from.
        class_weights: how much labelled units of each class count, (C,); None: all the same.
        names: token ids of a sentence with each class's name, where the last labelled rows are the
            names; none: names have no say when labels spread.
        sentences: how texts fall into sentences, where they are long.
    """

    labeled: Sequence[Row]
    labels: NDArray[np.int64]
    unlabeled: Sequence[Row]
    class_weights: NDArray[np.float32] | None = None
    aside: Sequence[Row] = ()
    names: Sequence[Row] = ()
    sentences: Sentences | None = None
