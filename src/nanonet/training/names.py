"""Labels' names as one more example of each class.

Users have names for their classes, and a pretrained encoder knows what most of them mean: with one
or two labelled texts per class a name is worth more than another text (figures in
``docs/experiments.md``). SetFit adds such rows when asked to (``get_templated_dataset``).
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nanonet.models.learner import Learner
from nanonet.tasks.base import Row
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training.device import Hardware
from nanonet.training.evaluation import embed

_BORDER = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")


def as_text(name: str) -> str:
    """Return a name in words: ``NaturalPlace`` as ``Natural Place``, ``age_limit`` as two words."""
    return _BORDER.sub(" ", name).strip()


def name_rows(names: Sequence[str], tokenizer: TextTokenizer) -> list[Row]:
    """Return the names' token ids in the order of classes; none where a name holds no letter."""
    texts = [as_text(name) for name in names]
    if not all(any(sign.isalpha() for sign in text) for text in texts):
        return []
    return list(tokenizer.encode(texts).ids)


def names_tell(
    names: Sequence[Row],
    texts: Sequence[Row],
    labels: NDArray[np.int64],
    learner: Learner,
    hardware: Hardware,
) -> bool:
    """Return whether the nearest name is a text's own more often than chance would have it.

    Names such as "A" and "B" would be wrong examples.

    Args:
        names: token ids of each class's name.
        texts: token ids of the labelled texts.
        labels: their class indexes (n_l,).
        learner: whose space decides, before it has learnt anything.
        hardware: where to compute.
    """
    placed, vectors = embed(learner, names, hardware), embed(learner, texts, hardware)
    nearest = (vectors @ (placed - placed.mean(0)).T).argmax(1)
    right = [float((nearest[labels == c] == c).mean()) for c in np.unique(labels)]
    return float(np.mean(right)) > 1.0 / len(names)
