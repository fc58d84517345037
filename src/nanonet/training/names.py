"""Labels' names: as one more example of each class, and as a view of the texts.

Users have names for their classes, and a pretrained encoder knows what most of them mean: with one
or two labelled texts per class a name is worth more than another text (figures in
``docs/experiments.md``). SetFit adds such rows when asked to (``get_templated_dataset``). How near
a text is to each name tells its class where labelled texts are too few to show the direction: mood,
above all, which is a small part of what a text's vector says.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanonet.models.backbones import Backbone
from nanonet.models.cohort import pretrained_learner
from nanonet.models.learner import Learner
from nanonet.tasks.base import Row
from nanonet.tasks.tokenization import TextTokenizer
from nanonet.training.device import Hardware
from nanonet.training.evaluation import embed
from nanonet.training.passages import Sentences, place
from nanonet.training.processes import ALONE, Processes

NAME_TEMPLATE = "This text is {}."  # a sentence has a better place than a word, see experiments.md
_BORDER = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")


def as_text(name: str) -> str:
    """Return a name in words: ``NaturalPlace`` as ``Natural Place``, ``age_limit`` as two words."""
    return _BORDER.sub(" ", name).strip()


def name_rows(names: Sequence[str], tokenizer: TextTokenizer, template: str = "{}") -> list[Row]:
    """Return the names' token ids in the order of classes; none where a name holds no letter.

    Args:
        names: of the classes.
        tokenizer: makes token ids.
        template: a sentence with a place for the name.
    """
    texts = [as_text(name) for name in names]
    if not all(any(sign.isalpha() for sign in text) for text in texts):
        return []
    return list(tokenizer.encode([template.format(text) for text in texts]).ids)


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


@dataclass(frozen=True)
class NameView:
    """Texts beside the labels' names.

    Attributes:
        similarities: of the labelled texts, then of the unlabelled ones, to each name, (n, C).
        known: labelled texts that are no names; they come first.
    """

    similarities: NDArray[np.float32]
    known: int


def name_similarities(
    names: Sequence[Row],
    texts: Sequence[Row],
    backbone: Backbone,
    hardware: Hardware,
    sentences: Sentences | None = None,
    processes: Processes = ALONE,
) -> NDArray[np.float32]:
    """Return how near each text is to each name in the pretrained space, (n, C).

    Cosines, less each text's and each name's mean, in units of their standard deviation.

    Args:
        names: token ids of a sentence with each class's name.
        texts: token ids of n texts.
        backbone: the pretrained encoder.
        hardware: where to compute.
        sentences: see `place`.
        processes: who shares the texts.
    """
    learner = pretrained_learner(backbone).to(hardware.device)
    placed = embed(learner, names, hardware, processes=processes)
    near = place(learner, texts, hardware, sentences, processes) @ placed.T
    near = near - near.mean(1, keepdims=True)
    near = near - near.mean(0)
    similarities: NDArray[np.float32] = near / max(float(near.std()), 1e-6)
    return similarities
